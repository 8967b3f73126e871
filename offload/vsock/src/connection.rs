//! One connection: its two buffers, the credit of both sides, and how it ends.
//! No rings, no tasks: packets go in and come out.

use std::collections::VecDeque;
use std::task::Waker;

use crate::packet::{Header, MAX_PAYLOAD, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// What each direction of a connection buffers at most, in bytes. The guest is
/// told so as its credit.
pub const BUFFER_BYTES: usize = 64 << 10;

/// Data that the reader took before the guest is told that there is room
/// again, if there is still some unread.
const CREDIT_STEP: u32 = 4 << 10;

/// Port here and port in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// This side asks for it; the guest has not answered.
    Connecting {
        /// The request is out.
        asked: bool,
    },
    /// Data may flow.
    Open {
        /// The guest knows that it was accepted.
        answered: bool,
    },
    /// The guest knows nothing of it any more.
    Gone {
        /// It ended as agreed, not by a reset.
        clean: bool,
    },
}

/// A packet was against the rules; the connection has to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) ports: Ports,
    pub(crate) phase: Phase,
    /// From the guest, not yet read.
    pub(crate) inbound: VecDeque<u8>,
    /// For the guest, not yet sent.
    pub(crate) outbound: VecDeque<u8>,
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
    /// Nobody here reads or writes any more; it lives on until all is sent and
    /// the guest agreed.
    pub(crate) abandoned: bool,
    /// This side writes no more.
    pub(crate) write_closed: bool,
    /// What the guest said in SHUTDOWN so far.
    pub(crate) guest_shutdown: u32,
    /// What the guest was told in SHUTDOWN so far.
    told_shutdown: u32,
    /// Bytes that came from the guest, ever; wraps.
    received: u32,
    /// Bytes that were read here, ever; wraps.
    consumed: u32,
    /// Last value of `consumed` that the guest was told.
    told_consumed: u32,
    /// Bytes that went to the guest, ever; wraps.
    sent: u32,
    /// The guest's buffer and how much of what was sent it has consumed.
    guest_room: u32,
    guest_consumed: u32,
    owes_credit: bool,
    asked_credit: bool,
}

impl Connection {
    pub(crate) fn new(ports: Ports, phase: Phase) -> Self {
        Self {
            ports,
            phase,
            inbound: VecDeque::new(),
            outbound: VecDeque::new(),
            reader: None,
            writer: None,
            abandoned: false,
            write_closed: false,
            guest_shutdown: 0,
            told_shutdown: 0,
            received: 0,
            consumed: 0,
            told_consumed: 0,
            sent: 0,
            guest_room: 0,
            guest_consumed: 0,
            owes_credit: false,
            asked_credit: false,
        }
    }

    /// Notes the credit that every packet of the guest carries.
    pub(crate) fn take_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_consumed = header.fwd_cnt;
        // A guest without room answers a request at once and says so: asking it again
        // would never end. It tells by itself when it has room.
        if self.credit() > 0 {
            self.asked_credit = false;
        }
    }

    /// Data of the guest.
    ///
    /// # Errors
    /// [`Violation`]: more than its credit, or after it said it was done.
    pub(crate) fn receive(&mut self, data: &[u8]) -> Result<(), Violation> {
        let room = BUFFER_BYTES.saturating_sub(self.inbound.len());
        let open = matches!(self.phase, Phase::Open { .. });
        if !open || self.guest_shutdown & SHUTDOWN_SEND != 0 || data.len() > room {
            return Err(Violation);
        }
        let len = u32::try_from(data.len()).map_err(|_| Violation)?;
        self.received = self.received.wrapping_add(len);
        if self.abandoned {
            self.count_consumed(data.len());
        } else {
            self.inbound.extend(data);
            self.wake_reader();
        }
        Ok(())
    }

    /// Takes up to `buffer.len()` bytes for the reader.
    pub(crate) fn read(&mut self, limit: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let n = limit.min(self.inbound.len());
        let (front, back) = self.inbound.as_slices();
        let (a, b) = (n.min(front.len()), n.saturating_sub(front.len()));
        sink(&front[..a]);
        sink(&back[..b]);
        self.inbound.drain(..n);
        if self.inbound.is_empty() {
            // An idle connection keeps no buffer.
            self.inbound = VecDeque::new();
        }
        self.count_consumed(n);
        n
    }

    /// Takes as much of `data` as there is room for.
    pub(crate) fn write(&mut self, data: &[u8]) -> usize {
        let room = BUFFER_BYTES.saturating_sub(self.outbound.len());
        let n = room.min(data.len());
        self.outbound.extend(&data[..n]);
        n
    }

    /// Whether something is buffered for the guest.
    pub(crate) fn has_outbound(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Nobody here cares any more. What is buffered for the guest still goes.
    pub(crate) fn abandon(&mut self) {
        self.abandoned = true;
        self.write_closed = true;
        let unread = self.inbound.len();
        self.inbound = VecDeque::new();
        self.count_consumed(unread);
    }

    /// The guest has forgotten the connection, or is made to.
    pub(crate) fn end(&mut self, clean: bool) {
        self.phase = Phase::Gone { clean };
        self.outbound = VecDeque::new();
        self.wake_reader();
        self.wake_writer();
    }

    pub(crate) fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    pub(crate) fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    pub(crate) fn owe_credit(&mut self) {
        self.owes_credit = true;
    }

    /// Whether [`Connection::next_packet`] has one.
    pub(crate) fn has_packet(&self) -> bool {
        self.next_op().is_some()
    }

    /// The next packet for the guest, with at most `room` bytes of data.
    pub(crate) fn next_packet(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        let op = self.next_op()?;
        let mut header = Header::stream(op);
        let mut data = Vec::new();
        match op {
            Op::Request => self.phase = Phase::Connecting { asked: true },
            Op::Response => self.phase = Phase::Open { answered: true },
            Op::Data => {
                let n = self
                    .outbound
                    .len()
                    .min(room)
                    .min(MAX_PAYLOAD)
                    .min(usize::try_from(self.credit()).unwrap_or(usize::MAX));
                if n == 0 {
                    return None;
                }
                data.extend(self.outbound.drain(..n));
                if self.outbound.is_empty() {
                    self.outbound = VecDeque::new();
                }
                header.len = u32::try_from(n).ok()?;
                self.sent = self.sent.wrapping_add(header.len);
                self.wake_writer();
            }
            Op::Shutdown => {
                self.told_shutdown = self.shutdown();
                header.flags = self.told_shutdown;
            }
            Op::CreditRequest => self.asked_credit = true,
            Op::CreditUpdate | Op::Reset => {}
        }
        self.owes_credit = false;
        self.told_consumed = self.consumed;
        header.buf_alloc = u32::try_from(BUFFER_BYTES).unwrap_or(u32::MAX);
        header.fwd_cnt = self.consumed;
        Some((header, data))
    }

    fn next_op(&self) -> Option<Op> {
        match self.phase {
            Phase::Connecting { asked: false } => Some(Op::Request),
            Phase::Open { answered: false } => Some(Op::Response),
            Phase::Connecting { .. } | Phase::Gone { .. } => None,
            Phase::Open { .. } => {
                if !self.outbound.is_empty() && self.credit() > 0 {
                    Some(Op::Data)
                } else if self.shutdown() != self.told_shutdown {
                    Some(Op::Shutdown)
                } else if self.owes_credit {
                    Some(Op::CreditUpdate)
                } else if !self.outbound.is_empty() && !self.asked_credit {
                    Some(Op::CreditRequest)
                } else {
                    None
                }
            }
        }
    }

    /// Bytes that the guest has room for. A guest that counts wrongly gets
    /// nothing, or fills its own buffers.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_consumed);
        self.guest_room.saturating_sub(in_flight)
    }

    /// What is to be said in SHUTDOWN now.
    fn shutdown(&self) -> u32 {
        // A guest that hears that nobody receives may give the connection up, so
        // what is buffered for it goes first.
        if !self.outbound.is_empty() {
            return 0;
        }
        let mut flags = 0;
        if self.abandoned {
            flags |= SHUTDOWN_RECEIVE;
        }
        if self.write_closed {
            flags |= SHUTDOWN_SEND;
        }
        flags
    }

    /// Owes the guest an update where it may have stopped for want of credit:
    /// less than half is left in its eyes. Not for every byte of a slow reader.
    fn count_consumed(&mut self, n: usize) {
        // Never more than BUFFER_BYTES.
        let n = u32::try_from(n).unwrap_or(0);
        self.consumed = self.consumed.wrapping_add(n);
        let untold = self.consumed.wrapping_sub(self.told_consumed);
        let used = usize::try_from(self.received.wrapping_sub(self.told_consumed));
        let low = used.is_ok_and(|used| used > BUFFER_BYTES / 2);
        if low && (untold >= CREDIT_STEP || self.inbound.is_empty()) {
            self.owes_credit = true;
        }
    }
}
