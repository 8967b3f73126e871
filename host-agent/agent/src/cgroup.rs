//! One cgroup (v2) a VMM, with its limits (Linux, admin-guide/cgroup-v2). It is named by
//! a serial number: a clone has one before any sandbox has the clone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use longship_framed::error::Failure;
use longship_probe::CONTROLLERS;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::shape::Shape;

/// Length of the period in which CPU time is counted, microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// `cpu.weight` of a sandbox with one CPU, the kernel's default.
const WEIGHT_PER_CPU: u64 = 100;
/// `cpu.weight` of what no sandbox waits for.
const WEIGHT_BACKGROUND: u64 = 1;
/// What a VMM may use beside its guest's memory: its own, and kernel objects.
const OVERHEAD_BYTES: u64 = 32 << 20;
/// And for page tables (two sets of 1/512 each) and reverse maps, this part of
/// the guest's memory.
const OVERHEAD_PART: u64 = 128;
/// Threads of a VMM beside its vCPUs.
const OTHER_THREADS: u32 = 16;
/// How long the kernel may take to let go of a cgroup without processes.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// What could not be done with a cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The host has no cgroup v2 that serves.
    #[error("{0}")]
    Host(#[from] longship_probe::CgroupError),
    /// The agent's cgroup is elsewhere.
    #[error("is not below {0}, where cgroup v2 is mounted")]
    Outside(PathBuf),
    /// A processes' cgroup cannot pass controllers on.
    #[error(
        "{0} holds processes itself, so it cannot pass controllers on to cgroups below it; \
         choose another place"
    )]
    Occupied(PathBuf),
    /// A file operation failed.
    #[error("{action} {path}: {error}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

impl From<CgroupError> for Failure {
    fn from(error: CgroupError) -> Self {
        Failure::internal(format!("cgroup: {error}"))
    }
}

/// Who waits for what runs in a cgroup, and so its share of CPU time against others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nobody yet.
    Background,
    /// A sandbox that was promised so many thousandths of a CPU; `None`: nothing.
    Sandbox(Option<u32>),
}

impl Share {
    /// For `cpu.weight`.
    fn weight(self) -> u64 {
        match self {
            Self::Background => WEIGHT_BACKGROUND,
            Self::Sandbox(None) => WEIGHT_PER_CPU,
            Self::Sandbox(Some(millis)) => {
                (u64::from(millis) * WEIGHT_PER_CPU / 1000).clamp(1, 10_000)
            }
        }
    }
}

/// The cgroup below which all VMMs have theirs.
#[derive(Debug)]
pub(crate) struct CgroupRoot {
    path: PathBuf,
    next: AtomicU64,
}

impl CgroupRoot {
    /// Makes the cgroup at `path` where it is missing, and has it and all above it
    /// pass on the controllers.
    ///
    /// # Errors
    /// [`CgroupError`], where the host has no cgroup v2 or its tree does not allow it.
    pub(crate) fn prepare(path: &Path) -> Result<Self, CgroupError> {
        let mount = longship_probe::cgroup2_mount()?;
        let below = path
            .strip_prefix(&mount)
            .ok()
            .filter(|below| {
                below.components().next().is_some()
                    && below
                        .components()
                        .all(|part| matches!(part, std::path::Component::Normal(_)))
            })
            .ok_or_else(|| CgroupError::Outside(mount.clone()))?;
        let mut folder = mount.clone();
        pass_on_controllers(&folder)?;
        for part in below.components() {
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("make", &folder)(error));
                }
                _ => pass_on_controllers(&folder)?,
            }
        }
        Ok(Self {
            path: folder,
            next: AtomicU64::new(1),
        })
    }

    /// Ends and removes what a former agent left; gives the names.
    ///
    /// # Errors
    /// [`CgroupError::Io`] where something stays.
    pub(crate) fn sweep(&self) -> Result<Vec<String>, CgroupError> {
        let mut swept = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io_error("read", &self.path))? {
            let entry = entry.map_err(io_error("read", &self.path))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                kill(&entry.path())?;
                remove_blocking(&entry.path())?;
                swept.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(swept)
    }

    /// Makes a cgroup with the limits of a machine of this shape.
    ///
    /// # Errors
    /// [`CgroupError::Io`]; nothing is left then.
    pub(crate) fn create(&self, shape: Shape, share: Share) -> Result<Cgroup, CgroupError> {
        let serial = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("vm-{serial}"));
        fs::create_dir(&path).map_err(io_error("make", &path))?;
        // From here on its drop undoes it.
        let mut cgroup = Cgroup { path, folder: None };
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(&cgroup.path)
            .map_err(io_error("open", &cgroup.path))?;
        for (file, value) in limits(shape) {
            cgroup.write_at(&folder, file, &value)?;
        }
        if share.weight() != WEIGHT_PER_CPU {
            cgroup.write_at(&folder, "cpu.weight", &share.weight().to_string())?;
        }
        cgroup.folder = Some(folder);
        Ok(cgroup)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the cgroup itself where it is empty.
    pub(crate) fn remove_if_empty(&self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// A VMM's cgroup. Dropping it kills what runs in it and removes it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// Open while processes are to be started in it.
    folder: Option<File>,
}

impl Cgroup {
    /// For `CLONE_INTO_CGROUP` (clone3(2)); `None` once it is closed.
    pub(crate) fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().map(AsFd::as_fd)
    }

    /// No process is to be started in it any more.
    pub(crate) fn close_folder(&mut self) {
        self.folder = None;
    }

    /// Gives it another share of CPU time.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub(crate) fn set_share(&self, share: Share) -> Result<(), CgroupError> {
        write(&self.path.join("cpu.weight"), &share.weight().to_string())
    }

    /// Holds it to this much CPU time (thousandths of a CPU), from now on.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub(crate) fn limit_cpu(&self, millis: u32) -> Result<(), CgroupError> {
        write(&self.path.join("cpu.max"), &cpu_max(millis))
    }

    /// Writes to one of its files by way of its open folder, which spares the kernel the
    /// whole path.
    fn write_at(&self, folder: &File, name: &str, value: &str) -> Result<(), CgroupError> {
        let at = |action| move |error| io_error(action, &self.path.join(name))(error);
        // Without O_CREAT: a file that is not there is a controller that is missing.
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(folder, name, flags, Mode::empty())
            .map_err(|error| at("open")(error.into()))?;
        io::Write::write_all(&mut File::from(file), value.as_bytes()).map_err(at("write"))
    }

    /// Ends every process in it, at once.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        kill(&self.path)
    }

    /// Memory that is charged to it, in bytes.
    pub(crate) fn charged_bytes(&self) -> u64 {
        let current = fs::read_to_string(self.path.join("memory.current"));
        current.map_or(0, |text| text.trim().parse().unwrap_or(0))
    }

    /// Whether the kernel killed a process in it for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        fs::read_to_string(self.path.join("memory.events"))
            .is_ok_and(|events| events_say_killed(&events))
    }

    /// Removes it, once its processes have ended.
    ///
    /// # Errors
    /// [`CgroupError::Io`] where it stays; its drop tries once more.
    pub(crate) async fn remove(&mut self) -> Result<(), CgroupError> {
        self.folder = None;
        let give_up = Instant::now() + REMOVE_PATIENCE;
        loop {
            match fs::remove_dir(&self.path) {
                Err(error) if is_busy(&error) && Instant::now() < give_up => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &self.path)(error));
                }
                _ => {
                    self.path = PathBuf::new();
                    return Ok(());
                }
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        let undone = kill(&self.path).and_then(|()| remove_blocking(&self.path));
        if let Err(error) = undone {
            tracing::warn!("a cgroup is left: {error}");
        }
    }
}

/// The files to write, and what to write into them. CPU time is not limited yet: until
/// the guest is up it may use what is idle.
fn limits(shape: Shape) -> [(&'static str, String); 2] {
    let overhead = OVERHEAD_BYTES.saturating_add(shape.memory_bytes / OVERHEAD_PART);
    let memory = shape.memory_bytes.saturating_add(overhead);
    let processes = shape.vcpus.saturating_add(OTHER_THREADS);
    [
        ("memory.max", memory.to_string()),
        ("pids.max", processes.to_string()),
    ]
}

fn cpu_max(millis: u32) -> String {
    let quota = u64::from(millis) * CPU_PERIOD_US / 1000;
    format!("{quota} {CPU_PERIOD_US}")
}

fn pass_on_controllers(folder: &Path) -> Result<(), CgroupError> {
    let file = folder.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).map_err(io_error("read", &file))?;
    let wanted: Vec<String> = CONTROLLERS
        .iter()
        .filter(|name| !enabled.split_whitespace().any(|word| word == **name))
        .map(|name| format!("+{name}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    write(&file, &wanted.join(" ")).map_err(|error| match error {
        CgroupError::Io { error, .. } if is_busy(&error) => {
            CgroupError::Occupied(folder.to_owned())
        }
        other => other,
    })
}

fn kill(path: &Path) -> Result<(), CgroupError> {
    match write(&path.join("cgroup.kill"), "1") {
        Err(CgroupError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_blocking(path: &Path) -> Result<(), CgroupError> {
    let give_up = Instant::now() + REMOVE_PATIENCE;
    loop {
        match fs::remove_dir(path) {
            Err(error) if is_busy(&error) && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", path)(error));
            }
            _ => return Ok(()),
        }
    }
}

fn events_say_killed(events: &str) -> bool {
    events
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim() != "0")
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Without O_CREAT: a file that is not there is a controller that is missing.
    let mut file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(io_error("open", path))?;
    io::Write::write_all(&mut file, value.as_bytes()).map_err(io_error("write", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |error| CgroupError::Io {
        action,
        path,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Profile;

    const SHAPE: Shape = Shape {
        vcpus: 2,
        memory_bytes: 128 << 20,
        profile: Profile::Dense,
    };

    #[test]
    fn limits_are_the_guests_and_an_allowance() {
        let expected = [
            ("memory.max", ((128_u64 + 32 + 1) << 20).to_string()),
            ("pids.max", "18".to_owned()),
        ];
        assert_eq!(limits(SHAPE), expected);
        assert_eq!(cpu_max(500), "50000 100000");
    }

    #[test]
    fn a_share_is_what_was_promised_and_a_spare_clones_is_least() {
        assert_eq!(Share::Sandbox(Some(500)).weight(), 50);
        assert_eq!(Share::Sandbox(None).weight(), 100);
        assert_eq!(Share::Sandbox(Some(u32::MAX)).weight(), 10_000);
        assert_eq!(Share::Sandbox(Some(1)).weight(), 1);
        assert_eq!(Share::Background.weight(), 1);
    }

    #[test]
    fn a_cgroup_without_its_controllers_is_refused_and_undone() {
        // An ordinary folder has no memory.max.
        let folder = tempfile::tempdir().unwrap();
        let root = CgroupRoot {
            path: folder.path().to_owned(),
            next: AtomicU64::new(1),
        };
        let refused = root.create(SHAPE, Share::Background).unwrap_err();
        assert!(refused.to_string().contains("vm-1/memory.max"), "{refused}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_ordinary_folder_is_no_place_for_cgroups() {
        let folder = tempfile::tempdir().unwrap();
        assert!(CgroupRoot::prepare(folder.path()).is_err());
        assert!(CgroupRoot::prepare(Path::new("/sys/fs/cgroup/../x")).is_err());
    }

    #[test]
    fn an_out_of_memory_kill_is_read_from_the_events() {
        assert!(events_say_killed(
            "low 0\noom 1\noom_kill 1\noom_group_kill 0\n"
        ));
        assert!(!events_say_killed("low 0\noom 1\noom_kill 0\n"));
        assert!(!events_say_killed(""));
    }
}
