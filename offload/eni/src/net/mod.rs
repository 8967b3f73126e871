//! The vhost-user-net device: one pair of rings between a guest and its TAP.
//!
//! Directions are the guest's: it receives from ring 0 and transmits on ring 1
//! (virtio 1.2 §5.1.2).

mod buffers;
mod device;
mod filter;
mod header;
mod receive;
#[cfg(test)]
mod rings;
mod stats;
mod transmit;

pub(crate) use device::NetDevice;
pub(crate) use header::HEADER_LEN;
pub(crate) use stats::Counters;
pub use stats::EniStats;

/// Length of an Ethernet header in bytes.
const ETHERNET_LEN: usize = 14;

/// Frames that one direction moves before the other has its turn.
const BATCH: usize = 128;

/// What a turn of a ring ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All is done; the next packet or kick goes on.
    Done,
    /// The batch is full and there may be more.
    More,
    /// Packets may wait, but only a kick of the guest goes on.
    Starved,
}
