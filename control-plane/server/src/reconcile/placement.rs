//! Finding a place for a pod: host, capacity, address; all of it or nothing.

use std::collections::BTreeMap;

use longship_proto::control::v1::{Flavor, Phase, PodStatus, Stage};
use longship_scheduler::{PlaceError, Request};

use uuid::Uuid;

use super::plan::Tell;
use super::state::{Now, State};
use crate::pods::PodRecord;

/// The stage of the timeline that this is.
const STAGE: &str = "schedule";
/// Which process measures it.
pub(super) const COMPONENT: &str = "control";

/// Why a pod has no place yet.
struct Waiting {
    reason: &'static str,
    message: String,
}

impl State {
    /// Looks for a place, and says in the pod's status what became of it.
    pub(super) fn place(&mut self, now: Now, record: &mut PodRecord, request: &Request) {
        let waiting = self.find_place(record, request).err();
        let status = &mut record.status;
        let mut stage = Stage {
            name: STAGE.into(),
            component: COMPONENT.into(),
            start_us: record.meta.created_us,
            end_us: 0,
        };
        match waiting {
            None => {
                stage.end_us = now.us;
                status.set_phase(Phase::Scheduled);
                status.reason.clear();
                status.message.clear();
                self.plan.tell.push(Tell::Assign {
                    host: status.host.clone(),
                    id: record.id,
                });
            }
            Some(waiting) => {
                status.set_phase(Phase::Pending);
                waiting.reason.clone_into(&mut status.reason);
                status.message = waiting.message;
            }
        }
        status.timeline = vec![stage];
    }

    fn find_place(&mut self, record: &mut PodRecord, request: &Request) -> Result<(), Waiting> {
        let placed = self.scheduler.reserve(record.pod_id(), request);
        let placed = placed.map_err(|error| Waiting {
            reason: match error {
                PlaceError::Refused(_) => "Refused",
                _ => "Unschedulable",
            },
            message: error.to_string(),
        })?;
        let Some(eni) = self
            .ipam
            .allocate(&record.spec.vpc, &record.spec.subnet, &placed.zone)
        else {
            let _ = self.scheduler.release(record.pod_id());
            return Err(Waiting {
                reason: "NoAddress",
                message: format!("the VPC `{}` has no free address", record.spec.vpc),
            });
        };
        record.status.host = placed.host;
        record.status.zone = placed.zone;
        record.status.flavor = Some(flavor(&placed.flavor));
        record.status.eni = Some(eni);
        Ok(())
    }

    /// Tries again for those that wait, the oldest first. Once one of them found no
    /// room, others that ask for the same are not tried.
    pub(super) fn place_waiting(&mut self, now: Now) {
        if !std::mem::take(&mut self.room) {
            return;
        }
        let waiting: Vec<Uuid> = self.pods.waiting().map(|record| record.id).collect();
        let mut full = BTreeMap::new();
        for id in waiting {
            let Some(record) = self.pods.get(id) else {
                continue;
            };
            let request = request(record);
            let Ok(flavor) = self.scheduler.check(&request) else {
                continue;
            };
            let class = (
                request.zone.clone(),
                flavor.name.clone(),
                record.spec.vpc.clone(),
            );
            let before = cause(&record.status);
            if full.get(&class) == Some(&before) {
                continue;
            }
            let mut record = record.clone();
            self.place(now, &mut record, &request);
            if record.status.phase() != Phase::Pending {
                self.save(record);
                continue;
            }
            let still = cause(&record.status);
            full.insert(class, still.clone());
            if still != before {
                self.save(record);
            }
        }
    }
}

/// Why a pod waits, without the amounts: these change all the time, and are not
/// worth a write each.
fn cause(status: &PodStatus) -> (String, String) {
    let message = status.message.split(':').next().unwrap_or_default();
    (status.reason.clone(), message.to_owned())
}

/// What a pod in the store asks of the scheduler.
fn request(record: &PodRecord) -> Request {
    let resources = record
        .spec
        .containers
        .iter()
        .filter_map(|one| one.resources);
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let mut request = Request {
        zone: some(&record.spec.zone),
        flavor: some(&record.spec.flavor),
        ..Request::default()
    };
    for one in resources {
        request.cpu_millis = request.cpu_millis.saturating_add(one.cpu_millis);
        request.memory_bytes = request.memory_bytes.saturating_add(one.memory_bytes);
    }
    request
}

/// The flavor as the API tells it.
pub(crate) fn flavor(flavor: &longship_scheduler::Flavor) -> Flavor {
    Flavor {
        name: flavor.name.clone(),
        cpu_millis: flavor.cpu_millis,
        memory_bytes: flavor.memory_bytes,
        vcpus: flavor.vcpus(),
        family: flavor.family.clone(),
        gpus: flavor.gpus,
    }
}
