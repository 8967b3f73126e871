//! Files with holes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use crate::scratch::BLOCK;

/// A file for its owner alone, empty, to read and write.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Copies a file and keeps its holes: by reference where the file system can
/// (FICLONE), else only what is data.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let from = File::open(from)?;
    let to = create_private(to)?;
    if reflink(&from, &to) {
        return Ok(());
    }
    to.set_len(from.metadata()?.len())?;
    for_each_extent(&from, |start, end| copy_range(&from, &to, start, end))
}

/// Gives the blocks back that hold nothing but zeros.
pub(crate) fn dig_holes(file: &File) -> io::Result<()> {
    let mut block = vec![0; usize::try_from(BLOCK).map_err(io::Error::other)?];
    for_each_extent(file, |start, end| {
        let mut at = start - start % BLOCK;
        while at < end {
            // The disk is a multiple of blocks long.
            file.read_exact_at(&mut block, at)?;
            if block.iter().all(|byte| *byte == 0) {
                let how =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let (offset, len) = (at.try_into(), BLOCK.try_into());
                let (Ok(offset), Ok(len)) = (offset, len) else {
                    return Err(io::ErrorKind::FileTooLarge.into());
                };
                match fallocate(file, how, offset, len) {
                    // Then it stays as large as it is.
                    Err(Errno::EOPNOTSUPP) => return Ok(()),
                    done => done?,
                }
            }
            at += BLOCK;
        }
        Ok(())
    })
}

/// Calls `act` with the beginning and the end of each part of the file that is data.
fn for_each_extent(file: &File, mut act: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match lseek(file.as_fd(), at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let end = lseek(file.as_fd(), start, Whence::SeekHole)?;
        let offset = |at: i64| u64::try_from(at).map_err(io::Error::other);
        act(offset(start)?, offset(end)?)?;
        at = end;
    }
}

fn reflink(from: &File, to: &File) -> bool {
    // SAFETY: FICLONE takes a descriptor and touches no memory of ours; both
    // descriptors are open.
    unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) == 0 }
}

/// The standard library copies in the kernel where that can (copy_file_range).
fn copy_range(mut from: &File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    let copied = io::copy(&mut from.take(end - start), &mut to)?;
    if copied == end - start {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
