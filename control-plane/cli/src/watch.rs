//! Follows one pod through all its changes, over restarts of the control plane.

use std::time::Duration;

use longship_proto::control::v1::pod_event::Type;
use longship_proto::control::v1::{Phase, Pod, PodEvent};
use tokio::time::Instant;
use tonic::Streaming;

use crate::error::CliError;
use crate::server::Server;

/// Between attempts to reach a control plane that is not there.
const RETRY: Duration = Duration::from_millis(200);
/// For the control plane to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of the pod now.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It is there, like this.
    Pod(Box<Pod>),
    /// It is there no more.
    Gone,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct PodWatch {
    server: Server,
    namespace: String,
    name: String,
    uid: Option<String>,
    events: Option<Streaming<PodEvent>>,
}

impl PodWatch {
    pub(crate) fn new(server: &Server, namespace: &str, name: &str) -> Self {
        Self {
            server: server.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            events: None,
        }
    }

    /// Follows `pod` and no later one of its name.
    pub(crate) fn of(server: &Server, pod: &Pod) -> Self {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let mut watch = Self::new(server, &metadata.namespace, &metadata.name);
        watch.uid = Some(metadata.uid);
        watch
    }

    /// What is there at first, then every change.
    ///
    /// # Errors
    /// Where the control plane refuses, or stays away for a minute.
    pub(crate) async fn next(&mut self) -> Result<Seen, CliError> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.attempt().await {
                Ok(Some(seen)) => return Ok(seen),
                // The stream ended: begin again.
                Ok(None) => {}
                Err(error) if error.is_unavailable() && Instant::now() < give_up => {}
                Err(error) => return Err(error),
            }
            self.events = None;
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn attempt(&mut self) -> Result<Option<Seen>, CliError> {
        let Some(events) = &mut self.events else {
            // First the stream and then the pod, so that nothing is missed between.
            self.events = Some(self.server.watch(&self.namespace, &self.name).await?);
            return match self.server.get(&self.namespace, &self.name).await {
                Ok(pod) => Ok(Some(self.same(pod))),
                Err(error) if error.is_not_found() => Ok(Some(Seen::Gone)),
                Err(error) => Err(error),
            };
        };
        let Some(event) = events.message().await? else {
            return Ok(None);
        };
        let gone = event.r#type() == Type::Deleted;
        match event.pod {
            Some(pod) if !gone => Ok(Some(self.same(pod))),
            _ => Ok(Some(Seen::Gone)),
        }
    }

    /// A pod of this name that was made later is another one.
    fn same(&mut self, pod: Pod) -> Seen {
        let uid = pod.metadata.as_ref().map(|metadata| metadata.uid.clone());
        if self.uid.is_none() {
            self.uid = uid.clone();
        }
        if self.uid == uid {
            Seen::Pod(Box::new(pod))
        } else {
            Seen::Gone
        }
    }
}

/// The pod's phase.
pub(crate) fn phase_of(pod: &Pod) -> Phase {
    pod.status
        .as_ref()
        .map_or(Phase::Unspecified, |status| status.phase())
}

/// Whether its containers have ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(
        phase_of(pod),
        Phase::Succeeded | Phase::Failed | Phase::Stopping | Phase::Released
    )
}
