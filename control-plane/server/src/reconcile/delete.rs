//! A pod that shall go.

use longship_proto::Failure;
use longship_proto::control::v1::Pod;

use super::command::{Access, Answer};
use super::plan::refuse;
use super::state::{Now, State};
use crate::pods::PodRecord;

/// Reason of a pod whose card is not heard of.
pub(super) const UNREACHABLE: &str = "HostUnreachable";

impl State {
    /// Marks a pod for deletion, or lets it go at once where no card has anything of
    /// it. Asking again is harmless, and may change the grace.
    pub(super) fn delete(
        &mut self,
        now: Now,
        (namespace, name): (&str, &str),
        grace_seconds: Option<u32>,
        if_uid: &str,
        answer: Answer<Pod>,
    ) {
        let Some(found) = self.pods.find(namespace, name) else {
            return refuse(answer, no_pod(namespace, name));
        };
        if !if_uid.is_empty() && found.meta.uid != if_uid {
            let failure = Failure {
                field: "if_uid".into(),
                ..Failure::conflict(format!("pod {namespace}/{name} is another by now"))
            };
            return refuse(answer, failure);
        }
        let mut record = PodRecord::clone(found);
        let before = record.clone();
        if !record.is_deleted() {
            record.meta.deleted_us = now.us;
        }
        if self.is_nowhere(&record) {
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
        let id = record.id;
        if record != before {
            self.save(record);
            self.tell_card(id);
        }
        self.plan.reply_with(answer, move |written| {
            let version = written.pods.version(id);
            let now = written.pods.get(id);
            now.map_or_else(|| before.to_pod(version), |now| now.to_pod(version))
        });
    }

    /// Whether no card has anything of a pod, or will be asked what it has.
    fn is_nowhere(&self, record: &PodRecord) -> bool {
        let host = &record.status.host;
        let fenced = self.inventory.record(host).is_none_or(|host| host.fenced);
        host.is_empty() || fenced || self.is_held_back(record.id)
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
                "pod {namespace}/{name} runs nowhere: {}",
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
            host: host.clone(),
            uid: record.meta.uid.clone(),
        })
    }

    /// Says in a pod's status that its card is not heard of.
    pub(super) fn say_unreachable(&self, record: &mut PodRecord) {
        let host = &record.status.host;
        let silent = self.leases.duration().as_secs_f32();
        let given_up = (self.leases.duration() + self.leases.fence_after()).as_secs_f32();
        record.status.message = if record.is_deleted() {
            format!(
                "the deletion waits for host `{host}`: its card has been silent for over \
                 {silent} s, and only it can release the pod until the host is given up \
                 after {given_up} s"
            )
        } else {
            format!(
                "host `{host}` is unreachable: its card has been silent for over {silent} s; \
                 the pod may still run, and is given up after {given_up} s"
            )
        };
        UNREACHABLE.clone_into(&mut record.status.reason);
    }
}

pub(super) fn no_pod(namespace: &str, name: &str) -> Failure {
    Failure::not_found(format!("no pod {namespace}/{name}"))
}
