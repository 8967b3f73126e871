//! `struct boot_params`, by its documented offsets
//! (Documentation/arch/x86/zero-page.rst and boot.rst).

use std::ops::Range;

use crate::boot::image::SETUP_HEADER;
use crate::memory::layout;

/// Type of a memory map entry: RAM.
const RAM: u32 = 1;
/// Type of a memory map entry: not to be used.
const RESERVED: u32 = 2;
/// "undefined boot loader".
const LOADER: u8 = 0xFF;

/// The page.
pub(crate) type ZeroPage = [u8; 4096];

/// The boot parameters of a guest with `memory` bytes.
pub(crate) fn build(
    memory: u64,
    setup_header: Option<&[u8]>,
    command_line: usize,
    initramfs: Option<&Range<u64>>,
) -> ZeroPage {
    let mut page = [0; 4096];
    if let Some(header) = setup_header {
        put(&mut page, SETUP_HEADER, header);
    } else {
        put(&mut page, 0x1FE, &0xAA55_u16.to_le_bytes());
        put(&mut page, 0x202, b"HdrS");
        put(&mut page, 0x206, &0x020F_u16.to_le_bytes());
        // Loaded high.
        put(&mut page, 0x211, &[1]);
        put(&mut page, 0x230, &0x0100_0000_u32.to_le_bytes());
    }
    put(&mut page, 0x210, &[LOADER]);
    put(
        &mut page,
        0x228,
        &low_half(layout::COMMAND_LINE).to_le_bytes(),
    );
    put(
        &mut page,
        0x238,
        &low_half(command_line as u64).to_le_bytes(),
    );
    if let Some(range) = initramfs {
        put(&mut page, 0x218, &low_half(range.start).to_le_bytes());
        put(
            &mut page,
            0x21C,
            &low_half(range.end - range.start).to_le_bytes(),
        );
    }
    let map = memory_map(memory);
    put(
        &mut page,
        0x1E8,
        &[u8::try_from(map.len()).unwrap_or(u8::MAX)],
    );
    for (index, (range, kind)) in map.iter().enumerate() {
        let at = 0x2D0 + index * 20;
        put(&mut page, at, &range.start.to_le_bytes());
        put(&mut page, at + 8, &(range.end - range.start).to_le_bytes());
        put(&mut page, at + 16, &kind.to_le_bytes());
    }
    page
}

/// The e820 map.
fn memory_map(memory: u64) -> Vec<(Range<u64>, u32)> {
    let mut map = vec![
        (0..layout::MP_TABLE, RAM),
        (layout::MP_TABLE..layout::LOW_MEMORY_END, RESERVED),
    ];
    for range in layout::ram_ranges(memory) {
        map.push((range.start.max(layout::HIGH_MEMORY)..range.end, RAM));
    }
    map
}

/// Values that the layout keeps below 4 GiB.
fn low_half(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn put(page: &mut ZeroPage, at: usize, bytes: &[u8]) {
    for (to, from) in page.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_has_all_ram_once() {
        for memory in [layout::MIN_MEMORY, 2 << 30, 3 << 30, 7 << 30] {
            let map = memory_map(memory);
            assert!(
                map.windows(2).all(|w| w[0].0.end <= w[1].0.start),
                "{map:x?}"
            );
            let ram: u64 = map.iter().map(|(r, _)| r.end - r.start).sum();
            // All but the hole of the first MiB.
            assert_eq!(ram, memory - (layout::HIGH_MEMORY - layout::LOW_MEMORY_END));
        }
    }

    #[test]
    fn the_fields_are_where_the_kernel_reads_them() {
        let page = build(64 << 20, None, 11, Some(&(0x3F0_0000..0x3F0_1234)));
        assert_eq!(page[0x1E8], 3);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x218..0x21C], 0x3F0_0000_u32.to_le_bytes());
        assert_eq!(page[0x21C..0x220], 0x1234_u32.to_le_bytes());
        assert_eq!(page[0x228..0x22C], 0x2_0000_u32.to_le_bytes());
        assert_eq!(page[0x238], 11);
    }
}
