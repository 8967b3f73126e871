//! What can go wrong with a volume.

use std::io;
use std::path::PathBuf;

use longship_framed::error::Failure;
use longship_vhost_user::ServeError;

/// Why a volume cannot be had or given back.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The volume's name is no file name that is safe to use.
    #[error("volume id `{0}`: 1 to 128 characters of a-z, A-Z, 0-9, `-`, `_` and inner `.`")]
    Id(String),
    /// The serial does not fit into virtio-blk's 20 bytes, or is no plain text.
    #[error("disk serial `{0}`: 1 to 20 printable ASCII characters without spaces")]
    Serial(String),
    /// A scratch disk of this size cannot be.
    #[error("scratch disk of {bytes} bytes: {expected}")]
    ScratchSize {
        /// The size that was asked for.
        bytes: u64,
        /// What would do.
        expected: String,
    },
    /// A file is not usable as a disk.
    #[error("disk of {bytes} bytes: a writable one is a multiple of 512 bytes, and none is empty")]
    DiskSize {
        /// The file's size.
        bytes: u64,
    },
    /// The disk of an image is not there.
    #[error("opening image disk {path}: {source}")]
    Image {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The volume exists already, and is another one.
    #[error("volume `{id}` exists with another {what}")]
    Conflict {
        /// The volume.
        id: String,
        /// What differs.
        what: &'static str,
    },
    /// The scratch store's files.
    #[error("{doing} {path}: {source}")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// `mkfs.ext4` refused.
    #[error("formatting {path}: mkfs.ext4: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The backend cannot be started.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl VolumeError {
    /// One CamelCase word for a pod's status.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Id(_) | Self::Serial(_) | Self::ScratchSize { .. } => "VolumeInvalid",
            Self::DiskSize { .. } => "DiskInvalid",
            Self::Image { .. } => "ImageDiskMissing",
            Self::Conflict { .. } => "VolumeConflict",
            Self::Store { .. } if self.is_full() => "ScratchSpaceExhausted",
            Self::Store { .. } | Self::Format { .. } => "ScratchFailed",
            Self::Serve(_) => "VolumeServeFailed",
        }
    }

    fn is_full(&self) -> bool {
        matches!(self, Self::Store { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }
}

impl From<VolumeError> for Failure {
    fn from(e: VolumeError) -> Self {
        let message = e.to_string();
        match &e {
            VolumeError::Id(_) => Self::invalid("id", message),
            VolumeError::Serial(_) => Self::invalid("serial", message),
            VolumeError::ScratchSize { .. } => Self::invalid("kind.bytes", message),
            VolumeError::DiskSize { .. } => Self::invalid("kind.disk", message),
            VolumeError::Image { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::not_found(message)
            }
            VolumeError::Conflict { .. } => Self::conflict(message),
            VolumeError::Store { .. } if e.is_full() => Self::exhausted(message),
            _ => Self::internal(message),
        }
    }
}
