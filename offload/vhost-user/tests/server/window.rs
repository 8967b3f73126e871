//! A frontend that shares one window of its guest's memory, as a dense machine does:
//! what lies outside is never read and never written, whatever the guest says.

use std::ops::Range;

use longship_vhost_user::driver::{
    Driver, INDIRECT, MEMORY_SIZE, MEMORY_START, NEXT, RING_SIZE, RawDescriptor, WRITE,
};
use proptest::prelude::*;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::mirror::{mirrored, served};

const WINDOW: Range<u64> = MEMORY_START + (8 << 20)..MEMORY_START + (10 << 20);
/// What lies around it and is looked at.
const BELOW: Range<u64> = WINDOW.start - (1 << 20)..WINDOW.start;
const ABOVE: Range<u64> = WINDOW.end..WINDOW.end + (1 << 20);

/// Fills what lies around the window.
const SECRET: u8 = 0xee;
/// Fills the window but for its rings.
const FILL: u8 = 0x11;

/// Behind the rings.
const BUFFERS: u64 = WINDOW.start + (1 << 20);
/// Distance between two buffers inside the window.
const STRIDE: u64 = 0x2000;

/// VIRTIO_F_ACCESS_PLATFORM
const ACCESS_PLATFORM: u64 = 1 << 33;

/// Where a range of guest memory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Inside,
    /// Anywhere in [`BELOW`], or [`ABOVE`].
    Below(u64),
    Above(u64),
    /// Begins so many bytes before the window, or before its end.
    AcrossStart(u64),
    AcrossEnd(u64),
    /// Begins so many bytes before the end of all addresses.
    Wraps(u64),
    /// Beyond any memory that the guest has.
    Nowhere(u64),
}

/// One descriptor of a request.
#[derive(Clone, Copy, Debug)]
struct Part {
    place: Place,
    /// In bytes.
    len: u32,
    writable: bool,
}

impl Place {
    /// Address of `len` bytes at this place; inside, they are the `slot`-th buffer.
    fn address(self, slot: u64, len: u64) -> u64 {
        let within = |n: u64| 1 + n % (len - 1).max(1);
        match self {
            Self::Inside => BUFFERS + slot * STRIDE,
            Self::Below(n) => BELOW.start + n % ((1 << 20) - len),
            Self::Above(n) => ABOVE.start + n % ((1 << 20) - len),
            Self::AcrossStart(n) => WINDOW.start - within(n),
            Self::AcrossEnd(n) => WINDOW.end - within(n),
            Self::Wraps(n) => u64::MAX - (within(n) - 1),
            Self::Nowhere(n) => (1 << 40) + n,
        }
    }
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        6 => Just(Place::Inside),
        1 => any::<u64>().prop_map(Place::Below),
        1 => any::<u64>().prop_map(Place::Above),
        1 => any::<u64>().prop_map(Place::AcrossStart),
        1 => any::<u64>().prop_map(Place::AcrossEnd),
        1 => any::<u64>().prop_map(Place::Wraps),
        1 => any::<u64>().prop_map(|n| Place::Nowhere(n >> 8)),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    (place(), 2_u32..0x1000, any::<bool>()).prop_map(|(place, len, writable)| Part {
        place,
        len,
        writable,
    })
}

/// A driver whose memory holds what must not be seen.
struct Guest {
    driver: Driver,
}

impl Guest {
    fn connect(socket: &std::path::Path) -> Self {
        let driver = Driver::connect_by_window(socket, 2, WINDOW);
        for range in [BELOW, ABOVE] {
            fill(&driver, range, SECRET);
        }
        fill(&driver, BUFFERS..WINDOW.end, FILL);
        Self { driver }
    }

    /// Puts a request of these descriptors into ring 0, by an indirect `table` or
    /// without.
    fn put(&mut self, parts: &[RawDescriptor], table: Option<u64>) {
        let last = parts.len() - 1;
        for (i, part) in parts.iter().enumerate() {
            let mut descriptor = *part;
            let index = u16::try_from(i).unwrap();
            if i < last {
                descriptor.flags |= NEXT;
                descriptor.next = index + 1;
            }
            match table {
                Some(table) => self.store(table.wrapping_add(16 * u64::from(index)), descriptor),
                None => self.driver.set_descriptor(0, index, descriptor),
            }
        }
        if let Some(address) = table {
            let head = RawDescriptor {
                address,
                len: 16 * u32::try_from(parts.len()).unwrap(),
                flags: INDIRECT,
                next: 0,
            };
            self.driver.set_descriptor(0, 0, head);
        }
    }

    /// Has the device take the request; the bytes that it says it wrote.
    fn take(&mut self) -> u32 {
        self.driver.make_available(0, 0);
        self.driver.kick(0);
        let (head, written) = self.driver.wait_used(0).expect("no answer");
        assert_eq!(head, 0);
        written
    }

    /// Stores a descriptor where the guest has memory at all.
    fn store(&self, at: u64, descriptor: RawDescriptor) {
        if (MEMORY_START..end_of_memory() - 16).contains(&at) {
            self.driver.store(at, descriptor);
        }
    }

    fn read(&self, range: Range<u64>) -> Vec<u8> {
        let len = u32::try_from(range.end - range.start).unwrap();
        self.driver.read(range.start, len)
    }

    /// What lies around the window.
    fn outside(&self) -> [Vec<u8>; 2] {
        [BELOW, ABOVE].map(|range| self.read(range))
    }
}

fn end_of_memory() -> u64 {
    MEMORY_START + u64::try_from(MEMORY_SIZE).unwrap()
}

fn fill(driver: &Driver, range: Range<u64>, byte: u8) {
    let len = usize::try_from(range.end - range.start).unwrap();
    let bytes = vec![byte; len];
    let at = GuestAddress(range.start);
    driver.memory.write_slice(&bytes, at).unwrap();
}

#[test]
fn a_window_is_all_that_a_device_needs() {
    let (_dir, server) = served();
    let mut driver = Driver::connect_by_window(server.socket(), 2, WINDOW);
    assert_ne!(driver.features() & ACCESS_PLATFORM, 0);
    for i in 0..500_u32 {
        let ring = (i % 2) as usize;
        mirrored(
            &mut driver,
            ring,
            &[7; 5000][..1 + i as usize * 9],
            i % 3 == 0,
        );
    }
}

#[test]
fn rings_that_are_not_all_inside_the_window_are_refused() {
    let (_dir, server) = served();
    // Descriptors, available and used ring of a ring of RING_SIZE take 0x7000 bytes.
    let beginnings = [
        MEMORY_START,
        WINDOW.start - 0x10,
        WINDOW.end - 0x10,
        WINDOW.end - 0x4000 - 0x10,
        WINDOW.end - 0x6000 - 0x10,
        WINDOW.end,
        WINDOW.end + 0x10_0000,
    ];
    for begin in beginnings {
        let driver = Driver::connect_by_window(server.socket(), 1, WINDOW);
        driver.frontend.get_vring_base(0).unwrap();
        let region = driver.memory.iter().next().unwrap();
        let at = region.as_ptr() as u64 + (begin - MEMORY_START);
        let addresses = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: 0,
            desc_table_addr: at,
            avail_ring_addr: at + 0x4000,
            used_ring_addr: at + 0x6000,
            log_addr: None,
        };
        let kick = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        let started = driver
            .frontend
            .set_vring_addr(0, &addresses)
            .and_then(|()| driver.frontend.set_vring_kick(0, &kick));
        assert!(started.is_err(), "a ring at {begin:#x}");
    }
    let mut driver = Driver::connect_by_window(server.socket(), 2, WINDOW);
    mirrored(&mut driver, 0, b"inside", false);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_outside_the_window_is_never_read_or_written(
        requests in prop::collection::vec(
            (prop::collection::vec(part(), 1..8), prop::option::of(place())),
            1..6,
        ),
    ) {
        let (_dir, server) = served();
        let mut guest = Guest::connect(server.socket());
        for (mut parts, table) in requests {
            // The order that a device may insist on.
            parts.sort_by_key(|part| part.writable);
            let descriptors: Vec<RawDescriptor> = (0..)
                .zip(&parts)
                .map(|(slot, part)| RawDescriptor {
                    address: part.place.address(slot, part.len.into()),
                    len: part.len,
                    flags: if part.writable { WRITE } else { 0 },
                    next: 0,
                })
                .collect();
            let bytes = 16 * u64::try_from(parts.len()).unwrap();
            let at = table.map(|t| t.address(32, bytes) & !15);
            // A table that was aligned may have come to lie on one side.
            let table_inside = at.is_none_or(|at| {
                WINDOW.contains(&at) && at.checked_add(bytes).is_some_and(|e| e <= WINDOW.end)
            });
            let good = table_inside && parts.iter().all(|p| p.place == Place::Inside);
            fill(&guest.driver, BUFFERS..WINDOW.end, FILL);
            let mut given = Vec::new();
            for d in descriptors.iter().filter(|d| d.flags & WRITE == 0 && good) {
                let bytes: Vec<u8> = (0..d.len).map(|i| (i % 200) as u8).collect();
                guest.driver.memory.write_slice(&bytes, GuestAddress(d.address)).unwrap();
                given.extend(bytes);
            }
            guest.put(&descriptors, at);
            let before = (guest.read(BUFFERS..WINDOW.end), guest.outside());
            let written = guest.take();
            let room: usize = parts.iter().filter(|p| p.writable).map(|p| p.len as usize).sum();
            if good {
                let len = given.len().min(room);
                prop_assert_eq!(written as usize, len);
                given.truncate(len);
                given.reverse();
                let mut got = Vec::new();
                for d in descriptors.iter().filter(|d| d.flags & WRITE != 0) {
                    got.extend(guest.driver.read(d.address, d.len));
                }
                got.truncate(len);
                prop_assert_eq!(got, given);
            } else {
                prop_assert_eq!(written, 0, "{:x?} by a table at {:x?}", descriptors, at);
                let inside = guest.read(BUFFERS..WINDOW.end);
                prop_assert!(inside == before.0, "a refused request changed the window");
            }
            prop_assert!(guest.outside() == before.1, "memory outside was written");
        }
        mirrored(&mut guest.driver, 1, b"still served", true);
    }
}
