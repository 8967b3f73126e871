//! What this host can do: KVM and its speed, cgroups, devices.
//!
//! Every check is a question asked of the kernel, not of a version number, and
//! gives a [`Check`]: what was found and, where that is not enough, what to do.
//! Nothing that a check makes outlives it.

mod cgroup;
mod check;
mod kvm;
mod memory;
mod network;
mod programs;
mod ring0;

use std::path::PathBuf;

pub use cgroup::{CONTROLLERS, CgroupError, cgroup2_mount};
pub use check::{Check, Verdict, usable};
pub use kvm::{KvmError, REQUIRED_CAPABILITIES, open_kvm};
pub use memory::{Memory, free_memory, memory};
pub use ring0::{NATIVE_RATE, Ring0Error, Ring0Speed, measure_ring0};

/// What to look at.
#[derive(Debug, Clone)]
pub struct Host {
    /// The KVM device.
    pub kvm: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            kvm: PathBuf::from("/dev/kvm"),
        }
    }
}

/// Whether `host.kvm` is there, complete, and runs guest ring 0 at native speed.
/// Takes some 10 milliseconds, and some 150 where it does not. Stops at the first check that fails, since the
/// next ones need it.
#[must_use]
pub fn check_kvm(host: &Host) -> Vec<Check> {
    let mut checks = Vec::new();
    let (device, kvm) = kvm::check_device(&host.kvm);
    checks.push(device);
    let Some(kvm) = kvm else { return checks };
    let capabilities = kvm::check_capabilities(&kvm);
    let complete = capabilities.verdict != Verdict::Fail;
    checks.push(capabilities);
    if complete {
        checks.push(ring0::check_speed(&kvm));
    }
    checks
}

/// All checks, KVM's first.
#[must_use]
pub fn check_host(host: &Host) -> Vec<Check> {
    let mut checks = check_kvm(host);
    checks.push(cgroup::check_cgroup2());
    checks.extend(network::check_network());
    checks.push(memory::check_memfd());
    checks.push(memory::check_free_memory());
    checks.push(programs::check_mkfs_ext4());
    checks
}
