//! Giving chains back to the guest, several at once.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{BrokenRing, Memory};

/// A chain that was used, and how many bytes were written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) head: u16,
    pub(super) written: u32,
}

/// Puts chains into the used ring and publishes them together: the buffers of
/// one received packet must appear to the driver at once (virtio 1.2 §5.1.6.4).
pub(super) fn publish(
    queue: &mut Queue,
    memory: &Memory,
    chains: &[Used],
) -> Result<(), BrokenRing> {
    let out_of_bounds = virtio_queue::Error::InvalidDescriptorIndex;
    let mut index = Wrapping(queue.next_used());
    for chain in chains {
        if chain.head >= queue.size() {
            return Err(out_of_bounds.into());
        }
        let slot = u64::from(index.0.checked_rem(queue.size()).unwrap_or(0));
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(chain.head).to_le_bytes());
        element[4..].copy_from_slice(&chain.written.to_le_bytes());
        memory.write_slice(&element, address(queue.used_ring(), 4 + slot * 8)?)?;
        index += 1;
    }
    queue.set_next_used(index.0);
    let index_at = address(queue.used_ring(), 2)?;
    Ok(memory.store(index.0.to_le(), index_at, Ordering::Release)?)
}

/// Whether the guest wants to be interrupted for what was published since its
/// used index was `before` (virtio 1.2 §2.7.7).
pub(super) fn wants_interrupt(
    queue: &Queue,
    memory: &Memory,
    before: u16,
) -> Result<bool, BrokenRing> {
    let now = Wrapping(queue.next_used());
    if now.0 == before {
        return Ok(false);
    }
    // The used index must be out before the guest's wish is read, or both sides
    // could go to sleep.
    fence(Ordering::SeqCst);
    let available = queue.avail_ring();
    if !queue.event_idx_enabled() {
        let flags: u16 = memory.load(address(available, 0)?, Ordering::Relaxed)?;
        return Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0);
    }
    let event_at = address(available, 4 + 2 * u64::from(queue.size()))?;
    let event: u16 = memory.load(event_at, Ordering::Relaxed)?;
    let event = Wrapping(u16::from_le(event));
    Ok(now - event - Wrapping(1) < now - Wrapping(before))
}

fn address(base: u64, offset: u64) -> Result<GuestAddress, BrokenRing> {
    let at = base.checked_add(offset);
    at.map(GuestAddress)
        .ok_or(BrokenRing(virtio_queue::Error::AddressOverflow))
}
