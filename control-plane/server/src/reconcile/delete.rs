//! A pod that shall go.

use longship_proto::Failure;
use longship_proto::control::v1::Pod;

use super::command::{Access, Answer};
use super::plan::{Tell, refuse};
use super::state::{Now, State};
use crate::pods::PodRecord;

/// Reason of a pod whose card is not heard of.
pub(super) const UNREACHABLE: &str = "HostUnreachable";

impl State {
    /// Marks a pod for deletion, or lets it go at once where no card has seen it.
    /// Asking again is harmless, and may change the grace.
    pub(super) fn delete(
        &mut self,
        now: Now,
        (namespace, name): (&str, &str),
        grace_seconds: Option<u32>,
        answer: Answer<Pod>,
    ) {
        let Some(found) = self.pods.find(namespace, name) else {
            return refuse(answer, no_pod(namespace, name));
        };
        let mut record = found.clone();
        if !record.is_deleted() {
            record.meta.deleted_us = now.us;
        }
        if record.status.host.is_empty() {
            let record = self.forget(record);
            return self.plan.reply(true, answer, move |version| {
                record.to_pod(version.unwrap_or_default())
            });
        }
        if grace_seconds.is_some() {
            // No new generation: what runs is the same, only its end changes.
            record.spec.termination_grace_seconds = grace_seconds;
        }
        if !self.leases.holds(&record.status.host) {
            self.say_unreachable(&mut record);
        }
        let changed = record != *found;
        let version = self.pods.version(record.id);
        if changed {
            self.plan.tell.push(Tell::Assign {
                host: record.status.host.clone(),
                id: record.id,
            });
            self.save(record.clone());
        }
        self.plan.reply(changed, answer, move |written| {
            record.to_pod(written.unwrap_or(version))
        });
    }

    /// Where a pod's streams are to be had.
    pub(super) fn access(&mut self, namespace: &str, name: &str, answer: Answer<Access>) {
        match self.find_access(namespace, name) {
            Ok(access) => self.plan.reply(false, answer, move |_| access),
            Err(failure) => refuse(answer, failure),
        }
    }

    fn find_access(&self, namespace: &str, name: &str) -> Result<Access, Failure> {
        let found = self.pods.find(namespace, name);
        let record = found.ok_or_else(|| no_pod(namespace, name))?;
        let host = &record.status.host;
        if host.is_empty() {
            return Err(Failure::unavailable(format!(
                "pod {namespace}/{name} runs nowhere yet: {}",
                record.status.message
            )));
        }
        if !self.leases.holds(host) {
            return Err(Failure::unavailable(format!(
                "pod {namespace}/{name} is on host `{host}`, whose card is not heard of"
            )));
        }
        Ok(Access {
            endpoint: self.inventory.endpoint(host).unwrap_or_default().to_owned(),
            uid: record.meta.uid.clone(),
        })
    }

    /// Says in a pod's status that its card is not heard of.
    pub(super) fn say_unreachable(&self, record: &mut PodRecord) {
        let host = &record.status.host;
        let silent = self.leases.duration().as_secs_f32();
        record.status.message = if record.is_deleted() {
            format!(
                "the deletion waits for host `{host}`: its card has been silent for over \
                 {silent} s, and only it can release the pod"
            )
        } else {
            format!(
                "host `{host}` is unreachable: its card has been silent for over {silent} s; \
                 the pod may still run"
            )
        };
        UNREACHABLE.clone_into(&mut record.status.reason);
    }
}

fn no_pod(namespace: &str, name: &str) -> Failure {
    Failure::not_found(format!("no pod {namespace}/{name}"))
}
