//! One watcher: what exists, then what changes, as fast as it reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use longship_proto::Failure;
use longship_proto::control::v1::pod_event::Type;
use longship_scheduler::Selector;
use longship_store::{Object, Store, StoreError, Watch};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::audience::{PodSet, Seat};
use super::change::{Change, EncodedEvent};
use super::feed::Feed;
use crate::api::Control;
use crate::reconcile::tenant_of_pod;
use crate::records::{self, decode_pod};

/// Pods that are read at once for a watcher that begins.
const PAGE: usize = 256;
/// Changes that are looked at in one go.
const PART: usize = 64;

/// Serves one watcher.
pub(super) struct Follower {
    store: Arc<dyn Store>,
    feed: Arc<Feed>,
    seat: Seat,
    set: PodSet,
    selector: Selector,
    queue: mpsc::Sender<EncodedEvent>,
    patience: Duration,
    /// How often it is told that nothing changes; `None`: never.
    bookmarks: Option<Duration>,
    /// Whether what exists is told first.
    list: bool,
    /// Everything up to this version has been told, or is known to the watcher.
    told: u64,
    /// Pods that were told in a version after `told`, since they changed while they
    /// were listed.
    ahead: HashMap<String, u64>,
    /// When something was sent last.
    sent: Instant,
}

/// Why a watcher is served no longer.
enum Over {
    /// It has gone.
    Gone,
    /// It cannot be served.
    Failed(Failure),
}

impl From<Failure> for Over {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<StoreError> for Over {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooOld { .. } => Self::Failed(too_slow()),
            error => Self::Failed(error.into()),
        }
    }
}

/// Where the changes are read.
enum Source {
    /// Among the latest, from that number on.
    Recent(u64),
    /// In the store's log, for one that is too late for those.
    Log(Watch),
}

impl Follower {
    /// Begins after a version; 0: with what exists.
    pub(super) async fn begin(
        control: &Control,
        set: PodSet,
        selector: Selector,
        bookmarks: bool,
        after: u64,
        queue: mpsc::Sender<EncodedEvent>,
    ) -> Result<Self, Failure> {
        let feed = Arc::clone(&control.feed);
        // It listens before it looks, so that nothing falls between.
        let seat = feed.audience.join(set.clone(), &selector);
        let follower = Self {
            store: Arc::clone(&control.store),
            feed,
            seat,
            set,
            selector,
            queue,
            patience: control.watcher_patience,
            bookmarks: bookmarks.then_some(control.bookmark_interval),
            list: after == 0,
            told: after,
            ahead: HashMap::new(),
            sent: Instant::now(),
        };
        if after > 0 {
            // A version that cannot be watched from is refused, not ended later.
            follower.log().await?;
        }
        Ok(follower)
    }

    async fn log(&self) -> Result<Watch, StoreError> {
        let prefixes = self.set.prefixes();
        let prefix = match &prefixes[..] {
            [one] => one,
            _ => "",
        };
        self.store.watch(records::POD, prefix, self.told).await
    }

    /// Tells until the watcher is gone (`None`) or cannot be served.
    pub(super) async fn follow(mut self) -> Option<Failure> {
        match self.serve().await {
            Ok(never) => match never {},
            Err(Over::Gone) => None,
            Err(Over::Failed(failure)) => Some(failure),
        }
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, Over> {
        if self.list {
            self.tell_what_exists().await?;
        }
        let mut source = self.source().await?;
        loop {
            source = match source {
                Source::Recent(number) => self.tell_recent(number).await?,
                Source::Log(watch) => self.tell_logged(watch).await?,
            };
        }
    }

    async fn source(&self) -> Result<Source, Over> {
        Ok(match self.feed.recent.number_after(self.told) {
            Some(number) => Source::Recent(number),
            None => Source::Log(self.log().await?),
        })
    }

    async fn tell_what_exists(&mut self) -> Result<(), Over> {
        // The last is sent when it is known to be the last: only then is there a
        // version to go on from.
        let mut last: Option<EncodedEvent> = None;
        let mut first_page = true;
        for prefix in self.set.prefixes() {
            let mut after: Option<String> = None;
            loop {
                let page = self
                    .store
                    .list_page(records::POD, &prefix, after.as_deref(), PAGE);
                let page = page.await?;
                if std::mem::take(&mut first_page) {
                    self.told = page.version;
                }
                for object in &page.objects {
                    let Some(event) = self.existing(object)? else {
                        continue;
                    };
                    if object.version > self.told {
                        self.ahead.insert(object.key.clone(), object.version);
                    }
                    if let Some(before) = last.replace(event) {
                        self.send(before).await?;
                    }
                }
                after = page.objects.last().map(|object| object.key.clone());
                // Of the keys that begin with a pod's the pod's own is the first.
                if !page.more || after.is_none() || matches!(self.set, PodSet::Pod(_)) {
                    break;
                }
            }
        }
        if first_page {
            // A tenant without a namespace.
            self.told = self.feed.recent.newest();
        }
        if let Some(event) = last {
            let resource_version = self.told;
            self.send(EncodedEvent {
                resource_version,
                ..event
            })
            .await?;
        }
        if self.bookmarks.is_some() {
            self.send(EncodedEvent::bookmark(self.told)).await?;
        }
        Ok(())
    }

    /// A pod that is there, if it is wanted.
    fn existing(&self, object: &Object) -> Result<Option<EncodedEvent>, Failure> {
        let pod = decode_pod(object).map_err(|error| Failure::internal(error.to_string()))?;
        let meta = pod.metadata.as_ref();
        let tenant = meta.map_or("", tenant_of_pod);
        let wanted = self.set.has_key(&object.key, tenant);
        let labels = meta.map(|meta| &meta.labels);
        let label = |key: &str| {
            labels
                .and_then(|labels| labels.get(key))
                .map(String::as_str)
        };
        if !wanted || !self.selector.matches_with(label) {
            return Ok(None);
        }
        Ok(Some(EncodedEvent {
            r#type: Type::Added.into(),
            pod: Some(pod.encode_to_vec().into()),
            // There is no version yet from which nothing would be missed.
            resource_version: 0,
        }))
    }

    async fn tell_recent(&mut self, mut number: u64) -> Result<Source, Over> {
        loop {
            let Some(part) = self.feed.recent.from(number, PART) else {
                return Ok(Source::Log(self.log().await?));
            };
            number = part.next;
            for change in &part.changes {
                self.tell(change).await?;
            }
            if let Some(last) = part.changes.last() {
                self.reached(last.complete_to());
            }
            if let Some(newest) = part.newest {
                self.reached(newest);
                self.bookmark_if_due().await?;
                let due = self.bookmark_due();
                tokio::select! {
                    heard = self.seat.ear.next() => number = number.max(heard),
                    () = self.queue.closed() => return Err(Over::Gone),
                    () = at(due) => {}
                }
            }
        }
    }

    async fn tell_logged(&mut self, mut watch: Watch) -> Result<Source, Over> {
        loop {
            let due = self.bookmark_due();
            let events = tokio::select! {
                events = watch.next() => events?,
                () = self.queue.closed() => return Err(Over::Gone),
                () = at(due) => {
                    self.bookmark_if_due().await?;
                    continue;
                }
            };
            let changes = Change::of_all(&events);
            let changes = changes.map_err(|error| Failure::internal(error.to_string()))?;
            for change in &changes {
                self.tell(change).await?;
            }
            if let Some(last) = changes.last() {
                self.reached(last.version);
            }
            if let Some(number) = self.feed.recent.number_after(self.told) {
                return Ok(Source::Recent(number));
            }
        }
    }

    fn reached(&mut self, version: u64) {
        if version > self.told {
            self.told = version;
            self.ahead.retain(|_, ahead| *ahead > version);
        }
    }

    async fn tell(&mut self, change: &Change) -> Result<(), Over> {
        let known = self
            .ahead
            .get(&change.key)
            .is_some_and(|ahead| change.version <= *ahead);
        if change.version <= self.told || known || !self.set.has(change) {
            return Ok(());
        }
        match change.seen_by(&self.selector) {
            Some(event) => self.send(event).await,
            None => Ok(()),
        }
    }

    fn bookmark_due(&self) -> Option<Instant> {
        self.bookmarks.map(|interval| self.sent + interval)
    }

    async fn bookmark_if_due(&mut self) -> Result<(), Over> {
        match self.bookmark_due() {
            Some(due) if due <= Instant::now() => {
                self.send(EncodedEvent::bookmark(self.told)).await
            }
            _ => Ok(()),
        }
    }

    async fn send(&mut self, event: EncodedEvent) -> Result<(), Over> {
        match self.queue.send_timeout(event, self.patience).await {
            Ok(()) => {
                self.sent = Instant::now();
                Ok(())
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Over::Gone),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(too_slow().into()),
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn too_slow() -> Failure {
    Failure::exhausted("the watch was read too slowly and has missed changes: list and watch again")
}
