//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header").
//!
//! Records are cut by their length: values of extended attributes are binary and
//! may hold newlines.

use std::collections::BTreeMap;

use super::archive::TarError;
use crate::tree::Time;

/// What is used of an entry's extended header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarError> {
        let mut pax = Self::default();
        // Some writers pad with zeros.
        while !bytes.is_empty() && bytes.iter().any(|&byte| byte != 0) {
            let (record, rest) = cut_record(bytes).ok_or(TarError::Pax)?;
            bytes = rest;
            let separator = record.iter().position(|&byte| byte == b'=');
            let (key, value) = record.split_at(separator.ok_or(TarError::Pax)?);
            pax.take(key, value.get(1..).unwrap_or_default())?;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        // An empty value takes an earlier one back.
        let given = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = given.map(<[u8]>::to_vec),
            b"linkpath" => self.link = given.map(<[u8]>::to_vec),
            b"size" => self.size = given.map(number).transpose()?,
            b"uid" => self.uid = given.map(number).transpose()?,
            b"gid" => self.gid = given.map(number).transpose()?,
            b"mtime" => self.mtime = given.map(time).transpose()?,
            _ if key.starts_with(b"GNU.sparse.") => return Err(TarError::Sparse),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

/// Cuts `LEN KEY=VALUE\n`, where LEN counts all of it; gives `KEY=VALUE`.
fn cut_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length = number(bytes.get(..space)?).ok()?;
    let length = usize::try_from(length).ok()?;
    let record = bytes.get(space + 1..length)?;
    Some((record.strip_suffix(b"\n")?, bytes.get(length..)?))
}

fn number(text: &[u8]) -> Result<u64, TarError> {
    let text = std::str::from_utf8(text).map_err(|_| TarError::Pax)?;
    text.parse().map_err(|_| TarError::Pax)
}

/// Seconds with an optional fraction, of which nanoseconds are kept.
fn time(text: &[u8]) -> Result<Time, TarError> {
    let text = std::str::from_utf8(text).map_err(|_| TarError::Pax)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| TarError::Pax)?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(TarError::Pax);
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| TarError::Pax)?;
    // Before 1970 the fraction counts down from the whole seconds.
    if whole.starts_with('-') && nanoseconds > 0 {
        let seconds = seconds.checked_sub(1).ok_or(TarError::Pax)?;
        return Ok(Time {
            seconds,
            nanoseconds: 1_000_000_000 - nanoseconds,
        });
    }
    Ok(Time {
        seconds,
        nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with its length in front, which counts itself.
    fn record(text: &[u8]) -> Vec<u8> {
        let mut length = text.len() + 2;
        while length != text.len() + 2 + length.to_string().len() {
            length = text.len() + 2 + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", text, b"\n"].concat()
    }

    #[test]
    fn values_may_hold_newlines_and_equal_signs() {
        let xattr = record(b"SCHILY.xattr.user.a=b=\n\n\0c");
        let pax = Pax::parse(&[xattr, record(b"path=x/y\xff")].concat()).unwrap();
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"b=\n\n\0c");
        assert_eq!(pax.path.unwrap(), b"x/y\xff");
    }

    #[test]
    fn times_keep_nanoseconds_also_before_1970() {
        let of = |text: &[u8]| time(text).map(|t| (t.seconds, t.nanoseconds)).unwrap();
        assert_eq!(of(b"12"), (12, 0));
        assert_eq!(of(b"12.5"), (12, 500_000_000));
        assert_eq!(of(b"1.0000000019"), (1, 1));
        assert_eq!(of(b"-1.25"), (-2, 750_000_000));
        assert!(time(b"1.x").is_err() && time(b"").is_err());
    }

    #[test]
    fn broken_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"9 a=b\n",
            b"6 a=bc\n",
            b"4 a\n\n",
            b"99999999999999999999 a=b\n",
            b"0 a=b\n",
            b"11 size=-1\n",
        ] {
            assert!(Pax::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
