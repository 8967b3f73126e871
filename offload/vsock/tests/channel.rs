//! The channel against a guest that is played by a test driver.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test's own steps"
)]

use std::collections::HashMap;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use longship_vhost_user::driver::{Driver, PATIENCE, Piece, RING_SIZE};
use longship_vsock::{
    BUFFER_BYTES, Incoming, MAX_CONNECTIONS, VsockDevice, VsockError, VsockStream,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

const CID: u64 = 42;
const PORT: u32 = 1024;
const RECEIVE_BUFFER: u32 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    src: (u64, u32),
    dst: (u64, u32),
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    /// Length in the header, where it is not that of the data.
    len: Option<u32>,
    data: Vec<u8>,
}

fn packet(op: u16, guest_port: u32, data: &[u8]) -> Packet {
    Packet {
        src: (CID, guest_port),
        dst: (2, PORT),
        kind: 1,
        op,
        flags: 0,
        buf_alloc: 256 << 10,
        fwd_cnt: 0,
        len: None,
        data: data.to_vec(),
    }
}

impl Packet {
    fn header(&self) -> Vec<u8> {
        let mut h = Vec::new();
        h.extend(self.src.0.to_le_bytes());
        h.extend(self.dst.0.to_le_bytes());
        h.extend(self.src.1.to_le_bytes());
        h.extend(self.dst.1.to_le_bytes());
        h.extend(self.len.unwrap_or(self.data.len() as u32).to_le_bytes());
        h.extend(self.kind.to_le_bytes());
        h.extend(self.op.to_le_bytes());
        h.extend(self.flags.to_le_bytes());
        h.extend(self.buf_alloc.to_le_bytes());
        h.extend(self.fwd_cnt.to_le_bytes());
        h
    }

    fn parse(bytes: &[u8]) -> Self {
        let u64_at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().unwrap());
        let u32_at = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
        let u16_at = |i: usize| u16::from_le_bytes(bytes[i..i + 2].try_into().unwrap());
        assert_eq!(u32_at(24) as usize, bytes.len() - 44);
        Self {
            src: (u64_at(0), u32_at(16)),
            dst: (u64_at(8), u32_at(20)),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            len: None,
            data: bytes[44..].to_vec(),
        }
    }
}

/// The guest's driver.
struct Guest {
    driver: Driver,
    /// Receive buffers by their head.
    buffers: HashMap<u16, (u64, u32)>,
}

impl Guest {
    fn new(device: &VsockDevice) -> Self {
        Self::with(device, 3, 0)
    }

    fn with(device: &VsockDevice, rings: usize, without: u64) -> Self {
        let driver = Driver::connect(device.socket(), rings, without);
        let mut guest = Self {
            driver,
            buffers: HashMap::new(),
        };
        for _ in 0..RING_SIZE / 2 {
            guest.refill();
        }
        guest.driver.kick(0);
        guest
    }

    fn refill(&mut self) {
        let sent = self
            .driver
            .submit(0, &[Piece::Write(RECEIVE_BUFFER)], false);
        self.buffers.insert(sent.head, sent.pieces[0]);
    }

    fn send(&mut self, packet: &Packet) {
        let header = packet.header();
        let sent = self
            .driver
            .submit(1, &[Piece::Read(&header), Piece::Read(&packet.data)], false);
        self.driver.kick(1);
        let used = self.driver.wait_used(1).expect("the packet was not taken");
        assert_eq!(used.0, sent.head);
    }

    fn receive_for(&mut self, patience: Duration) -> Option<Packet> {
        let (head, len) = self.driver.wait_used_for(0, patience)?;
        let (at, _) = self.buffers.remove(&head).unwrap();
        let packet = Packet::parse(&self.driver.read(at, len));
        self.refill();
        self.driver.kick(0);
        Some(packet)
    }

    fn receive(&mut self) -> Packet {
        self.receive_for(PATIENCE).expect("the guest got nothing")
    }

    fn silent(&mut self) -> bool {
        self.receive_for(Duration::from_millis(60)).is_none()
    }

    /// Opens a connection from `port`.
    fn open(&mut self, port: u32, buf_alloc: u32) {
        let mut request = packet(REQUEST, port, &[]);
        request.buf_alloc = buf_alloc;
        self.send(&request);
        let response = self.receive();
        assert_eq!(response.op, RESPONSE, "{response:?}");
        assert_eq!(response.src, (2, PORT));
        assert_eq!(response.dst, (CID, port));
        assert_eq!(response.buf_alloc as usize, BUFFER_BYTES);
    }
}

struct World {
    runtime: Runtime,
    device: VsockDevice,
    incoming: Receiver<Incoming>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let (device, incoming) = VsockDevice::serve(&path, CID, &[PORT, PORT + 1]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            runtime,
            device,
            incoming,
            _dir: dir,
        }
    }

    fn accept(&mut self) -> VsockStream {
        let incoming = self.incoming.recv();
        let wait = async { tokio::time::timeout(PATIENCE, incoming).await };
        let incoming = self.runtime.block_on(wait).unwrap().unwrap();
        assert_eq!(incoming.port, PORT);
        incoming.stream
    }

    fn write(&self, stream: &mut VsockStream, data: &[u8]) {
        self.runtime.block_on(stream.write_all(data)).unwrap();
    }

    fn read(&self, stream: &mut VsockStream, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        let read = async { tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await };
        self.runtime.block_on(read).unwrap().unwrap();
        bytes
    }

    fn read_end(&self, stream: &mut VsockStream) -> std::io::Result<usize> {
        let mut byte = [0];
        let read = async { tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await };
        self.runtime.block_on(read).unwrap()
    }
}

#[test]
fn a_guest_connects_and_both_sides_talk() {
    let mut w = World::new();
    for (rings, without) in [(3, 0), (2, 0), (2, 1 << 29), (3, 1 << 28)] {
        let mut guest = Guest::with(&w.device, rings, without);
        assert_eq!(guest.driver.config(8), CID.to_le_bytes());
        guest.open(5000, 1 << 20);
        let mut stream = w.accept();
        assert_eq!((stream.host_port(), stream.guest_port()), (PORT, 5000));
        guest.send(&packet(RW, 5000, b"hello from the guest"));
        assert_eq!(w.read(&mut stream, 20), b"hello from the guest");
        w.write(&mut stream, b"hello from the card");
        let got = guest.receive();
        assert_eq!((got.op, &*got.data), (RW, &b"hello from the card"[..]));
        assert_eq!(got.fwd_cnt, 20);
    }
}

#[test]
fn what_nobody_listens_to_is_reset_and_a_foreign_source_is_ignored() {
    let w = World::new();
    let mut guest = Guest::new(&w.device);
    let mut refused = |change: &dyn Fn(&mut Packet)| {
        let mut request = packet(REQUEST, 5000, &[]);
        change(&mut request);
        guest.send(&request);
        let answer = guest.receive();
        assert_eq!((answer.op, answer.kind), (RST, 1));
        assert_eq!((answer.src, answer.dst), (request.dst, request.src));
    };
    refused(&|p| p.dst.1 = 1);
    refused(&|p| p.dst.0 = 3);
    refused(&|p| p.kind = 2);
    refused(&|p| p.op = RW);
    refused(&|p| p.op = 0);
    refused(&|p| p.op = 999);
    refused(&|p| p.op = SHUTDOWN);
    let mut foreign = packet(REQUEST, 5000, &[]);
    foreign.src.0 = CID + 1;
    guest.send(&foreign);
    // A reset is never answered, or two sides could reset each other for ever.
    guest.send(&packet(RST, 5000, &[]));
    assert!(guest.silent());
}

#[test]
fn a_reader_that_does_not_read_stops_the_guest_by_credit() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    let full = vec![7; BUFFER_BYTES];
    guest.send(&packet(RW, 5000, &full));
    assert!(guest.silent(), "credit without anything read");
    assert_eq!(w.read(&mut stream, 1), [7]);
    assert!(guest.silent(), "an update for every byte");
    w.read(&mut stream, BUFFER_BYTES / 2);
    let update = guest.receive();
    assert_eq!(update.op, CREDIT_UPDATE);
    assert_eq!(update.fwd_cnt as usize, BUFFER_BYTES / 2 + 1);
    // One byte more than the credit is against the rules.
    guest.send(&packet(RW, 5000, &vec![8; BUFFER_BYTES / 2 + 2]));
    assert_eq!(guest.receive().op, RST);
    let rest = w.read(&mut stream, BUFFER_BYTES / 2 - 1);
    assert!(rest.iter().all(|b| *b == 7));
    let e = w.read_end(&mut stream).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1000);
    let mut stream = w.accept();
    w.write(&mut stream, &[1; 2500]);
    let first = guest.receive();
    assert_eq!((first.op, first.data.len()), (RW, 1000));
    assert_eq!(guest.receive().op, CREDIT_REQUEST);
    assert!(guest.silent());
    let mut update = packet(CREDIT_UPDATE, 5000, &[]);
    // An answer that brings no credit is not asked for again.
    (update.buf_alloc, update.fwd_cnt) = (1000, 0);
    guest.send(&update);
    assert!(guest.silent());
    (update.buf_alloc, update.fwd_cnt) = (1000, 400);
    guest.send(&update);
    assert_eq!(guest.receive().data.len(), 400);
    assert_eq!(guest.receive().op, CREDIT_REQUEST);
    (update.buf_alloc, update.fwd_cnt) = (5000, 1400);
    guest.send(&update);
    assert_eq!(guest.receive().data.len(), 1100);
    // A writer waits where the buffer is full, and goes on with new credit.
    let too_much = vec![2; BUFFER_BYTES + 10_000];
    let write = async {
        let written = tokio::time::timeout(Duration::from_millis(50), stream.write_all(&too_much));
        written.await.is_err()
    };
    assert!(w.runtime.block_on(write), "the buffer has no bound");
    assert!(guest.receive().data.len() <= 5000);
}

#[test]
fn each_side_may_close_its_half() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    let mut done = packet(SHUTDOWN, 5000, &[]);
    done.flags = 2;
    guest.send(&packet(RW, 5000, b"last words"));
    guest.send(&done);
    assert_eq!(w.read(&mut stream, 10), b"last words");
    assert_eq!(w.read_end(&mut stream).unwrap(), 0);
    w.write(&mut stream, b"still here");
    assert_eq!(guest.receive().data, b"still here");
    w.runtime.block_on(stream.shutdown()).unwrap();
    let shut = guest.receive();
    assert_eq!((shut.op, shut.flags), (SHUTDOWN, 2));
    let e = w.runtime.block_on(stream.write_all(b"x")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::BrokenPipe);
    drop(stream);
    let shut = guest.receive();
    assert_eq!((shut.op, shut.flags), (SHUTDOWN, 3));
}

#[test]
fn a_guest_that_closes_is_confirmed_and_its_last_data_stays_readable() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    guest.send(&packet(RW, 5000, b"bye"));
    let mut close = packet(SHUTDOWN, 5000, &[]);
    close.flags = 3;
    guest.send(&close);
    assert_eq!(guest.receive().op, RST);
    assert_eq!(w.read(&mut stream, 3), b"bye");
    assert_eq!(w.read_end(&mut stream).unwrap(), 0);
    let e = w.runtime.block_on(stream.write_all(b"x")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::BrokenPipe);
    // The ports can be used again while the old stream is still held.
    guest.open(5000, 1 << 20);
    let mut second = w.accept();
    w.write(&mut second, b"new");
    assert_eq!(guest.receive().data, b"new");
}

#[test]
fn a_dropped_stream_sends_what_was_written_and_then_closes() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 10);
    let mut stream = w.accept();
    w.write(&mut stream, b"more than fits at once");
    drop(stream);
    let mut got = guest.receive();
    let mut text: Vec<u8> = Vec::new();
    while got.flags != 3 {
        text.extend(&got.data);
        let mut update = packet(CREDIT_UPDATE, 5000, &[]);
        (update.buf_alloc, update.fwd_cnt) = (10, text.len() as u32);
        if got.op == CREDIT_REQUEST || got.op == RW {
            guest.send(&update);
        }
        got = guest.receive();
    }
    assert_eq!(text, b"more than fits at once");
    // What is on its way meanwhile is thrown away, not answered with a reset,
    // which could cost the guest what it has not read yet.
    guest.send(&packet(RW, 5000, b"too late"));
    assert!(guest.silent());
    guest.send(&packet(RST, 5000, &[]));
}

#[test]
fn connections_are_limited_and_those_that_ended_make_room() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    for round in 0..3 {
        let mut streams = Vec::new();
        for i in 0..MAX_CONNECTIONS as u32 {
            guest.open(5000 + i, 1000);
            streams.push(w.accept());
        }
        guest.send(&packet(REQUEST, 9000, &[]));
        assert_eq!(guest.receive().op, RST, "round {round}");
        for (i, stream) in (0..).zip(streams) {
            drop(stream);
            let shut = guest.receive();
            assert_eq!((shut.op, shut.flags), (SHUTDOWN, 3));
            guest.send(&packet(RST, 5000 + i, &[]));
        }
    }
}

#[test]
fn the_host_connects_to_the_guest() {
    let w = World::new();
    let mut guest = Guest::new(&w.device);
    w.runtime.block_on(async {
        let connect = w.device.connect(77);
        let answer = async {
            let request = guest.receive();
            assert_eq!((request.op, request.dst), (REQUEST, (CID, 77)));
            let mut response = packet(RESPONSE, 77, &[]);
            response.dst = request.src;
            guest.send(&response);
            request.src.1
        };
        let (stream, host_port) = tokio::join!(connect, answer);
        let mut stream = stream.unwrap();
        assert_eq!((stream.guest_port(), stream.host_port()), (77, host_port));
        stream.write_all(b"hi").await.unwrap();
        assert_eq!(guest.receive().data, b"hi");

        let refuse = async {
            let request = guest.receive();
            let mut reset = packet(RST, 78, &[]);
            reset.dst = request.src;
            guest.send(&reset);
        };
        let (refused, ()) = tokio::join!(w.device.connect(78), refuse);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);

        // Nobody waits any longer: the guest is told.
        let patience = Duration::from_millis(50);
        let given_up = tokio::time::timeout(patience, w.device.connect(79)).await;
        assert!(given_up.is_err());
        assert_eq!(guest.receive().op, REQUEST);
        assert_eq!(guest.receive().op, RST);
    });
}

#[test]
fn a_connection_asked_for_before_the_guest_is_there_is_made_when_it_comes() {
    let w = World::new();
    let device = &w.device;
    w.runtime.block_on(async {
        let mut connect = Box::pin(device.connect(77));
        let early = tokio::time::timeout(Duration::from_millis(30), &mut connect).await;
        assert!(early.is_err());
        let mut guest = Guest::new(device);
        let request = guest.receive();
        let mut response = packet(RESPONSE, 77, &[]);
        response.dst = request.src;
        guest.send(&response);
        connect.await.unwrap();
    });
}

#[test]
fn stop_resets_the_streams_and_ends_the_receiver_at_once() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    let begin = Instant::now();
    w.device.stop();
    w.device.stop();
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(!w.device.socket().exists());
    let e = w.read_end(&mut stream).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset);
    assert!(w.runtime.block_on(stream.write_all(b"x")).is_err());
    assert!(w.runtime.block_on(w.incoming.recv()).is_none());
    let e = w.runtime.block_on(w.device.connect(1)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotConnected);

    // Nobody ever connected.
    let begin = Instant::now();
    drop(World::new());
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_new_frontend_starts_afresh() {
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut old = w.accept();
    drop(guest);
    let e = w.read_end(&mut old).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset);
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 1 << 20);
    let mut stream = w.accept();
    guest.send(&packet(RW, 5000, b"again"));
    assert_eq!(w.read(&mut stream, 5), b"again");
}

#[test]
fn nobody_who_takes_connections_means_no_connections() {
    let w = World::new();
    drop(w.incoming);
    let mut guest = Guest::new(&w.device);
    guest.send(&packet(REQUEST, 5000, &[]));
    assert_eq!(guest.receive().op, RST);
}

#[test]
fn reserved_context_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 40] {
        let e = VsockDevice::serve(&path, cid, &[]).unwrap_err();
        assert!(matches!(e, VsockError::Cid(_)), "{e}");
        assert!(!path.exists());
    }
}

/// Megabytes both ways at once, with the guest keeping to its credit.
#[test]
fn much_data_arrives_whole_in_both_directions() {
    const TOTAL: usize = 4 << 20;
    let mut w = World::new();
    let mut guest = Guest::new(&w.device);
    guest.open(5000, 32 << 10);
    let stream = w.accept();
    let byte = |i: usize| (i.wrapping_mul(31) >> 3) as u8;
    let card = std::thread::spawn(move || {
        w.runtime.block_on(async {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let write = async {
                let data: Vec<u8> = (0..TOTAL).map(byte).collect();
                writer.write_all(&data).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let read = async {
                let mut data = Vec::new();
                reader.read_to_end(&mut data).await.unwrap();
                data
            };
            tokio::join!(write, read).1
        })
    });
    let (mut sent, mut host_consumed) = (0, 0_u32);
    let mut got: Vec<u8> = Vec::new();
    let mut shut = false;
    while sent < TOTAL || !shut {
        let room = BUFFER_BYTES - (sent - host_consumed as usize);
        let n = room.min(TOTAL - sent).min(1 + sent % 9000);
        if n > 0 {
            let data: Vec<u8> = (sent..sent + n).map(byte).collect();
            let mut data = packet(RW, 5000, &data);
            (data.buf_alloc, data.fwd_cnt) = (32 << 10, got.len() as u32);
            guest.send(&data);
            sent += n;
        }
        let patience = if n > 0 { Duration::ZERO } else { PATIENCE };
        while let Some(p) = guest.receive_for(patience) {
            assert!([RW, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN].contains(&p.op));
            host_consumed = p.fwd_cnt;
            shut |= p.op == SHUTDOWN;
            got.extend(&p.data);
            let mut update = packet(CREDIT_UPDATE, 5000, &[]);
            (update.buf_alloc, update.fwd_cnt) = (32 << 10, got.len() as u32);
            guest.send(&update);
            if n == 0 {
                break;
            }
        }
    }
    let mut done = packet(SHUTDOWN, 5000, &[]);
    done.flags = 2;
    guest.send(&done);
    assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)) && got.len() == TOTAL);
    let data = card.join().unwrap();
    assert!(data.iter().enumerate().all(|(i, b)| *b == byte(i)) && data.len() == TOTAL);
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let likely = |value: u64| prop_oneof![9 => Just(value), 1 => any::<u64>()];
    (
        (likely(CID), likely(2)),
        (0_u32..4, prop_oneof![9 => Just(PORT), 1 => any::<u32>()]),
        (prop_oneof![9 => Just(1_u16), 1 => any::<u16>()], 0_u16..9),
        any::<(u32, u32, u32)>(),
        prop::option::weighted(0.2, any::<u32>()),
        prop::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(cids, ports, (kind, op), numbers, len, data)| Packet {
            src: (cids.0, ports.0),
            dst: (cids.1, ports.1),
            kind,
            op,
            flags: numbers.0,
            buf_alloc: numbers.1,
            fwd_cnt: numbers.2,
            len,
            data,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_sends_the_next_connection_works(
        packets in prop::collection::vec(any_packet(), 1..40),
    ) {
        let mut w = World::new();
        let mut guest = Guest::new(&w.device);
        for packet in &packets {
            guest.send(packet);
            while let Some((head, len)) = guest.driver.take_used(0) {
                let (at, _) = guest.buffers.remove(&head).unwrap();
                Packet::parse(&guest.driver.read(at, len));
                guest.refill();
                guest.driver.kick(0);
            }
        }
        while w.incoming.try_recv().is_ok() {}
        while guest.receive_for(Duration::from_millis(5)).is_some() {}
        guest.send(&packet(REQUEST, 5000, &[]));
        let mut answer = guest.receive();
        while answer.dst.1 != 5000 {
            answer = guest.receive();
        }
        prop_assert_eq!(answer.op, RESPONSE);
        let mut stream = w.accept();
        guest.send(&packet(RW, 5000, b"fine"));
        prop_assert_eq!(w.read(&mut stream, 4), b"fine");
    }
}
