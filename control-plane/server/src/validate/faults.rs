//! Random pods with one random fault each: the refusal names that field.

use longship_proto::Class;
use longship_proto::control::v1::placement_constraint::Rule;
use longship_proto::control::v1::{
    Container, EnvVar, ObjectMeta, Placement, PlacementConstraint, Pod, PodSpec, Resources,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{NewPod, pod, pod_count};

fn pods(pods: Vec<Pod>) -> Result<Vec<NewPod>, longship_proto::Failure> {
    pod_count(pods.len())?;
    super::pods(pods.into_iter().map(Ok))
}

/// A pod without a fault.
fn valid_pod() -> impl Strategy<Value = Pod> {
    let label = "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?";
    let key = "([a-z]{1,9}\\.[a-z]{1,9}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?";
    let value = "([A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?)?";
    let meta = (
        label,
        prop::option::of(label),
        prop::collection::hash_map(key, value, 0..9),
        prop::collection::hash_map(key, "\\PC{0,30}", 0..9),
    )
        .prop_map(|(name, namespace, labels, annotations)| ObjectMeta {
            name,
            namespace: namespace.unwrap_or_default(),
            labels,
            annotations,
            ..ObjectMeta::default()
        });
    let env = ("[A-Za-z_][A-Za-z0-9_]{0,9}", "[ -~]{0,20}")
        .prop_map(|(name, value)| EnvVar { name, value });
    let container = (
        select(vec!["nginx", "127.0.0.1:5000/a/b:v1", "oci:/srv/image:1"]),
        prop::collection::vec("[!-~]{1,9}", 0..3),
        prop::collection::vec(env, 0..4),
        0_i32..4,
        0_u32..1000,
        prop::option::of(64_u64..4096),
    )
        .prop_map(|(image, words, env, pull, cpu_millis, mib)| Container {
            image: image.into(),
            command: words.clone(),
            args: words,
            env,
            image_pull_policy: pull,
            resources: Some(Resources {
                cpu_millis,
                memory_bytes: mib.unwrap_or_default() << 20,
                gpus: 0,
            }),
            ..Container::default()
        });
    let spec = (
        prop::collection::vec(container, 1..5),
        placement(),
        (0_i32..4, 0_i32..3, prop::option::of(0_u32..=3600)),
        prop::collection::vec(select(vec!["10.0.0.2", "::1"]), 0..=3),
        prop::option::of(label),
    )
        .prop_map(
            |(mut containers, placement, numbers, nameservers, network)| {
                for (at, one) in containers.iter_mut().enumerate() {
                    one.name = format!("c-{at}");
                }
                PodSpec {
                    containers,
                    placement,
                    restart_policy: numbers.0,
                    memory_profile: numbers.1,
                    termination_grace_seconds: numbers.2,
                    nameservers: nameservers.into_iter().map(str::to_owned).collect(),
                    vpc: network.clone().unwrap_or_default(),
                    subnet: network.unwrap_or_default(),
                    ..PodSpec::default()
                }
            },
        );
    (meta, spec).prop_map(|(metadata, spec)| Pod {
        metadata: Some(metadata),
        spec: Some(spec),
        status: None,
    })
}

fn placement() -> impl Strategy<Value = Option<Placement>> {
    let rule = prop_oneof![
        Just(Rule::With(true)),
        Just(Rule::Apart(true)),
        (1_u32..9).prop_map(Rule::MaxSkew),
    ];
    let selectors = select(vec!["", "app=web", "a in (b,c),!d", "x.io/y!=z"]);
    let constraint = (0_i32..3, selectors, rule, any::<bool>()).prop_map(
        |(topology, selector, rule, preferred)| PlacementConstraint {
            topology,
            label_selector: selector.into(),
            rule: Some(rule),
            preferred,
        },
    );
    let placement = (
        0_usize..4,
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(constraint, 0..=16),
        (
            0_i32..3,
            0_i32..4,
            -1000_i32..=1000,
            any::<bool>(),
            0_i32..3,
        ),
    )
        .prop_map(
            |(zones, in_order, flavors, constraints, numbers)| Placement {
                zones: (0..zones).map(|n| format!("zone-{n}")).collect(),
                zones_in_order: in_order && zones > 0,
                flavors: flavors.then(|| "std-4x8".to_owned()).into_iter().collect(),
                family: String::new(),
                fallback: numbers.0,
                constraints,
                class: numbers.1,
                priority: numbers.2,
                preempts: numbers.3,
                policy: numbers.4,
            },
        );
    prop::option::of(placement)
}

/// What makes a pod wrong, and the field at which it is then. The index chooses among
/// what there is several of.
type Fault = fn(&mut Pod, Index) -> String;

fn meta(pod: &mut Pod) -> &mut ObjectMeta {
    pod.metadata.get_or_insert_default()
}

fn spec(pod: &mut Pod) -> &mut PodSpec {
    pod.spec.get_or_insert_default()
}

fn place(pod: &mut Pod) -> &mut Placement {
    spec(pod).placement.get_or_insert_default()
}

/// One of the containers, and its path.
fn container(pod: &mut Pod, at: Index) -> (&mut Container, String) {
    let containers = &mut spec(pod).containers;
    let at = at.index(containers.len());
    (&mut containers[at], format!("spec.containers[{at}]"))
}

fn constraint(pod: &mut Pod, at: Index) -> (&mut PlacementConstraint, String) {
    let constraints = &mut place(pod).constraints;
    if constraints.is_empty() {
        constraints.push(PlacementConstraint {
            rule: Some(Rule::With(true)),
            ..PlacementConstraint::default()
        });
    }
    let at = at.index(constraints.len());
    (
        &mut constraints[at],
        format!("spec.placement.constraints[{at}]"),
    )
}

const FAULTS: &[Fault] = &[
    |p, _| {
        meta(p).name = "Web".into();
        "metadata.name".into()
    },
    |p, _| {
        meta(p).name = "a".repeat(64);
        "metadata.name".into()
    },
    |p, _| {
        meta(p).namespace = "-".into();
        "metadata.namespace".into()
    },
    |p, _| {
        meta(p).labels.insert("a b".into(), String::new());
        "metadata.labels[a b]".into()
    },
    |p, _| {
        meta(p).labels.insert("Up.er/key".into(), String::new());
        "metadata.labels[Up.er/key]".into()
    },
    |p, _| {
        meta(p).labels.insert("bad".into(), "a/b".into());
        "metadata.labels[bad]".into()
    },
    |p, _| {
        meta(p).labels = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        "metadata.labels".into()
    },
    |p, _| {
        meta(p).annotations.insert("/x".into(), String::new());
        "metadata.annotations[/x]".into()
    },
    |p, _| {
        meta(p)
            .annotations
            .insert("x".into(), "x".repeat(256 << 10));
        "metadata.annotations".into()
    },
    |p, _| {
        meta(p)
            .annotations
            .insert("x".into(), "x".repeat(512 << 10));
        String::new()
    },
    |p, _| {
        p.spec = None;
        "spec".into()
    },
    |p, _| {
        spec(p).containers.clear();
        "spec.containers".into()
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.name = "a_b".into();
        format!("{path}.name")
    },
    |p, _| {
        let again = spec(p).containers[0].clone();
        spec(p).containers.push(again);
        format!("spec.containers[{}].name", spec(p).containers.len() - 1)
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.image = "A".into();
        format!("{path}.image")
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.image_pull_policy = 9;
        format!("{path}.image_pull_policy")
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.args.push("\0".into());
        format!("{path}.args[{}]", one.args.len() - 1)
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.command = vec![String::new()];
        format!("{path}.command[0]")
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.env.push(EnvVar {
            name: "1".into(),
            value: String::new(),
        });
        format!("{path}.env[{}].name", one.env.len() - 1)
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.working_dir = "srv".into();
        format!("{path}.working_dir")
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.resources.get_or_insert_default().cpu_millis = u32::MAX;
        format!("{path}.resources.cpu_millis")
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.resources.get_or_insert_default().memory_bytes = u64::MAX;
        format!("{path}.resources.memory_bytes")
    },
    |p, at| {
        let (one, path) = container(p, at);
        one.resources.get_or_insert_default().gpus = 17;
        format!("{path}.resources.gpus")
    },
    |p, _| {
        spec(p).restart_policy = 4;
        "spec.restart_policy".into()
    },
    |p, _| {
        spec(p).memory_profile = -1;
        "spec.memory_profile".into()
    },
    |p, _| {
        spec(p).zone = "Zone".into();
        place(p).zones.clear();
        place(p).zones_in_order = false;
        "spec.zone".into()
    },
    |p, _| {
        spec(p).zone = "a".into();
        place(p).zones = vec!["b".into()];
        "spec.placement.zones".into()
    },
    |p, _| {
        spec(p).flavor = "huge".into();
        "spec.flavor".into()
    },
    |p, _| {
        spec(p).vpc = "a.b".into();
        "spec.vpc".into()
    },
    |p, _| {
        spec(p).subnet = "a_b".into();
        "spec.subnet".into()
    },
    |p, _| {
        spec(p).hostname = "a.b".into();
        "spec.hostname".into()
    },
    |p, _| {
        spec(p).nameservers = vec!["10.0.0.2".into(), "dns".into()];
        "spec.nameservers[1]".into()
    },
    |p, _| {
        spec(p).termination_grace_seconds = Some(3601);
        "spec.termination_grace_seconds".into()
    },
    |p, _| {
        let zones = &mut place(p).zones;
        zones.push("Zone".into());
        format!("spec.placement.zones[{}]", zones.len() - 1)
    },
    |p, _| {
        place(p).zones = vec!["a".into(), "b".into(), "a".into()];
        "spec.placement.zones[2]".into()
    },
    |p, _| {
        place(p).zones = (0..65).map(|n| format!("z{n}")).collect();
        "spec.placement.zones".into()
    },
    |p, _| {
        place(p).zones.clear();
        place(p).zones_in_order = true;
        "spec.placement.zones_in_order".into()
    },
    |p, _| {
        place(p).flavors = vec!["std-1x1".into(), "tiny".into()];
        "spec.placement.flavors[1]".into()
    },
    |p, _| {
        place(p).flavors = vec!["std-1x1".into()];
        spec(p).flavor = "std-1x1".into();
        "spec.placement.flavors".into()
    },
    |p, _| {
        place(p).flavors.clear();
        place(p).family = "none".into();
        "spec.placement.family".into()
    },
    |p, _| {
        place(p).flavors = vec!["std-1x1".into()];
        place(p).family = "std".into();
        "spec.placement.family".into()
    },
    |p, _| {
        place(p).fallback = 3;
        "spec.placement.fallback".into()
    },
    |p, _| {
        place(p).class = -2;
        "spec.placement.class".into()
    },
    |p, _| {
        place(p).policy = 7;
        "spec.placement.policy".into()
    },
    |p, _| {
        place(p).priority = 1001;
        "spec.placement.priority".into()
    },
    |p, _| {
        let one = PlacementConstraint {
            rule: Some(Rule::With(true)),
            ..PlacementConstraint::default()
        };
        place(p).constraints = vec![one; 17];
        "spec.placement.constraints".into()
    },
    |p, at| {
        let (one, path) = constraint(p, at);
        one.topology = 3;
        format!("{path}.topology")
    },
    |p, at| {
        let (one, path) = constraint(p, at);
        one.label_selector = "a in b".into();
        format!("{path}.label_selector")
    },
    |p, at| {
        let (one, path) = constraint(p, at);
        one.rule = None;
        format!("{path}.rule")
    },
    |p, at| {
        let (one, path) = constraint(p, at);
        one.rule = Some(Rule::With(false));
        format!("{path}.with")
    },
    |p, at| {
        let (one, path) = constraint(p, at);
        one.rule = Some(Rule::Apart(false));
        format!("{path}.apart")
    },
    |p, at| {
        let (one, path) = constraint(p, at);
        one.rule = Some(Rule::MaxSkew(0));
        format!("{path}.max_skew")
    },
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_pod_without_a_fault_is_taken(valid in valid_pod()) {
        let taken = pod(valid);
        prop_assert!(taken.is_ok(), "{:?}", taken);
    }

    #[test]
    fn the_refusal_names_the_field_that_is_wrong(
        valid in valid_pod(),
        fault in any::<Index>(),
        at in any::<Index>(),
    ) {
        let mut wrong = valid;
        let field = fault.get(FAULTS)(&mut wrong, at);
        let refused = pod(wrong).err();
        let refused = refused.ok_or_else(|| TestCaseError::fail(format!("taken: {field}")))?;
        prop_assert_eq!(refused.class(), Class::Invalid);
        prop_assert_eq!(&refused.field, &field, "{}", refused);
        prop_assert!(refused.message.len() < 2000, "{}", refused.message);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_refusal_of_a_batch_names_the_pod_too(
        valid in prop::collection::vec(valid_pod(), 1..8),
        which in any::<Index>(),
        fault in any::<Index>(),
        at in any::<Index>(),
    ) {
        let mut batch = valid;
        for (n, one) in batch.iter_mut().enumerate() {
            meta(one).name = format!("pod-{n}");
        }
        let which = which.index(batch.len());
        let field = fault.get(FAULTS)(&mut batch[which], at);
        let refused = pods(batch).err();
        let refused = refused.ok_or_else(|| TestCaseError::fail(format!("taken: {field}")))?;
        let dot = if field.is_empty() { "" } else { "." };
        prop_assert_eq!(refused.field, format!("pods[{which}]{dot}{field}"));
    }
}

#[test]
fn a_batch_has_pods_of_different_names_and_not_too_many() {
    let named = |name: &str| Pod {
        metadata: Some(ObjectMeta {
            name: name.into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "c".into(),
                image: "nginx".into(),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: None,
    };
    assert_eq!(pods(Vec::new()).unwrap_err().field, "pods");
    assert_eq!(pods(vec![named("a"); 1001]).unwrap_err().field, "pods");
    let twice = vec![named("a"), named("b"), named("a")];
    assert_eq!(pods(twice).unwrap_err().field, "pods[2].metadata.name");
    let mut elsewhere = named("a");
    meta(&mut elsewhere).namespace = "other".into();
    assert_eq!(pods(vec![named("a"), elsewhere]).unwrap().len(), 2);
}
