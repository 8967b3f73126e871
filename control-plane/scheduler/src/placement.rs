//! What is asked for, and the place that it got.

use std::fmt;

use crate::flavor::Flavor;

/// Host memory that a sandbox takes beside its guest's: the VMM, page tables,
/// kernel objects, the backends' share. Reserved with every pod.
pub const SANDBOX_OVERHEAD_BYTES: u64 = 16 << 20;

/// A pod's identity: the 128 bits of its UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u128);

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Thousandths of a CPU; 0: no wish.
    pub cpu_millis: u32,
    /// Bytes; 0: no wish.
    pub memory_bytes: u64,
    /// Only there; `None`: anywhere.
    pub zone: Option<String>,
    /// Exactly that; `None`: the smallest that holds the resources.
    pub flavor: Option<String>,
}

/// A place that is held for a pod until it is committed or released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The host's name.
    pub host: String,
    /// The host's zone.
    pub zone: String,
    /// What the request was rounded up to.
    pub flavor: Flavor,
}

/// Why a placement cannot be changed or taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// No place is held for the pod.
    #[error("pod {0} has no place")]
    NotPlaced(PodId),
    /// The pod has its place already.
    #[error("pod {pod} is already placed on {host}")]
    AlreadyPlaced {
        /// The pod.
        pod: PodId,
        /// Where it is.
        host: String,
    },
    /// Nobody has registered that host.
    #[error("no host `{0}`")]
    UnknownHost(String),
}
