//! Plays the agent towards one `longship-vmm`, in tests and examples.

#![allow(dead_code, unreachable_pub, reason = "each test uses its own part")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use longship_framed::vmm::message::Message as Content;
use longship_framed::vmm::request::Operation;
use longship_framed::vmm::{
    AttachDevice, Boot, Create, DeviceType, Exited, GetStats, Message, Reply, Request, Stop,
};
use longship_framed::{read_frame, send_frame_with_fds};

/// The descriptor by which the VMM gets its channel.
const CONTROL_FD: i32 = 3;

/// A VMM and the channel to it. It is killed when this is dropped.
pub struct Vmm {
    pub child: Child,
    pub channel: UnixStream,
    next_id: u64,
    exited: Option<Exited>,
}

impl Vmm {
    /// Starts `program`.
    pub fn spawn(program: &Path) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = theirs.as_raw_fd();
        let mut command = Command::new(program);
        command.arg("--control-fd").arg(CONTROL_FD.to_string());
        // SAFETY: dup2 and fcntl are async-signal-safe; `theirs` is open until spawn
        // returns.
        unsafe {
            command.pre_exec(move || {
                let copied = if fd == CONTROL_FD {
                    libc::fcntl(fd, libc::F_SETFD, 0)
                } else {
                    libc::dup2(fd, CONTROL_FD)
                };
                if copied < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        // A VMM that hangs fails the test, and does not hang it too.
        ours.set_read_timeout(Some(Duration::from_secs(240)))
            .unwrap();
        Self {
            child,
            channel: ours,
            next_id: 1,
            exited: None,
        }
    }

    /// Sends a request and waits for its reply.
    pub fn request(&mut self, operation: Operation, fds: &[BorrowedFd<'_>]) -> Reply {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            id,
            operation: Some(operation),
        };
        send_frame_with_fds(&self.channel, &request, fds).unwrap();
        loop {
            match self.receive() {
                Some(Content::Reply(reply)) => {
                    assert_eq!(reply.id, id);
                    return reply;
                }
                Some(Content::Exited(exited)) => self.exited = Some(exited),
                Some(Content::Parked(_) | Content::Alive(_)) => {}
                None => panic!("the VMM is gone"),
            }
        }
    }

    /// As [`Vmm::request`]; it must succeed.
    pub fn done(&mut self, operation: Operation, fds: &[BorrowedFd<'_>]) -> Reply {
        let reply = self.request(operation, fds);
        assert_eq!(reply.failure, None);
        reply
    }

    /// Creates the machine.
    pub fn create(
        &mut self,
        vcpus: u32,
        memory_bytes: u64,
        command_line: &str,
        kernel: &File,
        initramfs: Option<&File>,
        console: Option<&File>,
    ) -> Reply {
        let kvm = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .expect("/dev/kvm");
        let mut fds = vec![kvm.as_fd(), kernel.as_fd()];
        fds.extend(initramfs.map(AsFd::as_fd));
        fds.extend(console.map(AsFd::as_fd));
        let create = Create {
            vcpus,
            memory_bytes,
            command_line: command_line.to_owned(),
            has_initramfs: initramfs.is_some(),
            has_console: console.is_some(),
            ..Create::default()
        };
        self.request(Operation::Create(create), &fds)
    }

    /// Attaches the device whose backend listens at `socket`.
    pub fn attach(&mut self, kind: DeviceType, socket: &Path) -> Reply {
        let backend = UnixStream::connect(socket).unwrap();
        self.attach_connected(kind, &backend)
    }

    /// Attaches the device whose backend is at the other end of `backend`.
    pub fn attach_connected(&mut self, kind: DeviceType, backend: &UnixStream) -> Reply {
        let attach = AttachDevice {
            r#type: kind.into(),
        };
        self.request(Operation::Attach(attach), &[backend.as_fd()])
    }

    pub fn boot(&mut self) -> Reply {
        self.done(Operation::Boot(Boot {}), &[])
    }

    pub fn stats(&mut self) -> longship_framed::vmm::Stats {
        self.done(Operation::Stats(GetStats {}), &[]).stats.unwrap()
    }

    pub fn stop(&mut self) -> Reply {
        self.done(Operation::Stop(Stop {}), &[])
    }

    /// Waits until the guest has ended.
    pub fn exited(&mut self) -> Exited {
        if let Some(exited) = self.exited.take() {
            return exited;
        }
        match self.receive() {
            Some(Content::Exited(exited)) => exited,
            other => panic!("expected the guest's end, got {other:?}"),
        }
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    fn receive(&mut self) -> Option<Content> {
        let message: Option<Message> = read_frame(&mut &self.channel).unwrap();
        message.map(|message| message.message.unwrap())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
