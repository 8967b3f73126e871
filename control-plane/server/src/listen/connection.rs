//! One connection, and who is at its other end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::auth::Who;

/// What each call knows of the connection over which it came.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// By its certificate.
    pub(crate) who: Option<Who>,
    known: Arc<AtomicBool>,
}

impl Peer {
    /// Somebody who is known has called: the connection may stay.
    pub(crate) fn set_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that counts against the limit until it is dropped.
pub(crate) struct Connection {
    io: Io,
    peer: Peer,
    /// The end of the patience with somebody who is not known.
    patience: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Without TLS nobody is asked who they are.
    pub(super) fn plain(tcp: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self {
            io: Io::Plain(tcp),
            peer: Peer {
                who: None,
                known: Arc::new(AtomicBool::new(true)),
            },
            patience: None,
            _place: place,
        }
    }

    pub(super) fn tls(
        tls: TlsStream<TcpStream>,
        who: Option<Who>,
        place: OwnedSemaphorePermit,
        patience: Duration,
    ) -> Self {
        let known = who.is_some();
        Self {
            io: Io::Tls(Box::new(tls)),
            peer: Peer {
                who,
                known: Arc::new(AtomicBool::new(known)),
            },
            patience: (!known).then(|| Box::pin(tokio::time::sleep(patience))),
            _place: place,
        }
    }

    /// That it has not been open for too long without anybody who is known.
    fn check_patience(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(patience) = &mut self.patience else {
            return Ok(());
        };
        if self.peer.known.load(Ordering::Relaxed) {
            self.patience = None;
            return Ok(());
        }
        match patience.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_patience(cx)?;
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
