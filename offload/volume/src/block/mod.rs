//! A virtio-blk device (virtio 1.2 §5.2) over one file.

mod config;
mod file;
mod request;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use longship_vhost_user::{
    Buffers, Chain, ChainError, Device, LogQuota, RingError, Server, SharedMemory, Vring,
};

use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_S_IOERR;
use vm_memory::{Address, Bytes};

use crate::error::VolumeError;
use config::{CONFIG_BYTES, MAX_DESCRIPTORS, SECTOR};
use file::BackingFile;
use request::ServedDisk;

pub use config::SERIAL_BYTES;

/// Bytes that are moved before the guest is called about the requests that are done,
/// while there are more: some 50 µs. A request itself counts for some.
const UNTOLD_MOST: usize = 256 << 10;
const UNTOLD_REQUEST: usize = 16 << 10;

/// What is served as a disk.
#[derive(Debug)]
pub struct Disk {
    /// A regular file or block device; opened for writing unless `read_only`.
    pub file: File,
    /// Whether the guest may only read. Its length may then be anything: the
    /// last sector is filled up with zeros.
    pub read_only: bool,
    /// What the guest finds in `/sys/block/vdX/serial`; at most
    /// [`SERIAL_BYTES`] bytes.
    pub serial: String,
}

/// A disk that is being served over vhost-user, until stopped or dropped.
#[derive(Debug)]
pub struct BlockDevice {
    server: Server,
}

impl BlockDevice {
    /// Serves `disk` at `socket`, which is listening when this returns.
    ///
    /// # Errors
    /// [`VolumeError::Serial`], [`VolumeError::DiskSize`],
    /// [`VolumeError::Serve`].
    pub fn serve(socket: &Path, disk: Disk) -> Result<Self, VolumeError> {
        let device = Backend::new(disk)?;
        Ok(Self {
            server: Server::start(socket, device)?,
        })
    }

    /// Where it is served.
    pub fn socket(&self) -> &Path {
        self.server.socket()
    }

    /// Disconnects the frontend and removes the socket. Waits for the request
    /// that is being served, ten seconds at most.
    pub fn stop(&mut self) {
        self.server.stop();
    }
}

/// Whether a disk may have this serial.
pub(crate) fn check_serial(serial: &str) -> Result<(), VolumeError> {
    let fits = (1..=SERIAL_BYTES).contains(&serial.len());
    if fits && serial.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(VolumeError::Serial(serial.to_owned()))
    }
}

/// The device behind the rings.
struct Backend {
    disk: ServedDisk,
    features: u64,
    config: [u8; CONFIG_BYTES],
}

impl Backend {
    fn new(mut disk: Disk) -> Result<Self, VolumeError> {
        check_serial(&disk.serial)?;
        // Also right for block devices, whose metadata says 0.
        let bytes = disk
            .file
            .seek(SeekFrom::End(0))
            .map_err(|_| VolumeError::DiskSize { bytes: 0 })?;
        let whole = bytes % SECTOR == 0;
        if bytes == 0 || (!whole && !disk.read_only) {
            return Err(VolumeError::DiskSize { bytes });
        }
        let sectors = bytes.div_ceil(SECTOR);
        Ok(Self {
            features: config::features(disk.read_only),
            config: config::space(sectors, disk.read_only),
            disk: ServedDisk {
                file: BackingFile::new(disk.file),
                sectors,
                read_only: disk.read_only,
                serial: disk.serial,
                log: LogQuota::default(),
            },
        })
    }

    /// Serves what is in the ring, but not more than once around it, so that a
    /// guest that never stops cannot keep the thread from anything else.
    fn serve(
        &mut self,
        ring: &mut Vring,
        memory: &SharedMemory,
    ) -> Result<(), virtio_queue::Error> {
        ring.disable_kicks(memory)?;
        let mut untold = 0;
        for _ in 0..ring.size() {
            let Some(chain) = ring.pop(memory)? else {
                ring.notify(memory)?;
                if ring.enable_kicks(memory)? {
                    ring.defer();
                }
                return Ok(());
            };
            let head = chain.head_index();
            let written = match Buffers::of(memory, chain.clone(), MAX_DESCRIPTORS) {
                Ok(buffers) => {
                    untold += UNTOLD_REQUEST + buffers.readable.len() + buffers.writable.len();
                    self.disk.serve(buffers)
                }
                Err(e) => {
                    tracing::debug!("malformed block request: {e}");
                    fail(memory, chain, e)
                }
            };
            ring.push_used(memory, head, written)?;
            // The guest finds what is done without being called, if it looks; a call
            // for each request would cost more than most requests do.
            if untold >= UNTOLD_MOST {
                ring.notify(memory)?;
                untold = 0;
            }
        }
        ring.notify(memory)?;
        ring.defer();
        Ok(())
    }
}

/// Says in a malformed request's status byte that it failed, or the driver would find
/// there what an earlier one left; the bytes written. Where the chain is cut off or out
/// of order, which byte that is cannot be known.
fn fail(memory: &SharedMemory, chain: Chain<'_>, why: ChainError) -> u32 {
    if !matches!(why, ChainError::OutsideMemory | ChainError::TooLong(_)) {
        return 0;
    }
    let Some(last) = chain.last().filter(|last| last.is_write_only()) else {
        return 0;
    };
    let failed = u8::try_from(VIRTIO_BLK_S_IOERR).unwrap_or(u8::MAX);
    let status = last
        .len()
        .checked_sub(1)
        .and_then(|before| last.addr().checked_add(u64::from(before)));
    let written = status.map(|at| memory.write_obj(failed, at));
    u32::from(matches!(written, Some(Ok(()))))
}

impl Device for Backend {
    const NAME: &'static str = "blk";

    fn queue_count(&self) -> usize {
        1
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn process(
        &mut self,
        index: usize,
        rings: &mut [Vring],
        memory: &SharedMemory,
    ) -> Result<(), RingError> {
        let Some(ring) = rings.get_mut(index) else {
            return Ok(());
        };
        self.serve(ring, memory).map_err(|source| RingError {
            ring: index,
            source,
        })
    }
}
