//! The 256 bytes of a function's configuration space (PCI 3.0, chapter 6), and
//! which of their bits the guest may write.

/// Offsets of the header.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2C;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;
/// The first capability lies after the header.
const FIRST_CAPABILITY: usize = 0x40;

/// Command: memory space, bus master, INTx disable.
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_WRITABLE: [u8; 2] = [COMMAND_MEMORY | 1 << 2, 1 << 2];
/// Status: there is a capability list.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Who a function is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) subsystem_vendor: u16,
    pub(crate) subsystem: u16,
    pub(crate) revision: u8,
    /// Base class, subclass, interface.
    pub(crate) class: [u8; 3],
}

/// Configuration space of one function.
pub(crate) struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    /// Where the next capability goes.
    next: usize,
    /// Where the pointer to it is.
    link: usize,
}

impl ConfigSpace {
    /// A type-0 header without BARs, capabilities, interrupt pin.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; 256],
            writable: [0; 256],
            next: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        space.put(0, &identity.vendor.to_le_bytes());
        space.put(2, &identity.device.to_le_bytes());
        let [base, sub, interface] = identity.class;
        space.put(8, &[identity.revision, interface, sub, base]);
        space.put(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        space.put(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE);
        space.allow(INTERRUPT_LINE, &[0xFF]);
        space
    }

    /// Makes BAR 0 a 32-bit memory BAR of `bytes`, a power of two of at least 16,
    /// at `base`.
    pub(crate) fn set_memory_bar(&mut self, base: u32, bytes: u32) {
        self.put(BAR0, &base.to_le_bytes());
        self.allow(BAR0, &(!(bytes - 1)).to_le_bytes());
    }

    /// BAR 0, if the guest has switched memory decoding on.
    pub(crate) fn memory_base(&self) -> Option<u64> {
        let on = self.byte(COMMAND) & COMMAND_MEMORY != 0;
        on.then(|| u64::from(u32::from_le_bytes(self.array(BAR0))))
    }

    /// Adds a capability: `body` is what follows its id and its link, and the
    /// guest may write the bits of `writable`. Returns where it begins.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        self.put(STATUS, &[STATUS_CAPABILITIES]);
        self.put(self.link, &[u8::try_from(at).unwrap_or(0)]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// One byte; zero outside.
    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// `N` bytes; zeros outside.
    pub(crate) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|index| self.byte(at.saturating_add(index)))
    }

    /// Sets bytes, whatever the guest may write.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// Lets the guest write the bits of `mask`.
    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(mask) {
            *to = *from;
        }
    }

    /// A read of the guest.
    pub(crate) fn read(&self, offset: u8, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(offset.into())) {
            *to = *from;
        }
    }

    /// A write of the guest: bits that are not writable stay.
    pub(crate) fn write(&mut self, offset: u8, data: &[u8]) {
        let at = usize::from(offset);
        let places = self.bytes.iter_mut().zip(&self.writable).skip(at);
        for ((byte, mask), new) in places.zip(data) {
            *byte = (*byte & !mask) | (new & mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1AF4,
            device: 0x1041,
            subsystem_vendor: 0x1AF4,
            subsystem: 0x41,
            revision: 1,
            class: [2, 0, 0],
        });
        space.set_memory_bar(0xC000_0000, 0x8000);
        space
    }

    #[test]
    fn a_bar_tells_its_size_and_moves() {
        let mut space = space();
        assert_eq!(space.memory_base(), None);
        space.write(4, &[2, 0]);
        assert_eq!(space.memory_base(), Some(0xC000_0000));
        space.write(0x10, &[0xFF; 4]);
        let mut size = [0; 4];
        space.read(0x10, &mut size);
        assert_eq!(u32::from_le_bytes(size), 0xFFFF_8000);
        space.write(0x10, &0xD001_2345_u32.to_le_bytes());
        assert_eq!(space.memory_base(), Some(0xD001_0000));
        // The other BARs are not there.
        space.write(0x14, &[0xFF; 4]);
        space.read(0x14, &mut size);
        assert_eq!(size, [0; 4]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[5, 1, 2], &[0, 0, 0]);
        let second = space.add_capability(0x11, &[3, 0], &[0, 0xC0]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.byte(0x06), 0x10);
        assert_eq!(space.byte(0x34), 0x40);
        assert_eq!(space.array(0x40), [9, 0x48, 5, 1, 2]);
        assert_eq!(space.array(0x48), [0x11, 0, 3, 0]);
        space.write(0x4A, &[0xFF, 0xFF]);
        assert_eq!(space.array(0x48), [0x11, 0, 3, 0xC0]);
    }
}
