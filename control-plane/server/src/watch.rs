//! Following pods: from the store's log to a client's stream.

use std::time::Duration;

use longship_proto::control::v1::{Phase, PodEvent, WatchPodsRequest, pod_event};
use longship_proto::{Failure, FailureExt};
use longship_store::{Change, Event, StoreError, Watch};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::api::{Control, Ending, bad_record, store_failed};
use crate::auth::Scope;
use crate::pods::{key, namespace_of};
use crate::records::{self, RecordError, decode_pod};
use crate::validate;

/// Events on their way to one watcher; all others stay in the store's log.
const QUEUE: usize = 16;

/// Where the keys of a namespace's pods begin; empty: of all.
pub(crate) fn prefix(scope: &Scope, namespace: &str) -> Result<String, Status> {
    if namespace.is_empty() {
        return Ok(String::new());
    }
    validate::dns_label("namespace", namespace).map_err(Failure::into_status)?;
    let visible = scope.check_namespace("namespace", namespace);
    visible.map_err(Failure::into_status)?;
    Ok(format!("{namespace}/"))
}

/// Begins to follow what the request names.
pub(crate) async fn open(
    control: &Control,
    scope: Scope,
    request: WatchPodsRequest,
) -> Result<Ending<PodEvent>, Status> {
    let only = if request.name.is_empty() {
        None
    } else {
        if request.namespace.is_empty() {
            let alone = "must be given with a name";
            return Err(Failure::invalid("namespace", alone).into_status());
        }
        validate::dns_label("name", &request.name).map_err(Failure::into_status)?;
        Some(key(&request.namespace, &request.name))
    };
    let namespace = prefix(&scope, &request.namespace)?;
    let prefix = only.clone().unwrap_or(namespace);
    let wanted = |found: &str| {
        only.as_ref().is_none_or(|only| only == found) && scope.sees(namespace_of(found))
    };

    let mut first = Vec::new();
    let mut after = request.resource_version;
    if after == 0 {
        let listing = control.store.list(records::POD, &prefix).await;
        let listing = listing.map_err(store_failed)?;
        after = listing.version;
        for object in listing.objects.iter().filter(|o| wanted(&o.key)) {
            first.push(PodEvent {
                r#type: pod_event::Type::Added.into(),
                resource_version: object.version,
                pod: Some(decode_pod(object).map_err(bad_record)?),
            });
        }
    }
    let watch = control.store.watch(records::POD, &prefix, after).await;
    let watch = watch.map_err(store_failed)?;

    let (queue, events) = mpsc::channel(QUEUE);
    let (end, ended) = oneshot::channel();
    let follower = Follower {
        watch,
        only,
        scope: scope.clone(),
        queue,
        patience: control.watcher_patience,
    };
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
    Ok(Ending::new(first, events, ended))
}

struct Follower {
    watch: Watch,
    only: Option<String>,
    scope: Scope,
    queue: mpsc::Sender<PodEvent>,
    patience: Duration,
}

impl Follower {
    /// Passes events on until the watcher is gone (`None`) or cannot be served.
    async fn follow(mut self) -> Option<Failure> {
        loop {
            let events = tokio::select! {
                events = self.watch.next() => events,
                () = self.queue.closed() => return None,
            };
            let events = match events {
                Ok(events) => events,
                Err(StoreError::TooOld { .. }) => return Some(too_slow()),
                Err(error) => return Some(error.into()),
            };
            for event in events {
                if self
                    .only
                    .as_ref()
                    .is_some_and(|only| *only != event.object.key)
                    || !self.scope.sees(namespace_of(&event.object.key))
                {
                    continue;
                }
                let event = match pod_event(&event) {
                    Ok(event) => event,
                    Err(error) => return Some(Failure::internal(error.to_string())),
                };
                match self.queue.send_timeout(event, self.patience).await {
                    Ok(()) => {}
                    Err(mpsc::error::SendTimeoutError::Closed(_)) => return None,
                    Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Some(too_slow()),
                }
            }
        }
    }
}

fn too_slow() -> Failure {
    Failure::exhausted("the watch was read too slowly and has missed changes: list and watch again")
}

fn pod_event(event: &Event) -> Result<PodEvent, RecordError> {
    let mut pod = decode_pod(&event.object)?;
    let kind = match event.change {
        Change::Created => pod_event::Type::Added,
        Change::Updated => pod_event::Type::Modified,
        Change::Deleted => {
            pod.status
                .get_or_insert_default()
                .set_phase(Phase::Released);
            pod_event::Type::Deleted
        }
    };
    Ok(PodEvent {
        r#type: kind.into(),
        resource_version: event.object.version,
        pod: Some(pod),
    })
}
