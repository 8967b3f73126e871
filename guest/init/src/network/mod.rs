//! The pod's interfaces, and the files in a container's /etc that speak of them.

mod files;
mod netlink;

pub(crate) use files::etc_files;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use longship_framed::error::Failure;

use crate::disks::look_for;
use crate::failed::{Doing, Failed};
use crate::mounts::sysctl;
use crate::spec::{Interface, MacAddress};
use netlink::{Link, Route, Socket};

/// Index that the loopback interface has in every network namespace.
const LOOPBACK: u32 = 1;

/// An interface together with the device that it is.
pub(crate) struct Found<'a> {
    interface: &'a Interface,
    index: u32,
}

/// Brings the loopback interface up.
///
/// # Errors
/// The kernel's.
pub(crate) fn loopback_up() -> Result<(), Failed> {
    Socket::open()?.set_link(&Link {
        index: LOOPBACK,
        name: None,
        mtu: None,
    })
}

/// Lets every process use low ports and `ping`: whoever is in the pod is the
/// pod's owner.
///
/// # Errors
/// The kernel's.
pub(crate) fn relax() -> Result<(), Failed> {
    sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
    sysctl("net/ipv4/ping_group_range", "0 2147483647")
}

/// Finds the device of each interface; changes nothing.
///
/// # Errors
/// Not found, at the interface that is missing.
pub(crate) fn find(interfaces: &[Interface]) -> Result<Vec<Found<'_>>, Failure> {
    let find_one = |(i, interface): (usize, &'_ Interface)| {
        look_for(|| index_in(Path::new("/sys/class/net"), interface.mac)).ok_or_else(|| {
            let text = format!("no interface has the address {}", interface.mac);
            let mut failure = Failure::not_found(text);
            failure.field = format!("interfaces[{i}].mac");
            failure
        })
    };
    let mut found = Vec::new();
    for (i, interface) in interfaces.iter().enumerate() {
        let index = find_one((i, interface))?;
        found.push(Found { interface, index });
    }
    Ok(found)
}

/// Names the devices, brings them up, and gives them addresses and routes.
/// Repeating it is harmless.
///
/// # Errors
/// The kernel's.
pub(crate) fn configure(found: &[Found<'_>]) -> Result<(), Failed> {
    ignore_router_advertisements()?;
    let mut socket = Socket::open()?;
    for (order, Found { interface, index }) in found.iter().enumerate() {
        socket.set_link(&Link {
            index: *index,
            name: Some(&interface.name),
            mtu: interface.mtu,
        })?;
        socket.add_address(*index, interface.address, interface.prefix_length)?;
        if let Some(gateway) = interface.gateway {
            let near = same_network(interface.address, gateway, interface.prefix_length);
            socket.add_default_route(&Route {
                index: *index,
                gateway,
                on_link: !near,
                // Of several default routes the first interface's wins.
                metric: u32::try_from(order).unwrap_or(u32::MAX),
            })?;
        }
    }
    Ok(())
}

/// Addresses and routes come from the card, not from whoever speaks up on the
/// link. For those devices that are there, and those that will be.
fn ignore_router_advertisements() -> Result<(), Failed> {
    let what = || "list the interfaces' IPv6 settings";
    for device in fs::read_dir("/proc/sys/net/ipv6/conf").doing(what)? {
        let path = device.doing(what)?.path().join("accept_ra");
        fs::write(&path, "0").doing(|| format!("write 0 to {}", path.display()))?;
    }
    Ok(())
}

/// Index of the interface under `sys_net` with this hardware address.
fn index_in(sys_net: &Path, mac: MacAddress) -> Option<u32> {
    let devices = fs::read_dir(sys_net).ok()?;
    devices.flatten().find_map(|device| {
        let address = fs::read_to_string(device.path().join("address")).ok()?;
        if address.trim().parse() != Ok(mac) {
            return None;
        }
        let index = fs::read_to_string(device.path().join("ifindex")).ok()?;
        index.trim().parse().ok()
    })
}

/// Whether two addresses share their first `prefix_length` bits.
fn same_network(one: IpAddr, other: IpAddr, prefix_length: u8) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32_u32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((one, width), (other, other_width)) = (bits(one), bits(other));
    let host_bits = width.saturating_sub(u32::from(prefix_length));
    let network = |n: u128| n.checked_shr(host_bits).unwrap_or(0);
    width == other_width && network(one) == network(other)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_interface_is_found_by_its_hardware_address() {
        let sys = tempfile::tempdir().unwrap();
        for (name, mac, index) in [
            ("lo", "00:00:00:00:00:00", "1"),
            ("eth7", "02:00:00:00:00:0a", "3"),
        ] {
            let dir = sys.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("address"), format!("{mac}\n")).unwrap();
            fs::write(dir.join("ifindex"), format!("{index}\n")).unwrap();
        }
        let mac = "02:00:00:00:00:0A".parse().unwrap();
        assert_eq!(index_in(sys.path(), mac), Some(3));
        assert_eq!(
            index_in(sys.path(), "02:00:00:00:00:0b".parse().unwrap()),
            None
        );
    }

    #[test]
    fn networks_are_compared_by_their_prefix() {
        let same = |a: &str, b: &str, n| same_network(a.parse().unwrap(), b.parse().unwrap(), n);
        assert!(same("10.0.0.2", "10.0.0.1", 24));
        assert!(!same("10.0.0.2", "169.254.1.1", 32));
        assert!(same("10.0.0.2", "11.0.0.2", 0));
        assert!(same("fd00::2", "fd00::1", 64));
        assert!(!same("fd00::2", "10.0.0.1", 0));
    }

    proptest! {
        #[test]
        fn every_address_is_in_its_own_network(bits: u128, length in 0_u8..=128) {
            let address = IpAddr::V6(bits.into());
            prop_assert!(same_network(address, address, length));
        }
    }
}
