//! Connections: how many there may be, and how long one may take to say who it is.

mod connection;
mod identity;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

pub(crate) use connection::{Connection, Peer};
pub(crate) use tls::acceptor;
pub use tls::{TlsError, TlsFiles};

/// Connections that are ready and wait to be served.
const QUEUE: usize = 64;
/// How long to wait before the next one where the system has no descriptor left.
const RETRY: Duration = Duration::from_millis(100);

/// Who may come in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once; the others wait in the system's queue.
    pub(crate) connections: usize,
    /// For the TLS handshake, and again for the first call of somebody who is known.
    pub(crate) patience: Duration,
}

/// Accepts connections for as long as the answer is read.
pub(crate) fn connections(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: Limits,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, served) = mpsc::channel(QUEUE);
    let places = Arc::new(Semaphore::new(limits.connections));
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, tls, limits, places, &ready) => {}
            () = ready.closed() => {}
        }
    });
    ReceiverStream::new(served)
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    places: Arc<Semaphore>,
    ready: &mpsc::Sender<io::Result<Connection>>,
) {
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        // It costs the slow some time, nothing else.
        let _ = tcp.set_nodelay(true);
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            let connection = match tls {
                None => Connection::plain(tcp, place),
                Some(tls) => match handshake(&tls, tcp, place, limits.patience).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        tracing::debug!(%error, "a TLS handshake failed");
                        return;
                    }
                },
            };
            let _ = ready.send(Ok(connection)).await;
        });
    }
}

async fn handshake(
    tls: &TlsAcceptor,
    tcp: TcpStream,
    place: OwnedSemaphorePermit,
    patience: Duration,
) -> io::Result<Connection> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let tls = tokio::time::timeout(patience, tls.accept(tcp)).await;
    let tls = tls.map_err(late)??;
    let (_, session) = tls.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let who = certificate.and_then(identity::of);
    Ok(Connection::tls(tls, who, place, patience))
}
