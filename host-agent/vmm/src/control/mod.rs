//! The channel to the agent: one request at a time, one reply each, and the
//! machine's end.

mod request;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use longship_framed::error::Failure;
use longship_framed::vmm::message::Message as Content;
use longship_framed::vmm::{Exited, Message, Reply, Request, Stats, exited::Cause};
use longship_framed::{FrameError, receive_frame_with_fds, write_frame};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::request::Operation;
use crate::machine::{Ended, Machine, MachineSpec};
use crate::steps::Steps;
use crate::vcpu::Ending;

/// How a VMM came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The agent asked for it, or is gone.
    Stopped,
    /// The guest asked to be reset or powered off.
    GuestReset,
    /// The guest failed, or KVM did.
    Failed,
}

/// Why the channel cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The channel is broken, or what came is no request.
    #[error("control channel: {0}")]
    Channel(#[from] FrameError),
    /// Waiting on it failed.
    #[error("waiting on the control channel: {0}")]
    Wait(#[from] io::Error),
}

/// Serves the agent at the other end of `channel`, until the machine ends, the
/// agent says so, or is gone. The machine is gone when this returns.
///
/// # Errors
/// [`ServeError`], where the channel fails or carries what is no request.
pub fn serve(channel: &UnixStream) -> Result<End, ServeError> {
    let ended = Arc::new(Ended::new()?);
    let mut session = Session {
        machine: None,
        ended: Arc::clone(&ended),
    };
    loop {
        let ready = wait(channel, &ended)?;
        if ready.ended
            && let Some(ending) = ended.get()
        {
            return session.finish(channel, ending);
        }
        if !ready.channel {
            continue;
        }
        let Some((request, fds)) = receive_frame_with_fds::<Request>(channel)? else {
            return Ok(End::Stopped);
        };
        let (reply, stop) = session.answer(request, fds);
        send(channel, Content::Reply(reply))?;
        if stop {
            return Ok(End::Stopped);
        }
    }
}

struct Session {
    machine: Option<Machine>,
    ended: Arc<Ended>,
}

impl Session {
    /// Does what is asked; says also whether it was to stop.
    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> (Reply, bool) {
        let id = request.id;
        let mut steps = Steps::default();
        let done = Operation::check(request, fds).and_then(|operation| {
            let stop = matches!(operation, Operation::Stop);
            self.perform(operation, &mut steps)
                .map(|stats| (stats, stop))
        });
        let (failure, stats, stop) = match done {
            Ok((stats, stop)) => (None, stats, stop),
            Err(failure) => {
                tracing::debug!("request {id} refused: {failure}");
                (Some(failure), None, false)
            }
        };
        let reply = Reply {
            id,
            failure,
            steps: steps.into_vec(),
            stats,
        };
        (reply, stop)
    }

    fn perform(
        &mut self,
        operation: Operation,
        steps: &mut Steps,
    ) -> Result<Option<Stats>, Failure> {
        match operation {
            Operation::Create(create, fds) => {
                if self.machine.is_some() {
                    return Err(Failure::conflict("the machine exists already"));
                }
                let spec = MachineSpec::check(create, fds)?;
                let machine = Machine::create(spec, Arc::clone(&self.ended), steps)?;
                self.machine = Some(machine);
            }
            Operation::Attach(kind, socket) => self.machine()?.attach(kind, socket, steps)?,
            Operation::Boot => self.machine()?.boot(steps)?,
            Operation::GetStats => return Ok(Some(self.machine()?.stats())),
            Operation::Stop => {
                if let Some(machine) = &mut self.machine {
                    machine.stop();
                }
            }
        }
        Ok(None)
    }

    fn machine(&mut self) -> Result<&mut Machine, Failure> {
        self.machine
            .as_mut()
            .ok_or_else(|| Failure::conflict("the machine is not created yet"))
    }

    /// Tells the agent of the machine's end.
    fn finish(&mut self, channel: &UnixStream, ending: Ending) -> Result<End, ServeError> {
        if let Some(machine) = &mut self.machine {
            machine.stop();
        }
        let (cause, message, end) = match ending {
            Ending::Reset => (
                Cause::GuestReset,
                "the guest asked to be reset or powered off".to_owned(),
                End::GuestReset,
            ),
            Ending::Fault => (
                Cause::GuestFault,
                "the guest's processor gave up (triple fault)".to_owned(),
                End::Failed,
            ),
            Ending::Failed(reason) => (Cause::Internal, reason, End::Failed),
            Ending::Stopped => return Ok(End::Stopped),
        };
        send(
            channel,
            Content::Exited(Exited {
                cause: cause.into(),
                message,
            }),
        )?;
        Ok(end)
    }
}

fn send(mut channel: &UnixStream, content: Content) -> Result<(), FrameError> {
    let message = Message {
        message: Some(content),
    };
    write_frame(&mut channel, &message)
}

struct Ready {
    channel: bool,
    ended: bool,
}

/// Sleeps until the agent asks for something or the machine has ended.
fn wait(channel: &UnixStream, ended: &Ended) -> io::Result<Ready> {
    // SAFETY: the eventfd is open for as long as `ended` is borrowed.
    let event = unsafe { BorrowedFd::borrow_raw(ended.event().as_raw_fd()) };
    let mut fds = [
        PollFd::new(event, PollFlags::POLLIN),
        PollFd::new(channel.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let [ended, channel] = fds.map(|fd| fd.any().unwrap_or(true));
    Ok(Ready { channel, ended })
}
