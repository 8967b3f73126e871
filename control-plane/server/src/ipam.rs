//! Addresses of pods: one subnet a VPC, the lowest free address first.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use longship_proto::Failure;
use longship_proto::control::v1::Eni;

/// Length of every VPC's prefix, in bits.
pub(crate) const PREFIX_LENGTH: u32 = 16;
/// Largest IP packet, in bytes.
pub(crate) const MTU: u32 = 1500;

/// Subnets are 10.N.0.0/16; the VPC `default` has this N, others the next free.
const DEFAULT_SUBNET: u8 = 88;
/// The low 16 bits of the card's gateway in every subnet.
const GATEWAY: u16 = 1;
const WORDS: usize = 1 << (PREFIX_LENGTH - 6);

/// All subnets, and which of their addresses are taken.
#[derive(Debug, Default)]
pub(crate) struct Ipam {
    subnets: BTreeMap<String, Subnet>,
}

#[derive(Debug)]
struct Subnet {
    number: u8,
    /// One bit an address.
    taken: Vec<u64>,
    /// No word before this one has a free bit.
    first_free: usize,
}

impl Subnet {
    fn new(number: u8) -> Self {
        let mut subnet = Self {
            number,
            taken: vec![0; WORDS],
            first_free: 0,
        };
        // The network's and the broadcast address, and the gateway.
        for host in [0, GATEWAY, u16::MAX] {
            subnet.set(host, true);
        }
        subnet
    }

    /// Takes or frees an address; whether it was taken before.
    fn set(&mut self, host: u16, taken: bool) -> bool {
        let (word, bit) = (usize::from(host) / 64, 1_u64 << (host % 64));
        let Some(word_bits) = self.taken.get_mut(word) else {
            return true;
        };
        let before = *word_bits & bit != 0;
        if taken {
            *word_bits |= bit;
        } else {
            *word_bits &= !bit;
            self.first_free = self.first_free.min(word);
        }
        before
    }

    fn lowest_free(&mut self) -> Option<u16> {
        let words = self.taken.iter().enumerate().skip(self.first_free);
        let (at, word) = words.into_iter().find(|(_, word)| **word != u64::MAX)?;
        let host = at * 64 + usize::try_from(word.trailing_ones()).ok()?;
        self.first_free = at;
        u16::try_from(host).ok()
    }

    fn address(&self, host: u16) -> Ipv4Addr {
        let [high, low] = host.to_be_bytes();
        Ipv4Addr::new(10, self.number, high, low)
    }
}

impl Ipam {
    /// Puts back a subnet that was given to a VPC earlier.
    ///
    /// # Errors
    /// A sentence, where it contradicts another.
    pub(crate) fn adopt_subnet(&mut self, vpc: &str, number: u8) -> Result<(), String> {
        if self.subnets.values().any(|subnet| subnet.number == number) {
            return Err(format!("two VPCs have the subnet 10.{number}.0.0/16"));
        }
        self.subnets.insert(vpc.to_owned(), Subnet::new(number));
        Ok(())
    }

    /// Puts back an address that was given to a pod earlier.
    ///
    /// # Errors
    /// A sentence, where it is no address of the VPC, or taken.
    pub(crate) fn adopt(&mut self, vpc: &str, address: &str) -> Result<(), String> {
        let (subnet, host) = self.find(vpc, address)?;
        if subnet.set(host, true) {
            return Err(format!("the address {address} is taken twice"));
        }
        Ok(())
    }

    /// Sees to it that the VPC has a subnet: the number of a new one, to be
    /// remembered, or `None` where it has one.
    ///
    /// # Errors
    /// `EXHAUSTED` at `spec.vpc`.
    pub(crate) fn ensure_subnet(&mut self, vpc: &str) -> Result<Option<u8>, Failure> {
        if self.subnets.contains_key(vpc) {
            return Ok(None);
        }
        let free = |number: &u8| self.subnets.values().all(|subnet| subnet.number != *number);
        let number = if vpc == "default" {
            Some(DEFAULT_SUBNET)
        } else {
            (DEFAULT_SUBNET + 1..=u8::MAX).find(free)
        };
        let number = number.ok_or_else(|| Failure {
            field: "spec.vpc".into(),
            ..Failure::exhausted(format!(
                "no subnet is left for the VPC `{vpc}`: {} have one",
                self.subnets.len()
            ))
        })?;
        self.subnets.insert(vpc.to_owned(), Subnet::new(number));
        Ok(Some(number))
    }

    /// Takes the lowest free address of the VPC; `None` where it has none left.
    pub(crate) fn allocate(&mut self, vpc: &str) -> Option<Eni> {
        let subnet = self.subnets.get_mut(vpc)?;
        let host = subnet.lowest_free()?;
        subnet.set(host, true);
        let address = subnet.address(host);
        Some(Eni {
            vpc: vpc.to_owned(),
            address: address.to_string(),
            prefix_length: PREFIX_LENGTH,
            gateway: subnet.address(GATEWAY).to_string(),
            mac: mac(address),
            mtu: MTU,
        })
    }

    /// Gives an address back. One that nobody has is passed over.
    pub(crate) fn release(&mut self, vpc: &str, address: &str) {
        if let Ok((subnet, host)) = self.find(vpc, address)
            && ![0, GATEWAY, u16::MAX].contains(&host)
        {
            subnet.set(host, false);
        }
    }

    fn find(&mut self, vpc: &str, address: &str) -> Result<(&mut Subnet, u16), String> {
        let no = || format!("`{address}` is no address of the VPC `{vpc}`");
        let subnet = self.subnets.get_mut(vpc).ok_or_else(no)?;
        let parsed: Ipv4Addr = address.parse().map_err(|_| no())?;
        let [ten, number, high, low] = parsed.octets();
        if (ten, number) != (10, subnet.number) {
            return Err(no());
        }
        Ok((subnet, u16::from_be_bytes([high, low])))
    }
}

#[cfg(test)]
impl Ipam {
    /// Every address that is taken, for comparison.
    pub(crate) fn all_taken(&self) -> Vec<Ipv4Addr> {
        let hosts = |subnet: &Subnet| {
            let taken = |host: &u16| {
                let (word, bit) = (usize::from(*host) / 64, 1_u64 << (host % 64));
                subnet.taken[word] & bit != 0
            };
            let taken = (0..=u16::MAX).filter(taken);
            taken.map(|host| subnet.address(host)).collect::<Vec<_>>()
        };
        self.subnets.values().flat_map(hosts).collect()
    }
}

/// A locally administered MAC with the address in it: unique where addresses are.
fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ipam(vpcs: &[&str]) -> Ipam {
        let mut ipam = Ipam::default();
        for vpc in vpcs {
            ipam.ensure_subnet(vpc).unwrap();
        }
        ipam
    }

    #[test]
    fn the_lowest_free_address_comes_first_and_is_used_again() {
        let mut ipam = ipam(&["default", "blue"]);
        let first = ipam.allocate("default").unwrap();
        assert_eq!(first.address, "10.88.0.2");
        assert_eq!(first.mac, "02:00:0a:58:00:02");
        assert_eq!((first.gateway.as_str(), first.mtu), ("10.88.0.1", 1500));
        assert_eq!(ipam.allocate("default").unwrap().address, "10.88.0.3");
        assert_eq!(ipam.allocate("blue").unwrap().address, "10.89.0.2");
        ipam.release("default", "10.88.0.2");
        assert_eq!(ipam.allocate("default").unwrap().address, "10.88.0.2");
        assert_eq!(ipam.allocate("default").unwrap().address, "10.88.0.4");
    }

    #[test]
    fn a_subnet_gives_all_its_addresses_once_and_then_none() {
        let mut ipam = ipam(&["default"]);
        let mut seen = BTreeSet::new();
        while let Some(eni) = ipam.allocate("default") {
            assert!(seen.insert(eni.address));
        }
        assert_eq!(seen.len(), (1 << 16) - 3);
        for reserved in ["10.88.0.0", "10.88.0.1", "10.88.255.255"] {
            assert!(!seen.contains(reserved));
            ipam.release("default", reserved);
        }
        assert!(ipam.allocate("default").is_none());
        ipam.release("default", "10.88.77.1");
        assert_eq!(ipam.allocate("default").unwrap().address, "10.88.77.1");
    }

    #[test]
    fn when_no_subnet_is_left_the_field_is_named() {
        let mut ipam = ipam(&["default"]);
        for n in 0..167 {
            assert!(ipam.ensure_subnet(&format!("vpc-{n}")).unwrap().is_some());
        }
        assert_eq!(ipam.ensure_subnet("vpc-3"), Ok(None));
        let refused = ipam.ensure_subnet("one-more").unwrap_err();
        assert_eq!(refused.field, "spec.vpc");
    }

    #[test]
    fn what_contradicts_is_not_taken_over() {
        let mut ipam = ipam(&["default"]);
        assert!(ipam.adopt_subnet("other", 88).is_err());
        assert!(ipam.adopt("default", "10.88.1.1").is_ok());
        for address in ["10.88.1.1", "10.89.1.1", "11.88.1.2", "x", "10.88.0.1"] {
            assert!(ipam.adopt("default", address).is_err(), "{address}");
        }
    }

    proptest! {
        #[test]
        fn no_address_is_held_twice(steps in prop::collection::vec((any::<bool>(), 0_usize..50), 0..300)) {
            let mut ipam = ipam(&["default"]);
            let mut held: Vec<String> = Vec::new();
            for (allocate, at) in steps {
                if allocate {
                    let eni = ipam.allocate("default").unwrap();
                    prop_assert!(!held.contains(&eni.address));
                    let lower = held.iter().filter(|a| {
                        a.parse::<Ipv4Addr>().unwrap() < eni.address.parse::<Ipv4Addr>().unwrap()
                    });
                    // Everything below it is taken: the network, the gateway, and these.
                    let [.., high, low] = eni.address.parse::<Ipv4Addr>().unwrap().octets();
                    prop_assert_eq!(lower.count() + 2, usize::from(high) * 256 + usize::from(low));
                    held.push(eni.address);
                } else if at < held.len() {
                    ipam.release("default", &held.swap_remove(at));
                }
            }
        }
    }
}
