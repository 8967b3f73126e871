//! What can go wrong with a VMM.

use std::io;

use longship_framed::error::{Class, Failure};

use crate::cgroup::CgroupError;
use crate::channel::ChannelError;
use crate::process::SpawnError;

/// What went wrong with a VMM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmmError {
    /// Something that it needs could not be opened or made.
    #[error("{step}: {error}")]
    Prepare {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// Its cgroup could not be made.
    #[error("cgroup: {0}")]
    Cgroup(#[from] CgroupError),
    /// Its process could not be started.
    #[error("start the VMM: {0}")]
    Spawn(#[from] SpawnError),
    /// It failed at, or refused, a request.
    #[error("{step}: {error}")]
    Call {
        /// What it was asked.
        step: &'static str,
        /// The field that named what it is about; may be empty.
        field: String,
        /// Why.
        error: ChannelError,
    },
    /// It ended while it was asked something.
    #[error("{step}: {reason}")]
    Ended {
        /// What it was asked.
        step: &'static str,
        /// How it ended.
        reason: String,
    },
    /// A backend cannot be reached.
    #[error("connect to {socket}: {error}")]
    Connect {
        /// The field that named it.
        field: String,
        /// Where it should listen.
        socket: String,
        /// What the kernel said.
        error: io::Error,
    },
}

impl From<VmmError> for Failure {
    fn from(error: VmmError) -> Self {
        let message = error.to_string();
        match error {
            VmmError::Connect { field, .. } => Failure::new(Class::Unavailable, field, message),
            VmmError::Call {
                field,
                error: ChannelError::Refused(failure),
                ..
            } => Failure::new(failure.class(), field, message),
            VmmError::Call { field, .. } => Failure::new(Class::Internal, field, message),
            _ => Failure::internal(message),
        }
    }
}

/// For `map_err`: something that a VMM needs could not be had.
pub(crate) fn prepare(step: &'static str) -> impl FnOnce(io::Error) -> VmmError {
    move |error| VmmError::Prepare { step, error }
}

/// For `map_err`: the VMM failed at a request about `field` (may be empty).
pub(super) fn call_error(step: &'static str, field: &str) -> impl FnOnce(ChannelError) -> VmmError {
    let field = field.to_owned();
    move |error| VmmError::Call { step, field, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vmm_refuses_keeps_its_class() {
        let refused = ChannelError::Refused(Failure::exhausted("no memory"));
        let failure = Failure::from(call_error("create the machine", "")(refused));
        assert_eq!(failure.class(), Class::Exhausted);
        assert_eq!(failure.message, "create the machine: no memory");
    }
}
