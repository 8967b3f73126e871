//! Following the changes of some objects.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use redb::{Database, ReadableDatabase};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::error::StoreError;
use crate::object::{Event, Object};
use crate::writer::{LOG, META, decode_change, meta, number};

/// Where reading the log pauses: after so many events looked at, or so many bytes
/// kept (and the rest of the transaction).
const CHUNK_EVENTS: usize = 1024;
const CHUNK_BYTES: usize = 1 << 20;

/// What one transaction changed.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) version: u64,
    pub(crate) events: Vec<Event>,
}

/// The changes of some objects, in order, none left out. It holds a bounded number
/// of events however slowly it is read: what it has not taken yet stays in the log,
/// and where the log has gone on without it, it ends with [`StoreError::TooOld`].
#[derive(Debug)]
pub struct Watch {
    // Weak, so that a watch that nobody reads does not keep the file open.
    db: Weak<Database>,
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
        Ok(Self {
            db: Arc::downgrade(db),
            live,
            kind: kind.to_owned(),
            prefix: prefix.to_owned(),
            after,
            behind: after < newest,
            ready: VecDeque::new(),
        })
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
                self.read_log()?;
                // Many watches may catch up at once; others get their turn.
                tokio::task::yield_now().await;
                continue;
            }
            match self.live.recv().await {
                Ok(committed) if committed.version <= self.after => {}
                Ok(committed) if committed.version == self.after + 1 => {
                    self.after = committed.version;
                    let wanted = committed.events.iter().filter(|event| self.wants(event));
                    let wanted: Vec<Event> = wanted.cloned().collect();
                    if !wanted.is_empty() {
                        return Ok(wanted);
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return Err(StoreError::Closed),
            }
        }
    }

    fn wants(&self, event: &Event) -> bool {
        event.object.kind == self.kind && event.object.key.starts_with(&self.prefix)
    }

    fn read_log(&mut self) -> Result<(), StoreError> {
        let db = self.db.upgrade().ok_or(StoreError::Closed)?;
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

fn some(events: Vec<Event>) -> Option<Vec<Event>> {
    (!events.is_empty()).then_some(events)
}
