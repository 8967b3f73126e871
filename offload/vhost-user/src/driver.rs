//! The other side, for tests: a vhost-user frontend and a virtio driver in one,
//! that can do everything right or anything wrong.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "it exists for tests only, where a panic is the right answer"
)]

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::SharedMemory;

/// Guest physical address at which the memory begins.
pub const MEMORY_START: u64 = 0x10_0000;
/// Its size in bytes.
pub const MEMORY_SIZE: usize = 32 << 20;
/// Descriptors in each ring.
pub const RING_SIZE: u16 = 128;
/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The descriptor goes on (virtio 1.2 §2.7.5).
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The descriptor is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// VHOST_USER_F_PROTOCOL_FEATURES
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// All of it.
const MEMORY: Range<u64> = MEMORY_START..MEMORY_START + MEMORY_SIZE as u64;

const RING_STRIDE: u64 = 0x8000;
/// Where buffers begin behind the rings, both in the memory that is shared.
const BUFFERS: u64 = 0x10_0000;

/// One part of a well-formed request.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// For the device to read.
    Read(&'a [u8]),
    /// So many bytes for the device to write.
    Write(u32),
}

/// A descriptor, exactly as it is put into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawDescriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

/// A request that was made available.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Index of its first descriptor.
    pub head: u16,
    /// Address and length of each piece, in order.
    pub pieces: Vec<(u64, u32)>,
}

struct Ring {
    base: u64,
    next_descriptor: u16,
    available: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
    error: EventFd,
}

/// A connected frontend with its guest's memory and rings.
pub struct Driver {
    /// The guest's memory.
    pub memory: SharedMemory,
    /// The vhost-user side.
    pub frontend: Frontend,
    features: u64,
    rings: Vec<Ring>,
    /// The part of memory that is shared, in guest physical addresses.
    shared: Range<u64>,
    next_buffer: u64,
}

impl Driver {
    /// Connects, negotiates all features on offer but `without`, shares memory,
    /// and starts `rings` rings. Without VHOST_USER_F_PROTOCOL_FEATURES it is a
    /// frontend that knows nothing of them.
    pub fn connect(socket: &Path, rings: usize, without: u64) -> Self {
        let mut driver = Self::negotiate(socket, rings, without);
        for ring in 0..rings {
            driver.start(ring, 0);
        }
        driver
    }

    /// As [`Driver::connect`], but only `window` of the guest's memory is shared (guest
    /// physical addresses, 2 MiB at least); rings and buffers are in it.
    pub fn connect_by_window(socket: &Path, rings: usize, window: Range<u64>) -> Self {
        let connection = UnixStream::connect(socket).unwrap();
        let mut driver =
            Self::talk_about(connection, rings, 0, Self::sealed_memory(), window).unwrap();
        for ring in 0..rings {
            driver.start(ring, 0);
        }
        driver
    }

    /// As [`Driver::connect`], without starting the rings.
    pub fn negotiate(socket: &Path, rings: usize, without: u64) -> Self {
        Self::share(socket, rings, without, Self::sealed_memory()).unwrap()
    }

    fn sealed_memory() -> File {
        let file = Self::memory_file();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        file
    }

    /// A file of [`MEMORY_SIZE`] for guest memory, not yet sealed.
    pub fn memory_file() -> File {
        let how = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"guest", how).unwrap());
        file.set_len(MEMORY_SIZE as u64).unwrap();
        file
    }

    /// As [`Driver::negotiate`], with `file` as memory.
    ///
    /// # Errors
    /// The backend's, where it refuses the memory.
    pub fn share(
        socket: &Path,
        rings: usize,
        without: u64,
        file: File,
    ) -> Result<Self, vhost::Error> {
        Self::talk(UnixStream::connect(socket).unwrap(), rings, without, file)
    }

    /// As [`Driver::share`], over a connection that is there already.
    ///
    /// # Errors
    /// The backend's, where it refuses the memory.
    pub fn talk(
        connection: UnixStream,
        rings: usize,
        without: u64,
        file: File,
    ) -> Result<Self, vhost::Error> {
        Self::talk_about(connection, rings, without, file, MEMORY)
    }

    fn talk_about(
        connection: UnixStream,
        rings: usize,
        without: u64,
        file: File,
        shared: Range<u64>,
    ) -> Result<Self, vhost::Error> {
        let memory = SharedMemory::from_ranges_with_files([(
            GuestAddress(MEMORY_START),
            MEMORY_SIZE,
            Some(FileOffset::new(file, 0)),
        )])
        .unwrap();
        let mut frontend = Frontend::from_stream(connection, rings as u64);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap() & !without;
        if features & PROTOCOL_FEATURES != 0 {
            let protocol = frontend.get_protocol_features().unwrap();
            frontend.set_protocol_features(protocol).unwrap();
            if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        }
        frontend.set_features(features).unwrap();
        frontend.set_mem_table(&[part_of(&memory, shared.clone())])?;
        let rings = (0..rings)
            .map(|i| Ring {
                base: shared.start + RING_STRIDE * i as u64,
                next_descriptor: 0,
                available: 0,
                used: 0,
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
                call: EventFd::new(EFD_NONBLOCK).unwrap(),
                error: EventFd::new(EFD_NONBLOCK).unwrap(),
            })
            .collect();
        Ok(Self {
            memory,
            frontend,
            features,
            rings,
            next_buffer: shared.start + BUFFERS,
            shared,
        })
    }

    /// The feature bits that both sides agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Shares the memory again, but for a `hole` in it (guest physical addresses).
    pub fn share_again_without(&mut self, hole: Range<u64>) {
        let parts = [MEMORY.start..hole.start, hole.end..MEMORY.end];
        let parts = parts.map(|part| part_of(&self.memory, part));
        self.frontend.set_mem_table(&parts).unwrap();
    }

    /// Sets a ring up and starts it, to go on from `base`.
    pub fn start(&mut self, ring: usize, base: u16) {
        self.set_up(ring, base);
        if self.features & PROTOCOL_FEATURES != 0 {
            self.frontend.set_vring_enable(ring, true).unwrap();
        }
    }

    /// As [`Driver::start`], without SET_VRING_ENABLE.
    pub fn set_up(&mut self, ring: usize, base: u16) {
        let r = &self.rings[ring];
        let region = self.memory.find_region(GuestAddress(r.base)).unwrap();
        let at = region.as_ptr() as u64 + (r.base - MEMORY_START);
        let f = &mut self.frontend;
        f.set_vring_num(ring, RING_SIZE).unwrap();
        f.set_vring_base(ring, base).unwrap();
        f.set_vring_addr(
            ring,
            &VringConfigData {
                queue_max_size: RING_SIZE,
                queue_size: RING_SIZE,
                flags: 0,
                desc_table_addr: at,
                used_ring_addr: at + 0x6000,
                avail_ring_addr: at + 0x4000,
                log_addr: None,
            },
        )
        .unwrap();
        f.set_vring_err(ring, &r.error).unwrap();
        f.set_vring_kick(ring, &r.kick).unwrap();
        f.set_vring_call(ring, &r.call).unwrap();
    }

    /// Stops a ring; where it would go on.
    pub fn stop(&mut self, ring: usize) -> u16 {
        self.frontend.get_vring_base(ring).unwrap() as u16
    }

    /// The first `len` bytes of the configuration space.
    pub fn config(&mut self, len: u32) -> Vec<u8> {
        let zeros = vec![0; len as usize];
        let (_, bytes) = self
            .frontend
            .get_config(0, len, VhostUserConfigFlags::empty(), &zeros)
            .unwrap();
        bytes
    }

    /// Memory for a buffer; used again when all that is shared was used.
    pub fn allocate(&mut self, len: u32) -> u64 {
        if self.next_buffer + u64::from(len) > self.shared.end {
            self.next_buffer = self.shared.start + BUFFERS;
        }
        let at = self.next_buffer;
        self.next_buffer += u64::from(len).next_multiple_of(16);
        at
    }

    /// Makes a well-formed request available, without kicking.
    pub fn submit(&mut self, ring: usize, pieces: &[Piece<'_>], indirect: bool) -> Submitted {
        let mut descriptors = Vec::new();
        for piece in pieces {
            let (len, flags) = match piece {
                Piece::Read(bytes) => (bytes.len() as u32, 0),
                Piece::Write(len) => (*len, WRITE),
            };
            let address = self.allocate(len);
            if let Piece::Read(bytes) = piece {
                self.memory
                    .write_slice(bytes, GuestAddress(address))
                    .unwrap();
            }
            descriptors.push(RawDescriptor {
                address,
                len,
                flags,
                next: 0,
            });
        }
        let pieces = descriptors.iter().map(|d| (d.address, d.len)).collect();
        let first = if indirect {
            0
        } else {
            self.rings[ring].next_descriptor
        };
        let count = descriptors.len();
        for (i, d) in descriptors.iter_mut().enumerate() {
            if i + 1 < count {
                d.flags |= NEXT;
                d.next = (first + i as u16 + 1) % if indirect { u16::MAX } else { RING_SIZE };
            }
        }
        if indirect {
            let table = self.allocate(16 * count as u32);
            for (i, d) in descriptors.iter().enumerate() {
                self.store(table + 16 * i as u64, *d);
            }
            descriptors = vec![RawDescriptor {
                address: table,
                len: 16 * count as u32,
                flags: INDIRECT,
                next: 0,
            }];
        }
        let head = self.rings[ring].next_descriptor;
        for d in descriptors {
            let at = self.rings[ring].next_descriptor;
            self.set_descriptor(ring, at, d);
            self.rings[ring].next_descriptor = (at + 1) % RING_SIZE;
        }
        self.make_available(ring, head);
        Submitted { head, pieces }
    }

    /// Puts a descriptor into the table as it is.
    pub fn set_descriptor(&mut self, ring: usize, index: u16, descriptor: RawDescriptor) {
        let at = self.rings[ring].base + 16 * u64::from(index);
        self.store(at, descriptor);
    }

    /// Puts a descriptor anywhere into memory.
    pub fn store(&self, at: u64, d: RawDescriptor) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&d.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&d.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&d.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&d.next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Adds a head to the available ring.
    pub fn make_available(&mut self, ring: usize, head: u16) {
        let r = &mut self.rings[ring];
        let avail = r.base + 0x4000;
        let slot = avail + 4 + 2 * u64::from(r.available % RING_SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        r.available = r.available.wrapping_add(1);
        self.memory
            .store(r.available, GuestAddress(avail + 2), Ordering::Release)
            .unwrap();
    }

    /// Sets the available index to what no driver would.
    pub fn set_available_index(&mut self, ring: usize, index: u16) {
        let at = GuestAddress(self.rings[ring].base + 0x4000 + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    /// Kicks the device.
    pub fn kick(&self, ring: usize) {
        self.rings[ring].kick.write(1).unwrap();
    }

    /// The next request that the device handed back, its head and the bytes
    /// that it says it wrote; `None` after [`PATIENCE`].
    pub fn wait_used(&mut self, ring: usize) -> Option<(u16, u32)> {
        self.wait_used_for(ring, PATIENCE)
    }

    /// As [`Driver::wait_used`], with another patience. Only waits for the
    /// device's call: a device that forgets to call is found out.
    pub fn wait_used_for(&mut self, ring: usize, patience: Duration) -> Option<(u16, u32)> {
        let end = Instant::now() + patience;
        loop {
            if let Some(used) = self.take_used(ring) {
                return Some(used);
            }
            let r = &self.rings[ring];
            // EVENT_IDX: call when the next one is used.
            let used_event = r.base + 0x4000 + 4 + 2 * u64::from(RING_SIZE);
            self.memory
                .store(r.used, GuestAddress(used_event), Ordering::SeqCst)
                .unwrap();
            std::sync::atomic::fence(Ordering::SeqCst);
            if self.used_index(ring) != r.used {
                continue;
            }
            let left = end.checked_duration_since(Instant::now())?;
            let mut fds = [PollFd::new(r.call_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
            let _ = r.call.read();
        }
    }

    /// How often the device has called since it was asked last.
    pub fn take_calls(&self, ring: usize) -> u64 {
        self.rings[ring].call.read().unwrap_or(0)
    }

    /// What the device handed back, if there is something.
    pub fn take_used(&mut self, ring: usize) -> Option<(u16, u32)> {
        if self.used_index(ring) == self.rings[ring].used {
            return None;
        }
        let r = &mut self.rings[ring];
        let at = r.base + 0x6000 + 4 + 8 * u64::from(r.used % RING_SIZE);
        let id: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        r.used = r.used.wrapping_add(1);
        Some((id as u16, len))
    }

    /// Whether the device reported the ring broken; waits up to [`PATIENCE`].
    pub fn wait_broken(&self, ring: usize) -> bool {
        let fd = self.rings[ring].error_fd();
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()).unwrap() > 0
    }

    /// Bytes of guest memory.
    pub fn read(&self, address: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn used_index(&self, ring: usize) -> u16 {
        let at = GuestAddress(self.rings[ring].base + 0x6000 + 2);
        self.memory.load(at, Ordering::Acquire).unwrap()
    }
}

impl Ring {
    fn call_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.call)
    }

    fn error_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.error)
    }
}

fn part_of(memory: &SharedMemory, part: Range<u64>) -> VhostUserMemoryRegionInfo {
    let region = memory.find_region(GuestAddress(MEMORY_START)).unwrap();
    let offset = part.start - MEMORY_START;
    VhostUserMemoryRegionInfo {
        guest_phys_addr: part.start,
        memory_size: part.end - part.start,
        userspace_addr: region.as_ptr() as u64 + offset,
        mmap_offset: offset,
        mmap_handle: region.file_offset().unwrap().file().as_raw_fd(),
    }
}

fn borrow(fd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor lives as long as the EventFd that is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
