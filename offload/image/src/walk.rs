//! Paths of layer entries, resolved inside the image's own tree.

use std::collections::VecDeque;

use crate::tree::{Kind, Name, Node, NodeId, Tree};

/// Linux's limits for a path and for one name, in bytes.
const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;
/// Linux's limit for symbolic links on one path.
const MAX_LINKS: usize = 40;
/// The most names on one way, those of symbolic links included. It also limits
/// how deep a tree can get.
const MAX_STEPS: usize = 1024;

/// Why a path leads nowhere.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WalkError {
    #[error("its path is absolute")]
    Absolute,
    #[error("its path climbs above the root")]
    Climbs,
    #[error("the symbolic link {0:?} on its path climbs above the root")]
    LinkClimbs(String),
    #[error("the symbolic links on its path form a loop")]
    Loop,
    #[error("{0:?} on its path is no directory")]
    NotADirectory(String),
    #[error("its path has {0} bytes; {MAX_PATH} are possible")]
    PathTooLong(usize),
    #[error("a name on its path has {0} bytes; {MAX_NAME} are possible")]
    NameTooLong(usize),
    #[error("its path has more than {MAX_STEPS} steps")]
    TooDeep,
    #[error("a name on its path holds a zero byte")]
    Zero,
}

impl WalkError {
    /// Whether the path would have left the root, or never ended.
    pub(crate) fn is_escape(&self) -> bool {
        matches!(
            self,
            Self::Absolute | Self::Climbs | Self::LinkClimbs(_) | Self::Loop
        )
    }
}

/// The names of a relative path, with `.` and `..` resolved as written. None for
/// the root itself, which is also what a path of slashes alone means.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, WalkError> {
    if path.len() > MAX_PATH {
        return Err(WalkError::PathTooLong(path.len()));
    }
    if path.contains(&0) {
        return Err(WalkError::Zero);
    }
    if path.starts_with(b"/") && path.iter().any(|&byte| byte != b'/') {
        return Err(WalkError::Absolute);
    }
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or(WalkError::Climbs)?;
            }
            _ if name.len() > MAX_NAME => return Err(WalkError::NameTooLong(name.len())),
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// Goes through a tree from its root, following symbolic links inside it.
pub(crate) struct Walker<'a> {
    tree: &'a mut Tree,
    /// Missing directories are made for this layer.
    create: Option<usize>,
}

/// What a walk has yet to do; `link` is the symbolic link that the name came from.
struct Step {
    name: Box<[u8]>,
    link: Option<Box<[u8]>>,
}

impl<'a> Walker<'a> {
    pub(crate) fn looking(tree: &'a mut Tree) -> Self {
        Self { tree, create: None }
    }

    pub(crate) fn creating(tree: &'a mut Tree, layer: usize) -> Self {
        Self {
            tree,
            create: Some(layer),
        }
    }

    /// The directory at `path`, made where it is missing.
    pub(crate) fn directory(self, path: &[&[u8]]) -> Result<NodeId, WalkError> {
        // A creating walk always finds one.
        self.find_directory(path)?.ok_or(WalkError::TooDeep)
    }

    /// The directory at `path`; none where it is missing and not to be made.
    pub(crate) fn find_directory(mut self, path: &[&[u8]]) -> Result<Option<NodeId>, WalkError> {
        let mut here = vec![self.tree.root()];
        let mut steps: VecDeque<Step> = path
            .iter()
            .map(|&name| Step {
                name: name.into(),
                link: None,
            })
            .collect();
        let (mut taken, mut links) = (0, 0);
        while let Some(step) = steps.pop_front() {
            taken += 1;
            if taken > MAX_STEPS {
                return Err(WalkError::TooDeep);
            }
            let at = here.last().copied().unwrap_or_else(|| self.tree.root());
            if &*step.name == b".." {
                if here.len() == 1 {
                    let link = step.link.unwrap_or_default();
                    return Err(WalkError::LinkClimbs(lossy(&link)));
                }
                here.pop();
                continue;
            }
            let Some(next) = self.child(at, &step.name) else {
                return Ok(None);
            };
            match &self.tree.node(next.node).kind {
                Kind::Directory(_) => here.push(next.node),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(WalkError::Loop);
                    }
                    if target.starts_with(b"/") {
                        here.truncate(1);
                    }
                    follow(target, &mut steps)?;
                }
                // What a layer has below a name hides what lower layers have there.
                _ if self.create.is_some_and(|layer| layer != next.layer) => {
                    here.extend(self.make(at, &step.name));
                }
                _ => return Err(WalkError::NotADirectory(lossy(&step.name))),
            }
        }
        Ok(here.last().copied())
    }

    /// What `name` is in `directory`, made where it is missing and wanted.
    fn child(&mut self, directory: NodeId, name: &[u8]) -> Option<Name> {
        if let Some(found) = self.tree.names(directory)?.get(name) {
            return Some(*found);
        }
        let node = self.make(directory, name)?;
        let layer = self.create?;
        Some(Name { node, layer })
    }

    /// An implied directory in the place of whatever `name` was; none where this
    /// walk only looks.
    fn make(&mut self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let layer = self.create?;
        let node = self.tree.add(Node::implied_directory());
        let names = self.tree.names_mut(directory)?;
        names.insert(name.into(), Name { node, layer });
        Some(node)
    }
}

/// Puts the names of a link's target before the other steps.
fn follow(target: &[u8], steps: &mut VecDeque<Step>) -> Result<(), WalkError> {
    for name in target.rsplit(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            _ if name.len() > MAX_NAME => return Err(WalkError::NameTooLong(name.len())),
            _ => steps.push_front(Step {
                name: name.into(),
                link: Some(target.into()),
            }),
        }
    }
    Ok(())
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_into_names() {
        let of = |path: &'static str| components(path.as_bytes());
        assert_eq!(of("./a//b/").unwrap(), [&b"a"[..], b"b"]);
        assert_eq!(of("a/./x/../b").unwrap(), [&b"a"[..], b"b"]);
        for root in ["", ".", "./", "/", "//", "a/.."] {
            assert!(of(root).unwrap().is_empty(), "{root}");
        }
        assert_eq!(of("a/../../b"), Err(WalkError::Climbs));
        assert_eq!(of(".."), Err(WalkError::Climbs));
        assert_eq!(of("/etc/passwd"), Err(WalkError::Absolute));
        assert_eq!(of("a\0b"), Err(WalkError::Zero));
        let long = "n".repeat(256);
        assert_eq!(
            components(long.as_bytes()),
            Err(WalkError::NameTooLong(256))
        );
    }
}
