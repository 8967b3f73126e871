//! Moves bytes straight between a file and guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use longship_vhost_user::Segments;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// Vectors that one system call takes (Linux' UIO_MAXIOV).
const MAX_VECTORS: usize = 1024;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A disk's file. Offsets and lengths are bytes and must lie inside the disk.
#[derive(Debug)]
pub(crate) struct BackingFile(File);

/// Which way the bytes go.
#[derive(Clone, Copy)]
enum Way {
    FromFile,
    ToFile,
}

impl BackingFile {
    pub(crate) fn new(file: File) -> Self {
        Self(file)
    }

    /// Fills `segments` from `offset` on; zeros behind the end of the file.
    pub(crate) fn read(&self, segments: &Segments<'_>, offset: u64) -> io::Result<()> {
        let done = self.transfer(segments, offset, Way::FromFile)?;
        if let Some(rest) = segments.clone().split_off(done) {
            for slice in rest.slices() {
                let mut at = 0;
                while at < slice.len() {
                    let n = ZEROS.len().min(slice.len() - at);
                    slice
                        .subslice(at, n)
                        .map_err(io::Error::other)?
                        .copy_from(&ZEROS[..n]);
                    at += n;
                }
            }
        }
        Ok(())
    }

    /// Writes `segments` at `offset`.
    pub(crate) fn write(&self, segments: &Segments<'_>, offset: u64) -> io::Result<()> {
        let done = self.transfer(segments, offset, Way::ToFile)?;
        if done == segments.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// What was written survives a power failure.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    /// Gives the range back; its contents are undefined. A hint: a file system
    /// that cannot is no error.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.punch(offset, len) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Makes the range read as zeros; with `unmap` its blocks may go.
    pub(crate) fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let done = if unmap {
            self.punch(offset, len)
        } else {
            self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, len)
        };
        match done {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.write_zeros(offset, len),
            done => Ok(done?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> nix::Result<()> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    fn fallocate(&self, how: FallocateFlags, offset: u64, len: u64) -> nix::Result<()> {
        let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let len = i64::try_from(len).map_err(|_| Errno::EFBIG)?;
        if len == 0 {
            return Ok(());
        }
        let how = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, how, offset, len)
    }

    fn write_zeros(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        while len > 0 {
            let n = usize::try_from(len).map_or(ZEROS.len(), |l| l.min(ZEROS.len()));
            self.0.write_all_at(&ZEROS[..n], offset)?;
            let n = u64::try_from(n).map_err(io::Error::other)?;
            offset += n;
            len -= n;
        }
        Ok(())
    }

    /// Bytes that went before the file ended or the segments did.
    fn transfer(&self, segments: &Segments<'_>, offset: u64, way: Way) -> io::Result<usize> {
        let mut vectors: Vec<libc::iovec> = segments
            .slices()
            .iter()
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect();
        let mut rest = &mut vectors[..];
        let mut done = 0_usize;
        while !rest.is_empty() {
            let count = rest.len().min(MAX_VECTORS);
            let at = u64::try_from(done)
                .ok()
                .and_then(|d| offset.checked_add(d))
                .and_then(|o| i64::try_from(o).ok())
                .ok_or(io::ErrorKind::FileTooLarge)?;
            let count_c = i32::try_from(count).map_err(io::Error::other)?;
            // SAFETY: each vector is one slice of guest memory, checked when it
            // was made from a descriptor, and mapped as long as `segments`
            // borrows it; only its part that is not yet done is left in
            // `rest`. The guest may change the bytes meanwhile: only the kernel
            // touches them here, no Rust reference does.
            let moved = unsafe {
                match way {
                    Way::FromFile => libc::preadv(self.0.as_raw_fd(), rest.as_ptr(), count_c, at),
                    Way::ToFile => libc::pwritev(self.0.as_raw_fd(), rest.as_ptr(), count_c, at),
                }
            };
            let Ok(moved) = usize::try_from(moved) else {
                let e = io::Error::last_os_error();
                if e.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(e);
            };
            if moved == 0 && rest[..count].iter().any(|v| v.iov_len > 0) {
                break;
            }
            done += moved;
            rest = advance(rest, moved);
        }
        Ok(done)
    }
}

/// Drops `moved` bytes, and every vector that is empty then, from the front.
fn advance(mut vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
}
