//! Bus 0: which function an access means (PCI 3.0, 3.2.2.3.2).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use crate::memory::layout::BAR_WINDOW;
use crate::pci::PciFunction;
use crate::pci::host_bridge::HostBridge;

/// Devices on the bus, with the host bridge.
const MAX_DEVICES: usize = 32;
/// What every function's BAR takes. All are equal: no searching, no gaps.
pub(crate) const BAR_BYTES: u32 = 0x8000;
/// Bit of the address register: accesses go to configuration space.
const ENABLED: u32 = 1 << 31;
/// [`Slot::base`] of a function that decodes no memory.
const NOWHERE: u64 = u64::MAX;

/// A function and, outside its lock, where its BAR is: an access to one function
/// never waits for another.
struct Slot {
    base: AtomicU64,
    function: Mutex<Box<dyn PciFunction>>,
}

impl Slot {
    fn new(function: Box<dyn PciFunction>) -> Self {
        Self {
            base: AtomicU64::new(function.memory_base().unwrap_or(NOWHERE)),
            function: Mutex::new(function),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn PciFunction>> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bus and its configuration mechanism.
pub(crate) struct PciBus {
    /// `CONFIG_ADDRESS`.
    address: AtomicU32,
    /// By device number.
    slots: RwLock<Vec<Slot>>,
}

impl PciBus {
    /// A bus with its host bridge only.
    pub(crate) fn new() -> Self {
        Self {
            address: AtomicU32::new(0),
            slots: RwLock::new(vec![Slot::new(Box::new(HostBridge::new()))]),
        }
    }

    /// Where the BAR of the next function goes; `None` where the bus is full.
    pub(crate) fn next_bar(&self) -> Option<u32> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_DEVICES {
            return None;
        }
        let offset = u64::from(BAR_BYTES) * slots.len() as u64;
        u32::try_from(BAR_WINDOW.start + offset).ok()
    }

    /// Adds a function as the next device.
    pub(crate) fn add(&self, function: Box<dyn PciFunction>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.push(Slot::new(function));
    }

    /// `CONFIG_ADDRESS` takes whole registers only.
    pub(crate) fn write_address(&self, data: &[u8]) {
        if let Ok(bytes) = data.try_into() {
            self.address
                .store(u32::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }

    /// Reads `CONFIG_ADDRESS`.
    pub(crate) fn read_address(&self, data: &mut [u8]) {
        if let Ok(bytes) = <&mut [u8; 4]>::try_from(data) {
            *bytes = self.address.load(Ordering::Relaxed).to_le_bytes();
        }
    }

    /// The guest writes `data` at byte `offset` of `CONFIG_DATA`.
    pub(crate) fn write_data(&self, offset: u8, data: &[u8]) {
        let Some((device, register)) = self.target(offset, data.len()) else {
            return;
        };
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.get(device) else {
            return;
        };
        let mut function = slot.lock();
        function.config_write(register, data);
        let base = function.memory_base().unwrap_or(NOWHERE);
        slot.base.store(base, Ordering::Release);
    }

    /// The guest reads at byte `offset` of `CONFIG_DATA`; ones where nothing is.
    pub(crate) fn read_data(&self, offset: u8, data: &mut [u8]) {
        data.fill(0xFF);
        let Some((device, register)) = self.target(offset, data.len()) else {
            return;
        };
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(device) {
            slot.lock().config_read(register, data);
        }
    }

    /// Device and register of an access to `CONFIG_DATA`, if it is one that a
    /// processor can make to configuration space of bus 0, function 0.
    fn target(&self, offset: u8, len: usize) -> Option<(usize, u8)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, function, bus, _] = address.to_le_bytes();
        let inside = matches!(len, 1 | 2 | 4) && usize::from(offset) + len <= 4;
        if address & ENABLED == 0 || bus != 0 || function & 7 != 0 || !inside {
            return None;
        }
        Some((usize::from(function >> 3), (register & 0xFC) + offset))
    }

    /// The guest writes memory that is no RAM.
    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        self.at(address, |function, offset| {
            function.memory_write(offset, data)
        });
    }

    /// The guest reads memory that is no RAM; ones where nothing is.
    pub(crate) fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xFF);
        self.at(address, |function, offset| {
            function.memory_read(offset, data)
        });
    }

    fn at(&self, address: u64, access: impl FnOnce(&mut dyn PciFunction, u64)) {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let hit = slots.iter().find_map(|slot| {
            let offset = address.checked_sub(slot.base.load(Ordering::Acquire))?;
            (offset < u64::from(BAR_BYTES)).then_some((slot, offset))
        });
        if let Some((slot, offset)) = hit {
            access(slot.lock().as_mut(), offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bus: &PciBus, address: u32) -> u32 {
        bus.write_address(&address.to_le_bytes());
        let mut data = [0; 4];
        bus.read_data(0, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_host_bridge_answers_and_nothing_else_does() {
        let bus = PciBus::new();
        assert_eq!(read(&bus, 0x8000_0000), 0x0008_1B36);
        assert_eq!(read(&bus, 0x8000_0008) >> 16, 0x0600);
        // Not enabled, another bus, function, device.
        for address in [0, 0x8001_0000, 0x8000_0100, 0x8000_0800] {
            assert_eq!(read(&bus, address), u32::MAX, "{address:#x}");
        }
    }

    #[test]
    fn parts_of_a_register_are_read_and_none_across_its_end() {
        let bus = PciBus::new();
        bus.write_address(&0x8000_0000_u32.to_le_bytes());
        let mut device = [0; 2];
        bus.read_data(2, &mut device);
        assert_eq!(u16::from_le_bytes(device), 8);
        bus.read_data(3, &mut device);
        assert_eq!(device, [0xFF; 2]);
    }

    #[test]
    fn the_bus_ends_after_31_devices() {
        let bus = PciBus::new();
        for _ in 1..MAX_DEVICES {
            assert!(bus.next_bar().is_some());
            bus.add(Box::new(HostBridge::new()));
        }
        assert_eq!(bus.next_bar(), None);
    }
}
