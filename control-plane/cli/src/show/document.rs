//! Pods, hosts and flavors as documents for scripts; pods in Kubernetes' own field
//! names, so that what is shown can be created again.

use longship_proto::card::v1::Held;
use longship_proto::control::v1::{
    Container, ContainerStatus, Flavor, Host, HostCapacity, HostState, Pod, PodSpec, PodStatus,
    Stage,
};
use serde_json::{Map, Value, json};

use super::names;
use super::time::rfc3339;
use crate::manifest::{
    FLAVOR_ANNOTATION, GPU_RESOURCE, SUBNET_ANNOTATION, VPC_ANNOTATION, ZONE_LABEL, show_cpu,
    show_memory,
};

/// Fields in order, without those that say nothing.
#[derive(Default)]
pub(super) struct Document(Map<String, Value>);

impl Document {
    pub(super) fn put(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        let says_nothing = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        if !says_nothing {
            self.0.insert(key.to_owned(), value);
        }
    }

    pub(super) fn value(self) -> Value {
        Value::Object(self.0)
    }
}

/// One pod.
pub(crate) fn pod(pod: &Pod) -> Value {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let mut annotations = metadata.annotations.clone();
    for (key, value) in [
        (FLAVOR_ANNOTATION, &spec.flavor),
        (VPC_ANNOTATION, &spec.vpc),
        (SUBNET_ANNOTATION, &spec.subnet),
    ] {
        if !value.is_empty() {
            annotations.insert(key.to_owned(), value.clone());
        }
    }
    let mut meta = Document::default();
    meta.put("name", metadata.name);
    meta.put("namespace", metadata.namespace);
    meta.put("uid", metadata.uid);
    if metadata.generation != 0 {
        meta.put("generation", metadata.generation);
    }
    if metadata.resource_version != 0 {
        meta.put("resourceVersion", metadata.resource_version.to_string());
    }
    meta.put("creationTimestamp", rfc3339(metadata.created_us));
    meta.put("deletionTimestamp", rfc3339(metadata.deleted_us));
    meta.put("labels", sorted(metadata.labels));
    meta.put("annotations", sorted(annotations));
    let mut document = Document::default();
    document.put("apiVersion", "v1");
    document.put("kind", "Pod");
    document.put("metadata", meta.value());
    document.put("spec", pod_spec(&spec));
    document.put("status", pod.status.as_ref().map(pod_status));
    document.value()
}

fn sorted(map: impl IntoIterator<Item = (String, String)>) -> Value {
    let sorted: std::collections::BTreeMap<String, String> = map.into_iter().collect();
    json!(sorted)
}

fn pod_spec(spec: &PodSpec) -> Value {
    let mut document = Document::default();
    let containers: Vec<Value> = spec.containers.iter().map(container).collect();
    document.put("containers", containers);
    document.put(
        "restartPolicy",
        names::restart_policy(spec.restart_policy()),
    );
    if !spec.zone.is_empty() {
        document.put("nodeSelector", json!({ZONE_LABEL: spec.zone}));
    }
    document.put("hostname", spec.hostname.as_str());
    if !spec.nameservers.is_empty() {
        document.put("dnsConfig", json!({"nameservers": spec.nameservers}));
    }
    document.put(
        "terminationGracePeriodSeconds",
        spec.termination_grace_seconds,
    );
    document.put(
        "memoryProfile",
        names::memory_profile(spec.memory_profile()),
    );
    if let Some(placement) = &spec.placement {
        super::placement::add(placement, &mut document);
    }
    document.value()
}

fn container(container: &Container) -> Value {
    let mut document = Document::default();
    document.put("name", container.name.as_str());
    document.put("image", container.image.as_str());
    document.put(
        "imagePullPolicy",
        names::image_pull_policy(container.image_pull_policy()),
    );
    document.put("command", container.command.clone());
    document.put("args", container.args.clone());
    let env: Vec<Value> = container
        .env
        .iter()
        .map(|variable| json!({"name": variable.name, "value": variable.value}))
        .collect();
    document.put("env", env);
    document.put("workingDir", container.working_dir.as_str());
    let resources = container.resources.unwrap_or_default();
    let mut limits = Document::default();
    if resources.cpu_millis != 0 {
        limits.put("cpu", show_cpu(resources.cpu_millis));
    }
    if resources.memory_bytes != 0 {
        limits.put("memory", show_memory(resources.memory_bytes));
    }
    if resources.gpus != 0 {
        limits.put(GPU_RESOURCE, resources.gpus);
    }
    if !limits.0.is_empty() {
        document.put("resources", json!({"limits": limits.value()}));
    }
    document.value()
}

fn pod_status(status: &PodStatus) -> Value {
    let mut document = Document::default();
    document.put("phase", names::phase(status.phase()));
    document.put("reason", status.reason.as_str());
    document.put("message", status.message.as_str());
    document.put("host", status.host.as_str());
    document.put("zone", status.zone.as_str());
    document.put("flavor", status.flavor.as_ref().map(flavor));
    if let Some(eni) = &status.eni {
        document.put("podIP", eni.address.as_str());
        document.put(
            "eni",
            json!({
                "vpc": eni.vpc,
                "address": eni.address,
                "prefixLength": eni.prefix_length,
                "gateway": eni.gateway,
                "mac": eni.mac,
                "mtu": eni.mtu,
            }),
        );
    }
    let containers: Vec<Value> = status.containers.iter().map(container_status).collect();
    document.put("containerStatuses", containers);
    let timeline: Vec<Value> = status.timeline.iter().map(stage).collect();
    document.put("timeline", timeline);
    document.value()
}

fn container_status(status: &ContainerStatus) -> Value {
    let terminated = status.finished_us != 0;
    let mut document = Document::default();
    document.put("name", status.name.as_str());
    document.put("state", names::container_state(status.state()));
    document.put("restartCount", status.restarts);
    if terminated {
        document.put("exitCode", status.exit_code);
    }
    document.put("reason", status.reason.as_str());
    document.put("imageID", status.image_digest.as_str());
    document.put("startedAt", rfc3339(status.started_us));
    document.put("finishedAt", rfc3339(status.finished_us));
    document.value()
}

fn stage(stage: &Stage) -> Value {
    let mut document = Document::default();
    document.put("name", stage.name.as_str());
    document.put("component", stage.component.as_str());
    document.put("startUs", stage.start_us);
    document.put("endUs", stage.end_us);
    document.value()
}

/// One flavor.
pub(crate) fn flavor(flavor: &Flavor) -> Value {
    json!({
        "name": flavor.name,
        "cpuMillis": flavor.cpu_millis,
        "memoryBytes": flavor.memory_bytes,
        "vcpus": flavor.vcpus,
        "family": flavor.family,
        "gpus": flavor.gpus,
    })
}

/// One host.
pub(crate) fn host(host: &Host) -> Value {
    let capacity = |capacity: Option<HostCapacity>| {
        let capacity = capacity.unwrap_or_default();
        json!({
            "cpuMillis": capacity.cpu_millis,
            "memoryBytes": capacity.memory_bytes,
            "pods": capacity.pods,
            "enis": capacity.enis,
            "disks": capacity.disks,
            "gpus": capacity.gpus,
        })
    };
    json!({
        "name": host.name,
        "zone": host.zone,
        "ready": host.state() == HostState::Ready,
        "state": names::host_state(host.state()),
        "cordoned": host.cordoned,
        "draining": host.draining,
        "family": host.family,
        "pods": host.pods,
        "capacity": capacity(host.capacity),
        "free": capacity(host.free),
        "cardEndpoint": host.card_endpoint,
    })
}

/// One thing that a card holds.
pub(crate) fn held(held: &Held) -> Value {
    json!({"podUid": held.pod_uid, "kind": held.kind, "name": held.name})
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::placement_constraint::Rule;
    use longship_proto::control::v1::{
        EnvVar, ObjectMeta, Phase, Placement, PlacementConstraint, Resources,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::manifest;

    fn a_pod() -> impl Strategy<Value = Pod> {
        let word = "[a-z][a-z0-9-]{0,8}";
        let text = "[ -~\n\u{e4}\u{2713}]{0,12}";
        let container = (
            word,
            "[a-z0-9./:@]{1,20}",
            prop::collection::vec(text, 0..3),
            prop::collection::vec(text, 0..3),
            prop::collection::vec((word, text), 0..3),
            prop::option::of((1_u32..100_000, 1_u64..1 << 40)),
            0_i32..4,
        )
            .prop_map(
                |(name, image, command, args, env, resources, pull)| Container {
                    name,
                    image,
                    command,
                    args,
                    env: env
                        .into_iter()
                        .map(|(name, value)| EnvVar { name, value })
                        .collect(),
                    working_dir: "/srv".into(),
                    resources: resources.map(|(cpu_millis, memory_bytes)| Resources {
                        cpu_millis,
                        memory_bytes,
                        gpus: cpu_millis % 3,
                    }),
                    image_pull_policy: pull,
                },
            );
        let spec = (
            prop::collection::vec(container, 1..3),
            (0_i32..4, 0_i32..3),
            "[a-z]{0,5}",
            "[a-z]{0,5}",
            prop::option::of(any::<u32>()),
            a_placement(),
        );
        (word, prop::collection::hash_map(word, text, 0..3), spec).prop_map(
            |(
                name,
                labels,
                (containers, (restart_policy, profile), zone, flavor, grace, placement),
            )| Pod {
                metadata: Some(ObjectMeta {
                    name,
                    namespace: "default".into(),
                    labels,
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec {
                    containers,
                    restart_policy,
                    memory_profile: profile,
                    zone: zone.clone(),
                    vpc: flavor.clone(),
                    subnet: zone,
                    placement,
                    flavor,
                    termination_grace_seconds: grace,
                    nameservers: vec!["10.0.0.2".into()],
                    ..PodSpec::default()
                }),
                status: None,
            },
        )
    }

    fn a_placement() -> impl Strategy<Value = Option<Placement>> {
        let word = "[a-z]{1,5}";
        let term = (word, any::<bool>(), any::<bool>(), 1_u32..9);
        let own = (
            prop::collection::vec(word, 0..3),
            any::<bool>(),
            "[a-z]{0,4}",
            0_i32..4,
            0_i32..3,
            0_i32..3,
        );
        (
            own,
            prop::collection::vec(term, 0..6),
            -9_i32..9,
            any::<bool>(),
        )
            .prop_map(|(own, terms, priority, preempts)| {
                let (zones, zones_in_order, family, class, policy, fallback) = own;
                let mut constraints: Vec<PlacementConstraint> = terms
                    .into_iter()
                    .map(|(label, zone, preferred, n)| PlacementConstraint {
                        topology: if zone { 2 } else { 1 },
                        label_selector: format!("{label} in (a,b)"),
                        rule: Some(match n {
                            1 => Rule::With(true),
                            2 => Rule::Apart(true),
                            skew => Rule::MaxSkew(skew),
                        }),
                        preferred,
                    })
                    .collect();
                // In the order of Kubernetes' fields.
                constraints.sort_by_key(|one| match one.rule {
                    Some(Rule::With(_)) => (1, one.preferred),
                    Some(Rule::Apart(_)) => (2, one.preferred),
                    _ => (0, false),
                });
                let placement = Placement {
                    flavors: zones.clone(),
                    zones,
                    zones_in_order,
                    family,
                    class,
                    policy,
                    fallback,
                    constraints,
                    priority,
                    preempts,
                };
                (placement != Placement::default()).then_some(placement)
            })
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_created_again(wanted in a_pod(), created_us in 0_i64..1 << 50) {
            let mut shown = wanted.clone();
            let metadata = shown.metadata.as_mut().unwrap();
            metadata.uid = "0-1".into();
            metadata.generation = 1;
            metadata.resource_version = 7;
            metadata.created_us = created_us;
            shown.status = Some(PodStatus { phase: Phase::Running.into(), ..PodStatus::default() });
            let document = pod(&shown);
            let yaml = serde_saphyr::to_string(&document).unwrap();
            prop_assert_eq!(&manifest::parse(&yaml, "other").unwrap()[0], &wanted, "{}", yaml);
            let json = document.to_string();
            prop_assert_eq!(&manifest::parse(&json, "other").unwrap()[0], &wanted, "{}", json);
        }
    }
}
