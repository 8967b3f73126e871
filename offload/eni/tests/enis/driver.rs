//! A virtio-net driver behind a vhost-user frontend: the guest's side, in this
//! process.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 4 << 20;
const SIZE: u16 = 64;
const HEADER: usize = 12;
const VERSION_1: u64 = 1 << 32;
const MRG_RXBUF: u64 = 1 << 15;
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTQ_DESC_F_WRITE
const WRITE: u16 = 2;

/// Where a ring and its buffers lie.
struct Ring {
    base: u64,
    kick: EventFd,
    call: EventFd,
    available: u16,
    used: u16,
}

impl Ring {
    const AVAILABLE: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const BUFFERS: u64 = 0x1_0000;
    const BUFFER: u64 = 0x1000;

    fn new(base: u64) -> Self {
        Self {
            base,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            available: 0,
            used: 0,
        }
    }

    fn buffer(&self, index: u16) -> GuestAddress {
        GuestAddress(self.base + Self::BUFFERS + u64::from(index) * Self::BUFFER)
    }
}

pub(crate) struct Driver {
    frontend: Frontend,
    memory: GuestMemoryMmap<()>,
    receive: Ring,
    transmit: Ring,
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
        let mut frontend = Frontend::connect(socket, 2).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let mut wanted = VERSION_1 | MRG_RXBUF;
        if protocol {
            wanted |= PROTOCOL_FEATURES;
        }
        assert_eq!(offered & wanted, wanted, "{offered:#x}");
        frontend.set_features(wanted).unwrap();
        if protocol {
            let offered = frontend.get_protocol_features().unwrap();
            assert!(offered.contains(VhostUserProtocolFeatures::CONFIG));
            frontend
                .set_protocol_features(VhostUserProtocolFeatures::CONFIG)
                .unwrap();
        }

        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY.try_into().unwrap()).unwrap();
        let place = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([place]).unwrap();
        let region = memory.iter().next().unwrap();
        frontend
            .set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()])
            .unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap();

        let mut driver = Self {
            frontend,
            memory,
            receive: Ring::new(0),
            transmit: Ring::new(0x20_0000),
        };
        driver.add_buffers(buffers);
        for (index, ring) in [&driver.receive, &driver.transmit].into_iter().enumerate() {
            let at = |offset: u64| host as u64 + ring.base + offset;
            let frontend = &mut driver.frontend;
            frontend.set_vring_num(index, SIZE).unwrap();
            let data = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: at(0),
                used_ring_addr: at(Ring::USED),
                avail_ring_addr: at(Ring::AVAILABLE),
                log_addr: None,
            };
            frontend.set_vring_addr(index, &data).unwrap();
            frontend.set_vring_base(index, 0).unwrap();
            frontend.set_vring_call(index, &ring.call).unwrap();
            frontend.set_vring_kick(index, &ring.kick).unwrap();
            if protocol {
                frontend.set_vring_enable(index, true).unwrap();
            }
        }
        // A request with an answer: everything before it has been done.
        driver.frontend.get_features().unwrap();
        driver
    }

    pub(crate) fn config(&mut self, len: usize) -> Vec<u8> {
        let request = vec![0; len];
        let flags = VhostUserConfigFlags::WRITABLE;
        let len = len.try_into().unwrap();
        let (_, config) = self.frontend.get_config(0, len, flags, &request).unwrap();
        config
    }

    /// The position of the receive ring, which stops it.
    pub(crate) fn stop_receiving(&mut self) -> u32 {
        self.frontend.get_vring_base(0).unwrap()
    }

    /// Adds buffers to receive into.
    pub(crate) fn add_buffers(&mut self, count: u16) {
        for _ in 0..count {
            self.add_buffer();
        }
        self.receive.kick.write(1).unwrap();
    }

    fn add_buffer(&mut self) {
        let ring = &mut self.receive;
        let index = ring.available % SIZE;
        let len = Ring::BUFFER.try_into().unwrap();
        offer(
            &self.memory,
            ring,
            Descriptor::new(ring.buffer(index).0, len, WRITE, 0),
        );
    }

    /// Sends a frame, and waits until its buffer comes back.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let ring = &mut self.transmit;
        let index = ring.available % SIZE;
        let packet = [&[0; HEADER][..], frame].concat();
        self.memory
            .write_slice(&packet, ring.buffer(index))
            .unwrap();
        let len = packet.len().try_into().unwrap();
        offer(
            &self.memory,
            ring,
            Descriptor::new(ring.buffer(index).0, len, 0, 0),
        );
        ring.kick.write(1).unwrap();
        let returned = taken(&self.memory, ring, Duration::from_secs(5));
        assert!(returned.is_some(), "a frame's buffer did not come back");
    }

    /// The next frame, with its buffer given back, or none in that time.
    pub(crate) fn receive(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let ring = &mut self.receive;
        let (index, len) = taken(&self.memory, ring, limit)?;
        let mut packet = vec![0; len.try_into().unwrap()];
        self.memory
            .read_slice(&mut packet, ring.buffer(index))
            .unwrap();
        assert_eq!(packet[10..12], [1, 0], "number of buffers");
        self.add_buffers(1);
        Some(packet.split_off(HEADER))
    }
}

fn offer(memory: &GuestMemoryMmap<()>, ring: &mut Ring, descriptor: Descriptor) {
    let index = ring.available % SIZE;
    let descriptor_at = ring.base + 16 * u64::from(index);
    let bytes = descriptor;
    memory
        .write_obj(
            virtio_queue::desc::RawDescriptor::from(bytes),
            GuestAddress(descriptor_at),
        )
        .unwrap();
    let entry_at = ring.base + Ring::AVAILABLE + 4 + 2 * u64::from(index);
    memory.write_obj(index, GuestAddress(entry_at)).unwrap();
    ring.available = ring.available.wrapping_add(1);
    let index_at = GuestAddress(ring.base + Ring::AVAILABLE + 2);
    memory
        .store(ring.available, index_at, Ordering::Release)
        .unwrap();
}

/// The next used chain and its length. Looks only when it has been called.
fn taken(memory: &GuestMemoryMmap<()>, ring: &mut Ring, limit: Duration) -> Option<(u16, u32)> {
    let deadline = Instant::now() + limit;
    loop {
        let index: u16 = memory
            .load(GuestAddress(ring.base + Ring::USED + 2), Ordering::Acquire)
            .unwrap();
        if index != ring.used {
            let at = ring.base + Ring::USED + 4 + 8 * u64::from(ring.used % SIZE);
            ring.used = ring.used.wrapping_add(1);
            let [head, len]: [u32; 2] =
                [0, 4].map(|offset| memory.read_obj(GuestAddress(at + offset)).unwrap());
            return Some((head.try_into().unwrap(), len));
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        wait(&ring.call, left)?;
        let _ = ring.call.read();
    }
}

fn wait(call: &EventFd, left: Duration) -> Option<()> {
    use std::os::fd::BorrowedFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // SAFETY: the eventfd is open as long as it is borrowed here.
    let fd = unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) };
    let timeout = PollTimeout::try_from(left).unwrap();
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    (poll(&mut fds, timeout).unwrap() > 0).then_some(())
}
