//! What a device type adds to the serving of vhost-user.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::GuestMemoryMmap;

use crate::vring::Vring;

/// The guest memory that the frontend shares, as its last SET_MEM_TABLE said.
pub type SharedMemory = GuestMemoryMmap<()>;

/// The largest queue, in descriptors, that a frontend may ask for.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// A ring that can no longer be used: the guest put into it what no driver
/// does. It stays stopped until the frontend sets it up anew.
#[derive(Debug, thiserror::Error)]
#[error("vring {ring}: {source}")]
pub struct RingError {
    /// Index of the ring.
    pub ring: usize,
    /// What was wrong with it.
    pub source: virtio_queue::Error,
}

/// A virtio device behind a [`crate::Server`]. All calls come from the one
/// thread that serves it, and none may block for long: the frontend's messages
/// and [`crate::Server::stop`] wait for it.
pub trait Device: Send + 'static {
    /// Name of its thread, for whoever looks at the process: 15 bytes at most.
    const NAME: &'static str;

    /// How many virtqueues the device has.
    fn queue_count(&self) -> usize;

    /// Feature bits of the device type. VIRTIO_F_VERSION_1,
    /// VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_EVENT_IDX and
    /// VIRTIO_F_RING_INDIRECT_DESC come on top.
    fn features(&self) -> u64;

    /// The device's configuration space (virtio 1.2 §5); read-only.
    fn config(&self) -> &[u8];

    /// The driver has accepted these of the features on offer.
    ///
    /// # Errors
    /// The device cannot do without those that were refused; the frontend loses
    /// its connection.
    fn negotiated(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    /// Works off the ring `index` after a kick; it is running. To be called
    /// again without a kick, [`Vring::defer`].
    ///
    /// # Errors
    /// The ring that is broken; it is stopped.
    fn process(
        &mut self,
        index: usize,
        rings: &mut [Vring],
        memory: &SharedMemory,
    ) -> Result<(), RingError>;

    /// Something besides the kicks that the device waits for: readable means
    /// that [`Device::woken`] is to be called, which has to clear it. Asked
    /// before every wait; none while nothing could be done about it.
    fn wake_up(&self, _rings: &[Vring]) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The descriptor of [`Device::wake_up`] is readable. Rings may be stopped.
    ///
    /// # Errors
    /// The ring that is broken; it is stopped.
    fn woken(&mut self, _rings: &mut [Vring], _memory: &SharedMemory) -> Result<(), RingError> {
        Ok(())
    }

    /// The frontend is gone or has reset the device: what the guest had open is
    /// no more.
    fn reset(&mut self) {}
}
