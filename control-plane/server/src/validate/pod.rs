//! A pod that somebody wants created.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use longship_proto::Failure;
use longship_proto::control::v1::{MemoryProfile, ObjectMeta, Pod, PodSpec, RestartPolicy};
use longship_scheduler::{MAX_GPUS, bytes_text, cpus_text};
use prost::Message;

use super::container::container;
use super::metadata;
use super::names::{dns_label, namespace_or_default, shown};
use super::placement::placement;

/// The least memory that a pod may ask for, in bytes, all containers together.
pub(crate) const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// Grace of a pod that names none, in seconds.
pub(crate) const DEFAULT_GRACE_SECONDS: u32 = 30;
/// The longest grace, in seconds.
pub(crate) const MAX_GRACE_SECONDS: u32 = 3600;

/// The annotations may be half of it; the store takes twice as much.
const MAX_POD_BYTES: usize = 512 << 10;
/// Pods of one request.
const MAX_PODS: usize = 1000;
const MAX_CONTAINERS: usize = 16;
/// More is a mistake in the unit, whatever the flavors are.
const MAX_CPU_MILLIS: u32 = 1_000_000;
const MAX_MEMORY_BYTES: u64 = 16 << 40;
/// resolv.conf(5): more are ignored.
const MAX_NAMESERVERS: usize = 3;

/// A pod whose every field has been checked, with the defaults filled in. Only zone
/// and flavor remain to be compared with those that exist.
#[derive(Debug, Clone)]
pub(crate) struct NewPod {
    /// Name, namespace, labels, annotations; nothing that the server sets.
    pub(crate) metadata: ObjectMeta,
    /// Complete.
    pub(crate) spec: PodSpec,
}

/// Checks how many pods a request has.
///
/// # Errors
/// `INVALID` at `pods`.
pub(crate) fn pod_count(count: usize) -> Result<(), Failure> {
    if count == 0 || count > MAX_PODS {
        return Err(Failure::invalid(
            "pods",
            format!("has {count} pods; at least 1, at most {MAX_PODS}"),
        ));
    }
    Ok(())
}

/// Checks how large an encoded pod is.
///
/// # Errors
/// `INVALID` at the pod itself.
pub(crate) fn pod_size(bytes: usize) -> Result<(), Failure> {
    if bytes > MAX_POD_BYTES {
        return Err(Failure::invalid(
            "",
            format!("the pod has {bytes} bytes; at most {MAX_POD_BYTES}"),
        ));
    }
    Ok(())
}

/// Checks many pods, which have been counted.
///
/// # Errors
/// `INVALID`, at the first field that is wrong, as `pods[3].spec.zone`; or the failure
/// of what gives the pods.
pub(crate) fn pods(
    pods: impl ExactSizeIterator<Item = Result<Pod, Failure>>,
) -> Result<Vec<NewPod>, Failure> {
    let mut names = HashSet::with_capacity(pods.len());
    let mut checked = Vec::with_capacity(pods.len());
    for (at, one) in pods.enumerate() {
        let new = pod(one?).map_err(|failure| in_batch(at, failure))?;
        let (namespace, name) = (&new.metadata.namespace, &new.metadata.name);
        if !names.insert((namespace.clone(), name.clone())) {
            return Err(Failure::invalid(
                format!("pods[{at}].metadata.name"),
                format!("another pod of the request is already named {namespace}/{name}"),
            ));
        }
        checked.push(new);
    }
    Ok(checked)
}

/// The failure of the pod at that place of a batch.
pub(crate) fn in_batch(at: usize, failure: Failure) -> Failure {
    let dot = if failure.field.is_empty() { "" } else { "." };
    Failure {
        field: format!("pods[{at}]{dot}{}", failure.field),
        ..failure
    }
}

/// Checks a pod and fills in the defaults. What only the server sets is left out.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn pod(pod: Pod) -> Result<NewPod, Failure> {
    pod_size(pod.encoded_len())?;
    let given = pod.metadata.unwrap_or_default();
    dns_label("metadata.name", &given.name)?;
    let namespace = namespace_or_default("metadata.namespace", given.namespace)?;
    metadata::labels("metadata.labels", &given.labels)?;
    metadata::annotations("metadata.annotations", &given.annotations)?;

    let spec = pod
        .spec
        .ok_or_else(|| Failure::invalid("spec", "must be given"))?;
    let spec = complete(spec, &given.name)?;
    resources(&spec)?;
    let metadata = ObjectMeta {
        name: given.name,
        namespace,
        labels: given.labels,
        annotations: given.annotations,
        ..ObjectMeta::default()
    };
    Ok(NewPod { metadata, spec })
}

fn complete(mut spec: PodSpec, name: &str) -> Result<PodSpec, Failure> {
    let count = spec.containers.len();
    if count == 0 || count > MAX_CONTAINERS {
        return Err(Failure::invalid(
            "spec.containers",
            format!("has {count} containers; at least 1, at most {MAX_CONTAINERS}"),
        ));
    }
    let mut names = BTreeSet::new();
    for (at, one) in spec.containers.iter().enumerate() {
        let field = format!("spec.containers[{at}]");
        container(&field, one)?;
        if !names.insert(&one.name) {
            return Err(Failure::invalid(
                format!("{field}.name"),
                format!("another container is already named `{}`", one.name),
            ));
        }
    }
    match RestartPolicy::try_from(spec.restart_policy) {
        Ok(RestartPolicy::Unspecified) => spec.set_restart_policy(RestartPolicy::Always),
        Ok(_) => {}
        Err(_) => {
            return Err(Failure::invalid(
                "spec.restart_policy",
                format!("{} is no restart policy", spec.restart_policy),
            ));
        }
    }
    match MemoryProfile::try_from(spec.memory_profile) {
        Ok(MemoryProfile::Unspecified) => spec.set_memory_profile(MemoryProfile::Dense),
        Ok(_) => {}
        Err(_) => {
            return Err(Failure::invalid(
                "spec.memory_profile",
                format!("{} is no memory profile", spec.memory_profile),
            ));
        }
    }
    if !spec.zone.is_empty() {
        dns_label("spec.zone", &spec.zone)?;
    }
    placement(&spec)?;
    // Without a name it is the one of the pod's tenant, who is not known here.
    if !spec.vpc.is_empty() {
        dns_label("spec.vpc", &spec.vpc)?;
    }
    if !spec.subnet.is_empty() {
        dns_label("spec.subnet", &spec.subnet)?;
    }
    if spec.hostname.is_empty() {
        spec.hostname = name.to_owned();
    }
    dns_label("spec.hostname", &spec.hostname)?;
    nameservers(&spec.nameservers)?;
    let grace = spec
        .termination_grace_seconds
        .get_or_insert(DEFAULT_GRACE_SECONDS);
    grace_limit("spec.termination_grace_seconds", *grace)?;
    Ok(spec)
}

/// Checks a grace.
pub(crate) fn grace_limit(field: &str, seconds: u32) -> Result<(), Failure> {
    if seconds > MAX_GRACE_SECONDS {
        return Err(Failure::invalid(
            field,
            format!("is {seconds} seconds; at most {MAX_GRACE_SECONDS}"),
        ));
    }
    Ok(())
}

fn nameservers(servers: &[String]) -> Result<(), Failure> {
    if servers.len() > MAX_NAMESERVERS {
        return Err(Failure::invalid(
            "spec.nameservers",
            format!("has {} servers; at most {MAX_NAMESERVERS}", servers.len()),
        ));
    }
    for (at, server) in servers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            return Err(Failure::invalid(
                format!("spec.nameservers[{at}]"),
                format!("`{}` is no IP address", shown(server)),
            ));
        }
    }
    Ok(())
}

/// Checks what all containers together ask for.
fn resources(spec: &PodSpec) -> Result<(), Failure> {
    let (mut cpu_millis, mut memory_bytes, mut gpus) = (0_u32, 0_u64, 0_u32);
    for (at, one) in spec.containers.iter().enumerate() {
        let resources = one.resources.unwrap_or_default();
        let field = |name: &str| format!("spec.containers[{at}].resources.{name}");
        cpu_millis = cpu_millis.saturating_add(resources.cpu_millis);
        if cpu_millis > MAX_CPU_MILLIS {
            return Err(Failure::invalid(
                field("cpu_millis"),
                format!(
                    "the pod asks for {}; at most {}",
                    cpus_text(cpu_millis),
                    cpus_text(MAX_CPU_MILLIS)
                ),
            ));
        }
        memory_bytes = memory_bytes.saturating_add(resources.memory_bytes);
        if memory_bytes > MAX_MEMORY_BYTES {
            return Err(Failure::invalid(
                field("memory_bytes"),
                format!(
                    "the pod asks for {}; at most {}",
                    bytes_text(memory_bytes),
                    bytes_text(MAX_MEMORY_BYTES)
                ),
            ));
        }
        gpus = gpus.saturating_add(resources.gpus);
        if gpus > MAX_GPUS {
            return Err(Failure::invalid(
                field("gpus"),
                format!("the pod asks for {gpus} GPUs; at most {MAX_GPUS}"),
            ));
        }
    }
    if memory_bytes > 0 && memory_bytes < MIN_MEMORY_BYTES {
        let gives = |at: &usize| {
            let one = spec.containers.get(*at).and_then(|one| one.resources);
            one.is_some_and(|resources| resources.memory_bytes > 0)
        };
        let at = (0..spec.containers.len()).find(gives).unwrap_or_default();
        return Err(Failure::invalid(
            format!("spec.containers[{at}].resources.memory_bytes"),
            format!(
                "the pod asks for {} of memory; at least {}",
                bytes_text(memory_bytes),
                bytes_text(MIN_MEMORY_BYTES)
            ),
        ));
    }
    Ok(())
}
