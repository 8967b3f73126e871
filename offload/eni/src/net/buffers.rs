//! Pieces of guest memory that are read into, or written from, in one system call.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use longship_vhost_user::SharedMemory;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

/// Most pieces that one chain may have. Linux sends at most 19.
pub(super) const MAX_PIECES: usize = 128;
/// Most pieces in one system call (UIO_MAXIOV).
const MAX_CALL: usize = 1024;

/// A chain that is no use to this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadChain;

/// Pieces of guest memory, in order.
///
/// The guest may change their content at any time, so nothing here ever makes a
/// reference to it.
#[derive(Debug, Default)]
pub(super) struct Pieces<'m> {
    slices: Vec<VolatileSlice<'m, ()>>,
    vectors: Vec<libc::iovec>,
    _memory: PhantomData<&'m SharedMemory>,
}

impl<'m> Pieces<'m> {
    /// Adds the memory of these descriptors and returns its length. On an error
    /// nothing is added.
    pub(super) fn add(
        &mut self,
        memory: &'m SharedMemory,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<usize, BadChain> {
        let before = self.slices.len();
        let added = self.try_add(memory, descriptors, before + MAX_PIECES);
        if added.is_err() {
            self.slices.truncate(before);
            self.vectors.truncate(before);
        }
        added
    }

    fn try_add(
        &mut self,
        memory: &'m SharedMemory,
        descriptors: impl Iterator<Item = Descriptor>,
        limit: usize,
    ) -> Result<usize, BadChain> {
        let mut total = 0_usize;
        for descriptor in descriptors {
            let len = usize::try_from(descriptor.len()).map_err(|_| BadChain)?;
            for slice in memory.get_slices(descriptor.addr(), len) {
                if self.slices.len() == limit {
                    return Err(BadChain);
                }
                let slice = slice.map_err(|_| BadChain)?;
                total = total.checked_add(slice.len()).ok_or(BadChain)?;
                self.push(slice);
            }
        }
        Ok(total)
    }

    fn push(&mut self, slice: VolatileSlice<'m, ()>) {
        self.vectors.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
        self.slices.push(slice);
    }

    /// How many pieces there are.
    pub(super) fn count(&self) -> usize {
        self.slices.len()
    }

    /// Forgets all pieces, but keeps the room for others.
    pub(super) fn clear(&mut self) {
        self.slices.clear();
        self.vectors.clear();
    }

    /// Copies the first bytes of all pieces out; returns how many there were.
    pub(super) fn copy_start(&self, into: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            match into.get_mut(done..) {
                Some(rest) if !rest.is_empty() => done += slice.copy_to(rest),
                _ => break,
            }
        }
        done
    }

    /// Copies `bytes` to `offset` behind the start of piece `first`.
    pub(super) fn store(&self, first: usize, mut offset: usize, mut bytes: &[u8]) {
        for slice in self.slices.iter().skip(first) {
            if bytes.is_empty() {
                break;
            }
            match slice.offset(offset) {
                Ok(tail) => {
                    offset = 0;
                    let n = tail.len().min(bytes.len());
                    tail.copy_from(&bytes[..n]);
                    bytes = &bytes[n..];
                }
                Err(_) => offset -= slice.len(),
            }
        }
    }

    /// Fills the pieces from `first` on with one packet of `fd`.
    pub(super) fn read_from(&mut self, fd: BorrowedFd<'_>, first: usize) -> io::Result<usize> {
        let vectors = self.vectors.get(first..).unwrap_or_default();
        let vectors = &vectors[..vectors.len().min(MAX_CALL)];
        let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: every vector is a slice of guest memory, which stays mapped
        // for 'm; nobody holds a reference into it. The kernel checks the
        // addresses itself, should the memory's file have shrunk.
        let read = unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), count) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Sends `start`, and then the pieces without their first `skip` bytes, as
    /// one packet.
    pub(super) fn write_to(
        &self,
        fd: BorrowedFd<'_>,
        start: &[u8],
        mut skip: usize,
    ) -> io::Result<usize> {
        let mut vectors = Vec::with_capacity(1 + self.vectors.len());
        vectors.push(libc::iovec {
            iov_base: start.as_ptr().cast_mut().cast(),
            iov_len: start.len(),
        });
        for slice in &self.slices {
            match slice.offset(skip) {
                Ok(tail) => {
                    skip = 0;
                    vectors.push(libc::iovec {
                        iov_base: tail.ptr_guard().as_ptr().cast_mut().cast(),
                        iov_len: tail.len(),
                    });
                }
                Err(_) => skip -= slice.len(),
            }
        }
        let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: as in `read_from`, and `start` is borrowed; writev only reads.
        let written = unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), count) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}
