//! Which frames of a guest may leave it.

use std::net::Ipv4Addr;

use super::ETHERNET_LEN;
use crate::MacAddress;

/// How much of a frame the filter looks at, in bytes.
pub(super) const LOOKED_AT: usize = ARP_LEN;

/// Ethernet and ARP over Ethernet and IPv4 (RFC 826).
const ARP_LEN: usize = ETHERNET_LEN + 28;
/// Ethernet and an IPv4 header without options.
const IPV4_LEN: usize = ETHERNET_LEN + 20;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Hardware type Ethernet, protocol IPv4, and the lengths of their addresses.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];

/// Why a frame of the guest is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its source is not the guest.
    Spoofed,
    /// Neither IPv4 nor ARP, or addressed to bridges.
    Unsupported,
    /// Not a whole frame of its type.
    Malformed,
}

/// Lets a guest speak for itself only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceFilter {
    mac: [u8; 6],
    address: [u8; 4],
}

impl SourceFilter {
    /// The filter of the guest with this MAC and this address.
    pub(crate) fn new(mac: MacAddress, address: Ipv4Addr) -> Self {
        Self {
            mac: mac.octets(),
            address: address.octets(),
        }
    }

    /// Judges a frame by its first [`LOOKED_AT`] bytes, or all where it has
    /// fewer. Of a frame that may pass, tells where the header of IPv4 ends.
    ///
    /// IPv4 and ARP with the guest's own MAC and address pass, and ARP probes,
    /// which ask for an address before using it (RFC 5227). VLAN tags, IPv6,
    /// 802.3 lengths (so spanning tree) and all else are no such EtherTypes.
    pub(super) fn check(&self, start: &[u8]) -> Result<Option<usize>, Refusal> {
        let (ethernet, payload) = start
            .split_first_chunk::<ETHERNET_LEN>()
            .ok_or(Refusal::Malformed)?;
        let [to @ .., _, _, _, _, _, _, _, _] = ethernet;
        let from = &ethernet[6..12];
        if from != self.mac {
            return Err(Refusal::Spoofed);
        }
        // 802.1Q table 8-1: bridges keep these to themselves.
        if matches!(to, [0x01, 0x80, 0xc2, 0, 0, last] if last & 0xf0 == 0) {
            return Err(Refusal::Unsupported);
        }
        match [ethernet[12], ethernet[13]] {
            ETHERTYPE_IPV4 => self.check_ipv4(payload).map(Some),
            ETHERTYPE_ARP => self.check_arp(payload).map(|()| None),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn check_ipv4(&self, payload: &[u8]) -> Result<usize, Refusal> {
        let header = payload
            .first_chunk::<{ IPV4_LEN - ETHERNET_LEN }>()
            .ok_or(Refusal::Malformed)?;
        let words = usize::from(header[0] & 0x0f);
        if header[0] >> 4 != 4 || words < 5 {
            return Err(Refusal::Malformed);
        }
        if header[12..16] != self.address {
            return Err(Refusal::Spoofed);
        }
        Ok(ETHERNET_LEN + words * 4)
    }

    fn check_arp(&self, payload: &[u8]) -> Result<(), Refusal> {
        let packet = payload
            .first_chunk::<{ ARP_LEN - ETHERNET_LEN }>()
            .ok_or(Refusal::Malformed)?;
        if packet[..6] != ARP_ETHERNET_IPV4 {
            return Err(Refusal::Malformed);
        }
        let (operation, sender_mac, sender) = (&packet[6..8], &packet[8..14], &packet[14..18]);
        let probe = sender == [0; 4] && operation == ARP_REQUEST;
        if sender_mac == self.mac && (sender == self.address || probe) {
            Ok(())
        } else {
            Err(Refusal::Spoofed)
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::net) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
    pub(in crate::net) const ADDRESS: [u8; 4] = [10, 1, 0, 2];

    pub(in crate::net) fn filter() -> SourceFilter {
        SourceFilter::new(MacAddress::new(MAC), ADDRESS.into())
    }

    /// An IPv4 frame of the guest with that many bytes behind the header.
    pub(in crate::net) fn ipv4(payload: usize) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(MAC);
        frame.extend(ETHERTYPE_IPV4);
        frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend(ADDRESS);
        frame.extend([10, 1, 0, 1]);
        frame.extend((0..payload).map(|i| u8::try_from(i % 251).unwrap()));
        frame
    }

    pub(in crate::net) fn arp(operation: u8, mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(MAC);
        frame.extend(ETHERTYPE_ARP);
        frame.extend(ARP_ETHERNET_IPV4);
        frame.extend([0, operation]);
        frame.extend(mac);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend([10, 1, 0, 1]);
        frame
    }

    /// Says the same as the filter, in the words of the rules.
    fn allowed(frame: &[u8]) -> bool {
        let at = |from: usize, len: usize| frame.get(from..from + len);
        let to_bridges = at(0, 5) == Some(&[1, 0x80, 0xc2, 0, 0]) && frame[5] < 16;
        let own = at(6, 6) == Some(&MAC) && !to_bridges;
        let ipv4 = at(12, 2) == Some(&[8, 0])
            && frame.len() >= 34
            && frame[14] >= 0x45
            && frame[14] <= 0x4f
            && at(26, 4) == Some(&ADDRESS);
        let arp = at(12, 8) == Some(&[8, 6, 0, 1, 8, 0, 6, 4])
            && frame.len() >= 42
            && at(22, 6) == Some(&MAC)
            && (at(28, 4) == Some(&ADDRESS)
                || (at(28, 4) == Some(&[0; 4]) && at(20, 2) == Some(&[0, 1])));
        own && (ipv4 || arp)
    }

    proptest! {
        #[test]
        fn random_frames_pass_only_by_the_rules(
            frame in prop::collection::vec(any::<u8>(), 0..LOOKED_AT + 8),
        ) {
            prop_assert_eq!(filter().check(&frame).is_ok(), allowed(&frame));
        }

        /// Frames close to right ones, where a slip of the filter would show.
        #[test]
        fn damaged_frames_pass_only_by_the_rules(
            base in prop::sample::select(vec![
                ipv4(16), arp(1, MAC, ADDRESS), arp(2, MAC, ADDRESS), arp(1, MAC, [0; 4]),
            ]),
            changes in prop::collection::vec((0_usize..42, any::<u8>()), 0..4),
            cut in 0_usize..60,
        ) {
            let mut frame = base;
            for (at, value) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(cut);
            prop_assert_eq!(filter().check(&frame).is_ok(), allowed(&frame));
        }
    }

    #[test]
    fn the_guests_own_frames_pass() {
        assert_eq!(filter().check(&ipv4(0)), Ok(Some(34)));
        assert_eq!(filter().check(&arp(1, MAC, ADDRESS)), Ok(None));
        assert_eq!(filter().check(&arp(2, MAC, ADDRESS)), Ok(None));
        assert_eq!(filter().check(&arp(1, MAC, [0; 4])), Ok(None));
        let mut options = ipv4(8);
        options[14] = 0x47;
        assert_eq!(filter().check(&options), Ok(Some(42)));
    }

    #[test]
    fn other_sources_are_spoofed() {
        let mut mac = ipv4(0);
        mac[11] ^= 1;
        let mut address = ipv4(0);
        address[29] ^= 1;
        let other = [2, 0, 0, 0, 0, 3];
        for frame in [
            mac,
            address,
            arp(1, other, ADDRESS),
            arp(2, MAC, [10, 1, 0, 1]),
            arp(2, MAC, [0; 4]),
        ] {
            assert_eq!(filter().check(&frame), Err(Refusal::Spoofed));
        }
    }

    #[test]
    fn other_types_and_cut_frames_are_refused() {
        for ethertype in [
            [0x86, 0xdd],
            [0x81, 0x00],
            [0x88, 0xa8],
            [0x00, 0x26],
            [0x88, 0xcc],
        ] {
            let mut frame = ipv4(20);
            frame[12..14].copy_from_slice(&ethertype);
            assert_eq!(filter().check(&frame), Err(Refusal::Unsupported));
        }
        let mut to_bridges = ipv4(0);
        to_bridges[..6].copy_from_slice(&[0x01, 0x80, 0xc2, 0, 0, 0x0e]);
        assert_eq!(filter().check(&to_bridges), Err(Refusal::Unsupported));
        assert_eq!(filter().check(&ipv4(0)[..33]), Err(Refusal::Malformed));
        assert_eq!(
            filter().check(&arp(1, MAC, ADDRESS)[..41]),
            Err(Refusal::Malformed)
        );
        assert_eq!(filter().check(&[]), Err(Refusal::Malformed));
    }
}
