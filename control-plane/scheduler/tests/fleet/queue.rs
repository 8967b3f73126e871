//! The backlog: nobody is lost, nobody waits where there is room, and tenants get
//! what is fair.

use std::collections::{BTreeMap, BTreeSet};

use longship_scheduler::{
    Amount, Backlog, Decision, Flavors, Fleet, Gang, HostFacts, Placed, PodId, PodTemplate, Policy,
    Ticket,
};
use proptest::prelude::*;

use super::world::{self, GIB, host_name};

#[derive(Debug, Clone)]
enum Step {
    Host(HostFacts),
    Open { host: u8, open: bool },
    Push { pod: u8, template: usize },
    Gang { pods: BTreeSet<u8>, template: usize },
    Cancel { pod: u8 },
    Pump { attempts: usize },
    Release { pod: u8 },
    Lose { host: u8 },
}

const TEMPLATES: usize = 5;

fn step() -> impl Strategy<Value = Step> {
    let pod = 0_u8..30;
    let template = 0..TEMPLATES;
    prop_oneof![
        4 => world::facts().prop_map(Step::Host),
        6 => (0_u8..6, prop::bool::weighted(0.8)).prop_map(|(host, open)| Step::Open { host, open }),
        20 => (pod.clone(), template.clone()).prop_map(|(pod, template)| Step::Push { pod, template }),
        3 => (prop::collection::btree_set(pod.clone(), 1..4), template)
            .prop_map(|(pods, template)| Step::Gang { pods, template }),
        2 => pod.clone().prop_map(|pod| Step::Cancel { pod }),
        8 => (0_usize..12).prop_map(|attempts| Step::Pump { attempts }),
        10 => pod.prop_map(|pod| Step::Release { pod }),
        1 => (0_u8..6).prop_map(|host| Step::Lose { host }),
    ]
}

/// Where each pod that was ever pushed is.
#[derive(Debug, Default)]
struct World {
    waiting: BTreeMap<PodId, (PodTemplate, bool)>,
    placed: BTreeMap<PodId, Ticket>,
}

impl World {
    fn settle(&mut self, fleet: &mut Fleet, decisions: Vec<Decision>) -> Result<(), TestCaseError> {
        for decision in decisions {
            let places = match decision {
                Decision::Placed(place) => vec![place],
                Decision::Gang(places) => places,
                Decision::Dropped(pods, declined) => {
                    return Err(TestCaseError::fail(format!("{pods:?} dropped: {declined}")));
                }
            };
            for place in places {
                let pod = place.ticket.pod;
                prop_assert!(self.waiting.remove(&pod).is_some(), "{} did not wait", pod);
                prop_assert!(
                    self.placed.insert(pod, place.ticket).is_none(),
                    "placed twice"
                );
                fleet.commit(place.ticket).unwrap();
            }
        }
        Ok(())
    }
}

fn play(templates: &[PodTemplate], steps: &[Step]) -> Result<(), TestCaseError> {
    let mut fleet = Fleet::new(world::flavors(), Policy::Pack);
    let mut backlog = Backlog::new();
    let mut world = World::default();
    for step in steps {
        match step {
            Step::Host(facts) => drop(fleet.set_host(facts.clone())),
            Step::Open { host, open } => drop(fleet.set_ready(&host_name(*host), *open)),
            Step::Push { pod, template } => {
                let (pod, spec) = (PodId(u128::from(*pod)), &templates[*template]);
                let known = world.waiting.contains_key(&pod) || world.placed.contains_key(&pod);
                if !known && backlog.push(&mut fleet, pod, spec).is_ok() {
                    world.waiting.insert(pod, (spec.clone(), false));
                }
            }
            Step::Gang { pods, template } => {
                let pods = pods.iter().map(|pod| PodId(u128::from(*pod)));
                let new: Vec<PodId> = pods
                    .filter(|pod| {
                        !world.waiting.contains_key(pod) && !world.placed.contains_key(pod)
                    })
                    .collect();
                let spec = &templates[*template];
                let gang = Gang {
                    pods: new.iter().map(|pod| (*pod, spec.clone())).collect(),
                    one_zone: false,
                };
                if backlog.push_gang(&mut fleet, gang).is_ok() {
                    world
                        .waiting
                        .extend(new.into_iter().map(|pod| (pod, (spec.clone(), true))));
                }
            }
            Step::Cancel { pod } => {
                let pod = PodId(u128::from(*pod));
                let single = world.waiting.get(&pod).is_none_or(|(_, gang)| !gang);
                if single {
                    let waited = world.waiting.remove(&pod).is_some();
                    prop_assert_eq!(backlog.cancel(&mut fleet, pod), waited);
                }
            }
            Step::Pump { attempts } => {
                let decisions = backlog.pump(&mut fleet, *attempts);
                prop_assert!(decisions.len() <= *attempts);
                world.settle(&mut fleet, decisions)?;
            }
            Step::Release { pod } => {
                if let Some(ticket) = world.placed.remove(&PodId(u128::from(*pod))) {
                    prop_assert!(fleet.release(ticket).is_ok(), "a pod was lost");
                }
            }
            Step::Lose { host } => {
                for lost in fleet.lose_host(&host_name(*host)).unwrap_or_default() {
                    world.placed.remove(&lost.pod);
                }
            }
        }
        prop_assert_eq!(backlog.len(), world.waiting.len());
        let audited = fleet.audit();
        prop_assert!(audited.is_ok(), "{:?}", audited);
        for pod in world.waiting.keys() {
            prop_assert!(fleet.placement(*pod).is_none(), "placed and waiting");
        }
    }
    // With turns enough, whoever still waits has no place to go to, and a reason.
    loop {
        let decisions = backlog.pump(&mut fleet, 1000);
        if decisions.is_empty() {
            break;
        }
        world.settle(&mut fleet, decisions)?;
    }
    for (pod, (spec, gang)) in world.waiting {
        let waiting = backlog.why(&mut fleet, pod);
        prop_assert!(waiting.is_some_and(|waiting| !waiting.to_string().is_empty()));
        if !gang {
            let outcome = fleet.reserve(pod, &spec);
            prop_assert!(
                outcome.is_err(),
                "waits although there is room: {:?}",
                outcome
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_lost_and_nobody_waits_where_there_is_room(
        templates in prop::collection::vec(world::template(), TEMPLATES),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        play(&templates, &steps)?;
    }
}

fn small_fleet(cpus: u32) -> Fleet {
    let mut fleet = Fleet::new(Flavors::standard(), Policy::Pack);
    let capacity = Amount {
        memory_bytes: u64::from(cpus) * 8 * GIB,
        cpu_millis: cpus * 1000,
        pods: 1000,
        enis: 1000,
        disks: 1000,
        gpus: 0,
    };
    let facts = HostFacts {
        name: "h".into(),
        zone: "a".into(),
        family: "std".into(),
        capacity,
    };
    fleet.set_host(facts).unwrap();
    fleet.set_ready("h", true).unwrap();
    fleet
}

fn of(tenant: &str, cpu_millis: u32, priority: i32) -> PodTemplate {
    PodTemplate {
        tenant: tenant.into(),
        cpu_millis,
        priority,
        ..PodTemplate::default()
    }
}

#[test]
fn tenants_share_by_what_they_hold_for_their_weight() {
    let mut fleet = small_fleet(16);
    fleet.set_weight("heavy", 3);
    let mut backlog = Backlog::new();
    for pod in 0..40 {
        // The light one came first, and asks for more.
        backlog
            .push(&mut fleet, PodId(pod), &of("light", 500, 0))
            .unwrap();
    }
    for pod in 100..140 {
        backlog
            .push(&mut fleet, PodId(pod), &of("heavy", 500, 0))
            .unwrap();
    }
    let placed = backlog.pump(&mut fleet, 1000).len();
    assert_eq!(placed, 32);
    assert_eq!(fleet.held("heavy").pods, 24);
    assert_eq!(fleet.held("light").pods, 8);
}

#[test]
fn a_tenant_that_holds_nothing_goes_before_one_that_holds_much() {
    let mut fleet = small_fleet(4);
    let mut backlog = Backlog::new();
    for pod in 0..10 {
        backlog
            .push(&mut fleet, PodId(pod), &of("first", 1000, 0))
            .unwrap();
    }
    assert_eq!(backlog.pump(&mut fleet, 1000).len(), 4);
    backlog
        .push(&mut fleet, PodId(100), &of("late", 1000, 0))
        .unwrap();
    assert!(backlog.pump(&mut fleet, 1000).is_empty());
    let (ticket, ..) = fleet.placement(PodId(0)).unwrap();
    fleet.release(ticket).unwrap();
    let decisions = backlog.pump(&mut fleet, 1000);
    let [Decision::Placed(place)] = decisions.as_slice() else {
        panic!("{decisions:?}");
    };
    assert_eq!(place.ticket.pod, PodId(100));
}

#[test]
fn within_a_tenant_the_more_important_goes_first_and_a_reason_tells_how_many_are_ahead() {
    let mut fleet = small_fleet(1);
    let mut backlog = Backlog::new();
    backlog
        .push(&mut fleet, PodId(1), &of("t", 1000, 0))
        .unwrap();
    backlog
        .push(&mut fleet, PodId(2), &of("t", 1000, 5))
        .unwrap();
    backlog
        .push(&mut fleet, PodId(3), &of("t", 1000, 0))
        .unwrap();
    let decisions = backlog.pump(&mut fleet, 10);
    let [Decision::Placed(place)] = decisions.as_slice() else {
        panic!("{decisions:?}");
    };
    assert_eq!(place.ticket.pod, PodId(2));
    let why = backlog.why(&mut fleet, PodId(3)).unwrap();
    assert_eq!(
        why.to_string(),
        "no host has 1 CPU free: the largest gap is 0 CPUs (1 of the tenant's is ahead)"
    );
    assert!(backlog.cancel(&mut fleet, PodId(1)));
    let why = backlog.why(&mut fleet, PodId(3)).unwrap();
    assert_eq!(why.ahead, 0);
}

#[test]
fn a_gang_waits_together_and_says_how_far_it_would_get() {
    let mut fleet = small_fleet(2);
    let mut backlog = Backlog::new();
    let gang = Gang {
        pods: (0..3).map(|pod| (PodId(pod), of("t", 1000, 0))).collect(),
        one_zone: true,
    };
    backlog.push_gang(&mut fleet, gang).unwrap();
    assert!(backlog.pump(&mut fleet, 10).is_empty());
    assert_eq!(fleet.held("t").pods, 0);
    let why = backlog.why(&mut fleet, PodId(1)).unwrap();
    assert_eq!(
        why.to_string(),
        "2 of the 3 pods of its gang have room; for the next, \
         no host in zone a has 1 CPU free: the largest gap is 0 CPUs"
    );
}

/// Who is placed for a pod that waits, and may evict a lesser one of its tenant.
fn evicts(backlog: &mut Backlog, fleet: &mut Fleet) -> Option<(PodId, usize)> {
    match backlog.pump(fleet, 10).as_slice() {
        [] => None,
        [Decision::Placed(placed)] => Some((placed.ticket.pod, placed.victims.len())),
        more => panic!("{more:?}"),
    }
}

fn hold(fleet: &mut Fleet, pod: u128, spec: &PodTemplate) -> Placed {
    let placed = fleet.reserve(PodId(pod), spec).unwrap();
    fleet.commit(placed.ticket).unwrap();
    placed
}

#[test]
fn who_may_evict_is_tried_again_when_the_host_of_the_lesser_opens() {
    let mut fleet = small_fleet(2);
    let mut backlog = Backlog::new();
    hold(&mut fleet, 1, &of("t", 2000, 0));
    fleet.set_ready("h", false).unwrap();
    let mut urgent = of("t", 1000, 1);
    urgent.preempts = true;
    backlog.push(&mut fleet, PodId(2), &urgent).unwrap();
    assert_eq!(evicts(&mut backlog, &mut fleet), None);
    fleet.set_ready("h", true).unwrap();
    assert_eq!(evicts(&mut backlog, &mut fleet), Some((PodId(2), 1)));
}

#[test]
fn who_may_evict_is_tried_again_when_another_tenants_pod_leaves_too_little_room() {
    let mut fleet = small_fleet(2);
    let mut backlog = Backlog::new();
    let other = hold(&mut fleet, 1, &of("other", 1000, 0));
    hold(&mut fleet, 2, &of("t", 1000, 0));
    let mut urgent = of("t", 2000, 1);
    urgent.preempts = true;
    backlog.push(&mut fleet, PodId(3), &urgent).unwrap();
    assert_eq!(evicts(&mut backlog, &mut fleet), None);
    fleet.release(other.ticket).unwrap();
    assert_eq!(evicts(&mut backlog, &mut fleet), Some((PodId(3), 1)));
}
