//! The device of most tests, which turns its input round.

use longship_vhost_user::driver::{Driver, Piece};
use longship_vhost_user::{Buffers, Device, RingError, Server, SharedMemory, Vring};

/// Writes what it reads, backwards.
pub(crate) struct Mirror;

/// Descriptors that it takes in one request.
pub(crate) const LIMIT: usize = 16;

impl Mirror {
    fn drain(ring: &mut Vring, memory: &SharedMemory) -> Result<(), virtio_queue::Error> {
        loop {
            ring.disable_kicks(memory)?;
            while let Some(chain) = ring.pop(memory)? {
                let head = chain.head_index();
                let written = match Buffers::of(memory, chain, LIMIT) {
                    Ok(mut buffers) => {
                        let len = buffers.readable.len().min(buffers.writable.len());
                        let mut bytes = vec![0; len];
                        assert!(buffers.readable.read(&mut bytes));
                        bytes.reverse();
                        assert!(buffers.writable.write(&bytes));
                        u32::try_from(len).unwrap()
                    }
                    Err(_) => 0,
                };
                ring.push_used(memory, head, written)?;
            }
            ring.notify(memory)?;
            if !ring.enable_kicks(memory)? {
                return Ok(());
            }
        }
    }
}

impl Device for Mirror {
    const NAME: &'static str = "mirror";

    fn queue_count(&self) -> usize {
        2
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[1, 2, 3]
    }

    fn process(
        &mut self,
        index: usize,
        rings: &mut [Vring],
        memory: &SharedMemory,
    ) -> Result<(), RingError> {
        Self::drain(&mut rings[index], memory).map_err(|source| RingError {
            ring: index,
            source,
        })
    }
}

/// A device with a socket of its own.
pub(crate) fn served() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("device"), Mirror).unwrap();
    (dir, server)
}

/// One request, done right.
pub(crate) fn mirrored(driver: &mut Driver, ring: usize, bytes: &[u8], indirect: bool) {
    let (a, b) = bytes.split_at(bytes.len() / 3);
    let len = u32::try_from(bytes.len()).unwrap();
    let pieces = [Piece::Read(a), Piece::Read(b), Piece::Write(len)];
    let sent = driver.submit(ring, &pieces, indirect);
    driver.kick(ring);
    assert_eq!(driver.wait_used(ring), Some((sent.head, len)));
    let mut back = driver.read(sent.pieces[2].0, len);
    back.reverse();
    assert_eq!(back, bytes);
}
