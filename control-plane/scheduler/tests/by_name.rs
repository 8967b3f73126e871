//! What holds for a scheduler by name after any history of hosts and pods.
#![allow(clippy::unwrap_used)] // the helpers are tests too

use std::collections::BTreeMap;

use longship_scheduler::{
    Capacity, Cause, Flavor, Flavors, HostSpec, PlaceError, PodId, Policy, Refusal, Request,
    SANDBOX_OVERHEAD_BYTES, Scheduler, Shortage,
};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

#[derive(Debug, Clone)]
enum Step {
    Host {
        host: u8,
        zone: u8,
        capacity: Capacity,
    },
    Ready {
        host: u8,
        ready: bool,
    },
    Reserve {
        pod: u8,
        request: Request,
    },
    Commit {
        pod: u8,
    },
    Release {
        pod: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let capacity =
        (0_u32..20, 0_u64..80, 0_u32..6).prop_map(|(quarters, eighths, pods)| Capacity {
            cpu_millis: quarters * 250 + 100,
            memory_bytes: eighths * (GIB / 8),
            pods,
        });
    let request = (0_u32..2500, 0_u64..(5 * GIB), 0_u8..5, 0_u8..8).prop_map(
        |(cpu_millis, memory_bytes, zone, flavor)| Request {
            cpu_millis,
            memory_bytes,
            zone: (zone < 4).then(|| format!("zone-{zone}")),
            flavor: (flavor == 0).then(|| "std-1x2".to_owned()),
        },
    );
    let step = prop_oneof![
        2 => (0_u8..6, 0_u8..3, capacity)
            .prop_map(|(host, zone, capacity)| Step::Host { host, zone, capacity }),
        2 => (0_u8..6, any::<bool>()).prop_map(|(host, ready)| Step::Ready { host, ready }),
        6 => (0_u8..30, request).prop_map(|(pod, request)| Step::Reserve { pod, request }),
        1 => (0_u8..30).prop_map(|pod| Step::Commit { pod }),
        3 => (0_u8..30).prop_map(|pod| Step::Release { pod }),
    ];
    prop::collection::vec(step, 0..120)
}

/// The world as a straightforward reader of the rules would keep it.
#[derive(Default)]
struct Model {
    hosts: BTreeMap<String, (String, Capacity, bool)>,
    pods: BTreeMap<u8, (String, Flavor)>,
}

impl Model {
    fn used(&self, host: &str) -> (u64, u64, u64) {
        let on = self.pods.values().filter(|(at, _)| at == host);
        on.fold((0, 0, 0), |(cpu, memory, pods), (_, flavor)| {
            (
                cpu + u64::from(flavor.cpu_millis),
                memory + flavor.memory_bytes + SANDBOX_OVERHEAD_BYTES,
                pods + 1,
            )
        })
    }

    /// Whether the host could take one more of that flavor.
    fn fits(&self, host: &str, zone: Option<&str>, flavor: &Flavor) -> bool {
        let (at, capacity, ready) = &self.hosts[host];
        let (cpu, memory, pods) = self.used(host);
        *ready
            && zone.is_none_or(|zone| zone == at)
            && cpu + u64::from(flavor.cpu_millis) <= u64::from(capacity.cpu_millis)
            && memory + flavor.memory_bytes + SANDBOX_OVERHEAD_BYTES <= capacity.memory_bytes
            && pods < u64::from(capacity.pods)
    }
}

fn check_placement(
    model: &mut Model,
    pod: u8,
    request: &Request,
    outcome: &Result<longship_scheduler::Reservation, PlaceError>,
) -> Result<(), TestCaseError> {
    let zone = request.zone.as_deref();
    let known = |zone: &str| model.hosts.values().any(|(at, ..)| at == zone);
    match outcome {
        Ok(place) => {
            let chosen = place.host.clone();
            prop_assert!(!model.pods.contains_key(&pod));
            prop_assert!(place.flavor.cpu_millis >= request.cpu_millis);
            prop_assert!(place.flavor.memory_bytes >= request.memory_bytes);
            prop_assert_eq!(&model.hosts[&chosen].0, &place.zone);
            prop_assert!(model.fits(&chosen, zone, &place.flavor), "over-committed");
            model.pods.insert(pod, (chosen, place.flavor.clone()));
        }
        Err(PlaceError::AlreadyPlaced { host, .. }) => {
            prop_assert_eq!(Some(host), model.pods.get(&pod).map(|(at, _)| at));
        }
        Err(PlaceError::Refused(Refusal::UnknownZone { zone, known: zones })) => {
            prop_assert!(!known(zone));
            prop_assert!(zones.iter().all(|zone| known(zone)));
        }
        Err(PlaceError::Refused(Refusal::FlavorTooSmall { flavor, .. })) => {
            prop_assert_eq!(Some(&flavor.name), request.flavor.as_ref());
        }
        Err(PlaceError::Refused(refusal)) => {
            return Err(TestCaseError::fail(format!("no reason for {refusal:?}")));
        }
        Err(PlaceError::Wait(wait)) => {
            let flavors = Flavors::standard();
            let flavor = flavors
                .resolve(
                    request.cpu_millis,
                    request.memory_bytes,
                    request.flavor.as_deref(),
                )
                .unwrap();
            let could = model
                .hosts
                .keys()
                .find(|host| model.fits(host, zone, flavor));
            prop_assert_eq!(could, None, "waits although there is room: {}", wait);
            check_reason(model, zone, flavor, wait)?;
        }
    }
    Ok(())
}

/// The reason that is given is true.
fn check_reason(
    model: &Model,
    zone: Option<&str>,
    flavor: &Flavor,
    wait: &Shortage,
) -> Result<(), TestCaseError> {
    let there = |host: &&String| zone.is_none_or(|zone| zone == model.hosts[*host].0);
    let hosts: Vec<&String> = model.hosts.keys().filter(there).collect();
    prop_assert_eq!(wait.hosts as usize, hosts.len());
    prop_assert_eq!(wait.fitting, 0);
    prop_assert_eq!(wait.causes.values().sum::<u32>(), wait.hosts);
    let mut counted = BTreeMap::new();
    for host in hosts {
        let (_, capacity, ready) = &model.hosts[host];
        let (cpu, memory) = model.free(host);
        let cpu = cpu < u64::from(flavor.cpu_millis);
        let memory = memory < flavor.memory_bytes + SANDBOX_OVERHEAD_BYTES;
        let cause = match (ready, cpu, memory) {
            (false, ..) => Cause::Unreachable,
            _ if model.shrunk(host) => Cause::Shrunk,
            _ if model.used(host).2 >= u64::from(capacity.pods) => Cause::Pods,
            (_, true, true) => Cause::CpuAndMemory,
            (_, true, false) => Cause::Cpu,
            (_, false, _) => Cause::Memory,
        };
        *counted.entry(cause).or_default() += 1;
    }
    prop_assert_eq!(&wait.causes, &counted);
    prop_assert!(!wait.to_string().is_empty());
    Ok(())
}

impl Model {
    fn shrunk(&self, host: &str) -> bool {
        let (_, capacity, _) = &self.hosts[host];
        let (cpu, memory, pods) = self.used(host);
        cpu > u64::from(capacity.cpu_millis)
            || memory > capacity.memory_bytes
            || pods > u64::from(capacity.pods)
    }

    fn free(&self, host: &str) -> (u64, u64) {
        let (_, capacity, _) = &self.hosts[host];
        let (cpu, memory, _) = self.used(host);
        (
            u64::from(capacity.cpu_millis).saturating_sub(cpu),
            capacity.memory_bytes.saturating_sub(memory),
        )
    }
}

/// Plays the history, checks each step, and says what was decided.
fn play(policy: Policy, steps: &[Step]) -> Result<Vec<String>, TestCaseError> {
    let mut scheduler = Scheduler::new(Flavors::standard(), policy);
    let mut model = Model::default();
    let mut decisions = Vec::new();
    for step in steps {
        match step {
            Step::Host {
                host,
                zone,
                capacity,
            } => {
                let (name, zone) = (format!("host-{host}"), format!("zone-{zone}"));
                let spec = HostSpec {
                    name: name.clone(),
                    zone: zone.clone(),
                    capacity: *capacity,
                };
                let outcome = scheduler.set_host(spec);
                decisions.push(format!("{outcome:?}"));
                let used = model.used(&name);
                let before = model.hosts.get(&name);
                let moves = before.is_some_and(|(old, ..)| *old != zone);
                prop_assert_eq!(outcome.is_err(), moves && used.2 > 0);
                if outcome.is_ok() {
                    let ready = before.is_some_and(|(_, _, ready)| *ready);
                    model.hosts.insert(name, (zone, *capacity, ready));
                }
            }
            Step::Ready { host, ready } => {
                let name = format!("host-{host}");
                let outcome = scheduler.set_ready(&name, *ready);
                prop_assert_eq!(outcome.is_ok(), model.hosts.contains_key(&name));
                if let Some((_, _, now)) = model.hosts.get_mut(&name) {
                    *now = *ready;
                }
            }
            Step::Reserve { pod, request } => {
                let outcome = scheduler.reserve(PodId(u128::from(*pod)), request);
                decisions.push(format!("{outcome:?}"));
                check_placement(&mut model, *pod, request, &outcome)?;
            }
            Step::Commit { pod } => {
                let outcome = scheduler.commit(PodId(u128::from(*pod)));
                prop_assert_eq!(outcome.is_ok(), model.pods.contains_key(pod));
            }
            Step::Release { pod } => {
                let outcome = scheduler.release(PodId(u128::from(*pod)));
                prop_assert_eq!(outcome.is_ok(), model.pods.remove(pod).is_some());
            }
        }
        for view in scheduler.hosts() {
            let (cpu, memory, pods) = model.used(&view.spec.name);
            let capacity = view.spec.capacity;
            prop_assert_eq!(capacity, model.hosts[&view.spec.name].1);
            prop_assert_eq!(u64::from(view.pods), pods);
            let left = u64::from(capacity.cpu_millis).saturating_sub(cpu);
            prop_assert_eq!(u64::from(view.free.cpu_millis), left);
            let left = capacity.memory_bytes.saturating_sub(memory);
            prop_assert_eq!(view.free.memory_bytes, left);
        }
    }
    for pod in model.pods.keys() {
        scheduler.release(PodId(u128::from(*pod))).unwrap();
    }
    for view in scheduler.hosts() {
        prop_assert_eq!(view.free, view.spec.capacity, "not all came back");
        prop_assert_eq!(view.pods, 0);
    }
    Ok(decisions)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_host_is_over_committed_and_every_reason_is_true(
        steps in steps(), pack in any::<bool>(),
    ) {
        let policy = if pack { Policy::Pack } else { Policy::Spread };
        let first = play(policy, &steps)?;
        let second = play(policy, &steps)?;
        prop_assert_eq!(first, second, "the same history, another decision");
    }
}

fn scheduler_with(hosts: &[(&str, &str, u32, u64)]) -> Scheduler {
    let mut scheduler = Scheduler::new(Flavors::standard(), Policy::Pack);
    for (name, zone, cpus, gib) in hosts {
        scheduler
            .set_host(HostSpec {
                name: (*name).into(),
                zone: (*zone).into(),
                capacity: Capacity {
                    cpu_millis: cpus * 1000,
                    memory_bytes: gib * GIB,
                    pods: 10,
                },
            })
            .unwrap();
        scheduler.set_ready(name, true).unwrap();
    }
    scheduler
}

fn request(cpu_millis: u32, gib: u64, zone: Option<&str>) -> Request {
    Request {
        cpu_millis,
        memory_bytes: gib * GIB,
        zone: zone.map(str::to_owned),
        flavor: None,
    }
}

#[test]
fn reasons_are_sentences_for_a_person() {
    let mut scheduler = scheduler_with(&[("h1", "a", 4, 16), ("h2", "b", 16, 4)]);
    scheduler
        .reserve(PodId(1), &request(2000, 1, Some("a")))
        .unwrap();
    scheduler
        .reserve(PodId(2), &request(500, 1, Some("a")))
        .unwrap();
    let mut said = |request| {
        scheduler
            .reserve(PodId(9), &request)
            .unwrap_err()
            .to_string()
    };

    assert_eq!(
        said(request(2000, 1, Some("a"))),
        "no host in zone a has 2 CPUs free: the largest gap is 1.5 CPUs"
    );
    assert_eq!(
        said(request(1000, 4, Some("b"))),
        "no host in zone b has 4 GiB of memory free (and 16 MiB for the sandbox itself): \
         the largest gap is 4 GiB"
    );
    assert_eq!(
        said(request(4000, 8, None)),
        "of 2 hosts: 1 lacks CPU, 1 lacks memory"
    );
    assert_eq!(
        said(request(1000, 1, Some("c"))),
        "no zone `c`: the zones are a, b"
    );
    assert_eq!(
        said(request(32_000, 1, None)),
        "no flavor has 32 CPUs and 1 GiB: the largest is `std-16x64`"
    );
    let flavor = |name: &str| Request {
        flavor: Some(name.into()),
        ..request(1000, 1, None)
    };
    assert!(said(flavor("big")).starts_with("no flavor `big`: the flavors are std-0.25x0.125, "));
    assert_eq!(
        said(flavor("std-0.5x1")),
        "flavor `std-0.5x1` has 0.5 CPUs and 1 GiB, less than the 1 CPU and 1 GiB asked for"
    );
    scheduler.set_ready("h1", false).unwrap();
    let refused = scheduler.reserve(PodId(9), &request(0, 0, Some("a")));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the only host in zone a is unreachable"
    );
    let mut empty = Scheduler::new(Flavors::standard(), Policy::Pack);
    let refused = empty.reserve(PodId(9), &request(0, 0, None)).unwrap_err();
    assert_eq!(refused.to_string(), "no host has registered yet");
}

#[test]
fn an_adopted_place_holds_on_a_host_that_has_shrunk() {
    let mut scheduler = scheduler_with(&[("h1", "a", 1, 1)]);
    scheduler.adopt(PodId(1), "h1", 4000, 8 * GIB).unwrap();
    assert_eq!(scheduler.placement(PodId(1)), Some(("h1", true)));
    let refused = scheduler.reserve(PodId(2), &request(250, 0, None));
    assert!(
        matches!(&refused, Err(PlaceError::Wait(wait)) if wait.causes[&Cause::Shrunk] == 1),
        "{refused:?}"
    );
    scheduler.release(PodId(1)).unwrap();
    let view = scheduler.host("h1").unwrap();
    assert_eq!(view.free, view.spec.capacity);
}

#[test]
fn packing_fills_one_host_and_spreading_takes_turns() {
    let place = |policy| {
        let mut scheduler = Scheduler::new(Flavors::standard(), policy);
        for name in ["h1", "h2"] {
            let capacity = Capacity {
                cpu_millis: 2000,
                memory_bytes: 8 * GIB,
                pods: 10,
            };
            let spec = HostSpec {
                name: name.into(),
                zone: "a".into(),
                capacity,
            };
            scheduler.set_host(spec).unwrap();
            scheduler.set_ready(name, true).unwrap();
        }
        let mut hosts = Vec::new();
        for pod in 0..4 {
            let place = scheduler
                .reserve(PodId(pod), &request(1000, 1, None))
                .unwrap();
            hosts.push(place.host);
        }
        hosts.join(" ")
    };
    assert_eq!(place(Policy::Pack), "h1 h1 h2 h2");
    assert_eq!(place(Policy::Spread), "h1 h2 h1 h2");
}
