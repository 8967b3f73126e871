//! A watcher that notes when it saw each pod.

use std::collections::{HashMap, HashSet};

use anyhow::Context;
use longship_proto::control::v1::{Phase, Pod, PodEvent, WatchPodsRequest, pod_event};
use longship_proto::{failure_of, now_us};
use tonic::Streaming;

use crate::client::Client;

/// A watch on all pods.
pub(crate) struct Follower {
    events: Streaming<PodEvent>,
    /// Events so far.
    pub(crate) seen: usize,
}

/// A pod as it was when it was seen running, and when that was.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) pod: Pod,
    pub(crate) at_us: i64,
}

impl Follower {
    /// Follows what changes from now on.
    pub(crate) async fn new(client: &Client) -> anyhow::Result<Self> {
        let listing = client.list(1, String::new()).await?;
        let request = WatchPodsRequest {
            resource_version: listing.resource_version,
            ..WatchPodsRequest::default()
        };
        Ok(Self {
            events: client.watch(request).await?,
            seen: 0,
        })
    }

    async fn next(&mut self) -> anyhow::Result<PodEvent> {
        let event = self.events.message().await;
        let event = event
            .map_err(|status| failure_of(&status))
            .context("watch")?;
        self.seen += 1;
        event.context("the watch has ended")
    }

    /// Waits until so many pods run that were not seen running before, by name.
    pub(crate) async fn running(&mut self, count: usize) -> anyhow::Result<HashMap<String, Seen>> {
        let mut running = HashMap::with_capacity(count);
        while running.len() < count {
            let event = self.next().await?;
            let Some(pod) = event.pod else {
                continue;
            };
            let phase = pod.status.as_ref().map(|status| status.phase());
            if phase == Some(Phase::Running) {
                let at_us = now_us();
                let name = name(&pod);
                running.entry(name).or_insert(Seen { pod, at_us });
            }
        }
        Ok(running)
    }

    /// Waits until so many pods have gone.
    pub(crate) async fn gone(&mut self, count: usize) -> anyhow::Result<()> {
        let mut gone = HashSet::with_capacity(count);
        while gone.len() < count {
            let event = self.next().await?;
            if event.r#type() == pod_event::Type::Deleted
                && let Some(pod) = event.pod
            {
                gone.insert(name(&pod));
            }
        }
        Ok(())
    }
}

fn name(pod: &Pod) -> String {
    pod.metadata
        .as_ref()
        .map_or_else(String::new, |meta| meta.name.clone())
}
