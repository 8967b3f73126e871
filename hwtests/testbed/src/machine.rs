//! One virtual host, from its start to its command's end.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid, pipe2};

use crate::Testbed;
use crate::image::Image;
use crate::qemu::Qemu;
use crate::relay::{self, End, Tail};
use crate::script::Shares;

/// How a virtual host failed its command.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The descriptors to talk with it could not be made.
    #[error("preparing the virtual host: {0}")]
    Descriptors(io::Error),
    /// QEMU could not be started.
    #[error("starting QEMU: {0}")]
    Start(io::Error),
    /// It ran out of time.
    #[error("the virtual host was ended after {}s; its console said last:\n{console}", .after.as_secs())]
    TimedOut {
        /// The time it had.
        after: Duration,
        /// The console's last lines.
        console: String,
    },
    /// It ended without its command's exit code: a panic, or a QEMU that crashed.
    #[error("the virtual host was lost ({status}); its console said last:\n{console}")]
    Lost {
        /// How QEMU ended.
        status: String,
        /// The console's last lines.
        console: String,
    },
}

/// What a command in a virtual host has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code, or 128 and the number of the signal that ended it.
    pub code: u8,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

/// The kernel's parameters: no mitigations, self-tests or probes, which cost emulated
/// seconds; a panic ends QEMU. The TSC is the caller's and needs no watching.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t oops=panic \
    mitigations=off rodata=off tsc=reliable no_timer_check random.trust_cpu=on audit=0 \
    apparmor=0 cryptomgr.notests initcall_blacklist=jent_mod_init nmi_watchdog=0 nowatchdog \
    i8042.noaux i8042.nomux i8042.dumbkbd noautogroup noresume raid=noautodetect";

/// A virtual host about to start.
pub(crate) struct Machine<'a> {
    pub(crate) qemu: &'a Qemu,
    /// Accelerator, CPUs, memory.
    pub(crate) arguments: Vec<OsString>,
    pub(crate) image: &'a Image,
    /// The script that runs the command.
    pub(crate) script: Vec<u8>,
    pub(crate) shares: Shares,
}

impl Machine<'_> {
    /// Starts the host and relays its command's output until the command has ended.
    pub(crate) fn run(
        &self,
        testbed: &Testbed,
        mut stdout: Box<dyn Write + Send>,
        mut stderr: Box<dyn Write + Send>,
    ) -> Result<u8, MachineError> {
        let deadline = testbed.timeout.map(|timeout| Instant::now() + timeout);
        let mark = end_mark().map_err(MachineError::Descriptors)?;
        let (wiring, inlets) = self
            .wire(&mark, testbed.exact)
            .map_err(MachineError::Descriptors)?;
        let mut qemu = wiring.start(self).map_err(MachineError::Start)?;

        let tail = Tail::new(testbed.show_console);
        let (events, inbox) = mpsc::channel();
        // Nobody needs an event that is sent after the verdict.
        let report = |event| drop(events.send(event));
        let (mark, report) = (mark.as_bytes(), &report);
        let (verdict, status) = thread::scope(|scope| {
            let (mut console, mut status) = (tail.clone(), inlets.status);
            scope.spawn(move || report(Event::Stream(relay::copy(inlets.out, &mut stdout, mark))));
            scope.spawn(move || report(Event::Stream(relay::copy(inlets.err, &mut stderr, mark))));
            scope.spawn(move || report(Event::Status(exit_code(&mut status))));
            scope.spawn(move || {
                report(Event::Stream(relay::copy(
                    inlets.console,
                    &mut console,
                    mark,
                )))
            });
            let verdict = verdict(&inbox, deadline);
            // With QEMU its ends of the pipes are gone, and so the threads end.
            let _ = qemu.kill();
            (verdict, qemu.wait())
        });
        match verdict {
            Verdict::Exited(code) => Ok(code),
            Verdict::TimedOut => Err(MachineError::TimedOut {
                after: testbed.timeout.unwrap_or_default(),
                console: tail.text(),
            }),
            Verdict::Lost => Err(MachineError::Lost {
                status: match status {
                    Ok(status) => format!("QEMU: {status}"),
                    Err(error) => format!("waiting for QEMU: {error}"),
                },
                console: tail.text(),
            }),
        }
    }

    /// Makes the descriptors through which QEMU talks, and the arguments that name them.
    fn wire(&self, mark: &str, exact: bool) -> io::Result<(Wiring, Inlets)> {
        let mut wiring = Wiring {
            arguments: self.arguments.clone(),
            inherited: Vec::new(),
            messages: None,
        };
        let console = wiring.outlet("console")?;
        wiring.argument("-serial", "chardev:console");
        wiring.argument("-device", "virtio-serial-pci,max_ports=4");
        let [out, err, status] = ["out", "err", "status"].map(|name| {
            wiring.argument(
                "-device",
                format!("virtserialport,chardev={name},name={name}"),
            );
            wiring.outlet(name)
        });
        wiring.say("command", &self.script)?;
        wiring.say("end", mark.as_bytes())?;
        wiring.say("clock", if exact { b"exact" } else { b"real" })?;
        wiring.export("root", Path::new("/"), true);
        wiring.export("modules", &self.image.modules(), true);
        let shares = self.shares.list();
        if !shares.is_empty() {
            wiring.say("shares", &shares)?;
        }
        for (tag, directory) in self.shares.iter() {
            wiring.export(tag, directory, false);
        }
        let inlets = Inlets {
            out: out?,
            err: err?,
            status: status?,
            console,
        };
        Ok((wiring, inlets))
    }
}

/// Our ends of the pipes from QEMU.
struct Inlets {
    out: File,
    err: File,
    status: File,
    console: File,
}

/// QEMU's arguments, and the descriptors they name.
struct Wiring {
    arguments: Vec<OsString>,
    inherited: Vec<OwnedFd>,
    /// Where QEMU's own messages go: to the console's.
    messages: Option<OwnedFd>,
}

impl Wiring {
    fn argument(&mut self, name: &str, value: impl Into<OsString>) {
        self.arguments.push(name.into());
        self.arguments.push(value.into());
    }

    /// A character device that is a pipe to us.
    fn outlet(&mut self, name: &str) -> io::Result<File> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        if name == "console" {
            self.messages = Some(theirs.try_clone()?);
        }
        let fd = theirs.as_raw_fd();
        self.argument("-add-fd", format!("fd={fd},set={fd}"));
        self.argument(
            "-chardev",
            format!("file,id={name},path=/dev/fdset/{fd},append=on"),
        );
        self.inherited.push(theirs);
        Ok(File::from(ours))
    }

    /// A file in the firmware's configuration, which the guest reads.
    fn say(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let file = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
        File::from(file.try_clone()?).write_all(content)?;
        let fd = file.as_raw_fd();
        self.argument(
            "-fw_cfg",
            format!("name=opt/longship/{name},file=/proc/self/fd/{fd}"),
        );
        self.inherited.push(file);
        Ok(())
    }

    /// A directory as a 9p file system.
    fn export(&mut self, tag: &str, directory: &Path, read_only: bool) {
        let mut option = OsString::from(format!("local,id={tag},security_model=none"));
        option.push(if read_only { ",readonly=on" } else { "" });
        option.push(",multidevs=remap,path=");
        // QEMU reads two commas as one that is part of the value.
        for part in directory
            .as_os_str()
            .as_bytes()
            .split_inclusive(|b| *b == b',')
        {
            option.push(OsStr::from_bytes(part));
            if part.ends_with(b",") {
                option.push(",");
            }
        }
        self.argument("-fsdev", option);
        self.argument(
            "-device",
            format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
        );
    }

    /// Starts QEMU, which ends with us however we end.
    fn start(self, machine: &Machine<'_>) -> io::Result<Child> {
        let mut command = machine.qemu.command();
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none"])
            .arg("-kernel")
            .arg(machine.image.kernel())
            .arg("-initrd")
            .arg(machine.image.initramfs())
            .args(["-append", KERNEL_COMMAND_LINE])
            .args(&self.arguments)
            .stdin(Stdio::null());
        if let Some(messages) = self.messages {
            command.stdout(messages.try_clone()?).stderr(messages);
        }
        let (parent, inherited) = (getpid(), self.inherited);
        // SAFETY: between fork and exec only system calls are made, and nothing is
        // allocated or locked.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                if getppid() != parent {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                for fd in &inherited {
                    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                }
                Ok(())
            });
        }
        // With the command our copies of QEMU's ends are closed.
        command.spawn()
    }
}

/// What the relaying threads report; each of the four does so once.
enum Event {
    /// An output of the host has ended.
    Stream(End),
    /// The command's exit code, or that none came.
    Status(Option<u8>),
}

/// How it ended.
enum Verdict {
    Exited(u8),
    TimedOut,
    Lost,
}

/// Waits until the command has ended and all of its output has been copied.
fn verdict(inbox: &Receiver<Event>, deadline: Option<Instant>) -> Verdict {
    let (mut complete, mut code) = (0, None);
    for _ in 0..4 {
        let event = match deadline {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match event {
            Ok(Event::Stream(End::Complete)) => complete += 1,
            Ok(Event::Stream(End::Cut)) => {}
            Ok(Event::Status(status)) => code = status,
            Err(RecvTimeoutError::Timeout) => return Verdict::TimedOut,
            Err(RecvTimeoutError::Disconnected) => return Verdict::Lost,
        }
        if let (2, Some(code)) = (complete, code) {
            return Verdict::Exited(code);
        }
    }
    Verdict::Lost
}

/// Reads the line with the exit code.
fn exit_code(source: &mut impl Read) -> Option<u8> {
    let mut line = String::new();
    BufReader::new(source).read_line(&mut line).ok()?;
    line.strip_suffix('\n')?.parse().ok()
}

/// What a stream ends with: nothing that could be in it by chance.
fn end_mark() -> io::Result<String> {
    let mut random = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
