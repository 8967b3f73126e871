//! The card's link to the agent of its host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longship_proto::agent::v1::agent_client::AgentClient;
use longship_proto::agent::v1::{
    DeviceHandle, GetHostRequest, GetUsageRequest, HostInfo, HostUsage, ListSandboxesRequest,
    PrepareSandboxRequest, Sandbox, SandboxState, StartSandboxRequest, StopSandboxRequest,
    WatchSandboxesRequest,
};
use longship_proto::{Failure, failure_of};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

/// How long one call to the agent may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the agent may take to look at all its sandboxes.
const USAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts to reach an agent that is not there.
const RETRY: Duration = Duration::from_millis(200);

/// A client of the agent that also knows the newest state of each sandbox.
#[derive(Clone)]
pub(crate) struct AgentLink {
    client: AgentClient<Channel>,
    sandboxes: Arc<Sandboxes>,
}

#[derive(Default)]
struct Sandboxes(Mutex<HashMap<String, watch::Sender<Option<Sandbox>>>>);

impl Sandboxes {
    fn with<T>(&self, id: &str, f: impl FnOnce(&watch::Sender<Option<Sandbox>>) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(all
            .entry(id.to_owned())
            .or_insert_with(|| watch::channel(None).0))
    }

    /// Only sandboxes that somebody here waits for are of interest.
    fn put(&self, sandbox: Sandbox) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = all.get(&sandbox.id) {
            cell.send_replace(Some(sandbox));
        }
    }

    /// Those that were seen and that the agent does not know are gone: it was
    /// restarted, and nobody else will tell.
    fn keep_only(&self, known: &[Sandbox]) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, cell) in all.iter() {
            let lost = cell.borrow().is_some() && !known.iter().any(|s| s.id == *id);
            if lost {
                cell.send_replace(Some(Sandbox {
                    id: id.clone(),
                    state: SandboxState::Gone.into(),
                    ..Sandbox::default()
                }));
            }
        }
    }

    fn remove(&self, id: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

impl AgentLink {
    /// A link to `address` (`unix:/path` or `http://host:port`), which need not answer yet.
    ///
    /// # Errors
    /// `Invalid` where the address is none.
    pub(crate) fn new(address: &str) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|e| Failure::invalid("--agent", format!("`{address}` is no address: {e}")))?;
        let client = AgentClient::new(endpoint.timeout(CALL_TIMEOUT).connect_lazy());
        let sandboxes = Arc::new(Sandboxes::default());
        // The watch is one call that never ends: it has no timeout.
        let watcher = AgentClient::new(
            Endpoint::from_shared(address.to_owned())
                .map_err(|e| Failure::invalid("--agent", e.to_string()))?
                .connect_lazy(),
        );
        tokio::spawn(follow(watcher, Arc::downgrade(&sandboxes)));
        Ok(Self { client, sandboxes })
    }

    /// Asks the agent about its host, waiting up to `patience` for it to be there.
    ///
    /// # Errors
    /// The agent's last failure.
    pub(crate) async fn host(&self, patience: Duration) -> Result<HostInfo, Failure> {
        let give_up = tokio::time::Instant::now() + patience;
        loop {
            match self.client.clone().get_host(GetHostRequest {}).await {
                Ok(info) => return Ok(info.into_inner()),
                Err(status) if tokio::time::Instant::now() > give_up => {
                    return Err(failure_of(&status));
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Has the agent build a machine.
    ///
    /// # Errors
    /// The agent's failure.
    pub(crate) async fn prepare(&self, request: PrepareSandboxRequest) -> Result<Sandbox, Failure> {
        self.sandboxes.with(&request.id, |_| ());
        let answer = self.client.clone().prepare_sandbox(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|s| failure_of(&s))
    }

    /// Has the agent attach the devices and start the machine.
    ///
    /// # Errors
    /// The agent's failure.
    pub(crate) async fn start(
        &self,
        id: &str,
        generation: u64,
        devices: Vec<DeviceHandle>,
    ) -> Result<Sandbox, Failure> {
        let request = StartSandboxRequest {
            id: id.to_owned(),
            generation,
            devices,
        };
        let answer = self.client.clone().start_sandbox(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|s| failure_of(&s))
    }

    /// Has the agent end a machine; one that it does not know is fine.
    ///
    /// # Errors
    /// The agent's failure.
    pub(crate) async fn stop(&self, id: &str, generation: u64) -> Result<(), Failure> {
        let request = StopSandboxRequest {
            id: id.to_owned(),
            generation,
        };
        let answer = self.client.clone().stop_sandbox(request).await;
        answer.map_err(|s| failure_of(&s))?;
        self.sandboxes.remove(id);
        Ok(())
    }

    /// Asks the agent what its sandboxes cost the host.
    ///
    /// # Errors
    /// The agent's failure, or `Unavailable`.
    pub(crate) async fn usage(&self) -> Result<HostUsage, Failure> {
        let mut client = self.client.clone();
        let answer = client.get_usage(GetUsageRequest {});
        match tokio::time::timeout(USAGE_TIMEOUT, answer).await {
            Ok(Ok(usage)) => Ok(usage.into_inner()),
            Ok(Err(status)) => Err(failure_of(&status)),
            Err(_) => Err(Failure::unavailable("the agent does not answer")),
        }
    }

    /// Waits until the sandbox has ended, and says how.
    pub(crate) async fn exited(&self, id: &str) -> String {
        let mut state = self.sandboxes.with(id, watch::Sender::subscribe);
        let ended = |s: &Option<Sandbox>| {
            s.as_ref()
                .is_some_and(|s| matches!(s.state(), SandboxState::Exited | SandboxState::Gone))
        };
        match state.wait_for(ended).await {
            Ok(sandbox) => sandbox.as_ref().map_or_else(String::new, describe),
            // Removed: it was stopped from here.
            Err(_) => "the sandbox was stopped".to_owned(),
        }
    }
}

fn describe(sandbox: &Sandbox) -> String {
    let Some(exit) = &sandbox.exit else {
        return "the sandbox is gone".to_owned();
    };
    let last = exit
        .console_tail
        .lines()
        .rev()
        .find(|l| !l.trim().is_empty());
    match last {
        Some(line) => format!("{}; the guest's last words: {line}", exit.message),
        None => exit.message.clone(),
    }
}

/// Follows the agent's sandboxes until the link is dropped.
async fn follow(mut client: AgentClient<Channel>, sandboxes: std::sync::Weak<Sandboxes>) {
    let mut connected = true;
    while sandboxes.strong_count() > 0 {
        match client.watch_sandboxes(WatchSandboxesRequest {}).await {
            Ok(stream) => {
                info!("following the agent's sandboxes");
                connected = true;
                let mut stream = stream.into_inner();
                if let Ok(listed) = client.list_sandboxes(ListSandboxesRequest {}).await {
                    let Some(sandboxes) = sandboxes.upgrade() else {
                        return;
                    };
                    sandboxes.keep_only(&listed.into_inner().sandboxes);
                }
                while let Ok(Some(sandbox)) = stream.message().await {
                    let Some(sandboxes) = sandboxes.upgrade() else {
                        return;
                    };
                    sandboxes.put(sandbox);
                }
            }
            Err(status) if connected => {
                warn!(error = status.message(), "the agent does not answer");
                connected = false;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(id: &str) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            state: SandboxState::Running.into(),
            ..Sandbox::default()
        }
    }

    #[test]
    fn a_sandbox_that_a_restarted_agent_does_not_know_is_gone() {
        let sandboxes = Sandboxes::default();
        for id in ["a", "b", "asked for"] {
            sandboxes.with(id, |_| ());
        }
        sandboxes.put(running("a"));
        sandboxes.put(running("b"));
        sandboxes.keep_only(&[running("b")]);
        let state = |id| sandboxes.with(id, |s| s.borrow().as_ref().map(Sandbox::state));
        assert_eq!(state("a"), Some(SandboxState::Gone));
        assert_eq!(state("b"), Some(SandboxState::Running));
        assert_eq!(state("asked for"), None);
    }
}
