//! The one writer of a leader.
//!
//! Transactions that have no object in common go into one transaction of etcd. Each
//! of those holds under two conditions besides what ours expect: this process still
//! leads, and the number of its last write is the one before. It writes the next
//! number. So one that is sent again, because its answer was lost, is applied at most
//! once; and the number tells what became of the first.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::Shared;
use super::api::compare::{CompareResult, CompareTarget, TargetUnion};
use super::api::kv_client::KvClient;
use super::api::request_op::Request;
use super::api::response_op::Response;
use super::api::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest,
    TxnResponse,
};
use super::connection::{Backoff, attempt, failed, transient};
use super::election::Term;
use super::read::revision;
use crate::error::StoreError;
use crate::object::{Expect, Op, Transaction};
use crate::writer::Job;

/// Transactions that are taken from the queue together, at most.
const BATCH: usize = 4096;
/// Operations in one transaction of etcd: its default limit is 128 (--max-txn-ops),
/// conditions apart, and some are ours.
const MAX_OPS: usize = 120;
/// Bytes in one: its default limit is 1.5 MiB (--max-request-bytes).
const MAX_BYTES: usize = 1_400_000;
/// What an operation takes besides its value, beyond its key three times.
const OP_BYTES: usize = 64;
/// How long the outcome of a write is looked for after the leadership is lost.
const RESOLVE: Duration = Duration::from_secs(5);

/// Writes what is queued.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) leader: watch::Receiver<Option<String>>,
}

/// Transactions that go together, by their places in the batch.
#[derive(Default)]
struct Chunk<'a> {
    members: Vec<(usize, &'a Transaction)>,
    objects: HashSet<(&'a str, &'a str)>,
    bytes: usize,
}

impl<'a> Chunk<'a> {
    /// Whether it took the transaction.
    fn take(&mut self, at: usize, transaction: &'a Transaction) -> bool {
        let (ops, bytes) = size(transaction);
        let fits = self.objects.len() + ops <= MAX_OPS && self.bytes + bytes <= MAX_BYTES;
        let places = || transaction.ops.iter().map(Op::place);
        if !fits || places().any(|place| self.objects.contains(&place)) {
            return false;
        }
        self.objects.extend(places());
        self.bytes += bytes;
        self.members.push((at, transaction));
        true
    }
}

fn size(transaction: &Transaction) -> (usize, usize) {
    let bytes = transaction.ops.iter().map(|op| {
        let (kind, key) = op.place();
        let value = match op {
            Op::Put { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        };
        value + 3 * (kind.len() + key.len()) + OP_BYTES
    });
    (transaction.ops.len(), bytes.sum())
}

/// What became of a transaction of etcd.
enum Outcome {
    /// It holds, with this version.
    Written(u64),
    /// An expectation does not hold. The versions found, in the order of the
    /// conditions; 0 where there is no such object.
    Unexpected(Vec<u64>),
}

type Answer = Option<Result<u64, StoreError>>;

impl Writer {
    /// Writes until the last sender is gone.
    pub(crate) async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.recv().await {
            let mut transactions = first.transactions;
            let mut replies = vec![(transactions.len(), first.reply)];
            while transactions.len() < BATCH
                && let Ok(next) = jobs.try_recv()
            {
                replies.push((next.transactions.len(), next.reply));
                transactions.extend(next.transactions);
            }
            let mut answers = self.write(&transactions).await.into_iter();
            for (count, reply) in replies {
                // The caller may have gone; its transactions hold all the same.
                let _ = reply.send(answers.by_ref().take(count).collect());
            }
        }
    }

    async fn write(&self, transactions: &[Transaction]) -> Vec<Result<u64, StoreError>> {
        let mut answers: Vec<Answer> = vec![None; transactions.len()];
        let failed = self.write_all(transactions, &mut answers).await;
        let failed = failed.err().unwrap_or(StoreError::Closed);
        let answers = answers.into_iter();
        answers
            .map(|answer| answer.unwrap_or_else(|| Err(failed.clone())))
            .collect()
    }

    /// # Errors
    /// What is true of all that has no answer yet.
    async fn write_all(
        &self,
        transactions: &[Transaction],
        answers: &mut [Answer],
    ) -> Result<(), StoreError> {
        let term = self.shared.term().ok_or_else(|| self.not_leading())?;
        let mut rest = transactions
            .iter()
            .zip(answers.iter_mut())
            .enumerate()
            .filter_map(|(at, (transaction, answer))| match check(transaction) {
                Ok(()) => Some((at, transaction)),
                Err(refused) => {
                    *answer = Some(Err(refused));
                    None
                }
            });
        let mut chunks = Vec::new();
        let mut chunk = Chunk::default();
        for (at, transaction) in &mut rest {
            if !chunk.take(at, transaction) {
                chunks.push(std::mem::take(&mut chunk));
                // Alone it fits: it has been checked.
                chunk.take(at, transaction);
            }
        }
        if !chunk.members.is_empty() {
            chunks.push(chunk);
        }
        for chunk in chunks {
            self.write_chunk(&term, chunk, answers).await?;
        }
        Ok(())
    }

    /// Writes those whose expectations hold.
    async fn write_chunk(
        &self,
        term: &Term,
        mut chunk: Chunk<'_>,
        answers: &mut [Answer],
    ) -> Result<(), StoreError> {
        while !chunk.members.is_empty() {
            let found = match self.transact(term, &chunk).await? {
                Outcome::Written(version) => {
                    for (at, _) in chunk.members {
                        if let Some(answer) = answers.get_mut(at) {
                            *answer = Some(Ok(version));
                        }
                    }
                    return Ok(());
                }
                Outcome::Unexpected(found) => found,
            };
            // They have no object in common: none of them would have changed what
            // another expects.
            let before = chunk.members.len();
            let mut found = found.into_iter();
            chunk.members.retain(|(at, transaction)| {
                let mut conflict = None;
                for op in transaction
                    .ops
                    .iter()
                    .filter(|op| op.expect() != Expect::Any)
                {
                    let found = found.next().unwrap_or(0);
                    conflict = conflict.take().or_else(|| op.conflict(found));
                }
                let Some(conflict) = conflict else {
                    return true;
                };
                if let Some(answer) = answers.get_mut(*at) {
                    *answer = Some(Err(conflict));
                }
                false
            });
            if chunk.members.len() == before {
                let what = "etcd refuses a transaction whose conditions hold";
                return Err(StoreError::backend(what));
            }
        }
        Ok(())
    }

    /// Sends one transaction of etcd until its outcome is known.
    async fn transact(&self, term: &Term, chunk: &Chunk<'_>) -> Result<Outcome, StoreError> {
        let number = term.last_write().saturating_add(1);
        let request = self.request(term, chunk, number);
        let mut backoff = Backoff::default();
        // Whether an attempt may have been applied without an answer.
        let mut uncertain = false;
        while term.holds() {
            let (at, channel) = self.shared.connection.channel();
            let mut client = KvClient::new(channel);
            match attempt(client.txn(request.clone())).await {
                Ok(answer) => return self.outcome(term, chunk, number, answer, uncertain),
                Err(status) if transient(&status) => {
                    tracing::debug!(%status, "a write to etcd is tried again");
                    uncertain = true;
                    self.shared.connection.failed(at);
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(status) if uncertain => {
                    tracing::warn!(%status, "etcd refuses a write that is tried again");
                    break;
                }
                Err(status) => return Err(failed(&status)),
            }
        }
        term.end();
        match uncertain {
            true => self.resolve(term, number).await,
            false => Err(self.not_leading()),
        }
    }

    fn request(&self, term: &Term, chunk: &Chunk<'_>, number: u64) -> TxnRequest {
        let keys = &self.shared.keys;
        let marker = keys.writer(term.lease);
        let mut request = TxnRequest {
            compare: vec![
                created(keys.leader(), term.created),
                equal_value(&marker, number.saturating_sub(1).to_string()),
            ],
            success: vec![put(&marker, number.to_string().into_bytes(), 0)],
            failure: vec![read(keys.leader(), false), read(&marker, false)],
        };
        for op in chunk
            .members
            .iter()
            .flat_map(|(_, transaction)| &transaction.ops)
        {
            let (kind, key) = op.place();
            let key = keys.object(kind, key);
            match op.expect() {
                Expect::Any => {}
                Expect::Absent => {
                    request.compare.push(created(&key, 0));
                    request.failure.push(read(&key, true));
                }
                Expect::Version(version) => {
                    request.compare.push(in_version(&key, version));
                    request.failure.push(read(&key, true));
                }
            }
            request.success.push(match op {
                Op::Put { value, .. } => put(&key, value.clone(), 0),
                Op::Delete { .. } => RequestOp {
                    request: Some(Request::RequestDeleteRange(DeleteRangeRequest {
                        key,
                        range_end: Vec::new(),
                    })),
                },
            });
        }
        request
    }

    fn outcome(
        &self,
        term: &Term,
        chunk: &Chunk<'_>,
        number: u64,
        answer: TxnResponse,
        uncertain: bool,
    ) -> Result<Outcome, StoreError> {
        if answer.succeeded {
            term.wrote(number);
            return Ok(Outcome::Written(revision(answer.header.as_ref())?));
        }
        let mut found = read_back(answer).into_iter();
        let leader = found.next().flatten();
        let marker = found.next().flatten();
        if let Some(marker) = &marker
            && marker.value == number.to_string().as_bytes()
        {
            // The attempt whose answer was lost had been applied.
            term.wrote(number);
            let version = u64::try_from(marker.mod_revision).map_err(StoreError::backend)?;
            return Ok(Outcome::Written(version));
        }
        if leader.is_none_or(|leader| leader.create_revision != term.created) {
            term.end();
            return Err(match (uncertain, marker) {
                // Only a later leader takes the number away.
                (true, None) => StoreError::Uncertain,
                _ => self.not_leading(),
            });
        }
        if marker.is_none_or(|m| m.value != number.saturating_sub(1).to_string().as_bytes()) {
            term.end();
            let what = "somebody else has written this writer's number in etcd";
            return Err(StoreError::backend(what));
        }
        debug_assert!(!chunk.members.is_empty());
        let versions = found.map(|kv| kv.map_or(0, |kv| kv.mod_revision));
        let versions: Result<Vec<u64>, _> = versions.map(u64::try_from).collect();
        Ok(Outcome::Unexpected(versions.map_err(StoreError::backend)?))
    }

    /// Finds out what became of a write after the leadership is lost. Nothing can be
    /// applied any more once somebody else leads, or nobody.
    async fn resolve(&self, term: &Term, number: u64) -> Result<Outcome, StoreError> {
        let keys = &self.shared.keys;
        let marker = keys.writer(term.lease);
        let request = TxnRequest {
            compare: vec![created(keys.leader(), term.created)],
            success: Vec::new(),
            failure: vec![read(&marker, false)],
        };
        let until = tokio::time::Instant::now() + RESOLVE;
        while tokio::time::Instant::now() < until {
            let call = |channel| {
                let request = request.clone();
                async move { KvClient::new(channel).txn(request).await }
            };
            let answer: Result<TxnResponse, Status> =
                self.shared.connection.call(RESOLVE, call).await;
            match answer {
                Ok(answer) if !answer.succeeded => {
                    let marker = read_back(answer).into_iter().next().flatten();
                    let Some(marker) = marker else {
                        return Err(StoreError::Uncertain);
                    };
                    if marker.value == number.to_string().as_bytes() {
                        let version = u64::try_from(marker.mod_revision);
                        return Ok(Outcome::Written(version.map_err(StoreError::backend)?));
                    }
                    return Err(self.not_leading());
                }
                Ok(_) => {}
                Err(status) => tracing::debug!(%status, "a write's outcome is not known yet"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(StoreError::Uncertain)
    }

    fn not_leading(&self) -> StoreError {
        StoreError::NotLeading {
            leader: self.leader.borrow().clone(),
        }
    }
}

fn check(transaction: &Transaction) -> Result<(), StoreError> {
    transaction.check()?;
    let (ops, bytes) = size(transaction);
    if ops > MAX_OPS || bytes > MAX_BYTES {
        return Err(StoreError::TransactionTooLarge { ops, bytes });
    }
    Ok(())
}

/// What the reads of a refused transaction found.
pub(crate) fn read_back(answer: TxnResponse) -> Vec<Option<KeyValue>> {
    let responses = answer.responses.into_iter();
    responses
        .map(|response| match response.response {
            Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        })
        .collect()
}

/// The key was created at that revision; 0: it does not exist.
pub(crate) fn created(key: &[u8], revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.to_vec(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

fn in_version(key: &[u8], version: u64) -> Compare {
    // Version 0 is no object's, but it would compare as equal to none at all.
    let version = match i64::try_from(version) {
        Ok(0) | Err(_) => i64::MAX,
        Ok(version) => version,
    };
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.to_vec(),
        target_union: Some(TargetUnion::ModRevision(version)),
    }
}

fn equal_value(key: &[u8], value: String) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key: key.to_vec(),
        target_union: Some(TargetUnion::Value(value.into_bytes())),
    }
}

pub(crate) fn put(key: &[u8], value: Vec<u8>, lease: i64) -> RequestOp {
    let key = key.to_vec();
    RequestOp {
        request: Some(Request::RequestPut(PutRequest { key, value, lease })),
    }
}

pub(crate) fn read(key: &[u8], keys_only: bool) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestRange(RangeRequest {
            key: key.to_vec(),
            keys_only,
            ..RangeRequest::default()
        })),
    }
}
