//! What is asked for, and the place that it got.

use std::fmt;

/// A pod's identity: the 128 bits of its UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u128);

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A host's number in the fleet; another host may have it once it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub(crate) u32);

/// A template that a fleet keeps ready, for whoever makes many pods of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared(pub(crate) u32);

/// A pod's hold on its place. The generation tells it from every other place that
/// the pod had or will have: what comes with an older one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// The pod.
    pub pod: PodId,
    /// Rises with every place given.
    pub generation: u64,
}

/// A place that the fleet holds for a pod until it is committed or rolled back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The hold.
    pub ticket: Ticket,
    /// Where.
    pub host: HostId,
    /// The flavor's number in the table.
    pub(crate) flavor: u16,
    /// Whether it draws on a capacity reservation.
    pub from_reservation: bool,
    /// Who has to leave first. The pod may start once all of these were released;
    /// rolled back, they stay.
    pub victims: Vec<Ticket>,
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
    /// The pod's place is another one by now.
    #[error("pod {pod}: generation {given} is stale, it is {current} now")]
    Stale {
        /// The pod.
        pod: PodId,
        /// The generation given.
        given: u64,
        /// The generation of the place it has.
        current: u64,
    },
    /// It was committed: it can be released, but not rolled back.
    #[error("pod {0} is committed: it cannot be rolled back")]
    Committed(PodId),
    /// More than any host has.
    #[error("pod {0}: its size is absurd")]
    Absurd(PodId),
    /// Its template is refused.
    #[error(transparent)]
    Refused(#[from] crate::reason::Refusal),
}
