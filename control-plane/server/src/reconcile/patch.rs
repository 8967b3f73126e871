//! What may change of a pod while it lives: labels, annotations, grace.

use std::collections::HashMap;

use longship_proto::Failure;
use longship_proto::control::v1::Pod;
use prost::Message;

use super::command::Answer;
use super::delete::no_pod;
use super::plan::refuse;
use super::state::State;
use crate::pods::PodRecord;
use crate::validate::{self, PodPatch};

impl State {
    /// Changes a pod. What it is run as stays, so its generation does; but selectors
    /// mean it by its new labels from now on.
    pub(super) fn patch(&mut self, patch: PodPatch, answer: Answer<Pod>) {
        match self.patch_pod(patch) {
            Ok(record) => self.plan.reply_with(answer, move |written| {
                let version = written.pods.version(record.id);
                let now = written.pods.get(record.id);
                now.map_or_else(|| record.to_pod(version), |now| now.to_pod(version))
            }),
            Err(failure) => refuse(answer, failure),
        }
    }

    fn patch_pod(&mut self, patch: PodPatch) -> Result<PodRecord, Failure> {
        let (namespace, name) = (&patch.namespace, &patch.name);
        let found = self.pods.find(namespace, name);
        let found = found.ok_or_else(|| no_pod(namespace, name))?;
        let before = PodRecord::clone(found);
        let id = before.id;
        let version = self.pods.version(id);
        if patch.if_version != 0 && (patch.if_version != version || self.pods.is_changed(id)) {
            return Err(Failure {
                field: "if_resource_version".into(),
                ..Failure::conflict(format!("pod {namespace}/{name} has a later version"))
            });
        }
        let mut record = before.clone();
        apply(
            &mut record.meta.labels,
            patch.set_labels,
            &patch.remove_labels,
        );
        validate::labels("set_labels", &record.meta.labels)?;
        let annotations = &mut record.meta.annotations;
        apply(
            annotations,
            patch.set_annotations,
            &patch.remove_annotations,
        );
        validate::annotations("set_annotations", annotations)?;
        if patch.grace_seconds.is_some() {
            record.spec.termination_grace_seconds = patch.grace_seconds;
        }
        validate::pod_size(record.meta.encoded_len() + record.spec.encoded_len())?;
        if record == before {
            return Ok(record);
        }
        let labels = record.meta.labels != before.meta.labels;
        let grace = record.spec.termination_grace_seconds != before.spec.termination_grace_seconds;
        self.save(record.clone());
        if labels {
            self.pods.set_former(id, before.meta.labels);
            self.relabel(&record);
        }
        if grace {
            self.tell_card(id);
        }
        Ok(record)
    }

    /// Tells the scheduler of a pod's new labels, wherever it has the pod.
    fn relabel(&mut self, record: &PodRecord) {
        let labels = record.meta.labels.iter();
        let labels = labels.map(|(key, value)| (key.clone(), value.clone()));
        let placed = self.fleet.relabel(record.pod_id(), &labels.collect());
        if placed.is_err() && self.backlog.cancel(&mut self.fleet, record.pod_id()) {
            self.wait_again(record.id);
        }
    }
}

fn apply(map: &mut HashMap<String, String>, set: HashMap<String, String>, remove: &[String]) {
    for key in remove {
        map.remove(key);
    }
    map.extend(set);
}
