//! What each inode will be and where, before anything is written.

use std::collections::HashMap;

use super::directory;
use super::format::{
    COMPACT_INODE, DataLayout, EXTENDED_INODE, Inode, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK,
    S_IFREG, SLOT, device,
};
use super::place::Places;
use super::{BLOCK, ErofsError, xattr};
use crate::tree::{Kind, Node, NodeId, Time, Tree};

/// One inode of the disk.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) node: NodeId,
    /// Of a directory: where `..` leads.
    pub(super) parent: NodeId,
    pub(super) inode: Inode,
    pub(super) xattrs: Vec<u8>,
    /// In bytes from the disk's beginning.
    pub(super) offset: u64,
    /// How many data blocks it has.
    pub(super) blocks: u64,
}

/// The whole disk.
#[derive(Debug)]
pub(super) struct Plan {
    /// In the order of the tree: a directory, then what is in it.
    pub(super) inodes: Vec<Planned>,
    /// Slot of each node that the tree leads to.
    slots: HashMap<NodeId, u64>,
    /// The time of compact inodes.
    pub(super) build_time: Time,
    /// First block with data.
    pub(super) data_start: u64,
    /// All blocks.
    pub(super) blocks: u32,
}

impl Plan {
    pub(super) fn new(tree: &Tree) -> Result<Self, ErofsError> {
        let (mut inodes, places) = enumerate(tree)?;
        let build_time = most_frequent(inodes.iter().map(|planned| planned.inode.mtime));
        let mut free = Places::new(BLOCK);
        for planned in &mut inodes {
            planned.place(build_time, &mut free);
        }
        let data_start = free.end() / BLOCK;
        let mut next = data_start;
        for planned in &mut inodes {
            if planned.blocks > 0 {
                planned.inode.block_or_device =
                    u32::try_from(next).map_err(|_| ErofsError::TooLarge)?;
                next += planned.blocks;
            }
        }
        let slots = places
            .into_iter()
            .filter_map(|(node, place)| Some((node, inodes.get(place)?.offset / SLOT)))
            .collect();
        Ok(Self {
            inodes,
            slots,
            build_time,
            data_start,
            blocks: u32::try_from(next).map_err(|_| ErofsError::TooLarge)?,
        })
    }

    /// Where `node`'s inode is, in slots from the disk's beginning.
    pub(super) fn slot(&self, node: NodeId) -> u64 {
        self.slots.get(&node).copied().unwrap_or_default()
    }
}

impl Planned {
    fn place(&mut self, build_time: Time, free: &mut Places) {
        let head = match self.inode.compact(build_time) {
            Some(_) => COMPACT_INODE,
            None => EXTENDED_INODE,
        } + self.xattrs.len() as u64;
        if matches!(self.inode.mode & 0o170_000, S_IFREG | S_IFDIR | S_IFLNK) {
            let tail = self.inode.size % BLOCK;
            if tail > 0 && head + tail <= BLOCK {
                self.inode.layout = DataLayout::Inline;
                self.blocks = self.inode.size / BLOCK;
                self.offset = free.take(head + tail);
                return;
            }
            self.blocks = self.inode.size.div_ceil(BLOCK);
        }
        self.offset = free.take(head);
    }
}

/// All inodes in the order of the tree, each once however many names it has, and
/// the place of each node's in that list.
fn enumerate(tree: &Tree) -> Result<(Vec<Planned>, HashMap<NodeId, usize>), ErofsError> {
    let mut inodes: Vec<Planned> = Vec::new();
    let mut places = HashMap::new();
    let mut todo = vec![(tree.root(), tree.root())];
    while let Some((node, parent)) = todo.pop() {
        if let Some(&place) = places.get(&node) {
            let known: Option<&mut Planned> = inodes.get_mut(place);
            if let Some(known) = known {
                known.inode.links += 1;
            }
            continue;
        }
        places.insert(node, inodes.len());
        let number = u32::try_from(inodes.len() + 1).map_err(|_| ErofsError::TooLarge)?;
        inodes.push(describe(tree, node, parent, number)?);
        if let Some(names) = tree.names(node) {
            // Last in, first out: so the first name comes next.
            todo.extend(names.values().rev().map(|name| (name.node, node)));
        }
    }
    Ok((inodes, places))
}

fn describe(tree: &Tree, id: NodeId, parent: NodeId, number: u32) -> Result<Planned, ErofsError> {
    let node = tree.node(id);
    let xattrs = xattr::encode(&node.metadata.xattrs)?;
    let size = match &node.kind {
        Kind::Directory(names) => {
            let mut all: Vec<&[u8]> = names.keys().map(AsRef::as_ref).collect();
            all.extend([&b"."[..], b".."]);
            all.sort_unstable();
            directory::size(all.into_iter())
        }
        Kind::File(extent) => extent.length,
        Kind::Symlink(target) => target.len() as u64,
        Kind::Character { .. } | Kind::Block { .. } | Kind::Fifo => 0,
    };
    let inode = Inode {
        layout: DataLayout::Plain,
        mode: file_mode(&node.kind) | node.metadata.mode,
        links: links(tree, node),
        size,
        block_or_device: match node.kind {
            Kind::Character { major, minor } | Kind::Block { major, minor } => {
                device(major, minor).ok_or(ErofsError::Device(major, minor))?
            }
            _ => 0,
        },
        number,
        uid: node.metadata.uid,
        gid: node.metadata.gid,
        mtime: node.metadata.mtime,
        xattr_count: xattr::count(xattrs.len()).ok_or_else(|| ErofsError::Xattr(String::new()))?,
    };
    Ok(Planned {
        node: id,
        parent,
        inode,
        xattrs,
        offset: 0,
        blocks: 0,
    })
}

/// The type bits of `i_mode`.
pub(super) fn file_mode(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => S_IFDIR,
        Kind::File(_) => S_IFREG,
        Kind::Symlink(_) => S_IFLNK,
        Kind::Character { .. } => S_IFCHR,
        Kind::Block { .. } => S_IFBLK,
        Kind::Fifo => S_IFIFO,
    }
}

/// Links of a directory: its name, its `.`, and the `..` of each directory in it.
/// Of others: one, more are counted as their names turn up.
fn links(tree: &Tree, node: &Node) -> u32 {
    let Kind::Directory(names) = &node.kind else {
        return 1;
    };
    let below = names
        .values()
        .filter(|name| tree.names(name.node).is_some())
        .count();
    u32::try_from(below)
        .unwrap_or(u32::MAX - 2)
        .saturating_add(2)
}

/// The most frequent time, the earliest where there are several.
fn most_frequent(times: impl Iterator<Item = Time>) -> Time {
    let mut counts: HashMap<Time, usize> = HashMap::new();
    for time in times {
        *counts.entry(time).or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|&(time, count)| (count, std::cmp::Reverse(time)))
        .map(|(time, _)| time)
        .unwrap_or_default()
}
