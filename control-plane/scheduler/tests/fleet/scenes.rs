//! Small scenes that show a promise each.

use longship_scheduler::{
    Amount, Booking, BookingError, BookingId, Cause, Class, Constraint, Declined, Flavors, Fleet,
    Gang, HostFacts, Limits, Placed, PodId, PodTemplate, Policy, Rule, Selector, Time, Topology,
    Zones,
};

use super::world::GIB;

fn fleet(hosts: &[(&str, &str, u32, u64)]) -> Fleet {
    let mut fleet = Fleet::new(Flavors::standard(), Policy::Pack);
    for (name, zone, cpus, gib) in hosts {
        set(&mut fleet, name, zone, *cpus, *gib);
        fleet.set_ready(name, true).unwrap();
    }
    fleet
}

fn set(fleet: &mut Fleet, name: &str, zone: &str, cpus: u32, gib: u64) {
    let facts = HostFacts {
        name: name.into(),
        zone: zone.into(),
        family: "std".into(),
        capacity: Amount {
            memory_bytes: gib * GIB,
            cpu_millis: cpus * 1000,
            pods: 50,
            enis: 50,
            disks: 50,
            gpus: 0,
        },
    };
    fleet.set_host(facts).unwrap();
}

fn pod(cpus: u32, class: Class) -> PodTemplate {
    PodTemplate {
        tenant: "t".into(),
        cpu_millis: cpus * 1000,
        class,
        ..PodTemplate::default()
    }
}

fn place(fleet: &mut Fleet, id: u128, spec: &PodTemplate) -> Placed {
    let placed = fleet.reserve(PodId(id), spec).unwrap();
    fleet.commit(placed.ticket).unwrap();
    placed
}

fn where_is(fleet: &Fleet, id: u128) -> String {
    let (_, host, _) = fleet.placement(PodId(id)).unwrap();
    fleet.host_name(host).to_owned()
}

fn constrained(rule: Rule, topology: Topology, required: bool) -> PodTemplate {
    PodTemplate {
        labels: [("app".to_owned(), "web".to_owned())].into(),
        constraints: vec![Constraint {
            selector: Selector::label("app", "web"),
            topology,
            rule,
            required,
        }],
        ..pod(1, Class::OnDemand)
    }
}

#[test]
fn a_reason_counts_hosts_as_a_person_would() {
    let mut hosts: Vec<(String, u32, u64)> = Vec::new();
    hosts.extend((0..80).map(|at| (format!("low-{at}"), 16, 1)));
    hosts.extend((0..40).map(|at| (format!("off-{at}"), 16, 64)));
    let mut fleet = fleet(&[]);
    for (name, cpus, gib) in &hosts {
        set(&mut fleet, name, "a", *cpus, *gib);
        fleet.set_ready(name, true).unwrap();
        if name.starts_with("off") {
            fleet.cordon(name).unwrap();
        }
    }
    let spec = PodTemplate {
        memory_bytes: 4 * GIB,
        zones: Zones::AnyOf(vec!["a".into()]),
        ..pod(2, Class::OnDemand)
    };
    assert_eq!(fleet.reserve(PodId(1), &spec), Err(Declined::NoRoom));
    let shortage = fleet.explain(&spec).unwrap();
    assert_eq!(
        shortage.to_string(),
        "of 120 hosts in zone a: 80 lack memory, 40 are cordoned"
    );
    fleet.uncordon("off-7").unwrap();
    assert_eq!(fleet.explain(&spec).unwrap().fitting, 1);
    place(&mut fleet, 1, &spec);
    assert_eq!(where_is(&fleet, 1), "off-7");
}

#[test]
fn a_spot_pod_leaves_for_an_on_demand_one_that_starts_only_then() {
    let mut fleet = fleet(&[("h1", "a", 4, 16)]);
    let spot = place(&mut fleet, 1, &pod(4, Class::Spot));
    let mut firm = pod(2, Class::OnDemand);
    assert_eq!(fleet.reserve(PodId(2), &firm), Err(Declined::NoRoom));
    firm.preempts = true;
    let placed = place(&mut fleet, 2, &firm);
    assert_eq!(placed.victims, [spot.ticket]);
    assert!(!fleet.may_start(PodId(2)), "its place is still taken");
    // What the victim leaves over is nobody's before it has left.
    assert_eq!(fleet.host("h1").unwrap().free.cpu_millis, 0);
    let released = fleet.release(spot.ticket).unwrap();
    assert_eq!(released.startable, [placed.ticket]);
    assert!(fleet.may_start(PodId(2)));
    assert_eq!(fleet.host("h1").unwrap().free.cpu_millis, 2000);
}

#[test]
fn nobody_is_evicted_for_an_equal_nor_an_on_demand_pod_for_a_spot_one() {
    let mut fleet = fleet(&[("h1", "a", 4, 16)]);
    place(&mut fleet, 1, &pod(4, Class::OnDemand));
    for (class, priority, tenant) in [
        (Class::OnDemand, 0, "t"),
        (Class::Spot, 100, "t"),
        (Class::OnDemand, 100, "another"),
        (Class::Reserved, 0, "t"),
    ] {
        let spec = PodTemplate {
            tenant: tenant.into(),
            priority,
            preempts: true,
            ..pod(1, class)
        };
        assert_eq!(
            fleet.reserve(PodId(2), &spec),
            Err(Declined::NoRoom),
            "{spec:?}"
        );
    }
    let mut own = pod(1, Class::OnDemand);
    (own.priority, own.preempts) = (1, true);
    assert_eq!(place(&mut fleet, 2, &own).victims.len(), 1);
}

#[test]
fn a_rolled_back_preemption_evicts_nobody() {
    let mut fleet = fleet(&[("h1", "a", 4, 16)]);
    let spot = place(&mut fleet, 1, &pod(4, Class::Spot));
    let mut firm = pod(2, Class::OnDemand);
    firm.preempts = true;
    let placed = fleet.reserve(PodId(2), &firm).unwrap();
    assert_eq!(placed.victims, [spot.ticket]);
    fleet.roll_back(placed.ticket).unwrap();
    fleet.audit().unwrap();
    assert_eq!(fleet.host("h1").unwrap().used.pods, 1);
    // It can be evicted still.
    assert_eq!(place(&mut fleet, 3, &firm).victims, [spot.ticket]);
}

#[test]
fn evicting_from_a_host_that_has_shrunk_frees_only_what_it_has() {
    let mut fleet = fleet(&[("h1", "a", 4, 16)]);
    place(&mut fleet, 1, &pod(2, Class::Spot));
    place(&mut fleet, 2, &pod(2, Class::OnDemand));
    set(&mut fleet, "h1", "a", 3, 16);
    let mut firm = pod(2, Class::OnDemand);
    firm.preempts = true;
    assert_eq!(fleet.reserve(PodId(3), &firm), Err(Declined::NoRoom));
    firm.cpu_millis = 1000;
    assert_eq!(place(&mut fleet, 3, &firm).victims.len(), 1);
}

#[test]
fn replicas_keep_apart_spread_and_together() {
    let hosts = [
        ("h1", "a", 16, 64),
        ("h2", "a", 16, 64),
        ("h3", "b", 16, 64),
    ];
    let mut apart = fleet(&hosts);
    let spec = constrained(Rule::Apart, Topology::Host, true);
    for id in 1..=3 {
        place(&mut apart, id, &spec);
    }
    assert_eq!(apart.reserve(PodId(4), &spec), Err(Declined::NoRoom));
    let shortage = apart.explain(&spec).unwrap();
    assert_eq!(
        shortage.to_string(),
        "all 3 hosts have pods that it must be apart from"
    );
    // A preference is given up where it must be.
    let mild = constrained(Rule::Apart, Topology::Host, false);
    assert_eq!(
        apart.reserve(PodId(4), &mild),
        Err(Declined::NoRoom),
        "others insist"
    );

    let mut spread = fleet(&hosts);
    let spec = constrained(Rule::Spread { max_skew: 1 }, Topology::Zone, true);
    for id in 1..=6 {
        place(&mut spread, id, &spec);
    }
    let in_b = (1..=6).filter(|id| where_is(&spread, *id) == "h3").count();
    assert_eq!(in_b, 3);

    let mut together = fleet(&hosts);
    let spec = constrained(Rule::With, Topology::Host, true);
    for id in 1..=16 {
        place(&mut together, id, &spec);
    }
    assert_eq!(together.reserve(PodId(17), &spec), Err(Declined::NoRoom));
    let shortage = together.explain(&spec).unwrap();
    assert_eq!(shortage.causes[&Cause::NotWithHost], 2);
}

#[test]
fn who_came_without_a_wish_is_kept_away_by_who_insists() {
    let mut fleet = fleet(&[("h1", "a", 4, 16)]);
    place(
        &mut fleet,
        1,
        &constrained(Rule::Apart, Topology::Host, true),
    );
    let mut plain = pod(1, Class::OnDemand);
    plain.labels.insert("app".into(), "web".into());
    assert_eq!(fleet.reserve(PodId(2), &plain), Err(Declined::NoRoom));
    let shortage = fleet.explain(&plain).unwrap();
    assert_eq!(
        shortage.to_string(),
        "the only host has a pod that keeps it away"
    );
    // Another tenant's pods are nobody's business.
    plain.tenant = "another".into();
    place(&mut fleet, 2, &plain);
}

#[test]
fn the_first_of_the_zones_and_flavors_that_has_room_is_taken() {
    let hosts = [("h1", "a", 2, 8), ("h2", "b", 16, 64)];
    let spec = |fallback| PodTemplate {
        flavors: vec!["std-4x8".into(), "std-2x4".into()],
        zones: Zones::InOrder(vec!["a".into(), "b".into()]),
        fallback,
        ..PodTemplate::default()
    };
    let mut first = fleet(&hosts);
    let placed = place(
        &mut first,
        1,
        &spec(longship_scheduler::Fallback::ZonesFirst),
    );
    assert_eq!(first.flavor(&placed).name, "std-4x8");
    assert_eq!(where_is(&first, 1), "h2");
    let mut second = fleet(&hosts);
    let placed = place(
        &mut second,
        1,
        &spec(longship_scheduler::Fallback::FlavorsFirst),
    );
    assert_eq!(second.flavor(&placed).name, "std-2x4");
    assert_eq!(where_is(&second, 1), "h1");
}

#[test]
fn a_gang_gets_all_of_its_places_or_none() {
    let mut fleet = fleet(&[("h1", "a", 4, 16), ("h2", "b", 2, 8)]);
    let gang = |count: u128, one_zone| Gang {
        pods: (0..count)
            .map(|id| (PodId(id), pod(1, Class::OnDemand)))
            .collect(),
        one_zone,
    };
    assert!(fleet.reserve_gang(&gang(7, false)).is_err());
    assert_eq!(fleet.held("t").pods, 0);
    assert!(fleet.reserve_gang(&gang(5, true)).is_err());
    assert_eq!(fleet.held("t").pods, 0);
    assert_eq!(fleet.reserve_gang(&gang(4, true)).unwrap().len(), 4);
    assert!((0..4).all(|id| where_is(&fleet, id) == "h1"));
    fleet.audit().unwrap();
}

#[test]
fn reserved_room_is_kept_until_its_end_and_its_pods_stay() {
    let mut fleet = fleet(&[("h1", "a", 4, 16)]);
    let booking = |id, count| Booking {
        id: BookingId(id),
        tenant: "t".into(),
        flavor: "std-1x0.5".into(),
        count,
        zones: Zones::Any,
        disks: 0,
        ends: Time(100),
    };
    let refused = fleet.book(Time(0), booking(1, 5)).unwrap_err();
    assert_eq!(refused.to_string(), "room for 4 of 5: there is no room now");
    assert_eq!(
        fleet.book(Time(100), booking(1, 1)),
        Err(BookingError::Void)
    );
    fleet.book(Time(0), booking(1, 3)).unwrap();

    let stranger = PodTemplate {
        tenant: "another".into(),
        ..pod(2, Class::OnDemand)
    };
    assert_eq!(fleet.reserve(PodId(1), &stranger), Err(Declined::NoRoom));
    let spec = PodTemplate {
        flavors: vec!["std-1x0.5".into()],
        ..pod(1, Class::Reserved)
    };
    assert!(place(&mut fleet, 2, &spec).from_reservation);
    let second = place(&mut fleet, 3, &spec);
    fleet.release(second.ticket).unwrap();
    let view = fleet.bookings().next().unwrap();
    assert_eq!(
        (view.idle, view.used),
        (2, 1),
        "what a pod leaves is kept again"
    );

    assert!(fleet.advance(Time(99)).is_empty());
    assert_eq!(fleet.advance(Time(100)), [BookingId(1)]);
    assert_eq!(where_is(&fleet, 2), "h1", "its pod stays");
    place(&mut fleet, 1, &stranger);
    fleet.audit().unwrap();
}

#[test]
fn reserved_room_moves_with_a_lost_host() {
    let mut fleet = fleet(&[("h1", "a", 2, 8), ("h2", "a", 2, 8)]);
    let booking = Booking {
        id: BookingId(1),
        tenant: "t".into(),
        flavor: "std-2x1".into(),
        count: 1,
        zones: Zones::Any,
        disks: 0,
        ends: Time(100),
    };
    fleet.book(Time(0), booking).unwrap();
    let first = fleet
        .hosts()
        .find(|host| host.used.pods == 1)
        .unwrap()
        .facts
        .name;
    fleet.lose_host(&first).unwrap();
    let kept = fleet
        .hosts()
        .find(|host| host.used.pods == 1)
        .unwrap()
        .facts
        .name;
    assert_ne!(kept, first);
    fleet.lose_host(&kept).unwrap();
    assert_eq!(fleet.bookings().next().unwrap().missing(), 1);
    fleet.set_ready(&first, true).unwrap();
    fleet.advance(Time(1));
    assert_eq!(fleet.bookings().next().unwrap().missing(), 0);
}

#[test]
fn a_limit_holds_and_is_named() {
    let mut fleet = fleet(&[("h1", "a", 16, 64)]);
    let limits = Limits {
        cpu_millis: Some(2500),
        ..Limits::default()
    };
    fleet.set_limits("t", limits);
    place(&mut fleet, 1, &pod(2, Class::OnDemand));
    let declined = fleet
        .reserve(PodId(2), &pod(1, Class::OnDemand))
        .unwrap_err();
    assert_eq!(
        declined.to_string(),
        "tenant `t` may have 2.5 CPUs and has 2 CPUs"
    );
}

#[test]
fn a_lost_hosts_tickets_are_stale_and_its_pods_can_be_placed_again() {
    let mut fleet = fleet(&[("h1", "a", 4, 16)]);
    let old = place(&mut fleet, 1, &pod(1, Class::OnDemand));
    assert_eq!(fleet.lose_host("h1").unwrap(), [old.ticket]);
    fleet.set_ready("h1", true).unwrap();
    let new = place(&mut fleet, 1, &pod(1, Class::OnDemand));
    assert!(new.ticket.generation > old.ticket.generation);
    assert!(fleet.release(old.ticket).is_err(), "fenced");
    assert_eq!(where_is(&fleet, 1), "h1");
}

#[test]
fn templates_that_nobody_uses_are_forgotten() {
    let mut fleet = fleet(&[("h1", "a", 16, 64)]);
    for id in 0..20_000_u128 {
        let mut spec = constrained(Rule::Apart, Topology::Host, true);
        spec.labels.insert("job".into(), id.to_string());
        spec.constraints[0].selector = Selector::label("job", id.to_string());
        let placed = place(&mut fleet, id, &spec);
        fleet.release(placed.ticket).unwrap();
    }
    assert!(fleet.templates() < 5000, "{}", fleet.templates());
    fleet.audit().unwrap();
}

#[test]
fn a_prepared_template_places_as_its_spec_does_until_it_is_forgotten() {
    let mut fleet = fleet(&[("h1", "a", 2, 16)]);
    let spec = pod(1, Class::OnDemand);
    let prepared = fleet.prepare(&spec).unwrap();
    let placed = fleet.reserve_prepared(PodId(1), &prepared).unwrap();
    let again = fleet.reserve_prepared(PodId(1), &prepared);
    assert!(matches!(again, Err(Declined::AlreadyPlaced { .. })));
    place(&mut fleet, 2, &spec);
    let full = fleet.reserve_prepared(PodId(3), &prepared);
    assert_eq!(full, Err(Declined::NoRoom));
    fleet.forget(prepared);
    fleet.release(placed.ticket).unwrap();
    fleet.audit().unwrap();
}

#[test]
fn reasons_are_sentences_for_a_person() {
    let mut fleet = fleet(&[("h1", "a", 4, 16), ("h2", "b", 16, 4)]);
    let asks = |cpu_millis: u32, gib: u64, zone: Option<&str>| PodTemplate {
        tenant: "t".into(),
        cpu_millis,
        memory_bytes: gib * GIB,
        zones: zone.map_or(Zones::Any, |zone| Zones::AnyOf(vec![zone.to_owned()])),
        ..PodTemplate::default()
    };
    place(&mut fleet, 1, &asks(2000, 1, Some("a")));
    place(&mut fleet, 2, &asks(500, 1, Some("a")));
    let mut said = |spec: PodTemplate| match fleet.reserve(PodId(9), &spec) {
        Err(Declined::NoRoom) => fleet.explain(&spec).unwrap().to_string(),
        other => other.unwrap_err().to_string(),
    };
    assert_eq!(
        said(asks(2000, 1, Some("a"))),
        "no host in zone a has 2 CPUs free: the largest gap is 1.5 CPUs"
    );
    assert_eq!(
        said(asks(1000, 4, Some("b"))),
        "no host in zone b has 4 GiB of memory free (and 16 MiB for the sandbox itself): \
         the largest gap is 4 GiB"
    );
    assert_eq!(
        said(asks(4000, 8, None)),
        "of 2 hosts: 1 lacks CPU, 1 lacks memory"
    );
    assert_eq!(
        said(asks(1000, 1, Some("c"))),
        "no zone `c`: the zones are a, b"
    );
    assert_eq!(
        said(asks(32_000, 1, None)),
        "no flavor has 32 CPUs and 1 GiB: the largest is `std-16x64`"
    );
    let flavor = |name: &str| PodTemplate {
        flavors: vec![name.into()],
        ..asks(1000, 1, None)
    };
    assert!(said(flavor("big")).starts_with("no flavor `big`: the flavors are std-0.25x0.125, "));
    assert_eq!(
        said(flavor("std-0.5x1")),
        "flavor `std-0.5x1` has 0.5 CPUs and 1 GiB, less than the 1 CPU and 1 GiB asked for"
    );
    fleet.set_ready("h1", false).unwrap();
    let why = fleet.explain(&asks(0, 0, Some("a"))).unwrap();
    assert_eq!(why.to_string(), "the only host in zone a is unreachable");
    let mut empty = Fleet::new(Flavors::standard(), Policy::Pack);
    let why = empty.explain(&asks(0, 0, None)).unwrap();
    assert_eq!(why.to_string(), "no host has registered yet");
}

#[test]
fn an_adopted_place_holds_on_a_host_that_has_shrunk() {
    let mut fleet = fleet(&[("h1", "a", 1, 1)]);
    let spec = pod(4, Class::OnDemand);
    let held = fleet
        .adopt(PodId(1), &spec, "h1", 4000, 8 * GIB, 0)
        .unwrap();
    assert_eq!(where_is(&fleet, 1), "h1");
    let small = pod(0, Class::OnDemand);
    assert_eq!(fleet.reserve(PodId(2), &small), Err(Declined::NoRoom));
    let why = fleet.explain(&small).unwrap();
    assert_eq!(why.causes[&Cause::Shrunk], 1, "{why:?}");
    fleet.release(held).unwrap();
    let status = fleet.host("h1").unwrap();
    assert_eq!(status.free, status.facts.capacity);
}

#[test]
fn an_adopted_place_holds_though_its_zone_has_gone() {
    let mut fleet = fleet(&[("h1", "a", 4, 8)]);
    let spec = PodTemplate {
        zones: Zones::AnyOf(vec!["b".into()]),
        ..pod(1, Class::OnDemand)
    };
    fleet.adopt(PodId(1), &spec, "h1", 1000, GIB, 0).unwrap();
    assert_eq!(where_is(&fleet, 1), "h1");
}

#[test]
fn packing_fills_one_host_and_spreading_takes_turns() {
    let hosts = |policy| {
        let mut fleet = Fleet::new(Flavors::standard(), policy);
        for name in ["h1", "h2"] {
            set(&mut fleet, name, "a", 2, 8);
            fleet.set_ready(name, true).unwrap();
        }
        let hosts = (0..4).map(|id| {
            place(&mut fleet, id, &pod(1, Class::OnDemand));
            where_is(&fleet, id)
        });
        hosts.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(hosts(Policy::Pack), "h1 h1 h2 h2");
    assert_eq!(hosts(Policy::Spread), "h1 h2 h1 h2");
}

#[test]
fn an_eviction_and_a_draw_outlive_the_scheduler() {
    let mut fleet = fleet(&[("h1", "a", 4, 8)]);
    let (spot, firm) = (pod(4, Class::Spot), pod(4, Class::OnDemand));
    let victim = fleet.adopt(PodId(1), &spot, "h1", 4000, GIB, 0).unwrap();
    fleet.adopt(PodId(2), &firm, "h1", 4000, GIB, 0).unwrap();
    fleet
        .adopt_eviction(PodId(2), &[PodId(1), PodId(7)])
        .unwrap();
    assert!(!fleet.may_start(PodId(2)));
    assert_eq!(fleet.host("h1").unwrap().free.cpu_millis, 0);
    let released = fleet.release(victim).unwrap();
    assert_eq!(released.startable.len(), 1);
    assert!(fleet.may_start(PodId(2)));

    let mut fleet = Fleet::new(Flavors::standard(), Policy::Pack);
    set(&mut fleet, "h1", "a", 4, 8);
    let booking = Booking {
        id: BookingId(1),
        tenant: "t".into(),
        flavor: "std-1x1".into(),
        count: 2,
        zones: Zones::Any,
        disks: 0,
        ends: Time(10),
    };
    fleet.adopt_booking(Time(0), booking).unwrap();
    let reserved = pod(1, Class::Reserved);
    fleet
        .adopt(PodId(1), &reserved, "h1", 1000, GIB, 0)
        .unwrap();
    assert!(fleet.adopt_draw(PodId(1), BookingId(1)));
    assert!(
        !fleet.adopt_draw(PodId(1), BookingId(1)),
        "it draws already"
    );
    assert_eq!(fleet.drawn_on(PodId(1)), Some(BookingId(1)));
    // The other place is kept once the host takes pods.
    fleet.set_ready("h1", true).unwrap();
    fleet.advance(Time(1));
    let view = fleet.booking(BookingId(1)).unwrap();
    assert_eq!((view.idle, view.used), (1, 1));
}

#[test]
fn a_gang_evicts_from_several_hosts_or_from_none() {
    let mut fleet = fleet(&[("h1", "a", 4, 8), ("h2", "a", 4, 8)]);
    for id in [1, 2] {
        place(&mut fleet, id, &pod(4, Class::Spot));
    }
    let firm = PodTemplate {
        preempts: true,
        ..pod(4, Class::OnDemand)
    };
    let gang = |size: u128| Gang {
        pods: (10..10 + size)
            .map(|id| (PodId(id), firm.clone()))
            .collect(),
        one_zone: false,
    };
    assert_eq!(fleet.reserve_gang(&gang(3)), Err(Declined::NoRoom));
    let places = fleet.reserve_gang(&gang(2)).unwrap();
    let victims: Vec<_> = places
        .iter()
        .flat_map(|place| place.victims.clone())
        .collect();
    assert_eq!(
        victims.len(),
        2,
        "those that a larger gang would have evicted stayed"
    );
    for place in &places {
        fleet.commit(place.ticket).unwrap();
        assert!(!fleet.may_start(place.ticket.pod));
    }
    for victim in victims {
        fleet.release(victim).unwrap();
    }
    assert!(places.iter().all(|place| fleet.may_start(place.ticket.pod)));
}
