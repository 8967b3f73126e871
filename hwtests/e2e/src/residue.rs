//! What Longship may leave behind on a machine, looked at from outside.

use std::collections::BTreeSet;
use std::path::Path;

/// Everything of Longship's that exists now: processes, network interfaces and
/// namespaces, cgroups, loop devices, mounts.
#[derive(Debug, PartialEq, Eq)]
pub struct Residue {
    things: BTreeSet<String>,
}

impl Residue {
    /// Looks.
    pub fn now() -> Self {
        let mut things = BTreeSet::new();
        for pid in names(Path::new("/proc")) {
            if pid.bytes().all(|b| b.is_ascii_digit()) {
                let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                // A zombie is its parent's, not ours.
                if comm.starts_with("longship") && !stat.contains(") Z ") {
                    things.insert(format!("process {pid} {}", comm.trim()));
                }
                if let Ok(namespace) = std::fs::read_link(format!("/proc/{pid}/ns/net")) {
                    things.insert(format!("namespace {}", namespace.display()));
                }
            }
        }
        for interface in names(Path::new("/sys/class/net")) {
            things.insert(format!("interface {interface}"));
        }
        for cgroup in names(Path::new("/sys/fs/cgroup/longship")) {
            if Path::new("/sys/fs/cgroup/longship").join(&cgroup).is_dir() {
                things.insert(format!("cgroup longship/{cgroup}"));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        things.extend(mounts.lines().map(|m| format!("mount {m}")));
        Self { things }
    }

    /// Panics with what is there now and was not then.
    pub fn assert_nothing_new(&self) {
        let now = Self::now();
        let new: Vec<&String> = now.things.difference(&self.things).collect();
        assert!(new.is_empty(), "left behind: {new:#?}");
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}
