//! What a store may answer.

use std::path::PathBuf;
use std::sync::Arc;

use longship_framed::error::Failure;

use crate::object::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// Why the store did not do what it was asked for. Cheap to clone: one failed
/// write to disk answers everybody who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The object is not as the transaction expected; nothing was changed.
    #[error("{kind} `{key}` is not as expected: {found}")]
    Conflict {
        /// Kind of the object.
        kind: String,
        /// Its key.
        key: String,
        /// What was found instead.
        found: String,
    },
    /// The log does not reach back to that version; list again.
    #[error(
        "version {asked} is too old to watch from: the log begins at {oldest} or later; list again"
    )]
    TooOld {
        /// The version asked for.
        asked: u64,
        /// The oldest that can be watched from, or an older one.
        oldest: u64,
    },
    /// The store never had that version: it is another store's.
    #[error("version {asked} does not exist: the newest is {newest}; list again")]
    FromTheFuture {
        /// The version asked for.
        asked: u64,
        /// The newest there is.
        newest: u64,
    },
    /// The object would not fit.
    #[error(
        "{kind} `{key}` is too large: {bytes} bytes; at most {MAX_KEY_BYTES} of kind and key, \
         {MAX_VALUE_BYTES} of value"
    )]
    TooLarge {
        /// Kind of the object.
        kind: String,
        /// Its key.
        key: String,
        /// Size in bytes of what was too large.
        bytes: usize,
    },
    /// The transaction would not fit.
    #[error("a transaction of {ops} operations and {bytes} bytes is too large")]
    TransactionTooLarge {
        /// How many objects it names.
        ops: usize,
        /// Size in bytes of what it writes.
        bytes: usize,
    },
    /// A kind has a slash in it, or none has been given.
    #[error("`{0}` is no kind of objects")]
    Kind(String),
    /// Another process leads, or none: this one must not write.
    #[error("not written: this replica does not lead{}", instead(leader.as_deref()))]
    NotLeading {
        /// The leader's address, where one is known.
        leader: Option<String>,
    },
    /// The leadership was lost while a write was on its way, and nobody can say
    /// whether it has been applied.
    #[error("this replica lost its leadership while it wrote; it may have been written")]
    Uncertain,
    /// The transaction has no operation, or two for one object.
    #[error("a transaction must name each object once, and at least one")]
    Empty,
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
    /// Another process has the store open.
    #[error("{}: another process has this store open", .0.display())]
    Locked(PathBuf),
    /// The file is none of ours, or of another version.
    #[error("{}: {what}", path.display())]
    Format {
        /// The store's file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The disk or the database under the store failed.
    #[error("store: {0}")]
    Backend(Arc<str>),
}

fn instead(leader: Option<&str>) -> String {
    leader.map_or_else(String::new, |leader| format!("; {leader} does"))
}

impl StoreError {
    pub(crate) fn backend(error: impl std::fmt::Display) -> Self {
        Self::Backend(error.to_string().into())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Conflict { .. } => Failure::conflict(message),
            StoreError::TooOld { .. } | StoreError::FromTheFuture { .. } => {
                Failure::invalid("resource_version", message)
            }
            StoreError::TooLarge { .. } | StoreError::TransactionTooLarge { .. } => {
                Failure::invalid("", message)
            }
            StoreError::Closed
            | StoreError::Locked(_)
            | StoreError::Backend(_)
            | StoreError::NotLeading { .. }
            | StoreError::Uncertain => Failure::unavailable(message),
            StoreError::Empty | StoreError::Kind(_) | StoreError::Format { .. } => {
                Failure::internal(message)
            }
        }
    }
}
