//! A virtqueue as the driver has set it up. Its rings are looked up in guest RAM
//! and never read here.

use crate::memory::GuestRam;

/// No interrupt vector (virtio 1.2, 4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xFFFF;

/// Why a queue's rings cannot be handed to a backend.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RingError {
    #[error("queue {queue}: the {ring} ring at {address:#x} is not aligned")]
    Unaligned {
        queue: u16,
        ring: &'static str,
        address: u64,
    },
    #[error(
        "queue {queue}: the {ring} ring of {bytes} bytes at {address:#x} is not in memory that is shared with backends"
    )]
    NotShared {
        queue: u16,
        ring: &'static str,
        address: u64,
        bytes: u64,
    },
}

/// The fields of one queue.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    /// The largest size, a power of two.
    pub(crate) max_size: u16,
    /// The size that the driver has chosen.
    pub(crate) size: u16,
    pub(crate) enabled: bool,
    pub(crate) vector: u16,
    /// Guest-physical addresses of descriptors, driver ring, device ring.
    pub(crate) descriptors: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

/// A queue's rings in this process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rings {
    pub(crate) descriptors: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

impl Queue {
    /// A queue of at most `max_size` descriptors, not set up.
    pub(crate) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            vector: NO_VECTOR,
            descriptors: 0,
            driver: 0,
            device: 0,
        }
    }

    /// Finds the rings of queue number `queue` (sizes and alignment: virtio 1.2,
    /// 2.7). Each lies in one piece of RAM.
    pub(crate) fn locate(&self, queue: u16, ram: &GuestRam) -> Result<Rings, RingError> {
        let size = u64::from(self.size);
        let find = |ring, address: u64, align, bytes| {
            if !address.is_multiple_of(align) {
                return Err(RingError::Unaligned {
                    queue,
                    ring,
                    address,
                });
            }
            ram.shared_address(address, bytes)
                .ok_or(RingError::NotShared {
                    queue,
                    ring,
                    address,
                    bytes,
                })
        };
        Ok(Rings {
            descriptors: find("descriptor", self.descriptors, 16, 16 * size)?,
            driver: find("driver", self.driver, 2, 6 + 2 * size)?,
            device: find("device", self.device, 4, 6 + 8 * size)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::RamPlan;
    use crate::memory::layout::MIN_MEMORY;

    fn queue(descriptors: u64, driver: u64, device: u64) -> Queue {
        Queue {
            descriptors,
            driver,
            device,
            ..Queue::new(256)
        }
    }

    #[test]
    fn rings_in_ram_are_found() {
        let ram = GuestRam::new(RamPlan::direct(MIN_MEMORY)).unwrap();
        let host = ram.mappings()[0].host;
        let rings = queue(0x1000, 0x2000, 0x3000).locate(0, &ram).unwrap();
        assert_eq!(
            rings,
            Rings {
                descriptors: host + 0x1000,
                driver: host + 0x2000,
                device: host + 0x3000
            }
        );
    }

    #[test]
    fn rings_outside_are_refused() {
        let ram = GuestRam::new(RamPlan::direct(MIN_MEMORY)).unwrap();
        let refused = queue(0x1000, 0x2000, MIN_MEMORY - 8).locate(1, &ram);
        assert!(matches!(
            refused,
            Err(RingError::NotShared {
                queue: 1,
                ring: "device",
                ..
            })
        ));
        let refused = queue(0x1008, 0x2000, 0x3000).locate(0, &ram);
        assert!(matches!(refused, Err(RingError::Unaligned { .. })));
    }

    proptest! {
        #[test]
        fn whatever_is_found_lies_in_ram(
            descriptors in any::<u64>(), driver in any::<u64>(), device in 0..2 * MIN_MEMORY,
            size in prop::sample::select(vec![1_u16, 2, 128, 256]),
        ) {
            let ram = GuestRam::new(RamPlan::direct(MIN_MEMORY)).unwrap();
            let host = ram.mappings()[0].host;
            let inside = |at: u64, bytes: u64| at >= host && at + bytes <= host + MIN_MEMORY;
            for base in [descriptors, descriptors % MIN_MEMORY] {
                let driver = (driver % MIN_MEMORY) & !1;
                let queue = Queue { size, ..queue(base & !15, driver, device & !3) };
                if let Ok(rings) = queue.locate(0, &ram) {
                    let n = u64::from(size);
                    prop_assert!(inside(rings.descriptors, 16 * n));
                    prop_assert!(inside(rings.driver, 6 + 2 * n));
                    prop_assert!(inside(rings.device, 6 + 8 * n));
                }
            }
        }
    }
}
