//! Guest RAM: one sealed memfd, mapped here and by the backends that serve the
//! guest.

pub(crate) mod layout;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Why guest RAM could not be made or filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("creating a memfd of {bytes} bytes for guest RAM: {source}")]
    Memfd { bytes: u64, source: nix::Error },
    #[error("mapping {bytes} bytes of guest RAM: {reason}")]
    Map { bytes: u64, reason: String },
    #[error("giving KVM the RAM at {guest:#x}: {source}")]
    Register {
        guest: u64,
        source: kvm_ioctls::Error,
    },
    #[error("writing {bytes} bytes to guest RAM at {guest:#x}: {reason}")]
    Write {
        guest: u64,
        bytes: u64,
        reason: String,
    },
}

/// One contiguous piece of guest RAM, as KVM and backends are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Guest-physical address.
    pub(crate) guest: u64,
    /// Bytes.
    pub(crate) bytes: u64,
    /// Address in this process.
    pub(crate) host: u64,
    /// Where it begins in the memfd.
    pub(crate) offset: u64,
    /// The memfd.
    pub(crate) fd: RawFd,
}

/// Guest RAM.
pub(crate) struct GuestRam {
    file: Arc<File>,
    memory: GuestMemoryMmap,
    mappings: Vec<Mapping>,
}

impl GuestRam {
    /// RAM of `bytes`, all zero, none of it resident yet.
    pub(crate) fn new(bytes: u64) -> Result<Self, MemoryError> {
        let file = Arc::new(File::from(sealed_memfd(bytes)?));
        let mut regions = Vec::new();
        let mut mappings = Vec::new();
        let mut offset = 0;
        for range in layout::ram_ranges(bytes) {
            let len = range.end - range.start;
            let region = map(&file, offset, range.start, len)?;
            mappings.push(Mapping {
                guest: range.start,
                bytes: len,
                host: region.as_ptr() as u64,
                offset,
                fd: file.as_raw_fd(),
            });
            regions.push(region);
            offset += len;
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Map {
            bytes,
            reason: e.to_string(),
        })?;
        Ok(Self {
            file,
            memory,
            mappings,
        })
    }

    /// All pieces, in ascending guest-physical order.
    pub(crate) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// Tells KVM of this RAM. `self` must live as long as `vm` runs.
    pub(crate) fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, mapping) in (0..).zip(&self.mappings) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: mapping.guest,
                memory_size: mapping.bytes,
                userspace_addr: mapping.host,
            };
            // SAFETY: the range is one live mapping of ours, and stays mapped for as
            // long as the VM exists: the machine owns both and drops the RAM last.
            unsafe { vm.set_user_memory_region(region) }.map_err(|source| {
                MemoryError::Register {
                    guest: mapping.guest,
                    source,
                }
            })?;
        }
        Ok(())
    }

    /// The address in this process of `bytes` at `guest`; `None` unless all of
    /// them are RAM, in one piece.
    pub(crate) fn host_address(&self, guest: u64, bytes: u64) -> Option<u64> {
        let mapping = self.mapping(guest, bytes)?;
        Some(mapping.host + (guest - mapping.guest))
    }

    /// The piece in which all `bytes` at `guest` lie.
    fn mapping(&self, guest: u64, bytes: u64) -> Option<&Mapping> {
        let end = guest.checked_add(bytes)?;
        self.mappings
            .iter()
            .find(|m| guest >= m.guest && end <= m.guest + m.bytes)
    }

    /// Copies `bytes` to `guest`.
    pub(crate) fn write(&self, guest: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.memory
            .write_slice(bytes, GuestAddress(guest))
            .map_err(|e| MemoryError::Write {
                guest,
                bytes: bytes.len() as u64,
                reason: e.to_string(),
            })
    }

    /// Copies `bytes` of `file` from `offset` to `guest`: from the one's page cache
    /// to the other's, without a fault for each page of the mapping here.
    pub(crate) fn load(
        &self,
        guest: u64,
        file: &File,
        offset: u64,
        bytes: u64,
    ) -> Result<(), MemoryError> {
        let failed = |reason: String| MemoryError::Write {
            guest,
            bytes,
            reason,
        };
        let mapping = self
            .mapping(guest, bytes)
            .ok_or_else(|| failed("this is not RAM".to_owned()))?;
        let start = mapping.offset + (guest - mapping.guest);
        copy(file, offset, &self.file, start, bytes).map_err(|e| failed(e.to_string()))
    }
}

/// A memfd of fixed size. Backends hold it too: sealed, none of them can cut it
/// and so make an access here fault.
fn sealed_memfd(bytes: u64) -> Result<OwnedFd, MemoryError> {
    let failed = |source| MemoryError::Memfd { bytes, source };
    let fd = memfd_create(
        c"guest-ram",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )
    .map_err(failed)?;
    let size = i64::try_from(bytes).map_err(|_| failed(nix::Error::EFBIG))?;
    nix::unistd::ftruncate(&fd, size).map_err(failed)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(failed)?;
    Ok(fd)
}

/// Copies `bytes` inside the kernel.
fn copy(from: &File, offset: u64, mut to: &File, start: u64, bytes: u64) -> io::Result<()> {
    let mut offset = i64::try_from(offset).map_err(io::Error::other)?;
    let mut left = usize::try_from(bytes).map_err(io::Error::other)?;
    to.seek(SeekFrom::Start(start))?;
    while left > 0 {
        // SAFETY: both descriptors are open, and `offset` is a variable of ours that
        // the kernel reads and advances.
        let sent =
            unsafe { libc::sendfile64(to.as_raw_fd(), from.as_raw_fd(), &raw mut offset, left) };
        match usize::try_from(sent) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(sent) => left = left.saturating_sub(sent),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}

fn map(
    file: &Arc<File>,
    offset: u64,
    guest: u64,
    bytes: u64,
) -> Result<GuestRegionMmap, MemoryError> {
    let failed = |reason: String| MemoryError::Map { bytes, reason };
    let len = usize::try_from(bytes).map_err(|e| failed(e.to_string()))?;
    let mapping = MmapRegionBuilder::new(len)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .build()
        .map_err(|e| failed(e.to_string()))?;
    GuestRegionMmap::new(mapping, GuestAddress(guest))
        .ok_or_else(|| failed("the guest-physical address overflows".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn addresses_are_given_only_for_whole_ranges_of_ram() {
        let ram = GuestRam::new(layout::MIN_MEMORY).unwrap();
        let host = ram.mappings()[0].host;
        assert_eq!(ram.host_address(0x1000, 16), Some(host + 0x1000));
        assert_eq!(
            ram.host_address(layout::MIN_MEMORY, 0),
            Some(host + layout::MIN_MEMORY)
        );
        assert_eq!(ram.host_address(layout::MIN_MEMORY - 15, 16), None);
        assert_eq!(ram.host_address(u64::MAX - 3, 16), None);
        assert_eq!(ram.host_address(layout::BAR_WINDOW.start, 4), None);
    }

    #[test]
    fn files_are_loaded_to_their_place() {
        let ram = GuestRam::new(4 << 30).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        for guest in [0x12_3457, (4 << 30) + 0x1001] {
            ram.load(guest, &file, 2, 4).unwrap();
            let mut found = [9; 6];
            ram.memory
                .read_slice(&mut found, GuestAddress(guest - 1))
                .unwrap();
            assert_eq!(found, [0, 3, 4, 5, 6, 0]);
        }
        assert!(ram.load(0, &file, 2, 7).is_err(), "beyond the file");
        assert!(ram.load((3 << 30) - 4, &file, 0, 8).is_err(), "beyond RAM");
    }

    #[test]
    fn a_range_across_the_hole_is_no_ram() {
        let ram = GuestRam::new(4 << 30).unwrap();
        assert_eq!(ram.mappings().len(), 2);
        assert_eq!(ram.mappings()[1].offset, 3 << 30);
        assert_eq!(ram.host_address((3 << 30) - 8, 16), None);
        assert!(ram.host_address(4 << 30, 1 << 30).is_some());
    }

    #[test]
    fn nobody_can_resize_the_memfd() {
        let ram = GuestRam::new(layout::MIN_MEMORY).unwrap();
        // SAFETY: the descriptor is open for as long as `ram` lives.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(ram.mappings()[0].fd) };
        assert!(nix::unistd::ftruncate(fd, 4096).is_err());
        assert!(nix::unistd::ftruncate(fd, 1 << 40).is_err());
    }
}
