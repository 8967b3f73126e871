//! A request to create a machine, checked before anything of it exists.

use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use longship_framed::error::Failure;
use longship_framed::vmm::Create;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::boot::image::{ImageError, inspect};
use crate::boot::{BootPlan, PlanError};
use crate::memory::layout::{MAX_COMMAND_LINE, MAX_MEMORY, MEMORY_GRANULE, MIN_MEMORY, ram_end};
use crate::memory::{Profile, RamPlan};
use crate::vcpu::cpuid;

/// The most processors that a machine can have.
const MAX_VCPUS: u32 = 64;

/// What KVM must be able to do.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "interrupt controllers"),
    (Cap::UserMemory, "user memory"),
    (Cap::SetTssAddr, "a task state address"),
    (Cap::ExtCpuid, "CPUID"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// Why a machine is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("{0} is not between 1 and {MAX_VCPUS}")]
    Vcpus(u32),
    #[error("{0} is below the minimum of {MIN_MEMORY} bytes (32 MiB)")]
    MemoryBelow(u64),
    #[error("{0} is above the limit of {MAX_MEMORY} bytes (1 TiB)")]
    MemoryAbove(u64),
    #[error("{0} is not a multiple of {MEMORY_GRANULE} bytes (2 MiB)")]
    MemoryUneven(u64),
    #[error("{memory} is more than {bits} bits of physical address can reach")]
    MemoryUnreachable { memory: u64, bits: u32 },
    #[error("{0}")]
    MemoryTooSmall(#[from] PlanError),
    #[error("{0} bytes are more than {MAX_COMMAND_LINE}")]
    CommandLineTooLong(usize),
    #[error("it has a character that is no printable ASCII at byte {0}")]
    CommandLineCharacter(usize),
    #[error("expected {expected} descriptors ({names}), got {got}")]
    Descriptors {
        expected: usize,
        names: &'static str,
        got: usize,
    },
    #[error("the file {0}")]
    Kernel(#[from] ImageError),
    #[error("the file {0}")]
    Initramfs(String),
    #[error("the descriptor is not open for writing")]
    Console,
    #[error("the descriptor is no /dev/kvm (API version {KVM_API_VERSION})")]
    NoKvm,
    #[error("this KVM has no {0}")]
    KvmLacks(&'static str),
    #[error("asking KVM for the CPUID it supports: {0}")]
    Cpuid(kvm_ioctls::Error),
}

impl SpecError {
    /// The field of the request that is wrong.
    fn field(&self) -> &'static str {
        match self {
            Self::Vcpus(_) => "vcpus",
            Self::MemoryBelow(_)
            | Self::MemoryAbove(_)
            | Self::MemoryUneven(_)
            | Self::MemoryUnreachable { .. }
            | Self::MemoryTooSmall(_) => "memory_bytes",
            Self::CommandLineTooLong(_) | Self::CommandLineCharacter(_) => "command_line",
            Self::Descriptors { .. } => "descriptors",
            Self::Kernel(_) => "kernel",
            Self::Initramfs(_) => "initramfs",
            Self::Console => "console",
            Self::NoKvm | Self::KvmLacks(_) | Self::Cpuid(_) => "kvm",
        }
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        Self::invalid(error.field(), error.to_string())
    }
}

/// A machine that can be created.
pub(crate) struct MachineSpec {
    pub(crate) kvm: Kvm,
    /// What its processors can do.
    pub(crate) supported: CpuId,
    pub(crate) vcpus: u8,
    pub(crate) memory: RamPlan,
    pub(crate) boot: BootPlan,
    pub(crate) console: Option<File>,
}

/// The descriptors of a request, told apart.
struct Descriptors {
    kvm: OwnedFd,
    kernel: File,
    initramfs: Option<File>,
    console: Option<File>,
}

impl MachineSpec {
    /// Checks the whole request.
    pub(crate) fn check(create: Create, fds: Vec<OwnedFd>) -> Result<Self, SpecError> {
        let vcpus = u8::try_from(create.vcpus)
            .ok()
            .filter(|n| *n >= 1 && u32::from(*n) <= MAX_VCPUS)
            .ok_or(SpecError::Vcpus(create.vcpus))?;
        check_memory(create.memory_bytes)?;
        check_command_line(&create.command_line)?;
        let fds = Descriptors::sort(&create, fds)?;
        if let Some(console) = &fds.console {
            check_writable(console)?;
        }
        let kernel = inspect(fds.kernel)?;
        let initramfs = fds.initramfs.map(size_of_file).transpose()?;
        let boot = BootPlan::new(
            kernel,
            initramfs,
            create.command_line,
            create.memory_bytes,
            vcpus,
        )?;
        let kvm = check_kvm(fds.kvm)?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(SpecError::Cpuid)?;
        let bits = cpuid::physical_address_bits(&supported);
        if bits < 64 && ram_end(create.memory_bytes) > 1 << bits {
            return Err(SpecError::MemoryUnreachable {
                memory: create.memory_bytes,
                bits,
            });
        }
        Ok(Self {
            kvm,
            supported,
            vcpus,
            memory: RamPlan {
                bytes: create.memory_bytes,
                profile: Profile::Direct,
            },
            boot,
            console: fds.console,
        })
    }
}

impl Descriptors {
    fn sort(create: &Create, fds: Vec<OwnedFd>) -> Result<Self, SpecError> {
        let names = match (create.has_initramfs, create.has_console) {
            (false, false) => "kvm, kernel",
            (true, false) => "kvm, kernel, initramfs",
            (false, true) => "kvm, kernel, console",
            (true, true) => "kvm, kernel, initramfs, console",
        };
        let expected = 2 + usize::from(create.has_initramfs) + usize::from(create.has_console);
        let wrong = SpecError::Descriptors {
            expected,
            names,
            got: fds.len(),
        };
        if fds.len() != expected {
            return Err(wrong);
        }
        let mut fds = fds.into_iter();
        let (Some(kvm), Some(kernel)) = (fds.next(), fds.next()) else {
            return Err(wrong);
        };
        let mut file_if = |there: bool| {
            if there {
                fds.next().map(File::from)
            } else {
                None
            }
        };
        Ok(Self {
            kvm,
            kernel: kernel.into(),
            initramfs: file_if(create.has_initramfs),
            console: file_if(create.has_console),
        })
    }
}

fn check_memory(bytes: u64) -> Result<(), SpecError> {
    if bytes < MIN_MEMORY {
        Err(SpecError::MemoryBelow(bytes))
    } else if bytes > MAX_MEMORY {
        Err(SpecError::MemoryAbove(bytes))
    } else if !bytes.is_multiple_of(MEMORY_GRANULE) {
        Err(SpecError::MemoryUneven(bytes))
    } else {
        Ok(())
    }
}

fn check_command_line(line: &str) -> Result<(), SpecError> {
    if line.len() > MAX_COMMAND_LINE {
        return Err(SpecError::CommandLineTooLong(line.len()));
    }
    match line.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
        Some(at) => Err(SpecError::CommandLineCharacter(at)),
        None => Ok(()),
    }
}

fn check_writable(console: &File) -> Result<(), SpecError> {
    let flags = fcntl(console, FcntlArg::F_GETFL).map_err(|_| SpecError::Console)?;
    match OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE {
        OFlag::O_WRONLY | OFlag::O_RDWR => Ok(()),
        _ => Err(SpecError::Console),
    }
}

/// The file and its size in bytes.
fn size_of_file(file: File) -> Result<(File, u64), SpecError> {
    let metadata = file
        .metadata()
        .map_err(|e| SpecError::Initramfs(format!("cannot be read: {e}")))?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(SpecError::Initramfs(
            "is empty or no regular file".to_owned(),
        ));
    }
    Ok((file, metadata.len()))
}

fn check_kvm(fd: OwnedFd) -> Result<Kvm, SpecError> {
    // SAFETY: the descriptor is open and ours, and `Kvm` becomes its owner. On
    // one that is no KVM, the ioctls below fail and change nothing.
    let kvm = unsafe {
        use std::os::fd::FromRawFd;
        Kvm::from_raw_fd(fd.into_raw_fd())
    };
    if u32::try_from(kvm.get_api_version()) != Ok(KVM_API_VERSION) {
        tracing::debug!("descriptor {} is no KVM", kvm.as_raw_fd());
        return Err(SpecError::NoKvm);
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(SpecError::KvmLacks(name)),
        None => Ok(kvm),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use longship_framed::error::Class;

    use super::*;

    fn request() -> Create {
        Create {
            vcpus: 1,
            memory_bytes: 64 << 20,
            command_line: "reboot=k".to_owned(),
            ..Create::default()
        }
    }

    fn file(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    fn refusal(create: Create, fds: Vec<OwnedFd>) -> (String, String) {
        let failure = Failure::from(MachineSpec::check(create, fds).err().unwrap());
        assert_eq!(failure.class(), Class::Invalid);
        (failure.field, failure.message)
    }

    #[test]
    fn refusals_name_the_field() {
        type Spoil = fn(&mut Create);
        let cases: [(&str, Spoil); 7] = [
            ("vcpus", |c| c.vcpus = 0),
            ("vcpus", |c| c.vcpus = 65),
            ("memory_bytes", |c| c.memory_bytes = 16 << 20),
            ("memory_bytes", |c| c.memory_bytes = (64 << 20) + 4096),
            ("memory_bytes", |c| c.memory_bytes = 2 << 40),
            ("command_line", |c| c.command_line = "x".repeat(2048)),
            ("command_line", |c| c.command_line = "a\nb".to_owned()),
        ];
        for (field, spoil) in cases {
            let mut create = request();
            spoil(&mut create);
            assert_eq!(refusal(create, Vec::new()).0, field);
        }
    }

    #[test]
    fn descriptors_are_counted() {
        let mut create = request();
        create.has_console = true;
        let (field, message) = refusal(create, vec![file(b""), file(b"")]);
        assert_eq!(field, "descriptors");
        assert_eq!(
            message,
            "expected 3 descriptors (kvm, kernel, console), got 2"
        );
    }

    #[test]
    fn files_that_are_not_what_they_should_be() {
        let (field, message) = refusal(request(), vec![file(b""), file(b"#!/bin/sh")]);
        assert_eq!(field, "kernel");
        assert!(
            message.starts_with("the file is no ELF vmlinux and no bzImage"),
            "{message}"
        );

        let mut create = request();
        create.has_console = true;
        let console = std::fs::File::open("/dev/null").unwrap().into();
        assert_eq!(
            refusal(create, vec![file(b""), file(b"x"), console]).0,
            "console"
        );
    }
}
