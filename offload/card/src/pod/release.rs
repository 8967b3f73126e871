//! Giving back what a pod holds. The journal says what that is, so the same code
//! serves a pod's end and what a former card left behind.

use std::time::Duration;

use longship_eni::EniProvider;
use longship_proto::{Class, Failure};
use longship_volume::VolumeProvider;
use tracing::{info, warn};

use crate::card::Card;

/// Between attempts to release what could not be released.
const RETRY: Duration = Duration::from_secs(1);

/// Releases everything held for the pod; goes on until all of it is released. The
/// machine goes first: its devices have no user then.
pub(crate) async fn release_held(card: &Card, pod_uid: &str) {
    let mut told = false;
    loop {
        match attempt(card, pod_uid).await {
            Ok(()) => return,
            Err(failure) => {
                if !told {
                    warn!(pod_uid, %failure, "cannot release the pod yet, trying on");
                    told = true;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn attempt(card: &Card, pod_uid: &str) -> Result<(), Failure> {
    let mut held = card.journal.held_for(pod_uid);
    held.sort_by_key(|h| h.kind != "sandbox");
    for item in &held {
        match item.kind.as_str() {
            "sandbox" => stop_sandbox(card, &item.name, item.generation).await?,
            "eni" => {
                card.eni(async |enis| enis.release(&item.name).await)
                    .await?;
            }
            _ => {
                let id = item.name.clone();
                card.volume(move |volumes| volumes.release(&id))
                    .await
                    .map_err(|(_, f)| f)?;
            }
        }
    }
    remove_sockets(card, pod_uid)?;
    card.journal.clear(pod_uid).await?;
    info!(pod_uid, things = held.len(), "released");
    Ok(())
}

/// Removes the directory of a pod's sockets.
///
/// # Errors
/// Where it cannot be removed; none is fine.
pub(crate) fn remove_sockets(card: &Card, pod_uid: &str) -> Result<(), Failure> {
    match std::fs::remove_dir_all(card.runtime_dir.join(pod_uid)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::internal(format!(
            "remove the sockets of {pod_uid}: {e}"
        ))),
        _ => Ok(()),
    }
}

async fn stop_sandbox(card: &Card, id: &str, generation: u64) -> Result<(), Failure> {
    let _turn = card.turns.ends.turn().await;
    match card.agent.stop(id, generation).await {
        Err(failure) if failure.class() == Class::NotFound => Ok(()),
        other => other,
    }
}
