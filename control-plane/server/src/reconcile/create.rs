//! New pods: one, many, or a gang.

use longship_proto::Failure;
use longship_proto::control::v1::{Pod, PodSpec, PodStatus};
use longship_scheduler::{Class, Refusal};
use uuid::Uuid;

use super::command::{Answer, GangOrder};
use super::placement::waiting_since;
use super::plan::refuse;
use super::quota::Claim;
use super::state::{Now, State};
use crate::pods::PodRecord;
use crate::records::Notes;
use crate::template::template;
use crate::validate::{NewPod, Once};

impl State {
    pub(super) fn create(
        &mut self,
        now: Now,
        pod: (NewPod, Uuid),
        once: Option<Once>,
        answer: Answer<Pod>,
    ) {
        let created = self.create_once(now, once, vec![pod], None);
        let created = created.and_then(|created| {
            let none = || Failure::internal("nothing became of the pod");
            created.into_iter().next().unwrap_or_else(|| Err(none()))
        });
        match created {
            Ok(created) => self
                .plan
                .reply_with(answer, move |written| created.to_pod(written)),
            Err(failure) => refuse(answer, failure),
        }
    }

    /// Creates each pod for itself, or all or none of a gang.
    pub(super) fn create_many(
        &mut self,
        now: Now,
        pods: Vec<(NewPod, Uuid)>,
        gang: Option<GangOrder>,
        once: Option<Once>,
        answer: Answer<Vec<Result<Pod, Failure>>>,
    ) {
        match self.create_once(now, once, pods, gang) {
            Ok(created) => self.plan.reply_with(answer, move |written| {
                let created = created.into_iter();
                created
                    .map(|one| one.map(|created| created.to_pod(written)))
                    .collect()
            }),
            Err(failure) => refuse(answer, failure),
        }
    }

    pub(super) fn create_pod(
        &mut self,
        now: Now,
        mut pod: NewPod,
        id: Uuid,
    ) -> Result<PodRecord, Failure> {
        let tenant = self.tenant_of(&pod.metadata.namespace)?;
        let mut claim = Claim::default();
        self.check_name(&pod)?;
        self.join_network(&tenant, &mut pod)?;
        self.check_new(&tenant, &pod, &mut claim)?;
        self.claim(now, &tenant, &claim)?;
        let record = self.add_pod(now, tenant, pod, id);
        self.wait(id);
        Ok(record)
    }

    pub(super) fn create_gang(
        &mut self,
        now: Now,
        pods: Vec<(NewPod, Uuid)>,
        order: GangOrder,
    ) -> Vec<Result<PodRecord, Failure>> {
        let count = pods.len();
        match self.add_gang(now, pods, order) {
            Ok(records) => records.into_iter().map(Ok).collect(),
            Err(failure) => vec![Err(failure); count],
        }
    }

    fn add_gang(
        &mut self,
        now: Now,
        mut pods: Vec<(NewPod, Uuid)>,
        order: GangOrder,
    ) -> Result<Vec<PodRecord>, Failure> {
        let mut claim = Claim::default();
        let mut tenant = None;
        for (at, (pod, _)) in pods.iter_mut().enumerate() {
            let at_pod = |failure: Failure| Failure {
                field: format!("pods[{at}].{}", failure.field),
                ..failure
            };
            let its = self.tenant_of(&pod.metadata.namespace).map_err(at_pod)?;
            let whole = tenant.get_or_insert_with(|| its.clone());
            if *whole != its {
                return Err(at_pod(Failure::invalid(
                    "metadata.namespace",
                    "a gang's pods must all be one tenant's",
                )));
            }
            self.check_name(pod).map_err(at_pod)?;
            self.join_network(&its, pod).map_err(at_pod)?;
            self.check_new(&its, pod, &mut claim).map_err(at_pod)?;
        }
        let tenant = tenant.unwrap_or_default();
        self.claim(now, &tenant, &claim)?;
        let ids: Vec<Uuid> = pods.iter().map(|(_, id)| *id).collect();
        if let [_, _, ..] = ids.as_slice() {
            self.bind_gang(&ids, order.one_zone);
        }
        let records = pods.into_iter();
        let records = records
            .map(|(pod, id)| self.add_pod(now, tenant.clone(), pod, id))
            .collect();
        match ids.as_slice() {
            [] => {}
            [one] => self.wait(*one),
            [first, ..] => self.gang_waits(*first),
        }
        Ok(records)
    }

    fn check_name(&self, pod: &NewPod) -> Result<(), Failure> {
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
        Ok(())
    }

    /// Checks a pod against what there is, and adds it to what is claimed.
    fn check_new(&self, tenant: &str, pod: &NewPod, claim: &mut Claim) -> Result<(), Failure> {
        let template = template(tenant, &pod.metadata, &pod.spec)?;
        let refused = |why| refusal_of(&pod.spec, why);
        self.fleet.check(&template).map_err(refused)?;
        let takes = self.fleet.least(&template).map_err(refused)?;
        claim.add(takes, template.class == Class::Reserved);
        Ok(())
    }

    /// Finds out in which network the pod will be. A VPC that is made for it stays,
    /// whatever becomes of the pod.
    fn join_network(&mut self, tenant: &str, pod: &mut NewPod) -> Result<(), Failure> {
        if let Some((name, record)) = self.ipam.join(tenant, &mut pod.spec)? {
            self.save_vpc(&name, &record);
        }
        Ok(())
    }

    fn add_pod(&mut self, now: Now, tenant: String, pod: NewPod, id: Uuid) -> PodRecord {
        let mut meta = pod.metadata;
        meta.uid = id.to_string();
        meta.tenant = tenant;
        meta.generation = 1;
        meta.created_us = now.us;
        let mut status = PodStatus {
            timeline: waiting_since(now.us),
            ..PodStatus::default()
        };
        status.set_phase(longship_proto::control::v1::Phase::Pending);
        let record = PodRecord {
            id,
            meta,
            spec: pod.spec,
            status,
            notes: Notes::default(),
        };
        self.save(record.clone());
        record
    }
}

/// As [`refusal`], for a pod: zones and flavors may be named in several places.
fn refusal_of(spec: &PodSpec, why: Refusal) -> Failure {
    let placement = spec.placement.as_ref();
    let at = |names: &[String], name: &String, what: &str| {
        let at = names.iter().position(|one| one == name);
        at.map(|at| format!("spec.placement.{what}[{at}]"))
    };
    let field = placement.and_then(|placement| match &why {
        Refusal::UnknownZone { zone, .. } => at(&placement.zones, zone, "zones"),
        Refusal::UnknownFlavor { flavor, .. } => at(&placement.flavors, flavor, "flavors"),
        Refusal::FlavorTooSmall { flavor, .. } => at(&placement.flavors, &flavor.name, "flavors"),
        _ => None,
    });
    let failure = refusal(why);
    match field {
        Some(field) => Failure { field, ..failure },
        None => failure,
    }
}

/// The scheduler's refusal, with the field that it is about.
pub(super) fn refusal(refusal: Refusal) -> Failure {
    let field = match refusal {
        Refusal::UnknownZone { .. } | Refusal::NoZones => "spec.zone",
        Refusal::UnknownFlavor { .. } | Refusal::FlavorTooSmall { .. } => "spec.flavor",
        Refusal::TooLarge { .. } | Refusal::Gpus(_) | Refusal::Disks(_) => "spec.containers",
        Refusal::UnknownFamily(_) | Refusal::FamilyAndFlavors => "spec.placement.family",
        Refusal::Skew => "spec.placement.constraints",
        _ => "spec",
    };
    Failure::invalid(field, refusal.to_string())
}
