//! Every process that ends is waited for, whoever started it.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::failed::{Doing, Failed};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Killed(i32),
}

impl Ending {
    /// From the status of wait(2); none where the process has not ended.
    fn from_status(status: i32) -> Option<Self> {
        if libc::WIFEXITED(status) {
            Some(Self::Exited(libc::WEXITSTATUS(status)))
        } else if libc::WIFSIGNALED(status) {
            Some(Self::Killed(libc::WTERMSIG(status)))
        } else {
            None
        }
    }

    /// The exit code as shells tell it.
    pub(crate) fn exit_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }

    /// The signal that ended it; 0: none.
    pub(crate) fn signal(self) -> i32 {
        match self {
            Self::Exited(_) => 0,
            Self::Killed(signal) => signal,
        }
    }
}

/// Hears of processes that end.
#[derive(Debug)]
pub(crate) struct Reaper {
    signals: SignalFd,
}

impl Reaper {
    /// Takes SIGCHLD of this process.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new() -> Result<Self, Failed> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().doing(|| "block SIGCHLD")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).doing(|| "make a signal descriptor")?;
        Ok(Self { signals })
    }

    /// The processes that have ended since the last call.
    pub(crate) fn ended(&self) -> Vec<(Pid, Ending)> {
        // One signal may stand for many.
        while let Ok(Some(_)) = self.signals.read_signal() {}
        let mut ended = Vec::new();
        loop {
            let mut status = 0;
            // SAFETY: waitpid(2) writes one number, which outlives the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            match pid {
                1.. => ended.extend(Ending::from_status(status).map(|e| (Pid::from_raw(pid), e))),
                0 => return ended,
                _ if Errno::last() == Errno::EINTR => {}
                _ => return ended,
            }
        }
    }
}

impl AsFd for Reaper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_as_shells_do() {
        let exited = Ending::from_status(3 << 8).unwrap();
        assert_eq!((exited.exit_code(), exited.signal()), (3, 0));
        let killed = Ending::from_status(9).unwrap();
        assert_eq!((killed.exit_code(), killed.signal()), (137, 9));
        assert_eq!(Ending::from_status(0x137f), None, "stopped is not ended");
    }
}
