//! Following the changes of some objects.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use redb::{Database, ReadableDatabase};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::error::StoreError;
use crate::etcd::History;
use crate::object::{Event, Object};
use crate::writer::{LOG, META, decode_change, meta, number};

/// Where reading the log pauses: after so many events looked at, or so many bytes
/// kept (and the rest of the transaction).
const CHUNK_EVENTS: usize = 1024;
const CHUNK_BYTES: usize = 1 << 20;

/// What one transaction changed.
#[derive(Debug)]
pub(crate) struct Committed {
    /// Of the transaction before this one.
    pub(crate) previous: u64,
    pub(crate) version: u64,
    pub(crate) events: Vec<Event>,
}

/// Where what has happened is read. Weak, so that a watch that nobody reads does not
/// keep the store open.
#[derive(Debug)]
pub(crate) enum Past {
    /// In the embedded store's file.
    File(Weak<Database>),
    /// In memory.
    Memory(Weak<History>),
}

/// The changes of some objects, in order, none left out. It holds a bounded number
/// of events however slowly it is read: what it has not taken yet stays in the log,
/// and where the log has gone on without it, it ends with [`StoreError::TooOld`].
#[derive(Debug)]
pub struct Watch {
    past: Past,
    live: broadcast::Receiver<Arc<Committed>>,
    kind: String,
    prefix: String,
    /// Everything up to this version has been taken from the log or the live events.
    after: u64,
    /// The log has more, so the live events have to wait.
    behind: bool,
    ready: VecDeque<Vec<Event>>,
}

impl Watch {
    pub(crate) fn open(
        db: &Arc<Database>,
        live: broadcast::Receiver<Arc<Committed>>,
        kind: &str,
        prefix: &str,
        after: u64,
    ) -> Result<Self, StoreError> {
        let read = db.begin_read().map_err(StoreError::backend)?;
        let table = read.open_table(META).map_err(StoreError::backend)?;
        let newest = number(&table, meta::VERSION)?;
        let oldest = number(&table, meta::OLDEST)?;
        if after < oldest {
            return Err(StoreError::TooOld {
                asked: after,
                oldest,
            });
        }
        if after > newest {
            return Err(StoreError::FromTheFuture {
                asked: after,
                newest,
            });
        }
        let past = Past::File(Arc::downgrade(db));
        Ok(Self::new(past, live, kind, prefix, after, after < newest))
    }

    /// A watch from a version that the past has.
    pub(crate) fn new(
        past: Past,
        live: broadcast::Receiver<Arc<Committed>>,
        kind: &str,
        prefix: &str,
        after: u64,
        behind: bool,
    ) -> Self {
        Self {
            past,
            live,
            kind: kind.to_owned(),
            prefix: prefix.to_owned(),
            after,
            behind,
            ready: VecDeque::new(),
        }
    }

    /// The next transaction's changes of the watched objects, at least one. May be
    /// dropped while it waits; nothing is lost.
    ///
    /// # Errors
    /// [`StoreError::TooOld`] where this watch was read too slowly,
    /// [`StoreError::Closed`] when the store closes, [`StoreError::Backend`].
    pub async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        loop {
            if let Some(events) = self.ready.pop_front() {
                return Ok(events);
            }
            if self.behind {
                match &self.past {
                    Past::File(db) => {
                        let db = db.upgrade().ok_or(StoreError::Closed)?;
                        self.read_log(&db)?;
                    }
                    Past::Memory(history) => {
                        let history = history.upgrade().ok_or(StoreError::Closed)?;
                        self.read_history(&history)?;
                    }
                }
                // Many watches may catch up at once; others get their turn.
                tokio::task::yield_now().await;
                continue;
            }
            match self.live.recv().await {
                Ok(committed) if committed.version <= self.after => {}
                Ok(committed) if committed.previous <= self.after => {
                    self.after = committed.version;
                    let wanted = wanted(&self.kind, &self.prefix, &committed);
                    if !wanted.is_empty() {
                        return Ok(wanted);
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return Err(StoreError::Closed),
            }
        }
    }

    fn read_history(&mut self, history: &History) -> Result<(), StoreError> {
        let (mut looked_at, mut kept) = (0, 0);
        let (kind, prefix) = (&self.kind, &self.prefix);
        let (after, ready) = (&mut self.after, &mut self.ready);
        self.behind = history.read(*after, |committed| {
            if looked_at >= CHUNK_EVENTS || kept >= CHUNK_BYTES {
                return false;
            }
            looked_at += committed.events.len();
            let wanted = wanted(kind, prefix, committed);
            kept += wanted.iter().map(|e| e.object.value.len()).sum::<usize>();
            ready.extend(some(wanted));
            *after = committed.version;
            true
        })?;
        Ok(())
    }

    fn read_log(&mut self, db: &Database) -> Result<(), StoreError> {
        let read = db.begin_read().map_err(StoreError::backend)?;
        let table = read.open_table(META).map_err(StoreError::backend)?;
        let newest = number(&table, meta::VERSION)?;
        let oldest = number(&table, meta::OLDEST)?;
        if self.after < oldest {
            return Err(StoreError::TooOld {
                asked: self.after,
                oldest,
            });
        }
        let log = read.open_table(LOG).map_err(StoreError::backend)?;
        let (mut looked_at, mut kept) = (0, 0);
        let mut current = Vec::new();
        let mut reached = self.after;
        for entry in log
            .range((self.after + 1, 0)..)
            .map_err(StoreError::backend)?
        {
            let (place, logged) = entry.map_err(StoreError::backend)?;
            let (version, _) = place.value();
            if version != reached {
                self.ready.extend(some(std::mem::take(&mut current)));
                if looked_at >= CHUNK_EVENTS || kept >= CHUNK_BYTES {
                    self.after = reached;
                    return Ok(());
                }
                reached = version;
            }
            looked_at += 1;
            let (change, kind, key, value) = logged.value();
            if kind == self.kind && key.starts_with(&self.prefix) {
                kept += value.len();
                current.push(Event {
                    change: decode_change(change)?,
                    object: Object {
                        kind: kind.to_owned(),
                        key: key.to_owned(),
                        value: value.to_vec(),
                        version,
                    },
                });
            }
        }
        self.ready.extend(some(current));
        self.after = newest;
        self.behind = false;
        Ok(())
    }
}

/// What of a transaction is watched.
fn wanted(kind: &str, prefix: &str, committed: &Committed) -> Vec<Event> {
    let events = committed.events.iter();
    let wanted =
        events.filter(|event| event.object.kind == kind && event.object.key.starts_with(prefix));
    wanted.cloned().collect()
}

fn some(events: Vec<Event>) -> Option<Vec<Event>> {
    (!events.is_empty()).then_some(events)
}
