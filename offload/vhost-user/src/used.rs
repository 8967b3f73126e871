//! Giving chains back to the guest, several at once, and calling it about them.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::device::SharedMemory;

/// A chain that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Index of its first descriptor.
    pub head: u16,
    /// Bytes in its writable part that the device has written.
    pub written: u32,
}

/// Puts chains into the used ring and publishes them with one store of its
/// index, so that the driver sees all of them or none.
pub(crate) fn publish(
    queue: &mut Queue,
    memory: &SharedMemory,
    chains: &[Used],
) -> Result<(), Error> {
    let mut index = Wrapping(queue.next_used());
    for chain in chains {
        if chain.head >= queue.size() {
            return Err(Error::InvalidDescriptorIndex);
        }
        let slot = u64::from(index.0.checked_rem(queue.size()).unwrap_or(0));
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(chain.head).to_le_bytes());
        element[4..].copy_from_slice(&chain.written.to_le_bytes());
        let at = address(queue.used_ring(), 4 + slot * 8)?;
        memory
            .write_slice(&element, at)
            .map_err(Error::GuestMemory)?;
        index += 1;
    }
    queue.set_next_used(index.0);
    memory
        .store(
            index.0.to_le(),
            address(queue.used_ring(), 2)?,
            Ordering::Release,
        )
        .map_err(Error::GuestMemory)
}

/// Whether the driver wants to be called for what was published since the used
/// index was `before` (virtio 1.2 §2.7.7).
pub(crate) fn wants_call(queue: &Queue, memory: &SharedMemory, before: u16) -> Result<bool, Error> {
    let now = Wrapping(queue.next_used());
    if now.0 == before {
        return Ok(false);
    }
    // The used index must be out before the guest's wish is read, or both sides
    // could go to sleep.
    fence(Ordering::SeqCst);
    let available = queue.avail_ring();
    let load = |at: u64| -> Result<u16, Error> {
        let word = memory.load(address(available, at)?, Ordering::Relaxed);
        Ok(u16::from_le(word.map_err(Error::GuestMemory)?))
    };
    if !queue.event_idx_enabled() {
        return Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
    }
    let event = Wrapping(load(4 + 2 * u64::from(queue.size()))?);
    Ok(now - event - Wrapping(1) < now - Wrapping(before))
}

fn address(base: u64, offset: u64) -> Result<GuestAddress, Error> {
    let at = base.checked_add(offset);
    at.map(GuestAddress).ok_or(Error::AddressOverflow)
}
