//! What a command can fail with, and how the shell gets to know.

use std::io;
use std::path::PathBuf;

use longship_proto::{Class, Failure, failure_of};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A daemon, or the check of the input, refused.
    #[error("{0}")]
    Failure(Failure),
    /// A daemon cannot be reached.
    #[error("cannot reach {what} at {address}: {cause}{hint}")]
    Unreachable {
        what: &'static str,
        address: String,
        cause: String,
        hint: &'static str,
    },
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    /// A document in a file is wrong.
    #[error("{file}: {failure}")]
    Document { file: String, failure: Failure },
    /// A signal asked the command to end.
    #[error("interrupted{note}")]
    Interrupted { signal: u8, note: String },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl CliError {
    /// As shells expect: 128 + the signal, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { signal, .. } => 128_u8.saturating_add(*signal),
            _ => 1,
        }
    }

    /// Whether what was asked for does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        self.class() == Some(Class::NotFound)
    }

    /// Whether trying again later may help.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unreachable { .. }) || self.class() == Some(Class::Unavailable)
    }

    fn class(&self) -> Option<Class> {
        match self {
            Self::Failure(failure) => Some(failure.class()),
            _ => None,
        }
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        Self::Failure(failure_of(&status))
    }
}

/// The innermost reason of an error whose outer ones say nothing.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_field_and_a_signal_its_number() {
        let refused = CliError::from(Failure::invalid("spec.zone", "no zone `x`"));
        assert_eq!(refused.to_string(), "spec.zone: no zone `x`");
        assert_eq!(refused.exit_code(), 1);
        let interrupted = CliError::Interrupted {
            signal: 2,
            note: String::new(),
        };
        assert_eq!(interrupted.exit_code(), 130);
    }
}
