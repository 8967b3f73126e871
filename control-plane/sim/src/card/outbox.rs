//! News of pods on their way to the control plane, merged and sent in batches as the
//! real card does.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use longship_proto::control::v1::{Phase, PodReport, PodStatus};
use tokio::time::Instant;

/// How long news that nobody waits for may wait for more of the same pod.
const LINGER: Duration = Duration::from_millis(100);
/// Reports that are sent together, at most.
const BATCH: usize = 256;

/// Which pods there is news of.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// To be sent now, the oldest first, each pod once; and since when.
    queue: VecDeque<(String, Instant)>,
    queued: BTreeSet<String>,
    /// To be sent when the oldest of them has lingered.
    lingering: BTreeSet<String>,
    until: Option<Instant>,
    /// Nothing is left of them but this.
    gone: VecDeque<(PodReport, Instant)>,
}

impl Outbox {
    /// To be sent at once.
    pub(crate) fn news(&mut self, uid: &str, at: Instant) {
        self.lingering.remove(uid);
        if self.queued.insert(uid.to_owned()) {
            self.queue.push_back((uid.to_owned(), at));
        }
    }

    /// To be sent in a moment.
    pub(crate) fn news_soon(&mut self, uid: &str, at: Instant) {
        if self.queued.contains(uid) {
            return;
        }
        if self.lingering.is_empty() {
            self.until = Some(at + LINGER);
        }
        self.lingering.insert(uid.to_owned());
    }

    /// The pod has given everything back.
    pub(crate) fn gone(&mut self, uid: &str, generation: u64, at: Instant) {
        self.lingering.remove(uid);
        if self.queued.remove(uid) {
            self.queue.retain(|(queued, _)| queued != uid);
        }
        let report = PodReport {
            uid: uid.to_owned(),
            generation,
            status: Some(PodStatus {
                phase: Phase::Released.into(),
                ..PodStatus::default()
            }),
        };
        self.gone.push_back((report, at));
    }

    /// When there is something to send.
    pub(crate) fn due(&self) -> Option<Instant> {
        let now = self.queue.front().map(|(_, since)| *since);
        let gone = self.gone.front().map(|(_, since)| *since);
        let lingering = self.until.filter(|_| !self.lingering.is_empty());
        [now, gone, lingering].into_iter().flatten().min()
    }

    /// Takes what is due; `look` tells generation and status of a pod that is there.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        look: impl Fn(&str) -> Option<(u64, PodStatus)>,
    ) -> Vec<PodReport> {
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
            for uid in std::mem::take(&mut self.lingering) {
                self.news(&uid, now);
            }
        }
        let mut reports = Vec::new();
        while reports.len() < BATCH
            && let Some((gone, _)) = self.gone.pop_front()
        {
            reports.push(gone);
        }
        while reports.len() < BATCH
            && let Some((uid, _)) = self.queue.pop_front()
        {
            self.queued.remove(&uid);
            if let Some((generation, status)) = look(&uid) {
                reports.push(PodReport {
                    uid,
                    generation,
                    status: Some(status),
                });
            }
        }
        reports
    }
}
