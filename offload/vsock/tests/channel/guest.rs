//! The two ends of a channel: a guest's driver, packet by packet, and the card's side.

use std::collections::HashMap;
use std::time::Duration;

use longship_vhost_user::driver::{Driver, PATIENCE, Piece, RING_SIZE};
use longship_vsock::{BUFFER_BYTES, Incoming, VsockDevice, VsockStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

pub(crate) const REQUEST: u16 = 1;
pub(crate) const RESPONSE: u16 = 2;
pub(crate) const RST: u16 = 3;
pub(crate) const SHUTDOWN: u16 = 4;
pub(crate) const RW: u16 = 5;
pub(crate) const CREDIT_UPDATE: u16 = 6;
pub(crate) const CREDIT_REQUEST: u16 = 7;

pub(crate) const CID: u64 = 42;
pub(crate) const PORT: u32 = 1024;
pub(crate) const RECEIVE_BUFFER: u32 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) src: (u64, u32),
    pub(crate) dst: (u64, u32),
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
    /// Length in the header, where it is not that of the data.
    pub(crate) len: Option<u32>,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn packet(op: u16, guest_port: u32, data: &[u8]) -> Packet {
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
    pub(crate) fn header(&self) -> Vec<u8> {
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

    pub(crate) fn parse(bytes: &[u8]) -> Self {
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
pub(crate) struct Guest {
    pub(crate) driver: Driver,
    /// Receive buffers by their head.
    pub(crate) buffers: HashMap<u16, (u64, u32)>,
}

impl Guest {
    pub(crate) fn new(device: &VsockDevice) -> Self {
        Self::with(device, 3, 0)
    }

    pub(crate) fn with(device: &VsockDevice, rings: usize, without: u64) -> Self {
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

    pub(crate) fn refill(&mut self) {
        let sent = self
            .driver
            .submit(0, &[Piece::Write(RECEIVE_BUFFER)], false);
        self.buffers.insert(sent.head, sent.pieces[0]);
    }

    pub(crate) fn send(&mut self, packet: &Packet) {
        let header = packet.header();
        let sent = self
            .driver
            .submit(1, &[Piece::Read(&header), Piece::Read(&packet.data)], false);
        self.driver.kick(1);
        let used = self.driver.wait_used(1).expect("the packet was not taken");
        assert_eq!(used.0, sent.head);
    }

    pub(crate) fn receive_for(&mut self, patience: Duration) -> Option<Packet> {
        let (head, len) = self.driver.wait_used_for(0, patience)?;
        let (at, _) = self.buffers.remove(&head).unwrap();
        let packet = Packet::parse(&self.driver.read(at, len));
        self.refill();
        self.driver.kick(0);
        Some(packet)
    }

    pub(crate) fn receive(&mut self) -> Packet {
        self.receive_for(PATIENCE).expect("the guest got nothing")
    }

    pub(crate) fn silent(&mut self) -> bool {
        self.receive_for(Duration::from_millis(60)).is_none()
    }

    /// Opens a connection from `port`.
    pub(crate) fn open(&mut self, port: u32, buf_alloc: u32) {
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

pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) device: VsockDevice,
    pub(crate) incoming: Receiver<Incoming>,
    pub(crate) _dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn accept(&mut self) -> VsockStream {
        let incoming = self.incoming.recv();
        let wait = async { tokio::time::timeout(PATIENCE, incoming).await };
        let incoming = self.runtime.block_on(wait).unwrap().unwrap();
        assert_eq!(incoming.port, PORT);
        incoming.stream
    }

    pub(crate) fn write(&self, stream: &mut VsockStream, data: &[u8]) {
        self.runtime.block_on(stream.write_all(data)).unwrap();
    }

    pub(crate) fn read(&self, stream: &mut VsockStream, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        let read = async { tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await };
        self.runtime.block_on(read).unwrap().unwrap();
        bytes
    }

    pub(crate) fn read_end(&self, stream: &mut VsockStream) -> std::io::Result<usize> {
        let mut byte = [0];
        let read = async { tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await };
        self.runtime.block_on(read).unwrap()
    }
}
