//! The channel to the agent: one request at a time, one reply each, and the
//! machine's end.

mod request;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use longship_framed::error::Failure;
use longship_framed::vmm::message::Message as Content;
use longship_framed::vmm::{Alive, Exited, Message, Parked, Reply, Request, Stats, exited::Cause};
use longship_framed::{FrameError, receive_frame_with_fds, write_frame};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::request::Operation;
use crate::machine::{Machine, MachineSpec, RestoreSpec};
use crate::notices::{Notice, Notices};
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
    let notices = Arc::new(Notices::new()?);
    let mut session = Session {
        machine: None,
        notices: Arc::clone(&notices),
    };
    loop {
        let ready = wait(channel, &notices)?;
        if ready.notices
            && let Some(end) = session.hear(channel)?
        {
            return Ok(end);
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
    notices: Arc<Notices>,
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
                self.no_machine()?;
                let spec = MachineSpec::check(create, fds)?;
                let machine = Machine::create(spec, Arc::clone(&self.notices), steps)?;
                self.machine = Some(machine);
            }
            Operation::Restore(restore, fds) => {
                self.no_machine()?;
                let spec = steps.measure("check", || RestoreSpec::check(restore, fds))?;
                let machine = Machine::restore(spec, Arc::clone(&self.notices), steps)?;
                self.machine = Some(machine);
            }
            Operation::Snapshot(file) => self.machine()?.snapshot(&file, steps)?,
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

    fn no_machine(&self) -> Result<(), Failure> {
        match self.machine {
            None => Ok(()),
            Some(_) => Err(Failure::conflict("the machine exists already")),
        }
    }

    fn machine(&mut self) -> Result<&mut Machine, Failure> {
        self.machine
            .as_mut()
            .ok_or_else(|| Failure::conflict("the machine is not created yet"))
    }

    /// Tells the agent what the machine's threads have told, and does what follows
    /// from it; says if the machine has ended.
    fn hear(&mut self, channel: &UnixStream) -> Result<Option<End>, ServeError> {
        for notice in self.notices.take() {
            match notice {
                Notice::Alive(time_us) => send(channel, Content::Alive(Alive { time_us }))?,
                Notice::Parking => {
                    if let Some(machine) = &mut self.machine {
                        machine.park();
                        send(channel, Content::Parked(Parked {}))?;
                    }
                }
                Notice::Ended(ending) => return self.finish(channel, ending).map(Some),
            }
        }
        Ok(None)
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
    notices: bool,
}

/// Sleeps until the agent asks for something or the machine tells of something.
fn wait(channel: &UnixStream, notices: &Notices) -> io::Result<Ready> {
    // SAFETY: the eventfd is open for as long as `notices` is borrowed.
    let event = unsafe { BorrowedFd::borrow_raw(notices.event().as_raw_fd()) };
    let mut fds = [
        PollFd::new(event, PollFlags::POLLIN),
        PollFd::new(channel.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let [notices, channel] = fds.map(|fd| fd.any().unwrap_or(true));
    Ok(Ready { channel, notices })
}
