//! Resources of a container: one cgroup (v2) each.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use crate::failed::{Doing, Failed};

const ROOT: &str = "/sys/fs/cgroup";
const CONTAINERS: &str = "/sys/fs/cgroup/containers";
const CONTROLLERS: &str = "+cpu +memory +pids";

/// The period of `cpu.max`, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// What a container may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Thousandths of a CPU.
    pub(crate) cpu_millis: Option<u32>,
    pub(crate) memory_bytes: Option<u64>,
}

impl Limits {
    /// The cgroup's files and what is written to them.
    fn files(self, most_processes: u64) -> Vec<(&'static str, String)> {
        let mut files = vec![("pids.max", most_processes.to_string())];
        if let Some(millis) = self.cpu_millis {
            let quota = u64::from(millis) * CPU_PERIOD_US / 1000;
            files.push(("cpu.max", format!("{quota} {CPU_PERIOD_US}")));
        }
        if let Some(bytes) = self.memory_bytes {
            files.push(("memory.max", bytes.to_string()));
            // Half a container is of no use: it ends as a whole.
            files.push(("memory.oom.group", "1".to_owned()));
        }
        files
    }
}

/// Hands the controllers down to where the containers' cgroups will be.
///
/// # Errors
/// The kernel's.
pub(crate) fn prepare() -> Result<(), Failed> {
    let delegate = |dir: &str| {
        fs::write(format!("{dir}/cgroup.subtree_control"), CONTROLLERS)
            .doing(|| format!("enable {CONTROLLERS} below {dir}"))
    };
    delegate(ROOT)?;
    fs::create_dir(CONTAINERS).doing(|| format!("create {CONTAINERS}"))?;
    delegate(CONTAINERS)
}

/// A container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroup {
    /// Makes the cgroup; on an error none is left.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn create(container: &str, limits: Limits) -> Result<Self, Failed> {
        let path = Path::new(CONTAINERS).join(container);
        fs::create_dir(&path).doing(|| format!("create {}", path.display()))?;
        let made = File::open(&path)
            .doing(|| format!("open {}", path.display()))
            .and_then(|directory| {
                for (file, value) in limits.files(most_processes()) {
                    let file = path.join(file);
                    fs::write(&file, &value)
                        .doing(|| format!("write {value:?} to {}", file.display()))?;
                }
                Ok(directory)
            });
        match made {
            Ok(directory) => Ok(Self { path, directory }),
            Err(failed) => {
                // Nothing can be in it yet; the first failure is the one to tell.
                let _ = fs::remove_dir(&path);
                Err(failed)
            }
        }
    }

    /// Kills all that is in it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn kill_all(&self) -> Result<(), Failed> {
        fs::write(self.path.join("cgroup.kill"), "1")
            .doing(|| format!("kill all in {}", self.path.display()))
    }

    /// Sends a signal to all that is in it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), Failed> {
        if signal == libc::SIGKILL {
            return self.kill_all();
        }
        let list = fs::read_to_string(self.path.join("cgroup.procs"))
            .doing(|| format!("list the processes in {}", self.path.display()))?;
        for pid in list.lines().filter_map(|line| line.parse().ok()) {
            send(Pid::from_raw(pid), signal)?;
        }
        Ok(())
    }

    /// How many of its processes have been killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        fs::read_to_string(self.path.join("memory.events"))
            .ok()
            .and_then(|text| event(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// Removes it; false where something in it is still on its way out.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn remove(&self) -> Result<bool, Failed> {
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(false),
            Err(error) => Err(Failed::new(
                format!("remove {}", self.path.display()),
                error,
            )),
        }
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Sends a signal by number, real-time ones too; a process that is gone is fine.
///
/// # Errors
/// The kernel's.
pub(crate) fn send(pid: Pid, signal: i32) -> Result<(), Failed> {
    // SAFETY: kill(2) takes two numbers.
    match unsafe { libc::kill(pid.as_raw(), signal) } {
        0 => Ok(()),
        _ => match std::io::Error::last_os_error() {
            gone if gone.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(Failed::new(format!("send signal {signal} to {pid}"), error)),
        },
    }
}

/// Half of what the machine can have, so that init and other containers can
/// always start something.
fn most_processes() -> u64 {
    fs::read_to_string("/proc/sys/kernel/threads-max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .map_or(1024, |most| most / 2)
}

/// The value of `name` in a file of `name value` lines.
fn event(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_kernels_words() {
        let limits = Limits {
            cpu_millis: Some(1500),
            memory_bytes: Some(64 << 20),
        };
        let files = limits.files(100);
        assert!(files.contains(&("cpu.max", "150000 100000".into())));
        assert!(files.contains(&("memory.max", "67108864".into())));
        assert!(files.contains(&("pids.max", "100".into())));
        let none = Limits {
            cpu_millis: None,
            memory_bytes: None,
        };
        assert_eq!(none.files(7), [("pids.max", "7".into())]);
        let most = Limits {
            cpu_millis: Some(u32::MAX),
            memory_bytes: None,
        };
        assert!(
            most.files(1)
                .contains(&("cpu.max", "429496729500 100000".into()))
        );
    }

    #[test]
    fn events_are_found_by_their_whole_name() {
        let text = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(event(text, "oom_kill"), Some(2));
        assert_eq!(event(text, "oom"), Some(3));
        assert_eq!(event(text, "max"), None);
        assert_eq!(event("oom_kill x", "oom_kill"), None);
    }

    #[test]
    fn a_signal_to_nobody_is_no_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        child.wait().unwrap();
        send(pid, libc::SIGTERM).unwrap();
    }
}
