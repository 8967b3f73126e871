//! The state of a machine that stands still, without its RAM: written once, when a
//! template has parked, and read by each of its clones.
//!
//! Whoever reads one trusts nothing in it: `format` finds every damage before a
//! body is looked at, and a body is taken apart within limits all the same. The values
//! go to KVM alone, which checks them as it does any other's.

mod checksum;
mod compatible;
mod format;
mod platform;
mod processor;
mod time;
mod window;

use std::fs::File;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use longship_framed::error::Failure;

use crate::memory::plan::RamPlanError;
use crate::memory::{Profile, RamPlan};
use crate::pci::bus::PciBus;
use crate::serial::SerialPort;
pub(crate) use crate::snapshot::compatible::Incompatible;
pub(crate) use crate::snapshot::format::FormatError;
use crate::snapshot::format::{Reader, Writer};
pub(crate) use crate::snapshot::platform::BoardState;
use crate::snapshot::platform::PlatformState;
use crate::snapshot::processor::ProcessorState;
use crate::snapshot::time::TimeState;
pub(crate) use crate::snapshot::window::first_used as first_used_of_window;

/// The most processors of a machine.
const MAX_PROCESSORS: u32 = 64;
const DIRECT: u64 = 0;

/// Why a state cannot be saved or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("{0}")]
    Format(#[from] FormatError),
    #[error("{0}")]
    Incompatible(#[from] Incompatible),
    #[error("its memory: {0}")]
    Ram(#[from] RamPlanError),
    #[error("{0} processors are not between 1 and {MAX_PROCESSORS}")]
    Processors(u32),
    #[error("reading {what} from KVM: {source}")]
    Capture {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("KVM does not take {what}: {source}")]
    Apply {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("KVM does not take the value {value:#x} for MSR {index:#x}")]
    Msr { index: u32, value: u64 },
    #[error(
        "its guest counts {template} kHz by its TSC, which here has {host} and cannot be scaled: {source}"
    )]
    TscRate {
        template: u32,
        host: u32,
        source: kvm_ioctls::Error,
    },
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let message = error.to_string();
        match error {
            SnapshotError::Capture { .. } => Self::internal(message),
            _ => Self::invalid("state", message),
        }
    }
}

/// A machine without devices whose processors stand still between two instructions.
pub(crate) struct Still<'a> {
    pub(crate) kvm: &'a Kvm,
    pub(crate) vm: &'a VmFd,
    pub(crate) with_pit: bool,
    pub(crate) vcpus: &'a [VcpuFd],
    /// What each of them was told to be. KVM is not asked: it would add what the guest
    /// has switched on.
    pub(crate) cpuid: Vec<Vec<kvm_cpuid_entry2>>,
    pub(crate) ram: RamPlan,
    pub(crate) serial: &'a SerialPort,
    pub(crate) pci: &'a PciBus,
}

/// All of a machine but its RAM's content.
pub(crate) struct MachineState {
    /// What RAM it has.
    pub(crate) ram: RamPlan,
    /// What the VMM itself plays.
    pub(crate) board: BoardState,
    platform: PlatformState,
    time: TimeState,
    processors: Vec<ProcessorState>,
}

impl MachineState {
    /// Reads the state of a machine that stands still.
    pub(crate) fn capture(still: &Still<'_>) -> Result<Self, SnapshotError> {
        let failed = |what| move |source| SnapshotError::Capture { what, source };
        let indices = processor::msr_indices(still.kvm).map_err(failed("the list of MSRs"))?;
        let vcpus = still.vcpus;
        let processors = vcpus
            .iter()
            .zip(&still.cpuid)
            .map(|(vcpu, cpuid)| ProcessorState::capture(vcpu, cpuid.clone(), &indices))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            ram: still.ram,
            board: BoardState::of(still.serial, still.pci),
            platform: PlatformState::capture(still.vm, still.with_pit)?,
            time: TimeState::capture(still.vm, vcpus)?,
            processors,
        })
    }

    /// Whether the machine needs a PIT.
    pub(crate) fn has_pit(&self) -> bool {
        self.platform.has_pit()
    }

    /// Checks that the guest can go on on a host which supports `host`, and timers
    /// set to times of the TSC where `tsc_deadline`.
    pub(crate) fn check_host(&self, host: &CpuId, tsc_deadline: bool) -> Result<(), SnapshotError> {
        for processor in &self.processors {
            compatible::check(&processor.cpuid, host.as_slice(), tsc_deadline)?;
        }
        Ok(())
    }

    /// Creates the processors in `vm` and puts all that KVM keeps back.
    pub(crate) fn apply(&self, vm: &VmFd) -> Result<Vec<VcpuFd>, SnapshotError> {
        let failed = |what| move |source| SnapshotError::Apply { what, source };
        let mut vcpus = Vec::with_capacity(self.processors.len());
        for id in 0..self.processors.len() {
            let vcpu = vm
                .create_vcpu(id as u64)
                .map_err(failed("another processor"))?;
            vcpus.push(vcpu);
        }
        let tsc = self.time.apply(vm, &vcpus)?;
        for (id, (vcpu, state)) in vcpus.iter().zip(&self.processors).enumerate() {
            state.apply(vcpu, id == 0, tsc)?;
        }
        self.platform.apply(vm)?;
        Ok(vcpus)
    }

    /// The state as a file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut body = Writer::new();
        let window = match self.ram.profile {
            Profile::Direct => DIRECT,
            Profile::Dense { window } => window,
        };
        body.put(&self.ram.bytes);
        body.put(&window);
        self.board.write(&mut body);
        self.platform.write(&mut body);
        self.time.write(&mut body);
        body.put(&u32::try_from(self.processors.len()).unwrap_or(u32::MAX));
        for processor in &self.processors {
            processor.write(&mut body);
        }
        Ok(body.finish()?)
    }

    /// Reads what [`MachineState::encode`] has made; checks all that can be without
    /// KVM.
    pub(crate) fn decode(file: &[u8]) -> Result<Self, SnapshotError> {
        let mut body = Reader::new(file)?;
        let bytes = body.take("the size of memory")?;
        let profile = match body.take("the DMA window")? {
            DIRECT => Profile::Direct,
            window => Profile::Dense { window },
        };
        let ram = RamPlan { bytes, profile };
        ram.check()?;
        let board = BoardState::read(&mut body)?;
        let platform = PlatformState::read(&mut body)?;
        let time = TimeState::read(&mut body)?;
        let count: u32 = body.take("the number of processors")?;
        if !(1..=MAX_PROCESSORS).contains(&count) {
            return Err(SnapshotError::Processors(count));
        }
        let processors = (0..count)
            .map(|_| ProcessorState::read(&mut body))
            .collect::<Result<Vec<_>, _>>()?;
        body.finish()?;
        Ok(Self {
            ram,
            board,
            platform,
            time,
            processors,
        })
    }

    /// Writes it to `file`, which is empty.
    pub(crate) fn save(&self, file: &File) -> Result<(), SnapshotError> {
        Ok(format::write_file(file, &self.encode()?)?)
    }

    /// Reads it from `file`.
    pub(crate) fn load(file: &File) -> Result<Self, SnapshotError> {
        Self::decode(&format::read_file(file)?)
    }
}

#[cfg(test)]
mod tests;
