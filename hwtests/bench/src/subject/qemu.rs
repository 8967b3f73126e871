//! QEMU's `microvm` machine, with as little in it as Longship's has.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::error::{BenchError, file, system};
use crate::subject::daemon::end_with_parent;
use crate::subject::vmm::Guest;

const PROGRAM: &str = "qemu-system-x86_64";
/// The firmware that loads a kernel and little else; it writes an MP table too.
const FIRMWARE: &str = "qboot.rom";

/// A QEMU; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
}

impl Qemu {
    /// Starts it. The reader gets what the guest says on its console.
    ///
    /// # Errors
    /// [`BenchError::File`] at the program.
    pub(crate) fn boot(
        program: &Path,
        guest: &Guest<'_>,
    ) -> Result<(Self, ChildStdout), BenchError> {
        let mut command = Command::new(program);
        command
            .args([
                "-M",
                "microvm,acpi=off,pic=off,pit=off,rtc=off,isa-serial=on,x-option-roms=off,auto-kernel-cmdline=off",
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-bios",
                FIRMWARE,
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-serial",
                "stdio",
            ])
            .arg("-smp")
            .arg(guest.vcpus.to_string())
            .arg("-m")
            .arg((guest.memory_bytes >> 20).to_string())
            .arg("-kernel")
            .arg(guest.kernel)
            .arg("-initrd")
            .arg(guest.initramfs)
            .arg("-append")
            .arg(guest.command_line)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        end_with_parent(&mut command, Signal::SIGKILL);
        let mut child = command.spawn().map_err(file("start", program))?;
        let output = child.stdout.take();
        let qemu = Self { child };
        let output =
            output.ok_or_else(|| BenchError::Impossible("QEMU has no output".to_owned()))?;
        Ok((qemu, output))
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where QEMU is, and its version; `None` where there is none.
pub(crate) fn find() -> Option<(PathBuf, String)> {
    let path = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&path)
        .map(|folder| folder.join(PROGRAM))
        .find(|program| program.is_file())?;
    let said = Command::new(&program).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Some((program, version(&said)?.to_owned()))
}

/// Out of `QEMU emulator version 10.0.2 (Debian …)`.
fn version(said: &str) -> Option<&str> {
    said.split_once("version ")?.1.split_whitespace().next()
}

/// Waits for the first byte of a guest.
///
/// # Errors
/// That it ended, or a minute passed, without one.
pub(crate) fn first_byte(name: &str, console: &mut (impl Read + AsFd)) -> Result<(), BenchError> {
    let mut ready = [PollFd::new(console.as_fd(), PollFlags::POLLIN)];
    let woken = poll(&mut ready, PollTimeout::from(60_000_u16));
    if woken.map_err(system("wait for a guest"))? == 0 {
        return Err(BenchError::Late {
            what: format!("{name}: no word of the guest"),
            seconds: 60,
        });
    }
    console
        .read_exact(&mut [0])
        .map_err(|error| BenchError::Impossible(format!("{name}: the guest said nothing: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_a_number() {
        let said = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(version(said), Some("10.0.2"));
        assert_eq!(version("nothing"), None);
    }
}
