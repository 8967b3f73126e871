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

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use longship_framed::vmm::message::Message as Content;
use longship_framed::vmm::request::Operation;
use longship_framed::vmm::{
    AttachDevice, Boot, Create, DeviceType, Exited, GetStats, Message, Reply, Request, Restore,
    Snapshot, Stop,
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
    parked: bool,
    alive_us: Option<i64>,
}

/// A template: what its VMM has left behind.
pub struct Template {
    pub state: File,
    pub memory: File,
}

/// A memfd of `bytes` that can be sealed.
pub fn memfd(bytes: u64) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"template", flags).unwrap());
    file.set_len(bytes).unwrap();
    file
}

fn seal(file: &File) {
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
}

fn kvm() -> File {
    let mut options = File::options();
    let kvm = options.read(true).write(true).open("/dev/kvm");
    kvm.expect("/dev/kvm")
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
            parked: false,
            alive_us: None,
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
                Some(other) => self.note(other),
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
        let create = Create {
            vcpus,
            memory_bytes,
            command_line: command_line.to_owned(),
            ..Create::default()
        };
        self.create_as(create, kernel, initramfs, console, None)
    }

    /// Creates the machine that `create` describes, with these descriptors.
    pub fn create_as(
        &mut self,
        mut create: Create,
        kernel: &File,
        initramfs: Option<&File>,
        console: Option<&File>,
        memory: Option<&File>,
    ) -> Reply {
        create.has_initramfs = initramfs.is_some();
        create.has_console = console.is_some();
        create.has_memory = memory.is_some();
        let kvm = kvm();
        let mut fds = vec![kvm.as_fd(), kernel.as_fd()];
        fds.extend(
            [initramfs, console, memory]
                .into_iter()
                .flatten()
                .map(AsFd::as_fd),
        );
        self.request(Operation::Create(create), &fds)
    }

    /// Waits until the guest has parked, writes its state and ends the VMM.
    pub fn into_template(mut self, memory: File) -> Template {
        self.parked();
        let state = memfd(0);
        assert_eq!(self.snapshot(&state).failure, None);
        self.stop();
        assert_eq!(self.wait().code(), Some(0));
        seal(&state);
        seal(&memory);
        Template { state, memory }
    }

    /// Makes the machine from a template.
    pub fn restore(&mut self, template: &Template, console: Option<&File>) -> Reply {
        let kvm = kvm();
        let mut fds = vec![kvm.as_fd(), template.state.as_fd(), template.memory.as_fd()];
        fds.extend(console.map(AsFd::as_fd));
        let restore = Restore {
            has_console: console.is_some(),
        };
        self.request(Operation::Restore(restore), &fds)
    }

    /// Writes the machine's state.
    pub fn snapshot(&mut self, state: &File) -> Reply {
        self.request(Operation::Snapshot(Snapshot {}), &[state.as_fd()])
    }

    /// Waits until the guest has parked.
    pub fn parked(&mut self) {
        while !self.parked {
            let message = self.receive().expect("the guest parks");
            assert!(!matches!(message, Content::Exited(_)), "{message:?}");
            self.note(message);
        }
    }

    /// Waits for the guest's first act; when it was, in microseconds since the Unix
    /// epoch.
    pub fn alive(&mut self) -> i64 {
        loop {
            if let Some(time) = self.alive_us {
                return time;
            }
            let message = self.receive().expect("the guest lives");
            assert!(!matches!(message, Content::Exited(_)), "{message:?}");
            self.note(message);
        }
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
        loop {
            if let Some(exited) = self.exited.take() {
                return exited;
            }
            let message = self.receive().expect("the guest's end");
            self.note(message);
        }
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Keeps what nobody waits for now.
    fn note(&mut self, message: Content) {
        match message {
            Content::Exited(exited) => self.exited = Some(exited),
            Content::Parked(_) => self.parked = true,
            Content::Alive(alive) => self.alive_us = Some(alive.time_us),
            Content::Reply(reply) => panic!("a reply that nobody waits for: {reply:?}"),
        }
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
