//! The KVM device: there, open to us, and complete.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, Kvm};

use crate::check::Check;

/// The version of KVM's interface that every kernel since 2.6.22 has (KVM API,
/// `KVM_GET_API_VERSION`).
const API_VERSION: i32 = 12;

/// What the VMM needs of KVM: its name in `linux/kvm.h`, and the capability.
pub const REQUIRED_CAPABILITIES: [(&str, Cap); 8] = [
    ("KVM_CAP_USER_MEMORY", Cap::UserMemory),
    ("KVM_CAP_IRQCHIP", Cap::Irqchip),
    ("KVM_CAP_IRQ_ROUTING", Cap::IrqRouting),
    ("KVM_CAP_SIGNAL_MSI", Cap::SignalMsi),
    ("KVM_CAP_IRQFD", Cap::Irqfd),
    ("KVM_CAP_IOEVENTFD", Cap::Ioeventfd),
    ("KVM_CAP_IMMEDIATE_EXIT", Cap::ImmediateExit),
    ("KVM_CAP_EXT_CPUID", Cap::ExtCpuid),
];

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// The device is there but cannot be opened.
    #[error("open {path}: {error}")]
    Open {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// What was opened does not answer as KVM does.
    #[error("{path} is no KVM device (its API version is {version}, expected {API_VERSION})")]
    Version {
        /// The device.
        path: PathBuf,
        /// What it answered; negative: nothing.
        version: i32,
    },
}

/// Opens the KVM device at `path` and makes sure that it is one.
///
/// # Errors
/// [`KvmError`], by which of the three did not hold.
pub fn open_kvm(path: &Path) -> Result<Kvm, KvmError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| KvmError::Missing(path.to_owned()))?;
    let kvm = Kvm::new_with_path(&name).map_err(|error| match error.errno() {
        libc::ENOENT => KvmError::Missing(path.to_owned()),
        errno => KvmError::Open {
            path: path.to_owned(),
            error: io::Error::from_raw_os_error(errno),
        },
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        version => Err(KvmError::Version {
            path: path.to_owned(),
            version,
        }),
    }
}

pub(crate) fn check_device(path: &Path) -> (Check, Option<Kvm>) {
    const NAME: &str = "kvm-device";
    match open_kvm(path) {
        Ok(kvm) => {
            let finding = format!("{} opened, API version {API_VERSION}", path.display());
            (Check::ok(NAME, finding), Some(kvm))
        }
        Err(error) => (
            Check::fail(NAME, error.to_string(), remedy_for(&error)),
            None,
        ),
    }
}

fn remedy_for(error: &KvmError) -> String {
    match error {
        KvmError::Missing(_) => "switch on virtualization (VT-x, AMD-V) in the firmware and load \
            kvm_intel or kvm_amd; in a virtual machine switch on nested virtualization; or use \
            the testbed: longship-testbed run -- COMMAND"
            .to_owned(),
        KvmError::Open { path, error } if error.kind() == io::ErrorKind::PermissionDenied => {
            format!(
                "run as root, or join the group that owns {}",
                path.display()
            )
        }
        KvmError::Open { .. } | KvmError::Version { .. } => {
            "name the true KVM device, usually /dev/kvm".to_owned()
        }
    }
}

pub(crate) fn check_capabilities(kvm: &Kvm) -> Check {
    const NAME: &str = "kvm-capabilities";
    let missing: Vec<&str> = REQUIRED_CAPABILITIES
        .iter()
        .filter(|(_, capability)| !kvm.check_extension(*capability))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        let vcpus = kvm.get_max_vcpus();
        let all = REQUIRED_CAPABILITIES.len();
        Check::ok(
            NAME,
            format!("all {all} that are needed; up to {vcpus} vCPUs a guest"),
        )
    } else {
        Check::fail(
            NAME,
            format!("missing: {}", missing.join(", ")),
            "use a kernel of version 4.12 or newer with CONFIG_HAVE_KVM_IRQCHIP and CONFIG_EVENTFD",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn a_missing_device_is_named_with_a_remedy() {
        let (check, kvm) = check_device(Path::new("/nowhere/kvm"));
        assert!(kvm.is_none());
        assert_eq!(check.verdict, Verdict::Fail);
        assert_eq!(check.finding, "/nowhere/kvm does not exist");
        assert!(check.remedy.contains("testbed"), "{}", check.remedy);
    }

    #[test]
    fn another_device_is_not_taken_for_kvm() {
        let refused = open_kvm(Path::new("/dev/null"));
        assert!(matches!(refused, Err(KvmError::Version { version, .. }) if version < 0));
    }
}
