//! A descriptor chain as two lists of guest memory: what the device reads and
//! what it writes. Nothing is assumed about how a driver cuts its requests into
//! descriptors (virtio 1.2 §2.6.4).

use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::device::SharedMemory;
use crate::vring::Chain;

/// Why a chain is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The chain ends before a descriptor that it announces: a bad index, a
    /// loop, or a bad indirect table.
    #[error("chain is cut off")]
    Truncated,
    /// More descriptors than the device accepts in one request.
    #[error("chain has more than {0} descriptors")]
    TooLong(usize),
    /// A descriptor points outside the memory that is shared.
    #[error("descriptor points outside guest memory")]
    OutsideMemory,
    /// A descriptor to read follows one to write (virtio 1.2 §2.7.4.2).
    #[error("readable descriptor after a writable one")]
    Order,
}

/// The memory of one chain.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    /// What the driver wrote for the device.
    pub readable: Segments<'m>,
    /// What the device may fill.
    pub writable: Segments<'m>,
}

impl<'m> Buffers<'m> {
    /// Looks up every descriptor of `chain`, at most `limit` of them.
    ///
    /// # Errors
    /// [`ChainError`]; nothing may be written to any part of the chain then.
    pub fn of(
        memory: &'m SharedMemory,
        chain: Chain<'_>,
        limit: usize,
    ) -> Result<Self, ChainError> {
        let mut buffers = Self::default();
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count == limit {
                return Err(ChainError::TooLong(limit));
            }
            let (list, access) = if descriptor.is_write_only() {
                (&mut buffers.writable, Permissions::Write)
            } else if buffers.writable.0.is_empty() {
                (&mut buffers.readable, Permissions::Read)
            } else {
                return Err(ChainError::Order);
            };
            let len = usize::try_from(descriptor.len()).map_err(|_| ChainError::OutsideMemory)?;
            let slices = memory
                .get_slices(descriptor.addr(), len, access)
                .map_err(|_| ChainError::OutsideMemory)?;
            for slice in slices {
                list.0.push(slice.map_err(|_| ChainError::OutsideMemory)?);
            }
            complete = !descriptor.has_next();
        }
        if complete {
            Ok(buffers)
        } else {
            Err(ChainError::Truncated)
        }
    }
}

/// Pieces of guest memory, in order, that are read or written like one.
#[derive(Clone, Debug, Default)]
pub struct Segments<'m>(Vec<VolatileSlice<'m>>);

impl<'m> Segments<'m> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        // No overflow: a chain is at most 2^32 bytes long, DescriptorChain sees to it.
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(VolatileSlice::is_empty)
    }

    /// The pieces themselves.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.0
    }

    /// Cuts off and returns what is behind the first `at` bytes; `None`, and
    /// nothing happens, where there are fewer.
    pub fn split_off(&mut self, at: usize) -> Option<Self> {
        let mut before = 0;
        for (i, slice) in self.0.iter().enumerate() {
            let within = at - before;
            if within < slice.len() {
                let (head, tail) = slice.split_at(within).ok()?;
                let mut rest = self.0.split_off(i);
                rest[0] = tail;
                if within > 0 {
                    self.0.push(head);
                }
                return Some(Self(rest));
            }
            before += slice.len();
        }
        (before == at).then(Self::default)
    }

    /// Copies the first bytes into `bytes` and drops them; false, and nothing
    /// happens, where there are too few.
    pub fn read(&mut self, bytes: &mut [u8]) -> bool {
        let Some(rest) = self.split_off(bytes.len()) else {
            return false;
        };
        let mut at = 0;
        for slice in &self.0 {
            at += slice.copy_to(&mut bytes[at..]);
        }
        *self = rest;
        true
    }

    /// Copies `bytes` over the first bytes and drops those; false, and nothing
    /// happens, where there are too few.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        let Some(rest) = self.split_off(bytes.len()) else {
            return false;
        };
        let mut at = 0;
        for slice in &self.0 {
            let n = slice.len().min(bytes.len() - at);
            slice.copy_from(&bytes[at..at + n]);
            at += n;
        }
        *self = rest;
        true
    }
}
