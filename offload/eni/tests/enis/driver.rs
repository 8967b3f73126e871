//! A virtio-net driver behind a vhost-user frontend: the guest's side, in this
//! process.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use longship_vhost_user::driver::{self, Piece};
use vhost::VhostBackend;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const BUFFER: u32 = 0x1000;
const HEADER: usize = 12;
const VERSION_1: u64 = 1 << 32;
const MRG_RXBUF: u64 = 1 << 15;
const PROTOCOL_FEATURES: u64 = 1 << 30;

pub(crate) struct Driver {
    driver: driver::Driver,
    /// Where the buffers lie that wait for packets, by their heads.
    buffers: HashMap<u16, u64>,
}

impl Driver {
    /// Connects and starts both rings, with `buffers` to receive into.
    pub(crate) fn connect(socket: &Path, buffers: u16) -> Self {
        Self::connect_as(socket, buffers, true)
    }

    /// The same on another thread, for when somebody else is being served.
    pub(crate) fn connect_later(socket: &Path) -> std::thread::JoinHandle<Self> {
        let socket = socket.to_owned();
        std::thread::spawn(move || Self::connect(&socket, 16))
    }

    /// The same, and without protocol features where the frontend is an old one.
    pub(crate) fn connect_as(socket: &Path, buffers: u16, protocol: bool) -> Self {
        let mut wanted = VERSION_1 | MRG_RXBUF;
        if protocol {
            wanted |= PROTOCOL_FEATURES;
        }
        let driver = driver::Driver::negotiate(socket, 2, !wanted);
        assert_eq!(driver.features(), wanted);
        let mut driver = Self {
            driver,
            buffers: HashMap::new(),
        };
        driver.add_buffers(buffers);
        for ring in [RECEIVE, TRANSMIT] {
            driver.driver.start(ring, 0);
        }
        // A request with an answer: everything before it has been done.
        driver.driver.frontend.get_features().unwrap();
        driver
    }

    pub(crate) fn config(&mut self, len: u32) -> Vec<u8> {
        self.driver.config(len)
    }

    /// The position of the receive ring, which stops it.
    pub(crate) fn stop_receiving(&mut self) -> u16 {
        self.driver.stop(RECEIVE)
    }

    /// Adds buffers to receive into.
    pub(crate) fn add_buffers(&mut self, count: u16) {
        for _ in 0..count {
            let buffer = self.driver.submit(RECEIVE, &[Piece::Write(BUFFER)], false);
            self.buffers.insert(buffer.head, buffer.pieces[0].0);
        }
        self.driver.kick(RECEIVE);
    }

    /// Sends a frame, and waits until its buffer comes back.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let packet = [&[0; HEADER][..], frame].concat();
        self.driver.submit(TRANSMIT, &[Piece::Read(&packet)], false);
        self.driver.kick(TRANSMIT);
        let returned = self.driver.wait_used_for(TRANSMIT, Duration::from_secs(5));
        assert!(returned.is_some(), "a frame's buffer did not come back");
    }

    /// The next frame, with its buffer given back, or none in that time.
    pub(crate) fn receive(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let (head, len) = self.driver.wait_used_for(RECEIVE, limit)?;
        let buffer = self.buffers.remove(&head).unwrap();
        let mut packet = self.driver.read(buffer, len);
        assert_eq!(packet[10..12], [1, 0], "number of buffers");
        self.add_buffers(1);
        Some(packet.split_off(HEADER))
    }
}
