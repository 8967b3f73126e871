//! One virtual processor: what is saved of it, and the order in which KVM takes it
//! back.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::snapshot::SnapshotError;
use crate::snapshot::format::{FormatError, Reader, Writer};
use crate::snapshot::time::Tsc;

/// The bit of a task segment's type that says that the task runs.
const TASK_BUSY: u8 = 2;
/// `IA32_TIME_STAMP_COUNTER`.
pub(super) const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: an interrupt of the local APIC.
const TSC_DEADLINE: u32 = 0x6E0;
/// Read once only, when the guest has asked for it, and written by KVM to the
/// guest's memory when it is set: what would be put back is a page less shared.
const WALL_CLOCK: u32 = 0x4B56_4D00;
/// Other numbers of the same two clocks, which would switch the better ones off.
const OLD_CLOCKS: [u32; 2] = [0x11, 0x12];
/// Hyper-V's, which no guest here is offered. KVM sets memory aside for all of them as
/// soon as one is set.
const HYPER_V: std::ops::Range<u32> = 0x4000_0000..0x4000_0200;
/// Saved by themselves, or not at all.
const APART: [u32; 5] = [TSC, TSC_DEADLINE, WALL_CLOCK, OLD_CLOCKS[0], OLD_CLOCKS[1]];

/// The most MSRs of a processor; KVM knows some 150.
const MAX_MSRS: usize = 1024;
/// The most that one call takes (`KVM_MAX_MSR_ENTRIES`).
const MSRS_A_CALL: usize = 256;
/// What is saved of a processor. It stands between two instructions.
pub(super) struct ProcessorState {
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    registers: kvm_regs,
    special: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    activity: kvm_mp_state,
    events: kvm_vcpu_events,
    msrs: Vec<kvm_msr_entry>,
    deadline: u64,
}

/// The MSRs that this KVM knows of and that are worth saving.
pub(super) fn msr_indices(kvm: &Kvm) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let known = kvm.get_msr_index_list()?;
    let mut indices: Vec<u32> = known.as_slice().to_vec();
    indices.retain(|index| !APART.contains(index) && !HYPER_V.contains(index));
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

impl ProcessorState {
    /// Reads all of it from `vcpu`, which does not run, but the CPUID that it was given.
    pub(super) fn capture(
        vcpu: &VcpuFd,
        cpuid: Vec<kvm_cpuid_entry2>,
        indices: &[u32],
    ) -> Result<Self, SnapshotError> {
        let failed = |what| move |source| SnapshotError::Capture { what, source };
        let deadline = read_msrs(vcpu, &[TSC_DEADLINE]).map_err(failed("its timer"))?;
        Ok(Self {
            cpuid,
            // The activity first: asking for it lets KVM settle what is pending.
            activity: vcpu.get_mp_state().map_err(failed("its activity"))?,
            registers: vcpu.get_regs().map_err(failed("its registers"))?,
            special: vcpu.get_sregs().map_err(failed("its system registers"))?,
            // All that a guest can have without features that a process must ask
            // the kernel for (AMX), which this one does not.
            xsave: Box::new(vcpu.get_xsave().map_err(failed("its vector registers"))?),
            xcrs: vcpu.get_xcrs().map_err(failed("its XCRs"))?,
            debug: vcpu
                .get_debug_regs()
                .map_err(failed("its debug registers"))?,
            lapic: vcpu.get_lapic().map_err(failed("its APIC"))?,
            msrs: read_msrs(vcpu, indices).map_err(failed("its MSRs"))?,
            events: vcpu
                .get_vcpu_events()
                .map_err(failed("its pending events"))?,
            deadline: deadline.first().map_or(0, |entry| entry.data),
        })
    }

    /// Puts it into `vcpu`, which is new, and the first of all or another one.
    pub(super) fn apply(&self, vcpu: &VcpuFd, first: bool, tsc: Tsc) -> Result<(), SnapshotError> {
        let failed = |what| move |source| SnapshotError::Apply { what, source };
        let cpuid = CpuId::from_entries(&self.cpuid)
            .map_err(|_| failed("its CPUID")(kvm_ioctls::Error::new(libc::E2BIG)))?;
        // All that follows is checked against CPUID.
        vcpu.set_cpuid2(&cpuid).map_err(failed("its CPUID"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(failed("its XCRs"))?;
        // SAFETY: KVM reads as many bytes as this process has features for: without
        // AMX, which it never asks for, not more than the 4096 of the structure.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(failed("its vector registers"))?;
        // They contain the APIC's base, which its registers depend on.
        vcpu.set_sregs(&self.system_registers())
            .map_err(failed("its system registers"))?;
        vcpu.set_regs(&self.registers)
            .map_err(failed("its registers"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(failed("its debug registers"))?;
        // Before its deadline, which counts only where the timer has that mode.
        vcpu.set_lapic(&self.lapic).map_err(failed("its APIC"))?;
        self.apply_msrs(vcpu, first, tsc)?;
        vcpu.set_mp_state(self.activity)
            .map_err(failed("its activity"))?;
        // The last: several of the calls above drop what is pending.
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("its pending events"))
    }

    /// The system registers as KVM wants them. AMD's virtualisation does not keep the
    /// busy bit of the task segment, so KVM adds it when it is asked; given back, it
    /// reaches the processor, of which some (QEMU's) find no I/O permissions in a
    /// segment that is busy. Intel's cannot do without it.
    fn system_registers(&self) -> kvm_sregs {
        let mut special = self.special;
        let vendor = self.cpuid.iter().find(|entry| entry.function == 0);
        let vendor = vendor.map_or(0, |entry| entry.ebx).to_le_bytes();
        if [*b"Auth", *b"Hygo"].contains(&vendor) {
            special.tr.type_ &= !TASK_BUSY;
        }
        special
    }

    /// All MSRs by one call (as a rule), the TSC before the deadline that is counted with it.
    fn apply_msrs(&self, vcpu: &VcpuFd, first: bool, tsc: Tsc) -> Result<(), SnapshotError> {
        let entry = |index, data| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let mut entries = self.msrs.clone();
        entries.extend(tsc.values(first).map(|value| entry(TSC, value)));
        if self.deadline != 0 {
            entries.push(entry(TSC_DEADLINE, self.deadline));
        }
        let failed = |source| SnapshotError::Apply {
            what: "its MSRs",
            source,
        };
        for part in entries.chunks(MSRS_A_CALL) {
            let msrs = Msrs::from_entries(part)
                .map_err(|_| failed(kvm_ioctls::Error::new(libc::E2BIG)))?;
            let set = vcpu.set_msrs(&msrs).map_err(failed)?;
            if let Some(refused) = part.get(set) {
                return Err(SnapshotError::Msr {
                    index: refused.index,
                    value: refused.data,
                });
            }
        }
        Ok(())
    }

    /// One with three CPUID leaves and two MSRs.
    #[cfg(test)]
    pub(super) fn sample(id: u64) -> Self {
        let entry = |index, data| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        Self {
            cpuid: vec![kvm_cpuid_entry2::default(); 3],
            registers: kvm_regs {
                rax: 0xC0DE,
                ..kvm_regs::default()
            },
            special: kvm_sregs::default(),
            xsave: Box::default(),
            xcrs: kvm_xcrs::default(),
            debug: kvm_debugregs::default(),
            lapic: kvm_lapic_state::default(),
            activity: kvm_mp_state::default(),
            events: kvm_vcpu_events::default(),
            msrs: vec![entry(0x1A0, 1), entry(0xC000_0102, id)],
            deadline: 7,
        }
    }

    /// Adds it to a body.
    pub(super) fn write(&self, to: &mut Writer) {
        to.put_all(&self.cpuid);
        to.put(&self.registers);
        to.put(&self.special);
        to.put(&self.xsave.region);
        to.put(&self.xcrs);
        to.put(&self.debug);
        to.put(&self.lapic);
        to.put(&self.activity);
        to.put(&self.events);
        to.put_all(&self.msrs);
        to.put(&self.deadline);
    }

    /// Takes it from a body.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let cpuid = from.take_all("a processor's CPUID", KVM_MAX_CPUID_ENTRIES)?;
        let registers = from.take("a processor's registers")?;
        let special = from.take("a processor's system registers")?;
        let xsave = Box::new(kvm_xsave {
            region: from.take("a processor's vector registers")?,
            ..kvm_xsave::default()
        });
        Ok(Self {
            cpuid,
            registers,
            special,
            xsave,
            xcrs: from.take("a processor's XCRs")?,
            debug: from.take("a processor's debug registers")?,
            lapic: from.take("a processor's APIC")?,
            activity: from.take("a processor's activity")?,
            events: from.take("a processor's pending events")?,
            msrs: from.take_all("a processor's MSRs", MAX_MSRS)?,
            deadline: from.take("a processor's timer")?,
        })
    }
}

/// Reads those of `indices` that can be read: which ones these are depends on CPUID.
pub(super) fn read_msrs(
    vcpu: &VcpuFd,
    indices: &[u32],
) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut found = Vec::new();
    let mut rest = indices;
    while !rest.is_empty() {
        let (part, _) = rest.split_at(rest.len().min(MSRS_A_CALL));
        let entries: Vec<kvm_msr_entry> = part
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..kvm_msr_entry::default()
            })
            .collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let read = vcpu.get_msrs(&mut msrs)?;
        found.extend_from_slice(msrs.as_slice().get(..read).unwrap_or_default());
        // KVM stops at the first that it cannot read: the next call begins after it.
        let done = if read < part.len() { read + 1 } else { read };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(found)
}
