//! The status of each pod as the card sees it, and its way to the control plane:
//! only the newest counts, so reports are merged while the link is busy or down.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longship_proto::control::v1::{Phase, PodReport, PodStatus, Stage};
use tokio::sync::Notify;
use tokio::time::Instant;

use longship_proto::now_us;

/// How long news that nobody waits for may wait for more of the same pod: a start that
/// goes well is one report then, not ten.
const LINGER: Duration = Duration::from_millis(100);
/// Reports that are sent together, at most.
const BATCH: usize = 256;

/// The newest report of each pod, and which of them have not been sent yet.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    latest: HashMap<String, PodReport>,
    /// To be sent now, the oldest first; each pod once.
    queue: VecDeque<String>,
    queued: HashSet<String>,
    /// To be sent when the oldest of them has lingered.
    lingering: HashSet<String>,
    until: Option<Instant>,
}

impl State {
    fn queue(&mut self, uid: String) {
        self.lingering.remove(&uid);
        if self.queued.insert(uid.clone()) {
            self.queue.push_back(uid);
        }
    }

    fn queue_lingering(&mut self) {
        self.until = None;
        for uid in std::mem::take(&mut self.lingering) {
            self.queue(uid);
        }
    }
}

impl Reports {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the newest report of a pod in the place of an older one, to be sent at once.
    pub(crate) fn put(&self, report: PodReport) {
        let mut state = self.state();
        state.queue(report.uid.clone());
        state.latest.insert(report.uid.clone(), report);
        drop(state);
        self.changed.notify_one();
    }

    /// As [`Reports::put`], but it may wait a moment for more news of the pod.
    pub(crate) fn put_soon(&self, report: PodReport) {
        let mut state = self.state();
        if !state.queued.contains(&report.uid) {
            state.lingering.insert(report.uid.clone());
        }
        state.latest.insert(report.uid.clone(), report);
        let first = state.until.is_none();
        state.until.get_or_insert_with(|| Instant::now() + LINGER);
        drop(state);
        if first {
            self.changed.notify_one();
        }
    }

    /// Everything is to be sent again: the link is new.
    pub(crate) fn resend(&self) {
        let mut state = self.state();
        let all: Vec<String> = state.latest.keys().cloned().collect();
        for uid in all {
            state.queue(uid);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Takes the next reports to be sent, waiting for one. Cancel-safe: a report is
    /// taken only when it is returned.
    pub(crate) async fn next(&self) -> Vec<PodReport> {
        loop {
            let reports: Vec<_> = std::iter::from_fn(|| self.take()).take(BATCH).collect();
            if !reports.is_empty() {
                return reports;
            }
            let until = self.state().until;
            match until {
                None => self.changed.notified().await,
                Some(until) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(until) => self.state().queue_lingering(),
                },
            }
        }
    }

    fn take(&self) -> Option<PodReport> {
        let mut state = self.state();
        while let Some(uid) = state.queue.pop_front() {
            state.queued.remove(&uid);
            let report = state.latest.get(&uid).cloned();
            if let Some(report) = report {
                let phase = report.status.as_ref().map(PodStatus::phase);
                if phase == Some(Phase::Released) {
                    // Nothing is left to speak of; if this one is lost, the control
                    // plane asks again when the link is back.
                    state.latest.remove(&uid);
                }
                return Some(report);
            }
        }
        None
    }
}

/// One pod's status: every change goes to [`Reports`].
#[derive(Debug, Clone)]
pub(crate) struct StatusCell {
    uid: String,
    inner: Arc<Mutex<(u64, PodStatus)>>,
    reports: Arc<Reports>,
}

impl StatusCell {
    /// A cell that begins with `status`, not reported yet.
    pub(crate) fn new(
        uid: &str,
        generation: u64,
        status: PodStatus,
        reports: Arc<Reports>,
    ) -> Self {
        Self {
            uid: uid.to_owned(),
            inner: Arc::new(Mutex::new((generation, status))),
            reports,
        }
    }

    /// Changes the status and reports it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut PodStatus)) {
        self.report(change, Reports::put);
    }

    /// Changes the status and reports it soon: for what is on its way to something
    /// that somebody waits for.
    pub(crate) fn update_soon(&self, change: impl FnOnce(&mut PodStatus)) {
        self.report(change, Reports::put_soon);
    }

    fn report(&self, change: impl FnOnce(&mut PodStatus), put: impl FnOnce(&Reports, PodReport)) {
        // Held to the end: the newest status is the last one put.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut inner.1);
        let report = PodReport {
            uid: self.uid.clone(),
            generation: inner.0,
            status: Some(inner.1.clone()),
        };
        put(&self.reports, report);
    }

    /// The phase as it is now.
    pub(crate) fn phase(&self) -> Phase {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.phase()
    }

    /// Measures a step of the start: its stage begins now and ends when `step` does.
    pub(crate) async fn stage<T>(&self, name: &str, step: impl Future<Output = T>) -> T {
        let start_us = now_us();
        let result = step.await;
        self.add_stages([stage("card", name, start_us, now_us())]);
        result
    }

    /// Adds measured steps; the timeline stays in order of their start.
    pub(crate) fn add_stages(&self, stages: impl IntoIterator<Item = Stage>) {
        self.update_soon(|status| {
            status.timeline.extend(stages);
            status.timeline.sort_by_key(|s| s.start_us);
        });
    }
}

/// A finished stage.
pub(crate) fn stage(component: &str, name: &str, start_us: i64, end_us: i64) -> Stage {
    Stage {
        name: name.to_owned(),
        component: component.to_owned(),
        start_us,
        end_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(uid: &str, phase: Phase) -> PodReport {
        let status = PodStatus {
            phase: phase.into(),
            ..PodStatus::default()
        };
        PodReport {
            uid: uid.into(),
            generation: 1,
            status: Some(status),
        }
    }

    /// Where one alone is waiting.
    async fn next(reports: &Reports) -> PodReport {
        let mut next = reports.next().await;
        assert_eq!(next.len(), 1);
        next.remove(0)
    }

    fn phase(report: &PodReport) -> Phase {
        report.status.as_ref().unwrap().phase()
    }

    #[tokio::test]
    async fn only_the_newest_report_of_a_pod_is_sent() {
        let reports = Reports::default();
        reports.put(report("a", Phase::Preparing));
        reports.put(report("a", Phase::Running));
        assert_eq!(phase(&next(&reports).await), Phase::Running);
        assert!(reports.take().is_none());
    }

    #[tokio::test]
    async fn reports_are_sent_in_the_order_of_their_pods_news() {
        let reports = Reports::default();
        for uid in ["b", "a", "c", "a"] {
            reports.put(report(uid, Phase::Running));
        }
        let sent = reports.next().await;
        let uids: Vec<&str> = sent.iter().map(|report| report.uid.as_str()).collect();
        assert_eq!(uids, ["b", "a", "c"]);
    }

    #[tokio::test]
    async fn the_steps_of_a_start_are_sent_with_its_end_or_after_a_moment() {
        let reports = Arc::new(Reports::default());
        let cell = StatusCell::new("a", 1, PodStatus::default(), reports.clone());
        cell.update_soon(|s| s.set_phase(Phase::Preparing));
        cell.add_stages([stage("card", "eni", 1, 2)]);
        assert!(reports.take().is_none());
        cell.update(|s| s.set_phase(Phase::Running));
        let sent = next(&reports).await;
        assert_eq!(phase(&sent), Phase::Running);
        assert_eq!(sent.status.unwrap().timeline.len(), 1);
        assert!(reports.take().is_none());

        let began = Instant::now();
        cell.add_stages([stage("card", "output", 3, 4)]);
        assert_eq!(next(&reports).await.status.unwrap().timeline.len(), 2);
        assert!(began.elapsed() >= LINGER);
        let idle = tokio::time::timeout(2 * LINGER, reports.next()).await;
        assert!(idle.is_err(), "there is nothing more to say");
    }

    #[tokio::test]
    async fn a_new_link_hears_everything_but_the_released() {
        let reports = Reports::default();
        reports.put(report("a", Phase::Running));
        reports.put(report("b", Phase::Released));
        assert_eq!(reports.next().await.len(), 2);
        reports.resend();
        assert_eq!(next(&reports).await.uid, "a");
        assert!(reports.take().is_none());
    }
}
