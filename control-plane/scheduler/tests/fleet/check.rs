//! What must hold after each step.

use std::collections::BTreeSet;

use longship_scheduler::{Amount, Class, Declined, Placed, PodId, PodTemplate, Rule, Topology};
use proptest::prelude::*;

use super::histories::World;
use super::model::Model;

impl World {
    pub(crate) fn check_outcome(
        &mut self,
        pod: PodId,
        spec: &PodTemplate,
        idle_before: u32,
        outcome: &Result<Placed, Declined>,
    ) -> Result<(), TestCaseError> {
        match outcome {
            Ok(place) => {
                prop_assert!(!self.model.pods.contains_key(&pod), "placed twice");
                let host = self.fleet.host_name(place.host).to_owned();
                prop_assert!(self.model.hosts[&host].is_open());
                if place.from_reservation {
                    prop_assert_eq!(spec.class, Class::Reserved);
                    let idle: u32 = self.fleet.bookings().map(|view| view.idle).sum();
                    prop_assert_eq!(idle + 1, idle_before);
                    prop_assert!(self.model.admits(spec, &host, false));
                } else if place.victims.is_empty() {
                    self.check_place(spec, place, &host)?;
                } else {
                    self.check_victims(spec, place, &host)?;
                }
                self.remember(spec, place);
                self.note_kept()?;
                self.check_not_over_committed(&host, place.victims.is_empty())?;
                self.check_limits(&spec.tenant)?;
            }
            Err(Declined::AlreadyPlaced { pod: same, host }) => {
                prop_assert_eq!(*same, pod);
                prop_assert_eq!(Some(host), self.model.pods.get(&pod).map(|held| &held.host));
            }
            Err(Declined::Refused(_)) => {
                let known = |zone: &String| {
                    self.model
                        .hosts
                        .values()
                        .any(|host| &host.facts.zone == zone)
                };
                let unknown_zone = !spec.zones.named().iter().all(known);
                prop_assert!(unknown_zone || self.model.choices(spec).is_empty());
            }
            Err(Declined::Limit(limit)) => {
                prop_assert_eq!(&limit.tenant, &spec.tenant);
                let held = self.fleet.held(&spec.tenant);
                let limits = self.model.limits[&spec.tenant];
                let over = self.model.choices(spec).iter().any(|(_, takes)| {
                    limits.pods.is_some_and(|most| held.pods + 1 > most)
                        || limits.cpu_millis.is_some_and(|most| {
                            held.cpu_millis + u64::from(takes.cpu_millis) > most
                        })
                });
                prop_assert!(over, "no limit is in the way");
            }
            Err(Declined::NoRoom) => {
                let could = self.model.first_fit(spec, true);
                prop_assert!(could.is_none(), "waits although there is room: {:?}", could);
                prop_assert!(!spec.preempts || !self.model.could_preempt(spec));
            }
        }
        Ok(())
    }

    /// The place is one of those that the first attempt with room had; preferences
    /// were only given up where they had to be.
    fn check_place(
        &self,
        spec: &PodTemplate,
        place: &Placed,
        host: &str,
    ) -> Result<(), TestCaseError> {
        let preferred = self.model.first_fit(spec, false);
        let fit = preferred.or_else(|| self.model.first_fit(spec, true));
        let Some(((family, takes), hosts)) = fit else {
            return Err(TestCaseError::fail("placed where there is no room"));
        };
        let flavor = self.fleet.flavor(place);
        prop_assert_eq!(&flavor.family, &family);
        prop_assert_eq!(flavor.cpu_millis, takes.cpu_millis);
        prop_assert!(hosts.contains(host), "{} is none of {:?}", host, hosts);
        Ok(())
    }

    /// Only those leave who may be made to, where nothing else helps, and nobody more
    /// than needed.
    fn check_victims(
        &self,
        spec: &PodTemplate,
        place: &Placed,
        host: &str,
    ) -> Result<(), TestCaseError> {
        prop_assert!(spec.preempts);
        prop_assert!(
            self.model.first_fit(spec, true).is_none(),
            "evicts although there is room"
        );
        prop_assert!(self.model.admits(spec, host, true));
        prop_assert!(!self.model.strained(host));
        let flavor = self.fleet.flavor(place);
        let takes = self.model.choices(spec).into_iter().map(|(_, takes)| takes);
        let mut takes = takes.filter(|takes| {
            takes.cpu_millis == flavor.cpu_millis
                && takes.memory_bytes - longship_scheduler::SANDBOX_OVERHEAD_BYTES
                    == flavor.memory_bytes
        });
        let takes = takes.next_back().unwrap();
        let victims: Vec<_> = place
            .victims
            .iter()
            .map(|one| &self.model.pods[&one.pod])
            .collect();
        for (victim, ticket) in victims.iter().zip(&place.victims) {
            prop_assert_eq!(victim.ticket, *ticket);
            prop_assert_eq!(&victim.host, host);
            prop_assert!(
                Model::may_be_evicted(spec, victim),
                "{:?} for {:?}",
                victim,
                spec
            );
            prop_assert!(victim.class <= spec.class);
            let same_class = victim.class == spec.class.min(Class::OnDemand);
            prop_assert!(!same_class || victim.spec.priority < spec.priority);
        }
        let all = victims
            .iter()
            .fold(Amount::default(), |all, victim| all.plus(victim.takes));
        prop_assert!(takes.fits(self.model.room_without(host, all)));
        for one in &victims {
            let fewer = self.model.room_without(host, all.minus(one.takes));
            prop_assert!(!takes.fits(fewer), "one leaves for nothing");
        }
        Ok(())
    }

    /// A host that has got a pod has promised no more than it has, and if that pod
    /// may start now, there is no more on it either. (One that waits for others to
    /// leave may wait for a host that has shrunk below what is on it.)
    pub(crate) fn check_not_over_committed(
        &self,
        host: &str,
        starts: bool,
    ) -> Result<(), TestCaseError> {
        let (present, claimed) = self.model.present_and_claimed(host);
        let capacity = self.model.hosts[host].facts.capacity;
        let fits = !starts || present.fits(capacity);
        prop_assert!(fits, "{} has more than it can hold", host);
        prop_assert!(
            claimed.fits(capacity),
            "{} has promised more than it has",
            host
        );
        Ok(())
    }

    fn kept_of(&self, tenant: Option<&str>) -> Amount {
        let views = self.fleet.bookings();
        let own = views.filter(|view| tenant.is_none_or(|tenant| view.booking.tenant == tenant));
        let mut kept = Amount::default();
        for view in own {
            let flavor = self.model.flavors.get(&view.booking.flavor).unwrap();
            let takes = Amount::of_pod(
                flavor.cpu_millis,
                flavor.memory_bytes,
                flavor.gpus,
                1,
                view.booking.disks,
            );
            for _ in 0..view.idle {
                kept = kept.plus(takes);
            }
        }
        kept
    }

    fn check_limits(&self, tenant: &str) -> Result<(), TestCaseError> {
        let limits = self.model.limits.get(tenant).copied().unwrap_or_default();
        let held = self.model.held(tenant, self.kept_of(Some(tenant)));
        prop_assert!(limits.pods.is_none_or(|most| held.pods <= most));
        prop_assert!(limits.cpu_millis.is_none_or(|most| held.cpu_millis <= most));
        Ok(())
    }

    /// What hosts hold beside the model's pods is what reservations keep.
    pub(crate) fn note_kept(&mut self) -> Result<(), TestCaseError> {
        let mut all = Amount::default();
        for status in self.fleet.hosts() {
            let name = &status.facts.name;
            let pods = self
                .model
                .on(name)
                .fold(Amount::default(), |sum, pod| sum.plus(pod.takes));
            prop_assert!(
                pods.fits(status.used),
                "{} does not count all its pods",
                name
            );
            let kept = status.used.minus(pods);
            all = all.plus(kept);
            self.model.hosts.get_mut(name).unwrap().kept = kept;
        }
        prop_assert_eq!(all, self.kept_of(None), "kept for nobody");
        Ok(())
    }

    pub(crate) fn check_world(&self) -> Result<(), TestCaseError> {
        let audited = self.fleet.audit();
        prop_assert!(audited.is_ok(), "{:?}", audited);
        for status in self.fleet.hosts() {
            let name = &status.facts.name;
            let host = &self.model.hosts[name];
            prop_assert_eq!((status.ready, status.cordoned), (host.ready, host.cordoned));
            prop_assert_eq!(status.free, self.model.free(name), "free on {}", name);
        }
        prop_assert_eq!(self.fleet.hosts().count(), self.model.hosts.len());
        for (id, pod) in &self.model.pods {
            let held = self.fleet.placement(*id);
            let (ticket, host, committed) = held.ok_or(TestCaseError::fail("a pod was lost"))?;
            prop_assert_eq!(ticket, pod.ticket);
            prop_assert_eq!(self.fleet.host_name(host), &pod.host);
            prop_assert_eq!(committed, pod.committed);
            prop_assert_eq!(self.fleet.may_start(*id), pod.waits_for.is_empty());
            self.check_apart(*id)?;
        }
        Ok(())
    }

    /// Nobody shares a domain with whom they must be apart from, ever.
    fn check_apart(&self, id: PodId) -> Result<(), TestCaseError> {
        let pod = &self.model.pods[&id];
        let apart = pod.spec.constraints.iter();
        for constraint in apart.filter(|one| one.required && one.rule == Rule::Apart) {
            let others: BTreeSet<&PodId> = self
                .model
                .pods
                .iter()
                .filter(|(other, held)| {
                    **other != id
                        && held.spec.tenant == pod.spec.tenant
                        && constraint.selector.matches(&held.spec.labels)
                        && match constraint.topology {
                            Topology::Host => held.host == pod.host,
                            Topology::Zone => {
                                self.model.zone(&held.host) == self.model.zone(&pod.host)
                            }
                        }
                })
                .map(|(other, _)| other)
                .collect();
            prop_assert!(others.is_empty(), "{} is with {:?}", id, others);
        }
        Ok(())
    }
}
