//! What a process has used (proc(5)).

use std::io;

/// Milliseconds of a tick (USER_HZ is 100 on all that Longship runs on).
const TICK_MS: u64 = 10;

/// What a process has used until a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, in bytes.
    pub resident: u64,
    /// The most that it ever was.
    pub most: u64,
}

impl Usage {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// That it has gone.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        parse(&stat, &status).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Of this process.
    ///
    /// # Errors
    /// The kernel's.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name, in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks = |at: usize| fields.split(' ').nth(at)?.parse::<u64>().ok();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Usage {
        cpu_ms: ticks(11)?.checked_add(ticks(12)?)?.checked_mul(TICK_MS)?,
        resident: field("VmRSS:")?,
        most: field("VmHWM:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_read() {
        let stat = "77 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0 99 1 1\n";
        let status = "Name:\ta\nVmHWM:\t    300 kB\nVmRSS:\t     200 kB\n";
        let usage = Usage {
            cpu_ms: 3000,
            resident: 200 << 10,
            most: 300 << 10,
        };
        assert_eq!(parse(stat, status), Some(usage));
        assert_eq!(parse("77", status), None);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::own().unwrap();
        assert!(usage.resident > 0 && usage.most >= usage.resident);
    }
}
