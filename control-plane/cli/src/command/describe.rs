//! `longship describe`

use std::fmt::Write;

use clap::{Args, ValueEnum};
use longship_proto::control::v1::{Container, ContainerState, ContainerStatus, Pod};

use crate::error::CliError;
use crate::manifest::{show_cpu, show_memory};
use crate::server::{Server, ServerAddress};
use crate::show::waterfall::waterfall;
use crate::show::{self, names, time};
use crate::watch::phase_of;

/// Show all about a pod, with the waterfall of its start-up.
#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// What it is.
    kind: Kind,
    /// Which one.
    name: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    #[value(alias = "pods", alias = "po")]
    Pod,
}

impl Describe {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let Kind::Pod = self.kind;
        let mut server = Server::connect(address).await?;
        let pod = server.get(namespace, &self.name).await?;
        show::print(&describe(&pod, time::now_us()))?;
        Ok(0)
    }
}

/// A text of labelled lines.
#[derive(Default)]
struct Text(String);

impl Text {
    /// One line; none where there is nothing to say.
    fn line(&mut self, indent: usize, label: &str, value: impl AsRef<str>) {
        let value = value.as_ref();
        if !value.is_empty() {
            let width = 14_usize.saturating_sub(indent);
            let label = format!("{label}:");
            // Writing to a String cannot fail.
            let _ = writeln!(self.0, "{:indent$}{label:width$} {value}", "");
        }
    }
}

fn describe(pod: &Pod, now_us: i64) -> String {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let mut text = Text::default();
    text.line(0, "Name", &metadata.name);
    text.line(0, "Namespace", &metadata.namespace);
    text.line(0, "UID", &metadata.uid);
    text.line(0, "Labels", pairs(metadata.labels));
    text.line(0, "Annotations", pairs(metadata.annotations));
    text.line(0, "Created", at(metadata.created_us, now_us));
    text.line(0, "Deleted", at(metadata.deleted_us, now_us));
    text.line(0, "Phase", names::phase(phase_of(pod)));
    text.line(0, "Reason", &status.reason);
    text.line(0, "Message", &status.message);
    let zone = if status.zone.is_empty() {
        &spec.zone
    } else {
        &status.zone
    };
    text.line(0, "Zone", zone);
    text.line(0, "Host", &status.host);
    match &status.flavor {
        Some(flavor) => {
            let (cpu, memory) = (
                show_cpu(flavor.cpu_millis),
                show_memory(flavor.memory_bytes),
            );
            let size = format!(
                "{} ({cpu} CPU, {memory} memory, {} vCPU)",
                flavor.name, flavor.vcpus
            );
            text.line(0, "Flavor", size);
        }
        None => text.line(0, "Flavor", &spec.flavor),
    }
    let profile = names::memory_profile(spec.memory_profile()).unwrap_or("dense");
    text.line(0, "Memory", profile);
    if let Some(eni) = &status.eni {
        let address = format!(
            "{}/{} in VPC {}, gateway {}, MAC {}, MTU {}",
            eni.address, eni.prefix_length, eni.vpc, eni.gateway, eni.mac, eni.mtu
        );
        text.line(0, "ENI", address);
    }
    let policy = names::restart_policy(spec.restart_policy()).unwrap_or("Always");
    text.line(0, "Restarts", policy);
    for container in &spec.containers {
        let status = status
            .containers
            .iter()
            .find(|status| status.name == container.name);
        describe_container(&mut text, container, status, now_us);
    }
    let bars = waterfall(&status.timeline, now_us);
    if !bars.is_empty() {
        text.0
            .push_str("\nStart-up (component, step, begins, takes):\n");
        text.0.push_str(&bars);
    }
    text.0
}

fn describe_container(
    text: &mut Text,
    container: &Container,
    status: Option<&ContainerStatus>,
    now_us: i64,
) {
    text.line(0, "Container", &container.name);
    text.line(2, "Image", &container.image);
    text.line(2, "Command", words(&container.command));
    text.line(2, "Args", words(&container.args));
    let env: Vec<String> = container
        .env
        .iter()
        .map(|variable| format!("{}={}", variable.name, variable.value))
        .collect();
    text.line(2, "Env", words(&env));
    text.line(2, "Directory", &container.working_dir);
    if let Some(resources) = &container.resources {
        let mut limits = Vec::new();
        if resources.cpu_millis != 0 {
            limits.push(format!("{} CPU", show_cpu(resources.cpu_millis)));
        }
        if resources.memory_bytes != 0 {
            limits.push(format!("{} memory", show_memory(resources.memory_bytes)));
        }
        text.line(2, "Limits", limits.join(", "));
    }
    let Some(status) = status else { return };
    text.line(2, "State", names::container_state(status.state()));
    text.line(2, "Reason", &status.reason);
    if status.state() == ContainerState::Terminated || status.finished_us != 0 {
        text.line(2, "Exit code", status.exit_code.to_string());
    }
    if status.restarts != 0 {
        text.line(2, "Restarts", status.restarts.to_string());
    }
    text.line(2, "Digest", &status.image_digest);
    text.line(2, "Started", at(status.started_us, now_us));
    text.line(2, "Finished", at(status.finished_us, now_us));
}

fn pairs(map: impl IntoIterator<Item = (String, String)>) -> String {
    let mut pairs: Vec<String> = map
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.sort();
    pairs.join(", ")
}

fn words(words: &[String]) -> String {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| {
            if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
                format!("{word:?}")
            } else {
                word.clone()
            }
        })
        .collect();
    quoted.join(" ")
}

fn at(time_us: i64, now_us: i64) -> String {
    time::rfc3339(time_us)
        .map(|time| format!("{time} ({} ago)", time::age(time_us, now_us)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{
        MemoryProfile, ObjectMeta, Phase, PodSpec, PodStatus, Stage,
    };

    use super::*;

    #[test]
    fn a_pod_is_described_with_its_waterfall() {
        let pod = Pod {
            metadata: Some(ObjectMeta {
                name: "web".into(),
                namespace: "default".into(),
                created_us: 1_000_000,
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "web".into(),
                    image: "web:1".into(),
                    args: vec!["a b".into(), "c".into()],
                    ..Container::default()
                }],
                memory_profile: MemoryProfile::Direct.into(),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Phase::Failed.into(),
                reason: "ImageNotFound".into(),
                timeline: vec![Stage {
                    name: "image".into(),
                    component: "card".into(),
                    start_us: 1_000_000,
                    end_us: 1_250_000,
                }],
                ..PodStatus::default()
            }),
        };
        let text = describe(&pod, 61_000_000);
        for line in [
            "Name:          web",
            "Created:       1970-01-01T00:00:01Z (60s ago)",
            "Phase:         Failed",
            "Reason:        ImageNotFound",
            "Memory:        direct",
            "  Args:        \"a b\" c",
            "Start-up (component, step, begins, takes):",
            "  250 ms in all",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line:?} in\n{text}"
            );
        }
        assert!(!text.contains("Host:"), "{text}");
    }
}
