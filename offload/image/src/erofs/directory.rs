//! Directory data: blocks of sorted entries, each block with its names behind.

use super::BLOCK;
use super::format::dirent;

const DIRENT: u64 = 12;

/// One name of a directory, with its inode's place and its file type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed<'a> {
    pub(super) name: &'a [u8],
    pub(super) slot: u64,
    pub(super) file_type: u8,
}

/// Puts `.` and `..` into their places: all names of a directory are in the order
/// of their bytes, these two as well.
pub(super) fn sorted<'a>(names: impl Iterator<Item = Listed<'a>>) -> Vec<Listed<'a>> {
    let mut all: Vec<_> = names.collect();
    all.sort_unstable_by_key(|listed| listed.name);
    all
}

/// The directory's size in bytes: full blocks, and what is used of the last.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut full, mut used) = (0, 0);
    for name in names {
        let needed = DIRENT + name.len() as u64;
        if used + needed > BLOCK {
            full += 1;
            used = 0;
        }
        used += needed;
    }
    full * BLOCK + used
}

/// The directory's data, as long as [`size`] said.
pub(super) fn encode(names: &[Listed<'_>]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        let mut used = 0;
        let fitting = rest
            .iter()
            .take_while(|listed| {
                used += DIRENT + listed.name.len() as u64;
                used <= BLOCK
            })
            .count();
        let (block, later) = rest.split_at(fitting);
        rest = later;
        // All blocks but the last are whole.
        let start = data.len();
        let mut offset = fitting * 12;
        for listed in block {
            // Below 4096, as the count above has shown.
            let name_offset = u16::try_from(offset).unwrap_or(u16::MAX);
            data.extend(dirent(listed.slot, name_offset, listed.file_type));
            offset += listed.name.len();
        }
        for listed in block {
            data.extend(listed.name);
        }
        if !rest.is_empty() {
            data.resize(start + 4096, 0);
        }
    }
    data
}
