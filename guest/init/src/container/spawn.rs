//! From a checked request to a running program: what happens on both sides of
//! the fork.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use longship_framed::error::{Class, Failure};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, setgroups,
    setresgid, setresuid, setsid,
};

use super::namespaces::{Fork, Namespaces, enter, unshare_cgroup};
use super::root::{RootPlan, assemble};
use super::user::{Identity, identity};
use super::{Cgroup, capabilities};
use crate::failed::{Doing, Failed};
use crate::process::{ChildEnds, InitEnds, Reporter, Terminal, environment, find_program, pipes};
use crate::spec::ProcessSpec;

/// Open files of a container's process: what it has, and what it may ask for.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Most of an image's /etc/passwd or /etc/group that is read, in bytes.
const ACCOUNTS_LIMIT: u64 = 1 << 20;

/// A process that is on its way.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// Tells whether the program was started. Non-blocking.
    pub(crate) report: UnixStream,
    /// Init's ends of its standard streams; a terminal comes with the report.
    pub(crate) streams: InitEnds,
}

/// Starts the first process of a container.
///
/// # Errors
/// The kernel's; what fails after the fork comes by the report.
pub(crate) fn start(
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    root: &RootPlan<'_>,
    spec: &ProcessSpec,
    hostname: &str,
) -> Result<Spawned, Failed> {
    spawn(
        spec,
        hostname,
        || namespaces.fork_new(cgroup.as_fd()),
        || {
            unshare_cgroup()?;
            assemble(root)
        },
    )
}

/// Starts one more process in the container whose first one is behind `pidfd`.
///
/// # Errors
/// As [`start`].
pub(crate) fn exec(
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    pidfd: BorrowedFd<'_>,
    spec: &ProcessSpec,
    hostname: &str,
) -> Result<Spawned, Failed> {
    let fork = || namespaces.fork_into(pidfd, cgroup.as_fd());
    spawn(spec, hostname, fork, || enter(pidfd))
}

fn spawn(
    spec: &ProcessSpec,
    hostname: &str,
    fork: impl FnOnce() -> Result<Fork, Failed>,
    enter_container: impl FnOnce() -> Result<(), Failed>,
) -> Result<Spawned, Failed> {
    let (report, childs_report) = UnixStream::pair().doing(|| "make a socket pair")?;
    report
        .set_nonblocking(true)
        .doing(|| "set up a socket pair")?;
    let (streams, childs) = pipes(spec)?;
    match fork()? {
        Fork::Parent { pid, pidfd } => Ok(Spawned {
            pid,
            pidfd,
            report,
            streams,
        }),
        Fork::Child => {
            let reporter = Reporter::new(childs_report);
            let Err(failure) = child(spec, hostname, &childs, &reporter, enter_container);
            reporter.failed(failure);
            // SAFETY: ends this process at once, without init's clean-up.
            unsafe { libc::_exit(127) }
        }
    }
}

/// The child's whole life before the program's. Returns only with a failure.
fn child(
    spec: &ProcessSpec,
    hostname: &str,
    ends: &ChildEnds,
    reporter: &Reporter,
    enter_container: impl FnOnce() -> Result<(), Failed>,
) -> Result<std::convert::Infallible, Failure> {
    forget_init()?;
    enter_container()?;
    let who = look_up(spec)?;
    let terminal = attach_streams(spec, ends, &who)?;
    create_working_dir(spec)?;
    become_user(&who)?;
    chdir(spec.working_dir.as_c_str()).map_err(|error| working_dir_failure(spec, error))?;
    let env = environment(spec, &who.home, hostname);
    let program = find_program(&spec.argv, &env).map_err(|missing| missing.failure(spec.field))?;
    reporter.ready(terminal.as_ref().map(Terminal::master))?;
    let Err(error) = execve(&program, &spec.argv, &env);
    Err(exec_failure(spec, &program, error))
}

/// Undoes what init has set for itself and a program would inherit.
fn forget_init() -> Result<(), Failed> {
    fs::write("/proc/self/oom_score_adj", "0").doing(|| "reset the OOM score")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .doing(|| "unblock signals")?;
    // SAFETY: the default action runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.doing(|| "reset SIGPIPE")?;
    let (soft, hard) = OPEN_FILES;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).doing(|| "limit open files")?;
    umask(Mode::from_bits_truncate(0o022));
    setsid().doing(|| "make a session")?;
    Ok(())
}

/// The user, from the accounts of the image.
fn look_up(spec: &ProcessSpec) -> Result<Identity, Failure> {
    let passwd = accounts("/etc/passwd")?;
    let group = accounts("/etc/group")?;
    identity(&spec.user, &passwd, &group)
        .map_err(|error| Failure::invalid(format!("{}.user", spec.field), error.to_string()))
}

fn accounts(path: &str) -> Result<String, Failed> {
    let what = || format!("read the image's {path}");
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        other => other.doing(what)?,
    };
    let mut text = Vec::new();
    file.take(ACCOUNTS_LIMIT)
        .read_to_end(&mut text)
        .doing(what)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Makes the standard streams 0, 1 and 2: pipes, a terminal, or /dev/null.
fn attach_streams(
    spec: &ProcessSpec,
    ends: &ChildEnds,
    who: &Identity,
) -> Result<Option<Terminal>, Failed> {
    // So that a program that is not root can open /dev/stdout.
    let uid = Some(Uid::from_raw(who.uid));
    let own = |fd: BorrowedFd<'_>| fchown(fd, uid, None).doing(|| "give a stream to the user");
    if let Some(window) = spec.terminal {
        let terminal = Terminal::open(window)?;
        let device = terminal.device();
        own(device)?;
        stdio(device, device, device)?;
        return Ok(Some(terminal));
    }
    let null;
    let stdin = match &ends.stdin {
        Some(pipe) => {
            own(pipe.as_fd())?;
            pipe.as_fd()
        }
        None => {
            let mut options = OpenOptions::new();
            null = options
                .read(true)
                .write(true)
                .open("/dev/null")
                .doing(|| "open /dev/null")?;
            null.as_fd()
        }
    };
    let missing = || Failed::new("attach the output", Errno::EBADF);
    let stdout = ends.stdout.as_ref().ok_or_else(missing)?.as_fd();
    let stderr = ends.stderr.as_ref().ok_or_else(missing)?.as_fd();
    own(stdout)?;
    own(stderr)?;
    stdio(stdin, stdout, stderr)?;
    Ok(None)
}

fn stdio(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> Result<(), Failed> {
    dup2_stdin(stdin).doing(|| "attach standard input")?;
    dup2_stdout(stdout).doing(|| "attach standard output")?;
    dup2_stderr(stderr).doing(|| "attach standard error")
}

fn create_working_dir(spec: &ProcessSpec) -> Result<(), Failure> {
    let Ok(path) = spec.working_dir.to_str().map(Path::new) else {
        return Ok(());
    };
    let mut builder = DirBuilder::new();
    match builder.recursive(true).mode(0o755).create(path) {
        Ok(()) => Ok(()),
        Err(error) => {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Err(working_dir_failure(spec, errno))
        }
    }
}

fn working_dir_failure(spec: &ProcessSpec, error: Errno) -> Failure {
    let dir = spec.working_dir.to_string_lossy();
    let why = match error {
        Errno::ENOTDIR | Errno::EEXIST => "is not a directory".to_owned(),
        Errno::EACCES => "is not accessible to the user".to_owned(),
        other => format!("cannot be entered: {}", other.desc()),
    };
    Failure::invalid(
        format!("{}.working_dir", spec.field),
        format!("{dir} {why}"),
    )
}

/// From here on the process can do no more than the program will.
fn become_user(who: &Identity) -> Result<(), Failed> {
    capabilities::drop_others()?;
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).doing(|| "set the groups")?;
    let gid = Gid::from_raw(who.gid);
    setresgid(gid, gid, gid).doing(|| format!("become group {gid}"))?;
    let uid = Uid::from_raw(who.uid);
    setresuid(uid, uid, uid).doing(|| format!("become user {uid}"))
}

/// What execve(2) said, told apart as shells do: not found (127), or found and
/// not to be run (126).
fn exec_failure(spec: &ProcessSpec, program: &CString, error: Errno) -> Failure {
    let program = program.to_string_lossy();
    let (class, text) = match error {
        Errno::ENOENT => (
            Class::NotFound,
            format!("{program} names an interpreter that does not exist"),
        ),
        Errno::ENOEXEC => (
            Class::Denied,
            format!("{program} is in no format that this machine runs"),
        ),
        Errno::E2BIG => (
            Class::Invalid,
            "the arguments and the environment are too long".to_owned(),
        ),
        other => (
            Class::Denied,
            format!("{program} cannot be run: {}", other.desc()),
        ),
    };
    Failure::new(class, format!("{}.argv[0]", spec.field), text)
}
