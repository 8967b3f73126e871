//! Virtual processors: their state at the start, and the loop that runs them.

pub(crate) mod cpuid;
pub(crate) mod kick;
mod registers;
mod run;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::vcpu::cpuid::Topology;
pub(crate) use crate::vcpu::run::{Counters, Ending, Order, Surroundings, run};

/// Why a processor could not be made.
#[derive(Debug, thiserror::Error)]
#[error("vCPU {id}: {doing}: {source}")]
pub(crate) struct VcpuError {
    id: u8,
    doing: &'static str,
    source: kvm_ioctls::Error,
}

/// What all processors of a machine have in common.
pub(crate) struct Processors<'a> {
    /// What KVM supports.
    pub(crate) supported: &'a CpuId,
    /// How many there are.
    pub(crate) count: u8,
    /// Whether APIC timers can be set to a time of the TSC.
    pub(crate) tsc_deadline: bool,
    /// Where the first one starts.
    pub(crate) entry: u64,
}

impl Processors<'_> {
    /// CPUID of processor `id`.
    pub(crate) fn cpuid(&self, id: u8) -> Vec<kvm_cpuid_entry2> {
        let place = Topology {
            id,
            count: self.count,
        };
        cpuid::for_processor(self.supported, place, self.tsc_deadline)
    }
}

/// Creates all processors, the first one at the kernel's entry, the others
/// waiting for its start-up interrupt.
pub(crate) fn create(vm: &VmFd, processors: &Processors<'_>) -> Result<Vec<VcpuFd>, VcpuError> {
    (0..processors.count)
        .map(|id| create_one(vm, processors, id))
        .collect()
}

fn create_one(vm: &VmFd, processors: &Processors<'_>, id: u8) -> Result<VcpuFd, VcpuError> {
    let failed = |doing| move |source| VcpuError { id, doing, source };
    let vcpu = vm
        .create_vcpu(u64::from(id))
        .map_err(failed("creating it"))?;
    let cpuid = CpuId::from_entries(&processors.cpuid(id)).map_err(|_| {
        failed("its CPUID has too many entries")(kvm_ioctls::Error::new(libc::E2BIG))
    })?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(failed("setting its CPUID"))?;
    registers::set_common(&vcpu).map_err(failed("setting its registers"))?;
    if id == 0 {
        registers::start_at(&vcpu, processors.entry)
            .map_err(failed("setting its start in long mode"))?;
    }
    Ok(vcpu)
}
