//! What may happen.

use std::collections::BTreeSet;

use longship_proto::control::v1::placement_constraint::{Rule, Topology};
use longship_proto::control::v1::{
    Container, ObjectMeta, Phase, Placement, PlacementClass, PlacementConstraint, Pod, PodSpec,
    Quota, Resources, RestartPolicy,
};
use proptest::prelude::*;

pub(super) const TENANTS: [&str; 2] = ["default", "red"];

/// What a pod is like.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    red: bool,
    cpu_millis: u32,
    mib: u64,
    zone: Option<u8>,
    class: PlacementClass,
    priority: i32,
    preempts: bool,
    /// Never on a host with another that is so.
    apart: bool,
    restart: RestartPolicy,
}

#[derive(Debug, Clone)]
pub(super) enum Act {
    Create {
        pod: u8,
        shape: Shape,
    },
    CreateGang {
        pods: BTreeSet<u8>,
        shape: Shape,
        one_zone: bool,
    },
    Delete {
        pod: u8,
        red: bool,
    },
    Attach {
        host: u8,
        /// The card remembers what it runs.
        remembers: bool,
    },
    Detach {
        host: u8,
    },
    /// The card goes on with one of its pods.
    Card {
        host: u8,
        nth: usize,
        phase: Phase,
    },
    /// Says what is not so: of another's pod, or of a former life.
    Lie {
        host: u8,
        nth: usize,
        phase: i32,
        generation: u64,
    },
    Cordon {
        host: u8,
        cordoned: bool,
    },
    Drain {
        host: u8,
    },
    Remove {
        host: u8,
    },
    Reserve {
        red: bool,
        count: u32,
        seconds: u8,
    },
    EndReservation {
        red: bool,
    },
    /// Time passes: a part of a lease, or more than one.
    Wait {
        tenths_of_a_lease: u32,
    },
    /// The server starts again; what it did in this batch is written, or not.
    Restart {
        written: bool,
    },
}

fn shape() -> impl Strategy<Value = Shape> {
    let class = prop_oneof![
        3 => Just(PlacementClass::OnDemand),
        2 => Just(PlacementClass::Spot),
        1 => Just(PlacementClass::Reserved),
    ];
    let restart = prop_oneof![
        2 => Just(RestartPolicy::Always),
        1 => Just(RestartPolicy::OnFailure),
        1 => Just(RestartPolicy::Never),
    ];
    let size = (0_u32..1500, 64_u64..900);
    let zone = prop::option::weighted(0.2, 0_u8..3);
    let rank = (class, -1_i32..3, any::<bool>());
    let apart = prop::bool::weighted(0.3);
    (any::<bool>(), size, zone, rank, apart, restart).prop_map(
        |(red, (cpu_millis, mib), zone, (class, priority, preempts), apart, restart)| Shape {
            red,
            cpu_millis,
            mib,
            zone,
            class,
            priority,
            preempts,
            apart,
            restart,
        },
    )
}

pub(super) fn acts() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let phase = prop_oneof![
        3 => Just(Phase::Running),
        1 => Just(Phase::Preparing),
        2 => Just(Phase::Succeeded),
        1 => Just(Phase::Failed),
        6 => Just(Phase::Released),
    ];
    let gang = prop::collection::btree_set(0_u8..8, 2..4);
    let host = || 0_u8..3;
    let nth = || 0_usize..6;
    let act = prop_oneof![
        8 => (0_u8..8, shape()).prop_map(|(pod, shape)| Act::Create { pod, shape }),
        3 => (gang, shape(), any::<bool>())
            .prop_map(|(pods, shape, one_zone)| Act::CreateGang { pods, shape, one_zone }),
        5 => (0_u8..8, any::<bool>()).prop_map(|(pod, red)| Act::Delete { pod, red }),
        5 => (host(), prop::bool::weighted(0.8))
            .prop_map(|(host, remembers)| Act::Attach { host, remembers }),
        1 => host().prop_map(|host| Act::Detach { host }),
        14 => (host(), nth(), phase)
            .prop_map(|(host, nth, phase)| Act::Card { host, nth, phase }),
        1 => (host(), nth(), 0_i32..12, 0_u64..4).prop_map(|(host, nth, phase, generation)| {
            Act::Lie { host, nth, phase, generation }
        }),
        1 => (host(), any::<bool>()).prop_map(|(host, cordoned)| Act::Cordon { host, cordoned }),
        1 => host().prop_map(|host| Act::Drain { host }),
        1 => host().prop_map(|host| Act::Remove { host }),
        1 => (any::<bool>(), 1_u32..4, 1_u8..60)
            .prop_map(|(red, count, seconds)| Act::Reserve { red, count, seconds }),
        1 => any::<bool>().prop_map(|red| Act::EndReservation { red }),
        2 => (0_u32..45).prop_map(|tenths_of_a_lease| Act::Wait { tenths_of_a_lease }),
        1 => any::<bool>().prop_map(|written| Act::Restart { written }),
    ];
    // Batches, as the queue makes them.
    prop::collection::vec(prop::collection::vec(act, 1..5), 1..50)
}

/// What the tenants may have, from the beginning to the end.
pub(super) fn quota() -> impl Strategy<Value = Quota> {
    let limit = |most: u64| prop::option::weighted(0.4, 1..most);
    (limit(8), limit(12)).prop_map(|(pods, quarters)| Quota {
        pods,
        cpu_millis: quarters.map(|quarters| quarters * 250),
        ..Quota::default()
    })
}

pub(super) fn tenant(red: bool) -> &'static str {
    TENANTS[usize::from(red)]
}

impl Shape {
    pub(super) fn pod(&self, pod: u8) -> Pod {
        let mut labels = std::collections::HashMap::new();
        let mut constraints = Vec::new();
        if self.apart {
            labels.insert("app".to_owned(), "apart".to_owned());
            constraints.push(PlacementConstraint {
                topology: Topology::Host.into(),
                label_selector: "app=apart".into(),
                rule: Some(Rule::Apart(true)),
                preferred: false,
            });
        }
        let spec = PodSpec {
            containers: vec![Container {
                name: "main".into(),
                image: "hello".into(),
                resources: Some(Resources {
                    cpu_millis: self.cpu_millis,
                    memory_bytes: self.mib << 20,
                    ..Resources::default()
                }),
                ..Container::default()
            }],
            vpc: format!("{}-{}", tenant(self.red), pod % 2),
            zone: self
                .zone
                .map(|zone| format!("zone-{zone}"))
                .unwrap_or_default(),
            restart_policy: self.restart.into(),
            placement: Some(Placement {
                class: self.class.into(),
                priority: self.priority,
                preempts: self.preempts,
                constraints,
                ..Placement::default()
            }),
            ..PodSpec::default()
        };
        Pod {
            metadata: Some(ObjectMeta {
                name: format!("pod-{pod}"),
                namespace: tenant(self.red).into(),
                labels,
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
            status: None,
        }
    }
}
