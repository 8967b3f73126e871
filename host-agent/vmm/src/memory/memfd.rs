//! Memory that has a descriptor: made here, or given by the agent and checked.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// With these nobody changes the size: no access to a mapping of it can fault.
const FIXED: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// Why a descriptor is not taken as guest memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UnfitMemory {
    #[error("it is no memfd: {0}")]
    NoMemfd(&'static str),
    #[error("it has {has} bytes, the memory {needs}")]
    Size { has: u64, needs: u64 },
    #[error("it is not open for reading and writing")]
    ReadOnly,
    #[error("it is sealed: a machine could not write to it")]
    Sealed,
    #[error("it cannot be sealed: it was not made with MFD_ALLOW_SEALING")]
    Unsealable,
    #[error("it is not sealed against {0}: a clone's memory could change behind its back")]
    Unsealed(&'static str),
    #[error("it cannot be looked at: {0}")]
    Unreadable(String),
}

/// Makes a memfd of `bytes`, which stays so long. Backends may hold it too: sealed,
/// none of them can cut it and so make an access here fault.
pub(super) fn create(name: &std::ffi::CStr, bytes: u64) -> nix::Result<File> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let size = i64::try_from(bytes).map_err(|_| nix::Error::EFBIG)?;
    nix::unistd::ftruncate(&fd, size)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(FIXED | SealFlag::F_SEAL_SEAL))?;
    Ok(fd.into())
}

/// Checks that `file` can be the memory of a machine that becomes a template: a memfd
/// of `bytes` that can be written and sealed.
pub(crate) fn check_writable(file: &File, bytes: u64) -> Result<(), UnfitMemory> {
    let seals = seals_of(file, bytes)?;
    if seals.intersects(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE) {
        return Err(UnfitMemory::Sealed);
    }
    if seals.contains(SealFlag::F_SEAL_SEAL) && !seals.contains(FIXED) {
        return Err(UnfitMemory::Unsealable);
    }
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(unreadable)?;
    if OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE != OFlag::O_RDWR {
        return Err(UnfitMemory::ReadOnly);
    }
    Ok(())
}

/// Seals what [`check_writable`] has let through against changes of its size.
pub(super) fn fix_size(file: &File) -> nix::Result<()> {
    let seals = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(FIXED) {
        fcntl(file, FcntlArg::F_ADD_SEALS(FIXED))?;
    }
    Ok(())
}

/// Checks that `file` can be the memory that clones are made of: a memfd of `bytes`
/// that nobody can change any more.
pub(crate) fn check_sealed(file: &File, bytes: u64) -> Result<(), UnfitMemory> {
    let seals = seals_of(file, bytes)?;
    let needed = [
        (SealFlag::F_SEAL_WRITE, "writing (F_SEAL_WRITE)"),
        (SealFlag::F_SEAL_SHRINK, "shrinking (F_SEAL_SHRINK)"),
        (SealFlag::F_SEAL_GROW, "growing (F_SEAL_GROW)"),
    ];
    match needed.iter().find(|(seal, _)| !seals.contains(*seal)) {
        Some((_, what)) => Err(UnfitMemory::Unsealed(what)),
        None => Ok(()),
    }
}

/// The seals of a memfd of `bytes`.
fn seals_of(file: &File, bytes: u64) -> Result<SealFlag, UnfitMemory> {
    let metadata = file.metadata().map_err(|e| unreadable(&e))?;
    if !metadata.is_file() {
        return Err(UnfitMemory::NoMemfd("it is no regular file"));
    }
    // Only files in memory have seals.
    let seals =
        fcntl(file, FcntlArg::F_GET_SEALS).map_err(|_| UnfitMemory::NoMemfd("it has no seals"))?;
    if block_size(file).map_err(|e| unreadable(&e))? != i64::from(4096) {
        return Err(UnfitMemory::NoMemfd("it is of huge pages"));
    }
    if metadata.len() != bytes {
        return Err(UnfitMemory::Size {
            has: metadata.len(),
            needs: bytes,
        });
    }
    Ok(SealFlag::from_bits_truncate(seals))
}

/// The block size of its file system: on hugetlbfs, that of a huge page.
fn block_size(file: &File) -> io::Result<i64> {
    // SAFETY: all-zero is a value of this plain C struct.
    let mut stats: libc::statfs64 = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the struct is ours to be filled.
    match unsafe { libc::fstatfs64(file.as_raw_fd(), &raw mut stats) } {
        0 => Ok(stats.f_bsize),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unreadable(error: impl ToString) -> UnfitMemory {
    UnfitMemory::Unreadable(error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const SIZE: u64 = 64 << 20;

    /// A memfd as the agent makes it.
    pub(crate) fn memfd(bytes: u64) -> File {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"template", flags).unwrap());
        file.set_len(bytes).unwrap();
        file
    }

    /// What the agent does with a template's memory.
    pub(crate) fn seal(file: &File, seals: SealFlag) {
        fcntl(file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    }

    pub(crate) const ALL: SealFlag = SealFlag::F_SEAL_WRITE.union(FIXED);

    #[test]
    fn the_memory_of_a_template_must_be_writable_and_of_its_size() {
        assert_eq!(check_writable(&memfd(SIZE), SIZE), Ok(()));
        let fixed = create(c"test", SIZE).unwrap();
        assert_eq!(check_writable(&fixed, SIZE), Ok(()));
        assert_eq!(
            check_writable(&memfd(SIZE), SIZE + 4096),
            Err(UnfitMemory::Size {
                has: SIZE,
                needs: SIZE + 4096
            })
        );
        let sealed = memfd(SIZE);
        seal(&sealed, SealFlag::F_SEAL_WRITE);
        assert_eq!(check_writable(&sealed, SIZE), Err(UnfitMemory::Sealed));
        let plain = File::from(memfd_create(c"plain", MFdFlags::MFD_CLOEXEC).unwrap());
        plain.set_len(SIZE).unwrap();
        assert_eq!(check_writable(&plain, SIZE), Err(UnfitMemory::Unsealable));
        let path = format!("/proc/self/fd/{}", fixed.as_raw_fd());
        let reader = File::open(path).unwrap();
        assert_eq!(check_writable(&reader, SIZE), Err(UnfitMemory::ReadOnly));
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        for path in ["/dev/null", "/proc/self/exe", "/proc"] {
            let file = File::open(path).unwrap();
            for check in [check_writable, check_sealed] {
                let refused = check(&file, SIZE);
                assert!(matches!(refused, Err(UnfitMemory::NoMemfd(_))), "{path}");
            }
        }
    }

    #[test]
    fn the_memory_of_clones_must_be_sealed_in_every_way() {
        let file = memfd(SIZE);
        let steps = [
            (SealFlag::empty(), "writing (F_SEAL_WRITE)"),
            (SealFlag::F_SEAL_WRITE, "shrinking (F_SEAL_SHRINK)"),
            (SealFlag::F_SEAL_SHRINK, "growing (F_SEAL_GROW)"),
        ];
        for (next, missing) in steps {
            seal(&file, next);
            assert_eq!(
                check_sealed(&file, SIZE),
                Err(UnfitMemory::Unsealed(missing))
            );
        }
        seal(&file, SealFlag::F_SEAL_GROW);
        assert_eq!(check_sealed(&file, SIZE), Ok(()));
        assert!(matches!(
            check_sealed(&file, SIZE - 4096),
            Err(UnfitMemory::Size { .. })
        ));
    }
}
