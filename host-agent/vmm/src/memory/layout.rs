//! The guest's physical address space: what lies where.
//!
//! ```text
//! 0x0000_0500  GDT            (boot only)
//! 0x0000_7000  zero page      (boot_params)
//! 0x0000_9000  page tables    (boot only)
//! 0x0002_0000  command line
//! 0x0009_E000  MP table, reserved up to 0xA_0000
//! 0x0010_0000  RAM … at most 3 GiB
//!              its last megabytes are the DMA window, where there is one
//! 0xC000_0000  BARs of PCI functions
//! 0xFEC0_0000  IO-APIC, 0xFEE0_0000 local APICs, KVM's own pages
//! 0x1_0000_0000  the rest of RAM
//! ```

use std::ops::Range;

/// Bytes in a page.
pub(crate) const PAGE: u64 = 4096;
/// Memory sizes are multiples of this.
pub(crate) const MEMORY_GRANULE: u64 = 2 << 20;
/// The least memory that a guest can have.
pub(crate) const MIN_MEMORY: u64 = 32 << 20;
/// The most memory that a guest can have.
pub(crate) const MAX_MEMORY: u64 = 1 << 40;

/// The boot GDT.
pub(crate) const BOOT_GDT: u64 = 0x500;
/// `struct boot_params` (Documentation/arch/x86/zero-page.rst).
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// PML4, page directory pointers, page directory: three pages.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line, with its final zero.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line, without the final zero (`COMMAND_LINE_SIZE` of x86).
pub(crate) const MAX_COMMAND_LINE: usize = 2047;
/// The MP configuration table; RAM below ends here.
pub(crate) const MP_TABLE: u64 = 0x9_E000;
/// The MP floating pointer: the last KiB of the 640, where kernels look for it.
pub(crate) const MP_POINTER: u64 = 0x9_FC00;
/// End of conventional memory.
pub(crate) const LOW_MEMORY_END: u64 = 0xA_0000;
/// Kernels are loaded at or above.
pub(crate) const HIGH_MEMORY: u64 = 1 << 20;

/// Where BARs lie.
pub(crate) const BAR_WINDOW: Range<u64> = 0xC000_0000..0xFEC0_0000;
/// IO-APIC, in KVM.
pub(crate) const IO_APIC: u32 = 0xFEC0_0000;
/// Local APICs, in KVM.
pub(crate) const LOCAL_APIC: u32 = 0xFEE0_0000;
/// One page that KVM needs on some Intel processors (`KVM_SET_IDENTITY_MAP_ADDR`).
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages for the same reason (`KVM_SET_TSS_ADDR`).
pub(crate) const KVM_TSS: u64 = 0xFFFB_D000;

/// RAM above the hole begins here.
const ABOVE_HOLE: u64 = 1 << 32;

/// RAM of a guest with `bytes` of it, in ascending order: one range, or two
/// around the hole from 3 to 4 GiB.
pub(crate) fn ram_ranges(bytes: u64) -> Vec<Range<u64>> {
    let below = bytes.min(BAR_WINDOW.start);
    let above = bytes.saturating_sub(below);
    let both = [0..below, ABOVE_HOLE..ABOVE_HOLE.saturating_add(above)];
    both.into_iter().filter(|range| !range.is_empty()).collect()
}

/// The first address after all RAM of a guest with `bytes`.
pub(crate) fn ram_end(bytes: u64) -> u64 {
    ram_ranges(bytes).last().map_or(0, |range| range.end)
}

/// Where the DMA window of `window` bytes lies in a guest with `memory`: at the end of
/// the RAM below the hole, in the reach of 32-bit devices. A function of the two
/// sizes alone, so that a template and its clones agree on it. Both are multiples of
/// [`MEMORY_GRANULE`], so the window is aligned to it.
pub(crate) fn dma_window(memory: u64, window: u64) -> Range<u64> {
    let end = memory.min(BAR_WINDOW.start);
    end.saturating_sub(window)..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_the_last_ram_below_the_hole() {
        let four = 4 << 20;
        assert_eq!(dma_window(128 << 20, four), 0x7C0_0000..0x800_0000);
        assert_eq!(dma_window(5 << 30, four), 0xBFC0_0000..0xC000_0000);
    }

    #[test]
    fn small_guests_have_one_range_and_big_ones_a_hole() {
        assert_eq!(ram_ranges(MIN_MEMORY), vec![0..MIN_MEMORY; 1]);
        let three = 3 << 30;
        assert_eq!(ram_ranges(three), vec![0..three; 1]);
        let five = 5 << 30;
        assert_eq!(ram_ranges(five), [0..three, (4 << 30)..(6 << 30)]);
        assert_eq!(ram_end(five), 6 << 30);
    }

    #[test]
    fn what_boot_needs_below_one_mebibyte_does_not_overlap() {
        let parts = [
            BOOT_GDT..BOOT_GDT + 32,
            ZERO_PAGE..ZERO_PAGE + PAGE,
            PAGE_TABLES..PAGE_TABLES + 3 * PAGE,
            COMMAND_LINE..COMMAND_LINE + 2048,
            MP_TABLE..MP_POINTER,
            MP_POINTER..LOW_MEMORY_END,
        ];
        for pair in parts.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }
}
