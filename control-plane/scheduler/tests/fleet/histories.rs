//! Random histories of everything that a fleet can be told, checked at each step.

use std::collections::{BTreeMap, BTreeSet};

use longship_scheduler::{
    Amount, Booking, BookingId, Declined, Fleet, Gang, HostFacts, Limits, Placed, PlacementError,
    PodId, PodTemplate, Policy, Ticket, Time, Zones,
};
use proptest::prelude::*;

use super::model::{Model, ModelHost, ModelPod};
use super::world::{self, host_name};

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Host(HostFacts),
    Ready {
        host: u8,
        ready: bool,
    },
    Cordon {
        host: u8,
        cordoned: bool,
    },
    Drain {
        host: u8,
    },
    Lose {
        host: u8,
    },
    Remove {
        host: u8,
    },
    Reserve {
        pod: u8,
        template: usize,
    },
    Commit {
        pod: u8,
    },
    RollBack {
        pod: u8,
    },
    Release {
        pod: u8,
    },
    Stale {
        pod: u8,
    },
    Gang {
        pods: Vec<(u8, usize)>,
        one_zone: bool,
    },
    Book {
        id: u8,
        template: usize,
        count: u32,
        lasts: u64,
    },
    EndBooking {
        id: u8,
    },
    Advance {
        by: u64,
    },
    Limit {
        tenant: u8,
        pods: Option<u64>,
        cpus: Option<u64>,
    },
}

const TEMPLATES: usize = 6;

fn step() -> impl Strategy<Value = Step> {
    let pod = 0_u8..24;
    let template = 0..TEMPLATES;
    prop_oneof![
        6 => world::facts().prop_map(Step::Host),
        8 => (0_u8..6, prop::bool::weighted(0.85)).prop_map(|(host, ready)| Step::Ready { host, ready }),
        1 => (0_u8..6, any::<bool>()).prop_map(|(host, cordoned)| Step::Cordon { host, cordoned }),
        1 => (0_u8..6).prop_map(|host| Step::Drain { host }),
        1 => (0_u8..6).prop_map(|host| Step::Lose { host }),
        1 => (0_u8..6).prop_map(|host| Step::Remove { host }),
        24 => (pod.clone(), template.clone()).prop_map(|(pod, template)| Step::Reserve { pod, template }),
        16 => pod.clone().prop_map(|pod| Step::Commit { pod }),
        3 => pod.clone().prop_map(|pod| Step::RollBack { pod }),
        8 => pod.clone().prop_map(|pod| Step::Release { pod }),
        1 => pod.clone().prop_map(|pod| Step::Stale { pod }),
        3 => (prop::collection::vec((pod, template.clone()), 1..4), any::<bool>())
            .prop_map(|(pods, one_zone)| Step::Gang { pods, one_zone }),
        2 => (0_u8..4, template, 1_u32..4, 1_u64..30)
            .prop_map(|(id, template, count, lasts)| Step::Book { id, template, count, lasts }),
        1 => (0_u8..4).prop_map(|id| Step::EndBooking { id }),
        2 => (0_u64..15).prop_map(|by| Step::Advance { by }),
        1 => (0_u8..2, prop::option::of(0_u64..8), prop::option::of(1000_u64..8000))
            .prop_map(|(tenant, pods, cpus)| Step::Limit { tenant, pods, cpus }),
    ]
}

pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) model: Model,
    templates: Vec<PodTemplate>,
    tickets: BTreeMap<PodId, Vec<Ticket>>,
    now: Time,
    pub(crate) decisions: Vec<String>,
}

fn pod_id(pod: u8) -> PodId {
    PodId(u128::from(pod) + 1)
}

impl World {
    pub(crate) fn new(policy: Policy, templates: Vec<PodTemplate>) -> Self {
        Self {
            fleet: Fleet::new(world::flavors(), policy),
            model: Model {
                flavors: world::flavors(),
                hosts: BTreeMap::new(),
                pods: BTreeMap::new(),
                limits: BTreeMap::new(),
            },
            templates,
            tickets: BTreeMap::new(),
            now: Time(0),
            decisions: Vec::new(),
        }
    }

    fn note(&mut self, outcome: impl std::fmt::Debug) {
        self.decisions.push(format!("{outcome:?}"));
    }

    pub(crate) fn act(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Host(facts) => self.set_host(facts)?,
            Step::Ready { host, ready } => {
                let known = self.fleet.set_ready(&host_name(*host), *ready).is_ok();
                let host = self.model.hosts.get_mut(&host_name(*host));
                prop_assert_eq!(known, host.is_some());
                host.into_iter().for_each(|host| host.ready = *ready);
            }
            Step::Cordon { host, cordoned } => {
                let name = host_name(*host);
                let known = match cordoned {
                    true => self.fleet.cordon(&name).is_ok(),
                    false => self.fleet.uncordon(&name).is_ok(),
                };
                let host = self.model.hosts.get_mut(&name);
                prop_assert_eq!(known, host.is_some());
                host.into_iter().for_each(|host| host.cordoned = *cordoned);
            }
            Step::Drain { host } => {
                let name = host_name(*host);
                let outcome = self.fleet.drain(&name);
                if let Ok(leave) = &outcome {
                    self.model.hosts.get_mut(&name).unwrap().cordoned = true;
                    let on: BTreeSet<Ticket> = self.model.on(&name).map(|pod| pod.ticket).collect();
                    prop_assert_eq!(leave.len(), on.len());
                    prop_assert_eq!(leave.iter().copied().collect::<BTreeSet<_>>(), on);
                }
                self.note(outcome);
            }
            Step::Lose { host } | Step::Remove { host } => {
                let name = host_name(*host);
                let remove = matches!(step, Step::Remove { .. });
                let outcome = match remove {
                    true => self.fleet.remove_host(&name),
                    false => self.fleet.lose_host(&name),
                };
                if let Ok(lost) = &outcome {
                    let on: BTreeSet<Ticket> = self.model.on(&name).map(|pod| pod.ticket).collect();
                    prop_assert_eq!(lost.iter().copied().collect::<BTreeSet<_>>(), on);
                    self.model.pods.retain(|_, pod| pod.host != name);
                    self.model.hosts.get_mut(&name).unwrap().ready = false;
                    if remove {
                        self.model.hosts.remove(&name);
                    }
                }
                self.note(outcome);
            }
            Step::Reserve { pod, template } => {
                let (pod, spec) = (pod_id(*pod), self.templates[*template].clone());
                let idle: u32 = self.fleet.bookings().map(|view| view.idle).sum();
                let outcome = self.fleet.reserve(pod, &spec);
                self.note(&outcome);
                self.check_outcome(pod, &spec, idle, &outcome)?;
                if let Err(declined) = outcome {
                    self.check_reason(&spec, &declined)?;
                }
            }
            Step::Commit { pod } => {
                let ticket = self.ticket(*pod);
                let outcome = self.fleet.commit(ticket);
                let held = self.model.pods.get_mut(&ticket.pod);
                prop_assert_eq!(outcome.is_ok(), held.is_some());
                held.into_iter().for_each(|held| held.committed = true);
            }
            Step::RollBack { pod } => {
                let ticket = self.ticket(*pod);
                let outcome = self.fleet.roll_back(ticket);
                let reserved = self
                    .model
                    .pods
                    .get(&ticket.pod)
                    .is_some_and(|pod| !pod.committed);
                prop_assert_eq!(outcome.is_ok(), reserved);
                if reserved {
                    self.forget(ticket.pod);
                }
            }
            Step::Release { pod } => {
                let ticket = self.ticket(*pod);
                let outcome = self.fleet.release(ticket);
                prop_assert_eq!(outcome.is_ok(), self.model.pods.contains_key(&ticket.pod));
                self.note(&outcome);
                if let Ok(released) = outcome {
                    let startable = self.forget(ticket.pod);
                    prop_assert_eq!(released.startable, startable);
                }
            }
            Step::Stale { pod } => self.use_stale_tickets(*pod)?,
            Step::Gang { pods, one_zone } => self.gang(pods, *one_zone)?,
            Step::Book {
                id,
                template,
                count,
                lasts,
            } => {
                let spec = &self.templates[*template];
                let booking = Booking {
                    id: BookingId(u128::from(*id)),
                    tenant: spec.tenant.clone(),
                    flavor: spec.flavors.first().cloned().unwrap_or("small".into()),
                    count: *count,
                    zones: Zones::Any,
                    disks: spec.disks,
                    ends: Time(self.now.0 + lasts),
                };
                let before = self.fleet.bookings().count();
                let outcome = self.fleet.book(self.now, booking);
                let more = usize::from(outcome.is_ok());
                prop_assert_eq!(self.fleet.bookings().count(), before + more);
                if outcome.is_ok() {
                    let id = BookingId(u128::from(*id));
                    let view = self.fleet.bookings().find(|view| view.booking.id == id);
                    prop_assert_eq!(view.unwrap().idle, *count, "all of it or nothing");
                }
                self.note(outcome);
            }
            Step::EndBooking { id } => {
                let outcome = self.fleet.end_booking(BookingId(u128::from(*id)));
                self.demote();
                self.note(outcome);
            }
            Step::Advance { by } => {
                self.now.0 += by;
                let ended = self.fleet.advance(self.now);
                let now = self.now;
                prop_assert!(self.fleet.bookings().all(|view| view.booking.ends > now));
                self.demote();
                self.note(ended);
            }
            Step::Limit { tenant, pods, cpus } => {
                let limits = Limits {
                    pods: *pods,
                    cpu_millis: *cpus,
                    ..Limits::default()
                };
                let tenant = format!("tenant-{tenant}");
                self.fleet.set_limits(&tenant, limits);
                self.model.limits.insert(tenant, limits);
            }
        }
        self.note_kept()?;
        self.check_world()
    }

    fn set_host(&mut self, facts: &HostFacts) -> Result<(), TestCaseError> {
        let outcome = self.fleet.set_host(facts.clone());
        let before = self.model.hosts.get(&facts.name);
        let moves = before.is_some_and(|before| {
            (&before.facts.zone, &before.facts.family) != (&facts.zone, &facts.family)
        });
        let used = self.model.on(&facts.name).count() > 0
            || before.is_some_and(|before| before.kept.pods > 0);
        prop_assert_eq!(outcome.is_err(), moves && used);
        if outcome.is_ok() {
            let host = ModelHost {
                facts: facts.clone(),
                ready: before.is_some_and(|before| before.ready),
                cordoned: before.is_some_and(|before| before.cordoned),
                kept: before.map(|before| before.kept).unwrap_or_default(),
            };
            self.model.hosts.insert(facts.name.clone(), host);
        }
        Ok(())
    }

    /// The pod's ticket, or one that never was.
    fn ticket(&self, pod: u8) -> Ticket {
        let pod = pod_id(pod);
        let held = self.model.pods.get(&pod);
        held.map_or(Ticket { pod, generation: 0 }, |held| held.ticket)
    }

    fn use_stale_tickets(&mut self, pod: u8) -> Result<(), TestCaseError> {
        let current = self.ticket(pod);
        let old = self.tickets.get(&current.pod).cloned().unwrap_or_default();
        for ticket in old.into_iter().filter(|ticket| *ticket != current) {
            for outcome in [
                self.fleet.commit(ticket),
                self.fleet.roll_back(ticket),
                self.fleet.release(ticket).map(|_| ()),
            ] {
                let stale = matches!(
                    outcome,
                    Err(PlacementError::Stale { .. } | PlacementError::NotPlaced(_))
                );
                prop_assert!(stale, "a stale ticket was taken");
            }
        }
        Ok(())
    }

    fn gang(&mut self, pods: &[(u8, usize)], one_zone: bool) -> Result<(), TestCaseError> {
        let pods = pods
            .iter()
            .map(|(pod, at)| (pod_id(*pod), self.templates[*at].clone()));
        let gang = Gang {
            pods: pods.collect(),
            one_zone,
        };
        let outcome = self.fleet.reserve_gang(&gang);
        self.note(&outcome);
        let Ok(places) = outcome else {
            // Nothing has changed: the model, as it was, must still agree.
            return Ok(());
        };
        prop_assert_eq!(places.len(), gang.pods.len());
        let mut zones = BTreeSet::new();
        for (place, (pod, spec)) in places.iter().zip(&gang.pods) {
            prop_assert_eq!(place.ticket.pod, *pod);
            prop_assert!(!self.model.pods.contains_key(pod), "placed twice");
            self.remember(spec, place);
            zones.insert(self.model.zone(self.fleet.host_name(place.host)).to_owned());
        }
        prop_assert!(!one_zone || zones.len() == 1);
        self.note_kept()?;
        for place in &places {
            let host = self.fleet.host_name(place.host);
            self.check_not_over_committed(host, place.victims.is_empty())?;
        }
        Ok(())
    }

    /// A new place goes into the model.
    pub(crate) fn remember(&mut self, spec: &PodTemplate, place: &Placed) {
        let flavor = self.fleet.flavor(place);
        let (enis, disks) = (spec.enis.max(1), spec.disks);
        let takes = Amount::of_pod(
            flavor.cpu_millis,
            flavor.memory_bytes,
            flavor.gpus,
            enis,
            disks,
        );
        let class = match place.from_reservation {
            true => longship_scheduler::Class::Reserved,
            false => spec.class.min(longship_scheduler::Class::OnDemand),
        };
        for victim in &place.victims {
            self.model.pods.get_mut(&victim.pod).unwrap().leaving = true;
        }
        let pod = ModelPod {
            ticket: place.ticket,
            host: self.fleet.host_name(place.host).to_owned(),
            spec: spec.clone(),
            takes,
            class,
            committed: false,
            leaving: false,
            waits_for: place.victims.iter().map(|victim| victim.pod).collect(),
        };
        self.tickets
            .entry(place.ticket.pod)
            .or_default()
            .push(place.ticket);
        self.model.pods.insert(place.ticket.pod, pod);
    }

    /// A pod has gone; who may start by that.
    fn forget(&mut self, pod: PodId) -> Vec<Ticket> {
        let gone = self.model.pods.remove(&pod).unwrap();
        if !gone.committed {
            for victim in &gone.waits_for {
                self.model.pods.get_mut(victim).unwrap().leaving = false;
            }
        }
        let mut startable = Vec::new();
        for waiting in self.model.pods.values_mut() {
            if waiting.waits_for.remove(&pod) && waiting.waits_for.is_empty() {
                startable.push(waiting.ticket);
            }
        }
        startable
    }

    /// Pods of reservations that are over are on-demand ones.
    fn demote(&mut self) {
        let used: u32 = self.fleet.bookings().map(|view| view.used).sum();
        let reserved = longship_scheduler::Class::Reserved;
        let drawing = self
            .model
            .pods
            .values()
            .filter(|pod| pod.class == reserved)
            .count();
        if drawing == used as usize {
            return;
        }
        // Which ones, only the fleet knows: none of a tenant without reservations is.
        let tenants: BTreeSet<String> = self
            .fleet
            .bookings()
            .filter(|view| view.used > 0)
            .map(|view| view.booking.tenant)
            .collect();
        for pod in self
            .model
            .pods
            .values_mut()
            .filter(|pod| pod.class == reserved)
        {
            if !tenants.contains(&pod.spec.tenant) {
                pod.class = longship_scheduler::Class::OnDemand;
            }
        }
    }

    fn check_reason(
        &mut self,
        spec: &PodTemplate,
        declined: &Declined,
    ) -> Result<(), TestCaseError> {
        prop_assert!(!declined.to_string().is_empty());
        let Ok(shortage) = self.fleet.explain(spec) else {
            let placed = matches!(declined, Declined::AlreadyPlaced { .. });
            prop_assert!(placed || matches!(declined, Declined::Refused(_)));
            return Ok(());
        };
        let named = spec.zones.named();
        let there = self
            .model
            .hosts
            .values()
            .filter(|host| named.is_empty() || named.contains(&host.facts.zone));
        prop_assert_eq!(shortage.hosts as usize, there.count());
        let counted = shortage.causes.values().sum::<u32>() + shortage.fitting;
        prop_assert_eq!(counted, shortage.hosts);
        match declined {
            Declined::NoRoom => prop_assert_eq!(shortage.fitting, 0, "{}", shortage),
            Declined::Limit(_) => prop_assert!(
                shortage.limit.is_some() || spec.flavors.len() > 1,
                "{}",
                shortage
            ),
            Declined::Refused(_) | Declined::AlreadyPlaced { .. } => {}
        }
        prop_assert!(!shortage.to_string().is_empty());
        Ok(())
    }
}

fn play(
    policy: Policy,
    templates: &[PodTemplate],
    steps: &[Step],
) -> Result<Vec<String>, TestCaseError> {
    let mut world = World::new(policy, templates.to_vec());
    for step in steps {
        world.act(step)?;
    }
    for pod in world.model.pods.clone().into_values() {
        prop_assert!(world.fleet.release(pod.ticket).is_ok());
    }
    world.fleet.advance(Time(u64::MAX));
    for host in world.fleet.hosts() {
        prop_assert_eq!(host.free, host.facts.capacity, "not all came back");
    }
    Ok(world.decisions)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_fleet_does_what_a_model_that_looks_at_everything_does(
        templates in prop::collection::vec(world::template(), TEMPLATES),
        steps in prop::collection::vec(step(), 0..100),
        pack in any::<bool>(),
    ) {
        let policy = if pack { Policy::Pack } else { Policy::Spread };
        play(policy, &templates, &steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_same_history_gives_the_same_decisions(
        templates in prop::collection::vec(world::template(), TEMPLATES),
        steps in prop::collection::vec(step(), 0..100),
    ) {
        let first = play(Policy::Pack, &templates, &steps)?;
        let second = play(Policy::Pack, &templates, &steps)?;
        prop_assert_eq!(first, second);
    }
}
