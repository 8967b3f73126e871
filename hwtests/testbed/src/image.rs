//! The virtual host's kernel, modules and initramfs: made once, kept in a cache.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

/// What went wrong with the cached kernel and initramfs.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing says where the cache is.
    #[error("no place for the cache: set LONGSHIP_CACHE or HOME")]
    NoCache,
    /// The cache cannot be used.
    #[error("{doing} {path}: {error}", path = .path.display())]
    Cache {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The script that makes the pieces has failed, and has said why.
    #[error("the virtual host's kernel and initramfs could not be made")]
    Script,
}

const PREPARE: &str = include_str!("../image/prepare.sh");
const INIT: &str = include_str!("../image/init.sh");

/// The pieces a virtual host starts from.
#[derive(Debug)]
pub(crate) struct Image {
    directory: PathBuf,
}

impl Image {
    /// The cached pieces; makes them when there are none.
    pub(crate) fn prepare() -> Result<Self, ImageError> {
        let cache = cache()?;
        let directory = cache.join(key());
        if directory.exists() {
            return Ok(Self { directory });
        }
        within("creating", &cache, |path| fs::create_dir_all(path))?;
        let lock = within("locking", &cache.join("lock"), |path| File::create(path))?;
        let _lock =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| ImageError::Cache {
                doing: "locking",
                path: cache.join("lock"),
                error: errno.into(),
            })?;
        // Somebody else may have made them while this one waited.
        if !directory.exists() {
            make(&directory)?;
        }
        Ok(Self { directory })
    }

    /// The uncompressed kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// The initramfs.
    pub(crate) fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    /// The directory with `lib/modules`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("modules")
    }
}

/// Where what is made once is kept.
pub(crate) fn cache() -> Result<PathBuf, ImageError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    set("LONGSHIP_CACHE")
        .map(PathBuf::from)
        .or_else(|| set("XDG_CACHE_HOME").map(|base| Path::new(&base).join("longship")))
        .or_else(|| set("HOME").map(|base| Path::new(&base).join(".cache/longship")))
        .map(|cache| cache.join("testbed"))
        .ok_or(ImageError::NoCache)
}

/// Names the pieces by what they are made from. A newer kernel in the archive is no
/// reason to make them again.
fn key() -> String {
    let mut hasher = DefaultHasher::new();
    (PREPARE, INIT).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Makes the pieces beside their final place, which they reach complete or not at all.
fn make(directory: &Path) -> Result<(), ImageError> {
    let scratch = directory.with_extension("new");
    if scratch.exists() {
        within("removing", &scratch, |path| fs::remove_dir_all(path))?;
    }
    let scripts = scratch.join("scripts");
    within("creating", &scripts, |path| fs::create_dir_all(path))?;
    for (name, text) in [("prepare.sh", PREPARE), ("init.sh", INIT)] {
        let path = scripts.join(name);
        within("writing", &path, |path| fs::write(path, text))?;
        within("writing", &path, |path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        })?;
    }
    let status = within("running", &scripts.join("prepare.sh"), |path| {
        Command::new(path)
            .arg(&scratch)
            .stdin(Stdio::null())
            .stdout(io::stderr())
            .status()
    })?;
    if !status.success() {
        let _ = fs::remove_dir_all(&scratch);
        return Err(ImageError::Script);
    }
    within("creating", directory, |path| fs::rename(&scratch, path))
}

fn within<T>(
    doing: &'static str,
    path: &Path,
    act: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, ImageError> {
    act(path).map_err(|error| ImageError::Cache {
        doing,
        path: path.to_owned(),
        error,
    })
}
