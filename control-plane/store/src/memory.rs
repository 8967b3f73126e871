//! A store that is only memory, for simulations: it has no thread and no clock of its
//! own, so that the same calls at the same times have the same outcome.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::Store;
use crate::error::StoreError;
use crate::etcd::History;
use crate::object::{Change, Event, Expect, Listing, MAX_PAGE, Object, Op, Page, Transaction};
use crate::redb_store::RedbOptions;
use crate::watch::Watch;

/// What outlives the processes that use it, as a disk does.
#[derive(Debug)]
struct Shared {
    contents: Mutex<Contents>,
    history: Arc<History>,
}

#[derive(Debug, Default)]
struct Contents {
    objects: BTreeMap<(String, String), (u64, Vec<u8>)>,
    version: u64,
    term: u64,
}

/// One process's access to a store in memory.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    /// A write takes twice that: until it is durable, and until that is known.
    delay: Duration,
    term: u64,
}

impl MemoryStore {
    /// An empty store. A write takes twice `delay`: until it is durable, and until its
    /// writer knows; whoever ends in between does not know.
    #[must_use]
    pub fn new(options: RedbOptions, delay: Duration) -> Self {
        let shared = Shared {
            contents: Mutex::default(),
            history: Arc::new(History::new(options, 0)),
        };
        Self {
            shared: Arc::new(shared),
            delay,
            term: 0,
        }
    }

    /// The same store for another process, which alone may write from now on.
    #[must_use]
    pub fn lead(&self) -> Self {
        let mut contents = self.contents();
        contents.term += 1;
        Self {
            shared: Arc::clone(&self.shared),
            delay: self.delay,
            term: contents.term,
        }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        let contents = &self.shared.contents;
        contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, transactions: Vec<Transaction>) -> Vec<Result<u64, StoreError>> {
        let mut contents = self.contents();
        let count = transactions.len();
        if contents.term != self.term {
            return vec![Err(StoreError::Closed); count];
        }
        let results = transactions.into_iter().map(|transaction| {
            transaction.check()?;
            let events = contents.apply(transaction)?;
            if !events.is_empty() {
                self.shared.history.append(contents.version, events);
            }
            Ok(contents.version)
        });
        results.collect()
    }
}

impl Contents {
    fn apply(&mut self, transaction: Transaction) -> Result<Vec<Event>, StoreError> {
        for op in &transaction.ops {
            let (kind, key) = op.place();
            let found = self.objects.get(&(kind.to_owned(), key.to_owned()));
            let found = found.map(|(version, _)| *version);
            let holds = match op.expect() {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::Version(wanted) => found == Some(wanted),
            };
            if !holds {
                return Err(StoreError::Conflict {
                    kind: kind.to_owned(),
                    key: key.to_owned(),
                    found: found.map_or_else(
                        || "it does not exist".to_owned(),
                        |version| format!("it exists in version {version}"),
                    ),
                });
            }
        }
        let version = self.version + 1;
        let mut events = Vec::with_capacity(transaction.ops.len());
        for op in transaction.ops {
            events.extend(self.change(op, version));
        }
        if !events.is_empty() {
            self.version = version;
        }
        Ok(events)
    }

    fn change(&mut self, op: Op, version: u64) -> Option<Event> {
        let (change, kind, key, value) = match op {
            Op::Put {
                kind, key, value, ..
            } => {
                let place = (kind.clone(), key.clone());
                let before = self.objects.insert(place, (version, value.clone()));
                let change = before.map_or(Change::Created, |_| Change::Updated);
                (change, kind, key, value)
            }
            Op::Delete { kind, key, .. } => {
                let (_, value) = self.objects.remove(&(kind.clone(), key.clone()))?;
                (Change::Deleted, kind, key, value)
            }
        };
        Some(Event {
            change,
            object: Object {
                kind,
                key,
                value,
                version,
            },
        })
    }

    /// Objects of a kind from a place on, with what their keys begin with.
    fn range<'a>(
        &'a self,
        kind: &'a str,
        prefix: &'a str,
        from: Bound<(String, String)>,
    ) -> impl Iterator<Item = Object> + 'a {
        let range = self.objects.range((from, Bound::Unbounded));
        let of_kind =
            range.take_while(move |((found, key), _)| found == kind && key.starts_with(prefix));
        of_kind.map(|((kind, key), (version, value))| Object {
            kind: kind.clone(),
            key: key.clone(),
            value: value.clone(),
            version: *version,
        })
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Object>, StoreError> {
        let contents = self.contents();
        let found = contents.objects.get(&(kind.to_owned(), key.to_owned()));
        Ok(found.map(|(version, value)| Object {
            kind: kind.to_owned(),
            key: key.to_owned(),
            value: value.clone(),
            version: *version,
        }))
    }

    async fn list(&self, kind: &str, prefix: &str) -> Result<Listing, StoreError> {
        let contents = self.contents();
        let from = Bound::Included((kind.to_owned(), prefix.to_owned()));
        Ok(Listing {
            objects: contents.range(kind, prefix, from).collect(),
            version: contents.version,
        })
    }

    async fn list_page(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let contents = self.contents();
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded((kind.to_owned(), after.to_owned())),
            _ => Bound::Included((kind.to_owned(), prefix.to_owned())),
        };
        let mut found = contents.range(kind, prefix, from);
        let objects: Vec<Object> = found.by_ref().take(limit).collect();
        let more = found.next().is_some();
        Ok(Page {
            objects,
            version: contents.version,
            more,
        })
    }

    async fn commit_all(&self, transactions: Vec<Transaction>) -> Vec<Result<u64, StoreError>> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let results = self.apply(transactions);
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        results
    }

    async fn watch(&self, kind: &str, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        let newest = self.contents().version;
        if after > newest {
            return Err(StoreError::FromTheFuture {
                asked: after,
                newest,
            });
        }
        let (watch, _) = self.shared.history.watch(kind, prefix, after)?;
        Ok(watch)
    }
}
