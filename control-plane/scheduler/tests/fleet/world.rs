//! A small world: flavors, hosts and templates that get in each other's way.

use longship_scheduler::{
    Amount, Class, Constraint, Expression, Fallback, Flavor, Flavors, HostFacts, Labels, Operator,
    PodTemplate, Policy, Rule, Selector, Topology, Zones,
};
use proptest::prelude::*;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn flavors() -> Flavors {
    let flavor = |name: &str, family: &str, cpu_millis, mib: u64, gpus| Flavor {
        name: name.into(),
        family: family.into(),
        cpu_millis,
        memory_bytes: mib * MIB,
        gpus,
    };
    Flavors::new(vec![
        flavor("tiny", "std", 250, 256, 0),
        flavor("small", "std", 1000, 1024, 0),
        flavor("wide", "std", 2000, 1024, 0),
        flavor("tall", "std", 1000, 4096, 0),
        flavor("gpu-1", "gpu", 1000, 2048, 1),
        flavor("gpu-2", "gpu", 2000, 4096, 2),
    ])
    .unwrap()
}

pub(crate) fn host_name(host: u8) -> String {
    format!("host-{host}")
}

pub(crate) fn facts() -> impl Strategy<Value = HostFacts> {
    let capacity = (
        0_u32..20,
        0_u64..24,
        1_u32..9,
        1_u32..10,
        0_u32..6,
        0_u32..4,
    )
        .prop_map(|(quarters, halves, pods, enis, disks, gpus)| Amount {
            memory_bytes: halves * GIB / 2 + 64 * MIB,
            cpu_millis: quarters * 250 + 100,
            pods,
            enis,
            disks,
            gpus,
        });
    (0_u8..6, 0_u8..3, prop::bool::weighted(0.2), capacity).prop_map(
        |(host, zone, gpu, capacity)| HostFacts {
            name: host_name(host),
            zone: format!("zone-{zone}"),
            family: if gpu { "gpu" } else { "std" }.into(),
            capacity,
        },
    )
}

fn selector() -> impl Strategy<Value = Selector> {
    let app = |operator| Selector {
        labels: Labels::new(),
        expressions: vec![Expression {
            key: "app".into(),
            operator,
        }],
    };
    prop_oneof![
        4 => Just(Selector::label("app", "a")),
        3 => Just(Selector::label("app", "b")),
        1 => Just(app(Operator::Exists)),
        1 => Just(app(Operator::NotIn(["a".to_owned()].into()))),
        1 => Just(app(Operator::In(["a".to_owned(), "b".to_owned()].into()))),
    ]
}

fn constraint() -> impl Strategy<Value = Constraint> {
    let rule = prop_oneof![
        2 => Just(Rule::With),
        3 => Just(Rule::Apart),
        3 => (1_u32..3).prop_map(|max_skew| Rule::Spread { max_skew }),
    ];
    let topology = prop_oneof![Just(Topology::Host), Just(Topology::Zone)];
    (selector(), topology, rule, prop::bool::weighted(0.7)).prop_map(
        |(selector, topology, rule, required)| Constraint {
            selector,
            topology,
            rule,
            required,
        },
    )
}

fn zones() -> impl Strategy<Value = Zones> {
    let some = prop::collection::vec((0_u8..3).prop_map(|zone| format!("zone-{zone}")), 1..3);
    prop_oneof![
        4 => Just(Zones::Any),
        1 => some.clone().prop_map(Zones::AnyOf),
        1 => some.prop_map(Zones::InOrder),
    ]
}

pub(crate) fn template() -> impl Strategy<Value = PodTemplate> {
    let size = (0_u32..2100, 0_u64..4200, prop::bool::weighted(0.1));
    let names = prop::sample::subsequence(
        vec!["tiny", "small", "wide", "tall", "gpu-1", "gpu-2"],
        1..4,
    );
    let flavors = prop_oneof![3 => Just(Vec::new()), 1 => names];
    let app = prop_oneof![1 => Just(None), 3 => Just(Some("a")), 2 => Just(Some("b"))];
    let constraints = prop_oneof![
        3 => Just(Vec::new()),
        3 => prop::collection::vec(constraint(), 1..3),
    ];
    let class = prop_oneof![
        3 => Just(Class::OnDemand),
        3 => Just(Class::Spot),
        1 => Just(Class::Reserved),
    ];
    let policy = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Policy::Pack)),
        1 => Just(Some(Policy::Spread)),
    ];
    let who = (0_u8..2, app, class, 0_i32..3, any::<bool>());
    let what = (size, flavors, 0_u32..4, 0_u32..3);
    let how = (zones(), any::<bool>(), constraints, policy);
    (who, what, how).prop_map(
        |(
            (tenant, app, class, priority, preempts),
            ((cpu_millis, mib, gpu), flavors, enis, disks),
            (zones, zones_first, constraints, policy),
        )| {
            // Named flavors must hold what is asked for; else only some refusals are seen.
            let named = !flavors.is_empty();
            PodTemplate {
                tenant: format!("tenant-{tenant}"),
                labels: app
                    .map(|app| ("app".to_owned(), app.to_owned()))
                    .into_iter()
                    .collect(),
                cpu_millis: if named { 0 } else { cpu_millis },
                memory_bytes: if named { 0 } else { mib * MIB },
                gpus: u32::from(gpu && !named),
                enis,
                disks,
                family: None,
                flavors: flavors.into_iter().map(str::to_owned).collect(),
                zones,
                fallback: match zones_first {
                    true => Fallback::ZonesFirst,
                    false => Fallback::FlavorsFirst,
                },
                constraints,
                class,
                priority,
                preempts,
                policy,
            }
        },
    )
}
