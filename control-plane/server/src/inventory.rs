//! Hosts, and the streams to their cards.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use tonic::Status;

use crate::outbox::Outbox;
use crate::records::HostRecord;

/// A card's stream.
#[derive(Debug)]
pub(crate) struct Session {
    /// Never used again; what comes with an older one is from a former stream.
    pub(crate) id: u64,
    /// What the card is told.
    pub(crate) outbox: Arc<Outbox>,
}

#[derive(Debug)]
struct HostEntry {
    record: HostRecord,
    session: Option<Session>,
}

/// What is known of hosts beside what they have promised, which is the scheduler's.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    hosts: BTreeMap<String, HostEntry>,
}

impl Inventory {
    /// Adds a host, or changes what is known of it.
    pub(crate) fn set(&mut self, host: &str, record: HostRecord) {
        match self.hosts.get_mut(host) {
            Some(entry) => entry.record = record,
            None => {
                let session = None;
                self.hosts
                    .insert(host.to_owned(), HostEntry { record, session });
            }
        }
    }

    /// Forgets a host.
    pub(crate) fn remove(&mut self, host: &str) {
        self.hosts.remove(host);
    }

    /// What is known of the host.
    pub(crate) fn record(&self, host: &str) -> Option<&HostRecord> {
        self.hosts.get(host).map(|host| &host.record)
    }

    /// Where the host's card is reached.
    pub(crate) fn endpoint(&self, host: &str) -> Option<&str> {
        self.record(host).map(|record| record.endpoint.as_str())
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

    /// Takes the host's stream away, and ends it with a reason, if it has one.
    pub(crate) fn close(&mut self, host: &str, why: Option<Status>) {
        let session = self
            .hosts
            .get_mut(host)
            .and_then(|host| host.session.take());
        let Some(session) = session else {
            return;
        };
        match why {
            Some(why) => session.outbox.end(why),
            None => session.outbox.close(),
        }
    }

    /// What the host's card is told, if it has a stream.
    pub(crate) fn outbox(&self, host: &str) -> Option<&Outbox> {
        let session = self.hosts.get(host)?.session.as_ref()?;
        Some(&session.outbox)
    }

    /// The hosts after that name, in the order of their names.
    pub(crate) fn after(&self, name: &str) -> impl Iterator<Item = (&str, &HostRecord)> {
        let from = (Bound::Excluded(name), Bound::Unbounded);
        let hosts = self.hosts.range::<str, _>(from);
        hosts.map(|(name, entry)| (name.as_str(), &entry.record))
    }

    /// How many hosts there are.
    pub(crate) fn count(&self) -> usize {
        self.hosts.len()
    }
}
