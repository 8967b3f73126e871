//! One range of this process's addresses that holds guest RAM.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// Bytes in a huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// What stands behind addresses.
pub(super) enum Backing<'a> {
    /// Private memory, all zero.
    Anonymous,
    /// A file from an offset in bytes on; what is written is written to it.
    Shared(&'a File, u64),
    /// The same, but what is written stays here.
    Private(&'a File, u64),
}

impl Backing<'_> {
    fn arguments(&self) -> io::Result<(i32, i32, i64)> {
        let (flags, file, offset) = match self {
            Self::Anonymous => return Ok((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)),
            Self::Shared(file, offset) => (libc::MAP_SHARED, file, offset),
            Self::Private(file, offset) => (libc::MAP_PRIVATE, file, offset),
        };
        let offset = i64::try_from(*offset).map_err(io::Error::other)?;
        Ok((flags, file.as_raw_fd(), offset))
    }
}

/// A mapping of ours, readable and writable, unmapped when it is dropped.
pub(super) struct Region {
    start: u64,
    bytes: u64,
}

impl Region {
    /// Maps `bytes` of `backing` somewhere. None of it is resident or reserved.
    pub(super) fn map(bytes: u64, backing: &Backing<'_>) -> io::Result<Self> {
        let region = Self {
            start: mmap(0, bytes, backing, 0)?,
            bytes,
        };
        match backing {
            Backing::Anonymous if !region.start.is_multiple_of(HUGE_PAGE) => {
                drop(region);
                Self::map_aligned(bytes, backing)
            }
            _ => Ok(region),
        }
    }

    /// As `map`, but at a multiple of [`HUGE_PAGE`]: guest-physical addresses are so
    /// too, and KVM maps a huge page as one only where both are.
    fn map_aligned(bytes: u64, backing: &Backing<'_>) -> io::Result<Self> {
        let more = bytes.checked_add(HUGE_PAGE);
        let more = more.ok_or(io::ErrorKind::InvalidInput)?;
        let all = Self {
            start: mmap(0, more, backing, 0)?,
            bytes: more,
        };
        let region = Self {
            start: all.start.next_multiple_of(HUGE_PAGE),
            bytes,
        };
        let end = region.start + bytes;
        // What is around it goes; the region itself stays.
        for (start, end) in [(all.start, region.start), (end, all.start + more)] {
            drop(Self {
                start,
                bytes: end - start,
            });
        }
        std::mem::forget(all);
        Ok(region)
    }

    /// Asks for huge pages, where the host has a choice. Not having them is no fault.
    pub(super) fn prefer_huge_pages(&self) {
        let (Ok(start), Ok(bytes)) = (usize::try_from(self.start), usize::try_from(self.bytes))
        else {
            return;
        };
        let start = ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is mapped and ours; this changes no content.
        unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
    }

    /// The address of its first byte.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Puts `bytes` of `backing` in the place of what was at `at`, counted from the
    /// start of the region. All are whole pages.
    pub(super) fn replace(&self, at: u64, bytes: u64, backing: &Backing<'_>) -> io::Result<()> {
        let inside = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if !inside {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        mmap(self.start + at, bytes, backing, libc::MAP_FIXED).map(drop)
    }
}

fn mmap(address: u64, bytes: u64, backing: &Backing<'_>, fixed: i32) -> io::Result<u64> {
    let (flags, fd, offset) = backing.arguments()?;
    let len = usize::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: without MAP_FIXED the kernel chooses free addresses; with it, they are
    // inside a region of ours (`Region::replace`), to whose memory nobody holds
    // references: it is reached by raw pointers only.
    let at = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(usize::try_from(address).map_err(io::Error::other)?),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags | fixed | libc::MAP_NORESERVE,
            fd,
            offset,
        )
    };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(at.expose_provenance() as u64)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let (Ok(start), Ok(bytes @ 1..)) =
            (usize::try_from(self.start), usize::try_from(self.bytes))
        else {
            return;
        };
        // SAFETY: the range was mapped by `Region::map`, is ours alone, and nobody
        // uses it any more: `GuestRam` owns the region and outlives its users.
        unsafe { libc::munmap(ptr::with_exposed_provenance_mut(start), bytes) };
    }
}
