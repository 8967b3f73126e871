//! Following pods.
//!
//! One task follows the store for all watchers. It decodes and encodes each change once,
//! keeps the latest of them, and tells those whom a change concerns; each of them takes
//! what it wants from there, at its own pace. What a watcher is too late for it reads
//! from the store's log, as one that goes on from an old version does.

mod audience;
mod change;
mod feed;
mod follow;
mod recent;

use longship_proto::control::v1::WatchPodsRequest;
use longship_proto::{Failure, FailureExt};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

pub(crate) use audience::PodSet;
pub(crate) use change::EncodedEvent;
pub(crate) use feed::Feed;

use crate::api::{Control, Ending};
use crate::auth::Scope;
use crate::validate;
use follow::Follower;

/// Events on their way to one watcher; all others are held once for all.
const QUEUE: usize = 4;

/// Begins to follow the pods of a set, for as long as the caller may see them.
pub(crate) async fn open(
    control: &Control,
    scope: Scope,
    request: WatchPodsRequest,
    set: PodSet,
) -> Result<Ending<EncodedEvent>, Status> {
    let selector = validate::selector("label_selector", &request.label_selector)
        .map_err(Failure::into_status)?;
    let (queue, events) = mpsc::channel(QUEUE);
    let (end, ended) = oneshot::channel();
    let follower = Follower::begin(
        control,
        set,
        selector,
        request.bookmarks,
        request.resource_version,
        queue,
    );
    let follower = follower.await.map_err(Failure::into_status)?;
    let mut stopping = control.stopping.clone();
    tokio::spawn(async move {
        let why = tokio::select! {
            why = follower.follow() => why,
            _ = stopping.wait_for(|stopping| *stopping) => {
                Some(Failure::unavailable("the control plane is stopping"))
            }
            why = scope.ended() => Some(why),
        };
        if let Some(why) = why {
            // The watcher may have gone.
            let _ = end.send(why.into_status());
        }
    });
    Ok(Ending::new(Vec::new(), events, ended))
}
