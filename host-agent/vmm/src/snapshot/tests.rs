//! States that were damaged, cut, or made up.

use std::io::Write;

use proptest::prelude::*;
use vm_superio::serial::SerialState;

use super::*;
use crate::pci::bus::PciBus;
use crate::snapshot::checksum::crc64;

const HEADER: usize = 24;

/// A state of `processors`, with something in each of its lists.
fn state(processors: usize) -> MachineState {
    let mut body = Writer::new();
    body.put(&(128_u64 << 20));
    body.put(&(4_u64 << 20));
    let serial = SerialState {
        scratch: 0x5A,
        ..SerialState::default()
    };
    board(&serial).write(&mut body);
    PlatformState::sample().write(&mut body);
    body.put(&2_000_000_u32);
    body.put(&1_u64);
    body.put(&3_u64);
    body.put(&u32::try_from(processors).unwrap());
    for id in 0..processors {
        ProcessorState::sample(id as u64).write(&mut body);
    }
    MachineState::decode(&body.finish().unwrap()).unwrap()
}

fn board(serial: &SerialState) -> BoardState {
    let pci = PciBus::new();
    // The bridge decodes memory, its interrupt line is 11.
    pci.write_address(&0x8000_0004_u32.to_le_bytes());
    pci.write_data(0, &[2, 0]);
    pci.write_address(&0x8000_003C_u32.to_le_bytes());
    pci.write_data(0, &[11]);
    let irq = std::sync::Arc::new(vmm_sys_util::eventfd::EventFd::new(0).unwrap());
    let port = crate::serial::SerialPort::restored(irq, None, serial).unwrap();
    BoardState::of(&port, &pci)
}

fn refused(file: &[u8]) -> String {
    MachineState::decode(file)
        .err()
        .expect("a refusal")
        .to_string()
}

/// A file with this body and all around it right.
fn file_of(body: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new();
    for byte in body {
        writer.put(byte);
    }
    writer.finish().unwrap()
}

#[test]
fn what_was_written_is_read_again() {
    for processors in [1, 2, 64] {
        let file = state(processors).encode().unwrap();
        let read = MachineState::decode(&file).unwrap();
        assert_eq!(read.processors.len(), processors);
        assert!(read.encode().unwrap() == file);
        assert_eq!(read.board.serial.scratch, 0x5A);
    }
    assert!(state(64).encode().unwrap().len() < 1 << 20);
}

#[test]
fn the_board_is_put_back() {
    let board = board(&SerialState::default());
    let pci = PciBus::new();
    board.put_back(&pci);
    let mut address = [0; 4];
    pci.read_address(&mut address);
    assert_eq!(u32::from_le_bytes(address), 0x8000_003C);
    let mut line = [0];
    pci.read_data(0, &mut line);
    assert_eq!(line, [11]);
}

#[test]
fn each_kind_of_damage_has_its_own_reason() {
    let good = state(2).encode().unwrap();
    let spoil = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refused(&bad)
    };
    assert_eq!(spoil(0), "it does not begin as the state of a machine does");
    assert_eq!(spoil(8), "it has version 17, this VMM reads version 1");
    assert_eq!(spoil(12), "its checksum is wrong: it is damaged");
    assert_eq!(spoil(1000), "its checksum is wrong: it is damaged");
    assert_eq!(
        spoil(good.len() - 1),
        "its checksum is wrong: it is damaged"
    );
    let len = good.len();
    assert_eq!(
        refused(&good[..len - 1]),
        format!("it has {} bytes of {len}: it is cut off", len - 1)
    );
    assert_eq!(
        refused(&good[..20]),
        "20 bytes are too few for any state: it is cut off"
    );
    assert_eq!(
        refused(b""),
        "0 bytes are too few for any state: it is cut off"
    );
    let long = [good.as_slice(), b"xyz"].concat();
    assert_eq!(refused(&long), "3 bytes follow its end");
    assert_eq!(
        refused(&vec![0; 5 << 20]),
        "5242880 bytes are more than the limit of 4194304 (4 MiB)"
    );
    assert_eq!(
        refused(&vec![0; 1000]),
        "it does not begin as the state of a machine does"
    );
}

#[test]
fn bodies_that_no_vmm_has_written_are_refused_with_the_place() {
    let good = state(1).encode().unwrap();
    let body = &good[HEADER..good.len() - 8];
    let with = |at: usize, bytes: &[u8]| {
        let mut body = body.to_vec();
        body[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&file_of(&body))
    };
    assert_eq!(
        with(0, &7_u64.to_le_bytes()),
        "its memory: 7 is below the minimum of 33554432 bytes (32 MiB)"
    );
    assert!(with(8, &1_u64.to_le_bytes()).starts_with("its memory: 1 is not a multiple"));
    assert_eq!(
        refused(&file_of(&body[..body.len() - 1])),
        "a processor's timer ends early"
    );
    assert_eq!(
        refused(&file_of(&[body, b"x"].concat())),
        "1 bytes follow its end"
    );
    // The number of processors lies before the first of them, whose CPUID has three leaves.
    let count = 8 + 3 * 40 + 4;
    let first = body
        .windows(8)
        .position(|window| window == 0xC0DE_u64.to_le_bytes())
        .expect("the first register of the sample");
    let count = first - count;
    assert_eq!(
        with(count, &0_u32.to_le_bytes()),
        "0 processors are not between 1 and 64"
    );
    assert_eq!(
        with(count, &65_u32.to_le_bytes()),
        "65 processors are not between 1 and 64"
    );
    assert_eq!(
        with(count + 4, &u64::MAX.to_le_bytes()),
        "a processor's CPUID: 18446744073709551615 are more than 256"
    );
}

#[test]
fn files_are_read_whole_or_not_at_all() {
    let mut file = tempfile::tempfile().unwrap();
    state(1).save(&file).unwrap();
    assert_eq!(MachineState::load(&file).unwrap().processors.len(), 1);
    file.write_all(b"more").unwrap();
    assert!(MachineState::load(&file).is_err());
    file.set_len(1 << 40).unwrap();
    assert!(matches!(
        MachineState::load(&file),
        Err(SnapshotError::Format(FormatError::TooLong(_)))
    ));
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(
        MachineState::load(&null),
        Err(SnapshotError::Format(FormatError::NoFile))
    ));
    let failure = Failure::from(MachineState::load(&null).err().unwrap());
    assert_eq!(failure.field, "state");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_flipped_bit_is_always_found(at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut file = state(2).encode().unwrap();
        let at = at.index(file.len());
        file[at] ^= 1_u8 << bit;
        prop_assert!(MachineState::decode(&file).is_err());
    }

    #[test]
    fn bytes_that_changed_are_always_found(
        at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..100),
    ) {
        let good = state(1).encode().unwrap();
        let mut file = good.clone();
        let at = at.index(file.len());
        for (to, from) in file.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
        prop_assert!(file == good || MachineState::decode(&file).is_err());
    }

    #[test]
    fn a_cut_is_always_found(at in any::<prop::sample::Index>(), more in any::<Vec<u8>>()) {
        let file = state(2).encode().unwrap();
        let at = at.index(file.len());
        prop_assert!(MachineState::decode(&file[..at]).is_err());
        // Cut out of the middle.
        let (_, rest) = file.split_at(at + 1);
        prop_assert!(MachineState::decode(&[&file[..at], rest].concat()).is_err());
        if !more.is_empty() {
            prop_assert!(MachineState::decode(&[file, more].concat()).is_err());
        }
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(MachineState::decode(&bytes).is_err());
        // Past the checksum, too: an error, or a state that is written as it was read.
        let file = file_of(&bytes);
        if let Ok(state) = MachineState::decode(&file) {
            prop_assert!(state.encode().unwrap() == file);
        }
    }

    #[test]
    fn no_body_with_a_right_checksum_does_harm(
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = state(2).encode().unwrap();
        file.truncate(file.len() - 8);
        for (at, value) in spoils {
            let at = HEADER + at.index(file.len() - HEADER);
            for (to, from) in file.iter_mut().skip(at).zip(value.to_le_bytes()) {
                *to = from;
            }
        }
        let keep = file.len() - cut.index(2) * cut.index(file.len() - HEADER);
        let file = file_of(&file[HEADER..keep.max(HEADER)]);
        assert_eq!(crc64(&file[..file.len() - 8]).to_le_bytes(), file[file.len() - 8..]);
        // Numbers change unnoticed; whatever is read, is within its limits.
        if let Ok(state) = MachineState::decode(&file) {
            prop_assert!(state.processors.len() <= 64);
            prop_assert!(state.ram.check().is_ok());
        }
    }
}
