//! The state in which processors start (Documentation/arch/x86/boot.rst, "64-bit
//! Boot Protocol"; Intel SDM volume 3, 10.1.1 for what the others wait in).

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;

use crate::boot::long_mode;
use crate::memory::layout;

const CR0_PROTECTED: u64 = 1;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_FIXED: u64 = 2;

const MSR_MISC_ENABLE: u32 = 0x1A0;
/// `rep movs` in big steps.
const FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEFAULT: u32 = 0x2FF;
/// MTRRs on; memory is write-back.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// Offsets of the local APIC's pins, and their delivery modes.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const MODE_NMI: u32 = 4;
const MODE_EXT_INT: u32 = 7;

/// Puts the first processor at `entry` in long mode, with the zero page in RSI.
pub(super) fn start_at(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = long_mode::GDT_LIMIT;
    sregs.idt.base = 0;
    sregs.idt.limit = 0xFFFF;
    sregs.cs = long_mode::code_segment();
    let data = long_mode::data_segment();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = long_mode::task_segment();
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.cr0 |= CR0_PROTECTED | CR0_PAGING;
    sregs.efer |= EFER_LONG_MODE | EFER_LONG_MODE_ACTIVE;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rsp: layout::ZERO_PAGE,
        rbp: layout::ZERO_PAGE,
        rflags: RFLAGS_FIXED,
        ..kvm_regs::default()
    })
}

/// What every processor has, whether it boots or waits.
pub(super) fn set_common(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37F,
        mxcsr: 0x1F80,
        ..kvm_fpu::default()
    })?;
    for (index, data) in [
        (MSR_MISC_ENABLE, FAST_STRINGS),
        (MSR_MTRR_DEFAULT, MTRR_WRITE_BACK),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let msrs =
            Msrs::from_entries(&[entry]).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        // Both only make the guest faster: a host without one of them goes on.
        if vcpu.set_msrs(&msrs)? == 0 {
            tracing::debug!("MSR {index:#x} is not settable on this host");
        }
    }
    let mut lapic = vcpu.get_lapic()?;
    set_delivery_mode(&mut lapic, LVT_LINT0, MODE_EXT_INT);
    set_delivery_mode(&mut lapic, LVT_LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic)
}

/// Wires a pin of the local APIC as the MP table says.
fn set_delivery_mode(lapic: &mut kvm_lapic_state, pin: usize, mode: u32) {
    if let Some(byte) = lapic.regs.get_mut(pin + 1) {
        // Bits 8 to 10 of the register are the low three of its second byte.
        let [mode, ..] = mode.to_le_bytes();
        let [old] = byte.to_le_bytes();
        *byte = i8::from_le_bytes([(old & !7) | mode]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_mode_leaves_the_rest_of_its_register() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_LINT1 + 1] = 0x13;
        lapic.regs[LVT_LINT1 + 2] = 1;
        set_delivery_mode(&mut lapic, LVT_LINT1, MODE_NMI);
        assert_eq!(lapic.regs[LVT_LINT1 + 1], 0x14);
        assert_eq!(lapic.regs[LVT_LINT1 + 2], 1);
    }
}
