//! Features and configuration space of the device (virtio 1.2 §5.2.3, §5.2.4).

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Bytes of a serial number (virtio 1.2 §5.2.6, VIRTIO_BLK_T_GET_ID).
pub const SERIAL_BYTES: usize = 20;

/// Bytes of a sector, the unit of addresses whatever the block size is.
pub(crate) const SECTOR: u64 = 512;

/// Bytes of `struct virtio_blk_config` up to and with WRITE_ZEROES.
pub(crate) const CONFIG_BYTES: usize = 60;

/// Data segments of a request: a queue of 128 less header and status.
const MAX_SEGMENTS: u32 = 126;

/// Bytes of one data segment.
const SEGMENT_BYTES: u32 = 64 << 10;

/// Bytes of data in one request: 7.9 MiB. All of it is one system call, which nobody
/// can interrupt who wants the device to stop. (Linux sends 1.25 MiB at most, if it is
/// not told otherwise.)
pub(crate) const MAX_DATA_BYTES: u32 = MAX_SEGMENTS * SEGMENT_BYTES;

/// Descriptors of a request that is accepted. More than is offered, for
/// drivers whose queue is larger and who split header or status.
pub(crate) const MAX_DESCRIPTORS: usize = 1024;

/// Ranges in one DISCARD, and in one WRITE_ZEROES.
pub(crate) const MAX_DISCARDS: u32 = 16;
pub(crate) const MAX_ZEROES: u32 = 1;

/// Sectors in one range of DISCARD: 2 GiB.
pub(crate) const MAX_DISCARD_SECTORS: u32 = 1 << 22;

/// Sectors in one range of WRITE_ZEROES: 16 MiB, which may have to be written.
pub(crate) const MAX_ZERO_SECTORS: u32 = 1 << 15;

/// Sectors that a discarded range should be aligned to: 4 KiB.
const DISCARD_ALIGNMENT: u32 = 8;

/// What the device offers.
pub(crate) fn features(read_only: bool) -> u64 {
    let common = [
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
    ];
    let own: &[u32] = if read_only {
        &[VIRTIO_BLK_F_RO]
    } else {
        &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
    };
    common.iter().chain(own).fold(0, |bits, f| bits | 1 << f)
}

/// The configuration space.
pub(crate) fn space(sectors: u64, read_only: bool) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_BYTES.to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    put(20, &512_u32.to_le_bytes()); // blk_size
    put(34, &1_u16.to_le_bytes()); // num_queues
    if !read_only {
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_DISCARDS.to_le_bytes());
        put(44, &DISCARD_ALIGNMENT.to_le_bytes());
        put(48, &MAX_ZERO_SECTORS.to_le_bytes());
        put(52, &MAX_ZEROES.to_le_bytes());
        put(56, &[1]); // write_zeroes_may_unmap
    }
    space
}
