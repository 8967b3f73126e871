//! Names of phases and states, as people and Kubernetes write them.

use longship_proto::control::v1::{
    ContainerState, HostState, ImagePullPolicy, MemoryProfile, Phase, RestartPolicy,
};

pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified | Phase::Unknown => "Unknown",
        Phase::Pending => "Pending",
        Phase::Scheduled => "Scheduled",
        Phase::Preparing => "Preparing",
        Phase::Starting => "Starting",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
        Phase::Stopping => "Stopping",
        Phase::Released => "Released",
    }
}

pub(crate) fn container_state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Unspecified => "Unknown",
        ContainerState::Waiting => "Waiting",
        ContainerState::Running => "Running",
        ContainerState::Terminated => "Terminated",
    }
}

pub(crate) fn host_state(state: HostState) -> &'static str {
    match state {
        HostState::Ready => "Ready",
        HostState::Unspecified | HostState::Unknown => "Unknown",
        HostState::Fenced => "Fenced",
    }
}

/// `None` where it was not given.
pub(crate) fn restart_policy(policy: RestartPolicy) -> Option<&'static str> {
    match policy {
        RestartPolicy::Unspecified => None,
        RestartPolicy::Always => Some("Always"),
        RestartPolicy::OnFailure => Some("OnFailure"),
        RestartPolicy::Never => Some("Never"),
    }
}

/// `None` where it was not given.
pub(crate) fn memory_profile(profile: MemoryProfile) -> Option<&'static str> {
    match profile {
        MemoryProfile::Unspecified => None,
        MemoryProfile::Dense => Some("dense"),
        MemoryProfile::Direct => Some("direct"),
    }
}

/// `None` where it was not given.
pub(crate) fn image_pull_policy(policy: ImagePullPolicy) -> Option<&'static str> {
    match policy {
        ImagePullPolicy::Unspecified => None,
        ImagePullPolicy::Always => Some("Always"),
        ImagePullPolicy::IfNotPresent => Some("IfNotPresent"),
        ImagePullPolicy::Never => Some("Never"),
    }
}
