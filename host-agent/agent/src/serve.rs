//! Serves until a signal, then ends all sandboxes.

use std::sync::Arc;

use longship_proto::agent::v1::agent_server::AgentServer;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;

use crate::host::{Host, StartError};
use crate::listen::{Bound, Listen};
use crate::sandboxes::Sandboxes;
use crate::service::AgentService;

/// Serves `host` at `listen` until SIGTERM or SIGINT; all sandboxes end then.
///
/// # Errors
/// [`StartError`] where the address cannot be had, or serving fails.
pub async fn serve(host: Host, listen: Listen) -> Result<(), StartError> {
    let bound = listen.bind().await.map_err(|error| StartError::Listen {
        address: listen.to_string(),
        error,
    })?;
    let failed = |error: &dyn std::fmt::Display| StartError::Serve(error.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| failed(&e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| failed(&e))?;
    let sandboxes = Arc::new(Sandboxes::new(host));
    let server = Server::builder().add_service(AgentServer::new(AgentService {
        sandboxes: Arc::clone(&sandboxes),
    }));
    tracing::info!("listening at {listen}");
    // Kept to the end, so that the socket's file stays until all has ended.
    let (mut socket_file, mut serving) = match bound {
        Bound::Unix(listener, file) => {
            let incoming = UnixListenerStream::new(listener);
            (
                Some(file),
                tokio::spawn(server.serve_with_incoming(incoming)),
            )
        }
        Bound::Tcp(listener) => {
            let incoming = TcpListenerStream::new(listener);
            (None, tokio::spawn(server.serve_with_incoming(incoming)))
        }
    };
    let result = tokio::select! {
        ended = &mut serving => Err(StartError::Serve(format!("the server ended: {ended:?}"))),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("ending all sandboxes");
    sandboxes.stop_all().await;
    // Watchers would keep it open for ever.
    serving.abort();
    drop(socket_file.take());
    result
}
