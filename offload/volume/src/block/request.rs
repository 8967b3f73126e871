//! The requests (virtio 1.2 §5.2.6): a header, data, and a status byte.

use std::io;

use longship_vhost_user::{Buffers, LogQuota, Segments};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::config::{
    MAX_DATA_BYTES, MAX_DISCARD_SECTORS, MAX_DISCARDS, MAX_ZERO_SECTORS, MAX_ZEROES, SECTOR,
    SERIAL_BYTES,
};
use super::file::BackingFile;

/// Bytes of the header: type, reserved, sector.
const HEADER: usize = 16;

/// Bytes of a range in DISCARD and WRITE_ZEROES: sector, count, flags.
const RANGE: usize = 16;

/// The disk as requests see it.
#[derive(Debug)]
pub(crate) struct ServedDisk {
    pub(crate) file: BackingFile,
    pub(crate) sectors: u64,
    pub(crate) read_only: bool,
    pub(crate) serial: String,
    pub(crate) log: LogQuota,
}

/// Why a request was not done; becomes its status byte.
#[derive(Debug)]
enum Refusal {
    /// The request is wrong: VIRTIO_BLK_S_IOERR.
    Wrong(&'static str),
    /// The file failed: VIRTIO_BLK_S_IOERR.
    Failed(io::Error),
    /// Nothing that this device does: VIRTIO_BLK_S_UNSUPP.
    Unsupported,
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self::Failed(e)
    }
}

/// A range of DISCARD or WRITE_ZEROES, inside the disk, in bytes.
#[derive(Clone, Copy, Debug)]
struct Range {
    offset: u64,
    len: u64,
    unmap: bool,
}

impl ServedDisk {
    /// Serves one request; how many bytes of its writable part are written.
    pub(crate) fn serve(&self, mut buffers: Buffers<'_>) -> u32 {
        // The last byte is the status, however the driver cut the buffers.
        let Some(last) = buffers.writable.len().checked_sub(1) else {
            return 0;
        };
        let Some(mut status) = buffers.writable.split_off(last) else {
            return 0;
        };
        let (code, written) = match self.run(buffers) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Wrong(what)) => {
                tracing::debug!("block request refused: {what}");
                (VIRTIO_BLK_S_IOERR, 0)
            }
            Err(Refusal::Failed(e)) => {
                if let Some(omitted) = self.log.next() {
                    tracing::warn!(disk = self.serial, omitted, "block request failed: {e}");
                }
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        status.write(&[u8::try_from(code).unwrap_or(u8::MAX)]);
        u32::try_from(written).map_or(u32::MAX, |w| w.saturating_add(1))
    }

    /// Bytes written into the data part.
    fn run(&self, buffers: Buffers<'_>) -> Result<usize, Refusal> {
        let Buffers {
            mut readable,
            mut writable,
        } = buffers;
        let mut header = [0; HEADER];
        if !readable.read(&mut header) {
            return Err(Refusal::Wrong("no header"));
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => {
                let offset = self.place(sector, writable.len())?;
                self.file.read(&writable, offset)?;
                Ok(writable.len())
            }
            VIRTIO_BLK_T_OUT => {
                self.refuse_if_read_only()?;
                let offset = self.place(sector, readable.len())?;
                self.file.write(&readable, offset)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                if !self.read_only {
                    self.file.flush()?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; SERIAL_BYTES];
                let serial = self.serial.as_bytes();
                id[..serial.len()].copy_from_slice(serial);
                if writable.write(&id) {
                    Ok(SERIAL_BYTES)
                } else {
                    Err(Refusal::Wrong("no room for the serial"))
                }
            }
            VIRTIO_BLK_T_DISCARD if !self.read_only => {
                for range in self.ranges(readable, MAX_DISCARDS, MAX_DISCARD_SECTORS, false)? {
                    self.file.discard(range.offset, range.len)?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if !self.read_only => {
                for range in self.ranges(readable, MAX_ZEROES, MAX_ZERO_SECTORS, true)? {
                    self.file.zero(range.offset, range.len, range.unmap)?;
                }
                Ok(0)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn refuse_if_read_only(&self) -> Result<(), Refusal> {
        if self.read_only {
            return Err(Refusal::Wrong("write to a read-only disk"));
        }
        Ok(())
    }

    /// Offset in the file of `len` bytes at `sector`, all of them on the disk.
    fn place(&self, sector: u64, len: usize) -> Result<u64, Refusal> {
        let len = u64::try_from(len).map_err(|_| Refusal::Wrong("too long"))?;
        if len > u64::from(MAX_DATA_BYTES) {
            return Err(Refusal::Wrong("longer than was agreed"));
        }
        if len == 0 || len % SECTOR != 0 {
            return Err(Refusal::Wrong("no whole number of sectors"));
        }
        let end = sector.checked_add(len / SECTOR);
        if end.is_none_or(|end| end > self.sectors) {
            return Err(Refusal::Wrong("behind the end of the disk"));
        }
        Ok(sector * SECTOR)
    }

    /// All ranges of a request, each checked before the first is acted on.
    fn ranges(
        &self,
        mut list: Segments<'_>,
        max_ranges: u32,
        max_sectors: u32,
        may_unmap: bool,
    ) -> Result<Vec<Range>, Refusal> {
        let count = list.len() / RANGE;
        let few = u32::try_from(count).is_ok_and(|count| count <= max_ranges);
        if count == 0 || !few || !list.len().is_multiple_of(RANGE) {
            return Err(Refusal::Wrong("bad number of ranges"));
        }
        let mut ranges = Vec::with_capacity(count);
        let mut bytes = [0; RANGE];
        while list.read(&mut bytes) {
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes(flags);
            let known = if may_unmap {
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
            } else {
                0
            };
            // Reserved bits, and UNMAP with DISCARD: §5.2.6.2.
            if flags & !known != 0 {
                return Err(Refusal::Unsupported);
            }
            let end = sector.checked_add(u64::from(sectors));
            if sectors > max_sectors || end.is_none_or(|end| end > self.sectors) {
                return Err(Refusal::Wrong("range not on the disk or too long"));
            }
            ranges.push(Range {
                offset: sector * SECTOR,
                len: u64::from(sectors) * SECTOR,
                unmap: flags != 0,
            });
        }
        Ok(ranges)
    }
}
