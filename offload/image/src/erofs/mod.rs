//! An uncompressed EROFS disk from a file tree.
//!
//! On-disk format: Linux, `fs/erofs/erofs_fs.h` and
//! `Documentation/filesystems/erofs.rst`. Used are what Linux has had since 5.4:
//! compact and extended inodes, plain and tail-inline data, inline extended
//! attributes; 4096-byte blocks. The same tree always gives the same bytes.
//!
//! The disk is: block 0 with the superblock, the inodes with what is inline in
//! them, then the data blocks in the order of the tree.

mod directory;
mod format;
mod place;
mod plan;
mod write;
mod xattr;

pub(crate) use write::write;

/// Size of a block in bytes.
const BLOCK: u64 = 4096;

/// Why a tree cannot become a disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ErofsError {
    /// The disk would have more than 2^32 blocks or 2^32 inodes.
    #[error("it is too large for an EROFS disk")]
    TooLarge,
    /// An extended attribute, or all those of one file, are too long.
    #[error("the extended attribute {0:?} does not fit into an EROFS inode")]
    Xattr(String),
    /// A device number with more bits than Linux has.
    #[error("there is no device {0}:{1}")]
    Device(u32, u32),
    /// Reading a layer or writing the disk failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

#[cfg(test)]
mod tests;
