//! One pod, from its document.

use longship_proto::Failure;
use longship_proto::control::v1::{
    Container, EnvVar, ImagePullPolicy, MemoryProfile, ObjectMeta, Pod, PodSpec, Resources,
    RestartPolicy,
};
use serde_json::Value;

use super::field::{Fields, wrong_type};
use super::placement::placement;
use super::quantity::{cpu_millis, memory_bytes};

/// The label of `spec.nodeSelector` that chooses a zone. There are no nodes to choose.
pub(crate) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The annotation that chooses a flavor.
pub(crate) const FLAVOR_ANNOTATION: &str = "longship.dev/flavor";
/// The annotation that chooses a VPC.
pub(crate) const VPC_ANNOTATION: &str = "longship.dev/vpc";

/// The annotation that chooses a subnet of it.
pub(crate) const SUBNET_ANNOTATION: &str = "longship.dev/subnet";
/// GPUs among the resources; Kubernetes names them by their vendors.
pub(crate) const GPU_RESOURCE: &str = "longship.dev/gpu";
const GPU_RESOURCES: [&str; 3] = [GPU_RESOURCE, "nvidia.com/gpu", "amd.com/gpu"];

/// What the server sets. `get -o yaml` shows it, so it may come back and is passed over.
const SET_BY_SERVER: [&str; 5] = [
    "uid",
    "generation",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
];

pub(crate) fn parse(document: Value, namespace: &str) -> Result<Pod, Failure> {
    let mut root = Fields::of("", document)?;
    expect(&mut root, "kind", "Pod")?;
    expect(&mut root, "apiVersion", "v1")?;
    root.take("status");
    let metadata = root
        .fields("metadata")?
        .ok_or_else(|| Failure::invalid("metadata", "is missing"))?;
    let mut metadata = parse_metadata(metadata, namespace)?;
    let spec = root
        .fields("spec")?
        .ok_or_else(|| Failure::invalid("spec", "is missing"))?;
    let mut spec = parse_spec(spec)?;
    spec.flavor = metadata
        .annotations
        .remove(FLAVOR_ANNOTATION)
        .unwrap_or_default();
    spec.vpc = metadata
        .annotations
        .remove(VPC_ANNOTATION)
        .unwrap_or_default();
    spec.subnet = metadata
        .annotations
        .remove(SUBNET_ANNOTATION)
        .unwrap_or_default();
    root.finish()?;
    Ok(Pod {
        metadata: Some(metadata),
        spec: Some(spec),
        status: None,
    })
}

fn expect(fields: &mut Fields, key: &str, wanted: &str) -> Result<(), Failure> {
    let found = fields.required(key)?;
    if found == wanted {
        Ok(())
    } else {
        Err(Failure::invalid(
            key,
            format!("must be `{wanted}`, not `{found}`"),
        ))
    }
}

fn parse_metadata(mut fields: Fields, namespace: &str) -> Result<ObjectMeta, Failure> {
    let metadata = ObjectMeta {
        name: fields.required("name")?,
        namespace: fields
            .string("namespace")?
            .unwrap_or_else(|| namespace.to_owned()),
        labels: fields.string_map("labels")?,
        annotations: fields.string_map("annotations")?,
        ..ObjectMeta::default()
    };
    for key in SET_BY_SERVER {
        fields.take(key);
    }
    fields.finish()?;
    Ok(metadata)
}

fn parse_spec(mut fields: Fields) -> Result<PodSpec, Failure> {
    let containers = fields
        .list("containers")?
        .into_iter()
        .map(|(path, value)| parse_container(Fields::of(&path, value)?))
        .collect::<Result<Vec<Container>, Failure>>()?;
    if containers.is_empty() {
        return Err(Failure::invalid(fields.path("containers"), "is missing"));
    }
    let restart_policy = match fields.string("restartPolicy")? {
        None => RestartPolicy::Unspecified,
        Some(name) => restart_policy(&name)
            .map_err(|message| Failure::invalid("spec.restartPolicy", message))?,
    };
    let memory_profile = match fields.string("memoryProfile")? {
        None => MemoryProfile::Unspecified,
        Some(name) => memory_profile(&name)
            .map_err(|message| Failure::invalid("spec.memoryProfile", message))?,
    };
    let zone = match fields.fields("nodeSelector")? {
        None => String::new(),
        Some(mut selector) => {
            let zone = selector.string(ZONE_LABEL)?.unwrap_or_default();
            selector.finish().map_err(|failure| {
                Failure::invalid(failure.field, format!("only {ZONE_LABEL} can be selected"))
            })?;
            zone
        }
    };
    let nameservers = match fields.fields("dnsConfig")? {
        None => Vec::new(),
        Some(mut dns) => {
            let nameservers = dns.strings("nameservers")?;
            dns.finish()?;
            nameservers
        }
    };
    let placement = placement(&mut fields)?;
    let spec = PodSpec {
        placement,
        containers,
        restart_policy: restart_policy.into(),
        zone,
        hostname: fields.string("hostname")?.unwrap_or_default(),
        nameservers,
        termination_grace_seconds: fields.u32("terminationGracePeriodSeconds")?,
        memory_profile: memory_profile.into(),
        ..PodSpec::default()
    };
    fields.finish()?;
    Ok(spec)
}

/// By Kubernetes' names.
pub(crate) fn restart_policy(name: &str) -> Result<RestartPolicy, String> {
    match name {
        "Always" => Ok(RestartPolicy::Always),
        "OnFailure" => Ok(RestartPolicy::OnFailure),
        "Never" => Ok(RestartPolicy::Never),
        other => Err(format!("must be Always, OnFailure or Never, not `{other}`")),
    }
}

/// Who can reach the memory of the pod's machine.
pub(crate) fn memory_profile(name: &str) -> Result<MemoryProfile, String> {
    match name {
        "dense" => Ok(MemoryProfile::Dense),
        "direct" => Ok(MemoryProfile::Direct),
        other => Err(format!("must be dense or direct, not `{other}`")),
    }
}

fn parse_container(mut fields: Fields) -> Result<Container, Failure> {
    let container = Container {
        name: fields.required("name")?,
        image: fields.required("image")?,
        command: fields.strings("command")?,
        args: fields.strings("args")?,
        env: fields
            .list("env")?
            .into_iter()
            .map(|(path, value)| parse_env(Fields::of(&path, value)?))
            .collect::<Result<_, Failure>>()?,
        working_dir: fields.string("workingDir")?.unwrap_or_default(),
        resources: fields
            .fields("resources")?
            .map(parse_resources)
            .transpose()?,
        image_pull_policy: match fields.string("imagePullPolicy")? {
            None => ImagePullPolicy::Unspecified,
            Some(name) => image_pull_policy(&name)
                .map_err(|message| Failure::invalid(fields.path("imagePullPolicy"), message))?,
        }
        .into(),
    };
    fields.finish()?;
    Ok(container)
}

/// By Kubernetes' names.
pub(crate) fn image_pull_policy(name: &str) -> Result<ImagePullPolicy, String> {
    match name {
        "Always" => Ok(ImagePullPolicy::Always),
        "IfNotPresent" => Ok(ImagePullPolicy::IfNotPresent),
        "Never" => Ok(ImagePullPolicy::Never),
        other => Err(format!(
            "must be Always, IfNotPresent or Never, not `{other}`"
        )),
    }
}

fn parse_env(mut fields: Fields) -> Result<EnvVar, Failure> {
    let variable = EnvVar {
        name: fields.required("name")?,
        value: fields.string("value")?.unwrap_or_default(),
    };
    fields.finish()?;
    Ok(variable)
}

/// A microVM has what its limits say. Where only requests are given, they are both.
fn parse_resources(mut fields: Fields) -> Result<Resources, Failure> {
    let requests = parse_amounts(&mut fields, "requests")?;
    let limits = parse_amounts(&mut fields, "limits")?;
    let over = |requested: bool, what: &str| {
        if requested {
            let path = fields.path(&format!("requests.{what}"));
            Err(Failure::invalid(path, "is over its limit"))
        } else {
            Ok(())
        }
    };
    over(
        limits.cpu_millis != 0 && requests.cpu_millis > limits.cpu_millis,
        "cpu",
    )?;
    over(
        limits.memory_bytes != 0 && requests.memory_bytes > limits.memory_bytes,
        "memory",
    )?;
    fields.finish()?;
    Ok(Resources {
        cpu_millis: first_set(limits.cpu_millis, requests.cpu_millis),
        memory_bytes: first_set(limits.memory_bytes, requests.memory_bytes),
        gpus: first_set(limits.gpus, requests.gpus),
    })
}

fn first_set<T: Default + PartialEq>(first: T, second: T) -> T {
    if first == T::default() { second } else { first }
}

fn parse_amounts(fields: &mut Fields, key: &str) -> Result<Resources, Failure> {
    let Some(mut amounts) = fields.fields(key)? else {
        return Ok(Resources::default());
    };
    let resources = Resources {
        cpu_millis: amount(&mut amounts, "cpu", cpu_millis)?.unwrap_or_default(),
        memory_bytes: amount(&mut amounts, "memory", memory_bytes)?.unwrap_or_default(),
        gpus: gpus(&mut amounts)?,
    };
    amounts.finish()?;
    Ok(resources)
}

/// Whole ones, under whichever name.
fn gpus(amounts: &mut Fields) -> Result<u32, Failure> {
    let mut gpus = 0_u32;
    for name in GPU_RESOURCES {
        let count = |text: &str| {
            let count: Result<u32, _> = text.parse();
            count.map_err(|_| format!("`{text}` is no whole number"))
        };
        let more = amount(amounts, name, count)?.unwrap_or_default();
        gpus = gpus.saturating_add(more);
    }
    Ok(gpus)
}

/// A quantity may be written as a number too.
fn amount<T>(
    fields: &mut Fields,
    key: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, Failure> {
    let path = fields.path(key);
    let text = match fields.take(key) {
        None => return Ok(None),
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        Some(other) => return Err(wrong_type(&path, "a quantity", &other)),
    };
    read(&text)
        .map(Some)
        .map_err(|message| Failure::invalid(path, message))
}

#[cfg(test)]
mod tests {
    use longship_proto::Class;
    use serde_json::json;

    use super::*;

    fn full() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "web",
                "labels": {"app": "web"},
                "annotations": {"longship.dev/flavor": "std-1x1", "longship.dev/vpc": "blue", "note": "x"},
            },
            "spec": {
                "containers": [{
                    "name": "web",
                    "image": "registry.example/web:1",
                    "imagePullPolicy": "Always",
                    "command": ["/bin/web"],
                    "args": ["--port", "80"],
                    "env": [{"name": "A", "value": "b"}, {"name": "EMPTY"}],
                    "workingDir": "/srv",
                    "resources": {
                        "requests": {"cpu": 0.25, "memory": "64Mi"},
                        "limits": {"cpu": "500m"},
                    },
                }],
                "restartPolicy": "OnFailure",
                "nodeSelector": {"topology.kubernetes.io/zone": "a"},
                "hostname": "www",
                "dnsConfig": {"nameservers": ["10.0.0.2"]},
                "terminationGracePeriodSeconds": 0,
                "memoryProfile": "direct",
            },
        })
    }

    #[test]
    fn every_field_finds_its_place() {
        let pod = parse(full(), "default").unwrap();
        let metadata = pod.metadata.unwrap();
        assert_eq!(
            (metadata.name.as_str(), metadata.namespace.as_str()),
            ("web", "default")
        );
        assert_eq!(metadata.annotations.len(), 1);
        let spec = pod.spec.unwrap();
        assert_eq!(spec.restart_policy(), RestartPolicy::OnFailure);
        assert_eq!(spec.memory_profile(), MemoryProfile::Direct);
        assert_eq!((spec.zone.as_str(), spec.flavor.as_str()), ("a", "std-1x1"));
        assert_eq!((spec.vpc.as_str(), spec.hostname.as_str()), ("blue", "www"));
        assert_eq!(spec.nameservers, ["10.0.0.2"]);
        assert_eq!(spec.termination_grace_seconds, Some(0));
        let container = &spec.containers[0];
        assert_eq!(container.command, ["/bin/web"]);
        assert_eq!(container.args, ["--port", "80"]);
        assert_eq!(container.image_pull_policy(), ImagePullPolicy::Always);
        assert_eq!(container.env[1].value, "");
        assert_eq!(container.working_dir, "/srv");
        let resources = container.resources.unwrap();
        assert_eq!(
            (resources.cpu_millis, resources.memory_bytes),
            (500, 64 << 20)
        );
    }

    #[test]
    fn each_mistake_is_named_by_its_path() {
        let mistakes = [
            ("/apiVersion", json!("v2"), "apiVersion"),
            ("/kind", json!("Job"), "kind"),
            ("/metadata/name", json!(""), "metadata.name"),
            ("/metadata/labels/app", json!(1), "metadata.labels.app"),
            ("/spec/containers", json!([]), "spec.containers"),
            (
                "/spec/containers/0/image",
                Value::Null,
                "spec.containers[0].image",
            ),
            (
                "/spec/containers/0/args/1",
                json!(80),
                "spec.containers[0].args[1]",
            ),
            (
                "/spec/containers/0/env/0/value",
                json!(true),
                "spec.containers[0].env[0].value",
            ),
            (
                "/spec/containers/0/resources/requests/cpu",
                json!("1"),
                "spec.containers[0].resources.requests.cpu",
            ),
            (
                "/spec/containers/0/resources/limits/cpu",
                json!("half"),
                "spec.containers[0].resources.limits.cpu",
            ),
            ("/spec/restartPolicy", json!("never"), "spec.restartPolicy"),
            ("/spec/memoryProfile", json!("huge"), "spec.memoryProfile"),
            (
                "/spec/containers/0/imagePullPolicy",
                json!("Often"),
                "spec.containers[0].imagePullPolicy",
            ),
            ("/spec/memoryProfile", json!(1), "spec.memoryProfile"),
            (
                "/spec/nodeSelector",
                json!({"disk": "ssd"}),
                "spec.nodeSelector.disk",
            ),
            (
                "/spec/terminationGracePeriodSeconds",
                json!(-1),
                "spec.terminationGracePeriodSeconds",
            ),
            (
                "/spec/dnsConfig",
                json!({"searches": []}),
                "spec.dnsConfig.searches",
            ),
        ];
        for (pointer, value, field) in mistakes {
            let mut document = full();
            *document.pointer_mut(pointer).unwrap() = value;
            let failure = parse(document, "default").unwrap_err();
            assert_eq!(failure.class(), Class::Invalid);
            assert_eq!(failure.field, field, "{failure}");
        }
    }

    #[test]
    fn unknown_fields_are_refused_wherever_they_are() {
        for (pointer, field) in [
            ("", "volumes"),
            ("/metadata", "metadata.volumes"),
            ("/spec", "spec.volumes"),
            ("/spec/containers/0", "spec.containers[0].volumes"),
            (
                "/spec/containers/0/env/0",
                "spec.containers[0].env[0].volumes",
            ),
            (
                "/spec/containers/0/resources",
                "spec.containers[0].resources.volumes",
            ),
            (
                "/spec/containers/0/resources/limits",
                "spec.containers[0].resources.limits.volumes",
            ),
        ] {
            let mut document = full();
            document.pointer_mut(pointer).unwrap()["volumes"] = json!([]);
            assert_eq!(parse(document, "default").unwrap_err().field, field);
        }
    }
}
