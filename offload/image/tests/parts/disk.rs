//! A disk as others see it: fsck.erofs, and the kernel where it may mount.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;

/// The disk's tree in a directory, until this is dropped.
pub struct Opened {
    directory: tempfile::TempDir,
    mounted: bool,
}

/// What one name of a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub links: u64,
    /// A file's content, a link's target, a device's number.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first name of the same file.
    pub same_as: PathBuf,
}

pub fn fsck(disk: &Path) {
    run(Command::new("fsck.erofs").arg("--extract").arg(disk));
}

/// Mounts the disk; where the kernel does not let us, fsck.erofs extracts it.
pub fn open(disk: &Path) -> Opened {
    fsck(disk);
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "erofs", "-o", "loop,ro"])
        .arg(disk)
        .arg(directory.path())
        .output()
        .unwrap();
    if !mounted.status.success() {
        eprintln!(
            "compared without the kernel: {}",
            String::from_utf8_lossy(&mounted.stderr).trim()
        );
        run(Command::new("fsck.erofs")
            .arg(format!("--extract={}", directory.path().display()))
            .args(["--overwrite", "--force", "--preserve-perms"])
            .arg(disk));
    }
    Opened {
        directory,
        mounted: mounted.status.success(),
    }
}

impl Opened {
    /// Compares with what [`list`] gave, as exactly as our rights and the way of
    /// opening allow. The root's own time is left out: unpacking changes it.
    pub fn assert_same(&self, expected: &BTreeMap<PathBuf, Seen>) {
        let (mut ours, mut theirs) = (list(self.path()), expected.clone());
        // A directory that no entry describes has no time of its own; umoci takes
        // the moment of unpacking.
        let implied = |seen: &Seen| seen.kind == "directory" && seen.mtime == (0, 0);
        let undated: Vec<PathBuf> = ours
            .iter()
            .filter(|(_, seen)| implied(seen))
            .map(|(path, _)| path.clone())
            .collect();
        for path in undated {
            if let Some(seen) = theirs.get_mut(&path) {
                seen.mtime = (0, 0);
            }
        }
        for tree in [&mut ours, &mut theirs] {
            for (path, seen) in tree.iter_mut() {
                if seen.kind == "directory" {
                    // Link counts of directories are the file system's own matter.
                    seen.links = 0;
                }
                if path.as_os_str().is_empty() {
                    seen.mtime = (0, 0);
                }
                if !self.mounted {
                    // Lost when fsck.erofs extracts.
                    seen.xattrs.clear();
                    seen.links = 0;
                    seen.same_as = PathBuf::new();
                    seen.mode &= 0o1777;
                    if seen.kind == "symlink" {
                        seen.mtime = (0, 0);
                    }
                }
                if !nix::unistd::geteuid().is_root() {
                    seen.owner = (0, 0);
                    seen.xattrs.clear();
                }
            }
        }
        let names = |tree: &BTreeMap<PathBuf, Seen>| tree.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs));
        for (path, seen) in &ours {
            assert_eq!(seen, &theirs[path], "{}", path.display());
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn mounted(&self) -> bool {
        self.mounted
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.mounted {
            run(Command::new("umount").arg(self.directory.path()));
        }
    }
}

/// All below `root`, by relative path; the root itself is the empty path.
pub fn list(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut tree = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = if path.as_os_str().is_empty() {
            root.to_owned()
        } else {
            root.join(&path)
        };
        let metadata = full.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let (kind, content) = if kind.is_dir() {
            for entry in std::fs::read_dir(&full).unwrap() {
                todo.push(path.join(entry.unwrap().file_name()));
            }
            ("directory", Vec::new())
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&full).unwrap();
            ("symlink", target.as_os_str().as_bytes().to_vec())
        } else if kind.is_file() {
            ("file", std::fs::read(&full).unwrap())
        } else if kind.is_fifo() {
            ("fifo", Vec::new())
        } else {
            let kind = if kind.is_block_device() {
                "block"
            } else {
                "character"
            };
            (kind, metadata.rdev().to_le_bytes().to_vec())
        };
        let seen = Seen {
            kind: kind.to_owned(),
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            links: metadata.nlink(),
            content,
            xattrs: xattrs(&full),
            same_as: PathBuf::new(),
        };
        tree.insert(path, (metadata.ino(), seen));
    }
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    tree.into_iter()
        .map(|(path, (inode, mut seen))| {
            seen.same_as = first.entry(inode).or_insert_with(|| path.clone()).clone();
            (path, seen)
        })
        .collect()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: both buffers are ours, as long as told, and outlive the call.
    let length =
        unsafe { nix::libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(length) = usize::try_from(length) else {
        return BTreeMap::new();
    };
    names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = CString::new(name).unwrap();
            let mut value = vec![0_u8; 64 << 10];
            // SAFETY: as above; the names end with a zero byte.
            let length = unsafe {
                nix::libc::lgetxattr(
                    path.as_ptr(),
                    name.as_ptr(),
                    value.as_mut_ptr().cast(),
                    value.len(),
                )
            };
            value.truncate(usize::try_from(length).unwrap());
            (name.into_string().unwrap(), value)
        })
        .collect()
}
