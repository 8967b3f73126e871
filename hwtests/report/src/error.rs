//! Why a report could not be read or written.

use std::io;
use std::path::PathBuf;

/// Why a report could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file could not be read or written.
    #[error("{action} {}: {error}", .path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A file is no report, or one of another version.
    #[error("{}: {why}", .path.display())]
    NoReport {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A figure is no number.
    #[error("write the report: {0}")]
    NoNumber(serde_json::Error),
}

/// For `map_err`, where something was done to a file.
pub(crate) fn file(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> ReportError {
    let path = path.into();
    move |error| ReportError::File {
        action,
        path,
        error,
    }
}
