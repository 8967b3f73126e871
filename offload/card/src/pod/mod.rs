//! One pod on this card, from its assignment to its release.

mod access;
mod container;
mod lifecycle;
mod prepare;
mod release;

pub(crate) use access::PodAccess;
pub(crate) use lifecycle::{Desired, run};
pub(crate) use release::{release_held, remove_sockets};

use longship_proto::Failure;

/// Why a pod failed: one CamelCase word for machines, the failure for people.
#[derive(Debug, Clone)]
pub(crate) struct PodFailure {
    /// e.g. `ImageNotFound`.
    pub(crate) reason: &'static str,
    /// Class, field and text.
    pub(crate) failure: Failure,
}

impl PodFailure {
    fn new(reason: &'static str, failure: impl Into<Failure>) -> Self {
        Self {
            reason,
            failure: failure.into(),
        }
    }
}
