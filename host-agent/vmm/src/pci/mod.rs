//! PCI: one bus without bridges, reached by the type-1 mechanism.

pub(crate) mod bus;
pub(crate) mod config_space;
mod host_bridge;
pub(crate) mod msix;

/// A function on the bus. Offsets, sizes and values come from the guest.
pub(crate) trait PciFunction: Send {
    /// Reads configuration space; `data` is 1, 2 or 4 bytes inside one register.
    fn config_read(&mut self, offset: u8, data: &mut [u8]);
    /// Writes configuration space, within the same bounds.
    fn config_write(&mut self, offset: u8, data: &[u8]);
    /// Where the function's memory BAR is decoded now, if at all.
    fn memory_base(&self) -> Option<u64>;
    /// Reads the memory BAR at `offset`.
    fn memory_read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes the memory BAR at `offset`.
    fn memory_write(&mut self, offset: u64, data: &[u8]);
}
