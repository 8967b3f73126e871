//! What is known of each type of device before its backend has said a word.

use longship_framed::vmm;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET, VIRTIO_ID_VSOCK};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Features of the rings: the backend's and the driver's affair alone.
const RING: &[u32] = &[
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
];
/// Without multiple queues, without a control queue.
const NET: &[u32] = &[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
];
/// Of these, the ones that say that a field of the configuration holds.
const NET_IN_CONFIG: &[u32] = &[VIRTIO_NET_F_MTU, VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS];
/// Without multiple queues, without a configuration that the driver writes.
const BLOCK: &[u32] = &[
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
];
/// Stream (whose absence means the same), seqpacket (virtio 1.2, 5.10.3).
const VSOCK: &[u32] = &[0, 1];

/// A type of device that can be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceType {
    Net,
    Block,
    Vsock,
}

impl DeviceType {
    /// The type by its number on the wire.
    pub(crate) fn from_wire(kind: i32) -> Option<Self> {
        match vmm::DeviceType::try_from(kind).ok()? {
            vmm::DeviceType::Unspecified => None,
            vmm::DeviceType::Net => Some(Self::Net),
            vmm::DeviceType::Block => Some(Self::Block),
            vmm::DeviceType::Vsock => Some(Self::Vsock),
        }
    }

    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "blk",
            Self::Vsock => "vsock",
        }
    }

    /// Virtio device type (virtio 1.2, 5).
    pub(crate) fn id(self) -> u16 {
        let id = match self {
            Self::Net => VIRTIO_ID_NET,
            Self::Block => VIRTIO_ID_BLOCK,
            Self::Vsock => VIRTIO_ID_VSOCK,
        };
        u16::try_from(id).unwrap_or(0)
    }

    /// PCI class: ethernet, mass storage, other communication.
    pub(crate) fn class(self) -> [u8; 3] {
        match self {
            Self::Net => [0x02, 0x00, 0x00],
            Self::Block => [0x01, 0x00, 0x00],
            Self::Vsock => [0x07, 0x80, 0x00],
        }
    }

    /// Largest size of each queue that the driver sees. Net: receive, transmit.
    /// Blk: requests. Vsock: receive, transmit, events.
    ///
    /// No larger than is of use: drivers have a buffer or a request ready for each
    /// descriptor, in memory of the guest and in its DMA window, busy or idle.
    pub(crate) fn queue_sizes(self) -> Vec<u16> {
        match self {
            Self::Net => vec![128, 128],
            Self::Block => vec![64],
            Self::Vsock => vec![32, 64, 8],
        }
    }

    /// Queues that a backend must serve. Of a vsock's, the last one tells of a
    /// migration, which does not happen: not every backend knows it.
    pub(crate) fn served_queues(self) -> u16 {
        match self {
            Self::Net | Self::Vsock => 2,
            Self::Block => 1,
        }
    }

    /// Bytes of configuration that are read from the backend: all fields whose
    /// features may be offered.
    pub(crate) fn config_len(self) -> u32 {
        match self {
            Self::Net => 12,
            Self::Block => 60,
            Self::Vsock => 8,
        }
    }

    /// Whether the device is of use without its configuration.
    pub(crate) fn needs_config(self) -> bool {
        !matches!(self, Self::Net)
    }

    /// The features that may be offered, where the configuration was read or not.
    pub(crate) fn features(self, with_config: bool) -> u64 {
        let own = match self {
            Self::Net => NET,
            Self::Block => BLOCK,
            Self::Vsock => VSOCK,
        };
        let all = bits(RING) | bits(own);
        match self {
            Self::Net if !with_config => all & !bits(NET_IN_CONFIG),
            _ => all,
        }
    }
}

fn bits(features: &[u32]) -> u64 {
    features.iter().fold(0, |bits, bit| bits | 1 << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_offered_that_needs_more_queues_or_an_iommu() {
        for kind in [DeviceType::Net, DeviceType::Block, DeviceType::Vsock] {
            let offered = kind.features(true);
            assert_ne!(offered & 1 << 32, 0);
            // Protocol features, access platform, packed rings, ring reset.
            for bit in [30, 33, 34, 38, 40] {
                assert_eq!(offered & 1 << bit, 0, "{kind:?} {bit}");
            }
        }
        // Control queue, multiple queues.
        assert_eq!(DeviceType::Net.features(true) & (1 << 17 | 1 << 22), 0);
        assert_eq!(DeviceType::Block.features(true) & 1 << 12, 0);
        assert_eq!(DeviceType::Net.features(false) & 1 << 5, 0);
    }

    #[test]
    fn types_of_the_wire() {
        assert_eq!(DeviceType::from_wire(2), Some(DeviceType::Block));
        assert_eq!(DeviceType::from_wire(0), None);
        assert_eq!(DeviceType::from_wire(99), None);
    }
}
