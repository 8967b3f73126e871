//! The file tree of an image, in memory. Contents stay where they lie: a file
//! knows its layer, offset and length.

use std::collections::BTreeMap;

/// Which node of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(usize);

/// Seconds since 1970 and nanoseconds after them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What every file has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Permissions with set-uid, set-gid and sticky; not the type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Full names (`security.capability`) and values.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Where a file's data lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Index of the layer.
    pub(crate) layer: usize,
    /// In bytes, in the unpacked layer.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u64,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory(BTreeMap<Box<[u8]>, Name>),
    File(Extent),
    Symlink(Box<[u8]>),
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    pub(crate) node: NodeId,
    /// Index of the layer that last wrote this name; whiteouts of the same layer
    /// leave it alone.
    pub(crate) layer: usize,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) kind: Kind,
}

/// Nodes by their ids. The first is the root directory. What no name leads to any
/// more stays until the tree is dropped.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// Only a root directory, owned by root, mode 0755.
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node::implied_directory()],
        }
    }

    #[allow(clippy::unused_self)]
    pub(crate) fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// How many nodes were ever made.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        // Ids come from `add` and nodes are never removed.
        &self.nodes[id.0]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// The names in a directory; none where `id` is none.
    pub(crate) fn names(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, Name>> {
        match &self.node(id).kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        }
    }

    pub(crate) fn names_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, Name>> {
        match &mut self.node_mut(id).kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        }
    }
}

impl Node {
    /// A directory that no entry describes.
    pub(crate) fn implied_directory() -> Self {
        Self {
            metadata: Metadata {
                mode: 0o755,
                ..Metadata::default()
            },
            kind: Kind::Directory(BTreeMap::new()),
        }
    }
}
