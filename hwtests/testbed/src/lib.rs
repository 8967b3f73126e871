//! A virtual bare-metal host with a true KVM, without hardware.
//!
//! [`Testbed`] is a QEMU machine in software emulation: AMD-V with nested paging, so
//! that the distribution's own kernel offers a real `/dev/kvm` in it. It sees the
//! caller's whole file system, and whatever it changes there is gone when it ends. One
//! command runs in it, as root, in the caller's working directory; its output and its
//! exit code are the caller's.
//!
//! ```no_run
//! # use std::time::Duration;
//! let code = longship_testbed::Testbed::new()
//!     .memory(4096)
//!     .timeout(Duration::from_secs(60))
//!     .run(["ls", "-l", "/dev/kvm"])?;
//! assert_eq!(code, 0);
//! # Ok::<(), longship_testbed::TestbedError>(())
//! ```

mod image;
mod machine;
mod qemu;
mod relay;
mod repair;
mod script;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

pub use image::ImageError;
pub use machine::{MachineError, Output};
pub use qemu::QemuError;
pub use script::ScriptError;

/// Why a command could not be run in the virtual host, or how the host was lost.
#[derive(Debug, thiserror::Error)]
pub enum TestbedError {
    /// The command, or its surroundings, cannot be said to the virtual host.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// There is no QEMU, or none that can do what was asked.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// The virtual host's kernel or initramfs could not be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The virtual host did not start, or ended before its command did.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// A virtual bare-metal host, described. Each run starts one of its own.
#[derive(Debug, Clone)]
pub struct Testbed {
    pub(crate) memory_mib: u32,
    pub(crate) cpus: Option<u32>,
    pub(crate) exact: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) shares: Vec<PathBuf>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) show_console: bool,
}

impl Default for Testbed {
    fn default() -> Self {
        Self::new()
    }
}

impl Testbed {
    /// A host with 3 GiB of memory and as many CPUs as the installed QEMU emulates
    /// reliably.
    #[must_use]
    pub fn new() -> Self {
        Self {
            memory_mib: 3072,
            cpus: None,
            exact: false,
            timeout: None,
            shares: Vec::new(),
            env: Vec::new(),
            show_console: false,
        }
    }

    /// The host's memory in MiB. What the command writes to files counts too.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The number of the host's CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Exact costs instead of speed: one CPU, on which a nanosecond passes with every
    /// instruction, so that times repeat whatever else the caller's machine does.
    /// Waiting for the caller's files still costs what it costs: copy what is to be
    /// measured to `/run` first.
    #[must_use]
    pub fn exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    /// Ends the host when it has run this long.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// A directory that the command may really write to, at its own path. It must exist.
    #[must_use]
    pub fn share(mut self, directory: impl Into<PathBuf>) -> Self {
        self.shares.push(directory.into());
        self
    }

    /// A variable of the command's environment, beside those it has from the caller:
    /// PATH, HOME, LANG, USER, RUST_LOG, RUST_BACKTRACE, CI and all that begin with
    /// `LONGSHIP_`. `LONGSHIP_TESTBED=1` is always set.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Copies the host's console to standard error, live.
    #[must_use]
    pub fn show_console(mut self, show: bool) -> Self {
        self.show_console = show;
        self
    }

    /// Runs a command, with its output going to the caller's, live. Returns its exit
    /// code, or 128 and the signal that ended it.
    ///
    /// # Errors
    /// When the host cannot be made, ends before the command, or runs out of time.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = S>,
    ) -> Result<u8, TestbedError> {
        self.run_into(command, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// Runs a command and collects its output.
    ///
    /// # Errors
    /// As [`Testbed::run`].
    pub fn output<S: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Output, TestbedError> {
        let (stdout, stderr) = (relay::Collected::default(), relay::Collected::default());
        let code = self.run_into(command, Box::new(stdout.clone()), Box::new(stderr.clone()))?;
        Ok(Output {
            code,
            stdout: stdout.take(),
            stderr: stderr.take(),
        })
    }

    fn run_into<S: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = S>,
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
    ) -> Result<u8, TestbedError> {
        let script = script::command(command, &self.env)?;
        let shares = script::shares(&self.shares)?;
        let qemu = qemu::Qemu::find(self.exact)?;
        let arguments = qemu.arguments(self)?;
        let image = image::Image::prepare()?;
        let machine = machine::Machine {
            qemu: &qemu,
            arguments,
            image: &image,
            script,
            shares,
        };
        Ok(machine.run(self, stdout, stderr)?)
    }
}
