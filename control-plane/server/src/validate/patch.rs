//! A change that somebody wants of a pod.

use std::collections::HashMap;

use longship_proto::Failure;
use longship_proto::control::v1::PatchPodRequest;

use super::metadata::{annotation_key, annotations, label_key, labels};
use super::names::shown;
use super::pod::grace_limit;

/// A change whose every field has been checked; not against the pod.
#[derive(Debug)]
pub(crate) struct PodPatch {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) set_labels: HashMap<String, String>,
    pub(crate) remove_labels: Vec<String>,
    pub(crate) set_annotations: HashMap<String, String>,
    pub(crate) remove_annotations: Vec<String>,
    pub(crate) grace_seconds: Option<u32>,
    /// Not 0: the version that the pod must have now.
    pub(crate) if_version: u64,
}

/// Checks a change. The pod's names have been.
///
/// # Errors
/// `INVALID`, at the first field that is wrong.
pub(crate) fn patch(request: PatchPodRequest) -> Result<PodPatch, Failure> {
    labels("set_labels", &request.set_labels)?;
    for (at, key) in request.remove_labels.iter().enumerate() {
        let field = || format!("remove_labels[{at}]");
        label_key(field, key)?;
        not_set_too(field, key, &request.set_labels)?;
    }
    annotations("set_annotations", &request.set_annotations)?;
    for (at, key) in request.remove_annotations.iter().enumerate() {
        let field = || format!("remove_annotations[{at}]");
        annotation_key(field, key)?;
        not_set_too(field, key, &request.set_annotations)?;
    }
    if let Some(seconds) = request.termination_grace_seconds {
        grace_limit("termination_grace_seconds", seconds)?;
    }
    Ok(PodPatch {
        namespace: request.namespace,
        name: request.name,
        set_labels: request.set_labels,
        remove_labels: request.remove_labels,
        set_annotations: request.set_annotations,
        remove_annotations: request.remove_annotations,
        grace_seconds: request.termination_grace_seconds,
        if_version: request.if_resource_version,
    })
}

fn not_set_too(
    field: impl Fn() -> String,
    key: &str,
    set: &HashMap<String, String>,
) -> Result<(), Failure> {
    if set.contains_key(key) {
        let message = format!("`{}` is set too: one of both", shown(key));
        return Err(Failure::invalid(field(), message));
    }
    Ok(())
}
