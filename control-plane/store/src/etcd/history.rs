//! What has changed of late, in memory, for all watchers of this process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::error::StoreError;
use crate::object::Event;
use crate::redb_store::{LIVE, RedbOptions};
use crate::watch::{Committed, Past, Watch};

/// A bounded log of transactions.
#[derive(Debug)]
pub(crate) struct History {
    options: RedbOptions,
    log: Mutex<Log>,
    live: broadcast::Sender<Arc<Committed>>,
}

#[derive(Debug)]
struct Log {
    entries: VecDeque<Arc<Committed>>,
    /// Values in the entries.
    bytes: u64,
    /// The entries are all after this version.
    oldest: u64,
    /// Everything up to here has been heard of.
    reached: u64,
}

impl History {
    /// Of what comes after `oldest`.
    pub(crate) fn new(options: RedbOptions, oldest: u64) -> Self {
        let lag = usize::try_from(options.log_transactions).unwrap_or(LIVE);
        let (live, _) = broadcast::channel(lag.clamp(1, LIVE));
        let log = Log {
            entries: VecDeque::new(),
            bytes: 0,
            oldest,
            reached: oldest,
        };
        Self {
            options,
            log: Mutex::new(log),
            live,
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to this version has been heard of.
    pub(crate) fn reached(&self) -> u64 {
        self.log().reached
    }

    /// The entries are all after this version.
    pub(crate) fn oldest(&self) -> u64 {
        self.log().oldest
    }

    /// Takes a version's events; none where it changed no object.
    pub(crate) fn append(&self, version: u64, events: Vec<Event>) {
        let mut log = self.log();
        if version <= log.reached {
            return;
        }
        log.reached = version;
        if events.is_empty() {
            return;
        }
        let previous = log.entries.back().map_or(log.oldest, |last| last.version);
        let committed = Arc::new(Committed {
            previous,
            version,
            events,
        });
        log.bytes = log.bytes.saturating_add(bytes(&committed));
        log.entries.push_back(Arc::clone(&committed));
        let most = usize::try_from(self.options.log_transactions).unwrap_or(usize::MAX);
        while log.entries.len() > most || log.bytes > self.options.log_bytes {
            let Some(first) = log.entries.pop_front() else {
                break;
            };
            log.bytes = log.bytes.saturating_sub(bytes(&first));
            log.oldest = first.version;
        }
        // Under the lock, so that watchers hear of versions in their order. Nobody may
        // be watching.
        let _ = self.live.send(committed);
    }

    /// What happened up to `version` cannot be heard of any more: watchers that have
    /// not come that far must list again.
    pub(crate) fn forget(&self, version: u64) {
        let mut log = self.log();
        log.entries.clear();
        log.bytes = 0;
        log.oldest = log.oldest.max(version);
        log.reached = log.reached.max(version);
    }

    /// Begins a watch; and whether `after` is known to exist.
    pub(crate) fn watch(
        self: &Arc<Self>,
        kind: &str,
        prefix: &str,
        after: u64,
    ) -> Result<(Watch, bool), StoreError> {
        let live = self.live.subscribe();
        let log = self.log();
        if after < log.oldest {
            return Err(StoreError::TooOld {
                asked: after,
                oldest: log.oldest,
            });
        }
        let settled = !log.entries.is_empty() && after <= log.reached;
        let past = Past::Memory(Arc::downgrade(self));
        Ok((Watch::new(past, live, kind, prefix, after, true), settled))
    }

    /// The next entries after a version, at least one, for as long as `take` wants
    /// more; whether there are others behind them.
    ///
    /// # Errors
    /// [`StoreError::TooOld`] where they are forgotten.
    pub(crate) fn read(
        &self,
        after: u64,
        mut take: impl FnMut(&Committed) -> bool,
    ) -> Result<bool, StoreError> {
        let log = self.log();
        if after < log.oldest {
            return Err(StoreError::TooOld {
                asked: after,
                oldest: log.oldest,
            });
        }
        let from = log.entries.partition_point(|entry| entry.version <= after);
        for entry in log.entries.range(from..) {
            if !take(entry) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn bytes(committed: &Committed) -> u64 {
    let bytes: usize = committed.events.iter().map(|e| e.object.value.len()).sum();
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
