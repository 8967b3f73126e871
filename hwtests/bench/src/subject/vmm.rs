//! One of Longship's VMMs by itself, spoken to as the agent does.

use std::fs::File;
use std::io::{PipeReader, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use longship_framed::vmm::message::Message as Content;
use longship_framed::vmm::request::Operation;
use longship_framed::vmm::{Boot, Create, GetStats, Message, Reply, Request, Stats};
use longship_framed::{read_frame, send_frame_with_fds};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;

use crate::error::{BenchError, file, system};
use crate::subject::daemon::end_with_parent;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A VMM; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Vmm {
    child: Child,
    channel: UnixStream,
    next_id: u64,
    alive_us: Option<i64>,
}

/// What it boots.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) vcpus: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) command_line: &'a str,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
}

impl Vmm {
    /// Starts `program` and has it boot `guest`. The reader gets what the guest says on
    /// its console.
    ///
    /// # Errors
    /// What could not be opened, or the VMM's refusal.
    pub(crate) fn boot(
        program: &Path,
        guest: &Guest<'_>,
    ) -> Result<(Self, PipeReader), BenchError> {
        let mut vmm = Self::spawn(program)?;
        let (reader, writer) = pipe().map_err(system("make a pipe"))?;
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let kvm = kvm.map_err(file("open", "/dev/kvm"))?;
        let kernel = File::open(guest.kernel).map_err(file("open", guest.kernel))?;
        let initramfs = File::open(guest.initramfs).map_err(file("open", guest.initramfs))?;
        let create = Create {
            vcpus: guest.vcpus,
            memory_bytes: guest.memory_bytes,
            command_line: guest.command_line.to_owned(),
            has_initramfs: true,
            has_console: true,
            ..Create::default()
        };
        let fds = [
            kvm.as_fd(),
            kernel.as_fd(),
            initramfs.as_fd(),
            writer.as_fd(),
        ];
        vmm.request("create the machine", Operation::Create(create), &fds)?;
        vmm.request("boot the guest", Operation::Boot(Boot {}), &[])?;
        Ok((vmm, reader))
    }

    fn spawn(program: &Path) -> Result<Self, BenchError> {
        let (ours, theirs) = UnixStream::pair().map_err(system("make a socket pair"))?;
        ours.set_read_timeout(Some(PATIENCE))
            .map_err(system("set up a socket"))?;
        let fd = theirs.as_raw_fd();
        let mut command = Command::new(program);
        command
            .arg("--control-fd")
            .arg(fd.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: fcntl(2) is a plain system call, fine between fork and exec; `theirs`
        // is open until `spawn` has returned.
        unsafe {
            command.pre_exec(move || {
                let own = BorrowedFd::borrow_raw(fd);
                fcntl(own, FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(())
            });
        }
        end_with_parent(&mut command, Signal::SIGKILL);
        let child = command.spawn().map_err(file("start", program))?;
        Ok(Self {
            child,
            channel: ours,
            next_id: 1,
            alive_us: None,
        })
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has counted.
    ///
    /// # Errors
    /// That it does not answer.
    pub(crate) fn stats(&mut self) -> Result<Stats, BenchError> {
        let reply = self.request("ask for statistics", Operation::Stats(GetStats {}), &[])?;
        Ok(reply.stats.unwrap_or_default())
    }

    /// When the guest's init did its first act, microseconds since the Unix epoch;
    /// waits for it.
    ///
    /// # Errors
    /// That the guest ended before.
    pub(crate) fn alive_us(&mut self) -> Result<i64, BenchError> {
        loop {
            if let Some(alive) = self.alive_us {
                return Ok(alive);
            }
            if let Content::Exited(exited) = self.receive("wait for the guest's first act")? {
                let why = format!("the guest has ended: {}", exited.message);
                return Err(BenchError::Impossible(why));
            }
        }
    }

    fn request(
        &mut self,
        action: &'static str,
        operation: Operation,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, BenchError> {
        let request = Request {
            id: self.next_id,
            operation: Some(operation),
        };
        self.next_id += 1;
        send_frame_with_fds(&self.channel, &request, fds)
            .map_err(|error| BenchError::Channel { action, error })?;
        loop {
            match self.receive(action)? {
                Content::Reply(reply) => {
                    return match reply.failure {
                        None => Ok(reply),
                        Some(failure) => Err(BenchError::Call {
                            call: action,
                            failure,
                        }),
                    };
                }
                Content::Exited(exited) => {
                    let why = format!("{action}: the guest has ended: {}", exited.message);
                    return Err(BenchError::Impossible(why));
                }
                Content::Parked(_) | Content::Alive(_) => {}
            }
        }
    }

    fn receive(&mut self, action: &'static str) -> Result<Content, BenchError> {
        let message: Option<Message> = read_frame(&mut &self.channel)
            .map_err(|error| BenchError::Channel { action, error })?;
        let content = message
            .and_then(|message| message.message)
            .ok_or_else(|| BenchError::Impossible(format!("{action}: the VMM has gone")))?;
        if let Content::Alive(alive) = &content {
            self.alive_us = Some(alive.time_us);
        }
        Ok(content)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
