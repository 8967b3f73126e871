//! The few requests of rtnetlink(7) that a pod needs.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::failed::{Doing, Failed};

/// Message types (linux/rtnetlink.h, linux/netlink.h).
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;

/// Flags of a request: REQUEST, ACK, and for what is made REPLACE, CREATE.
const CHANGE: u16 = 0x1 | 0x4;
const MAKE: u16 = CHANGE | 0x100 | 0x400;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: the card sees to it, and it takes a second.
const IFA_F_NODAD: u8 = 2;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
/// The gateway is on this link, whatever the routes say.
const RTNH_F_ONLINK: u32 = 4;

const HEADER: usize = 16;

/// What an interface becomes; it is brought up in any case.
pub(super) struct Link<'a> {
    pub(super) index: u32,
    pub(super) name: Option<&'a str>,
    /// Bytes.
    pub(super) mtu: Option<u32>,
}

/// A default route.
pub(super) struct Route {
    pub(super) index: u32,
    pub(super) gateway: IpAddr,
    /// The gateway is outside of the interface's own network.
    pub(super) on_link: bool,
    /// Lower is preferred.
    pub(super) metric: u32,
}

/// A connection to the kernel's routing.
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// # Errors
    /// The kernel's.
    pub(super) fn open() -> Result<Self, Failed> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .doing(|| "open a netlink socket")?;
        Ok(Self { fd, sequence: 0 })
    }

    /// # Errors
    /// The kernel's.
    pub(super) fn set_link(&mut self, link: &Link<'_>) -> Result<(), Failed> {
        let what = || format!("set up interface {}", link.index);
        self.ask(RTM_NEWLINK, CHANGE, &link_message(link))
            .doing(what)
    }

    /// # Errors
    /// The kernel's.
    pub(super) fn add_address(
        &mut self,
        index: u32,
        address: IpAddr,
        prefix_length: u8,
    ) -> Result<(), Failed> {
        let message = address_message(index, address, prefix_length);
        self.ask(RTM_NEWADDR, MAKE, &message)
            .doing(|| format!("give {address}/{prefix_length} to interface {index}"))
    }

    /// # Errors
    /// The kernel's.
    pub(super) fn add_default_route(&mut self, route: &Route) -> Result<(), Failed> {
        self.ask(RTM_NEWROUTE, MAKE, &route_message(route))
            .doing(|| format!("route everything through {}", route.gateway))
    }

    /// Sends one request and waits for the kernel's answer to it.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = framed(kind, flags, self.sequence, body)?;
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        loop {
            let got = match recv(self.fd.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let answer = answer.get(..got).unwrap_or_default();
            if let Some(outcome) = acknowledged(answer, self.sequence) {
                return outcome;
            }
        }
    }
}

/// `struct nlmsghdr` before the body.
fn framed(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Result<Vec<u8>, Errno> {
    let len = u32::try_from(HEADER + body.len()).map_err(|_| Errno::EMSGSIZE)?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    // The kernel fills in the port.
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    Ok(message)
}

/// The outcome in an answer, where it is the answer to request `sequence`.
fn acknowledged(answer: &[u8], sequence: u32) -> Option<Result<(), Errno>> {
    let word = |at: usize| {
        answer
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(u32::from_ne_bytes)
    };
    let kind = answer.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    if kind != NLMSG_ERROR || word(8)? != sequence {
        return None;
    }
    let code = answer.get(HEADER..HEADER + 4)?.try_into().ok()?;
    Some(match i32::from_ne_bytes(code) {
        0 => Ok(()),
        code => Err(Errno::from_raw(code.wrapping_neg())),
    })
}

/// `struct ifinfomsg` and its attributes.
fn link_message(link: &Link<'_>) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(link.index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    // Which flags change.
    body.extend(IFF_UP.to_ne_bytes());
    if let Some(name) = link.name {
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        attribute(&mut body, IFLA_IFNAME, &text);
    }
    if let Some(mtu) = link.mtu {
        attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
    }
    body
}

/// `struct ifaddrmsg` and its attributes.
fn address_message(index: u32, address: IpAddr, prefix_length: u8) -> Vec<u8> {
    let (family, bytes) = family_and_bytes(address);
    let mut body = vec![family, prefix_length, IFA_F_NODAD, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &bytes);
    attribute(&mut body, IFA_ADDRESS, &bytes);
    body
}

/// `struct rtmsg` and its attributes.
fn route_message(route: &Route) -> Vec<u8> {
    let (family, gateway) = family_and_bytes(route.gateway);
    let flags = if route.on_link { RTNH_F_ONLINK } else { 0 };
    let mut body = vec![
        family,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        0,
        RTN_UNICAST,
    ];
    body.extend(flags.to_ne_bytes());
    attribute(&mut body, RTA_GATEWAY, &gateway);
    attribute(&mut body, RTA_OIF, &route.index.to_ne_bytes());
    attribute(&mut body, RTA_PRIORITY, &route.metric.to_ne_bytes());
    body
}

fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        // AF_INET and AF_INET6.
        IpAddr::V4(v4) => (2, v4.octets().to_vec()),
        IpAddr::V6(v6) => (10, v6.octets().to_vec()),
    }
}

/// `struct rtattr`, padded to four bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // No value here is over 16 bytes.
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(len.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The attributes behind a fixed part of `fixed` bytes.
    fn attributes(mut rest: &[u8], fixed: usize) -> Vec<(u16, Vec<u8>)> {
        rest = &rest[fixed..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let len = usize::from(u16::from_ne_bytes(rest[..2].try_into().unwrap()));
            let kind = u16::from_ne_bytes(rest[2..4].try_into().unwrap());
            found.push((kind, rest[4..len].to_vec()));
            rest = &rest[len.next_multiple_of(4)..];
        }
        found
    }

    #[test]
    fn the_kernel_accepts_a_request_and_refuses_a_wrong_one() {
        let mut socket = Socket::open().unwrap();
        let missing = Link {
            index: 0x7fff_fff0,
            name: None,
            mtu: None,
        };
        let refused = socket.set_link(&missing).unwrap_err();
        assert!(
            [Some(libc::ENODEV), Some(libc::EPERM)].contains(&refused.errno()),
            "{refused}"
        );
    }

    #[test]
    fn answers_to_other_requests_are_passed_over() {
        let answer =
            |sequence, code: i32| framed(NLMSG_ERROR, 0, sequence, &code.to_ne_bytes()).unwrap();
        assert_eq!(acknowledged(&answer(7, 0), 7), Some(Ok(())));
        assert_eq!(acknowledged(&answer(7, -17), 7), Some(Err(Errno::EEXIST)));
        assert_eq!(acknowledged(&answer(6, 0), 7), None);
    }

    proptest! {
        #[test]
        fn messages_hold_what_was_put_in(
            index: u32, name in "[a-z0-9]{1,15}", mtu: u32, bits: u128, metric: u32, on_link: bool,
        ) {
            let body = link_message(&Link { index, name: Some(&name), mtu: Some(mtu) });
            let zero_ended = [name.as_bytes(), &[0]].concat();
            prop_assert_eq!(&body[4..8], &index.to_ne_bytes());
            prop_assert_eq!(attributes(&body, 16), [
                (IFLA_IFNAME, zero_ended), (IFLA_MTU, mtu.to_ne_bytes().to_vec()),
            ]);
            let gateway = IpAddr::V6(bits.into());
            let body = route_message(&Route { index, gateway, on_link, metric });
            prop_assert_eq!(attributes(&body, 12), [
                (RTA_GATEWAY, bits.to_be_bytes().to_vec()),
                (RTA_OIF, index.to_ne_bytes().to_vec()),
                (RTA_PRIORITY, metric.to_ne_bytes().to_vec()),
            ]);
        }

        #[test]
        fn random_answers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), n: u32) {
            let _ = acknowledged(&bytes, n);
        }
    }
}
