//! gRPC over the simulated network.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use longship_sim::network::Network;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_stream::Stream;
use tonic::Status;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use turmoil::net::{TcpListener, TcpStream};

/// Where every control plane listens.
pub(crate) const PORT: u16 = 7700;
/// After that a connection that says nothing is given up, as the real card does.
const SILENCE: Duration = Duration::from_secs(1);

/// A connection as tonic's server takes it.
pub(crate) struct Connection(TcpStream);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What comes in at this host's port.
pub(crate) async fn incoming() -> io::Result<impl Stream<Item = io::Result<Connection>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let (connections, queue) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if connections.send(Ok(Connection(stream))).await.is_err() {
                return;
            }
        }
    });
    Ok(tokio_stream::wrappers::ReceiverStream::new(queue))
}

/// The way from a card or a client to one of the control planes, each in turn.
pub(crate) struct Way {
    controls: Vec<String>,
    next: AtomicUsize,
}

impl Way {
    pub(crate) fn new(controls: &[String]) -> Self {
        Self {
            controls: controls.to_vec(),
            next: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl Network for Way {
    async fn connect(&self) -> Result<Channel, Status> {
        let turn = self.next.fetch_add(1, Ordering::SeqCst) % self.controls.len();
        let control = self.controls[turn].clone();
        let endpoint = Endpoint::from_shared(format!("http://{control}:{PORT}")).unwrap();
        let endpoint = endpoint
            .connect_timeout(SILENCE)
            .http2_keep_alive_interval(SILENCE)
            .keep_alive_timeout(SILENCE)
            .keep_alive_while_idle(true);
        let connector = tower::service_fn(move |_| {
            let control = control.clone();
            async move {
                let stream = TcpStream::connect((control.as_str(), PORT)).await?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let connected = endpoint.connect_with_connector(connector).await;
        connected.map_err(|error| Status::unavailable(format!("{error:?}")))
    }
}
