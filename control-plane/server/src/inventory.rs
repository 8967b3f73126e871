//! Hosts, and the streams to their cards.

use std::collections::BTreeMap;

use longship_proto::control::v1::{Host, HostCapacity, HostState, ToCard, to_card};
use longship_scheduler::{Capacity, Scheduler};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// A card's stream.
#[derive(Debug)]
pub(crate) struct Session {
    /// Never used again; what comes with an older one is from a former stream.
    pub(crate) id: u64,
    /// Messages for the card; bounded.
    pub(crate) to_card: mpsc::Sender<ToCard>,
    /// Ends the stream.
    pub(crate) end: oneshot::Sender<Status>,
}

#[derive(Debug, Default)]
struct HostEntry {
    endpoint: String,
    session: Option<Session>,
}

/// What is known of hosts beside their capacity, which is the scheduler's.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    hosts: BTreeMap<String, HostEntry>,
}

impl Inventory {
    /// Adds a host, or changes its address.
    pub(crate) fn set(&mut self, host: &str, endpoint: &str) {
        endpoint.clone_into(&mut self.hosts.entry(host.to_owned()).or_default().endpoint);
    }

    /// Where the host's card is reached.
    pub(crate) fn endpoint(&self, host: &str) -> Option<&str> {
        self.hosts.get(host).map(|host| host.endpoint.as_str())
    }

    /// Whether that is the host's stream now.
    pub(crate) fn is_current(&self, host: &str, session: u64) -> bool {
        let current = self.hosts.get(host).and_then(|host| host.session.as_ref());
        current.is_some_and(|current| current.id == session)
    }

    /// Gives the host a stream; the former one, if it had one.
    pub(crate) fn open(&mut self, host: &str, session: Session) -> Option<Session> {
        self.hosts.get_mut(host)?.session.replace(session)
    }

    /// Takes the host's stream away.
    pub(crate) fn close(&mut self, host: &str) -> Option<Session> {
        self.hosts.get_mut(host)?.session.take()
    }

    /// Sends to the host's card, if it has a stream. False where the card does not
    /// keep up: its stream must end, and it begins again with everything.
    pub(crate) fn send(&self, host: &str, message: to_card::Message) -> bool {
        let session = self.hosts.get(host).and_then(|host| host.session.as_ref());
        let message = ToCard {
            message: Some(message),
        };
        match session.map(|session| session.to_card.try_send(message)) {
            Some(Err(mpsc::error::TrySendError::Full(_))) => false,
            // A closed one is on its way out by itself.
            Some(Ok(()) | Err(mpsc::error::TrySendError::Closed(_))) | None => true,
        }
    }

    /// All hosts, by name.
    pub(crate) fn list(&self, scheduler: &Scheduler) -> Vec<Host> {
        let mut hosts: Vec<Host> = scheduler
            .hosts()
            .map(|view| Host {
                card_endpoint: self
                    .endpoint(&view.spec.name)
                    .unwrap_or_default()
                    .to_owned(),
                name: view.spec.name,
                zone: view.spec.zone,
                capacity: Some(capacity(view.spec.capacity)),
                free: Some(capacity(view.free)),
                pods: view.pods,
                state: match view.ready {
                    true => HostState::Ready,
                    false => HostState::Unknown,
                }
                .into(),
                ..Host::default()
            })
            .collect();
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        hosts
    }
}

fn capacity(capacity: Capacity) -> HostCapacity {
    HostCapacity {
        cpu_millis: capacity.cpu_millis,
        memory_bytes: capacity.memory_bytes,
        pods: capacity.pods,
        ..HostCapacity::default()
    }
}
