use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use proptest::prelude::*;

use super::*;
use crate::memory::layout::MIN_MEMORY;
use crate::memory::{Profile, RamPlan};
use crate::virtio_pci::Rings;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;

const VERSION_1: u64 = 1 << 32;
const GATED: u64 = 1 << 30;
const MQ: u64 = 1;
const REPLY_ACK: u64 = 1 << 3;
const CONFIG: u64 = 1 << 9;

/// A message that the backend got: its number, its body, its descriptors.
type Got = (u32, Vec<u8>, Vec<OwnedFd>);

/// A backend that answers from a table and notes what it hears.
fn backend(answers: BTreeMap<u32, Vec<u8>>) -> (UnixStream, mpsc::Receiver<Got>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        while let Some((request, flags, body, fds)) = read_message(&mut theirs) {
            let reply = answers.get(&request).cloned();
            let ack = flags & 8 != 0 && reply.is_none();
            send.send((request, body.clone(), fds)).unwrap();
            // A reply to GET_VRING_BASE names the ring.
            let reply = match request {
                GET_VRING_BASE => Some(body),
                _ => reply.or(ack.then(|| vec![0; 8])),
            };
            if let Some(reply) = reply {
                let len = u32::try_from(reply.len()).unwrap();
                let head = [request, 5, len].map(u32::to_le_bytes).concat();
                theirs.write_all(&[head, reply].concat()).unwrap();
            }
        }
    });
    (ours, receive)
}

fn read_message(socket: &mut UnixStream) -> Option<(u32, u32, Vec<u8>, Vec<OwnedFd>)> {
    use std::os::fd::{AsRawFd, FromRawFd};
    let mut head = [0; 12];
    let mut space = nix::cmsg_space!([i32; 8]);
    let mut fds: Vec<OwnedFd> = Vec::new();
    let got = {
        let mut buffers = [std::io::IoSliceMut::new(&mut head)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received =
            recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags).ok()?;
        for message in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just installed them for this call.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        received.bytes
    };
    if got == 0 {
        return None;
    }
    socket.read_exact(&mut head[got..]).ok()?;
    let word = |n: usize| u32::from_le_bytes(head[4 * n..4 * n + 4].try_into().unwrap());
    let mut body = vec![0; word(2) as usize];
    socket.read_exact(&mut body).ok()?;
    Some((word(0), word(1), body, fds))
}

fn config_reply(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap();
    [[0, len, 0].map(u32::to_le_bytes).concat(), bytes.to_vec()].concat()
}

fn answers(features: u64, protocol: u64, config: &[u8]) -> BTreeMap<u32, Vec<u8>> {
    BTreeMap::from([
        (GET_FEATURES, features.to_le_bytes().to_vec()),
        (GET_PROTOCOL_FEATURES, protocol.to_le_bytes().to_vec()),
        (GET_QUEUE_NUM, 1_u64.to_le_bytes().to_vec()),
        (GET_CONFIG, config_reply(config)),
    ])
}

fn block(extra: u64, protocol: u64) -> BTreeMap<u32, Vec<u8>> {
    answers(VERSION_1 | GATED | extra, protocol, &[7; 60])
}

fn ram() -> GuestRam {
    GuestRam::new(RamPlan::direct(MIN_MEMORY)).unwrap()
}

#[test]
fn a_backend_is_asked_told_of_memory_and_offered_to_the_driver() {
    // RO, MQ, FLUSH; packed rings.
    let (socket, heard) = backend(block(
        1 << 5 | 1 << 12 | 1 << 9 | 1 << 34,
        CONFIG | REPLY_ACK | MQ,
    ));
    let (_, model) = VhostUser::connect(socket, DeviceType::Block, &ram()).unwrap();
    assert_eq!(model.features, VERSION_1 | 1 << 5 | 1 << 9);
    assert_eq!(model.config, [7; 60]);
    assert_eq!((model.id, model.queue_sizes.len()), (2, 1));
    let table = heard
        .iter()
        .find(|(request, ..)| *request == SET_MEM_TABLE)
        .unwrap();
    // One region, with its descriptor; guest address 0, all of the memory.
    assert_eq!((table.1[0], table.2.len()), (1, 1));
    assert_eq!(table.1[8..16], [0; 8]);
    assert_eq!(table.1[16..24], MIN_MEMORY.to_le_bytes());
}

#[test]
fn a_backend_of_a_dense_machine_has_nothing_but_the_window() {
    let plan = RamPlan {
        bytes: MIN_MEMORY,
        profile: Profile::Dense { window: 2 << 20 },
    };
    let window = plan.window().unwrap();
    let ram = GuestRam::new(plan).unwrap();
    ram.write(0x1000, b"a secret").unwrap();
    ram.write(window.start, b"for you").unwrap();
    let (socket, heard) = backend(block(1 << 33, CONFIG | REPLY_ACK));
    let (connected, _) = VhostUser::connect(socket, DeviceType::Block, &ram).unwrap();
    drop(connected);
    let heard: Vec<Got> = heard.iter().collect();
    let all: Vec<&OwnedFd> = heard.iter().flat_map(|(_, _, fds)| fds).collect();
    let table = heard.iter().find(|got| got.0 == SET_MEM_TABLE).unwrap();
    assert_eq!((table.1[0], table.2.len(), all.len()), (1, 1, 1));
    assert_eq!(table.1[8..16], window.start.to_le_bytes());
    assert_eq!(table.1[16..24], (2_u64 << 20).to_le_bytes());
    assert_eq!(table.1[32..40], [0; 8]);
    // All that the descriptor reaches: the window's bytes, and no more by any means.
    let reached = File::from(table.2[0].try_clone().unwrap());
    assert_eq!(reached.metadata().unwrap().len(), 2 << 20);
    assert!(reached.set_len(4 << 20).is_err());
    let mut content = Vec::new();
    (&reached).read_to_end(&mut content).unwrap();
    assert!(content.starts_with(b"for you"));
    assert!(!content.windows(8).any(|bytes| bytes == b"a secret"));
}

#[test]
fn rings_are_started_and_stopped_in_order() {
    let (socket, heard) = backend(block(0, CONFIG | REPLY_ACK));
    let ram = ram();
    let (mut backend, _) = VhostUser::connect(socket, DeviceType::Block, &ram).unwrap();
    while heard.try_recv().is_ok() {}
    let event = EventFd::new(0).unwrap();
    let vring = Vring {
        index: 0,
        size: 128,
        rings: Rings {
            descriptors: 0x1000,
            driver: 0x2000,
            device: 0x3000,
        },
        kick: &event,
        call: &event,
    };
    backend.start(VERSION_1, &[vring]).unwrap();
    backend.set_call(0, &event).unwrap();
    backend.stop().unwrap();
    drop(backend);
    let heard: Vec<Got> = heard.iter().collect();
    let requests: Vec<u32> = heard.iter().map(|(request, ..)| *request).collect();
    assert_eq!(
        requests,
        [
            SET_FEATURES,
            SET_VRING_NUM,
            SET_VRING_BASE,
            SET_VRING_ADDR,
            SET_VRING_CALL,
            SET_VRING_KICK,
            SET_VRING_ENABLE,
            SET_VRING_CALL,
            SET_VRING_ENABLE,
            GET_VRING_BASE,
        ]
    );
    assert_eq!(heard[0].1, (VERSION_1 | GATED).to_le_bytes());
    assert_eq!(heard[8].1, [0; 8], "disabled");
}

#[test]
fn a_vsock_backend_of_two_queues_is_spared_the_third() {
    let mut table = answers(VERSION_1 | GATED, CONFIG, &[3, 0, 0, 0, 0, 0, 0, 0]);
    table.remove(&GET_QUEUE_NUM);
    let (socket, heard) = backend(table);
    let (mut backend, model) = VhostUser::connect(socket, DeviceType::Vsock, &ram()).unwrap();
    assert_eq!(model.queue_sizes.len(), 3);
    let event = EventFd::new(0).unwrap();
    let vrings = [0, 1, 2].map(|index| Vring {
        index,
        size: 64,
        rings: Rings {
            descriptors: 0,
            driver: 0,
            device: 0,
        },
        kick: &event,
        call: &event,
    });
    backend.start(VERSION_1, &vrings).unwrap();
    drop(backend);
    let kicks = heard
        .iter()
        .filter(|(request, ..)| *request == SET_VRING_KICK);
    assert_eq!(kicks.count(), 2);
}

#[test]
fn a_net_backend_without_configuration_has_no_mac_to_offer() {
    let (socket, _heard) = backend(answers(VERSION_1 | 1 << 5 | 1 << 15, 0, &[]));
    let (_, model) = VhostUser::connect(socket, DeviceType::Net, &ram()).unwrap();
    assert_eq!(model.features, VERSION_1 | 1 << 15);
    assert!(model.config.is_empty());
}

#[test]
fn backends_that_are_of_no_use_are_refused() {
    let refused = |table, kind| {
        let (socket, _heard) = backend(table);
        VhostUser::connect(socket, kind, &ram())
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        refused(answers(GATED, CONFIG, &[0; 60]), DeviceType::Block),
        "blk backend: it does not offer VIRTIO_F_VERSION_1"
    );
    assert_eq!(
        refused(answers(VERSION_1 | GATED, 0, &[]), DeviceType::Block),
        "blk backend: it has no configuration to read"
    );
    assert_eq!(
        refused(
            answers(VERSION_1 | GATED, MQ | CONFIG, &[0; 12]),
            DeviceType::Net
        ),
        "net backend: it has too few queues"
    );
}

#[test]
fn a_backend_that_leaves_an_answer_unfinished_is_given_up() {
    // No features; 10 bytes of configuration instead of 60.
    for missing in [Some(GET_FEATURES), None] {
        let mut table = answers(VERSION_1 | GATED, CONFIG, &[0; 10]);
        if let Some(request) = missing {
            table.remove(&request);
        }
        let (socket, _heard) = backend(table);
        assert!(VhostUser::connect(socket, DeviceType::Block, &ram()).is_err());
    }
}

#[test]
fn a_backend_that_hangs_up_is_an_error() {
    let (socket, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(VhostUser::connect(socket, DeviceType::Block, &ram()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nothing_a_backend_says_panics(
        features in any::<u64>(), protocol in any::<u64>(), queues in any::<u64>(),
        config in prop::collection::vec(any::<u8>(), 0..80), kind in 0_usize..3,
    ) {
        let mut table = answers(features | VERSION_1, protocol, &config);
        table.insert(GET_QUEUE_NUM, queues.to_le_bytes().to_vec());
        let (socket, _heard) = backend(table);
        let kind = [DeviceType::Net, DeviceType::Block, DeviceType::Vsock][kind];
        if let Ok((_, model)) = VhostUser::connect(socket, kind, &ram()) {
            prop_assert_eq!(model.features & !kind.features(true), 0);
        }
    }
}
