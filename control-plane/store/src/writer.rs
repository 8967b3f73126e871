//! The one writer: takes what waits, writes it in one go, syncs once, tells all.
//!
//! Group commit: while one batch is on its way to the disk the next gathers, so
//! many small transactions share the price of a sync.

use std::sync::Arc;

use redb::{Database, ReadableTable, Table, TableDefinition, WriteTransaction};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::error::StoreError;
use crate::object::{Change, Event, Expect, Object, Op, Transaction};
use crate::redb_store::RedbOptions;
use crate::watch::Committed;

/// Number of the layout below.
pub(crate) const FORMAT: u64 = 1;

type Place = (&'static str, &'static str);
type Versioned = (u64, &'static [u8]);
/// Change, kind, key, value.
type Logged = (u8, &'static str, &'static str, &'static [u8]);

/// (kind, key) → (version, value).
pub(crate) const OBJECTS: TableDefinition<Place, Versioned> = TableDefinition::new("objects");
/// (version, place in its transaction) → what happened.
pub(crate) const LOG: TableDefinition<(u64, u32), Logged> = TableDefinition::new("log");
/// Numbers about the store itself.
pub(crate) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Names of the numbers in [`META`].
pub(crate) mod meta {
    /// Layout of the file.
    pub(crate) const FORMAT: &str = "format";
    /// The newest version.
    pub(crate) const VERSION: &str = "version";
    /// The log has everything after this version.
    pub(crate) const OLDEST: &str = "oldest";
    /// Bytes of values in the log.
    pub(crate) const LOG_BYTES: &str = "log_bytes";
}

/// Transactions that are written in one go, at most.
const BATCH: usize = 512;

/// Transactions of one caller, and where the results go.
pub(crate) struct Job {
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) reply: oneshot::Sender<Vec<Result<u64, StoreError>>>,
}

type Results = Vec<Result<u64, StoreError>>;

/// Writes until the last sender is gone.
pub(crate) fn run(
    db: &Database,
    mut jobs: mpsc::Receiver<Job>,
    live: &broadcast::Sender<Arc<Committed>>,
    options: RedbOptions,
) {
    while let Some(first) = jobs.blocking_recv() {
        let mut transactions = first.transactions.len();
        let mut batch = vec![first];
        while transactions < BATCH
            && let Ok(next) = jobs.try_recv()
        {
            transactions += next.transactions.len();
            batch.push(next);
        }
        match write(db, &batch, options) {
            Ok((results, committed)) => {
                for one in committed {
                    // Nobody may be watching.
                    let _ = live.send(Arc::new(one));
                }
                for (job, results) in batch.into_iter().zip(results) {
                    // The caller may have gone; its transactions hold all the same.
                    let _ = job.reply.send(results);
                }
            }
            Err(error) => {
                tracing::error!(%error, "writing the store failed");
                for job in batch {
                    let failed = vec![Err(error.clone()); job.transactions.len()];
                    let _ = job.reply.send(failed);
                }
            }
        }
    }
}

/// One redb transaction for the whole batch.
fn write(
    db: &Database,
    batch: &[Job],
    options: RedbOptions,
) -> Result<(Vec<Results>, Vec<Committed>), StoreError> {
    let write = db.begin_write().map_err(StoreError::backend)?;
    let mut committed = Vec::new();
    let results = apply(&write, batch, options, &mut committed)?;
    if committed.is_empty() {
        write.abort().map_err(StoreError::backend)?;
    } else {
        write.commit().map_err(StoreError::backend)?;
    }
    Ok((results, committed))
}

fn apply(
    write: &WriteTransaction,
    batch: &[Job],
    options: RedbOptions,
    committed: &mut Vec<Committed>,
) -> Result<Vec<Results>, StoreError> {
    let mut objects = write.open_table(OBJECTS).map_err(StoreError::backend)?;
    let mut log = write.open_table(LOG).map_err(StoreError::backend)?;
    let mut numbers = write.open_table(META).map_err(StoreError::backend)?;
    let mut version = number(&numbers, meta::VERSION)?;
    let mut log_bytes = number(&numbers, meta::LOG_BYTES)?;

    let mut all = Vec::with_capacity(batch.len());
    for job in batch {
        let mut results = Vec::with_capacity(job.transactions.len());
        for transaction in &job.transactions {
            if let Err(refused) = transaction.check() {
                results.push(Err(refused));
                continue;
            }
            if let Some(conflict) = conflict(&objects, transaction)? {
                results.push(Err(conflict));
                continue;
            }
            let events = change(&mut objects, transaction, version + 1)?;
            if !events.is_empty() {
                let previous = version;
                version += 1;
                log_bytes = log_bytes.saturating_add(append(&mut log, version, &events)?);
                committed.push(Committed {
                    previous,
                    version,
                    events,
                });
            }
            results.push(Ok(version));
        }
        all.push(results);
    }
    if committed.is_empty() {
        return Ok(all);
    }

    let oldest = number(&numbers, meta::OLDEST)?;
    let (oldest, log_bytes) = trim(&mut log, oldest, version, log_bytes, options)?;
    for (name, value) in [
        (meta::VERSION, version),
        (meta::OLDEST, oldest),
        (meta::LOG_BYTES, log_bytes),
    ] {
        numbers.insert(name, value).map_err(StoreError::backend)?;
    }
    Ok(all)
}

/// The first expectation that does not hold.
fn conflict(
    objects: &Table<'_, Place, Versioned>,
    transaction: &Transaction,
) -> Result<Option<StoreError>, StoreError> {
    let mut insisting = transaction
        .ops
        .iter()
        .filter(|op| op.expect() != Expect::Any);
    insisting.try_fold(None, |conflict: Option<StoreError>, op| {
        if conflict.is_some() {
            return Ok(conflict);
        }
        let found = objects.get(op.place()).map_err(StoreError::backend)?;
        Ok(op.conflict(found.map_or(0, |found| found.value().0)))
    })
}

fn change(
    objects: &mut Table<'_, Place, Versioned>,
    transaction: &Transaction,
    version: u64,
) -> Result<Vec<Event>, StoreError> {
    let mut events = Vec::with_capacity(transaction.ops.len());
    for op in &transaction.ops {
        let (kind, key) = op.place();
        let (change, value) = match op {
            Op::Put { value, .. } => {
                let before = objects
                    .insert((kind, key), (version, value.as_slice()))
                    .map_err(StoreError::backend)?;
                let change = before.map_or(Change::Created, |_| Change::Updated);
                (change, value.clone())
            }
            Op::Delete { .. } => {
                let before = objects.remove((kind, key)).map_err(StoreError::backend)?;
                let Some(before) = before else {
                    continue;
                };
                (Change::Deleted, before.value().1.to_vec())
            }
        };
        events.push(Event {
            change,
            object: Object {
                kind: kind.to_owned(),
                key: key.to_owned(),
                value,
                version,
            },
        });
    }
    Ok(events)
}

/// Writes a transaction's events into the log; the bytes that they take.
fn append(
    log: &mut Table<'_, (u64, u32), Logged>,
    version: u64,
    events: &[Event],
) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for (at, event) in (0_u32..).zip(events) {
        let object = &event.object;
        let logged = (
            encode_change(event.change),
            object.kind.as_str(),
            object.key.as_str(),
            object.value.as_slice(),
        );
        log.insert((version, at), logged)
            .map_err(StoreError::backend)?;
        bytes += object.value.len();
    }
    u64::try_from(bytes).map_err(StoreError::backend)
}

/// Forgets the oldest transactions until the log is within its limits. Answers from
/// where it goes now, and its bytes.
fn trim(
    log: &mut Table<'_, (u64, u32), Logged>,
    mut oldest: u64,
    version: u64,
    mut bytes: u64,
    options: RedbOptions,
) -> Result<(u64, u64), StoreError> {
    loop {
        let first = log.first().map_err(StoreError::backend)?;
        let Some(first) = first.map(|(place, _)| place.value().0) else {
            return Ok((oldest, bytes));
        };
        let in_limits = version - oldest <= options.log_transactions && bytes <= options.log_bytes;
        // A transaction goes wholly or not at all.
        if first > oldest && in_limits {
            return Ok((oldest, bytes));
        }
        oldest = oldest.max(first);
        if let Some((_, value)) = log.pop_first().map_err(StoreError::backend)? {
            let len = u64::try_from(value.value().3.len()).unwrap_or(u64::MAX);
            bytes = bytes.saturating_sub(len);
        }
    }
}

/// A number of [`META`]; 0 where it was never written.
pub(crate) fn number(
    table: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, StoreError> {
    let found = table.get(name).map_err(StoreError::backend)?;
    Ok(found.map_or(0, |found| found.value()))
}

fn encode_change(change: Change) -> u8 {
    match change {
        Change::Created => 1,
        Change::Updated => 2,
        Change::Deleted => 3,
    }
}

/// The change that was written as `byte`.
pub(crate) fn decode_change(byte: u8) -> Result<Change, StoreError> {
    match byte {
        1 => Ok(Change::Created),
        2 => Ok(Change::Updated),
        3 => Ok(Change::Deleted),
        other => Err(StoreError::backend(format!(
            "the log holds an unknown change {other}"
        ))),
    }
}
