//! The control plane: it decides and remembers, and never touches a pod's bytes.
//!
//! A request is checked completely (`validate`), handed to the one task that changes
//! anything (`reconcile`), decided in memory with the scheduler and the addresses
//! (`ipam`), written to the store, and only then answered and told to the cards.
//! What clients read (get, list, watch) comes straight from the store.

mod api;
mod auth;
mod backup;
mod first_token;
mod intake;
mod inventory;
mod ipam;
mod leader;
mod lease;
mod listen;
mod outbox;
mod page;
mod phase;
mod pods;
mod reconcile;
mod records;
mod serve;
mod template;
mod tenancy;
mod validate;
mod watch;

pub use backup::{CopyError, backup, restore};
pub use first_token::operator_token;
pub use listen::{TlsError, TlsFiles};
pub use records::RecordError;
pub use serve::{Config, Replica, RunError, Server, Service, StartError};
