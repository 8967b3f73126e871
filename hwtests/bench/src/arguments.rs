//! What several benchmarks are told on their command line, and its check: everything
//! is looked at before anything is started.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use longship_proto::agent::v1::MemoryProfile;

use crate::error::BenchError;

/// What is measured. Where nothing is given, it is what lies beside this program.
#[derive(Debug, Clone, Args)]
pub(crate) struct Programs {
    /// Folder with Longship's programs; where it is not given, this program's own
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
    /// The guest's kernel; where it is not given, `guest/vmlinux` in or above that folder
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The guest's initramfs; where it is not given, `initramfs.cpio` beside the kernel
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
}

/// Files that are there.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    bin: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Programs {
    /// Finds everything.
    ///
    /// # Errors
    /// [`BenchError::Impossible`] at what is missing.
    pub(crate) fn find(&self) -> Result<Files, BenchError> {
        let own = std::env::current_exe().unwrap_or_default();
        let own = own.parent().unwrap_or(Path::new("/"));
        let bin = self.bin.clone().unwrap_or_else(|| own.to_owned());
        let kernel = match &self.kernel {
            Some(kernel) => kernel.clone(),
            None => [bin.join("guest/vmlinux"), bin.join("../guest/vmlinux")]
                .into_iter()
                .find(|path| path.is_file())
                .ok_or_else(|| {
                    missing(
                        "--kernel",
                        &bin.join("guest/vmlinux"),
                        "is missing; `make guest` builds it",
                    )
                })?,
        };
        let initramfs = match &self.initramfs {
            Some(initramfs) => initramfs.clone(),
            None => kernel.with_file_name("initramfs.cpio"),
        };
        for (flag, path) in [("--kernel", &kernel), ("--initramfs", &initramfs)] {
            if !path.is_file() {
                return Err(missing(flag, path, "is no file"));
            }
        }
        Ok(Files {
            bin,
            kernel,
            initramfs,
        })
    }
}

impl Files {
    /// What lies at `place`, seen from Longship's programs.
    pub(crate) fn beside(&self, place: &str) -> PathBuf {
        self.bin.join(place)
    }

    /// One of Longship's programs.
    ///
    /// # Errors
    /// [`BenchError::Impossible`] where it is missing.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.bin.join(name);
        if !path.is_file() {
            return Err(missing(
                "--bin",
                &path,
                "is missing; `make build` builds it",
            ));
        }
        Ok(path)
    }
}

fn missing(flag: &str, path: &Path, what: &str) -> BenchError {
    BenchError::Impossible(format!("{flag}: {} {what}", path.display()))
}

/// The machine of a sandbox.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Machine {
    /// Virtual CPUs of a guest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) vcpus: u32,
    /// Memory of a guest, a multiple of 2
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = guest_mib)]
    memory_mib: u64,
    /// Who can reach a guest's memory
    #[arg(long, value_enum, default_value_t = Profile::Dense)]
    pub(crate) profile: Profile,
}

impl Machine {
    /// Memory of a guest in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }
}

fn guest_mib(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(mib) if (64..=1 << 20).contains(&mib) && mib % 2 == 0 => Ok(mib),
        Ok(_) => Err("must be an even number of MiB, 64 to 1048576".to_owned()),
        Err(_) => Err("is no number of MiB".to_owned()),
    }
}

/// Who can reach a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// The VMM; backends a small window of it
    Dense,
    /// The VMM and all backends
    Direct,
}

impl Profile {
    pub(crate) fn to_agent(self) -> MemoryProfile {
        match self {
            Self::Dense => MemoryProfile::Dense,
            Self::Direct => MemoryProfile::Direct,
        }
    }

    pub(crate) fn to_control(self) -> longship_proto::control::v1::MemoryProfile {
        match self {
            Self::Dense => longship_proto::control::v1::MemoryProfile::Dense,
            Self::Direct => longship_proto::control::v1::MemoryProfile::Direct,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Direct => "direct",
        }
    }
}

/// How a sandbox comes to its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Origin {
    /// Its kernel boots
    Cold,
    /// It is cloned from a template when it is asked for
    Clone,
    /// A clone waits for it
    Warm,
}

impl Origin {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Clone => "clone",
            Self::Warm => "warm",
        }
    }

    /// The agent's flags for it; `pool` clones are kept warm.
    pub(crate) fn agent_flags(self, pool: u32) -> Vec<String> {
        match self {
            Self::Cold => vec!["--no-templates".to_owned()],
            Self::Clone => vec!["--warm-pool".to_owned(), "0".to_owned()],
            Self::Warm => vec!["--warm-pool".to_owned(), pool.to_string()],
        }
    }
}
