//! A vhost-user-net device: what it offers, and its TAP.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use longship_vhost_user::{Device, RingError, SharedMemory, Vring};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::Error;

use super::Turn;
use super::filter::SourceFilter;
use super::receive::Receiver;
use super::stats::Counters;
use super::transmit::Transmitter;
use crate::EniSpec;
use crate::tap::{Offloads, Tap};

/// Packets that are thrown away at most when the guest's abilities change: more
/// than the TAP's queue holds.
const DRAIN: usize = 4096;

/// Its rings (virtio 1.2 §5.1.2).
const RINGS: usize = 2;
const RECEIVE: usize = 0;

/// Features of the device type, by their bits.
const FEATURES: [u32; 10] = [
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
];

/// An ENI's device. It outlives its frontends.
#[derive(Debug)]
pub(crate) struct NetDevice {
    tap: Tap,
    offloads: Offloads,
    /// VIRTIO_NET_F_MRG_RXBUF was accepted.
    mergeable: bool,
    /// Packets may wait, but only a kick of the guest goes on.
    starved: bool,
    filter: SourceFilter,
    mtu: u16,
    config: [u8; 12],
    counters: Arc<Counters>,
}

impl NetDevice {
    /// The device of `spec` on its TAP.
    pub(crate) fn new(spec: &EniSpec, tap: Tap, counters: Arc<Counters>) -> Self {
        Self {
            tap,
            offloads: Offloads::default(),
            mergeable: false,
            starved: false,
            filter: SourceFilter::new(spec.mac, spec.address),
            mtu: spec.mtu,
            config: config(spec),
            counters,
        }
    }

    /// Gives packets to the guest.
    fn receive(&self, ring: &mut Vring, memory: &SharedMemory) -> Result<Turn, Error> {
        let receiver = Receiver {
            tap: self.tap.as_fd(),
            mtu: self.mtu.into(),
            mergeable: self.mergeable,
            segmented: self.offloads.segments(),
            counters: &self.counters,
        };
        receiver.run(ring, memory)
    }

    /// Takes packets from the guest.
    fn transmit(&self, ring: &mut Vring, memory: &SharedMemory) -> Result<Turn, Error> {
        let transmitter = Transmitter {
            tap: self.tap.as_fd(),
            filter: self.filter,
            mtu: self.mtu.into(),
            counters: &self.counters,
        };
        transmitter.run(ring, memory)
    }

    fn turn(&mut self, index: usize, ring: &mut Vring, memory: &SharedMemory) -> Result<(), Error> {
        let turn = if index == RECEIVE {
            let turn = self.receive(ring, memory)?;
            self.starved = turn == Turn::Starved;
            turn
        } else {
            self.transmit(ring, memory)?
        };
        ring.notify(memory)?;
        if turn == Turn::More {
            ring.defer();
        }
        Ok(())
    }
}

impl Device for NetDevice {
    const NAME: &'static str = "eni";

    fn queue_count(&self) -> usize {
        RINGS
    }

    fn features(&self) -> u64 {
        FEATURES.iter().fold(0, |all, bit| all | 1 << bit)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// Has the kernel do what this guest cannot, and forgets packets that wait
    /// in a form that another could take.
    fn negotiated(&mut self, features: u64) -> io::Result<()> {
        self.mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
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

    fn process(
        &mut self,
        index: usize,
        rings: &mut [Vring],
        memory: &SharedMemory,
    ) -> Result<(), RingError> {
        let Some(ring) = rings.get_mut(index) else {
            return Ok(());
        };
        self.turn(index, ring, memory).map_err(|source| RingError {
            ring: index,
            source,
        })
    }

    /// The TAP, unless its packets would find no place: it would be readable
    /// all the time.
    fn wake_up(&self, rings: &[Vring]) -> Option<BorrowedFd<'_>> {
        let running = rings.get(RECEIVE).is_some_and(Vring::is_running);
        (running && !self.starved).then(|| self.tap.as_fd())
    }

    fn woken(&mut self, rings: &mut [Vring], _memory: &SharedMemory) -> Result<(), RingError> {
        if let Some(ring) = rings.get_mut(RECEIVE) {
            ring.defer();
        }
        Ok(())
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
