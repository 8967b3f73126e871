//! What cards say of their pods.

use longship_proto::control::v1::{Phase, PodReport, PodStatus};
use uuid::Uuid;

use super::placement::COMPONENT;
use super::plan::Tell;
use super::state::State;
use crate::phase::{is_over, may_follow};
use crate::pods::PodRecord;

/// Bounds on what a card may say of one pod: it is stored, and sent to watchers.
const MAX_STAGES: usize = 64;
const MAX_WORD: usize = 128;
const MAX_MESSAGE: usize = 4096;

impl State {
    /// Takes a report over into the pod's status. One that is stale, of a pod that is
    /// not this host's, or that goes back in the pod's life, changes nothing.
    pub(super) fn report(&mut self, host: &str, report: PodReport) {
        let reported = report.status.unwrap_or_default();
        let record = Uuid::parse_str(&report.uid)
            .ok()
            .and_then(|id| self.pods.get(id))
            .filter(|record| record.status.host == host);
        let Some(record) = record else {
            // A pod that the card has already released needs no answer.
            if reported.phase() != Phase::Released {
                let (host, uid) = (host.to_owned(), report.uid);
                self.plan.tell.push(Tell::Release { host, uid });
            }
            return;
        };
        let pod = &record.meta.uid;
        if report.generation != record.meta.generation {
            tracing::debug!(pod, host, generation = report.generation, "stale report");
            return;
        }
        let (now, next) = (record.status.phase(), reported.phase());
        if !may_follow(now, next) {
            tracing::warn!(
                pod,
                host,
                ?now,
                ?next,
                "a report goes back in the pod's life"
            );
            return;
        }
        if next == Phase::Released {
            if record.is_deleted() {
                let record = record.clone();
                self.forget(record);
            } else {
                tracing::warn!(pod, host, "released, though nobody asked for it");
            }
            return;
        }
        let mut changed = record.clone();
        take_over(&mut changed, reported);
        if changed == *record {
            return;
        }
        if is_over(next) && !is_over(now) {
            // The card reports the end of a pod after it has given the sandbox back.
            let _ = self.scheduler.release(changed.pod_id());
            self.room = true;
        }
        self.save(changed);
    }
}

/// Takes over what is the card's to say, within bounds. Host, zone, flavor, ENI and
/// the control plane's own stages are not.
fn take_over(record: &mut PodRecord, reported: PodStatus) {
    let own = &record.status;
    let mut timeline: Vec<_> = own
        .timeline
        .iter()
        .filter(|stage| stage.component == COMPONENT)
        .cloned()
        .collect();
    let theirs = reported.timeline.into_iter();
    timeline.extend(theirs.filter(|stage| stage.component != COMPONENT));
    timeline.sort_by_key(|stage| stage.start_us);
    timeline.truncate(MAX_STAGES);
    for stage in &mut timeline {
        shorten(&mut stage.name, MAX_WORD);
        shorten(&mut stage.component, MAX_WORD);
    }

    let mut containers = reported.containers;
    containers.retain(|one| record.spec.containers.iter().any(|c| c.name == one.name));
    containers.truncate(record.spec.containers.len());
    for container in &mut containers {
        shorten(&mut container.reason, MAX_WORD);
        shorten(&mut container.image_digest, MAX_WORD);
    }

    let (mut reason, mut message) = (reported.reason, reported.message);
    shorten(&mut reason, MAX_WORD);
    shorten(&mut message, MAX_MESSAGE);
    let status = &mut record.status;
    status.phase = reported.phase;
    status.reason = reason;
    status.message = message;
    status.containers = containers;
    status.timeline = timeline;
}

fn shorten(text: &mut String, most: usize) {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
