//! A request to create a machine, checked before anything of it exists.

use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use longship_framed::error::Failure;
use longship_framed::vmm::{Create, MemoryProfile};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::boot::image::{ImageError, inspect};
use crate::boot::{BootPlan, PlanError};
use crate::memory::layout::{MAX_COMMAND_LINE, ram_end};
use crate::memory::memfd::{UnfitMemory, check_writable as check_template_memory};
use crate::memory::plan::RamPlanError;
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
    #[error("{0}")]
    Ram(#[from] RamPlanError),
    #[error("{0} is no memory profile")]
    Profile(i32),
    #[error("{0} bytes, but only machines of the profile DENSE have a window")]
    WindowUnused(u64),
    #[error("{memory} is more than {bits} bits of physical address can reach")]
    MemoryUnreachable { memory: u64, bits: u32 },
    #[error("{0}")]
    MemoryTooSmall(#[from] PlanError),
    #[error("{0} bytes, with what tells of the DMA window, are more than {MAX_COMMAND_LINE}")]
    CommandLineTooLong(usize),
    #[error("it has a character that is no printable ASCII at byte {0}")]
    CommandLineCharacter(usize),
    #[error("expected {expected} descriptors ({names}), got {got}")]
    Descriptors {
        expected: usize,
        names: String,
        got: usize,
    },
    #[error("the file {0}")]
    Kernel(#[from] ImageError),
    #[error("the file {0}")]
    Initramfs(String),
    #[error("{0}")]
    TemplateMemory(UnfitMemory),
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
            Self::Ram(e) => e.field(),
            Self::Profile(_) => "profile",
            Self::WindowUnused(_) => "dma_window_bytes",
            Self::MemoryUnreachable { .. } | Self::MemoryTooSmall(_) => "memory_bytes",
            Self::CommandLineTooLong(_) | Self::CommandLineCharacter(_) => "command_line",
            Self::Descriptors { .. } => "descriptors",
            Self::Kernel(_) => "kernel",
            Self::Initramfs(_) => "initramfs",
            Self::TemplateMemory(_) => "memory",
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
    /// What its RAM is to be, where it becomes a template.
    pub(crate) template: Option<File>,
    pub(crate) boot: BootPlan,
    pub(crate) console: Option<File>,
}

/// The descriptors of a request, told apart.
struct Descriptors {
    kvm: OwnedFd,
    kernel: File,
    initramfs: Option<File>,
    console: Option<File>,
    memory: Option<File>,
}

impl MachineSpec {
    /// Checks the whole request.
    pub(crate) fn check(create: Create, fds: Vec<OwnedFd>) -> Result<Self, SpecError> {
        let vcpus = u8::try_from(create.vcpus)
            .ok()
            .filter(|n| *n >= 1 && u32::from(*n) <= MAX_VCPUS)
            .ok_or(SpecError::Vcpus(create.vcpus))?;
        let memory = RamPlan {
            bytes: create.memory_bytes,
            profile: profile(&create)?,
        };
        memory.check()?;
        let command_line = command_line(&create.command_line, &memory)?;
        let fds = Descriptors::sort(&create, fds)?;
        if let Some(console) = &fds.console {
            check_writable(console)?;
        }
        if let Some(template) = &fds.memory {
            check_template_memory(template, memory.bytes).map_err(SpecError::TemplateMemory)?;
        }
        let kernel = inspect(fds.kernel)?;
        let initramfs = fds.initramfs.map(size_of_file).transpose()?;
        let boot = BootPlan::new(kernel, initramfs, command_line, memory, vcpus)?;
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
            memory,
            template: fds.memory,
            boot,
            console: fds.console,
        })
    }
}

impl Descriptors {
    fn sort(create: &Create, fds: Vec<OwnedFd>) -> Result<Self, SpecError> {
        let optional = [
            (create.has_initramfs, "initramfs"),
            (create.has_console, "console"),
            (create.has_memory, "memory"),
        ];
        let mut names = vec!["kvm", "kernel"];
        names.extend(
            optional
                .iter()
                .filter(|(has, _)| *has)
                .map(|(_, name)| name),
        );
        let expected = names.len();
        let wrong = SpecError::Descriptors {
            expected,
            names: names.join(", "),
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
            memory: file_if(create.has_memory),
        })
    }
}

fn profile(create: &Create) -> Result<Profile, SpecError> {
    let window = create.dma_window_bytes;
    match MemoryProfile::try_from(create.profile) {
        Err(_) => Err(SpecError::Profile(create.profile)),
        Ok(MemoryProfile::Dense) => Ok(Profile::Dense { window }),
        Ok(MemoryProfile::Unspecified | MemoryProfile::Direct) if window != 0 => {
            Err(SpecError::WindowUnused(window))
        }
        Ok(MemoryProfile::Unspecified | MemoryProfile::Direct) => Ok(Profile::Direct),
    }
}

/// The kernel's command line: what was asked for, and the place of the DMA window.
fn command_line(asked: &str, memory: &RamPlan) -> Result<String, SpecError> {
    if let Some(at) = asked
        .bytes()
        .position(|byte| !(b' '..=b'~').contains(&byte))
    {
        return Err(SpecError::CommandLineCharacter(at));
    }
    let mut line = asked.to_owned();
    if let Some(window) = memory.window() {
        let bytes = window.end - window.start;
        line.push_str(&format!(" dma_window={bytes}@{:#x}", window.start));
    }
    if line.len() > MAX_COMMAND_LINE {
        return Err(SpecError::CommandLineTooLong(line.len()));
    }
    Ok(line)
}

pub(super) fn check_writable(console: &File) -> Result<(), SpecError> {
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

pub(super) fn check_kvm(fd: OwnedFd) -> Result<Kvm, SpecError> {
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
        let cases: [(&str, Spoil); 13] = [
            ("vcpus", |c| c.vcpus = 0),
            ("vcpus", |c| c.vcpus = 65),
            ("memory_bytes", |c| c.memory_bytes = 16 << 20),
            ("memory_bytes", |c| c.memory_bytes = (64 << 20) + 4096),
            ("memory_bytes", |c| c.memory_bytes = 2 << 40),
            ("profile", |c| c.profile = 3),
            ("dma_window_bytes", |c| c.dma_window_bytes = 2 << 20),
            ("dma_window_bytes", |c| c.profile = 2),
            ("dma_window_bytes", |c| {
                (c.profile, c.dma_window_bytes) = (2, 1 << 20);
            }),
            ("dma_window_bytes", |c| {
                (c.profile, c.dma_window_bytes) = (2, 34 << 20);
            }),
            // As long as it may be, but for the word of the window.
            ("command_line", |c| {
                (c.profile, c.dma_window_bytes) = (2, 4 << 20);
                c.command_line = "x".repeat(2047);
            }),
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
    fn the_kernel_is_told_of_the_window() {
        let plan = |bytes| RamPlan {
            bytes,
            profile: Profile::Dense { window: 4 << 20 },
        };
        assert_eq!(
            command_line("quiet", &plan(128 << 20)).unwrap(),
            "quiet dma_window=4194304@0x7c00000"
        );
        assert_eq!(
            command_line("", &plan(8 << 30)).unwrap(),
            " dma_window=4194304@0xbfc00000"
        );
    }

    #[test]
    fn the_memory_of_a_template_is_checked() {
        let mut create = request();
        create.has_memory = true;
        let memory = crate::memory::memfd::tests::memfd(1);
        let (field, message) = refusal(create, vec![file(b""), file(b"x"), memory.into()]);
        assert_eq!(
            (field.as_str(), message.as_str()),
            ("memory", "it has 1 bytes, the memory 67108864")
        );
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
