//! Starts a VMM process in its cgroup and watches it by a pidfd.
//!
//! `clone3(2)` with `CLONE_INTO_CGROUP`: the process is in its cgroup from its first
//! instruction on, and the kernel need not move it there, which would make every
//! start wait for all CPUs (cgroup_threadgroup_rwsem). And with `CLONE_VM` and
//! `CLONE_VFORK`, as `posix_spawn(3)` does: the agent's page tables are not copied, and
//! the child tells by a variable why it could not execute the program.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::FcntlArg;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where the child finds the agent's channel.
pub(crate) const CONTROL_FD: RawFd = 3;
/// Stack of the child until it executes the program, bytes.
const CHILD_STACK: usize = 32 << 10;
/// Descriptors are moved up here first, so that putting them in place overwrites none.
const ABOVE_FIXED: RawFd = 16;

// clone3(2); wider than the constants of clone(2).
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// The kernel refused a step.
    #[error("{step}: {error}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The program could not be executed.
    #[error("execute {program}: {error}")]
    Execute {
        /// The program.
        program: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What to start.
pub(crate) struct Command {
    pub(crate) program: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// Becomes descriptor [`CONTROL_FD`].
    pub(crate) control: OwnedFd,
    /// Becomes standard error; standard input and output are /dev/null.
    pub(crate) stderr: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A child process. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    ending: Option<Ending>,
}

/// A child that nobody watches yet. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    /// Taken by who watches it.
    pidfd: Option<OwnedFd>,
}

/// All that the child needs on its way to the program.
struct Way<'a> {
    places: [(RawFd, RawFd); 4],
    program: &'a CStr,
    /// These end with a null pointer.
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    /// Why there is no way: the child's last word to its parent.
    errno: libc::c_int,
}

impl Command {
    /// Starts the process in `cgroup`, in a session of its own. Blocks until the
    /// program has been executed.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing runs then.
    pub(crate) fn spawn(self, cgroup: BorrowedFd<'_>) -> Result<Child, SpawnError> {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(step("open /dev/null"))?;
        let null = moved_up(null.into())?;
        let stderr = moved_up(self.stderr)?;
        let control = moved_up(self.control)?;
        let argv = pointers(&self.arguments);
        let envp = pointers(&self.environment);
        let mut way = Way {
            places: [
                (null.as_raw_fd(), 0),
                (null.as_raw_fd(), 1),
                (stderr.as_raw_fd(), 2),
                (control.as_raw_fd(), CONTROL_FD),
            ],
            program: &self.program,
            argv: &argv,
            envp: &envp,
            errno: 0,
        };
        let mut stack = vec![0_u128; CHILD_STACK / size_of::<u128>()];

        let mut pidfd: RawFd = -1;
        // SAFETY: clone_args is plain C data; all zeroes ask for nothing special.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = u64::from((libc::CLONE_VM | libc::CLONE_VFORK).cast_unsigned())
            | CLONE_PIDFD
            | CLONE_CLEAR_SIGHAND
            | CLONE_INTO_CGROUP;
        arguments.pidfd = (&raw mut pidfd) as u64;
        arguments.exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or_default();
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or_default();
        arguments.stack = stack.as_mut_ptr() as u64;
        arguments.stack_size = CHILD_STACK as u64;
        // SAFETY: the stack is the child's alone and, being of u128, aligned to 16 bytes
        // at both ends; it, `way` and all that it points to live until the clone
        // returns, which is when the child has left them. `become_program` takes what
        // `way` is and does not return.
        let pid = unsafe { clone_on_stack(&mut arguments, become_program, &raw mut way) };
        drop(stack);
        if pid < 0 {
            let errno = i32::try_from(-pid).unwrap_or_default();
            let error = io::Error::from_raw_os_error(errno);
            return Err(step("clone into the cgroup")(error));
        }
        // SAFETY: the kernel has just made it for us, and nothing else knows it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let child = Child {
            pid: u32::try_from(pid).unwrap_or_default(),
            pidfd: Some(pidfd),
        };
        // SAFETY: plainly a read of a local; the child wrote it behind the compiler's back.
        let errno = unsafe { std::ptr::read_volatile(&raw const way.errno) };
        if errno != 0 {
            return Err(SpawnError::Execute {
                program: self.program.to_string_lossy().into_owned(),
                error: io::Error::from_raw_os_error(errno),
            });
        }
        Ok(child)
    }
}

/// `clone3` whose child begins with `entry(argument)` on the stack that `arguments` name.
/// Gives the child's process id, or a negative error number.
///
/// # Safety
/// With `CLONE_VM` and `CLONE_VFORK` only. The stack is the child's alone and aligned to
/// 16 bytes at both ends; `argument` is what `entry` takes.
unsafe fn clone_on_stack(
    arguments: &mut libc::clone_args,
    entry: unsafe extern "C" fn(*mut Way<'_>) -> !,
    argument: *mut Way<'_>,
) -> i64 {
    let result: i64;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11, in both processes. The
    // parent goes on behind the jump with its stack as it was; the child has another
    // stack and never gets there.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_mut(arguments),
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// The child's way from the clone to the program.
///
/// # Safety
/// Only in a child of [`clone_on_stack`], with a valid `way`.
unsafe extern "C" fn become_program(way: *mut Way<'_>) -> ! {
    // SAFETY: the parent sleeps and leaves `way` alone. All calls are async-signal-safe
    // (signal-safety(7): no allocation, no lock) and get valid arguments: descriptors
    // that the parent opened, data on this stack, strings the parent made. The error
    // number is the sleeping parent's, who takes no notice.
    unsafe {
        let way = &mut *way;
        let mut nothing: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut nothing);
        // Rust programs ignore SIGPIPE; an ignored signal stays ignored. Zeroes are the
        // default action.
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, &raw const default, std::ptr::null_mut());
        let mut fine = libc::setsid() >= 0;
        for (from, to) in way.places {
            fine = fine && libc::dup2(from, to) == to;
        }
        // Whatever the agent itself was given by who started it ends here too.
        fine = fine
            && libc::syscall(
                libc::SYS_close_range,
                CONTROL_FD + 1,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            ) == 0;
        fine = fine
            && libc::sigprocmask(libc::SIG_SETMASK, &raw const nothing, std::ptr::null_mut()) == 0;
        if fine {
            libc::execve(way.program.as_ptr(), way.argv.as_ptr(), way.envp.as_ptr());
        }
        std::ptr::write_volatile(&raw mut way.errno, *libc::__errno_location());
        libc::_exit(127)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            let _ = kill_and_reap(pidfd.as_fd());
        }
    }
}

impl Process {
    /// Watches a child that was just spawned; needs a tokio runtime.
    ///
    /// # Errors
    /// The runtime's; the child is then killed.
    pub(crate) fn watch(mut child: Child) -> io::Result<Self> {
        let pidfd = child.pidfd.take().ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: an OwnedFd is open, always the same, and closed only when dropped,
        // which the AsyncFd that owns it outlives.
        let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        let pidfd = watched.map_err(|error| {
            let (pidfd, error) = error.into_parts();
            let _ = kill_and_reap(pidfd.as_fd());
            error
        })?;
        Ok(Self {
            pid: child.pid,
            pidfd,
            ending: None,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended, and reaps it. Cancel-safe; later calls answer the
    /// same at once.
    ///
    /// # Errors
    /// waitid(2)'s.
    pub(crate) async fn ended(&mut self) -> io::Result<Ending> {
        if let Some(ending) = self.ending {
            return Ok(ending);
        }
        loop {
            let mut ready = self.pidfd.readable().await?;
            match reap(self.pidfd.get_ref().as_fd())? {
                Some(ending) => return Ok(*self.ending.insert(ending)),
                None => ready.clear_ready(),
            }
        }
    }

    /// Whether it has ended; reaps it then.
    pub(crate) fn has_ended(&mut self) -> bool {
        if self.ending.is_none() {
            self.ending = reap(self.pidfd.get_ref().as_fd()).unwrap_or(None);
        }
        self.ending.is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ending.is_none() {
            let _ = kill_and_reap(self.pidfd.get_ref().as_fd());
        }
    }
}

/// How a child has ended, where it has.
fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Ending>> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    Ok(match waitid(Id::PIDFd(pidfd), flags)? {
        WaitStatus::Exited(_, code) => Some(Ending::Code(code)),
        WaitStatus::Signaled(_, signal, _) => Some(Ending::Signal(signal as i32)),
        _ => None,
    })
}

fn kill_and_reap(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: sends a signal to a child of ours through its pidfd; no memory is passed.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        );
    }
    waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED)?;
    Ok(())
}

/// `fd` under a number above all fixed ones, close-on-exec.
fn moved_up(fd: OwnedFd) -> Result<OwnedFd, SpawnError> {
    let raw = nix::fcntl::fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(ABOVE_FIXED))
        .map_err(|e| step("copy a descriptor")(e.into()))?;
    // SAFETY: the kernel has just made it for us, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> SpawnError {
    move |error| SpawnError::Step { step, error }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use nix::fcntl::OFlag;

    use super::*;

    /// A cgroup for one test. Where the machine's cgroup v2 has no controllers this
    /// still works, as none are needed here.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let mount = mounts
                .lines()
                .map(|line| line.split(' ').collect::<Vec<_>>())
                .find(|fields| fields[2] == "cgroup2")
                .expect("these tests need a cgroup v2 mount")[1]
                .to_owned();
            let path = PathBuf::from(mount).join(format!("{name}-{}", std::process::id()));
            std::fs::create_dir(&path).expect("these tests need to be root");
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.0).unwrap();
        }
    }

    fn shell(script: &str) -> (Command, File, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let strings = |all: &[&str]| all.iter().map(|s| CString::new(*s).unwrap()).collect();
        let command = Command {
            program: c"/bin/sh".to_owned(),
            arguments: strings(&["sh", "-c", script]),
            environment: strings(&["ONLY=this"]),
            control: theirs.into(),
            stderr: write,
        };
        (command, read.into(), ours)
    }

    #[tokio::test]
    async fn a_process_starts_in_its_cgroup_with_nothing_else_of_the_agents() {
        let place = Place::new("spawn");
        let cgroup = File::open(&place.0).unwrap();
        let script = "exec 1>&2; cat /proc/self/cgroup; ls /proc/$$/fd; env; echo $$ >&3; exit 7";
        let (command, mut stderr, mut control) = shell(script);
        let mut process = Process::watch(command.spawn(cgroup.as_fd()).unwrap()).unwrap();
        let pid = process.pid();
        assert_eq!(process.ended().await.unwrap(), Ending::Code(7));
        assert_eq!(process.ended().await.unwrap(), Ending::Code(7));
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        let name = place.0.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(said.contains(&format!("0::/{name}")), "{said}");
        let fds: Vec<&str> = said
            .lines()
            .filter(|line| line.parse::<u32>().is_ok())
            .collect();
        assert_eq!(fds, ["0", "1", "2", "3"]);
        assert!(
            said.contains("ONLY=this") && !said.contains("HOME="),
            "{said}"
        );
        let mut told = String::new();
        control.read_to_string(&mut told).unwrap();
        assert_eq!(told, format!("{pid}\n"));
    }

    #[tokio::test]
    async fn what_cannot_be_executed_leaves_no_process() {
        let place = Place::new("missing");
        let cgroup = File::open(&place.0).unwrap();
        let (mut command, _stderr, _control) = shell("");
        command.program = c"/nowhere/vmm".to_owned();
        let refused = command.spawn(cgroup.as_fd()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "execute /nowhere/vmm: No such file or directory (os error 2)"
        );
        let left = std::fs::read_to_string(place.0.join("cgroup.procs")).unwrap();
        assert_eq!(left, "");
    }

    #[tokio::test]
    async fn a_dropped_process_is_killed_and_reaped() {
        let place = Place::new("dropped");
        let cgroup = File::open(&place.0).unwrap();
        let (command, _stderr, _control) = shell("exec sleep 1000");
        let child = command.spawn(cgroup.as_fd()).unwrap();
        let process = Process::watch(child).unwrap();
        let pid = process.pid();
        assert!(PathBuf::from(format!("/proc/{pid}")).exists());
        drop(process);
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
        // Nor does one live on that nobody came to watch.
        let (command, _stderr, _control) = shell("exec sleep 1000");
        let child = command.spawn(cgroup.as_fd()).unwrap();
        let pid = child.pid;
        drop(child);
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    }

    #[test]
    fn what_the_child_sets_for_itself_the_agent_does_not_get() {
        let place = Place::new("untouched");
        let cgroup = File::open(&place.0).unwrap();
        for _ in 0..100 {
            let (command, _stderr, _control) = shell("exit 0");
            drop(command.spawn(cgroup.as_fd()).unwrap());
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let ignored = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .map(|mask| u64::from_str_radix(mask.trim(), 16).unwrap());
        assert_eq!(
            ignored.unwrap() & 1 << (libc::SIGPIPE - 1),
            1 << (libc::SIGPIPE - 1)
        );
    }

    #[tokio::test]
    async fn a_signal_is_told_from_a_code() {
        let place = Place::new("signal");
        let cgroup = File::open(&place.0).unwrap();
        let (command, _stderr, _control) = shell("kill -KILL $$");
        let mut process = Process::watch(command.spawn(cgroup.as_fd()).unwrap()).unwrap();
        assert_eq!(process.ended().await.unwrap(), Ending::Signal(9));
    }
}
