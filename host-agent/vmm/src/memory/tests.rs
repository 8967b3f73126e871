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
