//! The one watch of this process on all that lies in etcd: it fills the history, and
//! says who leads. Where the connection breaks it goes on from what it heard last.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Shared;
use super::api::event::EventType;
use super::api::watch_client::WatchClient;
use super::api::watch_request::RequestUnion;
use super::api::{Event as Change, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use super::connection::{ATTEMPT, Backoff};
use super::history::History;
use super::keys::behind;
use super::read;
use crate::object::{self, Event, Object};

/// The largest piece of news taken, in bytes. etcd cuts them at the size of its
/// largest request (1.5 MiB by default) and some more.
const PIECE_BYTES: usize = 64 << 20;

/// What the feed fills.
pub(crate) struct Feed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) history: Arc<History>,
    pub(crate) leader: watch::Sender<Option<String>>,
}

/// Why a watch ended.
enum Ended {
    Broken(Status),
    /// Everything up to this version is forgotten.
    Compacted(u64),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Broken(status)
    }
}

/// Events of one version, until it is whole.
#[derive(Default)]
struct Version {
    number: u64,
    events: Vec<Event>,
}

impl Feed {
    /// Follows for as long as the store is open.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::default();
        loop {
            let (at, channel) = self.shared.connection.channel();
            let before = self.history.reached();
            let mut watch = WatchClient::new(channel).max_decoding_message_size(PIECE_BYTES);
            match self.follow(&mut watch).await {
                Ended::Broken(status) => {
                    tracing::debug!(%status, "the watch on etcd broke");
                    self.shared.connection.failed(at);
                }
                Ended::Compacted(version) => {
                    tracing::info!(version, "etcd has forgotten what was not heard of yet");
                    self.history.forget(version);
                }
            }
            if self.history.reached() > before {
                backoff = Backoff::default();
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn follow(&self, client: &mut WatchClient<tonic::transport::Channel>) -> Ended {
        match self.listen(client).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn listen(
        &self,
        client: &mut WatchClient<tonic::transport::Channel>,
    ) -> Result<std::convert::Infallible, Ended> {
        let all = self.shared.keys.all();
        let reached = self.history.reached();
        // One version again, so that etcd refuses where it has forgotten the next.
        // 0 would mean: from now on.
        let start_revision = i64::try_from(reached.max(1)).unwrap_or(i64::MAX);
        let create = WatchCreateRequest {
            key: all.to_vec(),
            range_end: behind(all),
            start_revision,
            prev_kv: true,
            fragment: true,
            ..WatchCreateRequest::default()
        };
        let (requests, queue) = mpsc::channel(1);
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // There is room: the channel is new.
        let _ = requests.try_send(create);
        let opened = tokio::time::timeout(ATTEMPT, client.watch(ReceiverStream::new(queue)));
        let opened = opened.await;
        let opened = opened.map_err(|_| Status::deadline_exceeded("no answer to a watch"))?;
        let mut stream = opened?.into_inner();
        // What was before the watch began, or was compacted.
        self.read_leader(reached).await?;

        let mut version = Version::default();
        loop {
            let Some(news) = stream.message().await? else {
                return Err(Status::unavailable("the watch has ended").into());
            };
            if news.canceled {
                let forgotten = u64::try_from(news.compact_revision).unwrap_or(0);
                return Err(match forgotten {
                    0 => Status::unavailable(news.cancel_reason).into(),
                    _ => Ended::Compacted(forgotten),
                });
            }
            self.take(news, &mut version)?;
        }
    }

    /// Who leads now; what the watch tells later counts more.
    async fn read_leader(&self, reached: u64) -> Result<(), Status> {
        let request = RangeRequest {
            key: self.shared.keys.leader().to_vec(),
            ..RangeRequest::default()
        };
        let answer = read::range(&self.shared, request).await;
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        let Ok(answer) = answer else {
            return Err(Status::unavailable("etcd has no newest revision"));
        };
        if self.history.reached() == reached {
            let leader = answer.kvs.into_iter().next().map(|found| found.value);
            self.tell_leader(leader.as_deref());
        }
        Ok(())
    }

    fn tell_leader(&self, value: Option<&[u8]>) {
        let leader = value.map(|value| String::from_utf8_lossy(value).into_owned());
        self.leader.send_if_modified(|known| {
            let changed = *known != leader;
            known.clone_from(&leader);
            changed
        });
    }

    fn take(&self, news: WatchResponse, version: &mut Version) -> Result<(), Ended> {
        for change in news.events {
            let kv = change.kv.as_ref();
            let number = kv.map_or(0, |kv| kv.mod_revision);
            let number = u64::try_from(number).unwrap_or(0);
            if number != version.number {
                self.whole(std::mem::take(version));
                version.number = number;
            }
            if number <= self.history.reached() {
                continue;
            }
            if let Some(event) = self.event(number, change)? {
                version.events.push(event);
            }
        }
        // A version's events come in one answer, all pieces of it taken together.
        if !news.fragment {
            self.whole(std::mem::take(version));
        }
        Ok(())
    }

    fn whole(&self, version: Version) {
        self.history.append(version.number, version.events);
    }

    /// The event of a change, where it is one of an object.
    fn event(&self, version: u64, change: Change) -> Result<Option<Event>, Ended> {
        let deleted = change.r#type() == EventType::Delete;
        let Some(kv) = change.kv else {
            return Ok(None);
        };
        if kv.key == self.shared.keys.leader() {
            self.tell_leader((!deleted).then_some(&kv.value[..]));
            return Ok(None);
        }
        let Some((kind, key)) = self.shared.keys.place(&kv.key) else {
            return Ok(None);
        };
        let (kind, key) = (kind.to_owned(), key.to_owned());
        let (change, value) = if deleted {
            // Missing where it has been compacted since.
            let before = change.prev_kv.ok_or(Ended::Compacted(version))?;
            (object::Change::Deleted, before.value)
        } else if kv.create_revision == kv.mod_revision {
            (object::Change::Created, kv.value)
        } else {
            (object::Change::Updated, kv.value)
        };
        let object = Object {
            kind,
            key,
            value,
            version,
        };
        Ok(Some(Event { change, object }))
    }
}
