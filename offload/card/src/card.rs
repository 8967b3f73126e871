//! What all pods of this card share.

use std::path::PathBuf;
use std::sync::Arc;

use longship_eni::BridgeEnis;
use longship_image::ImageStore;
use longship_proto::Failure;
use longship_volume::{VhostUserVolumes, VolumeError};

use crate::agent::AgentLink;
use crate::journal::Journal;
use crate::logs::LogStore;
use crate::status::Reports;

/// The card: its providers, its books and its links.
pub(crate) struct Card {
    /// Images, converted once and shared.
    pub(crate) images: ImageStore,
    /// Disks and their backends. Their calls block: see [`Card::volume`].
    pub(crate) volumes: Arc<VhostUserVolumes>,
    /// ENIs and their backends.
    pub(crate) enis: BridgeEnis,
    /// The host.
    pub(crate) agent: AgentLink,
    /// What is held.
    pub(crate) journal: Journal,
    /// What containers printed.
    pub(crate) logs: LogStore,
    /// News for the control plane.
    pub(crate) reports: Arc<Reports>,
    /// One directory a pod, for its sockets.
    pub(crate) runtime_dir: PathBuf,
    /// Size of a pod's scratch disk in bytes (sparse).
    pub(crate) scratch_bytes: u64,
}

impl Card {
    /// A call to the disks, where blocking is allowed.
    ///
    /// # Errors
    /// What the call fails with, as its reason and its failure.
    pub(crate) async fn volume<T: Send + 'static>(
        &self,
        call: impl FnOnce(&VhostUserVolumes) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, (&'static str, Failure)> {
        let volumes = self.volumes.clone();
        match tokio::task::spawn_blocking(move || call(&volumes)).await {
            Ok(result) => result.map_err(|e| (e.reason(), e.into())),
            Err(error) => Err((
                "Internal",
                Failure::internal(format!("a disk's call: {error}")),
            )),
        }
    }
}
