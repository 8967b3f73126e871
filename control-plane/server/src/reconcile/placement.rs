//! Taking up a place: host, capacity, address; all of it or nothing.

use longship_proto::control::v1::{Eni, Flavor, Phase, PodStatus, Stage};
use longship_scheduler::Placed;
use uuid::Uuid;

use super::evict::Why;
use super::state::{Now, State};
use crate::records::Notes;

/// The stage of the timeline that this is.
const STAGE: &str = "schedule";
/// Which process measures it.
pub(super) const COMPONENT: &str = "control";

/// The timeline of a pod that waits.
pub(super) fn waiting_since(us: i64) -> Vec<Stage> {
    vec![Stage {
        name: STAGE.into(),
        component: COMPONENT.into(),
        start_us: us,
        end_us: 0,
    }]
}

/// Takes everything out of a status that a pod with no place has none of.
pub(super) fn unplace(status: &mut PodStatus) {
    status.host.clear();
    status.zone.clear();
    status.flavor = None;
    status.eni = None;
}

impl State {
    /// Pods that waited have places: one pod, or a gang. Where there are not addresses
    /// for all, the places are given back.
    pub(super) fn take_places(&mut self, now: Now, places: Vec<Placed>) {
        let ids: Vec<Uuid> = places
            .iter()
            .map(|placed| Uuid::from_u128(placed.ticket.pod.0))
            .collect();
        let mut enis = Vec::with_capacity(places.len());
        for (placed, id) in places.iter().zip(&ids) {
            match self.address_for(placed, *id) {
                Ok(eni) => enis.push(eni),
                Err(vpc) => {
                    self.give_back(&places, &enis);
                    return self.wait_for_address(&ids, &vpc);
                }
            }
        }
        for ((placed, id), eni) in places.iter().zip(&ids).zip(enis) {
            self.take_place(now, placed, *id, eni);
        }
        // Its pods are for themselves from now on. They are written before it goes.
        for id in &ids {
            let _ = self.end_gang(*id);
        }
        for placed in &places {
            let winner = Uuid::from_u128(placed.ticket.pod.0);
            for victim in &placed.victims {
                let victim = Uuid::from_u128(victim.pod.0);
                self.evict(now, victim, Why::Preempted { winner }, None);
            }
        }
    }

    /// An address for the pod, or the VPC that has none for it.
    fn address_for(&mut self, placed: &Placed, id: Uuid) -> Result<Eni, String> {
        let Some(record) = self.pods.get(id) else {
            return Err(String::new());
        };
        let (vpc, subnet) = (&record.spec.vpc, &record.spec.subnet);
        let zone = self.fleet.zone_name(placed.host);
        let eni = self.ipam.allocate(vpc, subnet, zone);
        eni.ok_or_else(|| vpc.clone())
    }

    fn give_back(&mut self, places: &[Placed], enis: &[Eni]) {
        for placed in places.iter().rev() {
            // It was reserved just now.
            let _ = self.fleet.roll_back(placed.ticket);
        }
        for eni in enis {
            self.ipam.release(&eni.vpc, &eni.address);
        }
    }

    fn wait_for_address(&mut self, ids: &[Uuid], vpc: &str) {
        // One of a gang stands for all of it.
        let waiting = self.unaddressed.entry(vpc.to_owned()).or_default();
        waiting.extend(ids.first());
        for id in ids {
            let message = format!("the VPC `{vpc}` has no free address");
            self.say_waiting(*id, "NoAddress", message);
        }
    }

    /// Addresses of a VPC have come free: one of those that wait for one is tried again.
    pub(super) fn try_addresses_again(&mut self, vpc: &str) {
        let Some(waiting) = self.unaddressed.get_mut(vpc) else {
            return;
        };
        let next = waiting.pop_first();
        if waiting.is_empty() {
            self.unaddressed.remove(vpc);
        }
        if let Some(id) = next {
            self.wait_again(id);
        }
    }

    /// A VPC has more addresses: all that wait for one are tried again.
    pub(super) fn try_all_addresses_again(&mut self, vpc: &str) {
        for id in self.unaddressed.remove(vpc).unwrap_or_default() {
            self.wait_again(id);
        }
    }

    fn take_place(&mut self, now: Now, placed: &Placed, id: Uuid, eni: Eni) {
        self.quotas.wait_no_more(id);
        let host = self.fleet.host_name(placed.host).to_owned();
        let zone = self.fleet.zone_name(placed.host).to_owned();
        let flavor = flavor(self.fleet.flavor(placed));
        let drawn_on = match placed.from_reservation {
            true => self.fleet.drawn_on(placed.ticket.pod),
            false => None,
        };
        let others = placed.victims.len();
        self.change(id, |record| {
            let status = &mut record.status;
            status.set_phase(Phase::Scheduled);
            status.reason.clear();
            status.message.clear();
            if others > 0 {
                "WaitsForOthers".clone_into(&mut status.reason);
                status.message = format!("{others} less important pods leave its place first");
            }
            status.host = host;
            status.zone = zone;
            status.flavor = Some(flavor);
            status.eni = Some(eni);
            if let Some(stage) = status.timeline.last_mut() {
                stage.end_us = now.us;
            }
            record.notes = Notes {
                draws_on: drawn_on
                    .map(|id| Uuid::from_u128(id.0).to_string())
                    .unwrap_or_default(),
                ..Notes::default()
            };
        });
        self.tell_card(id);
    }
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
