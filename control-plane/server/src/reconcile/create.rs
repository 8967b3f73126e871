//! A new pod.

use longship_proto::Failure;
use longship_proto::control::v1::{Pod, PodStatus};
use longship_scheduler::Refusal;
use longship_store::{Expect, Transaction};
use prost::Message;
use uuid::Uuid;

use super::command::Answer;
use super::plan::refuse;
use super::state::{Now, State};
use crate::pods::PodRecord;
use crate::records;
use crate::validate::NewPod;

impl State {
    pub(super) fn create(&mut self, now: Now, pod: NewPod, id: Uuid, answer: Answer<Pod>) {
        match self.create_pod(now, pod, id) {
            Ok(record) => self.plan.reply(true, answer, move |version| {
                record.to_pod(version.unwrap_or_default())
            }),
            Err(failure) => refuse(answer, failure),
        }
    }

    fn create_pod(&mut self, now: Now, pod: NewPod, id: Uuid) -> Result<PodRecord, Failure> {
        let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
        if let Some(existing) = self.pods.find(namespace, name) {
            let ending = match existing.is_deleted() {
                true => " and is being deleted",
                false => "",
            };
            return Err(Failure {
                field: "metadata.name".into(),
                ..Failure::conflict(format!("pod {namespace}/{name} exists{ending}"))
            });
        }
        let tenant = self.tenancy.tenant_of(namespace);
        let tenant = tenant.map(str::to_owned).ok_or_else(|| Failure {
            field: "metadata.namespace".into(),
            ..Failure::not_found(format!("no tenant has the namespace `{namespace}`"))
        })?;
        self.scheduler.check(&pod.request).map_err(refusal)?;
        let mut spec = pod.spec;
        let new_vpc = self.ipam.join(&tenant, &mut spec)?;

        let mut transaction = Transaction::new();
        if let Some((name, record)) = new_vpc {
            let bytes = record.encode_to_vec();
            transaction = transaction.put(records::VPC, &name, bytes, Expect::Absent);
        }
        let mut meta = pod.metadata;
        meta.uid = id.to_string();
        meta.tenant = tenant;
        meta.generation = 1;
        meta.created_us = now.us;
        let mut record = PodRecord {
            id,
            meta,
            spec,
            status: PodStatus::default(),
        };
        self.place(now, &mut record, &pod.request);
        self.save_with(record.clone(), transaction);
        Ok(record)
    }
}

/// The scheduler's refusal, with the field that it is about.
fn refusal(refusal: Refusal) -> Failure {
    let field = match refusal {
        Refusal::UnknownZone { .. } => "spec.zone",
        Refusal::UnknownFlavor { .. } | Refusal::FlavorTooSmall { .. } => "spec.flavor",
        Refusal::TooLarge { .. } => "spec.containers",
        _ => "spec",
    };
    Failure::invalid(field, refusal.to_string())
}
