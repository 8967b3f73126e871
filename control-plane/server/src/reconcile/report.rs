//! What cards say of their pods.

use longship_proto::control::v1::{Phase, PodReport, PodStatus};
use uuid::Uuid;

use super::placement::COMPONENT;
use super::plan::Tell;
use super::state::{Now, State};
use crate::phase::{is_over, may_follow};
use crate::pods::PodRecord;

/// Bounds on what a card may say of one pod: it is stored, and sent to watchers.
const MAX_STAGES: usize = 64;
const MAX_WORD: usize = 128;
const MAX_MESSAGE: usize = 4096;

impl State {
    /// Takes a report over into the pod's status. One that is stale, of a pod that is
    /// not this host's, or that goes back in the pod's life, changes nothing.
    pub(super) fn report(&mut self, now: Now, host: &str, report: PodReport) {
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
        let (id, pod) = (record.id, &record.meta.uid);
        if report.generation != record.meta.generation {
            tracing::debug!(pod, host, generation = report.generation, "stale report");
            return;
        }
        let (before, next) = (record.status.phase(), reported.phase());
        if !may_follow(before, next) {
            tracing::warn!(
                pod,
                host,
                ?before,
                ?next,
                "a report goes back in the pod's life"
            );
            return;
        }
        if next == Phase::Released {
            if record.is_deleted() {
                let record = PodRecord::clone(record);
                self.forget(record);
            } else if record.notes.eviction.is_some() {
                self.has_left(now, id);
            } else {
                tracing::warn!(pod, host, "released, though nobody asked for it");
            }
            return;
        }
        let status = taken_over(record, reported);
        if status == record.status {
            return;
        }
        if is_over(next) && !is_over(before) {
            // The card reports the end of a pod after it has given the sandbox back.
            self.leave_host(id);
        }
        self.change(id, |record| record.status = status);
    }
}

/// The status with what is the card's to say, within bounds. Host, zone, flavor, ENI
/// and the control plane's own stages are not, nor is why it has to leave.
fn taken_over(record: &PodRecord, reported: PodStatus) -> PodStatus {
    let own = &record.status;
    let phase = reported.phase();
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
    if let Some(eviction) = &record.notes.eviction
        && !is_over(phase)
    {
        eviction.reason.clone_into(&mut reason);
        eviction.message.clone_into(&mut message);
    }
    PodStatus {
        phase: reported.phase,
        reason,
        message,
        containers,
        timeline,
        host: own.host.clone(),
        zone: own.zone.clone(),
        flavor: own.flavor.clone(),
        eni: own.eni.clone(),
        moves: own.moves,
    }
}

pub(super) fn shorten(text: &mut String, most: usize) {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
