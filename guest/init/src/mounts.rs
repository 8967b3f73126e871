//! The file systems that a pod's guest has, apart from its disks.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::failed::{Doing, Failed};

/// Mounts a file system that needs no device.
///
/// # Errors
/// The kernel's, with the file system and the place.
pub(crate) fn mount_virtual(
    kind: &str,
    target: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), Failed> {
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .doing(|| format!("mount {kind} on {target}"))
}

/// Creates a directory, unless it is there.
///
/// # Errors
/// The kernel's.
pub(crate) fn directory(path: &str) -> Result<(), Failed> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.doing(|| format!("create {path}")),
    }
}

/// Puts a mount of its own over the kernel's first root. That one has no parent,
/// so no container could pivot away from it.
///
/// # Errors
/// The kernel's.
pub(crate) fn own_root() -> Result<(), Failed> {
    let none = None::<&str>;
    mount(Some("/"), "/run", none, MsFlags::MS_BIND, none).doing(|| "bind the root")?;
    chdir("/run").doing(|| "enter the bound root")?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).doing(|| "move the root")?;
    chroot(".").doing(|| "change the root")?;
    chdir("/").doing(|| "enter the root")
}

/// Mounts everything that the kernel itself provides.
///
/// # Errors
/// The kernel's.
pub(crate) fn virtual_file_systems() -> Result<(), Failed> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let devices = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_virtual("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755")?;
    mount_virtual("proc", "/proc", plain, "")?;
    mount_virtual("sysfs", "/sys", plain, "")?;
    mount_virtual("tmpfs", "/run", plain, "mode=755")?;
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        directory(dir)?;
    }
    mount_virtual("devpts", "/dev/pts", devices, "mode=620,gid=5,ptmxmode=666")?;
    // Shared by the pod's containers, as its IPC namespace is.
    mount_virtual("tmpfs", "/dev/shm", plain, "mode=1777,size=64m")?;
    mount_virtual("mqueue", "/dev/mqueue", plain, "")?;
    mount_virtual("cgroup2", "/sys/fs/cgroup", plain, "")
}

/// Sets one of the kernel's parameters under /proc/sys.
///
/// # Errors
/// The kernel's.
pub(crate) fn sysctl(name: &str, value: &str) -> Result<(), Failed> {
    fs::write(format!("/proc/sys/{name}"), value).doing(|| format!("set {name} to {value}"))
}
