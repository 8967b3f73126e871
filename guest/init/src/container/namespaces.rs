//! New processes in new or in a container's namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

use crate::failed::{Doing, Failed};
use crate::{console, power};

/// Which process this is after a fork.
pub(super) enum Fork {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Init's own namespaces, to come back to.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pids: File,
}

impl Namespaces {
    /// Remembers the namespaces that this process has.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn of_init() -> Result<Self, Failed> {
        let pids = File::open("/proc/self/ns/pid").doing(|| "open init's pid namespace")?;
        Ok(Self { pids })
    }

    /// Forks into new pid and mount namespaces and into `cgroup`. The child is
    /// the first process there.
    pub(super) fn fork_new(&self, cgroup: BorrowedFd<'_>) -> Result<Fork, Failed> {
        let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
        fork(namespaces, cgroup).doing(|| "fork the container's first process")
    }

    /// Forks into the pid namespace of the process behind `pidfd` and into
    /// `cgroup`. Init is the parent, so it learns how the child ends.
    pub(super) fn fork_into(
        &self,
        pidfd: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
    ) -> Result<Fork, Failed> {
        setns(pidfd, CloneFlags::CLONE_NEWPID).doing(|| "enter the container's pid namespace")?;
        let forked = fork(0, cgroup).doing(|| "fork a process of the container");
        if matches!(forked, Ok(Fork::Child)) {
            return forked;
        }
        // Only what is forked from here on would be concerned, but that would be
        // other containers.
        if let Err(error) = setns(&self.pids, CloneFlags::CLONE_NEWPID) {
            console::error!("cannot come back from a pid namespace: {error}");
            power::off();
        }
        forked
    }
}

/// Makes the cgroup in which this process is the root of its own view.
pub(super) fn unshare_cgroup() -> Result<(), Failed> {
    unshare(CloneFlags::CLONE_NEWCGROUP).doing(|| "make a cgroup namespace")
}

/// Enters what [`unshare_cgroup`] and [`Namespaces::fork_new`] have made, seen
/// from the child of [`Namespaces::fork_into`].
pub(super) fn enter(pidfd: BorrowedFd<'_>) -> Result<(), Failed> {
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    setns(pidfd, namespaces).doing(|| "enter the container's namespaces")
}

/// clone3(2), as fork(2): the child has a copy of everything.
fn fork(namespaces: libc::c_int, cgroup: BorrowedFd<'_>) -> io::Result<Fork> {
    let bits = |flag: i64| u64::try_from(flag).unwrap_or(0);
    let mut pidfd: RawFd = -1;
    // SAFETY: the structure is plain numbers, for which zero means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // The constant of the C library's header is wider than its type.
    let into_cgroup = 0x2_0000_0000;
    arguments.flags = bits(i64::from(namespaces)) | bits(libc::CLONE_PIDFD.into()) | into_cgroup;
    arguments.exit_signal = bits(libc::SIGCHLD.into());
    arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    arguments.cgroup = bits(cgroup.as_raw_fd().into());
    // SAFETY: without CLONE_VM the child has its own copy of this memory, and
    // init has one thread, so nothing in the copy is half done. `arguments` and
    // `pidfd` outlive the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => {
            console::forked();
            Ok(Fork::Child)
        }
        Ok(pid) if pid > 0 => Ok(Fork::Parent {
            pid: Pid::from_raw(pid),
            // SAFETY: the kernel has just made this descriptor for this process.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `work` in a child of its own, which nobody waits for but the reaper.
///
/// # Errors
/// The kernel's.
pub(crate) fn in_background(work: impl FnOnce()) -> Result<(), Failed> {
    // SAFETY: init has one thread, so the child may do whatever init may.
    match unsafe { nix::unistd::fork() }.doing(|| "fork")? {
        nix::unistd::ForkResult::Parent { .. } => Ok(()),
        nix::unistd::ForkResult::Child => {
            console::forked();
            work();
            // SAFETY: ends this process at once, without init's clean-up.
            unsafe { libc::_exit(0) }
        }
    }
}

impl AsFd for Namespaces {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pids.as_fd()
    }
}
