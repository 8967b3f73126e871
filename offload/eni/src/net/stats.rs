//! What an ENI has moved and what it has refused.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the ENI was prepared. Directions are the guest's; bytes are
/// those of frames from the first of the Ethernet header, without checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EniStats {
    /// Frames given to the guest. One that the network stack has merged
    /// (TSO, GRO) counts as one.
    pub rx_packets: u64,
    /// Bytes given to the guest.
    pub rx_bytes: u64,
    /// Frames lost on the way to the guest: too large for its buffers.
    pub rx_dropped: u64,
    /// Frames taken from the guest and sent.
    pub tx_packets: u64,
    /// Bytes taken from the guest and sent.
    pub tx_bytes: u64,
    /// Frames of the guest with another source than its own MAC or address.
    pub dropped_spoofed: u64,
    /// Frames of the guest that are neither IPv4 nor ARP, or are addressed to
    /// bridges (802.1D).
    pub dropped_unsupported: u64,
    /// Frames of the guest that are no frames: too short, too long, bad headers.
    pub dropped_malformed: u64,
    /// Frames of the guest that the kernel refused.
    pub tx_failed: u64,
}

/// [`EniStats`] that count on.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(super) rx_packets: AtomicU64,
    pub(super) rx_bytes: AtomicU64,
    pub(super) rx_dropped: AtomicU64,
    pub(super) tx_packets: AtomicU64,
    pub(super) tx_bytes: AtomicU64,
    pub(super) dropped_spoofed: AtomicU64,
    pub(super) dropped_unsupported: AtomicU64,
    pub(super) dropped_malformed: AtomicU64,
    pub(super) tx_failed: AtomicU64,
}

/// Adds to a counter. The figures are not ordered among each other.
pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl Counters {
    /// The figures now.
    pub(crate) fn read(&self) -> EniStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EniStats {
            rx_packets: of(&self.rx_packets),
            rx_bytes: of(&self.rx_bytes),
            rx_dropped: of(&self.rx_dropped),
            tx_packets: of(&self.tx_packets),
            tx_bytes: of(&self.tx_bytes),
            dropped_spoofed: of(&self.dropped_spoofed),
            dropped_unsupported: of(&self.dropped_unsupported),
            dropped_malformed: of(&self.dropped_malformed),
            tx_failed: of(&self.tx_failed),
        }
    }
}
