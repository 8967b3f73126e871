//! What a forked process tells init before it becomes the program, over a socket
//! pair that execve(2) closes: *ready*, with its terminal where it has one, then
//! nothing more where the program runs, else the failure.

use std::io::ErrorKind;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use longship_framed::error::Failure;
use longship_framed::guest::Reply;
use longship_framed::{FrameError, receive_frame_with_fds, send_frame_with_fds};

/// The forked process's end.
#[derive(Debug)]
pub(crate) struct Reporter(UnixStream);

impl Reporter {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self(socket)
    }

    /// All is set up; what follows is the program.
    ///
    /// # Errors
    /// Internal, where init is not there to hear it.
    pub(crate) fn ready(&self, terminal: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
        send_frame_with_fds(&self.0, &Reply::default(), terminal.as_slice())
            .map_err(|error| Failure::internal(format!("report to init: {error}")))
    }

    /// There will be no program.
    pub(crate) fn failed(&self, failure: Failure) {
        let reply = Reply {
            id: 0,
            failure: Some(failure),
        };
        // If init cannot hear it, it sees the process end.
        let _ = send_frame_with_fds(&self.0, &reply, &[]);
    }
}

/// What init hears.
#[derive(Debug)]
pub(crate) enum Report {
    /// Set up; the master of its terminal, where it has one.
    Ready(Option<OwnedFd>),
    Failed(Failure),
    /// The other end is closed: the program runs, or the process has ended.
    Closed,
    /// Nothing for now.
    Nothing,
}

/// Reads what there is; `socket` is non-blocking.
pub(crate) fn receive(socket: &UnixStream) -> Report {
    match receive_frame_with_fds::<Reply>(socket) {
        Ok(None) => Report::Closed,
        Ok(Some((reply, fds))) => match reply.failure {
            Some(failure) => Report::Failed(failure),
            None => Report::Ready(fds.into_iter().next()),
        },
        Err(FrameError::Io(error)) if error.kind() == ErrorKind::WouldBlock => Report::Nothing,
        Err(error) => Report::Failed(Failure::internal(format!("hear from a process: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (UnixStream, Reporter) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, Reporter::new(theirs))
    }

    #[test]
    fn ready_then_closed_is_a_program_that_runs() {
        let (ours, reporter) = pair();
        assert!(matches!(receive(&ours), Report::Nothing));
        let file = tempfile::tempfile().unwrap();
        reporter.ready(Some(file.as_fd())).unwrap();
        assert!(matches!(receive(&ours), Report::Ready(Some(_))));
        drop(reporter);
        assert!(matches!(receive(&ours), Report::Closed));
    }

    #[test]
    fn a_failure_comes_whole() {
        let (ours, reporter) = pair();
        let failure = Failure::invalid("process.user", "no user");
        reporter.ready(None).unwrap();
        reporter.failed(failure.clone());
        assert!(matches!(receive(&ours), Report::Ready(None)));
        assert!(matches!(receive(&ours), Report::Failed(heard) if heard == failure));
    }
}
