//! What can go wrong with an ENI.

use std::io;
use std::path::PathBuf;

use longship_framed::error::{Class, Failure};
use longship_vhost_user::ServeError;

/// Why an ENI could not be prepared, released or reached.
#[derive(Debug, thiserror::Error)]
pub enum EniError {
    /// A field of the specification is wrong; nothing was done.
    #[error("{field}: {message}")]
    Invalid {
        /// Name of the field in [`crate::EniSpec`].
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The specification contradicts an ENI that exists.
    #[error("{field}: {message}")]
    Conflict {
        /// Name of the field in [`crate::EniSpec`].
        field: &'static str,
        /// What it contradicts.
        message: String,
    },
    /// No ENI is in that VPC.
    #[error("VPC {0} has no ENI here")]
    UnknownVpc(String),
    /// The network namespace of a VPC could not be created or entered.
    #[error("network namespace of VPC {vpc}: {doing}: {source}")]
    Namespace {
        /// The VPC.
        vpc: String,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a change of a network device.
    #[error("VPC {vpc}: {doing}: {source}")]
    Link {
        /// The VPC.
        vpc: String,
        /// What was being done, to which device.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The TAP of an ENI could not be made.
    #[error("TAP {name}: {doing}: {source}")]
    Tap {
        /// Its name in the VPC's namespace.
        name: String,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The backend could not be started.
    #[error("vhost-user socket {}: {doing}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A connection into a VPC failed.
    #[error("connecting to {to} in VPC {vpc}: {source}")]
    Dial {
        /// The VPC.
        vpc: String,
        /// The address and port.
        to: std::net::SocketAddrV4,
        /// Why it failed.
        source: io::Error,
    },
    /// The runtime that the work was handed to is shutting down.
    #[error("the work was cancelled: the process is stopping")]
    Stopping,
}

impl EniError {
    /// One CamelCase word for it, as in a pod's conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "EniInvalid",
            Self::Conflict { .. } => "EniConflict",
            Self::UnknownVpc(_) => "VpcNotFound",
            Self::Namespace { .. } => "VpcNamespaceFailed",
            Self::Link { .. } => "VpcLinkFailed",
            Self::Tap { .. } => "EniTapFailed",
            Self::Socket { .. } => "EniSocketFailed",
            Self::Dial { .. } => "EniDialFailed",
            Self::Stopping => "Stopping",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Invalid { .. } => Class::Invalid,
            Self::Conflict { .. } => Class::Conflict,
            Self::UnknownVpc(_) => Class::NotFound,
            Self::Dial { .. } | Self::Stopping => Class::Unavailable,
            Self::Namespace { source, .. }
            | Self::Link { source, .. }
            | Self::Tap { source, .. }
            | Self::Socket { source, .. } => class_of(source),
        }
    }
}

/// Descriptors, threads and memory run out; another try may find some.
fn class_of(error: &io::Error) -> Class {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::ENOSPC) => {
            Class::Exhausted
        }
        _ => Class::Internal,
    }
}

impl From<ServeError> for EniError {
    fn from(error: ServeError) -> Self {
        let taken = |path: PathBuf, how: &str| Self::Conflict {
            field: "socket",
            message: format!("{} {how}", path.display()),
        };
        match error {
            ServeError::InUse(path) => taken(path, "is served by another process"),
            ServeError::NotASocket(path) => taken(path, "exists and is no socket"),
            ServeError::Bind { path, source } => Self::Socket {
                path,
                doing: "listening",
                source,
            },
            ServeError::Thread { path, source } => Self::Socket {
                path,
                doing: "starting its thread",
                source,
            },
        }
    }
}

impl From<EniError> for Failure {
    fn from(error: EniError) -> Self {
        let class = error.class();
        match error {
            EniError::Invalid { field, message } | EniError::Conflict { field, message } => {
                Self::new(class, format!("eni.{field}"), message)
            }
            other => Self::new(class, "", other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_class_and_field() {
        let failure = Failure::from(EniError::Conflict {
            field: "address",
            message: "10.0.0.2 is in use".into(),
        });
        assert_eq!(failure.class(), Class::Conflict);
        assert_eq!(failure.to_string(), "eni.address: 10.0.0.2 is in use");
    }

    #[test]
    fn running_out_of_descriptors_is_not_a_fault_of_ours() {
        let failure = Failure::from(EniError::Tap {
            name: "eni0".into(),
            doing: "opening /dev/net/tun",
            source: io::Error::from_raw_os_error(libc::EMFILE),
        });
        assert_eq!(failure.class(), Class::Exhausted);
        assert!(failure.message.contains("/dev/net/tun"));
    }
}
