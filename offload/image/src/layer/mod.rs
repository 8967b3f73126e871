//! One layer: unpacked into a file, then read entry by entry.

mod archive;
mod pax;
mod unpack;

pub(crate) use archive::{Archive, Entry, EntryKind, TarError};
pub(crate) use unpack::{Allowance, UnpackedLayer, unpack};
