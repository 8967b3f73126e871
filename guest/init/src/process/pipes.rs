//! The standard streams of a process that has no terminal.

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::failed::{Doing, Failed};
use crate::spec::ProcessSpec;

/// The sides that init reads from and writes to; all non-blocking.
#[derive(Debug, Default)]
pub(crate) struct InitEnds {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The sides that the process gets.
#[derive(Debug, Default)]
pub(crate) struct ChildEnds {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Makes the pipes that the process needs; none where it has a terminal.
///
/// # Errors
/// The kernel's.
pub(crate) fn pipes(spec: &ProcessSpec) -> Result<(InitEnds, ChildEnds), Failed> {
    let (mut inits, mut childs) = (InitEnds::default(), ChildEnds::default());
    if spec.terminal.is_some() {
        return Ok((inits, childs));
    }
    if spec.stdin {
        let (read, write) = pipe()?;
        non_blocking(&write)?;
        (childs.stdin, inits.stdin) = (Some(read), Some(write));
    }
    let (read, write) = pipe()?;
    non_blocking(&read)?;
    (inits.stdout, childs.stdout) = (Some(read), Some(write));
    let (read, write) = pipe()?;
    non_blocking(&read)?;
    (inits.stderr, childs.stderr) = (Some(read), Some(write));
    Ok((inits, childs))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failed> {
    pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe")
}

/// Makes a descriptor answer at once instead of waiting.
///
/// # Errors
/// The kernel's.
pub(super) fn non_blocking(fd: &OwnedFd) -> Result<(), Failed> {
    let what = || "make a descriptor non-blocking";
    let flags = fcntl(fd, FcntlArg::F_GETFL).doing(what)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).doing(what)?;
    Ok(())
}
