//! All connections of one guest: what its packets do, and what it is sent.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::connection::{Connection, Phase, Ports};
use crate::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// Connections that a guest may have at a time, ended ones that somebody here
/// still reads from included.
pub const MAX_CONNECTIONS: usize = 128;

/// Resets that wait for the guest's receive buffers. With more, the guest's
/// own packets wait.
const MAX_RESETS: usize = 64;

/// First port for connections that this side asks for.
const FIRST_PORT: u32 = 1 << 30;

/// Names a connection for as long as this process lives; ports come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u64);

/// A connection that the guest asked for and got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) id: Id,
    pub(crate) ports: Ports,
}

#[derive(Debug)]
pub(crate) struct Table {
    guest_cid: u64,
    listen: BTreeSet<u32>,
    connections: HashMap<Id, Connection>,
    /// Only those that the guest knows of.
    by_ports: HashMap<Ports, Id>,
    /// Those that may have a packet for the guest, each once, in turn.
    ready: VecDeque<Id>,
    resets: VecDeque<Header>,
    next_id: u64,
    next_port: u32,
    /// The device is no more.
    closed: bool,
}

impl Table {
    pub(crate) fn new(guest_cid: u64, listen: &[u32]) -> Self {
        Self {
            guest_cid,
            listen: listen.iter().copied().collect(),
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_id: 0,
            next_port: FIRST_PORT,
            closed: false,
        }
    }

    pub(crate) fn get(&mut self, id: Id) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    /// Whether a packet of the guest can be answered. If not it has to wait.
    pub(crate) fn can_receive(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// A packet of the guest. `data` is what its header announces; `None` where
    /// it announces what it does not have.
    pub(crate) fn receive(&mut self, header: &Header, data: Option<&[u8]>) -> Option<Accepted> {
        if header.src_cid != self.guest_cid {
            // Nobody to answer to.
            tracing::debug!(cid = header.src_cid, "vsock packet with a foreign source");
            return None;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let op = Op::from_number(header.op);
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refuse(op, header);
            return None;
        }
        match (op, self.by_ports.get(&ports).copied()) {
            (Some(Op::Request), None) => return self.accept(header, ports),
            (_, Some(id)) => self.receive_on(id, op, header, data),
            (_, None) => self.refuse(op, header),
        }
        None
    }

    /// Whether there is a packet for the guest.
    pub(crate) fn has_packet(&mut self) -> bool {
        while let Some(id) = self.ready.front() {
            if self.connections.get(id).is_some_and(Connection::has_packet) {
                return true;
            }
            self.ready.pop_front();
        }
        !self.resets.is_empty()
    }

    /// The next packet for the guest, with at most `room` bytes of data.
    /// Connections take their turn.
    pub(crate) fn next_packet(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        if let Some(reset) = self.resets.pop_front() {
            return Some((reset, Vec::new()));
        }
        // Each at most once: one that has no room for data keeps its turn.
        for _ in 0..self.ready.len() {
            let id = self.ready.pop_front()?;
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let packet = connection.next_packet(room);
            if connection.has_packet() {
                self.ready.push_back(id);
            }
            if let Some((mut header, data)) = packet {
                header.src_cid = HOST_CID;
                header.dst_cid = self.guest_cid;
                header.src_port = connection.ports.host;
                header.dst_port = connection.ports.guest;
                return Some((header, data));
            }
        }
        None
    }

    /// The connection may have something to send now. True where the device's
    /// thread has to be told.
    pub(crate) fn mark_ready(&mut self, id: Id) -> bool {
        let sends = self
            .connections
            .get(&id)
            .is_some_and(Connection::has_packet);
        if sends && !self.ready.contains(&id) {
            self.ready.push_back(id);
        }
        sends
    }

    /// A connection to `port` of the guest; `None` where there are too many or
    /// the device is no more.
    pub(crate) fn connect(&mut self, port: u32) -> Option<Accepted> {
        if self.closed || self.connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        let mut ports = Ports {
            host: self.next_port,
            guest: port,
        };
        while self.by_ports.contains_key(&ports) || self.listen.contains(&ports.host) {
            ports.host = ports.host.checked_add(1).unwrap_or(FIRST_PORT);
        }
        self.next_port = ports.host.checked_add(1).unwrap_or(FIRST_PORT);
        let id = self.add(Connection::new(ports, Phase::Connecting { asked: false }));
        Some(Accepted { id, ports })
    }

    /// The stream of this connection was dropped.
    pub(crate) fn abandon(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.abandon();
        match connection.phase {
            Phase::Open { answered } if answered || connection.has_outbound() => {
                self.mark_ready(id);
            }
            Phase::Connecting { asked: true } | Phase::Open { .. } => self.reset(id),
            Phase::Connecting { asked: false } | Phase::Gone { .. } => self.forget(id),
        }
    }

    /// The frontend is gone: with it everything that the guest knew. What was
    /// not even asked for yet can still be.
    pub(crate) fn reset_all(&mut self) {
        self.resets.clear();
        self.end_all(|phase| phase != Phase::Connecting { asked: false });
    }

    /// The device is no more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.end_all(|_| true);
    }

    fn end_all(&mut self, which: impl Fn(Phase) -> bool) {
        for connection in self.connections.values_mut() {
            if which(connection.phase) && !matches!(connection.phase, Phase::Gone { .. }) {
                connection.end(false);
            }
        }
        self.connections
            .retain(|_, c| !(c.abandoned && matches!(c.phase, Phase::Gone { .. })));
        let connections = &self.connections;
        self.ready.retain(|id| connections.contains_key(id));
        self.by_ports.retain(|_, id| {
            connections
                .get(id)
                .is_some_and(|c| !matches!(c.phase, Phase::Gone { .. }))
        });
    }

    fn accept(&mut self, header: &Header, ports: Ports) -> Option<Accepted> {
        let full = self.connections.len() >= MAX_CONNECTIONS;
        if self.closed || full || !self.listen.contains(&ports.host) {
            self.refuse(Some(Op::Request), header);
            return None;
        }
        let mut connection = Connection::new(ports, Phase::Open { answered: false });
        connection.take_credit(header);
        let id = self.add(connection);
        Some(Accepted { id, ports })
    }

    fn receive_on(&mut self, id: Id, op: Option<Op>, header: &Header, data: Option<&[u8]>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.take_credit(header);
        let open = matches!(connection.phase, Phase::Open { .. });
        match (op, data) {
            (Some(Op::Reset), _) => {
                let clean = connection.guest_shutdown & SHUTDOWN_SEND != 0;
                connection.end(clean);
                self.detach(id);
            }
            (Some(Op::Response), _) if connection.phase == Phase::Connecting { asked: true } => {
                connection.phase = Phase::Open { answered: true };
                connection.wake_writer();
            }
            (Some(Op::Data), Some(data)) if connection.receive(data).is_ok() => {}
            (Some(Op::Shutdown), _) if open => {
                connection.guest_shutdown |= header.flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
                connection.wake_reader();
                connection.wake_writer();
                if connection.guest_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
                    // The reset is what the guest waits for (§5.10.6.5). What
                    // it sent before stays readable here.
                    self.resets.push_back(Header::reset_to(header));
                    connection.end(true);
                    self.detach(id);
                }
            }
            (Some(Op::CreditUpdate), _) if open => {}
            (Some(Op::CreditRequest), _) if open => connection.owe_credit(),
            _ => {
                tracing::debug!(op = header.op, "vsock packet against the rules");
                self.reset(id);
            }
        }
        // Whatever came may have brought credit.
        self.mark_ready(id);
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, op: Option<Op>, header: &Header) {
        if op != Some(Op::Reset) {
            self.resets.push_back(Header::reset_to(header));
        }
    }

    /// Ends a connection from this side, at once.
    fn reset(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.end(false);
            self.resets.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: connection.ports.host,
                dst_port: connection.ports.guest,
                ..Header::stream(Op::Reset)
            });
            self.detach(id);
        }
    }

    fn add(&mut self, connection: Connection) -> Id {
        let id = Id(self.next_id);
        // 2^64 connections take longer than any process lives.
        self.next_id += 1;
        self.by_ports.insert(connection.ports, id);
        self.connections.insert(id, connection);
        self.ready.push_back(id);
        id
    }

    /// The guest does not know it any more; it stays while somebody here does.
    fn detach(&mut self, id: Id) {
        if let Some(connection) = self.connections.get(&id) {
            self.by_ports.remove(&connection.ports);
            if connection.abandoned {
                self.forget(id);
            }
        }
    }

    fn forget(&mut self, id: Id) {
        self.ready.retain(|waiting| *waiting != id);
        if let Some(connection) = self.connections.remove(&id)
            && self.by_ports.get(&connection.ports) == Some(&id)
        {
            self.by_ports.remove(&connection.ports);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::BUFFER_BYTES;

    const CID: u64 = 7;
    const PORT: u32 = 1024;

    fn packet(op: u16, guest_port: u32, flags: u32, len: usize) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: PORT,
            len: u32::try_from(len).unwrap(),
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: 4096,
            fwd_cnt: 0,
        }
    }

    /// What may happen to a table, by the guest's doing or this side's.
    #[derive(Clone, Debug)]
    enum Event {
        Packet(Header, Option<usize>),
        Send(usize),
        Write(usize, usize),
        Read(usize, usize),
        ShutDown(usize),
        Drop(usize),
        Connect(u32),
        ResetAll,
    }

    fn header() -> impl Strategy<Value = Header> {
        let likely = |value: u64| prop_oneof![20 => Just(value), 1 => any::<u64>()];
        (
            (likely(CID), likely(HOST_CID)),
            0_u32..6,
            prop_oneof![10 => Just(PORT), 3 => FIRST_PORT..FIRST_PORT + 4, 1 => any::<u32>()],
            prop_oneof![20 => Just(TYPE_STREAM), 1 => any::<u16>()],
            prop_oneof![20 => 1_u16..8, 1 => any::<u16>()],
            prop_oneof![0_u32..4, any::<u32>()],
            (any::<u32>(), any::<u32>()),
        )
            .prop_map(
                |(cids, src_port, dst_port, kind, op, flags, credit)| Header {
                    src_cid: cids.0,
                    dst_cid: cids.1,
                    src_port,
                    dst_port,
                    len: 0,
                    kind,
                    op,
                    flags,
                    buf_alloc: credit.0,
                    fwd_cnt: credit.1,
                },
            )
    }

    fn event() -> impl Strategy<Value = Event> {
        let size = || prop_oneof![0_usize..100, 0..2 * BUFFER_BYTES];
        prop_oneof![
            8 => (header(), prop::option::weighted(0.9, size()))
                .prop_map(|(h, n)| Event::Packet(h, n)),
            6 => size().prop_map(Event::Send),
            2 => (0_usize..8, size()).prop_map(|(i, n)| Event::Write(i, n)),
            2 => (0_usize..8, size()).prop_map(|(i, n)| Event::Read(i, n)),
            1 => (0_usize..8).prop_map(Event::ShutDown),
            1 => (0_usize..8).prop_map(Event::Drop),
            1 => (0_u32..6).prop_map(Event::Connect),
            1 => Just(Event::ResetAll),
        ]
    }

    fn apply(table: &mut Table, streams: &mut Vec<Id>, event: Event) {
        match event {
            Event::Packet(mut header, len) => {
                // As the device does: no more than a buffer is ever copied.
                let data = len.filter(|n| *n <= BUFFER_BYTES).map(|n| vec![1; n]);
                header.len = u32::try_from(len.unwrap_or(usize::MAX)).unwrap_or(u32::MAX);
                if table.can_receive() {
                    let accepted = table.receive(&header, data.as_deref());
                    streams.extend(accepted.map(|a| a.id));
                }
            }
            Event::Send(room) => {
                let promised = table.has_packet();
                let packet = table.next_packet(room);
                assert!(packet.is_none() || promised);
                if let Some((header, data)) = packet {
                    assert_eq!(usize::try_from(header.len).unwrap(), data.len());
                    assert!(data.len() <= room);
                }
            }
            Event::Connect(port) => streams.extend(table.connect(port).map(|a| a.id)),
            Event::ResetAll => table.reset_all(),
            Event::Write(i, n) => {
                if let Some(c) = streams.get(i).and_then(|id| table.get(*id)) {
                    c.write(&vec![2; n]);
                    table.mark_ready(streams[i]);
                }
            }
            Event::Read(i, n) => {
                if let Some(c) = streams.get(i).and_then(|id| table.get(*id)) {
                    c.read(n, |_| {});
                    table.mark_ready(streams[i]);
                }
            }
            Event::ShutDown(i) => {
                if let Some(c) = streams.get(i).and_then(|id| table.get(*id)) {
                    c.write_closed = true;
                    table.mark_ready(streams[i]);
                }
            }
            Event::Drop(i) => {
                if i < streams.len() {
                    table.abandon(streams.remove(i));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_everything_stays_bounded_and_is_freed(
            events in prop::collection::vec(event(), 1..200),
        ) {
            let mut table = Table::new(CID, &[PORT]);
            let mut streams = Vec::new();
            for event in events {
                apply(&mut table, &mut streams, event);
                prop_assert!(table.connections.len() <= MAX_CONNECTIONS);
                prop_assert!(table.by_ports.len() <= table.connections.len());
                prop_assert!(table.ready.len() <= table.connections.len());
                prop_assert!(table.resets.len() <= MAX_RESETS + MAX_CONNECTIONS);
                for c in table.connections.values() {
                    prop_assert!(c.inbound.len() <= BUFFER_BYTES);
                    prop_assert!(c.outbound.len() <= BUFFER_BYTES);
                }
            }
            for id in streams {
                table.abandon(id);
            }
            table.close();
            prop_assert!(table.connections.is_empty() && table.by_ports.is_empty());
        }
    }

    #[test]
    fn a_guest_that_takes_nothing_is_not_listened_to_for_ever() {
        let mut table = Table::new(CID, &[PORT]);
        let mut taken = 0;
        while table.can_receive() {
            table.receive(&packet(5, taken, 0, 0), Some(&[]));
            taken += 1;
            assert!(taken < 10_000);
        }
        assert!(table.has_packet());
        let (reset, _) = table.next_packet(0).unwrap();
        assert_eq!(Op::from_number(reset.op), Some(Op::Reset));
        assert!(table.can_receive());
    }

    #[test]
    fn connections_take_turns() {
        let mut table = Table::new(CID, &[PORT]);
        let mut open = |port| {
            let accepted = table.receive(&packet(1, port, 0, 0), Some(&[])).unwrap();
            accepted.id
        };
        let ids = [open(1), open(2), open(3)];
        while table.next_packet(0).is_some() {}
        for id in ids {
            table.get(id).unwrap().write(&[9; 200]);
            table.mark_ready(id);
        }
        let mut order = Vec::new();
        while let Some((header, _)) = table.next_packet(100) {
            order.push(header.dst_port);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 3]);
    }
}
