//! Whether the host runs short of memory.

use std::fs::File;
use std::io::{self, Write};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tasks that waited for memory for 150 ms within a second (Linux,
/// accounting/psi.rst, "Monitoring for pressure thresholds"): microseconds.
const TRIGGER: &[u8] = b"some 150000 1000000\0";
/// Short is less than this part of all memory.
const SHORT_PART: u64 = 16;

/// Watches the host's memory.
#[derive(Debug)]
pub(crate) struct Pressure {
    /// Becomes ready when tasks wait for memory; `None` where the kernel has no such
    /// triggers.
    stalls: Option<AsyncFd<File>>,
}

impl Pressure {
    /// Needs a tokio runtime.
    pub(crate) fn watch() -> Self {
        let stalls = trigger()
            .inspect_err(|error| {
                tracing::info!(
                    "no triggers of memory pressure ({error}); free memory is looked at"
                );
            })
            .ok();
        Self { stalls }
    }

    /// Waits until tasks wait for memory; for ever where the kernel does not tell.
    pub(crate) async fn stalled(&self) {
        if let Some(stalls) = &self.stalls
            && let Ok(mut ready) = stalls.ready(Interest::PRIORITY).await
        {
            ready.clear_ready();
            return;
        }
        std::future::pending().await
    }

    /// Whether hardly any memory is free now.
    pub(crate) fn is_short() -> bool {
        longship_probe::memory().is_some_and(|memory| is_short(memory.available, memory.total))
    }
}

fn is_short(available: u64, total: u64) -> bool {
    available < total / SHORT_PART
}

fn trigger() -> io::Result<AsyncFd<File>> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .open("/proc/pressure/memory")?;
    file.write_all(TRIGGER)?;
    // SAFETY: a File is open, always the same, and closed only when dropped, which the
    // AsyncFd that owns it outlives.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_is_a_sixteenth() {
        assert!(is_short(99, 1600));
        assert!(!is_short(100, 1600));
    }
}
