//! The entries of a tar archive: ustar, GNU and PAX. File data are not read, only
//! their place is told.
//!
//! Field formats are left to the `tar` crate; the walk is our own, because the
//! lengths of extended headers must be limited and their values may be binary.

use std::io::{self, BufReader, Read, Seek};

use tar::{EntryType, Header};

use super::pax::Pax;
use crate::tree::{Metadata, Time};

/// tar's unit, in bytes.
const BLOCK: u64 = 512;
/// The longest extended header or long name, in bytes: the kernel's limits for
/// paths and extended attributes of one file are far below.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most extended attributes of one entry, in bytes with their names.
const MAX_XATTRS: usize = 64 << 10;

/// One entry, not yet interpreted: names are as the archive has them.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) metadata: Metadata,
    pub(crate) kind: EntryKind,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    /// Where the data lie in the archive.
    File {
        offset: u64,
        length: u64,
    },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Character {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("reading it: {0}")]
    Io(#[from] io::Error),
    #[error("it ends inside the {0}")]
    Truncated(&'static str),
    #[error("no tar header at offset {0}")]
    Header(u64),
    #[error("the header at offset {0} has a number that is none or out of range")]
    Number(u64),
    #[error("an extended header is longer than {MAX_EXTENSION} bytes")]
    ExtensionTooLong,
    #[error("an extended header is broken")]
    Pax,
    #[error("sparse files are not supported")]
    Sparse,
    #[error("entry {0:?} has more than {MAX_XATTRS} bytes of extended attributes")]
    Xattrs(String),
    #[error("entry {0:?} has the unsupported type {1:?}")]
    Type(String, char),
}

/// An archive from its beginning. After an error nothing more comes.
pub(crate) struct Archive<R> {
    source: BufReader<R>,
    /// Where `source` stands, and where the archive ends.
    position: u64,
    length: u64,
    done: bool,
}

/// What stood before an entry's own header.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read + Seek> Archive<R> {
    /// `source` stands at its beginning and has `length` bytes.
    pub(crate) fn new(source: R, length: u64) -> Self {
        Self {
            source: BufReader::with_capacity(64 << 10, source),
            position: 0,
            length,
            done: false,
        }
    }

    fn read_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            let at = self.position;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let size = number(header.entry_size(), &header.as_old().size, at)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    extensions.pax = Some(Pax::parse(&self.read_extension(size)?)?);
                }
                EntryType::GNULongName => {
                    extensions.long_path = Some(without_end(self.read_extension(size)?));
                }
                EntryType::GNULongLink => {
                    extensions.long_link = Some(without_end(self.read_extension(size)?));
                }
                EntryType::XGlobalHeader => drop(self.read_extension(size)?),
                _ => return self.interpret(&header, at, extensions).map(Some),
            }
        }
    }

    /// The next header; none where the archive ends.
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let at = self.position;
        if at == self.length {
            return Ok(None);
        }
        let mut header = Header::new_old();
        self.read_exact(header.as_mut_bytes(), "header")?;
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            // The end mark is two such blocks; some writers leave the second out.
            return match self.length - self.position {
                0 => Ok(None),
                _ => {
                    self.read_exact(header.as_mut_bytes(), "end mark")?;
                    let end = header.as_bytes().iter().all(|&byte| byte == 0);
                    if end {
                        Ok(None)
                    } else {
                        Err(TarError::Header(at))
                    }
                }
            };
        }
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(i, &byte)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u32::from(byte)
                }
            })
            .sum();
        match header.cksum() {
            Ok(expected) if expected == sum => Ok(Some(header)),
            _ => Err(TarError::Header(at)),
        }
    }

    fn interpret(
        &mut self,
        header: &Header,
        at: u64,
        extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let old = header.as_old();
        let pax = extensions.pax.unwrap_or_default();
        let path = pax
            .path
            .or(extensions.long_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .or(extensions.long_link)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let name = || String::from_utf8_lossy(&path).into_owned();

        let device = || -> Result<(u32, u32), TarError> {
            let part = |value: io::Result<Option<u32>>, field: Option<&[u8; 8]>| {
                let value = value.map(|value| u64::from(value.unwrap_or(0)));
                let value = number(value, field.map_or(&[], |field| &field[..]), at)?;
                u32::try_from(value).map_err(|_| TarError::Number(at))
            };
            let fields = header
                .as_ustar()
                .map(|fields| (&fields.dev_major, &fields.dev_minor));
            let fields = fields.or_else(|| {
                let fields = header.as_gnu()?;
                Some((&fields.dev_major, &fields.dev_minor))
            });
            Ok((
                part(header.device_major(), fields.map(|fields| fields.0))?,
                part(header.device_minor(), fields.map(|fields| fields.1))?,
            ))
        };
        let size = match pax.size {
            Some(size) => size,
            None => number(header.entry_size(), &old.size, at)?,
        };
        let offset = self.position;
        let kind = match header.entry_type() {
            EntryType::Directory => EntryKind::Directory,
            // Old archives mark a directory by its name only.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => {
                EntryKind::Directory
            }
            EntryType::Regular | EntryType::Continuous => EntryKind::File {
                offset,
                length: size,
            },
            EntryType::Symlink => EntryKind::Symlink(link),
            EntryType::Link => EntryKind::HardLink(link),
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char => {
                let (major, minor) = device()?;
                EntryKind::Character { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = device()?;
                EntryKind::Block { major, minor }
            }
            EntryType::GNUSparse => return Err(TarError::Sparse),
            other => return Err(TarError::Type(name(), char::from(other.as_byte()))),
        };
        let xattr_bytes: usize = pax.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
        if xattr_bytes > MAX_XATTRS {
            return Err(TarError::Xattrs(name()));
        }
        let metadata = Metadata {
            mode: permissions(number(header.mode().map(u64::from), &old.mode, at)?),
            uid: id(pax.uid, || number(header.uid(), &old.uid, at), at)?,
            gid: id(pax.gid, || number(header.gid(), &old.gid, at), at)?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time {
                    // GNU's binary form is signed.
                    seconds: signed(number(header.mtime(), &old.mtime, at)?),
                    nanoseconds: 0,
                },
            },
            xattrs: pax.xattrs,
        };
        // Only these two have data; a size elsewhere is what the file once had.
        if matches!(
            header.entry_type(),
            EntryType::Regular | EntryType::Continuous
        ) {
            self.skip(size, "data of an entry")?;
        }
        Ok(Entry {
            path,
            metadata,
            kind,
        })
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let length = usize::try_from(size).map_err(|_| TarError::ExtensionTooLong)?;
        if size > MAX_EXTENSION {
            return Err(TarError::ExtensionTooLong);
        }
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes, "extended header")?;
        self.skip(size.next_multiple_of(BLOCK) - size, "extended header")?;
        Ok(bytes)
    }

    fn read_exact(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), TarError> {
        self.source
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => TarError::Truncated(what),
                _ => TarError::Io(error),
            })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// Goes on by `size` bytes and to the next block. The last block need not be
    /// filled up.
    fn skip(&mut self, size: u64, what: &'static str) -> Result<(), TarError> {
        let end = self
            .position
            .checked_add(size)
            .ok_or(TarError::Truncated(what))?;
        if end > self.length {
            return Err(TarError::Truncated(what));
        }
        let next = end.next_multiple_of(BLOCK).min(self.length);
        let distance =
            i64::try_from(next - self.position).map_err(|_| TarError::Truncated(what))?;
        self.source.seek_relative(distance)?;
        self.position = next;
        Ok(())
    }
}

impl<R: Read + Seek> Iterator for Archive<R> {
    type Item = Result<Entry, TarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let entry = self.read_entry().transpose();
        self.done = !matches!(entry, Some(Ok(_)));
        entry
    }
}

/// A long name without the zero that ends it.
fn without_end(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|&byte| byte == 0) {
        name.truncate(end);
    }
    name
}

/// The permission bits with set-uid, set-gid and sticky.
fn permissions(mode: u64) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

/// A header's number; a field that was left blank is zero.
fn number(value: io::Result<u64>, field: &[u8], at: u64) -> Result<u64, TarError> {
    let blank = field.iter().all(|&byte| byte == 0 || byte == b' ');
    value.or(if blank {
        Ok(0)
    } else {
        Err(TarError::Number(at))
    })
}

fn id(
    pax: Option<u64>,
    header: impl FnOnce() -> Result<u64, TarError>,
    at: u64,
) -> Result<u32, TarError> {
    let id = match pax {
        Some(id) => id,
        None => header()?,
    };
    u32::try_from(id).map_err(|_| TarError::Number(at))
}

/// The same bits, read as two's complement.
fn signed(value: u64) -> i64 {
    i64::from_ne_bytes(value.to_ne_bytes())
}
