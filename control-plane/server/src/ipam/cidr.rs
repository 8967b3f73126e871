//! IPv4 prefixes that a network can have.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The widest and the narrowest prefix, in bits.
const LENGTHS: std::ops::RangeInclusive<u8> = 8..=28;
/// RFC 1918 and RFC 6598.
const PRIVATE: [Cidr; 4] = [
    Cidr::new([10, 0, 0, 0], 8),
    Cidr::new([172, 16, 0, 0], 12),
    Cidr::new([192, 168, 0, 0], 16),
    Cidr::new([100, 64, 0, 0], 10),
];

/// A private IPv4 prefix, /8 to /28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cidr {
    first: u32,
    length: u8,
}

impl Cidr {
    const fn new(octets: [u8; 4], length: u8) -> Self {
        Self {
            first: u32::from_be_bytes(octets),
            length,
        }
    }

    /// `10.N.0.0/16`.
    pub(crate) const fn ten(n: u8) -> Self {
        Self::new([10, n, 0, 0], 16)
    }

    /// Length of the prefix, in bits.
    pub(crate) fn length(self) -> u32 {
        u32::from(self.length)
    }

    /// How many addresses it has.
    pub(crate) fn size(self) -> u32 {
        1 << (32 - self.length())
    }

    /// The address with that number in it.
    pub(crate) fn address(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first | number)
    }

    /// The number of an address in it.
    pub(crate) fn number(self, address: Ipv4Addr) -> Option<u32> {
        let number = address.to_bits() ^ self.first;
        (number < self.size()).then_some(number)
    }

    /// Whether all of the other is in it.
    pub(crate) fn contains(self, other: Self) -> bool {
        self.length <= other.length && self.number(other.address(0)).is_some()
    }

    /// Whether some address is in both.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(0), self.length)
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// # Errors
    /// A sentence that says what is wrong with it.
    fn from_str(text: &str) -> Result<Self, String> {
        let shown = || {
            text.chars()
                .take(40)
                .collect::<String>()
                .escape_debug()
                .to_string()
        };
        let no = || format!("`{}` is no prefix like `10.20.0.0/16`", shown());
        let (address, length) = text.split_once('/').ok_or_else(no)?;
        let address: Ipv4Addr = address.parse().map_err(|_| no())?;
        let digits = length.len() <= 2 && length.bytes().all(|byte| byte.is_ascii_digit());
        let length: u8 = digits
            .then(|| length.parse().ok())
            .flatten()
            .ok_or_else(no)?;
        if !LENGTHS.contains(&length) {
            return Err(format!("/{length} is not within /8 to /28"));
        }
        let cidr = Self {
            first: address.to_bits(),
            length,
        };
        let begins = Self {
            first: address.to_bits() & !(cidr.size() - 1),
            length,
        };
        if begins != cidr {
            return Err(format!(
                "{text} does not begin its prefix: that is {begins}"
            ));
        }
        if !PRIVATE.iter().any(|range| range.contains(cidr)) {
            let ranges = PRIVATE.map(|range| range.to_string()).join(", ");
            return Err(format!("{cidr} is not private: in none of {ranges}"));
        }
        Ok(cidr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_prefixes_that_begin_where_they_say_are_taken() {
        for good in [
            "10.0.0.0/8",
            "10.88.0.0/16",
            "172.16.4.0/22",
            "192.168.1.16/28",
            "100.64.0.0/10",
        ] {
            assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/7",
            "10.0.0.0/29",
            "10.0.0.0/08x",
            "10.0.0.1/16",
            "8.8.0.0/16",
            "172.0.0.0/8",
            "192.168.0.0/8",
            "fd00::/8",
            "10.0.0/16",
            "010.0.0.0/8",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_in_what() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let (wide, narrow) = (cidr("10.1.0.0/16"), cidr("10.1.2.0/24"));
        assert!(wide.contains(narrow) && !narrow.contains(wide) && wide.contains(wide));
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
        assert!(!narrow.overlaps(cidr("10.1.3.0/24")));
        assert_eq!(narrow.number("10.1.2.7".parse().unwrap()), Some(7));
        assert_eq!(narrow.number("10.1.3.7".parse().unwrap()), None);
    }
}
