//! Only what is resident of a file in memory: copied, loaded, made holes of.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};

use crate::memory::layout::PAGE;

/// Bytes that are looked at in one go.
const CHUNK: u64 = 64 << 10;

/// Where data begins at or after `from`, and where it ends; `None`: nowhere.
fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| nix::Error::EOVERFLOW)?;
        lseek64(file, at, whence)
    };
    if from >= end {
        return Ok(None);
    }
    let start = match seek(from, Whence::SeekData) {
        Err(nix::Error::ENXIO) => return Ok(None),
        found => u64::try_from(found?).map_err(io::Error::other)?,
    };
    if start >= end {
        return Ok(None);
    }
    let hole = u64::try_from(seek(start, Whence::SeekHole)?).map_err(io::Error::other)?;
    Ok(Some((start, hole.min(end))))
}

/// Copies what is resident of the first `bytes` of `from` to the same place in `to`,
/// inside the kernel.
pub(super) fn copy(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at, bytes)? {
        send(from, start, to, start, end - start)?;
        at = end;
    }
    Ok(())
}

/// Copies `bytes` of `from` to another place in `to`, inside the kernel.
pub(super) fn send(
    from: &File,
    offset: u64,
    mut to: &File,
    start: u64,
    bytes: u64,
) -> io::Result<()> {
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
            Err(_) => retry_if_interrupted()?,
        }
    }
    Ok(())
}

/// Reads `bytes` of `from` to memory.
///
/// # Safety
/// `bytes` at `to` are writable memory to which there are no references.
pub(super) unsafe fn read_to(from: &File, offset: u64, to: *mut u8, bytes: u64) -> io::Result<()> {
    let mut offset = i64::try_from(offset).map_err(io::Error::other)?;
    let mut to = to;
    let mut left = usize::try_from(bytes).map_err(io::Error::other)?;
    while left > 0 {
        // SAFETY: what is left of the range is writable, as the caller promises.
        let got = unsafe { libc::pread64(from.as_raw_fd(), to.cast(), left, offset) };
        match usize::try_from(got) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => {
                left = left.saturating_sub(got);
                offset = offset.saturating_add(i64::try_from(got).map_err(io::Error::other)?);
                // SAFETY: the kernel has written at most what was left of the range.
                to = unsafe { to.add(got) };
            }
            Err(_) => retry_if_interrupted()?,
        }
    }
    Ok(())
}

/// Frees the pages of a range of `file`.
pub(super) fn punch(file: &File, start: u64, bytes: u64) -> io::Result<()> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let start = i64::try_from(start).map_err(io::Error::other)?;
    let bytes = i64::try_from(bytes).map_err(io::Error::other)?;
    Ok(fallocate(file, mode, start, bytes)?)
}

/// Frees the pages of a range of private memory.
///
/// # Safety
/// The range is mapped privately, and nobody relies on its content.
pub(super) unsafe fn discard(host: u64, bytes: u64) -> io::Result<()> {
    let start = usize::try_from(host).map_err(io::Error::other)?;
    let len = usize::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: as the caller promises.
    let done = unsafe {
        libc::madvise(
            ptr::with_exposed_provenance_mut(start),
            len,
            libc::MADV_DONTNEED,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes holes of the resident pages of zeros in the first `bytes` of `file`; returns
/// how many bytes that were. Nobody writes to it meanwhile.
pub(super) fn punch_zeros(file: &File, bytes: u64) -> io::Result<u64> {
    let mut buffer = vec![0; usize::try_from(CHUNK).map_err(io::Error::other)?];
    let page = usize::try_from(PAGE).map_err(io::Error::other)?;
    let mut punched = 0;
    // A run of pages of zeros that is not a hole yet.
    let mut zeros: Option<(u64, u64)> = None;
    let mut flush = |zeros: Option<(u64, u64)>| {
        let Some((start, end)) = zeros else {
            return Ok(());
        };
        punched += end - start;
        punch(file, start, end - start)
    };
    let mut at = 0;
    while let Some((start, end)) = next_data(file, at, bytes)? {
        let chunk = (end - start).min(CHUNK);
        let part = usize::try_from(chunk).map_err(io::Error::other)?;
        let part = buffer.get_mut(..part).unwrap_or_default();
        file.read_exact_at(part, start)?;
        for (place, content) in (start..).step_by(page).zip(part.chunks(page)) {
            if content.iter().any(|byte| *byte != 0) {
                continue;
            }
            let place_end = place + content.len() as u64;
            zeros = match zeros {
                Some((first, last)) if last == place => Some((first, place_end)),
                other => {
                    flush(other)?;
                    Some((place, place_end))
                }
            };
        }
        at = start + chunk;
    }
    flush(zeros)?;
    Ok(punched)
}

fn retry_if_interrupted() -> io::Result<()> {
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        e => Err(e),
    }
}
