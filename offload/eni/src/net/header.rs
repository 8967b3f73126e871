//! The virtio-net header before every frame (virtio 1.2 §5.1.6).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4,
};

use super::filter::Refusal;

/// Length in bytes: with VIRTIO_F_VERSION_1 `num_buffers` is always there.
pub(crate) const HEADER_LEN: usize = 12;

/// Where `num_buffers` is.
pub(super) const NUM_BUFFERS_OFFSET: usize = 10;

/// The header of a frame that the guest sends, as the kernel is to see it.
///
/// A guest could have the kernel write a checksum, after the filter has looked,
/// over the addresses that it has looked at. So a checksum may only be asked
/// for behind `transport`, where the IP header ends, and for nothing but IP.
pub(super) fn sanitise(
    given: [u8; HEADER_LEN],
    transport: Option<usize>,
    frame_len: usize,
) -> Result<[u8; HEADER_LEN], Refusal> {
    let [
        flags,
        gso_type,
        ..,
        start_low,
        start_high,
        offset_low,
        offset_high,
        _,
        _,
    ] = given;
    let mut header = [0; HEADER_LEN];
    let needs_checksum = u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    if needs_checksum {
        let start = usize::from(u16::from_le_bytes([start_low, start_high]));
        let offset = usize::from(u16::from_le_bytes([offset_low, offset_high]));
        let within = start + offset + 2 <= frame_len;
        if !within || transport.is_none_or(|t| start < t) {
            return Err(Refusal::Malformed);
        }
        header[0] = 1;
        header[6..10].copy_from_slice(&given[6..10]);
    }
    match u32::from(gso_type) & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => {}
        VIRTIO_NET_HDR_GSO_TCPV4 if needs_checksum => {
            // gso_type, hdr_len, gso_size: only the kernel can tell whether
            // they make sense, and it does.
            header[1..6].copy_from_slice(&given[1..6]);
        }
        _ => return Err(Refusal::Malformed),
    }
    Ok(header)
}

/// Whether a header of ours lets the frame be larger than the MTU.
pub(super) fn is_segmented(header: &[u8; HEADER_LEN]) -> bool {
    header[1] != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(flags: u8, gso: u8, start: u16, offset: u16) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = flags;
        bytes[1] = gso;
        bytes[2..4].copy_from_slice(&54_u16.to_le_bytes());
        bytes[4..6].copy_from_slice(&1460_u16.to_le_bytes());
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        bytes[10] = 9;
        bytes
    }

    #[test]
    fn a_segment_of_tcp_passes_without_its_buffer_count() {
        let mut expected = header(1, 1, 34, 16);
        expected[10] = 0;
        assert_eq!(sanitise(header(1, 1, 34, 16), Some(34), 9000), Ok(expected));
        assert!(is_segmented(&expected));
    }

    #[test]
    fn flags_of_the_other_direction_are_cleared() {
        assert_eq!(sanitise(header(0xfe, 0, 0, 0), Some(34), 60), Ok([0; 12]));
    }

    proptest! {
        /// The checksum lands behind the IP header and inside the frame, or
        /// nowhere.
        #[test]
        fn no_checksum_is_written_over_what_was_checked(
            bytes: [u8; HEADER_LEN],
            transport in prop::option::of(34_usize..74),
            frame_len in 34_usize..70_000,
        ) {
            if let Ok(clean) = sanitise(bytes, transport, frame_len) {
                prop_assert!(clean[0] <= 1);
                prop_assert_eq!(&clean[10..], &[0, 0]);
                let start = usize::from(u16::from_le_bytes([clean[6], clean[7]]));
                let offset = usize::from(u16::from_le_bytes([clean[8], clean[9]]));
                if clean[0] == 1 {
                    prop_assert!(start >= transport.unwrap());
                    prop_assert!(start + offset + 2 <= frame_len);
                } else {
                    prop_assert_eq!(clean, [0; HEADER_LEN]);
                }
            }
        }
    }
}
