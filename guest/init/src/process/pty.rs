//! Terminals: a pair of a container's own devpts instance (pty(7)).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::pipes::non_blocking;
use crate::failed::{Doing, Failed};
use crate::spec::WindowSize;

/// Where the container's devpts is.
const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// A terminal that a process is about to be started on.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: OwnedFd,
    device: OwnedFd,
}

impl Terminal {
    /// Opens a new terminal and makes it the controlling one of this session,
    /// which must have none. To be called in the container.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open(window: WindowSize) -> Result<Self, Failed> {
        let master: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(MULTIPLEXER)
            .doing(|| format!("open {MULTIPLEXER}"))?
            .into();
        let locked: libc::c_int = 0;
        // SAFETY: the request reads one number, which outlives the call.
        let unlocked =
            unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) };
        checked("unlock the terminal", unlocked)?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: the request takes a number, and gives a new descriptor.
        let device = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        checked("open the terminal", device)?;
        // SAFETY: the kernel has just made this descriptor for this process.
        let device = unsafe { OwnedFd::from_raw_fd(device) };
        resize(device.as_fd(), window)?;
        // SAFETY: the request takes a number.
        let control = unsafe { libc::ioctl(device.as_raw_fd(), libc::TIOCSCTTY, 0) };
        checked("take control of the terminal", control)?;
        non_blocking(&master)?;
        Ok(Self { master, device })
    }

    /// The side that init keeps; non-blocking.
    pub(crate) fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// The side that the process gets.
    pub(crate) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Sets a terminal's size; its foreground processes get SIGWINCH.
///
/// # Errors
/// The kernel's.
pub(crate) fn resize(terminal: BorrowedFd<'_>, window: WindowSize) -> Result<(), Failed> {
    let size = libc::winsize {
        ws_row: window.rows,
        ws_col: window.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request reads one winsize, which outlives the call.
    let set = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    checked("set the terminal's size", set)
}

fn checked(doing: &str, outcome: RawFd) -> Result<(), Failed> {
    if outcome >= 0 {
        return Ok(());
    }
    Err(Failed::new(doing, io::Error::last_os_error()))
}
