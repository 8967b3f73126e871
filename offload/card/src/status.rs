//! The status of each pod as the card sees it, and its way to the control plane:
//! only the newest counts, so reports are merged while the link is busy or down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longship_proto::control::v1::{Phase, PodReport, PodStatus, Stage};
use tokio::sync::Notify;

use longship_proto::now_us;

/// The newest report of each pod, and which of them have not been sent yet.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    latest: HashMap<String, PodReport>,
    unsent: Vec<String>,
}

impl Reports {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the newest report of a pod in the place of an older one.
    pub(crate) fn put(&self, report: PodReport) {
        let mut state = self.state();
        if !state.unsent.contains(&report.uid) {
            state.unsent.push(report.uid.clone());
        }
        state.latest.insert(report.uid.clone(), report);
        drop(state);
        self.changed.notify_one();
    }

    /// Everything is to be sent again: the link is new.
    pub(crate) fn resend(&self) {
        let mut state = self.state();
        state.unsent = state.latest.keys().cloned().collect();
        drop(state);
        self.changed.notify_one();
    }

    /// Takes the next report to be sent, waiting for one. Cancel-safe: a report is
    /// taken only when it is returned.
    pub(crate) async fn next(&self) -> PodReport {
        loop {
            if let Some(report) = self.take() {
                return report;
            }
            self.changed.notified().await;
        }
    }

    fn take(&self) -> Option<PodReport> {
        let mut state = self.state();
        while let Some(uid) = state.unsent.pop() {
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
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut inner.1);
        self.reports.put(PodReport {
            uid: self.uid.clone(),
            generation: inner.0,
            status: Some(inner.1.clone()),
        });
    }

    /// The phase as it is now.
    pub(crate) fn phase(&self) -> Phase {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.phase()
    }

    /// From now on reports speak of this generation.
    pub(crate) fn set_generation(&self, generation: u64) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).0 = generation;
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
        self.update(|status| {
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

    fn phase(report: &PodReport) -> Phase {
        report.status.as_ref().unwrap().phase()
    }

    #[tokio::test]
    async fn only_the_newest_report_of_a_pod_is_sent() {
        let reports = Reports::default();
        reports.put(report("a", Phase::Preparing));
        reports.put(report("a", Phase::Running));
        assert_eq!(phase(&reports.next().await), Phase::Running);
        assert!(reports.take().is_none());
    }

    #[tokio::test]
    async fn a_new_link_hears_everything_but_the_released() {
        let reports = Reports::default();
        reports.put(report("a", Phase::Running));
        reports.put(report("b", Phase::Released));
        reports.next().await;
        reports.next().await;
        reports.resend();
        assert_eq!(reports.next().await.uid, "a");
        assert!(reports.take().is_none());
    }
}
