//! `longship apply`

use std::path::PathBuf;

use clap::Args;
use longship_proto::Failure;
use longship_proto::control::v1::{Container, MemoryProfile, PodSpec, RestartPolicy};

use crate::error::CliError;
use crate::manifest;
use crate::server::{Server, ServerAddress};
use crate::show;

/// Create the pods of a file that do not exist yet.
///
/// A pod that exists is left as it is where its spec is what the file says; where it is
/// not, that is an error: pods cannot be changed.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// File in Kubernetes' own field names; `-`: standard input.
    #[arg(long, short = 'f', value_name = "FILE")]
    filename: PathBuf,
}

impl Apply {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let pods = manifest::read(&self.filename, namespace)?;
        let mut server = Server::connect(address).await?;
        for pod in pods {
            let metadata = pod.metadata.clone().unwrap_or_default();
            let name = metadata.name;
            match server.get(&metadata.namespace, &name).await {
                Ok(existing) => {
                    let wanted = pod.spec.unwrap_or_default();
                    if !is_met(&wanted, &existing.spec.unwrap_or_default()) {
                        return Err(Failure::conflict(format!(
                            "pod {name} exists with another spec, and pods cannot be changed: \
                             delete it first"
                        ))
                        .into());
                    }
                    show::print(&format!("pod/{name} unchanged\n"))?;
                }
                Err(error) if error.is_not_found() => {
                    server.create(pod).await?;
                    show::print(&format!("pod/{name} created\n"))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }
}

/// Whether `existing` is what `wanted` says; the server fills what that leaves open.
fn is_met(wanted: &PodSpec, existing: &PodSpec) -> bool {
    let text = |wanted: &str, existing: &str| wanted.is_empty() || wanted == existing;
    let policy = |spec: &PodSpec| match spec.restart_policy() {
        RestartPolicy::Unspecified => RestartPolicy::Always,
        policy => policy,
    };
    let profile = |spec: &PodSpec| match spec.memory_profile() {
        MemoryProfile::Unspecified => MemoryProfile::Dense,
        profile => profile,
    };
    wanted.containers.len() == existing.containers.len()
        && wanted
            .containers
            .iter()
            .zip(&existing.containers)
            .all(|(wanted, existing)| container_is_met(wanted, existing))
        && policy(wanted) == policy(existing)
        && profile(wanted) == profile(existing)
        && text(&wanted.zone, &existing.zone)
        && text(&wanted.flavor, &existing.flavor)
        && text(&wanted.vpc, &existing.vpc)
        && text(&wanted.subnet, &existing.subnet)
        && (wanted.placement.is_none() || wanted.placement == existing.placement)
        && text(&wanted.hostname, &existing.hostname)
        && (wanted.nameservers.is_empty() || wanted.nameservers == existing.nameservers)
        && (wanted.termination_grace_seconds.is_none()
            || wanted.termination_grace_seconds == existing.termination_grace_seconds)
}

fn container_is_met(wanted: &Container, existing: &Container) -> bool {
    let (wants, has) = (
        wanted.resources.unwrap_or_default(),
        existing.resources.unwrap_or_default(),
    );
    let without_resources = |container: &Container| Container {
        resources: None,
        ..container.clone()
    };
    without_resources(wanted) == without_resources(existing)
        && (wants.cpu_millis == 0 || wants.cpu_millis == has.cpu_millis)
        && (wants.memory_bytes == 0 || wants.memory_bytes == has.memory_bytes)
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::Resources;

    use super::*;

    fn spec(image: &str) -> PodSpec {
        PodSpec {
            containers: vec![Container {
                name: "c".into(),
                image: image.into(),
                ..Container::default()
            }],
            ..PodSpec::default()
        }
    }

    #[test]
    fn what_the_server_filled_in_is_no_difference() {
        let mut existing = spec("web:1");
        existing.restart_policy = RestartPolicy::Always.into();
        existing.flavor = "std-1x1".into();
        existing.hostname = "web".into();
        existing.memory_profile = MemoryProfile::Dense.into();
        existing.containers[0].resources = Some(Resources {
            cpu_millis: 500,
            memory_bytes: 1 << 30,
            gpus: 0,
        });
        assert!(is_met(&spec("web:1"), &existing));
    }

    #[test]
    fn what_the_file_says_otherwise_is_one() {
        let mut existing = spec("web:1");
        assert!(!is_met(&spec("web:2"), &existing));
        existing.zone = "b".into();
        let mut wanted = spec("web:1");
        wanted.zone = "a".into();
        assert!(!is_met(&wanted, &existing));
        let mut direct = spec("web:1");
        direct.memory_profile = MemoryProfile::Direct.into();
        assert!(!is_met(&direct, &spec("web:1")));
        let mut never = spec("web:1");
        never.restart_policy = RestartPolicy::Never.into();
        assert!(!is_met(&never, &spec("web:1")));
    }
}
