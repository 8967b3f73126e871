use std::io::Cursor;

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;

/// Makes archives without any check of their names.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn put(mut self, path: &str, kind: EntryType, target: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_size(content.len() as u64);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str) -> Self {
        self.put(path, EntryType::Regular, "", path.as_bytes())
    }

    fn directory(self, path: &str) -> Self {
        self.put(path, EntryType::Directory, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.put(path, EntryType::Symlink, target, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.put(path, EntryType::Link, target, b"")
    }
}

const LAYER: Digest = Digest::new([7; 32]);

fn apply(tree: &mut Tree, index: usize, bytes: &[u8]) -> Result<(), ImageError> {
    let archive = Archive::new(Cursor::new(bytes), bytes.len() as u64);
    apply_layer(tree, index, LAYER, archive)
}

fn flatten(layers: impl IntoIterator<Item = Tar>) -> Result<Tree, ImageError> {
    let mut tree = Tree::new();
    for (index, layer) in layers.into_iter().enumerate() {
        apply(&mut tree, index, &layer.0)?;
    }
    Ok(tree)
}

/// One line a name: `a/`, `a/b`, `a/l -> target`, `h = first name`.
fn show(tree: &Tree) -> Vec<String> {
    fn add(
        tree: &Tree,
        id: NodeId,
        path: &str,
        seen: &mut BTreeMap<NodeId, String>,
        lines: &mut Vec<String>,
    ) {
        for (name, entry) in tree.names(id).unwrap() {
            let path = format!("{path}{}", String::from_utf8_lossy(name));
            match &tree.node(entry.node).kind {
                Kind::Directory(_) => {
                    let path = format!("{path}/");
                    lines.push(path.clone());
                    add(tree, entry.node, &path, seen, lines);
                    continue;
                }
                Kind::Symlink(target) => {
                    lines.push(format!("{path} -> {}", String::from_utf8_lossy(target)));
                    continue;
                }
                _ => {}
            }
            match seen.get(&entry.node) {
                Some(first) => lines.push(format!("{path} = {first}")),
                None => {
                    seen.insert(entry.node, path.clone());
                    lines.push(path);
                }
            }
        }
    }
    let mut lines = Vec::new();
    add(tree, tree.root(), "", &mut BTreeMap::new(), &mut lines);
    lines
}

fn shown(layers: impl IntoIterator<Item = Tar>) -> Vec<String> {
    show(&flatten(layers).unwrap())
}

#[test]
fn a_whiteout_hides_lower_layers_and_never_its_own() {
    let base = || Tar::default().directory("d").file("d/old").file("x");
    let before = Tar::default().file("d/.wh.old").file("d/old").file(".wh.x");
    let after = Tar::default().file("d/old").file("d/.wh.old").file(".wh.x");
    assert_eq!(shown([base(), before]), ["d/", "d/old"]);
    assert_eq!(shown([base(), after]), ["d/", "d/old"]);
    assert_eq!(shown([base(), Tar::default().file(".wh.d")]), ["x"]);
    let nothing = Tar::default()
        .file(".wh.none")
        .file("none/.wh.x")
        .file("x/.wh.y");
    assert_eq!(shown([base(), nothing]), ["d/", "d/old", "x"]);
}

#[test]
fn an_opaque_directory_hides_all_below_it_of_lower_layers() {
    let base = || {
        Tar::default()
            .file("d/one")
            .file("d/sub/two")
            .file("d/sub/deep/three")
    };
    let layer = Tar::default()
        .file("d/new")
        .file("d/sub/deep/new")
        .file("d/.wh..wh..opq");
    let expected = ["d/", "d/new", "d/sub/", "d/sub/deep/", "d/sub/deep/new"];
    assert_eq!(shown([base(), layer]), expected);
    let at_root = Tar::default().file(".wh..wh..opq").file("only");
    assert_eq!(shown([base(), at_root]), ["only"]);
    // Marks of AUFS are neither files nor whiteouts.
    let aufs = Tar::default()
        .directory(".wh..wh.plnk")
        .file(".wh..wh.aufs");
    assert_eq!(shown([Tar::default().file("a"), aufs]), ["a"]);
}

#[test]
fn files_and_directories_take_each_others_place() {
    let base = || Tar::default().file("d/below").file("f");
    let layer = Tar::default().file("d").directory("f").file("f/below");
    assert_eq!(shown([base(), layer]), ["d", "f/", "f/below"]);
    let implied = Tar::default().file("f/below");
    assert_eq!(shown([base(), implied]), ["d/", "d/below", "f/", "f/below"]);
    let again = Tar::default().directory("d").file("d/more");
    assert_eq!(shown([base(), again]), ["d/", "d/below", "d/more", "f"]);
}

#[test]
fn a_directory_on_a_symlink_replaces_it_but_names_go_through_it() {
    let base = || Tar::default().file("usr/lib/one").symlink("lib", "usr/lib");
    let through = Tar::default().file("lib/two");
    assert_eq!(
        shown([base(), through]),
        [
            "lib -> usr/lib",
            "usr/",
            "usr/lib/",
            "usr/lib/one",
            "usr/lib/two"
        ]
    );
    let replaced = Tar::default().directory("lib").file("lib/two");
    assert_eq!(
        shown([base(), replaced]),
        ["lib/", "lib/two", "usr/", "usr/lib/", "usr/lib/one"]
    );
}

#[test]
fn hard_links_share_a_node_also_across_layers_and_until_one_is_replaced() {
    let base = || {
        Tar::default()
            .file("a")
            .hard_link("b", "./a")
            .symlink("l", "a")
    };
    let layer = Tar::default()
        .hard_link("c", "b")
        .hard_link("m", "l")
        .file("a");
    assert_eq!(
        shown([base(), layer]),
        ["a", "b", "c = b", "l -> a", "m -> a"]
    );
    // The name that is linked to may be the name that is written.
    assert_eq!(
        shown([base(), Tar::default().hard_link("a", "a")])[..2],
        ["a", "b = a"]
    );
}

#[test]
fn absolute_symlinks_resolve_inside_the_root() {
    let layer = Tar::default()
        .symlink("etc", "/conf")
        .file("etc/passwd")
        .symlink("x/up", "../y/./z")
        .file("x/up/file");
    assert_eq!(
        shown([layer]),
        [
            "conf/",
            "conf/passwd",
            "etc -> /conf",
            "x/",
            "x/up -> ../y/./z",
            "y/",
            "y/z/",
            "y/z/file"
        ]
    );
}

#[test]
fn every_way_out_of_the_root_is_refused_with_layer_and_entry() {
    let escapes: [(Tar, &str); 13] = [
        (Tar::default().file("../evil"), "../evil"),
        (Tar::default().file("a/../../evil"), "a/../../evil"),
        (Tar::default().directory(".."), ".."),
        (Tar::default().file("/etc/evil"), "/etc/evil"),
        (
            Tar::default().symlink("out", "../..").file("out/evil"),
            "out/evil",
        ),
        (
            Tar::default()
                .symlink("a/out", "../../x")
                .file("a/out/evil"),
            "a/out/evil",
        ),
        (
            Tar::default().symlink("out", "/../x").file("out/evil"),
            "out/evil",
        ),
        (
            Tar::default()
                .symlink("one", "two")
                .symlink("two", "a/../..")
                .file("a/b")
                .file("one/evil"),
            "one/evil",
        ),
        (
            Tar::default().symlink("loop", "loop").file("loop/evil"),
            "loop/evil",
        ),
        (Tar::default().hard_link("evil", "../etc/passwd"), "evil"),
        (Tar::default().hard_link("evil", "/etc/passwd"), "evil"),
        (
            Tar::default().symlink("out", "..").file("out/.wh.evil"),
            "out/.wh.evil",
        ),
        (Tar::default().file(".wh..."), ".wh..."),
    ];
    for (layer, name) in escapes {
        let error = flatten([layer]).unwrap_err();
        assert_eq!(error.reason(), "LayerEscapesRoot", "{error}");
        assert!(error.to_string().contains(&LAYER.to_string()), "{error}");
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }
}

#[test]
fn contradictions_are_refused() {
    for layer in [
        Tar::default().file("f").file("f/below"),
        Tar::default().hard_link("l", "missing"),
        Tar::default().directory("d").hard_link("l", "d"),
        Tar::default().hard_link("l", "."),
        Tar::default().file("."),
        Tar::default().symlink("l", ""),
        Tar::default().file(".wh."),
        Tar::default().put("v", EntryType::new(b'V'), "", b""),
        Tar::default().put("s", EntryType::GNUSparse, "", b""),
    ] {
        let error = flatten([layer]).unwrap_err();
        assert_eq!(error.reason(), "LayerInvalid", "{error}");
    }
}

#[test]
fn a_path_may_be_deep_but_not_endlessly() {
    // Each link doubles the way.
    let mut layer = Tar::default().symlink("l0", "a/b/c/d/e/f/g/h");
    for link in 1..20 {
        let target = format!("l{0}/../../../../../../../../l{0}", link - 1);
        layer = layer.symlink(&format!("l{link}"), &target);
    }
    let error = flatten([layer.file("l19/x")]).unwrap_err();
    assert!(
        error.to_string().contains("steps") || error.to_string().contains("loop"),
        "{error}"
    );
}

#[test]
fn a_cut_archive_is_truncated_and_other_damage_invalid() {
    // Each a header, one byte of data, and padding, which may be missing.
    let whole = Tar::default().file("a").file("b").0;
    for cut in [1, 511, 512, 1025, 1535, 1536] {
        let error = apply(&mut Tree::new(), 0, &whole[..cut]).unwrap_err();
        assert_eq!(error.reason(), "LayerTruncated", "at {cut}");
    }
    for cut in [0, 513, 1024, 1537, 2048] {
        apply(&mut Tree::new(), 0, &whole[..cut]).unwrap();
    }
    let mut damaged = whole.clone();
    damaged[1024] ^= 1;
    let error = apply(&mut Tree::new(), 0, &damaged).unwrap_err();
    assert_eq!(error.reason(), "LayerInvalid");
}

/// The model: whole paths in a map; whiteouts first, then the entries in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Directory,
    /// Which file: of which layer, and its number there.
    File(usize, usize),
    Symlink(String),
}

#[derive(Debug, Clone)]
enum Change {
    Directory(String),
    File(String),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

/// Each with the layer that wrote its name.
type Model = BTreeMap<String, (Thing, usize)>;

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn remove_below(model: &mut Model, path: &str) {
    let prefix = format!("{path}/");
    model.retain(|other, _| !(path.is_empty() || other.starts_with(&prefix)));
}

/// None where an entry contradicts what is there.
fn apply_model(model: &mut Model, layer: usize, changes: &[Change]) -> Option<()> {
    for change in changes {
        match change {
            Change::Whiteout(path) => {
                remove_below(model, path);
                model.remove(path);
            }
            Change::Opaque(path) => remove_below(model, path),
            _ => {}
        }
    }
    for (number, change) in changes.iter().enumerate() {
        let (path, thing) = match change {
            Change::Whiteout(_) | Change::Opaque(_) => continue,
            Change::Directory(path) => (path, Thing::Directory),
            Change::File(path) => (path, Thing::File(layer, number)),
            Change::Symlink(path, target) => (path, Thing::Symlink(target.clone())),
            Change::HardLink(path, target) => {
                let (thing, _) = model.get(target)?.clone();
                if thing == Thing::Directory {
                    return None;
                }
                (path, thing)
            }
        };
        let mut above = parent(path);
        while !above.is_empty() {
            match model.get(above) {
                Some((Thing::Directory, _)) => {}
                Some((_, written)) if *written == layer => return None,
                _ => drop(model.insert(above.to_owned(), (Thing::Directory, layer))),
            }
            above = parent(above);
        }
        if thing != Thing::Directory {
            remove_below(model, path);
        }
        model.insert(path.clone(), (thing, layer));
    }
    Some(())
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.join("/"))
}

/// Symbolic links have names that are no part of other paths: the model does not
/// follow them.
fn link_path() -> impl Strategy<Value = String> {
    (path(), "[st]").prop_map(|(path, name)| format!("{path}/{name}"))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => path().prop_map(Change::Directory),
        4 => path().prop_map(Change::File),
        1 => (link_path(), "[a-z/.]{1,8}").prop_map(|(path, target)| Change::Symlink(path, target)),
        1 => (path(), path()).prop_map(|(path, target)| Change::HardLink(path, target)),
        2 => path().prop_map(Change::Whiteout),
        1 => path().prop_map(Change::Opaque),
    ]
}

fn archive_of(layer: usize, changes: &[Change]) -> Tar {
    let number_of = |index: usize| format!("{layer}.{index}");
    changes
        .iter()
        .enumerate()
        .fold(Tar::default(), |tar, (index, change)| match change {
            Change::Directory(path) => tar.directory(&format!("{path}/")),
            Change::File(path) => {
                tar.put(path, EntryType::Regular, "", number_of(index).as_bytes())
            }
            Change::Symlink(path, target) => tar.symlink(path, target),
            Change::HardLink(path, target) => tar.hard_link(path, target),
            Change::Whiteout(path) => {
                let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
                tar.file(&format!("{directory}/.wh.{name}"))
            }
            Change::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq")),
        })
}

/// The flattened tree in the model's terms; contents are read from the archives.
fn as_model(tree: &Tree, archives: &[Vec<u8>]) -> BTreeMap<String, Thing> {
    fn add(
        tree: &Tree,
        id: NodeId,
        path: &str,
        archives: &[Vec<u8>],
        model: &mut BTreeMap<String, Thing>,
    ) {
        for (name, entry) in tree.names(id).unwrap() {
            let name = std::str::from_utf8(name).unwrap();
            let path = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}/{name}")
            };
            let thing = match &tree.node(entry.node).kind {
                Kind::Directory(_) => {
                    add(tree, entry.node, &path, archives, model);
                    Thing::Directory
                }
                Kind::Symlink(target) => Thing::Symlink(String::from_utf8_lossy(target).into()),
                Kind::File(extent) => {
                    let start = usize::try_from(extent.offset).unwrap();
                    let end = start + usize::try_from(extent.length).unwrap();
                    let text = std::str::from_utf8(&archives[extent.layer][start..end]).unwrap();
                    let (layer, number) = text.split_once('.').unwrap();
                    Thing::File(layer.parse().unwrap(), number.parse().unwrap())
                }
                _ => unreachable!("no devices were made"),
            };
            model.insert(path, thing);
        }
    }
    let mut model = BTreeMap::new();
    add(tree, tree.root(), "", archives, &mut model);
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn layers_flatten_as_the_model_says(
        layers in prop::collection::vec(prop::collection::vec(change(), 0..14), 1..5),
    ) {
        let mut model = Model::new();
        let mut tree = Tree::new();
        let mut archives = Vec::new();
        for (index, mut changes) in layers.into_iter().enumerate() {
            // A hard link sees what was there when its turn came: only then is the
            // place of whiteouts in a layer of any importance.
            if changes.iter().any(|change| matches!(change, Change::HardLink(..))) {
                changes.sort_by_key(|change| {
                    !matches!(change, Change::Whiteout(_) | Change::Opaque(_))
                });
            }
            let archive = archive_of(index, &changes).0;
            let expected = apply_model(&mut model, index, &changes);
            let done = apply(&mut tree, index, &archive);
            prop_assert_eq!(done.is_ok(), expected.is_some(), "{:?}", done);
            archives.push(archive);
            if done.is_err() {
                return Ok(());
            }
            let things: BTreeMap<_, _> =
                model.iter().map(|(path, (thing, _))| (path.clone(), thing.clone())).collect();
            prop_assert_eq!(as_model(&tree, &archives), things);
        }
    }

    #[test]
    fn garbage_is_refused_or_flattened_but_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..4000),
    ) {
        let _ = apply(&mut Tree::new(), 0, &bytes);
    }

    #[test]
    fn damaged_archives_never_panic(
        changes in prop::collection::vec(change(), 1..10),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        fix_checksums in any::<bool>(),
    ) {
        let mut bytes = archive_of(0, &changes).0;
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if fix_checksums {
            for block in bytes.chunks_exact_mut(512) {
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        bytes.truncate(1 + cut.index(bytes.len()));
        let _ = apply(&mut Tree::new(), 0, &bytes);
    }

    #[test]
    fn names_that_lead_through_links_stay_inside(
        links in prop::collection::vec(("[abc]", "(/|\\.\\./|[abc]/){0,5}[abc]?"), 1..6),
        names in prop::collection::vec("([abc]/|\\.\\./){0,5}[abc]", 1..6),
    ) {
        let mut layer = Tar::default();
        for (name, target) in &links {
            layer = layer.symlink(name, target);
        }
        for name in &names {
            layer = layer.file(name);
        }
        // Refused, or all there is hangs below the root: `show` would not end else.
        if let Ok(tree) = flatten([layer]) {
            prop_assert!(!show(&tree).is_empty());
        }
    }
}
