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
mod used;

pub(crate) use device::{Device, TurnEnd};
pub(crate) use header::HEADER_LEN;
pub(crate) use stats::Counters;
pub use stats::EniStats;

/// Guest memory as a frontend shares it.
pub(crate) type Memory = vm_memory::GuestMemoryMmap<()>;

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

/// The guest broke the rules of a ring; it stays untouched until it is set up anew.
#[derive(Debug, thiserror::Error)]
#[error("broken ring: {0}")]
pub(crate) struct BrokenRing(#[from] virtio_queue::Error);

impl From<vm_memory::GuestMemoryError> for BrokenRing {
    fn from(error: vm_memory::GuestMemoryError) -> Self {
        Self(virtio_queue::Error::GuestMemory(error))
    }
}

/// Before a turn: all of the ring lies in guest memory, so that no access to it
/// fails half-way and a loop over it always moves on.
fn check_ring(queue: &virtio_queue::Queue, memory: &Memory) -> Result<(), BrokenRing> {
    use virtio_queue::QueueT;
    if queue.is_valid(memory) {
        Ok(())
    } else {
        Err(virtio_queue::Error::QueueNotReady.into())
    }
}
