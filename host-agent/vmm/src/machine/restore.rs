//! A request to make a machine from a template, checked before anything of it exists.

use std::fs::File;
use std::os::fd::OwnedFd;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};
use longship_framed::error::Failure;
use longship_framed::vmm::Restore;

use crate::machine::spec::{SpecError, check_kvm, check_writable};
use crate::memory::memfd::{UnfitMemory, check_sealed};
use crate::snapshot::{MachineState, SnapshotError};

/// Why a clone is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("expected {expected} descriptors ({names}), got {got}")]
    Descriptors {
        expected: usize,
        names: &'static str,
        got: usize,
    },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    State(#[from] SnapshotError),
    #[error("{0}")]
    Memory(#[from] UnfitMemory),
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let message = error.to_string();
        match error {
            RestoreError::Descriptors { .. } => Self::invalid("descriptors", message),
            RestoreError::Memory(_) => Self::invalid("memory", message),
            RestoreError::Spec(e) => e.into(),
            RestoreError::State(e) => e.into(),
        }
    }
}

/// A machine that can be made from its template.
pub(crate) struct RestoreSpec {
    pub(crate) kvm: Kvm,
    pub(crate) state: MachineState,
    /// The template's memory.
    pub(crate) memory: File,
    pub(crate) console: Option<File>,
}

impl RestoreSpec {
    /// Checks the whole request.
    pub(crate) fn check(restore: Restore, fds: Vec<OwnedFd>) -> Result<Self, RestoreError> {
        let (expected, names) = if restore.has_console {
            (4, "kvm, state, memory, console")
        } else {
            (3, "kvm, state, memory")
        };
        let wrong = RestoreError::Descriptors {
            expected,
            names,
            got: fds.len(),
        };
        if fds.len() != expected {
            return Err(wrong);
        }
        let mut fds = fds.into_iter();
        let (Some(kvm), Some(state), Some(memory)) = (fds.next(), fds.next(), fds.next()) else {
            return Err(wrong);
        };
        let console = fds.next().map(File::from);
        if let Some(console) = &console {
            check_writable(console)?;
        }
        let state = MachineState::load(&state.into())?;
        let memory = File::from(memory);
        check_sealed(&memory, state.ram.bytes)?;
        let kvm = check_kvm(kvm)?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(SpecError::Cpuid)?;
        state.check_host(&supported, kvm.check_extension(Cap::TscDeadlineTimer))?;
        Ok(Self {
            kvm,
            state,
            memory,
            console,
        })
    }
}
