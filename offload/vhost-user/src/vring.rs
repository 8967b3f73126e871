//! One split virtqueue as vhost-user describes it: its place in guest memory,
//! the descriptor that kicks it and the one that calls the guest.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use crate::device::{MAX_QUEUE_SIZE, SharedMemory};
use crate::used::{self, Used};

/// A chain of descriptors that the guest made available.
pub type Chain<'m> = DescriptorChain<&'m SharedMemory>;

/// Where the three parts of a ring lie, in guest physical addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingAddresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// A virtqueue and its two notifications.
///
/// A ring runs from SET_VRING_KICK to GET_VRING_BASE while it is enabled
/// (vhost-user, "Ring states"), unless it was found broken.
#[derive(Debug)]
pub struct Vring {
    queue: Queue,
    kick: Option<File>,
    call: Option<File>,
    error: Option<File>,
    /// The used index up to which it has been decided whether to call.
    told: u16,
    started: bool,
    enabled: bool,
    deferred: bool,
}

impl Vring {
    pub(crate) fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(MAX_QUEUE_SIZE)?,
            kick: None,
            call: None,
            error: None,
            told: 0,
            started: false,
            enabled: false,
            deferred: false,
        })
    }

    /// Whether the device may touch the ring now.
    pub fn is_running(&self) -> bool {
        self.started && self.enabled
    }

    /// The next chain that the guest made available, if there is one.
    ///
    /// # Errors
    /// The available ring is not readable or its index is impossible.
    pub fn pop<'m>(
        &mut self,
        memory: &'m SharedMemory,
    ) -> Result<Option<Chain<'m>>, virtio_queue::Error> {
        let announced = self.queue.avail_idx(memory, Ordering::Acquire)?.0;
        let chain = self.queue.iter(memory)?.next();
        // The iterator is silent about a ring that is not all in guest memory,
        // and whoever empties the ring would never be done.
        if chain.is_none() && announced != self.queue.next_avail() {
            return Err(virtio_queue::Error::InvalidAvailRingIndex);
        }
        Ok(chain)
    }

    /// Makes the last `count` calls of [`Vring::pop`] that gave a chain undone.
    pub fn unpop(&mut self, count: u16) {
        let back = self.queue.next_avail().wrapping_sub(count);
        self.queue.set_next_avail(back);
    }

    /// Position in the available ring from which [`Vring::pop`] goes on.
    pub fn next_available(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Hands a chain back with `written` bytes in its writable part.
    ///
    /// # Errors
    /// The chain's head is no descriptor of this ring, or the used ring cannot
    /// be written.
    pub fn push_used(
        &mut self,
        memory: &SharedMemory,
        head: u16,
        written: u32,
    ) -> Result<(), virtio_queue::Error> {
        self.publish(memory, &[Used { head, written }])
    }

    /// Hands several chains back that the driver must find together, such as
    /// the buffers of one received packet (virtio 1.2 §5.1.6.4).
    ///
    /// # Errors
    /// As [`Vring::push_used`]; the driver sees none of them then.
    pub fn publish(
        &mut self,
        memory: &SharedMemory,
        chains: &[Used],
    ) -> Result<(), virtio_queue::Error> {
        used::publish(&mut self.queue, memory, chains)
    }

    /// Calls the guest if it wants to be called about what was handed back
    /// since the last time; whether it wants to.
    ///
    /// # Errors
    /// The guest's wish cannot be read.
    pub fn notify(&mut self, memory: &SharedMemory) -> Result<bool, virtio_queue::Error> {
        let wanted = used::wants_call(&self.queue, memory, self.told)?;
        self.told = self.queue.next_used();
        if let Some(call) = self.call.as_ref().filter(|_| wanted) {
            signal(call);
        }
        Ok(wanted)
    }

    /// Asks the guest to stop kicking while the ring is being worked off.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn disable_kicks(&mut self, memory: &SharedMemory) -> Result<(), virtio_queue::Error> {
        self.queue.disable_notification(memory)
    }

    /// Asks the guest to kick again. True when something came in the meantime,
    /// for which no kick will follow.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn enable_kicks(&mut self, memory: &SharedMemory) -> Result<bool, virtio_queue::Error> {
        self.queue.enable_notification(memory)
    }

    /// Has [`crate::Device::process`] called again without a kick, after
    /// whatever else is waiting had its turn.
    pub fn defer(&mut self) {
        self.deferred = true;
    }

    /// The queue's size in descriptors.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    pub(crate) fn take_deferred(&mut self) -> bool {
        self.is_running() && std::mem::take(&mut self.deferred)
    }

    pub(crate) fn is_deferred(&self) -> bool {
        self.is_running() && self.deferred
    }

    pub(crate) fn kick(&self) -> Option<&File> {
        self.kick.as_ref().filter(|_| self.is_running())
    }

    /// Takes one kick; false where the descriptor is no eventfd that works.
    pub(crate) fn consume_kick(&mut self) -> bool {
        let mut count = [0; 8];
        match self.kick.as_ref().map(|k| nix::unistd::read(k, &mut count)) {
            Some(Ok(n)) => n == count.len(),
            Some(Err(nix::Error::EAGAIN | nix::Error::EINTR)) => true,
            Some(Err(_)) | None => false,
        }
    }

    pub(crate) fn set_size(&mut self, size: u16) -> Result<(), virtio_queue::Error> {
        self.queue.try_set_size(size)
    }

    pub(crate) fn set_addresses(&mut self, at: RingAddresses) -> Result<(), virtio_queue::Error> {
        self.queue
            .try_set_desc_table_address(GuestAddress(at.descriptors))?;
        self.queue
            .try_set_avail_ring_address(GuestAddress(at.available))?;
        self.queue.try_set_used_ring_address(GuestAddress(at.used))
    }

    pub(crate) fn set_next_available(&mut self, index: u16) {
        self.queue.set_next_avail(index);
    }

    pub(crate) fn set_event_idx(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    /// A ring may hold requests from before it was enabled: look at once.
    pub(crate) fn set_enabled(&mut self, on: bool) {
        self.enabled = on;
        self.deferred = true;
    }

    /// What was pushed before this descriptor came had nobody to call: one call
    /// too many is harmless, a missing one is not.
    pub(crate) fn set_call(&mut self, call: Option<File>) {
        self.call = call.inspect(never_block);
        self.call.iter().for_each(signal);
    }

    pub(crate) fn set_error(&mut self, error: Option<File>) {
        self.error = error.inspect(never_block);
    }

    /// Starts the ring. The used index goes on where guest memory says, as
    /// SET_VRING_BASE carries only the available one.
    pub(crate) fn start(
        &mut self,
        kick: Option<File>,
        memory: &SharedMemory,
    ) -> Result<(), virtio_queue::Error> {
        self.queue.set_ready(true);
        let usable = self.queue.is_valid(memory);
        if !usable {
            self.queue.set_ready(false);
            return Err(virtio_queue::Error::QueueNotReady);
        }
        let used = self.queue.used_idx(memory, Ordering::Acquire)?.0;
        self.queue.set_next_used(used);
        self.told = used;
        self.kick = kick.inspect(never_block);
        self.started = true;
        self.deferred = true;
        Ok(())
    }

    /// Stops the ring; the index to go on from stays readable.
    pub(crate) fn stop(&mut self) {
        self.queue.set_ready(false);
        self.kick = None;
        self.call = None;
        self.started = false;
        self.deferred = false;
    }

    /// Stops the ring because the guest broke it, and tells the frontend.
    pub(crate) fn fail(&mut self) {
        self.stop();
        self.error.iter().for_each(signal);
    }
}

#[cfg(feature = "test-driver")]
impl Vring {
    /// A running ring without a frontend, to test a device on `queue` alone.
    pub fn over(queue: virtio_queue::Queue) -> Self {
        Self {
            told: queue.next_used(),
            queue,
            kick: None,
            call: None,
            error: None,
            started: true,
            enabled: true,
            deferred: false,
        }
    }
}

fn signal(eventfd: &File) {
    // Full means that it is signalled already; anything else is the frontend's
    // loss.
    let _ = nix::unistd::write(eventfd, &1_u64.to_ne_bytes());
}

/// A frontend could pass a descriptor that blocks and so hold the thread.
fn never_block(file: &File) {
    let flags = fcntl(file.as_fd(), FcntlArg::F_GETFL).unwrap_or(0);
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    let _ = fcntl(file.as_fd(), FcntlArg::F_SETFL(flags));
}
