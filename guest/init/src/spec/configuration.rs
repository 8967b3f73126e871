//! The pod's own settings: name, network, clock, entropy, disks.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use longship_framed::error::Failure;
use longship_framed::guest;

use super::serial;

/// Longest host name that Linux keeps, in bytes.
const MAX_HOSTNAME: usize = 64;
/// Longest name of a network interface, in bytes (`IFNAMSIZ` without its end).
const MAX_INTERFACE_NAME: usize = 15;
/// Bytes of entropy that a guest is given.
const ENTROPY_BYTES: usize = 32;
/// Most interfaces, name servers or search domains of a pod.
const MAX_LIST: usize = 32;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MacAddress([u8; 6]);

impl FromStr for MacAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(())?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        parts.next().map_or(Ok(Self(bytes)), |_| Err(()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// One network interface: which it is, and what it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) mac: MacAddress,
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) prefix_length: u8,
    /// Default route.
    pub(crate) gateway: Option<IpAddr>,
    /// Bytes; none: the driver's own.
    pub(crate) mtu: Option<u32>,
}

/// A checked [`guest::Configure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configuration {
    pub(crate) hostname: String,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) nameservers: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
    /// Since the Unix epoch.
    pub(crate) time: Duration,
    pub(crate) entropy: [u8; ENTROPY_BYTES],
    pub(crate) machine_id: String,
    /// None: a tmpfs.
    pub(crate) scratch_serial: Option<String>,
}

impl Configuration {
    /// Whether `other` asks for the same pod: all but the clock and the entropy,
    /// which are new each time that the card asks.
    pub(crate) fn same_pod(&self, other: &Self) -> bool {
        let at_same_time = Self {
            time: self.time,
            entropy: self.entropy,
            ..other.clone()
        };
        *self == at_same_time
    }
}

impl TryFrom<guest::Configure> for Configuration {
    type Error = Failure;

    fn try_from(asked: guest::Configure) -> Result<Self, Failure> {
        short_list("interfaces", asked.interfaces.len())?;
        short_list("nameservers", asked.nameservers.len())?;
        short_list("search", asked.search.len())?;
        let mut names = BTreeSet::new();
        let mut macs = BTreeSet::new();
        let mut interfaces = Vec::new();
        for (i, interface) in asked.interfaces.into_iter().enumerate() {
            let at = format!("interfaces[{i}]");
            let checked = checked_interface(&at, interface)?;
            if !names.insert(checked.name.clone()) {
                let text = format!("{:?} is already the name of another", checked.name);
                return Err(Failure::invalid(format!("{at}.name"), text));
            }
            if !macs.insert(checked.mac) {
                let text = format!("{} is already the address of another", checked.mac);
                return Err(Failure::invalid(format!("{at}.mac"), text));
            }
            interfaces.push(checked);
        }
        let mut nameservers = Vec::new();
        for (i, server) in asked.nameservers.iter().enumerate() {
            nameservers.push(ip(&format!("nameservers[{i}]"), server)?);
        }
        for (i, domain) in asked.search.iter().enumerate() {
            domain_name(&format!("search[{i}]"), domain.trim_end_matches('.'), 253)?;
        }
        domain_name("hostname", &asked.hostname, MAX_HOSTNAME)?;
        let time = u64::try_from(asked.time_us).ok().filter(|us| *us > 0);
        let time = time.map(Duration::from_micros).ok_or_else(|| {
            let text = format!("{} is not after 1970", asked.time_us);
            Failure::invalid("time_us", text)
        })?;
        let entropy = asked.entropy.as_slice().try_into().map_err(|_| {
            let text = format!("{} bytes instead of {ENTROPY_BYTES}", asked.entropy.len());
            Failure::invalid("entropy", text)
        })?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if asked.machine_id.len() != 32 || !asked.machine_id.bytes().all(hex) {
            let text = format!("{:?} is not 32 lower-case hex digits", asked.machine_id);
            return Err(Failure::invalid("machine_id", text));
        }
        let scratch_serial = match asked.scratch_serial.as_str() {
            "" => None,
            text => Some(serial("scratch_serial", text)?),
        };
        Ok(Self {
            hostname: asked.hostname,
            interfaces,
            nameservers,
            search: asked.search,
            time,
            entropy,
            machine_id: asked.machine_id,
            scratch_serial,
        })
    }
}

fn checked_interface(at: &str, asked: guest::Interface) -> Result<Interface, Failure> {
    let field = |name: &str| format!("{at}.{name}");
    let mac = asked.mac.parse().map_err(|()| {
        let text = format!("{:?} is no hardware address: aa:bb:cc:dd:ee:ff", asked.mac);
        Failure::invalid(field("mac"), text)
    })?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let fits = !asked.name.is_empty() && asked.name.len() <= MAX_INTERFACE_NAME;
    // `all` and `default` are directories of /proc/sys/net, not interfaces.
    let reserved = [".", "..", "lo", "all", "default"].contains(&asked.name.as_str());
    if !fits || reserved || !asked.name.bytes().all(plain) {
        let text = format!("{:?} is no name for an interface", asked.name);
        return Err(Failure::invalid(field("name"), text));
    }
    let address = ip(&field("address"), &asked.address)?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix_length = u8::try_from(asked.prefix_length)
        .ok()
        .filter(|length| *length <= bits)
        .ok_or_else(|| {
            let text = format!("{} is over {bits}", asked.prefix_length);
            Failure::invalid(field("prefix_length"), text)
        })?;
    let gateway = match asked.gateway.as_str() {
        "" => None,
        text => Some(ip(&field("gateway"), text)?),
    };
    if gateway.is_some_and(|gateway| gateway.is_ipv4() != address.is_ipv4()) {
        let text = format!("{} is of another family than {address}", asked.gateway);
        return Err(Failure::invalid(field("gateway"), text));
    }
    let least = if address.is_ipv4() { 68 } else { 1280 };
    let mtu = match asked.mtu {
        0 => None,
        mtu if (least..=65_535).contains(&mtu) => Some(mtu),
        mtu => {
            let text = format!("{mtu} is not within {least} to 65535");
            return Err(Failure::invalid(field("mtu"), text));
        }
    };
    Ok(Interface {
        mac,
        name: asked.name,
        address,
        prefix_length,
        gateway,
        mtu,
    })
}

fn short_list(field: &str, len: usize) -> Result<(), Failure> {
    if len <= MAX_LIST {
        return Ok(());
    }
    let text = format!("{len} entries, at most {MAX_LIST}");
    Err(Failure::invalid(field, text))
}

fn ip(field: &str, text: &str) -> Result<IpAddr, Failure> {
    text.parse()
        .map_err(|_| Failure::invalid(field, format!("{text:?} is no IP address")))
}

/// A name of dot-separated labels (RFC 1123, 2.1), `_` allowed as in SRV names.
fn domain_name(field: &str, text: &str, limit: usize) -> Result<(), Failure> {
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= limit && text.split('.').all(label) {
        return Ok(());
    }
    let text = format!("{text:?} is no name of at most {limit} characters");
    Err(Failure::invalid(field, text))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn good() -> guest::Configure {
        guest::Configure {
            hostname: "web-0".into(),
            interfaces: vec![guest::Interface {
                mac: "02:00:00:00:00:01".into(),
                name: "eth0".into(),
                address: "10.0.0.2".into(),
                prefix_length: 24,
                gateway: "10.0.0.1".into(),
                mtu: 1450,
            }],
            nameservers: vec!["10.0.0.1".into()],
            search: vec!["svc.local".into()],
            time_us: 1,
            entropy: vec![7; 32],
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            scratch_serial: "scratch".into(),
        }
    }

    #[test]
    fn a_good_message_passes_with_its_values() {
        let checked = Configuration::try_from(good()).unwrap();
        assert_eq!(checked.interfaces[0].mac.to_string(), "02:00:00:00:00:01");
        assert_eq!(checked.interfaces[0].mtu, Some(1450));
        assert_eq!(checked.scratch_serial.as_deref(), Some("scratch"));
    }

    #[test]
    fn every_wrong_field_is_named() {
        type Spoil = fn(&mut guest::Configure);
        let cases: [(&str, Spoil); 17] = [
            ("hostname", |c| c.hostname = "a b".into()),
            ("hostname", |c| c.hostname = String::new()),
            ("interfaces[0].mac", |c| {
                c.interfaces[0].mac = "02:00:00:00:00".into()
            }),
            ("interfaces[0].mac", |c| {
                c.interfaces[0].mac = "02:00:00:00:00:+1".into()
            }),
            ("interfaces[0].name", |c| {
                c.interfaces[0].name = "../x".into()
            }),
            ("interfaces[0].name", |c| c.interfaces[0].name = "lo".into()),
            ("interfaces[0].address", |c| {
                c.interfaces[0].address = "10.0.0".into()
            }),
            ("interfaces[0].prefix_length", |c| {
                c.interfaces[0].prefix_length = 33
            }),
            ("interfaces[0].gateway", |c| {
                c.interfaces[0].gateway = "fe80::1".into()
            }),
            ("interfaces[0].mtu", |c| c.interfaces[0].mtu = 67),
            ("interfaces[1].name", |c| {
                c.interfaces.push(c.interfaces[0].clone())
            }),
            ("nameservers[1]", |c| c.nameservers.push("dns".into())),
            ("search[0]", |c| {
                c.search[0] = "a\nnameserver 1.1.1.1".into()
            }),
            ("time_us", |c| c.time_us = 0),
            ("entropy", |c| c.entropy.truncate(31)),
            ("machine_id", |c| {
                c.machine_id = "0123456789ABCDEF0123456789ABCDEF".into()
            }),
            ("scratch_serial", |c| c.scratch_serial = "a/b".into()),
        ];
        for (field, spoil) in cases {
            let mut message = good();
            spoil(&mut message);
            assert_eq!(Configuration::try_from(message).unwrap_err().field, field);
        }
    }

    #[test]
    fn the_same_pod_may_be_asked_for_again_at_another_time() {
        let first = Configuration::try_from(good()).unwrap();
        let mut again = good();
        again.time_us = 99;
        again.entropy = vec![8; 32];
        assert!(first.same_pod(&Configuration::try_from(again.clone()).unwrap()));
        again.hostname = "other".into();
        assert!(!first.same_pod(&Configuration::try_from(again).unwrap()));
    }

    proptest! {
        #[test]
        fn hardware_addresses_survive_being_printed(bytes: [u8; 6]) {
            let mac = MacAddress(bytes);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
        }

        #[test]
        fn a_hardware_address_is_never_read_from_other_text(text in "[0-9a-f:+ ]{0,20}") {
            if let Ok(mac) = text.parse::<MacAddress>() {
                prop_assert_eq!(mac.to_string(), text);
            }
        }

        #[test]
        fn no_text_that_passes_can_start_a_second_line(
            hostname in ".{0,70}", search in "(?s).{0,30}",
        ) {
            let message = guest::Configure { hostname, search: vec![search], ..good() };
            if let Ok(checked) = Configuration::try_from(message) {
                let lines = format!("{}{}", checked.hostname, checked.search.concat());
                prop_assert!(!lines.contains(|c: char| c.is_control() || c.is_whitespace()));
            }
        }
    }
}
