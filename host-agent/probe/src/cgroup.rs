//! cgroup v2, which bounds every sandbox.

use std::io;
use std::path::{Path, PathBuf};

use crate::check::Check;

/// The controllers that a sandbox's limits need.
pub const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Why cgroup v2 cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 file system is mounted.
    #[error("cgroup v2 is not mounted")]
    NotMounted,
    /// A file could not be read.
    #[error("read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Controllers are missing, most often because cgroup v1 has them.
    #[error("cgroup v2 at {mount} has no controller {missing}")]
    Controllers {
        /// Where it is mounted.
        mount: PathBuf,
        /// The missing ones, comma-separated.
        missing: String,
    },
}

/// Where cgroup v2 is mounted with all of [`CONTROLLERS`].
///
/// # Errors
/// [`CgroupError`] where there is no such mount.
pub fn cgroup2_mount() -> Result<PathBuf, CgroupError> {
    let mounts = read(Path::new("/proc/self/mounts"))?;
    let mount = find_mount(&mounts).ok_or(CgroupError::NotMounted)?;
    let available = read(&mount.join("cgroup.controllers"))?;
    let missing = missing_controllers(&available);
    if missing.is_empty() {
        Ok(mount)
    } else {
        Err(CgroupError::Controllers {
            mount,
            missing: missing.join(", "),
        })
    }
}

pub(crate) fn check_cgroup2() -> Check {
    const NAME: &str = "cgroup";
    match cgroup2_mount() {
        Ok(mount) => Check::ok(
            NAME,
            format!("v2 at {} with {}", mount.display(), CONTROLLERS.join(", ")),
        ),
        Err(error) => {
            let remedy = match error {
                CgroupError::NotMounted => "mount -t cgroup2 none /sys/fs/cgroup",
                CgroupError::Read { .. } => "mount /proc, and cgroup v2 at /sys/fs/cgroup",
                CgroupError::Controllers { .. } => {
                    "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all, or use the \
                     testbed: longship-testbed run -- COMMAND"
                }
            };
            Check::fail(NAME, error.to_string(), remedy)
        }
    }
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(|error| CgroupError::Read {
        path: path.to_owned(),
        error,
    })
}

/// The first cgroup2 mount in the text of /proc/self/mounts (proc(5)).
fn find_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        // Spaces in the path are written as octal 040.
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

fn missing_controllers(available: &str) -> Vec<&'static str> {
    let available: Vec<&str> = available.split_whitespace().collect();
    CONTROLLERS
        .into_iter()
        .filter(|name| !available.contains(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_among_others() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/my\\040own cgroup2 rw 0 0\n";
        assert_eq!(find_mount(mounts), Some("/sys/fs/cgroup/my own".into()));
        assert_eq!(find_mount("tmpfs / tmpfs rw 0 0\nshort"), None);
    }

    #[test]
    fn a_controller_is_a_word_and_not_a_part_of_one() {
        assert!(missing_controllers("cpuset cpu io memory pids\n").is_empty());
        assert_eq!(missing_controllers("cpuset memory"), ["cpu", "pids"]);
    }
}
