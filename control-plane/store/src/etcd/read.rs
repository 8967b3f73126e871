//! Reading objects. Every read is answered by a majority: it sees all that has been
//! acknowledged.

use tonic::Code;

use super::Shared;
use super::api::kv_client::KvClient;
use super::api::{KeyValue, RangeRequest, RangeResponse, ResponseHeader};
use super::connection::{PATIENCE, failed};
use super::keys::{behind, next};
use crate::error::StoreError;
use crate::object::{MAX_VALUE_BYTES, Object, Page};

/// Objects that are asked for at once.
const CHUNK: usize = 200;
/// The largest answer taken, in bytes.
pub(crate) const ANSWER_BYTES: usize = CHUNK * (MAX_VALUE_BYTES + (4 << 10));
/// How often a listing begins anew because what it read is compacted meanwhile.
const RESTARTS: usize = 5;

/// The one object.
pub(crate) async fn get(
    shared: &Shared,
    kind: &str,
    key: &str,
) -> Result<Option<Object>, StoreError> {
    let request = RangeRequest {
        key: shared.keys.object(kind, key),
        ..RangeRequest::default()
    };
    let answer = range(shared, request).await?.map_err(|_| unexpected())?;
    let found = answer.kvs.into_iter().next();
    found.map(|found| object(shared, found)).transpose()
}

/// Objects of a kind by key, as they were at one version: up to `limit`.
pub(crate) async fn page(
    shared: &Shared,
    kind: &str,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Page, StoreError> {
    for _ in 0..RESTARTS {
        if let Some(page) = try_page(shared, kind, prefix, after, limit).await? {
            return Ok(page);
        }
    }
    let what = "etcd forgets history faster than it can be listed";
    Err(StoreError::backend(what))
}

/// `None` where the version is compacted while it is read.
async fn try_page(
    shared: &Shared,
    kind: &str,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Option<Page>, StoreError> {
    let whole = shared.keys.object(kind, prefix);
    let mut begin = match after {
        Some(after) if after >= prefix => next(&shared.keys.object(kind, after)),
        _ => whole.clone(),
    };
    let end = behind(&whole);
    let mut page = Page::default();
    if begin >= end {
        page.version = newest(shared).await?;
        return Ok(Some(page));
    }
    loop {
        let wanted = limit.saturating_sub(page.objects.len()).min(CHUNK);
        let request = RangeRequest {
            key: begin,
            range_end: end.clone(),
            limit: i64::try_from(wanted).map_err(StoreError::backend)?,
            revision: i64::try_from(page.version).map_err(StoreError::backend)?,
            ..RangeRequest::default()
        };
        let Ok(answer) = range(shared, request).await? else {
            return Ok(None);
        };
        if page.version == 0 {
            page.version = revision(answer.header.as_ref())?;
        }
        begin = answer
            .kvs
            .last()
            .map(|last| next(&last.key))
            .unwrap_or_default();
        for found in answer.kvs {
            page.objects.push(object(shared, found)?);
        }
        page.more = answer.more && !begin.is_empty();
        if !page.more || page.objects.len() >= limit {
            return Ok(Some(page));
        }
    }
}

/// The newest version.
pub(crate) async fn newest(shared: &Shared) -> Result<u64, StoreError> {
    let request = RangeRequest {
        key: shared.keys.leader().to_vec(),
        count_only: true,
        ..RangeRequest::default()
    };
    let answer = range(shared, request).await?.map_err(|_| unexpected())?;
    revision(answer.header.as_ref())
}

/// Whether a version exists, and has not been compacted.
pub(crate) async fn exists(shared: &Shared, version: u64) -> Result<(), StoreError> {
    let asked = i64::try_from(version).unwrap_or(i64::MAX);
    let request = RangeRequest {
        key: shared.keys.leader().to_vec(),
        count_only: true,
        // 0 would be the newest; before the first write everything is at 1.
        revision: asked.max(1),
        ..RangeRequest::default()
    };
    match range(shared, request).await? {
        Ok(_) => Ok(()),
        Err(OutOfRange::Compacted) => Err(StoreError::TooOld {
            asked: version,
            // etcd does not say here what it still has: no more than what comes next.
            oldest: version.saturating_add(1),
        }),
        Err(OutOfRange::Future) => Err(StoreError::FromTheFuture {
            asked: version,
            newest: newest(shared).await?,
        }),
    }
}

/// Why etcd has no such revision.
pub(crate) enum OutOfRange {
    Compacted,
    Future,
}

pub(crate) async fn range(
    shared: &Shared,
    request: RangeRequest,
) -> Result<Result<RangeResponse, OutOfRange>, StoreError> {
    let call = |channel| {
        let request = request.clone();
        async move {
            let mut client = KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
            client.range(request).await
        }
    };
    match shared.connection.call(PATIENCE, call).await {
        Ok(answer) => Ok(Ok(answer)),
        Err(status) if status.code() == Code::OutOfRange => {
            // etcd: ErrGRPCCompacted, ErrGRPCFutureRev.
            if status.message().contains("compacted") {
                Ok(Err(OutOfRange::Compacted))
            } else if status.message().contains("future") {
                Ok(Err(OutOfRange::Future))
            } else {
                Err(failed(&status))
            }
        }
        Err(status) => Err(failed(&status)),
    }
}

fn unexpected() -> StoreError {
    StoreError::backend("etcd does not have its own newest revision")
}

/// The revision in an answer's header.
pub(crate) fn revision(header: Option<&ResponseHeader>) -> Result<u64, StoreError> {
    let revision = header.map_or(0, |header| header.revision);
    match u64::try_from(revision) {
        Ok(0) | Err(_) => Err(StoreError::backend("etcd answers without a revision")),
        Ok(revision) => Ok(revision),
    }
}

fn object(shared: &Shared, found: KeyValue) -> Result<Object, StoreError> {
    let Some((kind, key)) = shared.keys.place(&found.key) else {
        let key = String::from_utf8_lossy(&found.key).into_owned();
        return Err(StoreError::backend(format!(
            "etcd holds a foreign key `{key}`"
        )));
    };
    Ok(Object {
        kind: kind.to_owned(),
        key: key.to_owned(),
        version: u64::try_from(found.mod_revision).map_err(StoreError::backend)?,
        value: found.value,
    })
}
