//! A container's root: the image below, what it writes above, and the kernel's
//! file systems in their places.
//!
//! [`assemble`] runs in the container's first process. All mounts are in its own
//! mount namespace, and go with it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};

use super::namespaces::in_background;
use crate::failed::{Doing, Failed};
use crate::mounts::{directory, mount_virtual};
use crate::{console, disks};

/// Where a root is put together. Each mount namespace has its own.
pub(crate) const ASSEMBLY: &str = "/run/longship/root";

/// Devices of every container (runtime-spec 1.2, "Default Devices"). They are
/// bound from init's; on all other file systems of a container, device nodes
/// have no effect, so that none can reach a disk past its file system.
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// What tells too much about, or reaches, the kernel.
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];

/// What changes the whole pod.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The directories on the scratch disk that one container writes to; they go
/// when this is dropped.
#[derive(Debug)]
pub(crate) struct WritableLayer {
    path: PathBuf,
}

impl WritableLayer {
    /// Makes an empty layer over `image`; on an error none is left. `number`
    /// tells containers of one name apart that run after each other.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn create(container: &str, number: u64, image: &Path) -> Result<Self, Failed> {
        let path = disks::containers().join(format!("{container}.{number}"));
        fs::create_dir(&path).doing(|| format!("create {}", path.display()))?;
        let layer = Self { path };
        let upper = layer.upper();
        for dir in [&upper, &layer.work()] {
            fs::create_dir(dir).doing(|| format!("create {}", dir.display()))?;
        }
        // The top directory shows the upper one's owner and mode.
        let like = fs::metadata(image).doing(|| format!("look at {}", image.display()))?;
        chown(&upper, Some(like.uid()), Some(like.gid()))
            .and_then(|()| fs::set_permissions(&upper, like.permissions()))
            .doing(|| format!("set up {}", upper.display()))?;
        Ok(layer)
    }

    fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    fn work(&self) -> PathBuf {
        self.path.join("work")
    }
}

impl Drop for WritableLayer {
    fn drop(&mut self) {
        let path = &self.path;
        // It may be large, and nothing waits for it.
        let begun = in_background(|| {
            if let Err(error) = fs::remove_dir_all(path) {
                console::warning!("remove {}: {error}", path.display());
            }
        });
        if let Err(failed) = begun {
            console::warning!("remove {}: {failed}", path.display());
        }
    }
}

/// All that a root is made of.
#[derive(Debug)]
pub(crate) struct RootPlan<'a> {
    /// Where the image is mounted.
    pub(crate) image: &'a Path,
    pub(crate) layer: &'a WritableLayer,
    /// Names and contents of files in /etc.
    pub(crate) etc: &'a [(&'static str, String)],
}

/// Puts the root together and makes it this process's. Whatever the image has
/// under a name, what is followed is followed inside the new root.
pub(super) fn assemble(plan: &RootPlan<'_>) -> Result<(), Failed> {
    mount_overlay(plan)?;
    let old_root = File::open("/").doing(|| "open the old root")?;
    chdir(ASSEMBLY).doing(|| "enter the new root")?;
    // The old root is then on top of the new one (pivot_root(2), NOTES).
    pivot_root(".", ".").doing(|| "pivot to the new root")?;
    // What is bound into the container is named relative to init's root.
    fchdir(&old_root).doing(|| "enter the old root")?;
    mount_kernel_file_systems()?;
    mount_devices()?;
    for path in MASKED {
        mask(path)?;
    }
    for path in READ_ONLY {
        make_read_only(path)?;
    }
    umount2(".", MntFlags::MNT_DETACH).doing(|| "leave the old root")?;
    chdir("/").doing(|| "enter the new root")?;
    for (name, content) in plan.etc {
        write_etc(name, content)?;
    }
    Ok(())
}

fn mount_overlay(plan: &RootPlan<'_>) -> Result<(), Failed> {
    // The layer does not outlive the machine, so nothing needs to reach the disk
    // in any order ("volatile").
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        plan.image.display(),
        plan.layer.upper().display(),
        plan.layer.work().display(),
    );
    mount_virtual("overlay", ASSEMBLY, MsFlags::MS_NODEV, &options)
}

fn mount_kernel_file_systems() -> Result<(), Failed> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let read_only = plain | MsFlags::MS_RDONLY;
    for dir in ["/proc", "/sys", "/dev", "/etc"] {
        directory(dir)?;
    }
    mount_virtual("proc", "/proc", plain, "")?;
    mount_virtual("sysfs", "/sys", read_only, "")?;
    mount_virtual("cgroup2", "/sys/fs/cgroup", read_only, "")
}

fn mount_devices() -> Result<(), Failed> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_virtual("tmpfs", "/dev", plain, "mode=755,size=64k")?;
    for name in DEVICES {
        let target = format!("/dev/{name}");
        File::create(&target).doing(|| format!("create {target}"))?;
        bind(&format!("dev/{name}"), &target)?;
    }
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        directory(dir)?;
    }
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = "newinstance,mode=620,gid=5,ptmxmode=666";
    mount_virtual("devpts", "/dev/pts", terminals, options)?;
    bind("dev/shm", "/dev/shm")?;
    bind("dev/mqueue", "/dev/mqueue")?;
    for (to, link) in LINKS {
        symlink(to, link).doing(|| format!("create {link}"))?;
    }
    Ok(())
}

/// Shows a path that is relative to the current directory at another.
fn bind(source: &str, target: &str) -> Result<(), Failed> {
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND, none)
        .doing(|| format!("bind {source} to {target}"))
}

/// Hides what is at `path`, if anything is.
fn mask(path: &str) -> Result<(), Failed> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => {
            mount_virtual("tmpfs", path, MsFlags::MS_RDONLY, "size=0,mode=755")
        }
        Ok(_) => bind("dev/null", path),
        Err(_) => Ok(()),
    }
}

/// Makes what is at `path`, if anything is, read-only.
fn make_read_only(path: &str) -> Result<(), Failed> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    bind(path, path)?;
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    let none = None::<&str>;
    mount(none, path, none, flags, none).doing(|| format!("make {path} read-only"))
}

/// Writes a file in /etc in place of the image's. It is the container's own, so
/// it can be replaced there as on any machine.
fn write_etc(name: &str, content: &str) -> Result<(), Failed> {
    let path = Path::new("/etc").join(name);
    let what = || format!("write {}", path.display());
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).doing(what),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    let mut file = options.open(&path).doing(what)?;
    file.write_all(content.as_bytes()).doing(what)?;
    // Whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(0o644))
        .doing(what)
}
