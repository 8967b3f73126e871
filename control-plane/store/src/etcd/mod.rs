//! The store of several replicas, in etcd.
//!
//! Versions are etcd's revisions. One etcd transaction carries as many of ours as it
//! can (see `writer`), under the condition that this process still leads (see
//! `election`): a former leader cannot write. What changes is heard on one watch a
//! process and kept in memory for all watchers (see `feed` and `history`).

mod connection;
mod election;
mod feed;
mod history;
mod keys;
mod read;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::Store;
use crate::error::StoreError;
use crate::object::{Listing, Object, Page, Transaction};
use crate::redb_store::RedbOptions;
use crate::watch::Watch;
use crate::writer::Job;
use connection::Connection;
use election::Term;
use keys::Keys;

pub use election::{Leadership, Leading};
pub(crate) use history::History;

/// etcd's messages and services.
#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::all,
    clippy::pedantic
)]
mod api {
    tonic::include_proto!("etcdserverpb");
}

/// Jobs that may wait for the writer before callers have to.
const QUEUE: usize = 1024;

/// How the store in etcd is reached and kept.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// Where etcd's members serve clients: `http://HOST:PORT`. They are tried in turn.
    pub endpoints: Vec<String>,
    /// What all keys begin with, so that others may use the same etcd.
    pub prefix: String,
    /// How much history is kept for watchers: in memory, and in etcd (compaction).
    pub history: RedbOptions,
    /// How often the leader has etcd forget what is older.
    pub compact_every: Duration,
}

impl EtcdOptions {
    /// The usual settings.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: "/longship/".into(),
            history: RedbOptions::default(),
            compact_every: Duration::from_secs(30),
        }
    }
}

/// The store in etcd. Anybody may read; only who leads may write
/// ([`EtcdStore::lead`]).
#[derive(Debug)]
pub struct EtcdStore {
    shared: Arc<Shared>,
    history: Arc<History>,
    leader: watch::Receiver<Option<String>>,
    queue: mpsc::Sender<Job>,
    tasks: [JoinHandle<()>; 2],
}

/// What the store's parts have in common.
#[derive(Debug)]
struct Shared {
    connection: Connection,
    keys: Keys,
    /// The term in which this process leads.
    term: Mutex<Option<Arc<Term>>>,
}

impl Shared {
    fn term(&self) -> Option<Arc<Term>> {
        let term = self.term.lock().unwrap_or_else(PoisonError::into_inner);
        term.clone().filter(|term| term.holds())
    }

    fn set_term(&self, term: Option<Arc<Term>>) {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = term;
    }
}

impl EtcdStore {
    /// Connects, and begins to follow what changes.
    ///
    /// # Errors
    /// [`StoreError::Backend`] where no member answers in time, or an endpoint is no
    /// address.
    pub async fn connect(options: EtcdOptions) -> Result<Self, StoreError> {
        let connection = Connection::new(&options.endpoints)?;
        let keys = Keys::new(&options.prefix);
        let shared = Arc::new(Shared {
            connection,
            keys,
            term: Mutex::new(None),
        });
        let newest = read::newest(&shared).await?;
        let kept = options.history.log_transactions.saturating_mul(2);
        let oldest = newest.saturating_sub(kept.saturating_add(1000));
        let history = Arc::new(History::new(options.history, oldest));
        let (tell_leader, leader) = watch::channel(None);
        let feed = feed::Feed {
            shared: Arc::clone(&shared),
            history: Arc::clone(&history),
            leader: tell_leader,
        };
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer = writer::Writer {
            shared: Arc::clone(&shared),
            leader: leader.clone(),
        };
        let compacting = election::compact(
            Arc::clone(&shared),
            Arc::clone(&history),
            options.compact_every,
        );
        let following = tokio::spawn(async move {
            tokio::join!(feed.run(), compacting);
        });
        let writing = tokio::spawn(writer.run(jobs));
        Ok(Self {
            shared,
            history,
            leader,
            queue,
            tasks: [following, writing],
        })
    }

    /// Who leads, as it said of itself; `None` while nobody does.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Option<String>> {
        self.leader.clone()
    }

    /// Waits until nobody leads, and leads then: `address` is told to the others. Where
    /// this process is not heard of for `ttl` (whole seconds; etcd has a least), its
    /// leadership ends.
    ///
    /// # Errors
    /// [`StoreError::Backend`] where etcd refuses. It is waited for while it is away.
    pub async fn lead(&self, address: &str, ttl: Duration) -> Result<Leadership, StoreError> {
        election::lead(&self.shared, self.leader.clone(), address, ttl).await
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Object>, StoreError> {
        read::get(&self.shared, kind, key).await
    }

    async fn list(&self, kind: &str, prefix: &str) -> Result<Listing, StoreError> {
        let all = read::page(&self.shared, kind, prefix, None, usize::MAX).await?;
        Ok(Listing {
            objects: all.objects,
            version: all.version,
        })
    }

    async fn list_page(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, crate::MAX_PAGE);
        read::page(&self.shared, kind, prefix, after, limit).await
    }

    async fn commit_all(&self, transactions: Vec<Transaction>) -> Vec<Result<u64, StoreError>> {
        let count = transactions.len();
        let (reply, results) = oneshot::channel();
        let job = Job {
            transactions,
            reply,
        };
        let closed = || vec![Err(StoreError::Closed); count];
        if self.queue.send(job).await.is_err() {
            return closed();
        }
        results.await.unwrap_or_else(|_| closed())
    }

    async fn watch(&self, kind: &str, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        let (watch, settled) = self.history.watch(kind, prefix, after)?;
        if !settled {
            // What was heard of says nothing of that version: etcd knows.
            read::exists(&self.shared, after).await?;
        }
        Ok(watch)
    }
}
