//! What can go wrong with a control channel.

use std::io;

use longship_framed::error::Failure;
use longship_vhost_user::ServeError;

/// Why a control channel cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// 0, 1 and 2 are reserved, 2^32-1 is "any" (virtio 1.2 §5.10.4).
    #[error("guest CID {0} is reserved or longer than 32 bits")]
    Cid(u64),
    /// The descriptor that wakes the device's thread.
    #[error("making an eventfd: {0}")]
    Wake(#[source] io::Error),
    /// The backend cannot be started.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl VsockError {
    /// One CamelCase word for a pod's status.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Cid(_) => "VsockInvalid",
            Self::Wake(_) | Self::Serve(_) => "VsockServeFailed",
        }
    }
}

impl From<VsockError> for Failure {
    fn from(e: VsockError) -> Self {
        match e {
            VsockError::Cid(_) => Self::invalid("guest_cid", e.to_string()),
            VsockError::Wake(_) | VsockError::Serve(_) => Self::internal(e.to_string()),
        }
    }
}
