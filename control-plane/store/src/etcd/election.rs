//! Who leads: whoever's lease holds the leader's key.
//!
//! The key is written only where there is none, and it goes with its lease. Every
//! write of the leader insists on the revision at which its key was created, so one
//! that lost it without knowing cannot write. And it knows: each renewal of the lease
//! counts from when it was asked for, so the leadership ends here no later than there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::Shared;
use super::api::kv_client::KvClient;
use super::api::lease_client::LeaseClient;
use super::api::request_op::Request;
use super::api::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseRevokeRequest, RangeRequest, RequestOp, TxnRequest,
};
use super::connection::{Backoff, PATIENCE, failed, transient};
use super::history::History;
use super::keys::behind;
use super::read;
use super::writer::{created, put};
use crate::error::StoreError;

/// How often a replica that waits looks for itself whether somebody leads.
const LOOK: Duration = Duration::from_secs(1);
/// Numbers of former leaders' writes that are kept, for those who still ask what
/// became of their last one.
const FORMER: usize = 8;

/// One time of leading, from winning the key to losing the lease.
#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) lease: i64,
    /// Revision at which the leader's key was created.
    pub(crate) created: i64,
    /// Number of the last write that is known to hold.
    written: Mutex<u64>,
    /// The lease holds at least until then.
    until: Mutex<Instant>,
    ended: watch::Sender<bool>,
}

impl Term {
    /// Whether this process leads for certain.
    pub(crate) fn holds(&self) -> bool {
        !*self.ended.borrow() && Instant::now() < self.until()
    }

    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }

    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, until: Instant) {
        let mut known = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *known = until.max(*known);
    }

    pub(crate) fn last_write(&self) -> u64 {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wrote(&self, number: u64) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = number;
    }
}

/// The right to write. It ends with this value, or earlier.
#[derive(Debug)]
pub struct Leadership {
    shared: Arc<Shared>,
    term: Arc<Term>,
    keeper: JoinHandle<()>,
}

impl Leadership {
    /// Whether it holds for certain, by this machine's clock.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.term.holds()
    }

    /// Completes when it is lost. May be dropped while it waits.
    pub async fn lost(&self) {
        let mut ended = self.term.ended.subscribe();
        // An error would say that nobody can end it any more.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Whether it holds, for whoever must not keep it.
    #[must_use]
    pub fn watch(&self) -> Leading {
        Leading(Arc::clone(&self.term))
    }

    /// Gives it up, so that another may lead at once.
    pub async fn resign(self) {
        self.term.end();
        revoke(&self.shared, self.term.lease).await;
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.term.end();
        self.keeper.abort();
        self.shared.set_term(None);
    }
}

/// Whether a leadership still holds.
#[derive(Debug, Clone)]
pub struct Leading(Arc<Term>);

impl Leading {
    /// Whether it holds for certain, by this machine's clock.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.holds()
    }
}

/// Waits for its turn, and leads.
pub(crate) async fn lead(
    shared: &Arc<Shared>,
    mut leader: watch::Receiver<Option<String>>,
    address: &str,
    ttl: Duration,
) -> Result<Leadership, StoreError> {
    let mut backoff = Backoff::default();
    loop {
        let error = match try_lead(shared, address, ttl).await {
            Ok(Some(term)) => return Ok(begin(shared, term, ttl)),
            Ok(None) => None,
            Err(status) if transient(&status) => Some(status),
            Err(status) => return Err(failed(&status)),
        };
        if let Some(status) = error {
            tracing::debug!(%status, "no leader can be chosen while etcd is away");
            tokio::time::sleep(backoff.next()).await;
            continue;
        }
        backoff = Backoff::default();
        // Somebody leads. The feed tells when that ends; should it be silent, look.
        let free = leader.wait_for(Option::is_none);
        let _ = tokio::time::timeout(LOOK, free).await;
    }
}

/// One attempt; `None` where somebody leads.
async fn try_lead(shared: &Shared, address: &str, ttl: Duration) -> Result<Option<Term>, Status> {
    let request = RangeRequest {
        key: shared.keys.leader().to_vec(),
        count_only: true,
        ..RangeRequest::default()
    };
    let call = |channel| {
        let request = request.clone();
        async move { KvClient::new(channel).range(request).await }
    };
    if shared.connection.call(PATIENCE, call).await?.count > 0 {
        return Ok(None);
    }

    let wanted = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
    let asked = Instant::now();
    let grant = |channel| async move {
        let request = LeaseGrantRequest { ttl: wanted, id: 0 };
        LeaseClient::new(channel).lease_grant(request).await
    };
    let granted = shared.connection.call(PATIENCE, grant).await?;
    let lease = granted.id;
    let until = asked + seconds(granted.ttl);

    let marker = shared.keys.writer(lease);
    let request = TxnRequest {
        compare: vec![created(shared.keys.leader(), 0)],
        success: vec![
            put(shared.keys.leader(), address.as_bytes().to_vec(), lease),
            put(&marker, b"0".to_vec(), 0),
        ],
        failure: vec![super::writer::read(shared.keys.leader(), false)],
    };
    let call = |channel| {
        let request = request.clone();
        async move { KvClient::new(channel).txn(request).await }
    };
    let answer = match shared.connection.call(PATIENCE, call).await {
        Ok(answer) => answer,
        Err(status) => {
            // It may have been applied; then it goes with its lease.
            revoke(shared, lease).await;
            return Err(status);
        }
    };
    let won = if answer.succeeded {
        answer.header.map(|header| header.revision)
    } else {
        // An attempt whose answer was lost may have won.
        let found = super::writer::read_back(answer)
            .into_iter()
            .next()
            .flatten();
        let ours = found.filter(|found| found.lease == lease);
        ours.map(|found| found.create_revision)
    };
    let Some(created) = won else {
        revoke(shared, lease).await;
        return Ok(None);
    };
    Ok(Some(Term {
        lease,
        created,
        written: Mutex::new(0),
        until: Mutex::new(until),
        ended: watch::Sender::new(false),
    }))
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

fn begin(shared: &Arc<Shared>, term: Term, ttl: Duration) -> Leadership {
    let term = Arc::new(term);
    shared.set_term(Some(Arc::clone(&term)));
    let keeper = {
        let (shared, term) = (Arc::clone(shared), Arc::clone(&term));
        tokio::spawn(async move {
            tokio::join!(keep(&shared, &term, ttl), clean(&shared, &term));
        })
    };
    Leadership {
        shared: Arc::clone(shared),
        term,
        keeper,
    }
}

/// Renews the lease until that fails for its whole length.
async fn keep(shared: &Shared, term: &Term, ttl: Duration) {
    let lease = term.lease;
    while term.holds() {
        let asked = Instant::now();
        let renewing = shared.connection.call(ttl, |channel| renew(channel, lease));
        match tokio::time::timeout_at(term.until(), renewing).await {
            Ok(Ok(LeaseKeepAliveResponse { ttl: 0, .. })) | Err(_) => break,
            Ok(Ok(renewed)) => {
                // Counted from the first attempt: never too long.
                term.renew(asked + seconds(renewed.ttl));
                tokio::time::sleep_until((asked + ttl / 4).min(term.until())).await;
            }
            Ok(Err(status)) => {
                tracing::warn!(%status, "the leader's lease cannot be renewed");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    term.end();
}

async fn renew(channel: Channel, lease: i64) -> Result<Response<LeaseKeepAliveResponse>, Status> {
    let request = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
    let mut client = LeaseClient::new(channel);
    let mut answers = client.lease_keep_alive(request).await?.into_inner();
    let answer = answers.next().await;
    let answer = answer.ok_or_else(|| Status::unavailable("no answer to a renewal"))?;
    Ok(Response::new(answer?))
}

async fn revoke(shared: &Shared, lease: i64) {
    let call = |channel| async move {
        let request = LeaseRevokeRequest { id: lease };
        LeaseClient::new(channel).lease_revoke(request).await
    };
    if let Err(status) = shared.connection.call(Duration::from_secs(1), call).await {
        tracing::debug!(%status, "a lease was not revoked; it will run out");
    }
}

/// Forgets the numbers of leaders that have long gone.
async fn clean(shared: &Shared, term: &Term) {
    let writers = shared.keys.writers();
    let request = RangeRequest {
        key: writers.to_vec(),
        range_end: behind(writers),
        keys_only: true,
        ..RangeRequest::default()
    };
    let Ok(Ok(found)) = read::range(shared, request).await else {
        // The next leader tries again.
        return;
    };
    let mut found = found.kvs;
    found.sort_by_key(|kv| std::cmp::Reverse(kv.mod_revision));
    let old = found
        .into_iter()
        .skip(FORMER)
        .take(100)
        .map(|kv| RequestOp {
            request: Some(Request::RequestDeleteRange(DeleteRangeRequest {
                key: kv.key,
                range_end: Vec::new(),
            })),
        });
    let request = TxnRequest {
        compare: vec![created(shared.keys.leader(), term.created)],
        success: old.collect(),
        failure: Vec::new(),
    };
    if request.success.is_empty() {
        return;
    }
    let call = |channel| {
        let request = request.clone();
        async move { KvClient::new(channel).txn(request).await }
    };
    if let Err(status) = shared.connection.call(PATIENCE, call).await {
        tracing::debug!(%status, "former leaders' numbers stay");
    }
}

/// Has etcd forget what the history has forgotten, while this process leads.
pub(crate) async fn compact(shared: Arc<Shared>, history: Arc<History>, every: Duration) {
    let mut done = 0;
    loop {
        tokio::time::sleep(every).await;
        let oldest = history.oldest();
        if oldest <= done.max(1) || shared.term().is_none() {
            continue;
        }
        let revision = i64::try_from(oldest).unwrap_or(i64::MAX);
        let call = |channel| async move {
            let request = CompactionRequest { revision };
            KvClient::new(channel).compact(request).await
        };
        match shared.connection.call(PATIENCE, call).await {
            Ok(_) => done = oldest,
            // Somebody else has been faster.
            Err(status) if status.code() == tonic::Code::OutOfRange => done = oldest,
            Err(status) => tracing::warn!(%status, "etcd was not compacted"),
        }
    }
}
