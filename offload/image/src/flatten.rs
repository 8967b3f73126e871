//! Layers put on top of each other, as the OCI image spec ("Applying Changesets")
//! says. Nothing is extracted: the result is a [`Tree`].

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::layer::{Archive, Entry, EntryKind, TarError};
use crate::tree::{Extent, Kind, Metadata, Name, Node, NodeId, Tree};
use crate::walk::{WalkError, Walker, components};

/// The most files of one image, counted over all layers: each costs some 200
/// bytes of memory.
const MAX_NODES: usize = 1_000_000;

/// Linux's limit for what a symbolic link holds, in bytes.
const MAX_TARGET: usize = 4095;

const WHITEOUT: &[u8] = b".wh.";
/// Hides all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other marks of AUFS, which are no files and say nothing here.
const AUFS: &[u8] = b".wh..wh.";

/// Attributes by which overlayfs marks its own upper layers. In an image they
/// would be orders to the guest's overlayfs, not attributes of files.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Why an entry cannot be applied.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Walk(#[from] WalkError),
    #[error("the root must be a directory")]
    Root,
    #[error("a whiteout of nothing")]
    EmptyWhiteout,
    #[error("a hard link to {0:?}, which does not exist")]
    NoTarget(String),
    #[error("a hard link to {0:?}, which is a directory")]
    DirectoryTarget(String),
    #[error("a symbolic link of {0} bytes; 1 to {MAX_TARGET} without zeros are possible")]
    Target(usize),
}

/// Applies one layer's archive on top of `tree`. `index` is the layer's place,
/// by which its files' data are found; `layer` its digest, for messages.
///
/// # Errors
/// [`ImageError::LayerEscapesRoot`], [`ImageError::LayerInvalid`],
/// [`ImageError::Truncated`], [`ImageError::TooLarge`].
pub(crate) fn apply_layer(
    tree: &mut Tree,
    index: usize,
    layer: Digest,
    archive: Archive<impl Read + Seek>,
) -> Result<(), ImageError> {
    for entry in archive {
        let entry = entry.map_err(|error| broken(layer, &error))?;
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        apply_entry(tree, index, entry).map_err(|refusal| refuse(layer, name, &refusal))?;
        if tree.len() > MAX_NODES {
            return Err(ImageError::TooLarge {
                detail: format!("it has more than {MAX_NODES} files"),
            });
        }
    }
    Ok(())
}

fn broken(layer: Digest, error: &TarError) -> ImageError {
    match error {
        TarError::Truncated(_) => ImageError::Truncated {
            what: "layer",
            digest: layer,
            detail: error.to_string(),
        },
        _ => ImageError::LayerInvalid {
            layer,
            detail: error.to_string(),
        },
    }
}

fn refuse(layer: Digest, entry: String, refusal: &Refusal) -> ImageError {
    let detail = refusal.to_string();
    match refusal {
        Refusal::Walk(error) if error.is_escape() => ImageError::LayerEscapesRoot {
            layer,
            entry,
            detail,
        },
        _ => ImageError::LayerInvalid {
            layer,
            detail: format!("entry {entry:?}: {detail}"),
        },
    }
}

fn apply_entry(tree: &mut Tree, layer: usize, entry: Entry) -> Result<(), Refusal> {
    let Entry {
        path,
        metadata,
        kind,
    } = entry;
    let metadata = without_overlay(metadata);
    let path = components(&path)?;
    let Some((name, parents)) = path.split_last() else {
        return apply_root(tree, metadata, &kind);
    };
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        return white_out(tree, layer, parents, name, hidden);
    }
    // Looked for before anything is replaced: the target may be what is replaced.
    let content = content(tree, layer, kind)?;
    let directory = Walker::creating(tree, layer).directory(parents)?;
    let existing = tree
        .names(directory)
        .and_then(|names| names.get(*name).copied());
    let node = match (content, existing) {
        (Content::Linked(node), _) => node,
        // A directory on a directory keeps what is in it.
        (Content::New(Kind::Directory(_)), Some(existing))
            if tree.names(existing.node).is_some() =>
        {
            tree.node_mut(existing.node).metadata = metadata;
            existing.node
        }
        (Content::New(kind), _) => tree.add(Node { metadata, kind }),
    };
    if let Some(names) = tree.names_mut(directory) {
        names.insert((*name).into(), Name { node, layer });
    }
    Ok(())
}

fn apply_root(tree: &mut Tree, metadata: Metadata, kind: &EntryKind) -> Result<(), Refusal> {
    if *kind != EntryKind::Directory {
        return Err(Refusal::Root);
    }
    let root = tree.root();
    tree.node_mut(root).metadata = metadata;
    Ok(())
}

/// What a name is to lead to.
enum Content {
    /// A node of its own.
    New(Kind),
    /// One that has another name already.
    Linked(NodeId),
}

fn content(tree: &mut Tree, layer: usize, kind: EntryKind) -> Result<Content, Refusal> {
    Ok(Content::New(match kind {
        EntryKind::Directory => Kind::Directory(BTreeMap::new()),
        EntryKind::File { offset, length } => Kind::File(Extent {
            layer,
            offset,
            length,
        }),
        EntryKind::Symlink(target) => {
            if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                return Err(Refusal::Target(target.len()));
            }
            Kind::Symlink(target.into())
        }
        EntryKind::HardLink(target) => return find_target(tree, &target).map(Content::Linked),
        EntryKind::Character { major, minor } => Kind::Character { major, minor },
        EntryKind::Block { major, minor } => Kind::Block { major, minor },
        EntryKind::Fifo => Kind::Fifo,
    }))
}

fn without_overlay(mut metadata: Metadata) -> Metadata {
    metadata
        .xattrs
        .retain(|name, _| !OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix)));
    metadata
}

/// What a hard link points to; it may come from a lower layer.
fn find_target(tree: &mut Tree, target: &[u8]) -> Result<NodeId, Refusal> {
    let missing = || Refusal::NoTarget(lossy(target));
    let path = components(target)?;
    let (name, parents) = path
        .split_last()
        .ok_or_else(|| Refusal::DirectoryTarget(lossy(target)))?;
    let directory = Walker::looking(tree)
        .find_directory(parents)?
        .ok_or_else(missing)?;
    let found = tree
        .names(directory)
        .and_then(|names| names.get(*name))
        .ok_or_else(missing)?
        .node;
    if tree.names(found).is_some() {
        return Err(Refusal::DirectoryTarget(lossy(target)));
    }
    Ok(found)
}

fn white_out(
    tree: &mut Tree,
    layer: usize,
    parents: &[&[u8]],
    name: &[u8],
    hidden: &[u8],
) -> Result<(), Refusal> {
    if name != OPAQUE && name.starts_with(AUFS) {
        return Ok(());
    }
    match hidden {
        b"" => return Err(Refusal::EmptyWhiteout),
        b"." | b".." => return Err(WalkError::Climbs.into()),
        _ => {}
    }
    let directory = match Walker::looking(tree).find_directory(parents) {
        Ok(Some(directory)) => directory,
        // Nothing is there that could be hidden.
        Ok(None) | Err(WalkError::NotADirectory(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let found = tree
        .names(directory)
        .and_then(|names| names.get_key_value(hidden));
    if name == OPAQUE {
        clear_lower(tree, directory, layer);
    } else if let Some((name, entry)) = found.map(|(name, entry)| (name.clone(), *entry)) {
        hide_lower(tree, directory, name, entry, layer);
    }
    Ok(())
}

/// Removes from a directory what layers below `layer` put there.
fn clear_lower(tree: &mut Tree, directory: NodeId, layer: usize) {
    let Some(names) = tree.names(directory) else {
        return;
    };
    let all: Vec<(Box<[u8]>, Name)> = names
        .iter()
        .map(|(name, entry)| (name.clone(), *entry))
        .collect();
    for (name, entry) in all {
        hide_lower(tree, directory, name, entry, layer);
    }
}

/// Removes what layers below `layer` put at one name and under it. A whiteout says
/// nothing of its own layer, whichever comes first. The recursion is no deeper than
/// [`crate::walk`] lets a tree become.
fn hide_lower(tree: &mut Tree, directory: NodeId, name: Box<[u8]>, entry: Name, layer: usize) {
    clear_lower(tree, entry.node, layer);
    if entry.layer == layer {
        return;
    }
    let is_implied = tree
        .names(entry.node)
        .is_some_and(|names| !names.is_empty());
    if is_implied {
        // By what this layer has below it; the lower layers' directory is gone.
        tree.node_mut(entry.node).metadata = Node::implied_directory().metadata;
    }
    if let Some(names) = tree.names_mut(directory) {
        if is_implied {
            names.insert(name, Name { layer, ..entry });
        } else {
            names.remove(&name);
        }
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
#[path = "flatten_tests.rs"]
mod tests;
