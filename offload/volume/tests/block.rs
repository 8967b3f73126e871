//! The block device against a driver that behaves, and one that does not.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test's own steps"
)]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use longship_vhost_user::driver::{
    Driver, INDIRECT, MEMORY_SIZE, MEMORY_START, NEXT, PATIENCE, Piece, RawDescriptor, WRITE,
};
use longship_volume::{BlockDevice, Disk, VolumeError};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const SECTORS: u64 = 2048;

struct Served {
    dir: tempfile::TempDir,
    file: File,
    device: BlockDevice,
}

impl Served {
    fn untouched(&self) -> bool {
        let content = std::fs::read(self.dir.path().join("disk")).unwrap();
        content == CONTENT[..content.len()]
    }
}

fn serve(read_only: bool) -> Served {
    serve_bytes(SECTORS * 512, read_only)
}

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..SECTORS * 512).map(byte_at).collect());

/// A disk whose byte at `i` is a function of `i`.
fn serve_bytes(bytes: u64, read_only: bool) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, &CONTENT[..bytes as usize]).unwrap();
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let disk = Disk {
        file: open(),
        read_only,
        serial: "serial-0123456789abc".into(),
    };
    let device = BlockDevice::serve(&dir.path().join("socket"), disk).unwrap();
    let file = open();
    Served { dir, file, device }
}

fn byte_at(i: u64) -> u8 {
    ((i % 251) ^ (i / 512 % 256)).to_le_bytes()[0]
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// Runs a request whose last piece is its status; the status, the bytes the
/// device says it wrote, and the data.
fn run(driver: &mut Driver, pieces: &[Piece<'_>], indirect: bool) -> (u8, u32, Vec<u8>) {
    let sent = driver.submit(0, pieces, indirect);
    let (status_at, status_len) = *sent.pieces.last().unwrap();
    assert_eq!(status_len, 1);
    let poison = 0xaa_u8;
    let at = GuestAddress(status_at);
    driver.memory.write_obj(poison, at).unwrap();
    driver.kick(0);
    let (head, written) = driver.wait_used(0).expect("the request was not answered");
    assert_eq!(head, sent.head);
    let mut data = Vec::new();
    for (piece, (at, len)) in pieces.iter().zip(&sent.pieces[..sent.pieces.len() - 1]) {
        if matches!(piece, Piece::Write(_)) {
            data.extend(driver.read(*at, *len));
        }
    }
    (driver.read(status_at, 1)[0], written, data)
}

fn status(driver: &mut Driver, kind: u32, sector: u64, data: Piece<'_>) -> u8 {
    let header = header(kind, sector);
    let pieces = [Piece::Read(&header), data, Piece::Write(1)];
    run(driver, &pieces, false).0
}

/// Sector, number of sectors, flags.
type Range = (u64, u32, u32);

fn ranges(list: &[Range]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

#[test]
fn reads_are_what_the_file_holds_however_they_are_cut() {
    let served = serve(true);
    for without in [0, 1 << 28, 1 << 29] {
        let mut driver = Driver::connect(served.device.socket(), 1, without);
        for sector in [0, 1, 77, SECTORS - 8] {
            let head = header(IN, sector);
            // Header and data split where no ordinary driver splits them.
            let (a, b) = head.split_at(5);
            let pieces = [
                Piece::Read(a),
                Piece::Read(b),
                Piece::Write(1000),
                Piece::Write(3000),
                Piece::Write(96),
                Piece::Write(1),
            ];
            let indirect = without != 1 << 28;
            let (status, written, data) = run(&mut driver, &pieces, indirect);
            assert_eq!((status, written), (OK, 4097));
            let expected: Vec<u8> = (0..4096).map(|i| byte_at(sector * 512 + i)).collect();
            assert_eq!(data, expected);
        }
    }
}

#[test]
fn the_status_may_share_its_buffer_with_the_data() {
    let served = serve(true);
    let mut driver = Driver::connect(served.device.socket(), 1, 0);
    let head = header(IN, 3);
    let sent = driver.submit(0, &[Piece::Read(&head), Piece::Write(513)], false);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), Some((sent.head, 513)));
    let bytes = driver.read(sent.pieces[1].0, 513);
    assert_eq!(bytes[512], OK);
    assert!((0..512).all(|i| bytes[i] == byte_at(3 * 512 + i as u64)));
}

#[test]
fn writes_land_in_the_file_and_nowhere_else() {
    let served = serve(false);
    let mut driver = Driver::connect(served.device.socket(), 1, 0);
    let head = header(OUT, 10);
    let (a, b) = ([1_u8; 700], [2_u8; 324]);
    let pieces = [
        Piece::Read(&head),
        Piece::Read(&a),
        Piece::Read(&b),
        Piece::Write(1),
    ];
    assert_eq!(run(&mut driver, &pieces, true), (OK, 1, vec![]));
    assert_eq!(status(&mut driver, FLUSH, 0, Piece::Read(&[])), OK);
    let mut content = vec![0; SECTORS as usize * 512];
    served.file.read_exact_at(&mut content, 0).unwrap();
    for (i, byte) in content.iter().enumerate() {
        let expected = match i {
            5120..5820 => 1,
            5820..6144 => 2,
            _ => byte_at(i as u64),
        };
        assert_eq!(*byte, expected, "at byte {i}");
    }
}

#[test]
fn a_large_request_of_all_segments_is_served_whole() {
    let served = serve_bytes(1 << 20, false);
    let mut driver = Driver::connect(served.device.socket(), 1, 0);
    let head = header(IN, 0);
    let mut pieces = vec![Piece::Read(&head)];
    pieces.extend([Piece::Write(8192); 126]);
    pieces.push(Piece::Write(1));
    let (status, written, data) = run(&mut driver, &pieces, true);
    assert_eq!((status, written), (OK, 126 * 8192 + 1));
    let mut bytes = data.iter().enumerate();
    assert!(bytes.all(|(i, b)| *b == byte_at(i as u64)));
}

#[test]
fn a_request_is_no_larger_than_was_agreed() {
    let served = serve_bytes(1 << 20, false);
    served.file.set_len(16 << 20).unwrap();
    let again = Disk {
        file: served.file.try_clone().unwrap(),
        read_only: false,
        serial: "large".into(),
    };
    let device = BlockDevice::serve(&served.dir.path().join("large"), again).unwrap();
    let mut driver = Driver::connect(device.socket(), 1, 0);
    let head = header(IN, 0);
    for (segments, expected) in [(126, OK), (127, IOERR)] {
        let mut pieces = vec![Piece::Read(&head)];
        pieces.extend(vec![Piece::Write(64 << 10); segments]);
        pieces.push(Piece::Write(1));
        assert_eq!(run(&mut driver, &pieces, true).0, expected, "{segments}");
    }
}

#[test]
fn a_request_for_memory_that_is_not_shared_fails_and_says_so() {
    let served = serve(false);
    let window = MEMORY_START + (8 << 20)..MEMORY_START + (12 << 20);
    let mut driver = Driver::connect_by_window(served.device.socket(), 1, window.clone());
    // Below the window, across its end, and around the end of all addresses.
    for address in [MEMORY_START, window.end - 512, u64::MAX - 511] {
        for (kind, flags) in [(IN, WRITE), (OUT, 0)] {
            let head = driver.allocate(16);
            let at = GuestAddress(head);
            driver.memory.write_slice(&header(kind, 0), at).unwrap();
            let status = driver.allocate(1);
            driver.memory.write_obj(OK, GuestAddress(status)).unwrap();
            let descriptors = [
                (head, 16, NEXT),
                (address, 4096, NEXT | flags),
                (status, 1, WRITE),
            ];
            for (i, (address, len, flags)) in (0..).zip(descriptors) {
                let next = i + 1;
                let descriptor = RawDescriptor {
                    address,
                    len,
                    flags,
                    next,
                };
                driver.set_descriptor(0, i, descriptor);
            }
            driver.make_available(0, 0);
            driver.kick(0);
            assert_eq!(driver.wait_used(0), Some((0, 1)));
            assert_eq!(driver.read(status, 1), [IOERR], "{kind} at {address:#x}");
        }
    }
    assert!(served.untouched());
    let data = Piece::Write(512);
    assert_eq!(status(&mut driver, IN, 0, data), OK);
}

#[test]
fn the_guest_finds_serial_size_and_features() {
    let ro = serve(true);
    let mut driver = Driver::connect(ro.device.socket(), 1, 0);
    let bit = |d: &Driver, n: u32| d.features() >> n & 1 == 1;
    assert!(bit(&driver, 5) && bit(&driver, 9) && bit(&driver, 32));
    assert!(!bit(&driver, 13) && !bit(&driver, 14));
    let config = driver.config(60);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[8..12], (64_u32 << 10).to_le_bytes());
    assert_eq!(config[12..16], 126_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    let head = header(GET_ID, 0);
    let pieces = [Piece::Read(&head), Piece::Write(20), Piece::Write(1)];
    let (status, written, data) = run(&mut driver, &pieces, false);
    assert_eq!((status, written), (OK, 21));
    assert_eq!(data, b"serial-0123456789abc");

    let rw = serve(false);
    let driver = Driver::connect(rw.device.socket(), 1, 0);
    assert!(!bit(&driver, 5) && bit(&driver, 13) && bit(&driver, 14));
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let served = serve(true);
    let mut driver = Driver::connect(served.device.socket(), 1, 0);
    let list = ranges(&[(0, 8, 0)]);
    let mut s = |kind, data| status(&mut driver, kind, 0, data);
    assert_eq!(s(OUT, Piece::Read(&[7; 512])), IOERR);
    assert_eq!(s(DISCARD, Piece::Read(&list)), UNSUPP);
    assert_eq!(s(WRITE_ZEROES, Piece::Read(&list)), UNSUPP);
    assert!(served.untouched());
}

#[test]
fn requests_that_leave_the_disk_or_make_no_sense_are_refused() {
    let served = serve(false);
    let mut driver = Driver::connect(served.device.socket(), 1, 0);
    let mut s = |kind, sector, data: Piece<'_>| status(&mut driver, kind, sector, data);
    assert_eq!(s(IN, SECTORS - 1, Piece::Write(512)), OK);
    assert_eq!(s(IN, SECTORS - 1, Piece::Write(1024)), IOERR);
    assert_eq!(s(IN, SECTORS, Piece::Write(512)), IOERR);
    assert_eq!(s(IN, u64::MAX, Piece::Write(512)), IOERR);
    assert_eq!(s(IN, u64::MAX / 512, Piece::Write(512)), IOERR);
    assert_eq!(s(IN, 0, Piece::Write(511)), IOERR);
    assert_eq!(s(IN, 0, Piece::Read(&[0; 512])), IOERR);
    assert_eq!(s(OUT, SECTORS, Piece::Read(&[1; 512])), IOERR);
    assert_eq!(s(OUT, 1 << 55, Piece::Read(&[1; 512])), IOERR);
    assert_eq!(s(OUT, 0, Piece::Write(512)), IOERR);
    assert_eq!(s(GET_ID, 0, Piece::Write(19)), IOERR);
    assert_eq!(s(99, 0, Piece::Write(512)), UNSUPP);
    let refused: [(&[Range], u8); 6] = [
        (&[(SECTORS - 1, 2, 0)], IOERR),
        (&[(u64::MAX, 1, 0)], IOERR),
        (&[(0, u32::MAX, 0)], IOERR),
        (&[(0, 1, 2)], UNSUPP),
        (&[], IOERR),
        // A good range before a bad one: neither is done.
        (&[(0, 8, 0), (SECTORS, 8, 0)], IOERR),
    ];
    for (list, expected) in refused {
        let list = ranges(list);
        assert_eq!(s(DISCARD, 0, Piece::Read(&list)), expected);
        assert_eq!(s(WRITE_ZEROES, 0, Piece::Read(&list)), expected);
    }
    let unmap = ranges(&[(0, 1, 1)]);
    assert_eq!(s(DISCARD, 0, Piece::Read(&unmap)), UNSUPP);
    assert_eq!(s(DISCARD, 0, Piece::Read(&[0; 15])), IOERR);
    let many = ranges(&[(0, 0, 0); 17]);
    assert_eq!(s(DISCARD, 0, Piece::Read(&many)), IOERR);
    assert!(served.untouched());
}

#[test]
fn zeroes_and_discards_free_the_blocks_they_may_free() {
    let served = serve(false);
    let mut driver = Driver::connect(served.device.socket(), 1, 0);
    let zero = |sector: u64, sectors: u64| {
        let mut bytes = vec![1; sectors as usize * 512];
        served.file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes.iter().all(|b| *b == 0)
    };
    let before = served.file.metadata().unwrap().blocks();
    let mut s = |kind, list: &[Range]| {
        let list = ranges(list);
        status(&mut driver, kind, 0, Piece::Read(&list))
    };
    assert_eq!(s(WRITE_ZEROES, &[(8, 100, 0)]), OK);
    assert_eq!(s(WRITE_ZEROES, &[(200, 1, 0)]), OK);
    assert_eq!(s(WRITE_ZEROES, &[(300, 1, 0), (302, 1, 0)]), IOERR);
    assert!(zero(8, 100) && zero(200, 1) && !zero(108, 1) && !zero(7, 1));
    assert!(!zero(300, 1));
    assert_eq!(s(WRITE_ZEROES, &[(1024, 256, 1)]), OK);
    assert!(zero(1024, 256));
    assert_eq!(s(DISCARD, &[(1536, 512, 0)]), OK);
    let after = served.file.metadata().unwrap();
    let freed = before - after.blocks();
    assert!(freed >= 768, "only {freed} blocks were freed");
    assert_eq!(after.len(), SECTORS * 512);
}

#[test]
fn the_last_sector_of_an_odd_image_is_filled_up_with_zeros() {
    let served = serve_bytes(1000, true);
    let mut driver = Driver::connect(served.device.socket(), 1, 0);
    assert_eq!(driver.config(8), 2_u64.to_le_bytes());
    let head = header(IN, 1);
    let pieces = [Piece::Read(&head), Piece::Write(512), Piece::Write(1)];
    let (status, written, data) = run(&mut driver, &pieces, false);
    assert_eq!((status, written), (OK, 513));
    for (i, byte) in data.iter().enumerate() {
        let expected = if i < 488 { byte_at(512 + i as u64) } else { 0 };
        assert_eq!(*byte, expected);
    }
}

#[test]
fn a_full_ring_is_served_to_its_end_and_a_new_frontend_after_it() {
    let served = serve(true);
    for _ in 0..3 {
        let mut driver = Driver::connect(served.device.socket(), 1, 0);
        let head = header(IN, 5);
        let pieces = [Piece::Read(&head), Piece::Write(512), Piece::Write(1)];
        let sent: Vec<_> = (0..128)
            .map(|_| driver.submit(0, &pieces, true).head)
            .collect();
        driver.kick(0);
        for head in sent {
            assert_eq!(driver.wait_used(0), Some((head, 513)));
        }
    }
}

#[test]
fn many_small_requests_are_few_calls() {
    let served = serve(false);
    // Without EVENT_IDX the guest is called as often as the device wants.
    let mut driver = Driver::connect(served.device.socket(), 1, 1 << 29);
    // An answer: what the device does at a ring's start is over.
    driver.config(8);
    driver.take_calls(0);
    let requests: Vec<_> = (0..32)
        .map(|i| {
            let head = header(IN, i * 8);
            let pieces = [Piece::Read(&head), Piece::Write(4096), Piece::Write(1)];
            driver.submit(0, &pieces, false).head
        })
        .collect();
    driver.kick(0);
    let mut calls = 0;
    let begin = Instant::now();
    let mut done = Vec::new();
    while done.len() < requests.len() && begin.elapsed() < PATIENCE {
        done.extend(driver.take_used(0).map(|(head, _)| head));
        calls += driver.take_calls(0);
    }
    assert_eq!(done, requests);
    // The last call comes after the last request.
    while calls == 0 && begin.elapsed() < PATIENCE {
        calls += driver.take_calls(0);
    }
    assert!((1..=4).contains(&calls), "{calls} calls for 32 requests");
}

#[test]
fn what_is_no_disk_is_refused_and_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let serve = |bytes: &[u8], read_only, serial: &str| {
        let path = dir.path().join("disk");
        std::fs::write(&path, bytes).unwrap();
        let disk = Disk {
            file: File::options().read(true).write(true).open(&path).unwrap(),
            read_only,
            serial: serial.into(),
        };
        BlockDevice::serve(&socket, disk).unwrap_err()
    };
    let e = serve(&[0; 511], false, "a");
    assert!(matches!(e, VolumeError::DiskSize { bytes: 511 }), "{e}");
    let e = serve(&[], true, "a");
    assert!(matches!(e, VolumeError::DiskSize { bytes: 0 }), "{e}");
    for serial in ["", "123456789012345678901", "a b", "é"] {
        let e = serve(&[0; 512], true, serial);
        assert!(matches!(e, VolumeError::Serial(_)), "{e}");
    }
    assert!(!socket.exists());
}

/// Descriptors that point where they like, with a header that is often right.
fn descriptor() -> impl Strategy<Value = RawDescriptor> {
    let buffers = MEMORY_START + 0x10_0000;
    let end = MEMORY_START + MEMORY_SIZE as u64;
    let address = prop_oneof![
        4 => (0_u64..64).prop_map(move |o| buffers + o * 16),
        1 => (0_u64..0x100).prop_map(move |o| end - o),
        1 => (0_u64..0x400).prop_map(|o| MEMORY_START + o * 16),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![Just(16_u32), Just(1), Just(512), 0_u32..5000, any::<u32>()];
    let flags = prop_oneof![
        Just(NEXT),
        Just(NEXT | WRITE),
        Just(WRITE),
        Just(INDIRECT),
        0_u16..8
    ];
    (address, len, flags, 0_u16..12).prop_map(|(address, len, flags, next)| RawDescriptor {
        address,
        len,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_sends_the_file_keeps_its_size_and_the_device_serves_on(
        descriptors in prop::collection::vec(descriptor(), 1..12),
        headers in prop::collection::vec((prop_oneof![0_u32..16, any::<u32>()],
            prop_oneof![0_u64..2 * SECTORS, any::<u64>()]), 64),
        heads in prop::collection::vec(0_u16..12, 1..16),
        read_only in any::<bool>(),
    ) {
        let served = serve(read_only);
        let mut driver = Driver::connect(served.device.socket(), 1, 0);
        for (i, (kind, sector)) in headers.iter().enumerate() {
            let at = GuestAddress(MEMORY_START + 0x10_0000 + 16 * i as u64);
            driver.memory.write_slice(&header(*kind, *sector), at).unwrap();
        }
        for (i, d) in descriptors.iter().enumerate() {
            driver.set_descriptor(0, u16::try_from(i).unwrap(), *d);
        }
        for head in heads {
            driver.make_available(0, head);
        }
        driver.kick(0);
        let _ = driver.wait_used_for(0, Duration::from_millis(10));
        drop(driver);

        let mut driver = Driver::connect(served.device.socket(), 1, 0);
        prop_assert_eq!(status(&mut driver, IN, 0, Piece::Write(512)), OK);
        let there = served.file.metadata().unwrap().len();
        prop_assert_eq!(there, SECTORS * 512);
        prop_assert!(!read_only || served.untouched());
    }
}
