//! How a state is laid out in its file: a header, a body, a checksum, all in little
//! endian.
//!
//! ```text
//! 0   "LSHPSNAP"
//! 8   version       u32
//! 12  zero          u32
//! 16  total length  u64, with header and checksum
//! 24  body
//! …   CRC-64 of all before
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::snapshot::checksum::crc64;

const MAGIC: [u8; 8] = *b"LSHPSNAP";
/// Raised with each change of what a body is.
const VERSION: u32 = 1;
const HEADER: usize = 24;
const CHECKSUM: usize = 8;
/// The longest file: 64 processors take a quarter of it.
pub(super) const MAX_BYTES: u64 = 4 << 20;

/// Why a file is no state that can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("reading it: {0}")]
    Read(io::Error),
    #[error("writing it: {0}")]
    Write(io::Error),
    #[error("it is no regular file or memfd")]
    NoFile,
    #[error("{0} bytes are more than the limit of {MAX_BYTES} (4 MiB)")]
    TooLong(u64),
    #[error("{0} bytes are too few for any state: it is cut off")]
    TooShort(usize),
    #[error("it does not begin as the state of a machine does")]
    Magic,
    #[error("it has version {0}, this VMM reads version {VERSION}")]
    Version(u32),
    #[error("it has {found} bytes of {expected}: it is cut off")]
    CutOff { found: usize, expected: u64 },
    #[error("{0} bytes follow its end")]
    Trailing(u64),
    #[error("its checksum is wrong: it is damaged")]
    Checksum,
    #[error("{what} ends early")]
    Ends { what: &'static str },
    #[error("{what}: {reason}")]
    Wrong { what: &'static str, reason: String },
}

/// Collects a body.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new() -> Self {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        // The last eight are the length, put in at the end.
        bytes.resize(HEADER, 0);
        Self(bytes)
    }

    /// Adds a value as it lies in memory: x86-64's own layout, which is the file's.
    pub(super) fn put<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.0.extend_from_slice(value.as_bytes());
    }

    /// Adds a count and that many values.
    pub(super) fn put_all<T: IntoBytes + Immutable>(&mut self, values: &[T]) {
        self.put(&(values.len() as u64));
        for value in values {
            self.put(value);
        }
    }

    /// The whole file.
    pub(super) fn finish(self) -> Result<Vec<u8>, FormatError> {
        let mut bytes = self.0;
        let total = (bytes.len() + CHECKSUM) as u64;
        if total > MAX_BYTES {
            return Err(FormatError::TooLong(total));
        }
        for (to, from) in bytes.iter_mut().skip(16).zip(total.to_le_bytes()) {
            *to = from;
        }
        let crc = crc64(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }
}

/// Takes a body apart. Nothing is set aside for what is not there: each count is
/// held against what is left.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks all but the body.
    pub(super) fn new(file: &'a [u8]) -> Result<Self, FormatError> {
        let found = file.len();
        let whole = found as u64;
        if whole > MAX_BYTES {
            return Err(FormatError::TooLong(whole));
        }
        let mut header = Reader(file);
        let magic = header.array::<8>("the header");
        if magic.is_ok_and(|magic| magic != MAGIC) {
            return Err(FormatError::Magic);
        }
        if found < HEADER + CHECKSUM {
            return Err(FormatError::TooShort(found));
        }
        let version = u32::from_le_bytes(header.array("the header")?);
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let reserved = u32::from_le_bytes(header.array("the header")?);
        let expected = u64::from_le_bytes(header.array("the header")?);
        if whole < expected {
            return Err(FormatError::CutOff { found, expected });
        }
        if whole > expected {
            return Err(FormatError::Trailing(whole - expected));
        }
        let (checked, crc) = file
            .split_last_chunk::<CHECKSUM>()
            .ok_or(FormatError::TooShort(found))?;
        if crc64(checked) != u64::from_le_bytes(*crc) || reserved != 0 {
            return Err(FormatError::Checksum);
        }
        checked
            .get(HEADER..)
            .map(Self)
            .ok_or(FormatError::TooShort(found))
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        let (first, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(FormatError::Ends { what })?;
        self.0 = rest;
        Ok(*first)
    }

    /// Takes the next value.
    pub(super) fn take<T: FromBytes>(&mut self, what: &'static str) -> Result<T, FormatError> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| FormatError::Ends { what })?;
        self.0 = rest;
        Ok(value)
    }

    /// Takes a count, at most `limit`, and that many values.
    pub(super) fn take_all<T: FromBytes>(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<Vec<T>, FormatError> {
        let count: u64 = self.take(what)?;
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= limit)
            .ok_or_else(|| FormatError::Wrong {
                what,
                reason: format!("{count} are more than {limit}"),
            })?;
        let enough = count
            .checked_mul(size_of::<T>())
            .is_some_and(|bytes| bytes <= self.0.len());
        if !enough {
            return Err(FormatError::Ends { what });
        }
        (0..count).map(|_| self.take(what)).collect()
    }

    /// The body ends here.
    pub(super) fn finish(self) -> Result<(), FormatError> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(FormatError::Trailing(left as u64)),
        }
    }
}

/// Reads a whole file, if it is not longer than any state.
pub(super) fn read_file(file: &File) -> Result<Vec<u8>, FormatError> {
    let metadata = file.metadata().map_err(FormatError::Read)?;
    if !metadata.is_file() {
        return Err(FormatError::NoFile);
    }
    let len = metadata.len();
    if len > MAX_BYTES {
        return Err(FormatError::TooLong(len));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| FormatError::TooLong(len))?];
    file.read_exact_at(&mut bytes, 0)
        .map_err(FormatError::Read)?;
    Ok(bytes)
}

/// Writes a whole file; where that fails, nothing of it stays.
pub(super) fn write_file(mut file: &File, bytes: &[u8]) -> Result<(), FormatError> {
    file.write_all(bytes).map_err(|e| {
        let _ = file.set_len(0);
        FormatError::Write(e)
    })
}
