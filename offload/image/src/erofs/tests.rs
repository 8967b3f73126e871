//! Disks of random trees, checked by fsck.erofs and read by the kernel where it
//! lets us, else extracted by fsck.erofs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use proptest::prelude::*;

use self::parts::disk::{self, Seen};
use super::write;
use crate::tree::{Extent, Kind, Metadata, Name, Node, NodeId, Time, Tree};

#[path = "../../tests/parts/mod.rs"]
mod parts;

/// What a test wants in a directory.
#[derive(Debug, Clone)]
enum Item {
    Directory(BTreeMap<String, Item>, Look),
    /// A file of so many bytes.
    File(u64, Look),
    Symlink(String, Look),
    Fifo(Look),
    Device(u32, u32, Look),
    /// Another name of some file before it.
    Again(prop::sample::Index),
}

#[derive(Debug, Clone)]
struct Look {
    mode: u16,
    owner: (u32, u32),
    time: i64,
    xattrs: BTreeMap<String, Vec<u8>>,
}

impl Look {
    fn metadata(&self) -> Metadata {
        let bytes = |(name, value): (&String, &Vec<u8>)| (name.clone().into_bytes(), value.clone());
        Metadata {
            mode: self.mode,
            uid: self.owner.0,
            gid: self.owner.1,
            mtime: Time {
                seconds: self.time,
                nanoseconds: 0,
            },
            xattrs: self.xattrs.iter().map(bytes).collect(),
        }
    }
}

fn look() -> impl Strategy<Value = Look> {
    let owner = prop_oneof![Just(0), Just(1000), Just(70_000), any::<u32>()];
    // The usual time of an image's files, and others.
    let time = prop_oneof![3 => Just(1_700_000_000), 1 => 0..2_000_000_000_i64];
    let name = prop_oneof![
        "user\\.[a-z]{1,12}",
        "trusted\\.[a-z]{1,12}",
        "security\\.[a-z]{1,8}x",
        // Not storable, and so left out.
        "odd\\.[a-z]{1,4}",
    ];
    let value = prop::collection::vec(any::<u8>(), 0..3000);
    let xattrs = prop_oneof![
        4 => Just(BTreeMap::new()),
        1 => prop::collection::btree_map(name, value, 1..4),
    ];
    (0..0o10000_u16, owner.clone(), owner, time, xattrs).prop_map(
        |(mode, uid, gid, time, xattrs)| Look {
            mode,
            owner: (uid, gid),
            time,
            xattrs,
        },
    )
}

fn item() -> impl Strategy<Value = Item> {
    let size = prop_oneof![
        Just(0),
        Just(1),
        Just(4096),
        Just(8192),
        Just(4032),
        Just(4064),
        0..10_000_u64,
        4000..4200_u64,
    ];
    let leaf = prop_oneof![
        6 => (size, look()).prop_map(|(size, look)| Item::File(size, look)),
        2 => ("[a-z/.]{1,300}", look()).prop_map(|(target, look)| Item::Symlink(target, look)),
        1 => Just("x".repeat(4095)).prop_flat_map(|target| {
            look().prop_map(move |look| Item::Symlink(target.clone(), look))
        }),
        1 => look().prop_map(Item::Fifo),
        1 => (0..4096_u32, 0..1_048_576_u32, look())
            .prop_map(|(major, minor, look)| Item::Device(major, minor, look)),
        2 => any::<prop::sample::Index>().prop_map(Item::Again),
    ];
    leaf.prop_recursive(4, 120, 30, |inner| {
        (directory(inner), look()).prop_map(|(names, look)| Item::Directory(names, look))
    })
}

fn directory(inner: impl Strategy<Value = Item>) -> impl Strategy<Value = BTreeMap<String, Item>> {
    // Around "." and ".." in the order of bytes, short and long.
    let name = prop_oneof!["[ -.0-~]{1,6}", "[a-e.]{1,3}", "[a-z]{200,255}"]
        .prop_filter("names of their own", |name| name != "." && name != "..");
    prop::collection::btree_map(name, inner, 0..30)
}

/// The tree, and the file with all contents one after the other.
struct Built {
    tree: Tree,
    data: File,
    length: u64,
    files: Vec<NodeId>,
}

fn build(names: &BTreeMap<String, Item>) -> Built {
    let mut built = Built {
        tree: Tree::new(),
        data: tempfile::tempfile().unwrap(),
        length: 0,
        files: Vec::new(),
    };
    let root = built.tree.root();
    built.fill(root, names);
    built
}

impl Built {
    fn fill(&mut self, directory: NodeId, names: &BTreeMap<String, Item>) {
        for (name, item) in names {
            let node = match item {
                Item::Again(which) if self.files.is_empty() => {
                    let _ = which;
                    continue;
                }
                Item::Again(which) => *which.get(&self.files),
                Item::Directory(below, look) => {
                    let node = self.add(Kind::Directory(BTreeMap::new()), look);
                    self.fill(node, below);
                    node
                }
                Item::File(length, look) => {
                    let seed = self.length;
                    let bytes: Vec<u8> = (0..*length)
                        .map(|at| ((at * 31 + seed) % 251).to_le_bytes()[0])
                        .collect();
                    self.data.write_all(&bytes).unwrap();
                    self.length += length;
                    let node = self.add(
                        Kind::File(Extent {
                            layer: 0,
                            offset: seed,
                            length: *length,
                        }),
                        look,
                    );
                    self.files.push(node);
                    node
                }
                Item::Symlink(target, look) => {
                    let look = &Look {
                        mode: 0o777,
                        ..look.clone()
                    };
                    self.add(Kind::Symlink(target.clone().into_bytes().into()), look)
                }
                Item::Fifo(look) => self.add(Kind::Fifo, look),
                Item::Device(major, minor, look) => {
                    let (major, minor) = (*major, *minor);
                    let kind = if minor % 2 == 0 {
                        Kind::Block { major, minor }
                    } else {
                        Kind::Character { major, minor }
                    };
                    self.add(kind, look)
                }
            };
            let names = self.tree.names_mut(directory).unwrap();
            names.insert(name.as_bytes().into(), Name { node, layer: 0 });
        }
    }

    fn add(&mut self, kind: Kind, look: &Look) -> NodeId {
        let mut metadata = look.metadata();
        if !matches!(kind, Kind::File(_) | Kind::Directory(_)) {
            // Linux lists them there, but does not let anybody read them.
            metadata
                .xattrs
                .retain(|name, _| !name.starts_with(b"user."));
        }
        self.tree.add(Node { metadata, kind })
    }

    fn disk(&self) -> Vec<u8> {
        let mut disk = Vec::new();
        let size = write(&self.tree, &[&self.data], [9; 16], &mut disk).unwrap();
        assert_eq!(size, disk.len() as u64);
        assert_eq!(size % 4096, 0);
        disk
    }
}

impl Built {
    /// What is to be seen of the disk, by path.
    fn expected(&self) -> BTreeMap<PathBuf, Seen> {
        let mut all = BTreeMap::new();
        self.expect(self.tree.root(), PathBuf::new(), &mut all);
        // The tree's order of names is not the order of paths.
        let mut first: BTreeMap<NodeId, (PathBuf, u64)> = BTreeMap::new();
        for (path, (id, _)) in &all {
            first.entry(*id).or_insert_with(|| (path.clone(), 0)).1 += 1;
        }
        all.into_iter()
            .map(|(path, (id, mut seen))| {
                (seen.same_as, seen.links) = first[&id].clone();
                (path, seen)
            })
            .collect()
    }

    fn expect(&self, id: NodeId, path: PathBuf, all: &mut BTreeMap<PathBuf, (NodeId, Seen)>) {
        let node = self.tree.node(id);
        let (kind, content) = match &node.kind {
            Kind::Directory(names) => {
                for (name, entry) in names {
                    self.expect(entry.node, path.join(OsStr::from_bytes(name)), all);
                }
                ("directory", Vec::new())
            }
            Kind::File(extent) => {
                let mut bytes = vec![0; usize::try_from(extent.length).unwrap()];
                self.data.read_exact_at(&mut bytes, extent.offset).unwrap();
                ("file", bytes)
            }
            Kind::Symlink(target) => ("symlink", target.to_vec()),
            Kind::Fifo => ("fifo", Vec::new()),
            Kind::Character { major, minor } => ("character", device(*major, *minor)),
            Kind::Block { major, minor } => ("block", device(*major, *minor)),
        };
        let metadata = &node.metadata;
        let xattrs = metadata
            .xattrs
            .iter()
            .filter(|(name, _)| !name.starts_with(b"odd."));
        let seen = Seen {
            kind: kind.to_owned(),
            mode: metadata.mode.into(),
            owner: (metadata.uid, metadata.gid),
            mtime: (metadata.mtime.seconds, metadata.mtime.nanoseconds.into()),
            links: 0,
            content,
            xattrs: xattrs
                .map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), value.clone()))
                .collect(),
            same_as: PathBuf::new(),
        };
        all.insert(path, (id, seen));
    }
}

fn device(major: u32, minor: u32) -> Vec<u8> {
    nix::libc::makedev(major, minor).to_le_bytes().to_vec()
}

/// What others than root can extract and read.
fn harmless(names: BTreeMap<String, Item>) -> BTreeMap<String, Item> {
    let readable = |look: Look| Look {
        mode: look.mode | 0o700,
        ..look
    };
    names
        .into_iter()
        .filter_map(|(name, item)| {
            let item = match item {
                Item::Device(..) => return None,
                Item::Directory(below, look) => Item::Directory(harmless(below), readable(look)),
                Item::File(size, look) => Item::File(size, readable(look)),
                other => other,
            };
            Some((name, item))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn disks_of_random_trees_are_sound_and_hold_the_tree(names in directory(item())) {
        let names = if nix::unistd::geteuid().is_root() { names } else { harmless(names) };
        let built = build(&names);
        let disk = built.disk();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&disk).unwrap();
        disk::open(file.path()).assert_same(&built.expected());
        prop_assert_eq!(built.disk(), disk, "the same tree, the same bytes");
    }
}

#[test]
fn what_does_not_fit_the_format_is_refused() {
    let refused = |kind: Kind, xattr: (&str, usize)| {
        let mut tree = Tree::new();
        let metadata = Metadata {
            xattrs: BTreeMap::from([(xattr.0.into(), vec![1; xattr.1])]),
            ..Metadata::default()
        };
        let node = tree.add(Node { metadata, kind });
        let root = tree.root();
        let names = tree.names_mut(root).unwrap();
        names.insert((*b"x").into(), Name { node, layer: 0 });
        write(&tree, &[], [0; 16], &mut Vec::new()).is_err()
    };
    assert!(!refused(Kind::Fifo, ("user.a", 65_535)));
    assert!(refused(Kind::Fifo, ("user.a", 65_536)));
    assert!(refused(
        Kind::Fifo,
        (&format!("user.{}", "a".repeat(256)), 1)
    ));
    let device = |major, minor| refused(Kind::Block { major, minor }, ("user.a", 1));
    assert!(!device(4095, 1_048_575));
    assert!(device(4096, 0) && device(0, 1_048_576));
    // A file whose layer ends before it does.
    let file = Extent {
        layer: 0,
        offset: 0,
        length: 1,
    };
    assert!(refused(Kind::File(file), ("user.a", 1)));
}
