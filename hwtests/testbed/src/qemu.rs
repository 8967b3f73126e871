//! The installed QEMU, and how it is told what machine to be.

use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Testbed;
use crate::image::cache;
use crate::repair::repair;

/// What is wrong with the installed QEMU, or with what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// QEMU cannot be started.
    #[error("starting {PROGRAM}: {0} (make setup installs it)")]
    Missing(std::io::Error),
    /// QEMU's version is unreadable.
    #[error("{PROGRAM} does not say its version: {0:?}")]
    Version(String),
    /// Exact costs are those of one CPU.
    #[error("cpus: counting instructions needs exactly 1 CPU, not {0}")]
    ExactCpus(u32),
    /// A machine needs at least one CPU.
    #[error("cpus: must be at least 1")]
    NoCpus,
    /// The kernel and its initramfs need some room.
    #[error("memory: {0} MiB is too little, at least 512 are needed")]
    Memory(u32),
}

const PROGRAM: &str = "qemu-system-x86_64";

/// The QEMU that was found.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    major: u32,
    program: PathBuf,
    /// Where it finds firmware, where it would not by itself.
    data: Vec<PathBuf>,
}

impl Qemu {
    /// The `qemu-system-x86_64` on the PATH; where instructions are counted, its copy
    /// that delivers interrupts once. With several threads, where leaving the emulation
    /// between two exits is rare, that copy has been seen to hang: there it is not used.
    pub(crate) fn find(exact: bool) -> Result<Self, QemuError> {
        let output = Command::new(PROGRAM)
            .arg("--version")
            .output()
            .map_err(QemuError::Missing)?;
        let found = Self::from_version(&String::from_utf8_lossy(&output.stdout))?;
        Ok(match exact.then(repaired).flatten() {
            Some(program) => Self {
                program,
                data: data(),
                ..found
            },
            None => found,
        })
    }

    fn from_version(text: &str) -> Result<Self, QemuError> {
        let major = text
            .strip_prefix("QEMU emulator version ")
            .and_then(|rest| rest.split('.').next()?.parse().ok())
            .ok_or_else(|| QemuError::Version(text.to_owned()))?;
        Ok(Self {
            major,
            program: PROGRAM.into(),
            data: Vec::new(),
        })
    }

    /// A command that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for directory in &self.data {
            command.arg("-L").arg(directory);
        }
        command
    }

    /// The machine itself: its accelerator, CPUs and memory.
    pub(crate) fn arguments(&self, testbed: &Testbed) -> Result<Vec<OsString>, QemuError> {
        // QEMU 7.2 froze the whole machine when several threads emulated AMD-V.
        let parallel = self.major >= 8 && !testbed.exact;
        let cpus = testbed.cpus.unwrap_or(if parallel { 2 } else { 1 });
        if cpus == 0 {
            return Err(QemuError::NoCpus);
        }
        if testbed.exact && cpus != 1 {
            return Err(QemuError::ExactCpus(cpus));
        }
        if testbed.memory_mib < 512 {
            return Err(QemuError::Memory(testbed.memory_mib));
        }
        let threads = if parallel { "multi" } else { "single" };
        let mut arguments = vec![
            "-machine".into(),
            "q35,hpet=off".into(),
            "-accel".into(),
            format!("tcg,thread={threads}"),
            "-cpu".into(),
            "max,+svm".into(),
            "-smp".into(),
            cpus.to_string(),
            "-m".into(),
            testbed.memory_mib.to_string(),
        ];
        if testbed.exact {
            arguments.extend(["-icount".into(), "shift=0,sleep=off".into()]);
        }
        Ok(arguments.into_iter().map(OsString::from).collect())
    }
}

/// The copy of the installed QEMU that delivers interrupts once; made where there is
/// none yet. `None` where it cannot be had: the installed one is what runs then.
fn repaired() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|place| place.join(PROGRAM));
    let installed = places.find(|program| program.is_file())?;
    let copy = cache().ok()?.join(format!("qemu-{}", name(&installed)?));
    if !copy.exists() {
        let made = make(&installed, &copy).unwrap_or_else(|error| {
            eprintln!("testbed: {}: {error}", copy.display());
            false
        });
        if !made {
            eprintln!("testbed: {PROGRAM} is used as it is: guests may hang now and then");
            return None;
        }
    }
    Some(copy)
}

/// Tells one installed program from another.
fn name(installed: &Path) -> Option<String> {
    let about = fs::metadata(installed).ok()?;
    let mut hasher = DefaultHasher::new();
    (installed, about.len(), about.mtime(), about.mtime_nsec()).hash(&mut hasher);
    Some(format!("{:016x}", hasher.finish()))
}

fn make(installed: &Path, copy: &Path) -> io::Result<bool> {
    let mut program = fs::read(installed)?;
    if !repair(&mut program) {
        return Ok(false);
    }
    if let Some(parent) = copy.parent() {
        fs::create_dir_all(parent)?;
    }
    let partial = copy.with_extension(std::process::id().to_string());
    fs::write(&partial, program)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    fs::rename(&partial, copy)?;
    Ok(true)
}

/// Where the installed QEMU looks for firmware. A copy elsewhere looks elsewhere.
fn data() -> Vec<PathBuf> {
    let output = Command::new(PROGRAM).args(["-L", "help"]).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(version: &str, testbed: &Testbed) -> Result<String, QemuError> {
        let qemu = Qemu::from_version(&format!("QEMU emulator version {version} (Debian)\n"))?;
        let all = qemu.arguments(testbed)?;
        let words: Vec<_> = all.iter().map(|a| a.to_string_lossy()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn only_a_qemu_that_can_emulates_in_several_threads() {
        let new = arguments("10.0.2", &Testbed::new()).unwrap();
        assert!(new.contains("thread=multi") && new.contains("-smp 2"));
        let old = arguments("7.2.19", &Testbed::new().cpus(3)).unwrap();
        assert!(old.contains("thread=single") && old.contains("-smp 3"));
    }

    #[test]
    fn exact_costs_are_those_of_one_cpu() {
        let exact = arguments("10.0.2", &Testbed::new().exact(true)).unwrap();
        assert!(exact.contains("thread=single") && exact.contains("-smp 1"));
        assert!(exact.contains("-icount shift=0,sleep=off"));
        let refused = arguments("10.0.2", &Testbed::new().exact(true).cpus(2));
        assert!(matches!(refused, Err(QemuError::ExactCpus(2))));
    }

    #[test]
    fn what_cannot_be_a_machine_is_refused() {
        assert!(arguments("10.0.2", &Testbed::new().cpus(0)).is_err());
        assert!(arguments("10.0.2", &Testbed::new().memory(64)).is_err());
        assert!(Qemu::from_version("garbage").is_err());
    }
}
