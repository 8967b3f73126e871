//! The nodeless scheduler: pure decisions, no I/O, no clock.
//!
//! - [`Fleet`]: hosts, what they have promised, and who has a place where. A pod is
//!   asked for as a [`PodTemplate`]; its place is reserved, then committed once the
//!   decision is durable, or rolled back. A host never promises more than it has.
//!   Hosts are indexed by zone, family and free room, so a decision costs no more
//!   with more hosts than a few lookups do.
//! - [`Backlog`]: pods that wait for a place, and whose turn it is.
//!
//! Whoever has to wait is told why, when they ask ([`Fleet::explain`]): that is
//! counted then, not while others are placed.
//!
//! The same history of calls always gives the same decisions.

mod amount;
mod backlog;
mod chain;
mod flavor;
mod fleet;
mod host;
mod index;
mod levels;
mod placement;
mod policy;
mod quantity;
mod reason;
mod selector;
mod shortage;
mod slab;
mod table;
mod template;
mod tenant;
mod terms;

pub use amount::{Amount, SANDBOX_OVERHEAD_BYTES, Total};
pub use backlog::{Backlog, Decision, Waiting};
pub use flavor::{CPU_STEP_MILLIS, Flavor, FlavorTableError, Flavors, MAX_GPUS, STANDARD_FAMILY};
pub use fleet::{
    Booking, BookingError, BookingId, BookingView, Fleet, Gang, HostFacts, HostStatus, Released,
    Time,
};
pub use host::HostError;
pub use levels::{MAX_DISKS, MAX_ENIS};
pub use placement::{HostId, Placed, PlacementError, PodId, Prepared, Ticket};
pub use policy::Policy;
pub use quantity::{bytes_text, cpus_text};
pub use reason::{Declined, LimitReached, Refusal};
pub use selector::{Expression, Labels, Operator, Selector};
pub use shortage::{Cause, Shortage};
pub use template::{Class, Constraint, Fallback, PodTemplate, Rule, Topology, Zones};
pub use tenant::{Limited, Limits};
