//! The nodeless scheduler: pure decisions, no I/O.
//!
//! A request for resources is rounded up to a [`Flavor`], and the flavor gets a
//! place on a host of the wanted zone. Hosts are indexed by zone and by what they
//! have free, so a decision costs no more with more hosts than a tree lookup does.
//! A place is reserved first and committed once the decision is durable; a host
//! never promises more than it has. Whoever has to wait is told why.
//!
//! The same history of calls always gives the same decisions.

mod flavor;
mod host;
mod index;
mod placement;
mod quantity;
mod reason;
mod scheduler;

pub use flavor::{CPU_STEP_MILLIS, Flavor, FlavorTableError, Flavors};
pub use host::{Capacity, HostError, HostSpec, HostView};
pub use placement::{PlacementError, PodId, Request, Reservation, SANDBOX_OVERHEAD_BYTES};
pub use quantity::{bytes_text, cpus_text};
pub use reason::{PlaceError, Refusal, Wait};
pub use scheduler::{Policy, Scheduler};
