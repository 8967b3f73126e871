//! What can go wrong between a reference and its disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longship_framed::error::{Class, Failure};

use crate::digest::Digest;
use crate::reference::ReferenceError;

/// Why an image has no disk. Cloneable: all who wait for one image get the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The reference itself is wrong.
    #[error(transparent)]
    InvalidReference(#[from] ReferenceError),
    /// The registry, or the layout on disk, has no such image.
    #[error("image {reference} not found: {detail}")]
    NotFound {
        /// The image, normalised.
        reference: String,
        /// What exactly is missing.
        detail: String,
    },
    /// The registry wants credentials, or refuses the ones it got.
    #[error("registry {registry} denies access to {reference}: {detail}")]
    Denied {
        /// Host and port.
        registry: String,
        /// The image, normalised.
        reference: String,
        /// The registry's own words.
        detail: String,
    },
    /// The registry cannot be reached, broke off, or answered with a failure.
    #[error("registry {registry} is unavailable: {detail}")]
    RegistryUnavailable {
        /// Host and port.
        registry: String,
        /// What was asked and what happened.
        detail: String,
    },
    /// A manifest, an index or a configuration does not say what it must.
    #[error("{what} of image {reference} is invalid: {detail}")]
    ManifestInvalid {
        /// `manifest`, `index` or `configuration`.
        what: &'static str,
        /// The image, normalised.
        reference: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Content of a kind that Longship does not run.
    #[error("{what} has the unsupported media type {media_type:?}")]
    UnsupportedMediaType {
        /// Which document or layer.
        what: String,
        /// Its type.
        media_type: String,
    },
    /// The image is not for linux/amd64.
    #[error("image {reference} is not for linux/amd64 but for {found}")]
    UnsupportedPlatform {
        /// The image, normalised.
        reference: String,
        /// The platforms it is for.
        found: String,
    },
    /// The bytes are not those that the digest stands for.
    #[error("{what} {expected} is corrupt: its content is {actual}")]
    DigestMismatch {
        /// `manifest`, `configuration`, `layer` or `unpacked layer`.
        what: &'static str,
        /// The digest it must have.
        expected: Digest,
        /// What it is instead: a digest, or more bytes than announced.
        actual: String,
    },
    /// A blob, or the archive in it, ends too early.
    #[error("{what} {digest} is truncated: {detail}")]
    Truncated {
        /// `configuration` or `layer`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// Where it ends.
        detail: String,
    },
    /// A layer is no gzip, zstd or tar stream, or an entry contradicts another.
    #[error("layer {layer} is invalid: {detail}")]
    LayerInvalid {
        /// The layer's digest.
        layer: Digest,
        /// What is wrong, with the entry's name where one is at fault.
        detail: String,
    },
    /// An entry would have been written outside the image's root.
    #[error("layer {layer} tries to leave its root: entry {entry:?}: {detail}")]
    LayerEscapesRoot {
        /// The layer's digest.
        layer: Digest,
        /// The entry's name.
        entry: String,
        /// By which way.
        detail: String,
    },
    /// The image, unpacked, is larger than the store accepts.
    #[error("image is too large: {detail}")]
    TooLarge {
        /// Which limit was passed.
        detail: String,
    },
    /// The store's own files failed.
    #[error("{action} {}: {source}", path.display())]
    Store {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// Another process has this store open.
    #[error("image store {} is in use by another process", .0.display())]
    StoreInUse(PathBuf),
    /// No such image in the store.
    #[error("image {0} is not in the store")]
    NotStored(String),
    /// A fault of this program.
    #[error("image conversion failed: {0}")]
    Internal(String),
}

impl ImageError {
    /// The reason in CamelCase, for a pod's status.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidReference(error) => error.reason(),
            Self::NotFound { .. } | Self::NotStored(_) => "ImageNotFound",
            Self::Denied { .. } => "RegistryDenied",
            Self::RegistryUnavailable { .. } => "RegistryUnavailable",
            Self::ManifestInvalid { .. } => "ManifestInvalid",
            Self::UnsupportedMediaType { .. } => "UnsupportedMediaType",
            Self::UnsupportedPlatform { .. } => "UnsupportedPlatform",
            Self::DigestMismatch { .. } => "DigestMismatch",
            Self::Truncated { .. } => "LayerTruncated",
            Self::LayerInvalid { .. } => "LayerInvalid",
            Self::LayerEscapesRoot { .. } => "LayerEscapesRoot",
            Self::TooLarge { .. } => "ImageTooLarge",
            Self::Store { source, .. } if is_full(source) => "ImageStoreFull",
            Self::Store { .. } => "ImageStoreFailed",
            Self::StoreInUse(_) => "ImageStoreInUse",
            Self::Internal(_) => "Internal",
        }
    }

    /// The class that says what a caller may do next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::InvalidReference(_)
            | Self::ManifestInvalid { .. }
            | Self::UnsupportedMediaType { .. }
            | Self::UnsupportedPlatform { .. }
            | Self::DigestMismatch { .. }
            | Self::Truncated { .. }
            | Self::LayerInvalid { .. }
            | Self::LayerEscapesRoot { .. }
            | Self::TooLarge { .. } => Class::Invalid,
            Self::NotFound { .. } | Self::NotStored(_) => Class::NotFound,
            Self::Denied { .. } => Class::Denied,
            Self::RegistryUnavailable { .. } => Class::Unavailable,
            Self::Store { source, .. } if is_full(source) => Class::Exhausted,
            Self::StoreInUse(_) => Class::Conflict,
            Self::Store { .. } | Self::Internal(_) => Class::Internal,
        }
    }

    /// For `map_err` on an operation of the store's own files.
    pub(crate) fn store<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Store {
            action,
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }

    /// Carries this through code that knows only I/O errors; see [`Self::within`].
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The error that [`Self::into_io`] put into `error`, where it did.
    pub(crate) fn within(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().cloned()
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Failure::new(error.class(), "", error.to_string())
    }
}
