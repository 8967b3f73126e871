//! What an ENI is to be, and whether it can be.

use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::{EniError, MacAddress};

/// Smallest MTU in bytes: what every IPv4 host must be able to receive (RFC 791).
const MIN_MTU: u16 = 576;
/// Largest MTU of a TAP in bytes: 65,535 without the Ethernet header.
const MAX_MTU: u16 = 65_521;
/// Longest path of a UNIX socket in bytes (unix(7): `sun_path` with its final 0).
const MAX_SOCKET_PATH: usize = 107;
/// Longest name of an ENI or a VPC in bytes.
const MAX_NAME: usize = 128;

/// An ENI as the control plane assigned it, and the socket of its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniSpec {
    /// Names the ENI on this card: 1 to 128 characters of `[A-Za-z0-9._-]`.
    pub id: String,
    /// The VPC; characters as in `id`.
    pub vpc: String,
    /// The guest's MAC, unique in its VPC.
    pub mac: MacAddress,
    /// The guest's address, unique in its VPC.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix in bits, 1 to 30. All ENIs of a VPC on one
    /// card have the same prefix and gateway.
    pub prefix_length: u8,
    /// The card's own address in that subnet.
    pub gateway: Ipv4Addr,
    /// Largest IP packet in bytes, 576 to 65,521.
    pub mtu: u16,
    /// UNIX socket on which the backend will listen; its folder exists.
    pub socket: PathBuf,
}

impl EniSpec {
    /// Checks all that can be checked without looking at other ENIs.
    pub(crate) fn validate(&self) -> Result<(), EniError> {
        check_name("id", &self.id)?;
        check_name("vpc", &self.vpc)?;
        if !self.mac.is_unicast() {
            return refused("mac", format!("{} names no single station", self.mac));
        }
        if self.mac == self.gateway_mac() {
            return refused("mac", format!("{} is the gateway's", self.mac));
        }
        if !(1..=30).contains(&self.prefix_length) {
            let message = format!("{} is not within 1 to 30", self.prefix_length);
            return refused("prefix_length", message);
        }
        check_host("gateway", self.gateway, self.prefix_length)?;
        check_host("address", self.address, self.prefix_length)?;
        if network(self.address, self.prefix_length) != network(self.gateway, self.prefix_length) {
            let subnet = network(self.gateway, self.prefix_length);
            let message = format!(
                "{} is not in {subnet}/{}, where the gateway is",
                self.address, self.prefix_length
            );
            return refused("address", message);
        }
        if self.address == self.gateway {
            return refused("address", format!("{} is the gateway's", self.address));
        }
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            let message = format!("{} is not within {MIN_MTU} to {MAX_MTU}", self.mtu);
            return refused("mtu", message);
        }
        self.check_socket()
    }

    fn check_socket(&self) -> Result<(), EniError> {
        let shown = self.socket.display();
        let bytes = self.socket.as_os_str().as_bytes();
        if !self.socket.is_absolute() || self.socket.file_name().is_none() || bytes.contains(&0) {
            return refused("socket", format!("`{shown}` is no absolute path of a file"));
        }
        if bytes.len() > MAX_SOCKET_PATH {
            let message = format!("{shown} is longer than {MAX_SOCKET_PATH} bytes");
            return refused("socket", message);
        }
        if !self.socket.parent().is_some_and(std::path::Path::is_dir) {
            return refused("socket", format!("the folder of {shown} does not exist"));
        }
        Ok(())
    }

    /// MAC of the VPC's bridge: locally administered, made of the address, so
    /// that guests' neighbour tables stay right when a card starts anew.
    pub(crate) fn gateway_mac(&self) -> MacAddress {
        let [a, b, c, d] = self.gateway.octets();
        MacAddress::new([0x0e, 0x67, a, b, c, d])
    }

    /// Name of the TAP: unique in the VPC's namespace, as the MAC is, and just
    /// as long as the kernel allows.
    pub(crate) fn tap_name(&self) -> String {
        let [a, b, c, d, e, f] = self.mac.octets();
        format!("eni{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}")
    }
}

fn refused<T>(field: &'static str, message: String) -> Result<T, EniError> {
    Err(EniError::Invalid { field, message })
}

fn check_name(field: &'static str, name: &str) -> Result<(), EniError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        let message = format!("{name:?} is not 1 to {MAX_NAME} characters of [A-Za-z0-9._-]");
        return refused(field, message);
    }
    Ok(())
}

/// The address's subnet; `prefix` is at most 32.
fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

/// An address that a host may have in its subnet.
fn check_host(field: &'static str, address: Ipv4Addr, prefix: u8) -> Result<(), EniError> {
    let host_bits = address.to_bits() ^ network(address, prefix).to_bits();
    let all_ones = !network(Ipv4Addr::BROADCAST, prefix).to_bits();
    let never_a_host = address.octets()[0] == 0
        || address.is_loopback()
        || address.is_multicast()
        || address.octets()[0] >= 240;
    if never_a_host || host_bits == 0 || host_bits == all_ones {
        return refused(field, format!("{address}/{prefix} is no address of a host"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A specification that is right.
    pub(crate) fn valid() -> EniSpec {
        EniSpec {
            id: "pod-1".into(),
            vpc: "blue".into(),
            mac: MacAddress::new([2, 0, 0, 0, 0, 2]),
            address: Ipv4Addr::new(10, 1, 0, 2),
            prefix_length: 24,
            gateway: Ipv4Addr::new(10, 1, 0, 1),
            mtu: 1500,
            socket: "/tmp/eni.sock".into(),
        }
    }

    #[test]
    fn a_right_specification_passes() {
        valid().validate().unwrap();
        assert_eq!(valid().tap_name(), "eni020000000002");
        assert_eq!(valid().gateway_mac().to_string(), "0e:67:0a:01:00:01");
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Change = fn(&mut EniSpec);
        let wrong: [(&str, Change); 22] = [
            ("id", |s| s.id.clear()),
            ("id", |s| s.id = "a/b".into()),
            ("id", |s| s.id = "x".repeat(129)),
            ("vpc", |s| s.vpc = "b l".into()),
            ("mac", |s| s.mac = MacAddress::new([0xff; 6])),
            ("mac", |s| s.mac = s.gateway_mac()),
            ("prefix_length", |s| s.prefix_length = 0),
            ("prefix_length", |s| s.prefix_length = 31),
            ("prefix_length", |s| s.prefix_length = 255),
            ("gateway", |s| s.gateway = Ipv4Addr::new(10, 1, 0, 0)),
            ("gateway", |s| s.gateway = Ipv4Addr::new(127, 0, 0, 1)),
            ("address", |s| s.address = Ipv4Addr::new(10, 1, 0, 255)),
            ("address", |s| s.address = Ipv4Addr::new(10, 1, 0, 0)),
            ("address", |s| s.address = Ipv4Addr::new(10, 1, 1, 2)),
            ("address", |s| s.address = Ipv4Addr::new(224, 0, 0, 5)),
            ("address", |s| s.address = s.gateway),
            ("mtu", |s| s.mtu = 575),
            ("mtu", |s| s.mtu = 65_522),
            ("socket", |s| s.socket = "eni.sock".into()),
            ("socket", |s| s.socket = "/".into()),
            ("socket", |s| s.socket = "/no/such/folder/eni.sock".into()),
            ("socket", |s| {
                s.socket = format!("/tmp/{}", "x".repeat(103)).into();
            }),
        ];
        for (field, change) in wrong {
            let mut spec = valid();
            change(&mut spec);
            match spec.validate() {
                Err(EniError::Invalid { field: named, .. }) => assert_eq!(named, field, "{spec:?}"),
                other => panic!("{spec:?}: {other:?}"),
            }
        }
    }
}
