//! The MP table: processors and interrupt wiring of a machine without ACPI
//! (Intel MultiProcessor Specification 1.4, chapter 4).

use crate::memory::layout;

/// Version of the local APICs: integrated, with the usual LVT.
const LOCAL_APIC_VERSION: u8 = 0x14;
/// Version of KVM's IO-APIC.
const IO_APIC_VERSION: u8 = 0x11;
/// The only bus: ISA. PCI functions interrupt by MSI-X, which needs no wiring.
const ISA: u8 = 0;
/// ISA interrupts, each wired to the IO-APIC pin of the same number.
const ISA_INTERRUPTS: u8 = 16;
/// An interrupt that the IO-APIC's own entry describes.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// The configuration table of a machine with `vcpus` processors.
pub(crate) fn table(vcpus: u8) -> Vec<u8> {
    let io_apic = vcpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        // Enabled; the first is the one that boots.
        let flags = if id == 0 { 3 } else { 1 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[0, id, LOCAL_APIC_VERSION, flags]);
        // Family 6; APIC and FPU. Kernels take the truth from CPUID.
        entry[4..6].copy_from_slice(&0x600_u16.to_le_bytes());
        entry[8..10].copy_from_slice(&0x201_u16.to_le_bytes());
        add(&entry);
    }
    add(&[1, ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = layout::IO_APIC.to_le_bytes();
    add(&[2, io_apic, IO_APIC_VERSION, 1, a, b, c, d]);
    for irq in 0..ISA_INTERRUPTS {
        add(&[3, INT, 0, 0, ISA, irq, io_apic, irq]);
    }
    add(&[4, EXT_INT, 0, 0, ISA, 0, 0, 0]);
    add(&[4, NMI, 0, 0, ISA, 0, 0xFF, 1]);

    let mut table = Vec::with_capacity(44 + entries.len());
    table.extend_from_slice(b"PCMP");
    let len = u16::try_from(44 + entries.len()).unwrap_or(u16::MAX);
    table.extend_from_slice(&len.to_le_bytes());
    table.extend_from_slice(&[4, 0]);
    table.extend_from_slice(b"LONGSHIP");
    table.extend_from_slice(b"MICROVM     ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    seal(&mut table, 7);
    table
}

/// The floating pointer by which a kernel finds the table.
pub(crate) fn pointer() -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    let at = u32::try_from(layout::MP_TABLE).unwrap_or(u32::MAX);
    pointer[4..8].copy_from_slice(&at.to_le_bytes());
    // One paragraph long, specification 1.4.
    pointer[8..10].copy_from_slice(&[1, 4]);
    seal(&mut pointer, 10);
    pointer
}

/// Makes the bytes' sum zero by the one at `at`.
fn seal(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_of_all_sizes_are_sealed_and_fit() {
        assert_eq!(sum(&pointer()), 0);
        for vcpus in 1..=64 {
            let table = table(vcpus);
            assert_eq!(sum(&table), 0);
            assert_eq!(
                usize::from(u16::from_le_bytes([table[4], table[5]])),
                table.len()
            );
            assert!(layout::MP_TABLE + table.len() as u64 <= layout::MP_POINTER);
            assert_eq!(
                u16::from_le_bytes([table[34], table[35]]),
                u16::from(vcpus) + 2 + 16 + 2
            );
            assert_eq!(
                u32::from_le_bytes(table[36..40].try_into().unwrap()),
                layout::LOCAL_APIC
            );
        }
    }
}
