//! A device that turns its input round, served to a driver that behaves and to
//! one that does not.

#![allow(clippy::unwrap_used, reason = "a test's own steps")]

mod mirror;
mod window;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use longship_vhost_user::driver::{
    Driver, INDIRECT, MEMORY_SIZE, MEMORY_START, NEXT, PATIENCE, Piece, RING_SIZE, RawDescriptor,
    WRITE,
};
use longship_vhost_user::{Device, RingError, ServeError, Server, SharedMemory, Used, Vring};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use proptest::prelude::*;
use vhost::VhostBackend;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use crate::mirror::{Mirror, mirrored, served};

/// VIRTIO_F_INDIRECT_DESC, VHOST_USER_F_PROTOCOL_FEATURES
const INDIRECT_DESC: u64 = 1 << 28;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Hands all that is there back at once, the last first, and takes indirect
/// tables only.
struct Pile;

impl Device for Pile {
    const NAME: &'static str = "pile";

    fn queue_count(&self) -> usize {
        1
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn negotiated(&mut self, features: u64) -> std::io::Result<()> {
        if features & INDIRECT_DESC == 0 {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }

    fn process(
        &mut self,
        index: usize,
        rings: &mut [Vring],
        memory: &SharedMemory,
    ) -> Result<(), RingError> {
        let ring = &mut rings[index];
        let pile = |ring: &mut Vring| {
            let mut heads = Vec::new();
            while let Some(chain) = ring.pop(memory)? {
                heads.push(chain.head_index());
            }
            // The last comes when it is taken again.
            if heads.len() > 1 && heads.pop().is_some() {
                ring.unpop(1);
            }
            let used = (0..).zip(heads);
            let mut used: Vec<Used> = used.map(|(written, head)| Used { head, written }).collect();
            used.reverse();
            ring.publish(memory, &used)?;
            ring.notify(memory)?;
            Ok(())
        };
        pile(ring).map_err(|source| RingError {
            ring: index,
            source,
        })
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn both_rings_are_served_with_and_without_indirect_tables_and_event_idx() {
    let (_dir, server) = served();
    for without in [0, 1 << 29, 1 << 28] {
        let mut driver = Driver::connect(server.socket(), 2, without);
        for i in 0..300_u32 {
            let indirect = without == 0 && i % 2 == 0;
            mirrored(&mut driver, (i % 2) as usize, &i.to_le_bytes(), indirect);
        }
    }
}

#[test]
fn a_frontend_without_protocol_features_is_served() {
    let (_dir, server) = served();
    let mut driver = Driver::connect(server.socket(), 2, PROTOCOL_FEATURES);
    mirrored(&mut driver, 0, b"as in 2014", false);
}

#[test]
fn rings_may_be_enabled_before_features_are_accepted() {
    let (_dir, server) = served();
    let mut connection = UnixStream::connect(server.socket()).unwrap();
    for ring in 0..2_u32 {
        // SET_VRING_ENABLE, version 1, and two words: the ring, and 1.
        for word in [18, 1, 8, ring, 1] {
            connection.write_all(&word.to_ne_bytes()).unwrap();
        }
    }
    let memory = Driver::memory_file();
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    let mut driver = Driver::talk(connection, 2, 0, memory).unwrap();
    for ring in 0..2 {
        driver.set_up(ring, 0);
        mirrored(&mut driver, ring, b"enabled already", false);
    }
}

#[test]
fn chains_handed_back_together_are_one_call() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("device"), Pile).unwrap();
    // Without EVENT_IDX the driver is called for everything.
    let mut driver = Driver::connect(server.socket(), 1, 1 << 29);
    // An answer: what the device does at a ring's start is over.
    driver.frontend.get_features().unwrap();
    driver.take_calls(0);
    let heads: Vec<u16> = (0..4)
        .map(|_| driver.submit(0, &[Piece::Write(8)], false).head)
        .collect();
    driver.kick(0);
    let begin = Instant::now();
    let mut calls = 0;
    while calls == 0 && begin.elapsed() < PATIENCE {
        calls = driver.take_calls(0);
    }
    for (i, written) in [(2, 2), (1, 1), (0, 0)] {
        assert_eq!(driver.take_used(0), Some((heads[i], written)));
    }
    assert_eq!((calls, driver.take_used(0)), (1, None));
    driver.kick(0);
    assert_eq!(driver.wait_used(0), Some((heads[3], 0)));
}

#[test]
fn a_device_may_refuse_what_the_driver_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("device"), Pile).unwrap();
    let frontend = Frontend::connect(server.socket(), 1).unwrap();
    let features = frontend.get_features().unwrap();
    frontend.set_features(features & !INDIRECT_DESC).unwrap();
    assert!(frontend.get_features().is_err(), "the connection goes on");
    Driver::connect(server.socket(), 1, 0);
}

#[test]
fn a_ring_that_is_no_longer_in_memory_stops() {
    let (_dir, server) = served();
    let mut driver = Driver::connect(server.socket(), 2, 0);
    mirrored(&mut driver, 0, b"all there", false);
    // The available ring's flags and index stay; its entries do not.
    driver.share_again_without(MEMORY_START + 0x4004..MEMORY_START + 0x5000);
    driver.make_available(0, 0);
    driver.kick(0);
    assert!(driver.wait_broken(0));
}

#[test]
fn the_socket_is_its_users_alone() {
    let (_dir, server) = served();
    let mode = std::fs::metadata(server.socket()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn a_frontend_that_comes_back_is_served_again() {
    let (_dir, server) = served();
    for _ in 0..20 {
        let mut driver = Driver::connect(server.socket(), 2, 0);
        mirrored(&mut driver, 0, b"again", false);
    }
}

#[test]
fn a_ring_that_is_stopped_goes_on_where_it_was() {
    let (_dir, server) = served();
    let mut driver = Driver::connect(server.socket(), 2, 0);
    for _ in 0..3 {
        mirrored(&mut driver, 1, b"before", false);
    }
    let base = driver.stop(1);
    assert_eq!(base, 3);
    let sent = driver.submit(1, &[Piece::Read(b"xy"), Piece::Write(2)], false);
    driver.kick(1);
    let none = driver.wait_used_for(1, Duration::from_millis(100));
    assert_eq!(none, None, "a stopped ring was served");
    driver.start(1, base);
    assert_eq!(driver.wait_used(1), Some((sent.head, 2)));
}

#[test]
fn the_configuration_is_padded_with_zeros() {
    let (_dir, server) = served();
    let mut driver = Driver::connect(server.socket(), 2, 0);
    assert_eq!(driver.config(8), [1, 2, 3, 0, 0, 0, 0, 0]);
    assert_eq!(driver.frontend.get_queue_num().unwrap(), 2);
}

#[test]
fn stop_ends_the_thread_and_removes_the_socket_whoever_is_connected() {
    let (_dir, mut server) = served();
    let begin = Instant::now();
    server.stop();
    server.stop();
    assert!(!server.socket().exists());

    let (_dir, mut server) = served();
    let _driver = Driver::connect(server.socket(), 2, 0);
    server.stop();
    assert!(!server.socket().exists());

    // Half a message: the thread waits for the rest of it.
    let (_dir, mut server) = served();
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.write_all(&[1, 0, 0]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn one_thread_serves_a_device_and_its_end_closes_everything() {
    // Alone in its process: the counts are the process's.
    if std::env::var_os("LONGSHIP_COUNTS").is_none() {
        let me = std::env::current_exe().unwrap();
        let name = "one_thread_serves_a_device_and_its_end_closes_everything";
        let status = std::process::Command::new(me)
            .args(["--exact", name, "--test-threads=1"])
            .env("LONGSHIP_COUNTS", "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (before, fds) = (threads(), descriptors());
    let (dir, server) = served();
    let mut driver = Driver::connect(server.socket(), 2, 0);
    mirrored(&mut driver, 0, b"count", false);
    assert_eq!(threads(), before + 1);
    for _ in 0..50 {
        drop(driver);
        driver = Driver::connect(server.socket(), 2, 0);
    }
    drop((driver, server, dir));
    assert_eq!(threads(), before);
    assert_eq!(descriptors(), fds);
}

#[test]
fn the_socket_of_a_dead_process_is_replaced_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::start(&path, Mirror).unwrap();
    let refused = Server::start(&path, Mirror).unwrap_err();
    assert!(matches!(refused, ServeError::InUse(_)), "{refused}");
    drop(server);

    std::fs::write(&path, "precious").unwrap();
    let refused = Server::start(&path, Mirror).unwrap_err();
    assert!(matches!(refused, ServeError::NotASocket(_)), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn an_impossible_available_index_stops_that_ring_alone() {
    let (_dir, server) = served();
    let mut driver = Driver::connect(server.socket(), 2, 0);
    driver.set_available_index(0, RING_SIZE + 1);
    driver.kick(0);
    assert!(driver.wait_broken(0));
    mirrored(&mut driver, 1, b"the other", false);
}

#[test]
fn a_head_outside_the_table_stops_that_ring_alone() {
    let (_dir, server) = served();
    let mut driver = Driver::connect(server.socket(), 2, 0);
    driver.make_available(0, RING_SIZE);
    driver.kick(0);
    assert!(driver.wait_broken(0));
    mirrored(&mut driver, 1, b"the other", false);
}

#[test]
fn memory_that_its_owner_could_cut_short_is_refused() {
    let (_dir, server) = served();
    let refused = Driver::share(server.socket(), 2, 0, Driver::memory_file());
    assert!(refused.is_err());
    let refused = Driver::share(server.socket(), 2, 0, {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY_SIZE as u64).unwrap();
        file
    });
    assert!(refused.is_err());
    let mut driver = Driver::connect(server.socket(), 2, 0);
    mirrored(&mut driver, 0, b"sealed", false);
}

#[test]
fn memory_that_could_end_the_process_when_touched_is_refused() {
    let (_dir, server) = served();
    for len in [4096, MEMORY_SIZE as u64 - 4096] {
        let file = Driver::memory_file();
        file.set_len(len).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        assert!(Driver::share(server.socket(), 2, 0, file).is_err(), "{len}");
    }
    let mut driver = Driver::connect(server.socket(), 2, 0);
    mirrored(&mut driver, 0, b"whole", false);
}

#[test]
fn a_ring_outside_memory_is_refused() {
    let (_dir, server) = served();
    let driver = Driver::negotiate(server.socket(), 2, 0);
    let at = |end: u64| vhost::VringConfigData {
        queue_max_size: RING_SIZE,
        queue_size: RING_SIZE,
        flags: 0,
        desc_table_addr: end,
        used_ring_addr: end,
        avail_ring_addr: end,
        log_addr: None,
    };
    assert!(driver.frontend.set_vring_addr(0, &at(0x1000)).is_err());
}

fn descriptor() -> impl Strategy<Value = RawDescriptor> {
    let end = MEMORY_START + MEMORY_SIZE as u64;
    let address = prop_oneof![
        (0_u64..0x1000).prop_map(|o| MEMORY_START + 0x10_0000 + o * 16),
        (0_u64..0x100).prop_map(move |o| end - o),
        Just(0),
        any::<u64>(),
        // The tables themselves.
        (0_u64..0x400).prop_map(|o| MEMORY_START + o * 16),
    ];
    let len = prop_oneof![0_u32..600, Just(16), Just(u32::MAX), any::<u32>()];
    let flags = prop_oneof![
        Just(0),
        Just(NEXT),
        Just(NEXT | WRITE),
        Just(INDIRECT),
        0_u16..8
    ];
    let next = prop_oneof![0_u16..12, any::<u16>()];
    (address, len, flags, next).prop_map(|(address, len, flags, next)| RawDescriptor {
        address,
        len,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_rings_hold_the_next_frontend_is_served(
        descriptors in prop::collection::vec(descriptor(), 1..12),
        heads in prop::collection::vec(0_u16..16, 1..24),
    ) {
        let (_dir, server) = served();
        let mut driver = Driver::connect(server.socket(), 2, 0);
        for (i, d) in descriptors.iter().enumerate() {
            driver.set_descriptor(0, u16::try_from(i).unwrap(), *d);
        }
        for head in heads {
            driver.make_available(0, head);
            driver.kick(0);
        }
        let _ = driver.wait_used_for(0, Duration::from_millis(20));
        drop(driver);
        let mut driver = Driver::connect(server.socket(), 2, 0);
        mirrored(&mut driver, 1, b"still here", true);
    }
}
