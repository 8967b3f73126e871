//! A vhost-user-net device: what it offers, and its TAP.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;

use super::filter::SourceFilter;
use super::receive::Receiver;
use super::stats::Counters;
use super::transmit::Transmitter;
use super::{BrokenRing, Memory, Turn};
use crate::EniSpec;
use crate::tap::{Offloads, Tap};

/// Packets that are thrown away at most when the guest's abilities change: more
/// than the TAP's queue holds.
const DRAIN: usize = 4096;

/// Features of the device type and the rings, by their bits.
const FEATURES: [u32; 13] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
];

/// An ENI's device. It outlives its frontends.
#[derive(Debug)]
pub(crate) struct Device {
    tap: Tap,
    offloads: Offloads,
    filter: SourceFilter,
    mtu: u16,
    config: [u8; 12],
    counters: Arc<Counters>,
}

/// What a turn of a ring has come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnEnd {
    pub(crate) turn: Turn,
    /// The guest wants to be called.
    pub(crate) call: bool,
}

impl Device {
    /// The device of `spec` on its TAP.
    pub(crate) fn new(spec: &EniSpec, tap: Tap, counters: Arc<Counters>) -> Self {
        Self {
            tap,
            offloads: Offloads::default(),
            filter: SourceFilter::new(spec.mac, spec.address),
            mtu: spec.mtu,
            config: config(spec),
            counters,
        }
    }

    /// Name of its TAP.
    pub(crate) fn name(&self) -> &str {
        self.tap.name()
    }

    /// Readable when a packet waits for the guest.
    pub(crate) fn packets(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }

    /// What it offers, with the bit of vhost-user itself.
    pub(crate) fn features() -> u64 {
        let own = FEATURES.iter().fold(0, |all, bit| all | 1 << bit);
        own | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// The configuration space.
    pub(crate) fn config(&self) -> &[u8] {
        &self.config
    }

    /// The driver has accepted these features. Has the kernel do what this guest
    /// cannot, and forgets packets that wait in a form that another could take.
    pub(crate) fn accept(&mut self, features: u64) -> io::Result<()> {
        let offloads = Offloads {
            checksum: has(features, VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(features, VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(features, VIRTIO_NET_F_GUEST_TSO6),
        };
        if offloads != self.offloads {
            self.tap.set_offloads(offloads)?;
            self.tap.drain(DRAIN);
            self.offloads = offloads;
        }
        Ok(())
    }

    /// Gives packets to the guest.
    pub(crate) fn receive(
        &self,
        queue: &mut Queue,
        memory: &Memory,
        features: u64,
    ) -> Result<TurnEnd, BrokenRing> {
        let receiver = Receiver {
            tap: self.tap.as_fd(),
            mtu: self.mtu.into(),
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            segmented: self.offloads.segments(),
            counters: &self.counters,
        };
        receiver.run(queue, memory)
    }

    /// Takes packets from the guest.
    pub(crate) fn transmit(
        &self,
        queue: &mut Queue,
        memory: &Memory,
    ) -> Result<TurnEnd, BrokenRing> {
        let transmitter = Transmitter {
            tap: self.tap.as_fd(),
            filter: self.filter,
            mtu: self.mtu.into(),
            counters: &self.counters,
        };
        transmitter.run(queue, memory)
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// virtio 1.2 §5.1.4: mac, status, max_virtqueue_pairs, mtu.
fn config(spec: &EniSpec) -> [u8; 12] {
    let mut config = [0; 12];
    let (mac, rest) = config.split_at_mut(6);
    mac.copy_from_slice(&spec.mac.octets());
    let link_up = u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or(1);
    for (field, value) in rest.chunks_exact_mut(2).zip([link_up, 1, spec.mtu]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    config
}
