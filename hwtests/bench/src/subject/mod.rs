//! What is measured, started and ended here.

pub(crate) mod agent;
pub(crate) mod daemon;
pub(crate) mod fleet;
pub(crate) mod initramfs;
pub(crate) mod pods;
pub(crate) mod qemu;
pub(crate) mod vmm;
pub(crate) mod workshop;

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::error::BenchError;
use crate::subject::daemon::Daemon;

/// For a daemon to answer.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// Between looks whether something has happened.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Connects to `address` once `daemon` listens there.
async fn connect(daemon: &mut Daemon, address: &str) -> Result<Channel, BenchError> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|error| BenchError::Impossible(format!("{address}: {error}")))?;
    let give_up = tokio::time::Instant::now() + READY_PATIENCE;
    loop {
        if let Ok(channel) = endpoint.connect().await {
            return Ok(channel);
        }
        daemon.must_run()?;
        if tokio::time::Instant::now() > give_up {
            let what = format!("does not answer at {address}");
            return Err(daemon.failed(what));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits for `event`.
///
/// # Errors
/// [`BenchError::Late`] after `seconds`.
pub(crate) async fn within<T>(
    seconds: u64,
    what: &str,
    event: impl Future<Output = T>,
) -> Result<T, BenchError> {
    tokio::time::timeout(Duration::from_secs(seconds), event)
        .await
        .map_err(|_| BenchError::Late {
            what: what.to_owned(),
            seconds,
        })
}
