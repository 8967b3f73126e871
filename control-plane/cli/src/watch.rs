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
    /// Of what was seen last; what a new stream tells may be older.
    resource_version: u64,
    events: Option<Streaming<PodEvent>>,
}

impl PodWatch {
    pub(crate) fn new(server: &Server, namespace: &str, name: &str) -> Self {
        Self {
            server: server.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            resource_version: 0,
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
                Ok(Attempt::Seen(seen)) => return Ok(seen),
                Ok(Attempt::Old) => continue,
                // Begin again.
                Ok(Attempt::Ended) => {}
                Err(error) if error.is_unavailable() && Instant::now() < give_up => {}
                Err(error) => return Err(error),
            }
            self.events = None;
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn attempt(&mut self) -> Result<Attempt, CliError> {
        let Some(events) = &mut self.events else {
            // First the stream and then the pod, so that nothing is missed between.
            self.events = Some(self.server.watch(&self.namespace, &self.name).await?);
            return match self.server.get(&self.namespace, &self.name).await {
                Ok(pod) => Ok(self.look(pod)),
                Err(error) if error.is_not_found() => Ok(Attempt::Seen(Seen::Gone)),
                Err(error) => Err(error),
            };
        };
        let Some(event) = events.message().await? else {
            return Ok(Attempt::Ended);
        };
        let gone = event.r#type() == Type::Deleted;
        match event.pod {
            Some(pod) if gone && self.is_another(&pod) => Ok(Attempt::Old),
            Some(pod) if !gone => Ok(self.look(pod)),
            _ => Ok(Attempt::Seen(Seen::Gone)),
        }
    }

    fn look(&mut self, pod: Pod) -> Attempt {
        // A pod of this name that was made later is another one.
        if self.is_another(&pod) {
            return Attempt::Seen(Seen::Gone);
        }
        if let Some(metadata) = &pod.metadata {
            if metadata.resource_version < self.resource_version {
                return Attempt::Old;
            }
            self.resource_version = metadata.resource_version;
            self.uid.get_or_insert_with(|| metadata.uid.clone());
        }
        Attempt::Seen(Seen::Pod(Box::new(pod)))
    }

    fn is_another(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.as_ref().map(|metadata| &metadata.uid);
        self.uid.is_some() && self.uid.as_ref() != uid
    }
}

/// What one look at the stream gave.
enum Attempt {
    Seen(Seen),
    /// Less than is known already.
    Old,
    /// The stream is over.
    Ended,
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
