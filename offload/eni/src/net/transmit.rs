//! Frames from the guest to the network.

use std::os::fd::BorrowedFd;

use longship_vhost_user::{SharedMemory, Used, Vring};
use virtio_queue::Error;

use super::buffers::Pieces;
use super::filter::{LOOKED_AT, Refusal, SourceFilter};
use super::header::{self, HEADER_LEN};
use super::stats::{Counters, count};
use super::{BATCH, ETHERNET_LEN, Turn};

/// Most bytes of a frame with TCP segments to cut: an IP packet and its header.
const MAX_SEGMENTED: usize = ETHERNET_LEN + 65_535;

/// Where the guest's frames go, and which may.
pub(super) struct Transmitter<'a> {
    pub(super) tap: BorrowedFd<'a>,
    pub(super) filter: SourceFilter,
    pub(super) mtu: usize,
    pub(super) counters: &'a Counters,
}

impl Transmitter<'_> {
    /// Sends what the guest has made available, up to a batch.
    pub(super) fn run(&self, ring: &mut Vring, memory: &SharedMemory) -> Result<Turn, Error> {
        let mut pieces = Pieces::default();
        let mut done = Vec::new();
        let turn = loop {
            ring.disable_kicks(memory)?;
            self.fill_batch(ring, memory, &mut pieces, &mut done)?;
            if done.len() >= BATCH {
                break Turn::More;
            }
            if !ring.enable_kicks(memory)? {
                break Turn::Done;
            }
        };
        ring.publish(memory, &done)?;
        Ok(turn)
    }

    fn fill_batch<'m>(
        &self,
        ring: &mut Vring,
        memory: &'m SharedMemory,
        pieces: &mut Pieces<'m>,
        done: &mut Vec<Used>,
    ) -> Result<(), Error> {
        while done.len() < BATCH
            && let Some(chain) = ring.pop(memory)?
        {
            done.push(Used {
                head: chain.head_index(),
                written: 0,
            });
            pieces.clear();
            match pieces.add(memory, chain.readable()) {
                Ok(len) => self.send(pieces, len),
                Err(_) => count(&self.counters.dropped_malformed, 1),
            }
        }
        Ok(())
    }

    /// Sends one frame, or drops and counts it.
    fn send(&self, pieces: &Pieces<'_>, len: usize) {
        // The start is copied out once; what is checked is what is sent, even
        // if the guest changes its memory meanwhile.
        let mut start = [0; HEADER_LEN + LOOKED_AT];
        let copied = pieces.copy_start(&mut start);
        let (start, _) = start.split_at_mut(copied);
        let counters = self.counters;
        match self.judge(start, len) {
            Ok(()) => match pieces.write_to(self.tap, start, copied) {
                Ok(_) => {
                    count(&counters.tx_packets, 1);
                    count(&counters.tx_bytes, len - HEADER_LEN);
                }
                Err(_) => count(&counters.tx_failed, 1),
            },
            Err(Refusal::Spoofed) => count(&counters.dropped_spoofed, 1),
            Err(Refusal::Unsupported) => count(&counters.dropped_unsupported, 1),
            Err(Refusal::Malformed) => count(&counters.dropped_malformed, 1),
        }
    }

    /// Checks a frame of `len` bytes with its header by its start, and puts the
    /// header in order.
    fn judge(&self, start: &mut [u8], len: usize) -> Result<(), Refusal> {
        let (given, frame) = start
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(Refusal::Malformed)?;
        let frame_len = len - HEADER_LEN;
        let transport = self.filter.check(frame)?;
        *given = header::sanitise(*given, transport, frame_len)?;
        let limit = if header::is_segmented(given) {
            MAX_SEGMENTED
        } else {
            ETHERNET_LEN + self.mtu
        };
        if frame_len > limit {
            return Err(Refusal::Malformed);
        }
        Ok(())
    }
}
