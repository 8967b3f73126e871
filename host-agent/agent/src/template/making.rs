//! Makes one template: boots a machine whose RAM is a file, until its guest parks.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Template;
use crate::cgroup::Share;
use crate::host::Host;
use crate::shape::Shape;
use crate::timeline::{Timeline, now_us};
use crate::vmm::{Vmm, VmmError, prepare};

/// For a guest to boot and park.
const PARK_PATIENCE: Duration = Duration::from_secs(60);
/// A machine's state without its memory is some ten KiB a vCPU.
const STATE_MAX: u64 = 64 << 20;
/// For the kernel to let go of the mappings of a VMM that has ended.
const SEAL_PATIENCE: Duration = Duration::from_secs(2);
/// How much of a guest's last words goes into a failure, bytes.
const LAST_WORDS: usize = 600;

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    /// Its machine could not be made, or did not park.
    #[error("{error}{console}")]
    Machine {
        /// What happened.
        error: VmmError,
        /// What its guest said last.
        console: LastWords,
    },
    /// Its files could not be had or sealed.
    #[error(transparent)]
    Files(#[from] VmmError),
    /// The VMM wrote no state, or too much.
    #[error("the machine's state has {0} bytes")]
    State(u64),
}

/// The end of a guest's console; may be empty.
#[derive(Debug)]
pub(super) struct LastWords(String);

impl std::fmt::Display for LastWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.0.trim();
        if text.is_empty() {
            return Ok(());
        }
        let skip = text.chars().count().saturating_sub(LAST_WORDS);
        let tail: String = text.chars().skip(skip).collect();
        write!(f, "; the guest's last words: {tail}")
    }
}

/// # Errors
/// [`MakeError`]; nothing is left then.
pub(super) async fn make(host: &Arc<Host>, shape: Shape) -> Result<Template, MakeError> {
    let started = now_us();
    let memory = memfd(c"template")?;
    memory
        .set_len(shape.memory_bytes)
        .map_err(prepare("size the template's memory"))?;
    let state = memfd(c"template-state")?;
    let mut nobody_asks = Timeline::default();
    let share = Share::Sandbox(None);
    let mut vmm = Vmm::launch(host, shape, share, &mut nobody_asks).await?;
    if let Err(error) = boot_and_save(&mut vmm, host, shape, &memory, &state).await {
        let (error, exit) = vmm.end_with(error).await;
        let console = LastWords(exit.console_tail);
        return Err(MakeError::Machine { error, console });
    }
    vmm.ask_to_end().await;
    drop(vmm.end().await);
    let size = state.metadata().map_or(0, |found| found.len());
    if size == 0 || size > STATE_MAX {
        return Err(MakeError::State(size));
    }
    seal(&memory).await?;
    seal(&state).await?;
    Ok(Template {
        shape,
        resident_bytes: resident(&memory).saturating_add(resident(&state)),
        memory,
        state,
        made_in_us: now_us() - started,
        clones: Arc::new(AtomicU32::new(0)),
    })
}

async fn boot_and_save(
    vmm: &mut Vmm,
    host: &Host,
    shape: Shape,
    memory: &File,
    state: &File,
) -> Result<(), VmmError> {
    let mut nobody_asks = Timeline::default();
    vmm.create(host, shape, Some(memory.as_fd()), &mut nobody_asks)
        .await?;
    vmm.boot(&mut nobody_asks).await?;
    vmm.parked(PARK_PATIENCE).await?;
    vmm.snapshot(state).await
}

fn memfd(name: &'static std::ffi::CStr) -> Result<File, VmmError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = memfd_create(name, flags).map_err(|error| prepare("make a memfd")(error.into()))?;
    Ok(made.into())
}

/// Nobody changes it any more, neither by mistake nor by a clone that was taken over.
async fn seal(file: &File) -> Result<(), VmmError> {
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    let give_up = tokio::time::Instant::now() + SEAL_PATIENCE;
    loop {
        match fcntl(file, FcntlArg::F_ADD_SEALS(seals)) {
            Ok(_) => return Ok(()),
            // A mapping is still being taken down.
            Err(nix::Error::EBUSY) if tokio::time::Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => return Err(prepare("seal the template")(error.into())),
        }
    }
}

fn resident(file: &File) -> u64 {
    // In units of 512 bytes whatever the file system's own are (stat(2)).
    file.metadata()
        .map_or(0, |found| found.blocks().saturating_mul(512))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[tokio::test]
    async fn a_sealed_file_cannot_be_changed_and_its_holes_cost_nothing() {
        let mut file = memfd(c"test").unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"page", 5 << 20).unwrap();
        assert_eq!(resident(&file), 4096);
        seal(&file).await.unwrap();
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(65 << 20).is_err());
    }

    #[test]
    fn a_failure_ends_with_what_the_guest_said_last() {
        let error = |console: &str| MakeError::Machine {
            error: prepare("boot")(std::io::ErrorKind::TimedOut.into()),
            console: LastWords(console.into()),
        };
        assert_eq!(error(" \n").to_string(), "boot: timed out");
        let long = format!("first {} panic: no init\n", "ä".repeat(LAST_WORDS));
        let said = error(&long).to_string();
        assert!(said.starts_with("boot: timed out; the guest's last words: ä"));
        assert!(said.ends_with("panic: no init"), "{said}");
    }
}
