//! A daemon as a child process that cannot outlive this one.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{BenchError, file, system};

/// Between SIGTERM and SIGKILL.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// How much of a log is shown, bytes.
const LOG_SHOWN: usize = 4000;

/// A daemon; it is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program`; what it says goes to `NAME.log` in `folder`.
    ///
    /// # Errors
    /// [`BenchError::File`] at the program or the log.
    pub(crate) fn start<S: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
        folder: &Path,
    ) -> Result<Self, BenchError> {
        let log = folder.join(format!("{name}.log"));
        let out = File::create(&log).map_err(file("make", &log))?;
        let err = out.try_clone().map_err(file("make", &log))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("NO_COLOR", "1")
            // A line a sandbox would be measured too.
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        end_with_parent(&mut command, Signal::SIGTERM);
        let child = command.spawn().map_err(file("start", program))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// That it has ended.
    pub(crate) fn must_run(&mut self) -> Result<(), BenchError> {
        match self.child.try_wait().map_err(system("wait for a daemon"))? {
            None => Ok(()),
            Some(status) => Err(self.failed(format!("ended: {status}"))),
        }
    }

    /// That it did something it should not, with the end of its log.
    pub(crate) fn failed(&self, what: String) -> BenchError {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let shown = log.get(log.len().saturating_sub(LOG_SHOWN)..);
        BenchError::Daemon {
            name: self.name.clone(),
            what,
            log: String::from_utf8_lossy(shown.unwrap_or_default()).into_owned(),
        }
    }
}

impl Daemon {
    /// Asks it to end, waits, and kills it where it does not.
    pub(crate) fn end(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let give_up = Instant::now() + END_PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// Has the kernel signal the child when this thread's process ends, however it does.
pub(crate) fn end_with_parent(command: &mut Command, signal: Signal) {
    // SAFETY: prctl(2) is a plain system call, fine between fork and exec.
    unsafe {
        command.pre_exec(move || nix::sys::prctl::set_pdeathsig(signal).map_err(io::Error::from));
    }
}
