//! 00:00.0. It does nothing; kernels look for it to believe in the bus.

use crate::pci::PciFunction;
use crate::pci::config_space::{ConfigSpace, Identity};

/// The host bridge.
pub(crate) struct HostBridge(ConfigSpace);

impl HostBridge {
    /// Red Hat's generic host bridge.
    pub(crate) fn new() -> Self {
        Self(ConfigSpace::new(Identity {
            vendor: 0x1B36,
            device: 0x0008,
            subsystem_vendor: 0,
            subsystem: 0,
            revision: 0,
            class: [6, 0, 0],
        }))
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u8, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn memory_base(&self) -> Option<u64> {
        None
    }

    fn memory_read(&mut self, _: u64, _: &mut [u8]) {}

    fn memory_write(&mut self, _: u64, _: &[u8]) {}
}
