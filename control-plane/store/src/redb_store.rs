//! The embedded store: one redb file, one writer thread.

use std::io::Write;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::Store;
use crate::backup::{self, Backup, BackupError};
use crate::error::StoreError;
use crate::object::{Listing, MAX_PAGE, Object, Page, Transaction};
use crate::watch::{Committed, Watch};
use crate::writer::{self, FORMAT, Job, META, OBJECTS, meta};

/// Transactions that a watcher may lag behind, at most, before it has to read the log.
pub(crate) const LIVE: usize = 256;
/// Jobs that may wait for the writer before callers have to.
const QUEUE: usize = 1024;
/// Memory for cached pages, in bytes.
const CACHE: usize = 64 << 20;

/// How much history a store keeps for watchers.
#[derive(Debug, Clone, Copy)]
pub struct RedbOptions {
    /// Transactions, at most.
    pub log_transactions: u64,
    /// Bytes of values, at most.
    pub log_bytes: u64,
}

impl Default for RedbOptions {
    fn default() -> Self {
        Self {
            log_transactions: 10_000,
            log_bytes: 64 << 20,
        }
    }
}

/// The embedded store. Dropping it closes the file; watches end then.
#[derive(Debug)]
pub struct RedbStore {
    db: Arc<Database>,
    live: broadcast::Sender<Arc<Committed>>,
    // An option, so that dropping can end the writer before it waits for it.
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the store's file, or creates it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another process has it open,
    /// [`StoreError::Format`] where the file is no store, [`StoreError::Backend`].
    pub fn open(path: &Path, options: RedbOptions) -> Result<Self, StoreError> {
        let db = Database::builder()
            .set_cache_size(CACHE)
            .create(path)
            .map_err(|error| opening(path, error))?;
        check_format(path, &db)?;
        let db = Arc::new(db);
        // No more than the log holds: a watch is not to live on what others forgot.
        let lag = usize::try_from(options.log_transactions).unwrap_or(LIVE);
        let (live, _) = broadcast::channel(lag.clamp(1, LIVE));
        let (queue, jobs) = mpsc::channel(QUEUE);
        let thread = {
            let (db, live) = (Arc::clone(&db), live.clone());
            std::thread::Builder::new()
                .name("store-writer".into())
                .spawn(move || writer::run(&db, jobs, &live, options))
                .map_err(StoreError::backend)?
        };
        Ok(Self {
            db,
            live,
            queue: Some(queue),
            writer: Some(thread),
        })
    }
}

impl RedbStore {
    /// Writes all objects as they are now, at one version. Takes as long as the disk
    /// does, and `to`; others may go on to write meanwhile.
    ///
    /// # Errors
    /// [`BackupError::Io`], [`BackupError::Store`].
    pub fn backup(&self, to: impl Write) -> Result<Backup, BackupError> {
        backup::write(&self.db, to)
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

fn opening(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::Locked(path.to_owned())
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() != std::io::ErrorKind::InvalidData =>
        {
            StoreError::backend(format!("{}: {error}", path.display()))
        }
        other => StoreError::Format {
            path: path.to_owned(),
            what: format!("this is no store that can be used: {other}"),
        },
    }
}

/// Writes the format's number into a new file, and checks it in an old one.
fn check_format(path: &Path, db: &Database) -> Result<(), StoreError> {
    let write = db.begin_write().map_err(StoreError::backend)?;
    let found = {
        let mut table = write.open_table(META).map_err(StoreError::backend)?;
        let found = table.get(meta::FORMAT).map_err(StoreError::backend)?;
        let found = found.map(|found| found.value());
        if found.is_none() {
            table
                .insert(meta::FORMAT, FORMAT)
                .map_err(StoreError::backend)?;
        }
        write.open_table(OBJECTS).map_err(StoreError::backend)?;
        write.open_table(writer::LOG).map_err(StoreError::backend)?;
        found
    };
    match found {
        Some(FORMAT) => write.abort().map_err(StoreError::backend),
        None => write.commit().map_err(StoreError::backend),
        Some(other) => Err(StoreError::Format {
            path: path.to_owned(),
            what: format!("the store has format {other}, this program reads {FORMAT}"),
        }),
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Object>, StoreError> {
        let read = self.db.begin_read().map_err(StoreError::backend)?;
        let table = read.open_table(OBJECTS).map_err(StoreError::backend)?;
        let found = table.get((kind, key)).map_err(StoreError::backend)?;
        Ok(found.map(|found| {
            let (version, value) = found.value();
            Object {
                kind: kind.to_owned(),
                key: key.to_owned(),
                value: value.to_vec(),
                version,
            }
        }))
    }

    async fn list(&self, kind: &str, prefix: &str) -> Result<Listing, StoreError> {
        let (db, kind, prefix) = (Arc::clone(&self.db), kind.to_owned(), prefix.to_owned());
        let all = tokio::task::spawn_blocking(move || list(&db, &kind, &prefix, None, usize::MAX));
        let all = all.await.map_err(StoreError::backend)??;
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
        let (db, kind, prefix) = (Arc::clone(&self.db), kind.to_owned(), prefix.to_owned());
        let after = after.map(str::to_owned);
        let limit = limit.clamp(1, MAX_PAGE);
        let page =
            tokio::task::spawn_blocking(move || list(&db, &kind, &prefix, after.as_deref(), limit));
        page.await.map_err(StoreError::backend)?
    }

    async fn commit_all(&self, transactions: Vec<Transaction>) -> Vec<Result<u64, StoreError>> {
        let count = transactions.len();
        let closed = || vec![Err(StoreError::Closed); count];
        let Some(queue) = &self.queue else {
            return closed();
        };
        let (reply, results) = oneshot::channel();
        let job = Job {
            transactions,
            reply,
        };
        if queue.send(job).await.is_err() {
            return closed();
        }
        results.await.unwrap_or_else(|_| closed())
    }

    async fn watch(&self, kind: &str, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        // Subscribed before the log is looked at, so that nothing falls between.
        let live = self.live.subscribe();
        Watch::open(&self.db, live, kind, prefix, after)
    }
}

fn list(
    db: &Database,
    kind: &str,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Page, StoreError> {
    let read = db.begin_read().map_err(StoreError::backend)?;
    let version = read.open_table(META).map_err(StoreError::backend)?;
    let version = writer::number(&version, meta::VERSION)?;
    let table = read.open_table(OBJECTS).map_err(StoreError::backend)?;
    let begin = match after {
        // A key before the prefix's first: nothing has been passed yet.
        Some(after) if after >= prefix => Bound::Excluded((kind, after)),
        _ => Bound::Included((kind, prefix)),
    };
    let range = table.range::<(&str, &str)>((begin, Bound::Unbounded));
    let mut page = Page {
        version,
        ..Page::default()
    };
    for entry in range.map_err(StoreError::backend)? {
        let (place, value) = entry.map_err(StoreError::backend)?;
        let (found_kind, key) = place.value();
        if found_kind != kind || !key.starts_with(prefix) {
            break;
        }
        if page.objects.len() >= limit {
            page.more = true;
            break;
        }
        let (version, value) = value.value();
        page.objects.push(Object {
            kind: kind.to_owned(),
            key: key.to_owned(),
            value: value.to_vec(),
            version,
        });
    }
    Ok(page)
}
