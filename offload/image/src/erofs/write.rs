//! The planned disk, written from its beginning to its end.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::directory::{self, Listed};
use super::format::{DataLayout, S_IFDIR, Superblock, file_type};
use super::plan::{Plan, Planned, file_mode};
use super::{BLOCK, ErofsError};
use crate::tree::{Extent, Kind, NodeId, Tree};

/// Writes `tree` as an EROFS disk to `out`; `layers` hold the files' data. Gives
/// the disk's size in bytes, a multiple of 4096.
///
/// # Errors
/// [`ErofsError`]; `out` then holds a part of a disk.
pub(crate) fn write(
    tree: &Tree,
    layers: &[&File],
    uuid: [u8; 16],
    out: &mut impl Write,
) -> Result<u64, ErofsError> {
    let plan = Plan::new(tree)?;
    let superblock = Superblock {
        // The root is placed first, at the second block.
        root: u16::try_from(plan.slot(tree.root())).map_err(|_| ErofsError::TooLarge)?,
        inodes: plan.inodes.len() as u64,
        blocks: plan.blocks,
        build_time: plan.build_time,
        uuid,
    };
    let mut disk = Disk {
        tree,
        plan: &plan,
        layers,
        out,
        position: 0,
        buffer: vec![0; 256 << 10],
    };
    disk.put(&superblock.block())?;
    disk.put_inodes()?;
    for planned in &plan.inodes {
        disk.put_blocks(planned)?;
    }
    disk.out.flush()?;
    Ok(disk.position)
}

struct Disk<'a, W> {
    tree: &'a Tree,
    plan: &'a Plan,
    layers: &'a [&'a File],
    out: &'a mut W,
    position: u64,
    buffer: Vec<u8>,
}

/// An inode's data: in memory, or still in its layer.
enum Data<'a> {
    Here(Cow<'a, [u8]>),
    There(Extent),
}

impl<'a, W: Write> Disk<'a, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Zeros up to `position`.
    fn fill(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < position {
            let missing = usize::try_from(position - self.position).unwrap_or(usize::MAX);
            self.put(&ZEROS[..missing.min(ZEROS.len())])?;
        }
        Ok(())
    }

    fn put_inodes(&mut self) -> io::Result<()> {
        let mut by_place: Vec<&Planned> = self.plan.inodes.iter().collect();
        by_place.sort_unstable_by_key(|planned| planned.offset);
        for planned in by_place {
            self.fill(planned.offset)?;
            match planned.inode.compact(self.plan.build_time) {
                Some(bytes) => self.put(&bytes)?,
                None => self.put(&planned.inode.extended())?,
            }
            self.put(&planned.xattrs)?;
            if planned.inode.layout == DataLayout::Inline {
                let data = self.data(planned);
                self.put_data(&data, planned.blocks * BLOCK, planned.inode.size)?;
            }
        }
        self.fill(self.plan.data_start * BLOCK)
    }

    fn put_blocks(&mut self, planned: &Planned) -> io::Result<()> {
        if planned.blocks == 0 {
            return Ok(());
        }
        let data = self.data(planned);
        let end = planned.inode.size.min(planned.blocks * BLOCK);
        self.put_data(&data, 0, end)?;
        self.fill(self.position.next_multiple_of(BLOCK))
    }

    fn put_data(&mut self, data: &Data<'_>, start: u64, end: u64) -> io::Result<()> {
        match data {
            Data::Here(bytes) => {
                let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
                let part = range.and_then(|(start, end)| bytes.get(start..end));
                self.put(part.ok_or(io::ErrorKind::InvalidData)?)
            }
            Data::There(extent) => self.copy(*extent, start, end),
        }
    }

    /// Copies the bytes `start..end` of a file out of its layer.
    fn copy(&mut self, extent: Extent, start: u64, end: u64) -> io::Result<()> {
        let layer = self
            .layers
            .get(extent.layer)
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut at = extent.offset + start;
        let last = extent.offset + end;
        while at < last {
            let left = usize::try_from(last - at).unwrap_or(usize::MAX);
            let length = left.min(self.buffer.len());
            let part = &mut self.buffer[..length];
            layer.read_exact_at(part, at)?;
            self.out.write_all(part)?;
            self.position += length as u64;
            at += length as u64;
        }
        Ok(())
    }

    fn data(&self, planned: &Planned) -> Data<'a> {
        match &self.tree.node(planned.node).kind {
            Kind::Directory(_) => Data::Here(self.listing(planned).into()),
            Kind::File(extent) => Data::There(*extent),
            Kind::Symlink(target) => Data::Here(Cow::Borrowed(target)),
            Kind::Character { .. } | Kind::Block { .. } | Kind::Fifo => {
                Data::Here(Vec::new().into())
            }
        }
    }

    fn listing(&self, planned: &Planned) -> Vec<u8> {
        let directory = |name, node: NodeId| Listed {
            name,
            slot: self.plan.slot(node),
            file_type: file_type(S_IFDIR),
        };
        let own = [
            directory(&b"."[..], planned.node),
            directory(b"..", planned.parent),
        ];
        let names = self.tree.names(planned.node).into_iter().flatten();
        let listed = names.map(|(name, entry)| Listed {
            name,
            slot: self.plan.slot(entry.node),
            file_type: file_type(file_mode(&self.tree.node(entry.node).kind)),
        });
        directory::encode(&directory::sorted(own.into_iter().chain(listed)))
    }
}
