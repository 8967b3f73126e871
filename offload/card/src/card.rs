//! What all pods of this card share.

use std::path::PathBuf;
use std::sync::Arc;

use longship_eni::{BridgeEnis, EniError};
use longship_proto::Failure;
use longship_volume::{VhostUserVolumes, VolumeError};

use crate::agent::AgentLink;
use crate::images::Images;
use crate::journal::Journal;
use crate::logs::LogStore;
use crate::status::Reports;
use crate::turns::Turns;

/// The card: its providers, its books and its links.
pub(crate) struct Card {
    /// Images, converted once and shared.
    pub(crate) images: Images,
    /// Disks and their backends. Their calls block: see [`Card::volume`].
    pub(crate) volumes: Arc<VhostUserVolumes>,
    /// ENIs and their backends: see [`Card::eni`].
    pub(crate) enis: BridgeEnis,
    /// The host.
    pub(crate) agent: AgentLink,
    /// Who may be in which stage.
    pub(crate) turns: Turns,
    /// What is held.
    pub(crate) journal: Arc<Journal>,
    /// What containers printed.
    pub(crate) logs: LogStore,
    /// News for the control plane.
    pub(crate) reports: Arc<Reports>,
    /// Where the scratch disks lie.
    pub(crate) scratch: PathBuf,
    /// One directory a pod, for its sockets.
    pub(crate) runtime_dir: PathBuf,
    /// Size of a pod's scratch disk in bytes (sparse).
    pub(crate) scratch_bytes: u64,
}

impl Card {
    /// A call to the disks, in its turn, where blocking is allowed.
    ///
    /// # Errors
    /// What the call fails with, as its reason and its failure.
    pub(crate) async fn volume<T: Send + 'static>(
        &self,
        call: impl FnOnce(&VhostUserVolumes) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, (&'static str, Failure)> {
        let _turn = self.turns.volumes.turn().await;
        let volumes = self.volumes.clone();
        match tokio::task::spawn_blocking(move || call(&volumes)).await {
            Ok(result) => result.map_err(|e| (e.reason(), e.into())),
            Err(error) => Err((
                "Internal",
                Failure::internal(format!("a disk's call: {error}")),
            )),
        }
    }

    /// A call to the ENIs, in its turn.
    ///
    /// # Errors
    /// What the call fails with.
    pub(crate) async fn eni(
        &self,
        call: impl AsyncFnOnce(&BridgeEnis) -> Result<(), EniError>,
    ) -> Result<(), EniError> {
        let _turn = self.turns.enis.turn().await;
        call(&self.enis).await
    }
}
