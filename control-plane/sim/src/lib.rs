//! Simulated cards by the thousand, each speaking the real protocol on a stream of its
//! own, and what the control plane does with them.
//!
//! - [`card`]: one card: its link, the pods that it holds, its reports, its faults.
//! - [`fleet`]: many of them in this process.
//! - [`bench`]: what the control plane does under load, measured from outside.
//!
//! Nothing here knows how the control plane works inside: it is driven as any card and
//! any client would.

pub mod bench;
pub mod card;
pub mod client;
pub mod control;
pub mod fleet;
pub mod network;
pub mod usage;
