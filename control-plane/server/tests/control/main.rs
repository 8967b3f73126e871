//! The control plane over real gRPC on the loopback address, with cards that speak
//! the real protocol.
#![allow(clippy::unwrap_used)] // the helpers are tests too

mod access;
mod backup;
mod bad_specs;
mod callers;
mod card;
mod certificates;
mod flood;
mod hosts;
mod image_caches;
mod keys;
mod life;
mod lists;
mod moves;
mod networks;
mod patches;
mod process;
mod setup;
mod strangers;
mod tenants;
mod tls;
mod watches;
