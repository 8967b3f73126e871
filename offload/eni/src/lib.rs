//! ENIs (elastic network interfaces) of pods, in emulation mode.
//!
//! ```text
//! guest ── vrings ──▶ net backend ── readv/writev ──▶ TAP ─▶ bridge ◀─ TAP ◀── the next pod
//!          (vhost-user)   (filter)                  └─ namespace of the VPC: gateway address ─┘
//! ```
//!
//! A VPC is a network namespace with one bridge, which carries the card's
//! gateway address. An ENI is a TAP on that bridge and a vhost-user-net backend
//! between the TAP and the pod's rings. Namespaces and TAPs exist only as long
//! as this process holds their descriptors: a killed card leaves none behind.
//!
//! What a guest sends is believed in nothing: frames that do not carry the
//! ENI's own MAC and IPv4 address as their source are dropped and counted, and
//! so is everything that is neither IPv4 nor ARP (IPv6 and VLAN tags too, for
//! now).

mod bridge;
mod error;
mod link;
mod mac;
mod namespace;
mod net;
mod netlink;
mod provider;
mod spec;
mod tap;
mod vpc;

pub use bridge::BridgeEnis;
pub use error::EniError;
pub use mac::{MacAddress, ParseMacError};
pub use net::EniStats;
pub use provider::EniProvider;
pub use spec::EniSpec;
