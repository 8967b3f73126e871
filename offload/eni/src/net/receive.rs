//! Frames from the network to the guest.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;

use longship_vhost_user::{SharedMemory, Used, Vring};
use virtio_queue::Error;
use virtio_queue::desc::split::Descriptor;

use super::buffers::Pieces;
use super::header::{HEADER_LEN, NUM_BUFFERS_OFFSET};
use super::stats::{Counters, count};
use super::{BATCH, ETHERNET_LEN, Turn};

/// Most bytes that the TAP gives at once where the guest takes segments larger
/// than the MTU.
const MAX_SEGMENTED: usize = HEADER_LEN + ETHERNET_LEN + 65_536;
/// Most pieces of memory that are held for the guest's next packets.
const MAX_HELD: usize = 896;

/// Where the guest's frames come from, and how it wants them.
pub(super) struct Receiver<'a> {
    pub(super) tap: BorrowedFd<'a>,
    pub(super) mtu: usize,
    /// VIRTIO_NET_F_MRG_RXBUF: a packet may be spread over several chains.
    pub(super) mergeable: bool,
    /// The guest takes segments larger than the MTU.
    pub(super) segmented: bool,
    pub(super) counters: &'a Counters,
}

/// A chain of the guest that waits for a packet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    head: u16,
    capacity: usize,
    pieces: usize,
}

/// The chains in hand.
#[derive(Default)]
struct Hand<'m> {
    chains: VecDeque<Waiting>,
    pieces: Pieces<'m>,
    /// Pieces of chains that are used up.
    first: usize,
    capacity: usize,
}

/// Whether there is room for the next packet.
enum Room {
    Enough,
    /// The guest will kick when it has added buffers.
    Wait,
}

impl Receiver<'_> {
    /// Fills the guest's buffers while there are packets, up to a batch.
    pub(super) fn run(&self, ring: &mut Vring, memory: &SharedMemory) -> Result<Turn, Error> {
        let mut hand = Hand::default();
        let moved = self.fill_batch(ring, memory, &mut hand);
        // What was taken and not used is the guest's again; a frontend may ask
        // for the ring's position at any time.
        let unused = u16::try_from(hand.chains.len()).unwrap_or(u16::MAX);
        ring.unpop(unused);
        moved
    }

    fn fill_batch<'m>(
        &self,
        ring: &mut Vring,
        memory: &'m SharedMemory,
        hand: &mut Hand<'m>,
    ) -> Result<Turn, Error> {
        ring.disable_kicks(memory)?;
        let mut done = Vec::new();
        for _ in 0..BATCH {
            if matches!(self.make_room(ring, memory, hand)?, Room::Wait) {
                return Ok(Turn::Starved);
            }
            let len = match hand.pieces.read_from(self.tap, hand.first) {
                Ok(len) => len,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Turn::Done),
                // The TAP is gone, and nothing will ever come of it.
                Err(_) => return Ok(Turn::Starved),
            };
            let cut = len >= hand.capacity && hand.capacity < self.largest();
            if len < HEADER_LEN || cut {
                count(&self.counters.rx_dropped, 1);
                continue;
            }
            hand.take(len, &mut done);
            ring.publish(memory, &done)?;
            count(&self.counters.rx_packets, 1);
            count(&self.counters.rx_bytes, len - HEADER_LEN);
        }
        Ok(Turn::More)
    }

    /// Most bytes of a packet with its header.
    fn largest(&self) -> usize {
        if self.segmented {
            MAX_SEGMENTED
        } else {
            HEADER_LEN + ETHERNET_LEN + self.mtu
        }
    }

    /// Takes chains until any packet fits: its length is known only when it
    /// has been read, and what does not fit then is lost.
    fn make_room<'m>(
        &self,
        ring: &mut Vring,
        memory: &'m SharedMemory,
        hand: &mut Hand<'m>,
    ) -> Result<Room, Error> {
        loop {
            let most = if self.mergeable {
                usize::from(ring.size())
            } else {
                1
            };
            let full = |hand: &Hand<'_>| {
                hand.chains.len() >= most || hand.pieces.count() - hand.first >= MAX_HELD
            };
            while hand.capacity < self.largest() && !full(hand) {
                let Some(chain) = ring.pop(memory)? else {
                    break;
                };
                let head = chain.head_index();
                // A buffer that holds nothing is no driver's; and as the ring
                // has only one order, it cannot be given back alone.
                if !hand.add(memory, head, chain.writable()) {
                    return Err(Error::InvalidChain);
                }
            }
            // A guest that never has room for the largest packet still gets the
            // smaller ones.
            if hand.capacity >= self.largest() || (hand.capacity > 0 && full(hand)) {
                return Ok(Room::Enough);
            }
            if !ring.enable_kicks(memory)? {
                return Ok(Room::Wait);
            }
            ring.disable_kicks(memory)?;
        }
    }
}

impl<'m> Hand<'m> {
    /// Takes a chain in hand; false where it has no room for anything.
    fn add(
        &mut self,
        memory: &'m SharedMemory,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> bool {
        if self.chains.is_empty() {
            self.pieces.clear();
            self.first = 0;
        }
        let before = self.pieces.count();
        let capacity = match self.pieces.add(memory, descriptors) {
            Ok(capacity) if capacity > 0 => capacity,
            _ => return false,
        };
        self.capacity += capacity;
        self.chains.push_back(Waiting {
            head,
            capacity,
            pieces: self.pieces.count() - before,
        });
        true
    }

    /// Moves the chains that hold a packet of `len` bytes to `done`, and writes
    /// into the packet's header how many they are.
    fn take(&mut self, len: usize, done: &mut Vec<Used>) {
        let first = self.first;
        let mut rest = len;
        done.clear();
        while rest > 0 {
            let Some(chain) = self.chains.pop_front() else {
                break;
            };
            let written = rest.min(chain.capacity);
            done.push(Used {
                head: chain.head,
                written: u32::try_from(written).unwrap_or(u32::MAX),
            });
            rest -= written;
            self.first += chain.pieces;
            self.capacity -= chain.capacity;
        }
        let buffers = u16::try_from(done.len()).unwrap_or(u16::MAX);
        self.pieces
            .store(first, NUM_BUFFERS_OFFSET, &buffers.to_le_bytes());
    }
}
