//! The tokio side of a connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::{Connection, Phase, Ports};
use crate::device::Shared;
use crate::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::table::{Accepted, Id};

/// A connection with the guest.
///
/// Shutting down its writing half tells the guest that no more comes; reading
/// ends with the guest's own. Dropped, it still sends what was written.
#[derive(Debug)]
pub struct VsockStream {
    shared: Arc<Shared>,
    id: Id,
    ports: Ports,
}

impl VsockStream {
    pub(crate) fn new(shared: Arc<Shared>, accepted: Accepted) -> Self {
        Self {
            shared,
            id: accepted.id,
            ports: accepted.ports,
        }
    }

    /// The port on the guest's side.
    pub fn guest_port(&self) -> u32 {
        self.ports.guest
    }

    /// The port on this side.
    pub fn host_port(&self) -> u32 {
        self.ports.host
    }

    /// Waits until the guest has accepted.
    pub(crate) async fn connected(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            self.with(|connection| match connection.phase {
                Phase::Open { .. } => Poll::Ready(Ok(())),
                Phase::Gone { .. } => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
                Phase::Connecting { .. } => {
                    connection.writer = Some(cx.waker().clone());
                    Poll::Pending
                }
            })
        })
        .await
    }

    /// Runs `act` on the connection, and has the device's thread send what
    /// comes of it.
    fn with<T>(
        &self,
        act: impl FnOnce(&mut Connection) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut table = self.shared.table();
        let done = match table.get(self.id) {
            Some(connection) => act(connection),
            // Only abandoned connections leave the table.
            None => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        let sends = table.mark_ready(self.id);
        drop(table);
        if sends {
            self.shared.wake_device();
        }
        done
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|connection| {
            let limit = buffer.remaining();
            if connection.read(limit, |bytes| buffer.put_slice(bytes)) > 0 || limit == 0 {
                return Poll::Ready(Ok(()));
            }
            match connection.phase {
                Phase::Gone { clean: false } => {
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                }
                Phase::Gone { clean: true } => Poll::Ready(Ok(())),
                _ if connection.guest_shutdown & SHUTDOWN_SEND != 0 => Poll::Ready(Ok(())),
                _ => {
                    connection.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|connection| match connection.phase {
            Phase::Gone { clean: false } => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Phase::Gone { clean: true } => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            _ if connection.write_closed || connection.guest_shutdown & SHUTDOWN_RECEIVE != 0 => {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            _ if data.is_empty() => Poll::Ready(Ok(0)),
            _ => match connection.write(data) {
                0 => {
                    connection.writer = Some(cx.waker().clone());
                    Poll::Pending
                }
                n => Poll::Ready(Ok(n)),
            },
        })
    }

    /// What was written is on its way; there is nothing to push.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|connection| {
            connection.write_closed = true;
            Poll::Ready(Ok(()))
        })
    }
}

impl Drop for VsockStream {
    fn drop(&mut self) {
        self.shared.table().abandon(self.id);
        self.shared.wake_device();
    }
}
