//! A step that failed: what was being done, and the kernel's answer.

use std::io;

use longship_framed::error::Failure;

/// What was being done, to what, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub(crate) struct Failed {
    doing: String,
    source: io::Error,
}

impl Failed {
    /// `doing` ended with `source`.
    pub(crate) fn new(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// The system's error number, where it has one.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Failure::internal(failed.to_string())
    }
}

/// Says what was being done when a call failed.
pub(crate) trait Doing<T> {
    /// The error with what was being done.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failed>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failed> {
        self.map_err(|error| Failed::new(what(), error))
    }
}
