//! A ring and its two notifications.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::net::{BrokenRing, Memory, Turn, TurnEnd};

/// Largest ring, in descriptors.
const MAX_SIZE: u16 = 1024;

/// One ring. It runs from SET_VRING_KICK to GET_VRING_BASE while it is enabled
/// (vhost-user, "Ring states"), unless the guest has broken it.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    kick: Option<File>,
    call: Option<File>,
    started: bool,
    enabled: bool,
    broken: bool,
    due: bool,
    starved: bool,
}

impl Ring {
    pub(crate) fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(MAX_SIZE)?,
            kick: None,
            call: None,
            started: false,
            enabled: false,
            broken: false,
            due: false,
            starved: false,
        })
    }

    /// Whether the ring may be touched.
    pub(crate) fn is_running(&self) -> bool {
        self.started && self.enabled && !self.broken
    }

    /// Whether a turn is to be taken without waiting.
    pub(crate) fn is_due(&self) -> bool {
        self.due && self.is_running()
    }

    /// Whether a packet for the ring would be of any use now.
    pub(crate) fn takes_packets(&self) -> bool {
        self.is_running() && !self.starved
    }

    /// Has a turn taken.
    pub(crate) fn wake(&mut self) {
        self.due = true;
    }

    /// What to wait on for the guest's kick.
    pub(crate) fn kick(&self) -> Option<BorrowedFd<'_>> {
        let kick = self.kick.as_ref().filter(|_| self.is_running());
        kick.map(AsFd::as_fd)
    }

    /// Takes the kick that has come. A descriptor that is no eventfd is closed,
    /// as it would be readable for ever.
    pub(crate) fn take_kick(&mut self) {
        let mut count = [0; 8];
        match self.kick.as_ref().map(|k| nix::unistd::read(k, &mut count)) {
            Some(Ok(8)) => self.due = true,
            Some(Err(nix::Error::EAGAIN | nix::Error::EINTR)) | None => {}
            Some(_) => {
                tracing::warn!("the frontend's kick descriptor is no eventfd");
                self.kick = None;
            }
        }
    }

    /// Takes a turn, if one is due, and calls the guest if it wants to be.
    pub(crate) fn turn(
        &mut self,
        name: &str,
        run: impl FnOnce(&mut Queue) -> Result<TurnEnd, BrokenRing>,
    ) {
        if !self.is_due() {
            return;
        }
        self.due = false;
        match run(&mut self.queue) {
            Ok(end) => {
                self.due = end.turn == Turn::More;
                self.starved = end.turn == Turn::Starved;
                if end.call {
                    notify(self.call.as_ref());
                }
            }
            Err(e) => {
                // Until the frontend starts it anew.
                self.broken = true;
                tracing::warn!(tap = name, "ring stopped: {e}");
            }
        }
    }

    pub(crate) fn set_size(&mut self, size: u16) -> Result<(), virtio_queue::Error> {
        self.queue.try_set_size(size)
    }

    /// Guest physical addresses of the ring's three parts.
    pub(crate) fn set_addresses(
        &mut self,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), virtio_queue::Error> {
        self.queue
            .try_set_desc_table_address(GuestAddress(descriptors))?;
        self.queue
            .try_set_avail_ring_address(GuestAddress(available))?;
        self.queue.try_set_used_ring_address(GuestAddress(used))
    }

    pub(crate) fn set_position(&mut self, available: u16) {
        self.queue.set_next_avail(available);
    }

    pub(crate) fn set_event_idx(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    /// There may be chains from before.
    pub(crate) fn set_enabled(&mut self, on: bool) {
        self.enabled = on;
        self.due = true;
    }

    /// Starts the ring. The used index goes on where guest memory says, as
    /// SET_VRING_BASE carries only the available one.
    pub(crate) fn start(
        &mut self,
        kick: Option<File>,
        memory: &Memory,
    ) -> Result<(), virtio_queue::Error> {
        let used = self.queue.used_idx(memory, Ordering::Acquire)?;
        self.queue.set_next_used(used.0);
        self.queue.set_ready(true);
        self.kick = kick.inspect(never_block);
        self.started = true;
        self.broken = false;
        self.starved = false;
        self.due = true;
        Ok(())
    }

    /// Whom to call. What was done before there was anybody is told now.
    pub(crate) fn set_call(&mut self, call: Option<File>) {
        self.call = call.inspect(never_block);
        notify(self.call.as_ref());
    }

    /// Stops the ring and returns the position to go on from.
    pub(crate) fn stop(&mut self) -> u16 {
        self.queue.set_ready(false);
        self.kick = None;
        self.call = None;
        self.started = false;
        self.due = false;
        self.queue.next_avail()
    }
}

fn notify(call: Option<&File>) {
    if let Some(call) = call {
        // Full means that a call is pending already; anything else is the
        // frontend's loss.
        let _ = nix::unistd::write(call, &1_u64.to_ne_bytes());
    }
}

/// A descriptor that blocks would hold the thread.
fn never_block(file: &File) {
    let flags = fcntl(file.as_fd(), FcntlArg::F_GETFL).unwrap_or(0);
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    let _ = fcntl(file.as_fd(), FcntlArg::F_SETFL(flags));
}
