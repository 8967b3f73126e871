//! What a processor needs to start in long mode: a GDT and page tables
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::kvm_segment;

use crate::memory::layout;

/// Flat code, 64 bits, readable.
const CODE: u16 = 0xA09B;
/// Flat data, writable.
const DATA: u16 = 0xC093;
/// A busy 64-bit TSS.
const TASK: u16 = 0x808B;

/// Selectors are the entries' offsets: `__BOOT_CS` and `__BOOT_DS` of Linux.
const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;
const TASK_INDEX: u16 = 4;

/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, 2 MiB.
const LARGE_PAGE: u64 = 0b1000_0011;

/// The GDT: null, null, code, data, task.
pub(crate) fn gdt() -> [u64; 5] {
    [0, 0, descriptor(CODE), descriptor(DATA), descriptor(TASK)]
}

/// Limit of the GDT in bytes, less one.
pub(crate) const GDT_LIMIT: u16 = 5 * 8 - 1;

/// The code segment.
pub(crate) fn code_segment() -> kvm_segment {
    segment(CODE, CODE_INDEX)
}

/// The data segment.
pub(crate) fn data_segment() -> kvm_segment {
    segment(DATA, DATA_INDEX)
}

/// The task segment.
pub(crate) fn task_segment() -> kvm_segment {
    segment(TASK, TASK_INDEX)
}

/// Page tables that map the first GiB to itself in 2 MiB pages: PML4, page
/// directory pointers, page directory.
pub(crate) fn page_tables() -> Vec<u8> {
    let directories = layout::PAGE_TABLES + layout::PAGE;
    let directory = directories + layout::PAGE;
    let mut entries = vec![0_u64; 3 * 512];
    for (index, entry) in entries.iter_mut().enumerate() {
        *entry = match index {
            0 => directories | TABLE,
            512 => directory | TABLE,
            1024.. => ((index as u64 - 1024) << 21) | LARGE_PAGE,
            _ => 0,
        };
    }
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// A descriptor with base 0 and the largest limit; `flags` are its bits 40 to 47
/// and 52 to 55 (Intel SDM, volume 3, 3.4.5).
fn descriptor(flags: u16) -> u64 {
    let flags = u64::from(flags);
    ((flags & 0xF000) << 40) | (0xF << 48) | ((flags & 0xFF) << 40) | 0xFFFF
}

/// The same, as KVM wants it.
fn segment(flags: u16, index: u16) -> kvm_segment {
    let bit = |n: u16| u8::from(flags & (1 << n) != 0);
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector: index * 8,
        type_: (flags & 0xF).to_le_bytes()[0],
        s: bit(4),
        dpl: 0,
        present: bit(7),
        avl: 0,
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_architecture() {
        assert_eq!(
            gdt(),
            [
                0,
                0,
                0x00AF_9B00_0000_FFFF,
                0x00CF_9300_0000_FFFF,
                0x008F_8B00_0000_FFFF
            ]
        );
        let code = code_segment();
        assert_eq!(
            (code.selector, code.type_, code.l, code.db, code.s),
            (0x10, 11, 1, 0, 1)
        );
        assert_eq!(task_segment().s, 0);
    }

    #[test]
    fn the_first_gibibyte_maps_to_itself() {
        let bytes = page_tables();
        let entry = |n: usize| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().unwrap());
        assert_eq!(entry(0), 0xA003);
        assert_eq!(entry(512), 0xB003);
        assert_eq!(entry(1024), 0x83);
        assert_eq!(entry(1024 + 511), (511 << 21) | 0x83);
        assert_eq!(entry(1), 0);
    }
}
