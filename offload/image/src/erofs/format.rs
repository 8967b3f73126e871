//! EROFS structures as bytes, little endian.

use crate::tree::Time;

/// Where the superblock lies, and how long it is, in bytes.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
const SUPERBLOCK_SIZE: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// The block with the superblock carries a CRC-32C.
const COMPAT_CHECKSUM: u32 = 1;
/// Inodes have modification times, not change times.
const COMPAT_MTIME: u32 = 2;
const BLOCK_BITS: u8 = 12;

/// Inodes are found by their place in units of this many bytes.
pub(super) const SLOT: u64 = 32;
pub(super) const COMPACT_INODE: u64 = 32;
pub(super) const EXTENDED_INODE: u64 = 64;

/// File types of `i_mode`, as in stat(2).
pub(super) const S_IFIFO: u16 = 0o010_000;
pub(super) const S_IFCHR: u16 = 0o020_000;
pub(super) const S_IFDIR: u16 = 0o040_000;
pub(super) const S_IFBLK: u16 = 0o060_000;
pub(super) const S_IFREG: u16 = 0o100_000;
pub(super) const S_IFLNK: u16 = 0o120_000;

/// How an inode's data lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// All in blocks of their own.
    Plain,
    /// The last, partial block follows the inode.
    Inline,
}

impl DataLayout {
    fn bits(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Inline => 2 << 1,
        }
    }
}

/// One inode's fields.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) layout: DataLayout,
    /// Type and permissions.
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// First data block, or the device number.
    pub(super) block_or_device: u32,
    /// For programs with 32-bit inode numbers.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    /// `i_xattr_icount`.
    pub(super) xattr_count: u16,
}

impl Inode {
    /// `struct erofs_inode_compact`; none where a field does not fit. The time is
    /// that of the superblock.
    pub(super) fn compact(&self, build_time: Time) -> Option<[u8; 32]> {
        if self.mtime != build_time {
            return None;
        }
        let links = u16::try_from(self.links).ok()?;
        let size = u32::try_from(self.size).ok()?;
        let uid = u16::try_from(self.uid).ok()?;
        let gid = u16::try_from(self.gid).ok()?;
        let mut bytes = [0; 32];
        put(&mut bytes, 0, &self.layout.bits().to_le_bytes());
        put(&mut bytes, 2, &self.xattr_count.to_le_bytes());
        put(&mut bytes, 4, &self.mode.to_le_bytes());
        put(&mut bytes, 6, &links.to_le_bytes());
        put(&mut bytes, 8, &size.to_le_bytes());
        put(&mut bytes, 16, &self.block_or_device.to_le_bytes());
        put(&mut bytes, 20, &self.number.to_le_bytes());
        put(&mut bytes, 24, &uid.to_le_bytes());
        put(&mut bytes, 26, &gid.to_le_bytes());
        Some(bytes)
    }

    /// `struct erofs_inode_extended`.
    pub(super) fn extended(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        put(&mut bytes, 0, &(self.layout.bits() | 1).to_le_bytes());
        put(&mut bytes, 2, &self.xattr_count.to_le_bytes());
        put(&mut bytes, 4, &self.mode.to_le_bytes());
        put(&mut bytes, 8, &self.size.to_le_bytes());
        put(&mut bytes, 16, &self.block_or_device.to_le_bytes());
        put(&mut bytes, 20, &self.number.to_le_bytes());
        put(&mut bytes, 24, &self.uid.to_le_bytes());
        put(&mut bytes, 28, &self.gid.to_le_bytes());
        put(&mut bytes, 32, &self.mtime.seconds.to_le_bytes());
        put(&mut bytes, 40, &self.mtime.nanoseconds.to_le_bytes());
        put(&mut bytes, 44, &self.links.to_le_bytes());
        bytes
    }
}

/// What the superblock says of the whole disk.
#[derive(Debug)]
pub(super) struct Superblock {
    /// Place of the root's inode in slots from the disk's beginning.
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    /// The time of all compact inodes.
    pub(super) build_time: Time,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// The disk's first block: `struct erofs_super_block` at 1024, the rest zero.
    pub(super) fn block(&self) -> [u8; 4096] {
        let mut superblock = [0; SUPERBLOCK_SIZE];
        put(&mut superblock, 0, &MAGIC.to_le_bytes());
        put(
            &mut superblock,
            8,
            &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes(),
        );
        put(&mut superblock, 12, &[BLOCK_BITS]);
        put(&mut superblock, 14, &self.root.to_le_bytes());
        put(&mut superblock, 16, &self.inodes.to_le_bytes());
        put(&mut superblock, 24, &self.build_time.seconds.to_le_bytes());
        put(
            &mut superblock,
            32,
            &self.build_time.nanoseconds.to_le_bytes(),
        );
        put(&mut superblock, 36, &self.blocks.to_le_bytes());
        put(&mut superblock, 48, &self.uuid);
        let mut block = [0; 4096];
        put(&mut block, SUPERBLOCK_OFFSET, &superblock);
        // Over the superblock and the rest of its block, the field itself zero.
        let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
        put(&mut block, SUPERBLOCK_OFFSET + 4, &checksum.to_le_bytes());
        block
    }
}

/// `struct erofs_dirent`.
pub(super) fn dirent(slot: u64, name_offset: u16, file_type: u8) -> [u8; 12] {
    let mut bytes = [0; 12];
    put(&mut bytes, 0, &slot.to_le_bytes());
    put(&mut bytes, 8, &name_offset.to_le_bytes());
    put(&mut bytes, 10, &[file_type]);
    bytes
}

/// The file type in a directory entry, for an `i_mode`.
pub(super) fn file_type(mode: u16) -> u8 {
    match mode & 0o170_000 {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// A device number as Linux writes it to disks (`new_encode_dev`): 12 bits of
/// major, 20 of minor number.
pub(super) fn device(major: u32, minor: u32) -> Option<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Copies `value` into a fixed structure; offsets are constants of this file.
fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// CRC-32C as Linux's `crc32c(~0, …)`, without the usual last inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // The well-known check value, before its last inversion.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn device_numbers_have_12_and_20_bits() {
        assert_eq!(device(1, 3), Some(0x103));
        assert_eq!(device(0xfff, 0xf_ffff), Some(0xffff_ffff));
        assert_eq!(device(8, 0x123), Some(0x10_0823));
        assert_eq!(device(0x1000, 0), None);
        assert_eq!(device(0, 0x10_0000), None);
    }
}
