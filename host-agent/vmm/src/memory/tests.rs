use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::memfd::tests::{ALL, memfd, seal};
use super::*;
use crate::memory::layout::{MIN_MEMORY, PAGE};

const MIB: u64 = 1 << 20;

fn dense(bytes: u64) -> RamPlan {
    RamPlan::dense(bytes, 2 * MIB)
}

/// What lies at `guest`.
fn read(ram: &GuestRam, guest: u64, len: usize) -> Vec<u8> {
    let from = ram.pointer(guest, len as u64).unwrap();
    let mut bytes = vec![0; len];
    // SAFETY: `pointer` has checked the range.
    unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
    bytes
}

/// Bytes of a file that are resident.
fn resident(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

/// A template whose RAM has been `fill`ed.
fn template(plan: RamPlan, fill: impl FnOnce(&GuestRam)) -> File {
    let file = memfd(plan.bytes);
    let ram = GuestRam::template(plan, file.try_clone().unwrap()).unwrap();
    fill(&ram);
    drop(ram);
    seal(&file, ALL);
    file
}

#[test]
fn addresses_are_given_only_for_whole_ranges_of_ram() {
    for plan in [RamPlan::direct(MIN_MEMORY), dense(MIN_MEMORY)] {
        let ram = GuestRam::new(plan).unwrap();
        let host = ram.mappings()[0].host;
        assert_eq!(ram.address(0x1000, 16), Some(host + 0x1000));
        assert_eq!(ram.address(MIN_MEMORY, 0), Some(host + MIN_MEMORY));
        assert_eq!(ram.address(MIN_MEMORY - 15, 16), None);
        assert_eq!(ram.address(u64::MAX - 3, 16), None);
        assert_eq!(ram.address(layout::BAR_WINDOW.start, 4), None);
    }
}

#[test]
fn a_range_across_the_hole_is_no_ram() {
    let ram = GuestRam::new(RamPlan::direct(4 << 30)).unwrap();
    assert_eq!(ram.mappings().len(), 2);
    assert_eq!(ram.shared()[1].offset, 3 << 30);
    assert_eq!(ram.address((3 << 30) - 8, 16), None);
    assert!(ram.shared_address(4 << 30, 1 << 30).is_some());
}

#[test]
fn backends_are_told_of_the_window_alone() {
    for bytes in [MIN_MEMORY, 4 << 30] {
        let plan = dense(bytes);
        let window = plan.window().unwrap();
        let ram = GuestRam::new(plan).unwrap();
        let [shared] = ram.shared() else {
            panic!("{:?}", ram.shared())
        };
        assert_eq!((shared.at.guest, shared.at.bytes), (window.start, 2 * MIB));
        assert_eq!(shared.offset, 0);
        assert!(ram.shared_address(window.start, 2 * MIB).is_some());
        for outside in [0, window.start - 1, window.end - 1, 4 << 30] {
            assert_eq!(ram.shared_address(outside, 2), None);
        }
        // What the guest writes there is in the memfd that a backend maps, and what it
        // writes elsewhere is not.
        ram.write(window.start, b"inside").unwrap();
        ram.write(window.start - 6, b"before").unwrap();
        // SAFETY: the descriptor is open for as long as `ram` lives.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(shared.fd) };
        let backend = File::from(fd.try_clone_to_owned().unwrap());
        assert_eq!(backend.metadata().unwrap().len(), 2 * MIB);
        assert_eq!(resident(&backend), PAGE);
        let mut seen = [0; 6];
        backend.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"inside");
        assert!(backend.set_len(PAGE).is_err() && backend.set_len(1 << 40).is_err());
    }
}

#[test]
fn files_are_loaded_to_their_place() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    for plan in [RamPlan::direct(4 << 30), dense(4 << 30)] {
        let ram = GuestRam::new(plan).unwrap();
        for guest in [0x12_3457, (4 << 30) + 0x1001] {
            ram.load(guest, &file, 2, 4).unwrap();
            assert_eq!(read(&ram, guest - 1, 6), [0, 3, 4, 5, 6, 0]);
        }
        assert!(ram.load(0, &file, 2, 7).is_err(), "beyond the file");
        assert!(ram.load((3 << 30) - 4, &file, 0, 8).is_err(), "beyond RAM");
    }
}

#[test]
fn nobody_can_resize_the_memory() {
    let plan = RamPlan::direct(MIN_MEMORY);
    let given = memfd(MIN_MEMORY);
    let machines = [
        GuestRam::new(plan).unwrap(),
        GuestRam::template(plan, given.try_clone().unwrap()).unwrap(),
    ];
    for ram in machines {
        let file = ram.file.as_ref().unwrap();
        assert!(file.set_len(4096).is_err() && file.set_len(1 << 40).is_err());
    }
    // It was sealed for its holder too, who can seal it further.
    assert!(given.set_len(4096).is_err());
    seal(&given, ALL);
}

#[test]
fn a_template_writes_to_its_memory_but_for_the_window() {
    let plan = dense(MIN_MEMORY);
    let window = plan.window().unwrap();
    let file = template(plan, |ram| {
        ram.write(0x5000, b"kept").unwrap();
        ram.write(window.start, b"not kept").unwrap();
    });
    assert_eq!(resident(&file), PAGE);
    let mut seen = [0; 4];
    file.read_exact_at(&mut seen, 0x5000).unwrap();
    assert_eq!(&seen, b"kept");
}

#[test]
fn clones_begin_as_their_template_and_go_their_own_ways() {
    for plan in [RamPlan::direct(4 << 30), dense(4 << 30)] {
        let high = (4 << 30) + 0x3000;
        let file = template(plan, |ram| {
            ram.write(0x5000, b"low").unwrap();
            ram.write(high, b"high").unwrap();
        });
        let clones = [0, 1].map(|_| GuestRam::clone_of(plan, file.try_clone().unwrap()).unwrap());
        for (clone, text) in clones.iter().zip([b"one", b"two"]) {
            assert_eq!(read(clone, 0x5000, 3), b"low");
            assert_eq!(read(clone, high, 4), b"high");
            clone.write(0x5000, text).unwrap();
            let window = plan.window().unwrap_or(0x8000..0x9000);
            assert_eq!(read(clone, window.start, 8), [0; 8]);
            clone.write(window.start, text).unwrap();
        }
        for (clone, text) in clones.iter().zip([b"one", b"two"]) {
            assert_eq!(read(clone, 0x5000, 3), text);
            let window = plan.window().unwrap_or(0x8000..0x9000);
            assert_eq!(read(clone, window.start, 3), text);
        }
        let mut seen = [0; 3];
        file.read_exact_at(&mut seen, 0x5000).unwrap();
        assert_eq!(&seen, b"low");
        if let Some(own) = &clones[0].file {
            assert!(resident(own) <= 3 * PAGE, "holes stay holes");
        }
    }
}

#[test]
fn memory_that_is_unfit_is_refused_with_its_reason() {
    let plan = dense(MIN_MEMORY);
    let refused = GuestRam::template(plan, memfd(MIN_MEMORY - PAGE)).err();
    assert_eq!(
        refused.unwrap().to_string(),
        "memory descriptor: it has 33550336 bytes, the memory 33554432"
    );
    let refused = GuestRam::clone_of(plan, memfd(MIN_MEMORY)).err();
    assert!(
        refused
            .unwrap()
            .to_string()
            .starts_with("memory descriptor: it is not sealed against writing")
    );
}

/// KiB of the smaps of this process's mappings that begin in `ram`'s first piece.
fn smaps(ram: &GuestRam, field: &str) -> u64 {
    let first = ram.mappings()[0];
    let mut inside = false;
    let mut kib = 0;
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap();
        if let Some((from, _)) = key.split_once('-') {
            let from = u64::from_str_radix(from, 16).unwrap();
            inside = (first.host..first.host + first.bytes).contains(&from);
        } else if inside && key == field {
            kib += words.next().unwrap().parse::<u64>().unwrap();
        }
    }
    kib
}

#[test]
fn what_is_given_back_is_no_longer_resident() {
    let plan = dense(MIN_MEMORY);
    let file = template(plan, |ram| ram.write(0x60_0000, b"template").unwrap());
    let pages = vec![7; 4 << 20];
    // Private memory of a cold machine and of a clone: anonymous pages go.
    let machines = [
        GuestRam::new(plan).unwrap(),
        GuestRam::clone_of(plan, file).unwrap(),
    ];
    for ram in machines {
        ram.write(0x40_0000, &pages).unwrap();
        assert!(smaps(&ram, "Anonymous:") >= 4096);
        assert_eq!(ram.give_back(0x40_0000, 3 * MIB).unwrap(), 3 * MIB);
        assert_eq!(smaps(&ram, "Anonymous:"), 1024);
        assert_ne!(read(&ram, 0x60_0000, 8), [7; 8]);
        assert_eq!(read(&ram, 0x70_0000, 8), [7; 8], "the rest stays");
    }
    // Shared memory: blocks of the memfd go, on both sides of the hole.
    let ram = GuestRam::new(RamPlan::direct(4 << 30)).unwrap();
    for guest in [0x40_0000, (4 << 30) + 0x40_0000] {
        ram.write(guest, &pages).unwrap();
    }
    let file = ram.file.as_ref().unwrap();
    assert_eq!(resident(file), 8 * MIB);
    ram.give_back((4 << 30) + 0x40_0000, 3 * MIB).unwrap();
    ram.give_back(0x40_0000, PAGE).unwrap();
    assert_eq!(resident(file), 5 * MIB - PAGE);
    assert_eq!(read(&ram, 0x40_0000, 8), [0; 8]);
    assert_eq!(read(&ram, 0x40_1000, 8), [7; 8]);
}

#[test]
fn only_whole_pages_of_private_ram_are_given_back() {
    let plan = dense(4 << 30);
    let window = plan.window().unwrap();
    let ram = GuestRam::new(plan).unwrap();
    ram.write(window.start, b"in use").unwrap();
    let refused = [
        (0x1001, PAGE),
        (0x1000, 1),
        (window.start, PAGE),
        (window.end - PAGE, PAGE),
        (window.start - PAGE, 2 * PAGE),
        (0, 3 << 30),
        (3 << 30, PAGE),
        ((3 << 30) - PAGE, 2 * PAGE),
        ((4 << 30) + (1 << 30) - PAGE, 2 * PAGE),
        (!(PAGE - 1), PAGE),
        (PAGE, !(PAGE - 1)),
    ];
    for (guest, bytes) in refused {
        let error = ram.give_back(guest, bytes).err();
        assert!(
            matches!(error, Some(MemoryError::GiveBack { .. })),
            "{guest:#x} {bytes:#x}"
        );
    }
    assert_eq!(read(&ram, window.start, 6), b"in use");
    assert_eq!(ram.give_back(0x1000, 0).unwrap(), 0);
    assert_eq!(ram.give_back(4 << 30, PAGE).unwrap(), PAGE);
}

#[test]
fn pages_of_zeros_become_holes() {
    for plan in [RamPlan::direct(4 << 30), dense(4 << 30)] {
        let file = memfd(plan.bytes);
        let ram = GuestRam::template(plan, file.try_clone().unwrap()).unwrap();
        let zeros = vec![0; 1 << 20];
        // Zeros but for one byte in the second page, the last of a chunk, the last of all.
        ram.write(0x10_0000, &zeros).unwrap();
        for guest in [0x10_1000, 0x10_FFFF, (4 << 30) + 0x7000] {
            ram.write(guest, &[1]).unwrap();
        }
        ram.write((4 << 30) + 0x8000, &zeros).unwrap();
        assert_eq!(resident(&file), 2 * MIB + PAGE);
        let punched = ram.punch_zero_pages().unwrap();
        assert_eq!(punched, 2 * MIB - 2 * PAGE);
        assert_eq!(resident(&file), 3 * PAGE);
        assert_eq!(read(&ram, 0x10_FFFE, 2), [0, 1]);
        assert_eq!(read(&ram, (4 << 30) + 0x7000, 2), [1, 0]);
        assert_eq!(ram.punch_zero_pages().unwrap(), 0);
    }
    let private = GuestRam::new(dense(MIN_MEMORY)).unwrap();
    assert_eq!(private.punch_zero_pages().unwrap(), 0);
}

#[test]
fn private_ram_is_aligned_for_huge_pages() {
    for _ in 0..8 {
        let ram = GuestRam::new(dense(MIN_MEMORY)).unwrap();
        assert!(ram.mappings()[0].host.is_multiple_of(2 * MIB));
        ram.write(MIN_MEMORY - 1, &[1]).unwrap();
        std::mem::forget(Region::map(PAGE, &Backing::Anonymous).unwrap());
    }
}
