//! How cards and clients reach the control plane.

use async_trait::async_trait;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Gives connections to the control plane.
#[async_trait]
pub trait Network: Send + Sync {
    /// A connection; it may be shared with others.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    async fn connect(&self) -> Result<Channel, Status>;
}

/// TCP, with so many streams on each connection.
#[derive(Debug)]
pub struct SharedConnections {
    channels: Vec<Channel>,
    next: AtomicUsize,
}

impl SharedConnections {
    /// So many connections to `endpoint`. Each is made when it is first used, and made
    /// anew after it has broken.
    #[must_use]
    pub fn new(endpoint: &Endpoint, count: usize) -> Self {
        let channels = (0..count.max(1)).map(|_| endpoint.connect_lazy());
        Self {
            channels: channels.collect(),
            next: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl Network for SharedConnections {
    async fn connect(&self) -> Result<Channel, Status> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let channel = self.channels.get(turn).cloned();
        channel.ok_or_else(|| Status::unavailable("no connection"))
    }
}

/// TCP, with a connection of its own for each stream.
#[derive(Debug, Clone)]
pub struct OwnConnections(pub Endpoint);

#[async_trait]
impl Network for OwnConnections {
    async fn connect(&self) -> Result<Channel, Status> {
        let connected = self.0.connect().await;
        connected.map_err(|error| Status::unavailable(error.to_string()))
    }
}
