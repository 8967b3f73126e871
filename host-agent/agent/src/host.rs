//! What the agent needs of its host, checked before it serves.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::cgroup::{CgroupError, CgroupRoot};
use crate::kernel_image;
use crate::stages::Stages;

/// What the operator asked for.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder for what the agent keeps while it runs.
    pub runtime_dir: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest's initramfs.
    pub initramfs: PathBuf,
    /// The VMM; `None`: `longship-vmm` beside this program.
    pub vmm: Option<PathBuf>,
    /// The KVM device.
    pub kvm: PathBuf,
    /// The cgroup below which each sandbox gets one.
    pub cgroup: PathBuf,
    /// Memory for sandboxes in bytes; `None`: seven eighths of what is free, without
    /// what templates may hold.
    pub memory_bytes: Option<u64>,
    /// CPUs for sandboxes; `None`: all.
    pub cpus: Option<u32>,
    /// Whether machines are clones of templates; else each boots by itself.
    pub templates: bool,
    /// Memory for templates and warm clones in bytes; `None`: an eighth of the host's.
    pub template_memory: Option<u64>,
    /// Paused clones that wait for a sandbox, of each template in use.
    pub warm_pool: usize,
    /// Sandboxes that may be at one stage of their start at once; `None`: as many as
    /// there are CPUs.
    pub parallel_starts: Option<usize>,
}

/// Why the agent cannot serve. Each names the flag that is at fault.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file could not be opened.
    #[error("{flag} {path}: {error}")]
    File {
        /// The flag that named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The kernel is none.
    #[error("--kernel {0}: is no kernel (neither an x86-64 ELF vmlinux nor a bzImage)")]
    NoKernel(PathBuf),
    /// The initramfs is none.
    #[error("--initramfs {0}: is empty or no file")]
    NoInitramfs(PathBuf),
    /// The VMM is none.
    #[error("--vmm {0}: is no executable file")]
    NoVmm(PathBuf),
    /// KVM cannot be used.
    #[error("--kvm: {0}; `longship doctor` says what to do")]
    Kvm(#[from] longship_probe::KvmError),
    /// cgroup v2 cannot be used.
    #[error("--cgroup {path}: {message}; `longship doctor` says what to do")]
    Cgroup {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// There is another agent.
    #[error("--runtime-dir {0}: another agent runs with it")]
    InUse(PathBuf),
    /// The memory or number of CPUs is not known or none.
    #[error("{flag}: {message}")]
    Capacity {
        /// The flag that would say it.
        flag: &'static str,
        /// Why it is none.
        message: &'static str,
    },
    /// The address cannot be listened on.
    #[error("--listen {address}: {error}")]
    Listen {
        /// The address.
        address: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The runtime failed.
    #[error("serve: {0}")]
    Serve(String),
}

/// The host, checked, with everything open that every sandbox needs.
#[derive(Debug)]
pub struct Host {
    pub(crate) vmm: CString,
    pub(crate) stages: Stages,
    pub(crate) cgroups: CgroupRoot,
    pub(crate) memory_bytes: u64,
    pub(crate) cpus: u32,
    /// What templates and warm clones may hold; `None`: there are none.
    pub(crate) template_bytes: Option<u64>,
    /// Clones in advance of each template.
    pub(crate) warm_pool: usize,
    kvm: PathBuf,
    kernel: File,
    initramfs: File,
    _lock: Flock<File>,
}

impl Host {
    /// Checks everything in `config`, and ends what a former agent left.
    ///
    /// # Errors
    /// [`StartError`], by what was not as it should be.
    pub fn open(config: Config) -> Result<Self, StartError> {
        let kernel = open("--kernel", &config.kernel)?;
        let recognised =
            kernel_image::recognise(&kernel).map_err(file_error("--kernel", &config.kernel))?;
        if recognised.is_none() {
            return Err(StartError::NoKernel(config.kernel));
        }
        let initramfs = open("--initramfs", &config.initramfs)?;
        let found = initramfs
            .metadata()
            .map_err(file_error("--initramfs", &config.initramfs))?;
        if !found.is_file() || found.len() == 0 {
            return Err(StartError::NoInitramfs(config.initramfs));
        }
        let vmm = find_vmm(config.vmm)?;
        drop(longship_probe::open_kvm(&config.kvm)?);
        let template_bytes = match (config.templates, config.template_memory) {
            (false, _) => None,
            (true, Some(bytes)) => Some(bytes),
            (true, None) => Some(host_memory("--template-memory")?.total / 8),
        };
        let memory_bytes = memory_for_sandboxes(config.memory_bytes, template_bytes)?;
        let cpus = cpus_for_sandboxes(config.cpus)?;
        let cgroup_error = |error: CgroupError| StartError::Cgroup {
            path: config.cgroup.clone(),
            message: error.to_string(),
        };
        let cgroups = CgroupRoot::prepare(&config.cgroup).map_err(cgroup_error)?;
        // What another agent has there must not be swept.
        let lock = lock(&config.runtime_dir)?;
        for name in cgroups.sweep().map_err(cgroup_error)? {
            tracing::warn!("ended sandbox {name}, which a former agent left");
        }
        Ok(Self {
            vmm,
            stages: Stages::new(stage_width(config.parallel_starts)),
            cgroups,
            memory_bytes,
            cpus,
            template_bytes,
            warm_pool: config.warm_pool,
            kvm: config.kvm,
            kernel,
            initramfs,
            _lock: lock,
        })
    }

    /// KVM, opened.
    pub(crate) fn kvm(&self) -> io::Result<File> {
        File::options().read(true).write(true).open(&self.kvm)
    }

    /// The VMM's program.
    pub(crate) fn vmm_file(&self) -> io::Result<File> {
        File::open(std::ffi::OsStr::from_bytes(self.vmm.to_bytes()))
    }

    /// The kernel that was checked, opened anew, so that no two VMMs share an offset.
    pub(crate) fn kernel(&self) -> io::Result<File> {
        reopen(&self.kernel)
    }

    /// The initramfs, opened anew.
    pub(crate) fn initramfs(&self) -> io::Result<File> {
        reopen(&self.initramfs)
    }
}

fn reopen(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn open(flag: &'static str, path: &Path) -> Result<File, StartError> {
    File::open(path).map_err(file_error(flag, path))
}

fn file_error(flag: &'static str, path: &Path) -> impl Fn(io::Error) -> StartError {
    let path = path.to_owned();
    move |error| StartError::File {
        flag,
        path: path.clone(),
        error,
    }
}

fn find_vmm(given: Option<PathBuf>) -> Result<CString, StartError> {
    let path = match given {
        Some(path) => path,
        None => std::env::current_exe()
            .map_err(file_error("--vmm", Path::new("longship-vmm")))?
            .with_file_name("longship-vmm"),
    };
    let found = fs::metadata(&path).map_err(file_error("--vmm", &path))?;
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Err(StartError::NoVmm(path));
    }
    let absolute = fs::canonicalize(&path).map_err(file_error("--vmm", &path))?;
    CString::new(absolute.as_os_str().as_bytes()).map_err(|_| StartError::NoVmm(path))
}

fn host_memory(flag: &'static str) -> Result<longship_probe::Memory, StartError> {
    longship_probe::memory().ok_or(StartError::Capacity {
        flag,
        message: "/proc/meminfo does not say how much there is",
    })
}

/// What is free now, without a part for templates and one for what VMMs need beside
/// their guests' memory.
fn memory_for_sandboxes(given: Option<u64>, templates: Option<u64>) -> Result<u64, StartError> {
    let memory = match given {
        Some(bytes) => bytes,
        None => {
            let free = host_memory("--memory")?.available;
            (free - free / 8).saturating_sub(templates.unwrap_or(0))
        }
    };
    if memory == 0 {
        return Err(StartError::Capacity {
            flag: "--memory",
            message: "must be more than 0",
        });
    }
    Ok(memory)
}

fn cpus_for_sandboxes(given: Option<u32>) -> Result<u32, StartError> {
    let cpus = match given {
        Some(cpus) => cpus,
        None => u32::try_from(cpus_here()).unwrap_or(u32::MAX),
    };
    if cpus == 0 {
        return Err(StartError::Capacity {
            flag: "--cpus",
            message: "must be more than 0",
        });
    }
    Ok(cpus)
}

fn cpus_here() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One more than there are CPUs keeps all busy while one of them waits for the kernel.
fn stage_width(given: Option<usize>) -> usize {
    given.unwrap_or_else(|| cpus_here() + 1)
}

/// Two agents in one place would end each other's sandboxes.
fn lock(folder: &Path) -> Result<Flock<File>, StartError> {
    let file_error = file_error("--runtime-dir", folder);
    fs::create_dir_all(folder).map_err(&file_error)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("agent.lock"))
        .map_err(&file_error)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::Error::EWOULDBLOCK => StartError::InUse(folder.to_owned()),
        other => file_error(other.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> Config {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        fs::write(folder.join("vmlinux"), elf).unwrap();
        fs::write(folder.join("initramfs"), "070701").unwrap();
        Config {
            runtime_dir: folder.join("run"),
            kernel: folder.join("vmlinux"),
            initramfs: folder.join("initramfs"),
            vmm: Some("/bin/true".into()),
            kvm: folder.join("kvm"),
            cgroup: folder.join("cgroup"),
            memory_bytes: Some(1 << 30),
            cpus: Some(1),
            parallel_starts: None,
            templates: true,
            template_memory: None,
            warm_pool: 2,
        }
    }

    fn refusal(change: impl FnOnce(&mut Config)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let error = Host::open(config).unwrap_err().to_string();
        assert!(
            !folder.path().join("run").exists(),
            "left something: {error}"
        );
        error.replace(folder.path().to_str().unwrap(), "DIR")
    }

    #[test]
    fn each_wrong_file_is_named_with_its_flag_and_nothing_is_left() {
        assert_eq!(
            refusal(|config| config.kernel = config.initramfs.clone()),
            "--kernel DIR/initramfs: is no kernel (neither an x86-64 ELF vmlinux nor a bzImage)"
        );
        assert_eq!(
            refusal(|config| config.kernel.set_file_name("nothing")),
            "--kernel DIR/nothing: No such file or directory (os error 2)"
        );
        assert_eq!(
            refusal(|config| config.initramfs = "/dev/null".into()),
            "--initramfs /dev/null: is empty or no file"
        );
        assert_eq!(
            refusal(|config| config.vmm = Some(config.kernel.clone())),
            "--vmm DIR/vmlinux: is no executable file"
        );
        assert_eq!(
            refusal(|_| {}),
            "--kvm: DIR/kvm does not exist; `longship doctor` says what to do"
        );
    }

    #[test]
    fn two_agents_cannot_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        assert!(matches!(lock(folder.path()), Err(StartError::InUse(_))));
        drop(first);
        lock(folder.path()).unwrap();
    }
}
