//! The device: packets between the rings and the table.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longship_vhost_user::{Buffers, Device, LogQuota, RingError, Server, SharedMemory, Vring};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use crate::error::VsockError;
use crate::packet::{HEADER_BYTES, Header};
use crate::stream::VsockStream;
use crate::table::{Accepted, Table};
use crate::{BUFFER_BYTES, MAX_CONNECTIONS};

/// Rings of the device: what the guest receives, what it sends, and events,
/// which are never sent. Some frontends keep the last to themselves.
const RINGS: usize = 3;
const RECEIVE: usize = 0;
const SEND: usize = 1;

/// Descriptors in one packet that are accepted; Linux uses up to 18.
const MAX_DESCRIPTORS: usize = 64;

/// A connection that the guest opened to one of the ports listened on.
#[derive(Debug)]
pub struct Incoming {
    /// The port it connected to.
    pub port: u32,
    /// The connection.
    pub stream: VsockStream,
}

/// A guest's control channel, served until stopped or dropped.
#[derive(Debug)]
pub struct VsockDevice {
    server: Server,
    shared: Arc<Shared>,
}

/// What the device's thread and the streams share.
#[derive(Debug)]
pub(crate) struct Shared {
    table: Mutex<Table>,
    wake: EventFd,
}

impl Shared {
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the device's thread look for packets to send.
    pub(crate) fn wake_device(&self) {
        // Full means that it is awake already.
        let _ = self.wake.write(1);
    }
}

impl VsockDevice {
    /// Serves the channel of the guest `guest_cid` at `socket`, which is
    /// listening when this returns. Connections of the guest to the host's
    /// ports in `listen` come out of the receiver; all others are refused, and
    /// so are those that nobody takes out of it in time.
    ///
    /// # Errors
    /// [`VsockError`].
    pub fn serve(
        socket: &Path,
        guest_cid: u64,
        listen: &[u32],
    ) -> Result<(Self, mpsc::Receiver<Incoming>), VsockError> {
        if !(3..u64::from(u32::MAX)).contains(&guest_cid) {
            return Err(VsockError::Cid(guest_cid));
        }
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| VsockError::Wake(e.into()))?;
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(guest_cid, listen)),
            wake,
        });
        let (incoming, receiver) = mpsc::channel(MAX_CONNECTIONS);
        let device = Backend {
            shared: shared.clone(),
            incoming,
            config: guest_cid.to_le_bytes(),
            log: LogQuota::default(),
        };
        let server = Server::start(socket, device)?;
        Ok((Self { server, shared }, receiver))
    }

    /// Where it is served.
    pub fn socket(&self) -> &Path {
        self.server.socket()
    }

    /// Connects to `port` of the guest. Waits for its answer, also while the
    /// guest has no driver yet; to give up, drop the future.
    ///
    /// # Errors
    /// `ConnectionRefused` where the guest says no or goes away,
    /// `NotConnected` where the device was stopped or has no room for more
    /// connections.
    pub async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        let opened = self.shared.table().connect(port);
        let opened = opened.ok_or(io::ErrorKind::NotConnected)?;
        let stream = VsockStream::new(self.shared.clone(), opened);
        self.shared.wake_device();
        stream.connected().await?;
        Ok(stream)
    }

    /// Disconnects the frontend, removes the socket, and resets all streams.
    /// The receiver of incoming connections ends.
    pub fn stop(&mut self) {
        self.server.stop();
        self.shared.table().close();
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The device behind the rings.
struct Backend {
    shared: Arc<Shared>,
    incoming: mpsc::Sender<Incoming>,
    config: [u8; 8],
    log: LogQuota,
}

impl Backend {
    /// Takes the guest's packets, at most once around the ring, and calls the guest
    /// once about all of them.
    fn receive(&self, ring: &mut Vring, memory: &SharedMemory) -> Result<(), virtio_queue::Error> {
        ring.disable_kicks(memory)?;
        for _ in 0..ring.size() {
            if !self.shared.table().can_receive() {
                // Goes on when the guest has taken what is for it.
                ring.notify(memory)?;
                return Ok(());
            }
            let Some(chain) = ring.pop(memory)? else {
                ring.notify(memory)?;
                if ring.enable_kicks(memory)? {
                    ring.defer();
                }
                return Ok(());
            };
            let head = chain.head_index();
            match Buffers::of(memory, chain, MAX_DESCRIPTORS) {
                Ok(buffers) => self.receive_packet(buffers),
                Err(e) => tracing::debug!("malformed vsock packet: {e}"),
            }
            ring.push_used(memory, head, 0)?;
        }
        ring.notify(memory)?;
        ring.defer();
        Ok(())
    }

    fn receive_packet(&self, buffers: Buffers<'_>) {
        let mut readable = buffers.readable;
        let mut bytes = [0; HEADER_BYTES];
        if !readable.read(&mut bytes) {
            tracing::debug!("vsock packet without a header");
            return;
        }
        let header = Header::decode(&bytes);
        // More than the buffer is against the rules; it is not even copied.
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let mut data = vec![0; if len <= BUFFER_BYTES { len } else { 0 }];
        let complete = len <= BUFFER_BYTES && readable.read(&mut data);
        let accepted = {
            let mut table = self.shared.table();
            table.receive(&header, complete.then_some(&data))
        };
        if let Some(accepted) = accepted {
            self.hand_over(accepted);
        }
    }

    /// Where nobody takes the stream it is dropped, and with it the connection.
    fn hand_over(&self, accepted: Accepted) {
        let incoming = Incoming {
            port: accepted.ports.host,
            stream: VsockStream::new(self.shared.clone(), accepted),
        };
        if self.incoming.try_send(incoming).is_err()
            && let Some(omitted) = self.log.next()
        {
            let port = accepted.ports.host;
            tracing::warn!(port, omitted, "nobody takes vsock connections");
        }
    }

    /// Fills the guest's receive buffers as far as there is something to send.
    fn send(&self, ring: &mut Vring, memory: &SharedMemory) -> Result<(), virtio_queue::Error> {
        ring.disable_kicks(memory)?;
        let mut filled = false;
        for _ in 0..ring.size() {
            let mut table = self.shared.table();
            if !table.has_packet() {
                break;
            }
            let Some(chain) = ring.pop(memory)? else {
                drop(table);
                // No buffers: go on with the next kick, unless it was just now.
                if ring.enable_kicks(memory)? {
                    ring.defer();
                }
                break;
            };
            let head = chain.head_index();
            let packet = Buffers::of(memory, chain, MAX_DESCRIPTORS)
                .ok()
                .and_then(|buffers| {
                    let room = buffers.writable.len().checked_sub(HEADER_BYTES)?;
                    Some((buffers.writable, room))
                });
            let mut written = 0;
            if let Some((mut writable, room)) = packet {
                if let Some((header, data)) = table.next_packet(room) {
                    drop(table);
                    writable.write(&header.encode());
                    writable.write(&data);
                    written = HEADER_BYTES + data.len();
                }
            } else {
                tracing::debug!("vsock receive buffer of no use");
            }
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            ring.push_used(memory, head, written)?;
            filled = true;
        }
        if filled {
            ring.notify(memory)?;
        }
        if self.shared.table().has_packet() && filled {
            ring.defer();
        }
        Ok(())
    }

    /// Both rings, as far as they run: what is taken from one may have to be
    /// answered on the other, and what stopped one may be over.
    fn turn(
        &self,
        rings: &mut [Vring],
        memory: &SharedMemory,
        receive: bool,
    ) -> Result<(), RingError> {
        let at = |ring| move |source| RingError { ring, source };
        if let Some(ring) = rings.get_mut(SEND).filter(|r| receive && r.is_running()) {
            self.receive(ring, memory).map_err(at(SEND))?;
        }
        let waiting = !self.shared.table().can_receive();
        if let Some(ring) = rings.get_mut(RECEIVE).filter(|r| r.is_running()) {
            self.send(ring, memory).map_err(at(RECEIVE))?;
        }
        if waiting
            && self.shared.table().can_receive()
            && let Some(ring) = rings.get_mut(SEND)
        {
            ring.defer();
        }
        Ok(())
    }
}

impl Device for Backend {
    const NAME: &'static str = "vsock";

    fn queue_count(&self) -> usize {
        RINGS
    }

    /// None: VIRTIO_VSOCK_F_STREAM is what a device without features has.
    fn features(&self) -> u64 {
        0
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
        self.turn(rings, memory, index == SEND)
    }

    fn wake_up(&self, _rings: &[Vring]) -> Option<BorrowedFd<'_>> {
        Some(self.shared.wake.as_fd())
    }

    fn woken(&mut self, rings: &mut [Vring], memory: &SharedMemory) -> Result<(), RingError> {
        let _ = self.shared.wake.read();
        self.turn(rings, memory, false)
    }

    fn reset(&mut self) {
        self.shared.table().reset_all();
    }
}
