//! Tests of both directions on rings that a test (or chance) fills, with a
//! socket pair, which keeps packets apart as a TAP does, in the TAP's place.

use std::os::fd::{AsFd, OwnedFd};

use longship_vhost_user::{SharedMemory, Vring};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use proptest::prelude::*;
use std::os::fd::AsRawFd;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::filter::tests::{ADDRESS, MAC, arp, filter, ipv4};
use super::header::HEADER_LEN;
use super::receive::Receiver;
use super::stats::Counters;
use super::transmit::Transmitter;
use super::{BATCH, Turn};

const SIZE: u16 = 64;
const BUFFERS: u64 = 0x10_0000;
const MTU: usize = 1500;

struct Bench {
    memory: SharedMemory,
    ours: OwnedFd,
    network: OwnedFd,
    counters: Counters,
}

impl Bench {
    fn new() -> Self {
        let pair = || {
            socketpair(
                AddressFamily::Unix,
                SockType::SeqPacket,
                None,
                SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            )
        };
        let (ours, network) = pair().unwrap();
        // Two regions, so that buffers can lie across their border.
        let regions = [
            (GuestAddress(0), 0x18_0000),
            (GuestAddress(0x18_0000), 0x18_0000),
        ];
        Self {
            memory: SharedMemory::from_ranges(&regions).unwrap(),
            ours,
            network,
            counters: Counters::default(),
        }
    }

    fn transmit(&self, ring: &mut Vring) -> Result<(Turn, bool), Error> {
        let transmitter = Transmitter {
            tap: self.ours.as_fd(),
            filter: filter(),
            mtu: MTU,
            counters: &self.counters,
        };
        let turn = transmitter.run(ring, &self.memory)?;
        Ok((turn, ring.notify(&self.memory)?))
    }

    fn receive(&self, ring: &mut Vring, mergeable: bool) -> Result<(Turn, bool), Error> {
        let receiver = Receiver {
            tap: self.ours.as_fd(),
            mtu: MTU,
            mergeable,
            segmented: false,
            counters: &self.counters,
        };
        let turn = receiver.run(ring, &self.memory)?;
        Ok((turn, ring.notify(&self.memory)?))
    }

    /// What has come out at the network's end, without headers.
    fn sent(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        while let Ok(len) = recv(self.network.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            frames.push(buffer[HEADER_LEN..len].to_vec());
        }
        frames
    }

    fn arrive(&self, frame: &[u8]) -> Result<usize, Errno> {
        let mut packet = vec![0; HEADER_LEN];
        packet.extend(frame);
        send(self.network.as_raw_fd(), &packet, MsgFlags::empty())
    }

    /// Chains for the guest's frames, cut into pieces of `cut` bytes.
    fn offer(&self, ring: &MockSplitQueue<'_, SharedMemory>, frames: &[Vec<u8>], cut: usize) {
        let mut at = BUFFERS;
        let mut index = 0;
        for frame in frames {
            let mut bytes = vec![0; HEADER_LEN];
            bytes.extend(frame);
            let mut chain = Vec::new();
            let start = index;
            for piece in bytes.chunks(cut) {
                self.memory.write_slice(piece, GuestAddress(at)).unwrap();
                index += 1;
                chain.push((at, piece.len(), index));
                at += 0x1000;
            }
            add(ring, start, &chain, 0);
        }
    }
}

/// Adds one chain of descriptors that lie at `start`.
fn add(
    ring: &MockSplitQueue<'_, SharedMemory>,
    start: u16,
    chain: &[(u64, usize, u16)],
    flags: u32,
) {
    let descriptors: Vec<RawDescriptor> = chain
        .iter()
        .enumerate()
        .map(|(i, (at, len, next))| {
            let last = i + 1 == chain.len();
            let flags = flags | if last { 0 } else { VRING_DESC_F_NEXT };
            Descriptor::new(
                *at,
                u32::try_from(*len).unwrap(),
                u16::try_from(flags).unwrap(),
                *next,
            )
            .into()
        })
        .collect();
    ring.add_desc_chains(&descriptors, start).unwrap();
}

/// Empty buffers of that size for packets to come.
fn add_buffers(ring: &MockSplitQueue<'_, SharedMemory>, first: u16, count: u16, len: usize) {
    for i in first..first + count {
        let at = BUFFERS + u64::from(i) * 0x1000;
        add(ring, i, &[(at, len, 0)], VRING_DESC_F_WRITE);
    }
}

fn used(bench: &Bench, ring: &MockSplitQueue<'_, SharedMemory>) -> Vec<(u32, u32)> {
    let count: u16 = ring.used().idx().load();
    (0..count)
        .map(|i| {
            let at = ring.used_addr().0 + 4 + u64::from(i % SIZE) * 8;
            let [id, len]: [u32; 2] =
                [0, 4].map(|o| bench.memory.read_obj(GuestAddress(at + o)).unwrap());
            (id, len)
        })
        .collect()
}

fn udp(payload: usize) -> Vec<u8> {
    ipv4(payload)
}

#[test]
fn own_frames_go_out_however_they_are_cut() {
    for cut in [1, 7, 12, 13, 54, 2000] {
        let bench = Bench::new();
        let ring = MockSplitQueue::new(&bench.memory, SIZE);
        let frames = if cut == 1 {
            vec![udp(3)]
        } else {
            vec![udp(100), arp(1, MAC, ADDRESS)]
        };
        bench.offer(&ring, &frames, cut);
        let mut vring = Vring::over(ring.create_queue().unwrap());
        let (turn, interrupt) = bench.transmit(&mut vring).unwrap();
        assert_eq!((turn, interrupt), (Turn::Done, true));
        assert_eq!(bench.sent(), frames, "cut into {cut}");
        assert_eq!(used(&bench, &ring).len(), frames.len());
        let stats = bench.counters.read();
        assert_eq!(stats.tx_packets, frames.len() as u64);
        assert_eq!(
            stats.tx_bytes,
            frames.iter().map(|f| f.len() as u64).sum::<u64>()
        );
    }
}

#[test]
fn refused_frames_are_counted_and_their_buffers_returned() {
    let bench = Bench::new();
    let ring = MockSplitQueue::new(&bench.memory, SIZE);
    let mut spoofed = udp(10);
    spoofed[29] ^= 1;
    let mut tagged = udp(10);
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    let frames = [
        spoofed,
        tagged,
        udp(10)[..20].to_vec(),
        udp(MTU - 19),
        udp(MTU - 20),
    ];
    bench.offer(&ring, &frames, 2000);
    let mut vring = Vring::over(ring.create_queue().unwrap());
    bench.transmit(&mut vring).unwrap();
    assert_eq!(bench.sent(), [udp(MTU - 20)]);
    assert_eq!(used(&bench, &ring).len(), 5);
    let stats = bench.counters.read();
    assert_eq!(stats.dropped_spoofed, 1);
    assert_eq!(stats.dropped_unsupported, 1);
    assert_eq!(stats.dropped_malformed, 2);
}

#[test]
fn a_full_network_loses_frames_but_never_blocks() {
    let bench = Bench::new();
    nix::sys::socket::setsockopt(&bench.ours, nix::sys::socket::sockopt::SndBuf, &4096).unwrap();
    let ring = MockSplitQueue::new(&bench.memory, SIZE);
    bench.offer(&ring, &vec![udp(1000); 64], 2000);
    let mut vring = Vring::over(ring.create_queue().unwrap());
    bench.transmit(&mut vring).unwrap();
    assert_eq!(used(&bench, &ring).len(), 64);
    let stats = bench.counters.read();
    assert!(stats.tx_failed > 0);
    assert_eq!(stats.tx_failed + stats.tx_packets, 64);
}

#[test]
fn a_packet_is_spread_over_mergeable_buffers() {
    let bench = Bench::new();
    let ring = MockSplitQueue::new(&bench.memory, SIZE);
    add_buffers(&ring, 0, 20, 128);
    let mut vring = Vring::over(ring.create_queue().unwrap());
    bench.arrive(&udp(300)).unwrap();
    bench.arrive(&udp(1)).unwrap();
    assert_eq!(bench.receive(&mut vring, true).unwrap(), (Turn::Done, true));
    // 12 + 34 + 300 bytes in three of 128; then 12 + 34 + 1 in one.
    assert_eq!(used(&bench, &ring), [(0, 128), (1, 128), (2, 90), (3, 47)]);
    let count: u16 = bench.memory.read_obj(GuestAddress(BUFFERS + 10)).unwrap();
    assert_eq!(count, 3);
    assert_eq!(
        vring.next_available(),
        4,
        "the other buffers are still the ring's"
    );
    assert_eq!(bench.counters.read().rx_bytes, 34 + 300 + 34 + 1);
}

#[test]
fn without_buffers_packets_wait_until_there_are_some() {
    let bench = Bench::new();
    let ring = MockSplitQueue::new(&bench.memory, SIZE);
    let mut queue: Queue = ring.create_queue().unwrap();
    queue.set_event_idx(true);
    let mut vring = Vring::over(queue);
    bench.arrive(&udp(300)).unwrap();
    assert_eq!(
        bench.receive(&mut vring, true).unwrap(),
        (Turn::Starved, false)
    );
    // Too few for the largest packet: they go back, and the guest is asked to
    // kick when it adds the next.
    add_buffers(&ring, 0, 3, 128);
    assert_eq!(
        bench.receive(&mut vring, true).unwrap(),
        (Turn::Starved, false)
    );
    assert_eq!(vring.next_available(), 0);
    let event_at = ring.used_addr().0 + 4 + 8 * u64::from(SIZE);
    let event: u16 = bench.memory.read_obj(GuestAddress(event_at)).unwrap();
    assert_eq!(event, 3);
    add_buffers(&ring, 3, 20, 128);
    bench.receive(&mut vring, true).unwrap();
    assert_eq!(used(&bench, &ring).len(), 3);
    assert_eq!(bench.counters.read().rx_packets, 1);
}

#[test]
fn a_packet_larger_than_the_guests_buffer_is_lost_alone() {
    let bench = Bench::new();
    let ring = MockSplitQueue::new(&bench.memory, SIZE);
    add_buffers(&ring, 0, 2, 128);
    let mut vring = Vring::over(ring.create_queue().unwrap());
    bench.arrive(&udp(300)).unwrap();
    bench.arrive(&udp(20)).unwrap();
    bench.receive(&mut vring, false).unwrap();
    assert_eq!(used(&bench, &ring), [(0, 66)]);
    let stats = bench.counters.read();
    assert_eq!((stats.rx_dropped, stats.rx_packets), (1, 1));
}

#[test]
fn a_guest_that_looks_itself_is_not_interrupted() {
    let bench = Bench::new();
    let ring = MockSplitQueue::new(&bench.memory, SIZE);
    add_buffers(&ring, 0, 20, 2048);
    bench.memory.write_obj(1_u16, ring.avail_addr()).unwrap();
    let mut vring = Vring::over(ring.create_queue().unwrap());
    bench.arrive(&udp(20)).unwrap();
    assert_eq!(
        bench.receive(&mut vring, true).unwrap(),
        (Turn::Done, false)
    );
    assert_eq!(used(&bench, &ring).len(), 1);
}

#[test]
fn an_impossible_ring_index_stops_the_ring() {
    let bench = Bench::new();
    let ring = MockSplitQueue::new(&bench.memory, SIZE);
    let mut vring = Vring::over(ring.create_queue().unwrap());
    ring.avail().idx().store(SIZE + 1);
    assert!(bench.transmit(&mut vring).is_err());
    assert!(bench.receive(&mut vring, true).is_err());
}

#[test]
fn a_ring_that_reaches_out_of_memory_is_not_touched() {
    let bench = Bench::new();
    let ring = MockSplitQueue::new(&bench.memory, SIZE);
    let mut queue: Queue = ring.create_queue().unwrap();
    // Flags and index are the last four bytes of memory, the heads are not.
    queue
        .try_set_avail_ring_address(GuestAddress(0x30_0000 - 4))
        .unwrap();
    let mut vring = Vring::over(queue);
    bench
        .memory
        .write_obj(1_u16, GuestAddress(0x30_0000 - 2))
        .unwrap();
    assert!(bench.transmit(&mut vring).is_err());
    assert!(bench.receive(&mut vring, true).is_err());
}

/// Descriptors as a hostile driver could write them: half of them plausible.
fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![BUFFERS..BUFFERS + 0x9_0000, any::<u64>(), 0_u64..0x2000];
    let len = prop_oneof![0_u32..3000, any::<u32>(), (0_u32..40).prop_map(|n| n * 16)];
    let flags = prop_oneof![
        prop::sample::select(vec![
            0,
            VRING_DESC_F_NEXT,
            VRING_DESC_F_WRITE,
            VRING_DESC_F_NEXT | VRING_DESC_F_WRITE,
            VRING_DESC_F_INDIRECT,
        ])
        .prop_map(|f| u16::try_from(f).unwrap()),
        any::<u16>(),
    ];
    (address, len, flags, prop_oneof![0..SIZE, any::<u16>()])
        .prop_map(|(address, len, flags, next)| Descriptor::new(address, len, flags, next))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a guest writes into its rings: no panic, no end-less turn, and
    /// nothing leaves that the filter would not have let pass.
    #[test]
    fn hostile_rings_do_no_harm(
        descriptors in prop::collection::vec(any_descriptor(), usize::from(SIZE)),
        heads in prop::collection::vec(prop_oneof![4 => 0..SIZE, 1 => any::<u16>()], usize::from(SIZE)),
        index in prop_oneof![4 => 0..=SIZE, 1 => any::<u16>()],
        content in prop::collection::vec(any::<u8>(), 0..4096),
        frame_at in prop::collection::vec(BUFFERS..BUFFERS + 0x9_0000, 0..8),
        event_idx: bool,
        mergeable: bool,
        transmit: bool,
    ) {
        let bench = Bench::new();
        let ring = MockSplitQueue::new(&bench.memory, SIZE);
        bench.memory.write_slice(&content, GuestAddress(BUFFERS)).unwrap();
        for at in frame_at {
            bench.memory.write_slice(&[&[0; HEADER_LEN][..], &udp(40)].concat(), GuestAddress(at)).unwrap();
        }
        for (i, descriptor) in (0..).zip(&descriptors) {
            ring.desc_table().store(i, (*descriptor).into()).unwrap();
        }
        for (i, head) in heads.iter().enumerate() {
            ring.avail().ring().ref_at(i).unwrap().store(*head);
        }
        ring.avail().idx().store(index);
        let mut queue: Queue = ring.create_queue().unwrap();
        queue.set_event_idx(event_idx);
        let mut vring = Vring::over(queue);
        if transmit {
            let _ = bench.transmit(&mut vring);
            for frame in bench.sent() {
                prop_assert!(filter().check(&frame).is_ok());
            }
        } else {
            for _ in 0..4 {
                bench.arrive(&udp(500)).unwrap();
            }
            let _ = bench.receive(&mut vring, mergeable);
        }
        prop_assert!(usize::from(vring.next_available()) <= usize::from(SIZE).max(BATCH));
    }
}
