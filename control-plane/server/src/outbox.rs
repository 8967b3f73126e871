//! What waits for a card to take it.
//!
//! A card that is slow makes nobody wait and costs little: of each pod only the newest
//! is kept, shared with the control plane's own memory, and messages are built when the
//! stream can take them, by the stream's task.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use longship_proto::control::v1::{
    Assignments, CachedImages, Changes, Registered, ToCard, to_card,
};
use prost::Message;
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::Status;
use uuid::Uuid;

use crate::pods::PodRecord;

/// Bytes of pods in one message; the last pod may go beyond.
const PART_BYTES: usize = 1 << 20;
/// Pods in one message.
const PART_PODS: usize = 1024;
/// Pods that a card may be told to release and has not heard of yet. It reported each
/// of them itself; one that reports more does not listen.
const MAX_RELEASES: usize = 100_000;

/// A pod in a version of the store.
type Versioned = (Arc<PodRecord>, u64);

/// Messages for one card, in the order in which it must hear them.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queued: Mutex<Queued>,
}

#[derive(Debug, Default)]
struct Queued {
    registered: Option<Registered>,
    /// All pods of the card, until it was told of the last.
    all: Option<VecDeque<Versioned>>,
    /// Changed pods by the order of their change, and where each is.
    assign: BTreeMap<u64, Versioned>,
    places: HashMap<Uuid, u64>,
    next: u64,
    release: BTreeSet<String>,
    images: Option<CachedImages>,
    end: Option<Status>,
    closed: bool,
    waker: Option<Waker>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Queued)) {
        let waker = {
            let mut queued = self.lock();
            change(&mut queued);
            queued.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The card is registered, and shall run exactly these.
    pub(crate) fn begin(&self, registered: Registered, all: VecDeque<Versioned>) {
        self.change(|queued| {
            queued.registered = Some(registered);
            queued.all = Some(all);
        });
    }

    /// A pod to run, or one whose deletion or generation has changed.
    pub(crate) fn assign(&self, record: Arc<PodRecord>, version: u64) {
        self.change(|queued| {
            let number = queued.next;
            queued.next += 1;
            if let Some(before) = queued.places.insert(record.id, number) {
                queued.assign.remove(&before);
            }
            queued.release.remove(&record.meta.uid);
            queued.assign.insert(number, (record, version));
        });
    }

    /// The card has nothing to do with the pod any more. What it was to hear of the pod
    /// before is dropped.
    pub(crate) fn release(&self, uid: String) {
        self.change(|queued| {
            let id = Uuid::parse_str(&uid).ok();
            if let Some(place) = id.and_then(|id| queued.places.remove(&id)) {
                queued.assign.remove(&place);
            }
            if queued.release.len() >= MAX_RELEASES {
                let message = "too many pods that are not this card's: attach again";
                queued
                    .end
                    .get_or_insert_with(|| Status::resource_exhausted(message));
                return;
            }
            queued.release.insert(uid);
        });
    }

    /// Images that the card keeps ready.
    pub(crate) fn keep_images(&self, images: CachedImages) {
        self.change(|queued| queued.images = Some(images));
    }

    /// Ends the stream, whatever still waits.
    pub(crate) fn end(&self, why: Status) {
        self.change(|queued| {
            queued.end.get_or_insert(why);
        });
    }

    /// Nothing comes any more: the stream ends with what still waits.
    pub(crate) fn close(&self) {
        self.change(|queued| queued.closed = true);
    }

    /// The stream that empties it. While it lives, what is answered does not resolve.
    pub(crate) fn stream(self: &Arc<Self>) -> (CardStream, oneshot::Receiver<()>) {
        let (alive, gone) = oneshot::channel();
        let stream = CardStream {
            outbox: Arc::clone(self),
            ended: false,
            _alive: alive,
        };
        (stream, gone)
    }

    /// How many pods wait to be told.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let queued = self.lock();
        queued.assign.len() + queued.release.len()
    }
}

impl Queued {
    fn next_message(&mut self) -> Option<to_card::Message> {
        if let Some(registered) = self.registered.take() {
            return Some(to_card::Message::Registered(registered));
        }
        if let Some(all) = &mut self.all {
            let mut part = Part::default();
            while !part.is_full()
                && let Some((record, version)) = all.pop_front()
            {
                part.add(&record, version);
            }
            let more = !all.is_empty();
            if !more {
                self.all = None;
            }
            let pods = part.pods;
            return Some(to_card::Message::Assignments(Assignments { pods, more }));
        }
        if let Some(images) = self.images.take() {
            return Some(to_card::Message::Images(images));
        }
        let mut part = Part::default();
        while !part.is_full()
            && let Some((_, (record, version))) = self.assign.pop_first()
        {
            self.places.remove(&record.id);
            part.add(&record, version);
        }
        let mut release_uids = Vec::new();
        while release_uids.len() < PART_PODS
            && let Some(uid) = self.release.pop_first()
        {
            release_uids.push(uid);
        }
        let changes = Changes {
            assign: part.pods,
            release_uids,
        };
        (changes != Changes::default()).then_some(to_card::Message::Changes(changes))
    }
}

/// Pods of one message.
#[derive(Default)]
struct Part {
    pods: Vec<longship_proto::control::v1::Pod>,
    bytes: usize,
}

impl Part {
    fn is_full(&self) -> bool {
        self.bytes >= PART_BYTES || self.pods.len() >= PART_PODS
    }

    fn add(&mut self, record: &PodRecord, version: u64) {
        let pod = record.for_card(version);
        self.bytes = self.bytes.saturating_add(pod.encoded_len());
        self.pods.push(pod);
    }
}

/// An outbox as a stream of messages.
#[derive(Debug)]
pub(crate) struct CardStream {
    outbox: Arc<Outbox>,
    ended: bool,
    _alive: oneshot::Sender<()>,
}

impl Stream for CardStream {
    type Item = Result<ToCard, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let outbox = Arc::clone(&self.outbox);
        let mut queued = outbox.lock();
        // The end goes before what is queued: a fenced card must not act on it.
        if let Some(why) = queued.end.clone() {
            self.ended = true;
            return Poll::Ready(Some(Err(why)));
        }
        match queued.next_message() {
            Some(message) => Poll::Ready(Some(Ok(ToCard {
                message: Some(message),
            }))),
            None if queued.closed => {
                self.ended = true;
                Poll::Ready(None)
            }
            None => {
                queued.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{ObjectMeta, PodSpec, PodStatus};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::records::Notes;

    fn pod(id: u128, hostname_bytes: usize) -> Arc<PodRecord> {
        let id = Uuid::from_u128(id);
        Arc::new(PodRecord {
            id,
            meta: ObjectMeta {
                uid: id.to_string(),
                ..ObjectMeta::default()
            },
            spec: PodSpec {
                hostname: "h".repeat(hostname_bytes),
                ..PodSpec::default()
            },
            status: PodStatus::default(),
            notes: Notes::default(),
        })
    }

    async fn next(stream: &mut CardStream) -> to_card::Message {
        stream.next().await.unwrap().unwrap().message.unwrap()
    }

    #[tokio::test]
    async fn a_slow_card_hears_the_newest_of_each_pod() {
        let outbox = Arc::new(Outbox::default());
        let (mut stream, _gone) = outbox.stream();
        for version in 1..=10_000 {
            outbox.assign(pod(u128::from(version % 3), 1), version);
        }
        assert_eq!(outbox.len(), 3);
        let to_card::Message::Changes(changes) = next(&mut stream).await else {
            panic!("no changes");
        };
        let versions = changes
            .assign
            .iter()
            .map(|pod| pod.metadata.as_ref().unwrap());
        let versions: Vec<u64> = versions.map(|meta| meta.resource_version).collect();
        assert_eq!(versions, [9_998, 9_999, 10_000]);
        outbox.assign(pod(1, 1), 10_001);
        outbox.release(Uuid::from_u128(1).to_string());
        let to_card::Message::Changes(changes) = next(&mut stream).await else {
            panic!("no changes");
        };
        assert!(changes.assign.is_empty());
        assert_eq!(changes.release_uids, [Uuid::from_u128(1).to_string()]);
    }

    #[tokio::test]
    async fn many_pods_come_in_parts_and_the_end_comes_first() {
        let outbox = Arc::new(Outbox::default());
        let (mut stream, _gone) = outbox.stream();
        let all = (0..100).map(|id| (pod(id, 40_000), 1)).collect();
        outbox.assign(pod(7, 1), 2);
        outbox.begin(Registered::default(), all);
        assert!(matches!(
            next(&mut stream).await,
            to_card::Message::Registered(_)
        ));
        let mut parts = 0;
        let mut pods = 0;
        loop {
            let to_card::Message::Assignments(part) = next(&mut stream).await else {
                panic!("no assignments");
            };
            assert!(part.encoded_len() < PART_BYTES + 50_000);
            parts += 1;
            pods += part.pods.len();
            if !part.more {
                break;
            }
        }
        assert_eq!((parts, pods), (4, 100));
        outbox.end(Status::aborted("fenced"));
        assert_eq!(
            stream.next().await.unwrap().unwrap_err().code(),
            tonic::Code::Aborted
        );
        assert!(stream.next().await.is_none());
    }
}
