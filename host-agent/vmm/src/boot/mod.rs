//! Booting a kernel without firmware: the 64-bit Linux boot protocol, and an MP
//! table instead of ACPI.

pub(crate) mod image;
pub(crate) mod long_mode;
mod mp_table;
mod zero_page;

use std::fs::File;
use std::ops::Range;

use crate::boot::image::KernelImage;
use crate::memory::{GuestRam, MemoryError, RamPlan, layout};

/// The kernel unpacks the initramfs through its first mapping, and bzImages
/// expect it below 2 GiB.
const INITRAMFS_END: u64 = 2 << 30;

/// Why a kernel and an initramfs do not fit into the guest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PlanError {
    #[error("the kernel needs memory up to {needs:#x}, the guest has it up to {has:#x}")]
    Kernel { needs: u64, has: u64 },
    #[error("the initramfs of {bytes} bytes does not fit between the kernel and {end:#x}")]
    Initramfs { bytes: u64, end: u64 },
}

/// All that is put into guest memory before the first instruction.
pub(crate) struct BootPlan {
    kernel: KernelImage,
    initramfs: Option<(File, Range<u64>)>,
    command_line: String,
    memory: RamPlan,
    vcpus: u8,
}

impl BootPlan {
    /// Places `kernel` and `initramfs` (with its size in bytes) into `memory`, outside
    /// its DMA window.
    pub(crate) fn new(
        kernel: KernelImage,
        initramfs: Option<(File, u64)>,
        command_line: String,
        memory: RamPlan,
        vcpus: u8,
    ) -> Result<Self, PlanError> {
        let ram_end = layout::ram_ranges(memory.bytes)
            .first()
            .map_or(0, |range| range.end);
        // The window is the end of it.
        let low_end = memory.window().map_or(ram_end, |window| window.start);
        let needs = kernel
            .segments
            .iter()
            .filter_map(|s| s.guest.checked_add(s.bytes))
            .fold(kernel.end, u64::max);
        if needs > low_end {
            return Err(PlanError::Kernel {
                needs,
                has: low_end,
            });
        }
        let initramfs = match initramfs {
            None => None,
            Some((file, bytes)) => {
                let end = low_end.min(INITRAMFS_END);
                let start = end
                    .checked_sub(bytes)
                    .map(|start| start & !(layout::PAGE - 1))
                    .filter(|start| *start >= needs)
                    .ok_or(PlanError::Initramfs { bytes, end })?;
                Some((file, start..start + bytes))
            }
        };
        Ok(Self {
            kernel,
            initramfs,
            command_line,
            memory,
            vcpus,
        })
    }

    /// Guest-physical address of the first instruction.
    pub(crate) fn entry(&self) -> u64 {
        self.kernel.entry
    }

    /// Loads the kernel.
    pub(crate) fn load_kernel(&self, ram: &GuestRam) -> Result<(), MemoryError> {
        for segment in &self.kernel.segments {
            ram.load(
                segment.guest,
                &self.kernel.file,
                segment.offset,
                segment.bytes,
            )?;
        }
        Ok(())
    }

    /// Loads the initramfs, where there is one.
    pub(crate) fn load_initramfs(&self, ram: &GuestRam) -> Result<(), MemoryError> {
        match &self.initramfs {
            Some((file, range)) => ram.load(range.start, file, 0, range.end - range.start),
            None => Ok(()),
        }
    }

    /// Writes what tells the kernel of its machine.
    pub(crate) fn write_tables(&self, ram: &GuestRam) -> Result<(), MemoryError> {
        let mut command_line = self.command_line.clone().into_bytes();
        command_line.push(0);
        ram.write(layout::COMMAND_LINE, &command_line)?;
        let zero_page = zero_page::build(
            self.memory.bytes,
            self.kernel.setup_header.as_deref(),
            self.command_line.len(),
            self.initramfs.as_ref().map(|(_, range)| range),
        );
        ram.write(layout::ZERO_PAGE, &zero_page)?;
        let gdt: Vec<u8> = long_mode::gdt()
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect();
        ram.write(layout::BOOT_GDT, &gdt)?;
        ram.write(layout::PAGE_TABLES, &long_mode::page_tables())?;
        ram.write(layout::MP_TABLE, &mp_table::table(self.vcpus))?;
        ram.write(layout::MP_POINTER, &mp_table::pointer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::image::Segment;

    fn kernel(end: u64) -> KernelImage {
        KernelImage {
            file: tempfile::tempfile().unwrap(),
            segments: vec![Segment {
                offset: 0,
                bytes: 0x1000,
                guest: 0x100_0000,
            }],
            entry: 0x100_0000,
            end,
            setup_header: None,
        }
    }

    fn plan(end: u64, initramfs: u64, memory: u64) -> Result<BootPlan, PlanError> {
        plan_in(end, initramfs, RamPlan::direct(memory))
    }

    fn plan_in(end: u64, initramfs: u64, memory: RamPlan) -> Result<BootPlan, PlanError> {
        let initramfs = Some((tempfile::tempfile().unwrap(), initramfs));
        BootPlan::new(kernel(end), initramfs, String::new(), memory, 1)
    }

    #[test]
    fn the_initramfs_lies_at_the_end_of_low_memory() {
        let plan = plan(0x180_0000, 0x1234, 64 << 20).unwrap();
        let (_, range) = plan.initramfs.unwrap();
        assert_eq!(range, 0x3FF_E000..0x3FF_F234);
    }

    #[test]
    fn nothing_lies_in_the_window() {
        let memory = RamPlan::dense(64 << 20, 4 << 20);
        let window = memory.window().unwrap();
        let plan = plan_in(0x180_0000, 0x1234, memory).unwrap();
        assert_eq!(plan.initramfs.unwrap().1.end, window.start - 0x1000 + 0x234);
        let refused = plan_in(window.start + 1, 0, memory).err();
        assert!(matches!(refused, Some(PlanError::Kernel { .. })));
        let memory = RamPlan::dense(4 << 30, 4 << 20);
        assert!(plan_in(0xBFC0_0000, 0, memory).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = plan(64 << 20, 0x1000, 64 << 20).err();
        assert!(matches!(refused, Some(PlanError::Initramfs { .. })));
        let refused = plan((64 << 20) + 1, 0, 64 << 20).err();
        assert!(matches!(refused, Some(PlanError::Kernel { .. })));
        let refused = plan(0x180_0000, u64::MAX, 64 << 20).err();
        assert!(matches!(refused, Some(PlanError::Initramfs { .. })));
    }

    #[test]
    fn a_guest_of_five_gibibytes_has_its_initramfs_below_two() {
        let plan = plan(0x180_0000, 0x1000, 5 << 30).unwrap();
        let (_, range) = plan.initramfs.unwrap();
        assert_eq!(range.end, 2 << 30);
    }
}
