//! Why something could not be measured.

use std::io;
use std::path::PathBuf;

use longship_proto::{Failure, failure_of};

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A file could not be read, written or made.
    #[error("{action} {}: {error}", .path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Something of the system failed.
    #[error("{action}: {error}")]
    System {
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A daemon did not come up, or ended.
    #[error("{name} {what}; it said last:\n{log}")]
    Daemon {
        /// Its name.
        name: String,
        /// What it did or did not.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// A call was refused, or failed.
    #[error("{call}: {failure}")]
    Call {
        /// Which call.
        call: &'static str,
        /// Why.
        failure: Failure,
    },
    /// Something did not happen in time.
    #[error("{what} within {seconds} s")]
    Late {
        /// What did not happen.
        what: String,
        /// The time it had.
        seconds: u64,
    },
    /// What was asked for cannot be measured.
    #[error("{0}")]
    Impossible(String),
    /// A channel to a VMM failed.
    #[error("{action}: {error}")]
    Channel {
        /// What was asked.
        action: &'static str,
        /// Why it failed.
        error: longship_framed::FrameError,
    },
}

/// For `map_err`, where something was done to a file.
pub(crate) fn file(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> BenchError {
    let path = path.into();
    move |error| BenchError::File {
        action,
        path,
        error,
    }
}

/// For `map_err`, where something was asked of the kernel.
pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> BenchError {
    move |error| BenchError::System {
        action,
        error: error.into(),
    }
}

/// For `map_err`, where a daemon was called.
pub(crate) fn call(call: &'static str) -> impl FnOnce(tonic::Status) -> BenchError {
    move |status| BenchError::Call {
        call,
        failure: failure_of(&status),
    }
}
