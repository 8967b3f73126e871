//! `longship run`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use longship_proto::Failure;
use longship_proto::control::v1::{
    Container, ContainerState, EnvVar, MemoryProfile, ObjectMeta, Phase, Pod, PodSpec, Resources,
};

use crate::card::PodStreams;
use crate::command::exec::exit_code;
use crate::command::logs::print_logs;
use crate::error::CliError;
use crate::manifest;
use crate::progress::Progress;
use crate::server::{Server, ServerAddress};
use crate::show::names;
use crate::signals::EndSignals;
use crate::watch::{PodWatch, Seen, is_finished, phase_of};

/// For a pod that is to be removed to be gone.
const REMOVE_PATIENCE: Duration = Duration::from_secs(90);

/// Run a pod: create it, print what it prints, exit with its code.
///
/// What stands after `--` are the arguments for the image's entrypoint, in place of the
/// image's own command.
///
/// With --rm the pod is deleted at the end, also when this command is ended by Ctrl-C or
/// SIGTERM. Where this command is killed (SIGKILL) or loses the control plane, the pod
/// stays: `longship delete pod NAME` removes it.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Image: a registry reference, or `oci:/dir[:tag]` on the card's disk.
    #[arg(
        long,
        required_unless_present = "filename",
        conflicts_with = "filename"
    )]
    image: Option<String>,
    /// The pod from a file instead of from flags; `-`: standard input.
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with_all = [
        "name", "cpu", "memory", "env", "zone", "flavor", "vpc", "restart", "pull",
        "memory_profile", "command", "args",
    ])]
    filename: Option<PathBuf>,
    /// Name of the pod; where it is not given, made from the image's.
    #[arg(long)]
    name: Option<String>,
    /// CPUs, e.g. 500m or 2.
    #[arg(long, value_parser = manifest::cpu_millis)]
    cpu: Option<u32>,
    /// Memory, e.g. 128Mi.
    #[arg(long, value_parser = manifest::memory_bytes)]
    memory: Option<u64>,
    /// Environment variable of the container; may be repeated.
    #[arg(long, short = 'e', value_name = "NAME=VALUE", value_parser = parse_env)]
    env: Vec<EnvVar>,
    /// Zone to run in.
    #[arg(long, default_value = "")]
    zone: String,
    /// Flavor to run as.
    #[arg(long, default_value = "")]
    flavor: String,
    /// VPC to join.
    #[arg(long, default_value = "")]
    vpc: String,
    /// Whether to start it again when it ends: Always, OnFailure or Never.
    #[arg(long, default_value = "Never", value_parser = manifest::restart_policy)]
    restart: longship_proto::control::v1::RestartPolicy,
    /// When to ask the registry for the image: Always, IfNotPresent or Never; where it
    /// is not given, Always for the tag latest, else IfNotPresent.
    #[arg(long, value_parser = manifest::image_pull_policy)]
    pull: Option<longship_proto::control::v1::ImagePullPolicy>,
    /// Who can reach the pod's memory: dense (its devices, through a window) or direct
    /// (its devices, all of it). dense where it is not given.
    #[arg(long, value_parser = manifest::memory_profile)]
    memory_profile: Option<MemoryProfile>,
    /// Replace the image's entrypoint too.
    #[arg(long)]
    command: bool,
    /// Delete the pod at the end.
    #[arg(long)]
    rm: bool,
    /// Give up when the pod has not ended after this long.
    #[arg(long, value_parser = crate::duration::parse)]
    timeout: Option<Duration>,
    /// Do not say what is being waited for.
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Arguments for the container.
    #[arg(last = true)]
    args: Vec<String>,
}

impl Run {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let wanted = self.pod(namespace)?;
        // From before the pod exists, so that no signal can leave it behind.
        let mut signals = EndSignals::catch()?;
        let mut server = Server::connect(address).await?;
        let pod = server.create(wanted).await?;
        let name = pod.metadata.clone().unwrap_or_default().name;
        let outcome = {
            let follow = follow(&mut server, &pod, self.quiet);
            let too_long = async {
                match self.timeout {
                    Some(timeout) => tokio::time::sleep(timeout).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                outcome = follow => outcome,
                signal = signals.next() => {
                    let note = if self.rm {
                        String::new()
                    } else {
                        format!("; pod {name} goes on (longship delete pod {name})")
                    };
                    Err(CliError::Interrupted { signal, note })
                }
                () = too_long => Err(CliError::Other(format!(
                    "pod {name} has not ended in time"
                ))),
            }
        };
        if self.rm {
            remove(&mut server, &pod, outcome.is_err(), &mut signals).await?;
        }
        outcome
    }

    fn pod(&self, namespace: &str) -> Result<Pod, CliError> {
        if let Some(path) = &self.filename {
            let mut pods = manifest::read(path, namespace)?;
            if pods.len() > 1 {
                return Err(CliError::Document {
                    file: path.display().to_string(),
                    failure: Failure::invalid(
                        "",
                        format!("holds {} pods; run takes one (see create)", pods.len()),
                    ),
                });
            }
            return pods
                .pop()
                .ok_or_else(|| CliError::Other("no pod".to_owned()));
        }
        let image = self.image.clone().unwrap_or_default();
        let name = self
            .name
            .clone()
            .unwrap_or_else(|| name_for(&image, rand::random()));
        let (command, args) = if self.command {
            (self.args.clone(), Vec::new())
        } else {
            (Vec::new(), self.args.clone())
        };
        let resources = (self.cpu.is_some() || self.memory.is_some()).then(|| Resources {
            cpu_millis: self.cpu.unwrap_or_default(),
            memory_bytes: self.memory.unwrap_or_default(),
            ..Resources::default()
        });
        let container = Container {
            name: name.clone(),
            image,
            command,
            args,
            env: self.env.clone(),
            working_dir: String::new(),
            resources,
            image_pull_policy: self.pull.unwrap_or_default().into(),
        };
        Ok(Pod {
            metadata: Some(ObjectMeta {
                name,
                namespace: namespace.to_owned(),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                containers: vec![container],
                restart_policy: self.restart.into(),
                zone: self.zone.clone(),
                flavor: self.flavor.clone(),
                vpc: self.vpc.clone(),
                memory_profile: self.memory_profile.unwrap_or_default().into(),
                ..PodSpec::default()
            }),
            status: None,
        })
    }
}

/// Follows the pod to its end; gives its exit code.
async fn follow(server: &mut Server, pod: &Pod, quiet: bool) -> Result<u8, CliError> {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let mut progress = Progress::new(quiet);
    let mut watch = PodWatch::of(server, pod);
    let first = loop {
        match watch.next().await? {
            Seen::Gone => return Err(gone(&metadata.name)),
            Seen::Pod(pod) if has_run(&pod) => break pod,
            Seen::Pod(pod) if is_finished(&pod) => return Err(failed(&pod)),
            Seen::Pod(pod) => progress.say(&waiting_for(&pod)),
        }
    };
    progress.clear();
    let mut streams = PodStreams::open(server, &metadata.namespace, &metadata.name).await?;
    if let Err(error) = print_all(&mut streams, &first).await {
        // Its end still counts.
        eprintln!("longship: the log broke off: {error}");
    }
    let mut pod = first;
    while !is_finished(&pod) {
        match watch.next().await? {
            Seen::Pod(newer) => pod = newer,
            Seen::Gone => return Err(gone(&metadata.name)),
        }
    }
    final_code(&pod)
}

async fn print_all(streams: &mut PodStreams, pod: &Pod) -> Result<(), CliError> {
    // One container's is enough to follow; the others' are to be had by `logs -c`.
    let container = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.containers.first())
        .map(|container| container.name.clone())
        .unwrap_or_default();
    print_logs(streams.logs(&container, true, None).await?).await
}

/// Whether a container runs or ran, so that there is a log.
fn has_run(pod: &Pod) -> bool {
    phase_of(pod) == Phase::Running
        || pod.status.as_ref().is_some_and(|status| {
            status
                .containers
                .iter()
                .any(|container| container.started_us != 0)
        })
}

fn waiting_for(pod: &Pod) -> String {
    let name = pod
        .metadata
        .as_ref()
        .map_or("", |metadata| metadata.name.as_str());
    let status = pod.status.clone().unwrap_or_default();
    let mut text = format!("pod {name}: {}", names::phase(status.phase()));
    if !status.host.is_empty() {
        text.push_str(&format!(" on {}", status.host));
    }
    if !status.message.is_empty() {
        text.push_str(&format!(" ({})", status.message));
    }
    text
}

fn gone(name: &str) -> CliError {
    CliError::Other(format!("pod {name} was deleted before it ended"))
}

fn failed(pod: &Pod) -> CliError {
    let name = pod
        .metadata
        .as_ref()
        .map_or("", |metadata| metadata.name.as_str());
    let status = pod.status.clone().unwrap_or_default();
    let why = [status.reason, status.message]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<String>>()
        .join(": ");
    CliError::Other(format!("pod {name} failed: {why}"))
}

/// The code of the first container that did not end well, else 0.
fn final_code(pod: &Pod) -> Result<u8, CliError> {
    let status = pod.status.clone().unwrap_or_default();
    let ended = |state: ContainerState| state == ContainerState::Terminated;
    let codes: Vec<i32> = status
        .containers
        .iter()
        .filter(|container| ended(container.state()))
        .map(|container| container.exit_code)
        .collect();
    match codes.iter().find(|code| **code != 0) {
        Some(code) => Ok(exit_code(*code).max(1)),
        None if status.phase() == Phase::Failed || codes.is_empty() => Err(failed(pod)),
        None => Ok(0),
    }
}

/// Deletes the pod and waits until it is gone; a signal ends the wait.
async fn remove(
    server: &mut Server,
    pod: &Pod,
    at_once: bool,
    signals: &mut EndSignals,
) -> Result<(), CliError> {
    let metadata = pod.metadata.clone().unwrap_or_default();
    // Who gave up on it does not want to wait for its goodbye.
    let grace = at_once.then_some(1);
    match server
        .delete(&metadata.namespace, &metadata.name, grace)
        .await
    {
        Err(error) if error.is_not_found() => return Ok(()),
        other => other?,
    };
    let mut watch = PodWatch::of(server, pod);
    let gone = async {
        while let Seen::Pod(_) = watch.next().await? {}
        Ok(())
    };
    tokio::select! {
        result = gone => result,
        _ = signals.next() => Ok(()),
        () = tokio::time::sleep(REMOVE_PATIENCE) => Err(CliError::Other(format!(
            "pod {} is still being deleted after {} s",
            metadata.name,
            REMOVE_PATIENCE.as_secs()
        ))),
    }
}

fn parse_env(text: &str) -> Result<EnvVar, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(EnvVar {
            name: name.to_owned(),
            value: value.to_owned(),
        }),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// A DNS label from the image's last part and some characters of `random`.
fn name_for(image: &str, random: u32) -> String {
    let last = image
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let base = last.split(['@', ':']).next().unwrap_or_default();
    let base: String = base
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    let base = base.trim_matches('-');
    let base = if base.starts_with(|c: char| c.is_ascii_alphabetic()) {
        base
    } else {
        "pod"
    };
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let suffix: String = (0..5)
        .filter_map(|n| LETTERS.get(usize::try_from(random >> (5 * n) & 31).ok()?))
        .map(|letter| char::from(*letter))
        .collect();
    format!("{base}-{suffix}")
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{ContainerStatus, PodStatus};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_come_from_images() {
        assert_eq!(
            name_for("docker.io/library/Busy_Box:1", 0),
            "busy-box-aaaaa"
        );
        assert_eq!(name_for("host:5000/web@sha256:00", 1), "web-baaaa");
        assert_eq!(name_for("oci:/dir/:tag", 31), "pod-7aaaa");
    }

    proptest! {
        #[test]
        fn every_made_name_is_a_dns_label(image in ".{0,80}", random in any::<u32>()) {
            let name = name_for(&image, random);
            let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            prop_assert!(name.len() <= 63 && name.chars().all(fine), "{name}");
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
        }
    }

    fn ended(phase: Phase, codes: &[i32]) -> Pod {
        let container = |code: &i32| ContainerStatus {
            state: ContainerState::Terminated.into(),
            exit_code: *code,
            started_us: 1,
            ..ContainerStatus::default()
        };
        Pod {
            status: Some(PodStatus {
                phase: phase.into(),
                reason: "Why".into(),
                containers: codes.iter().map(container).collect(),
                ..PodStatus::default()
            }),
            ..Pod::default()
        }
    }

    #[test]
    fn the_containers_code_is_the_commands() {
        assert_eq!(final_code(&ended(Phase::Succeeded, &[0])).unwrap(), 0);
        assert_eq!(final_code(&ended(Phase::Failed, &[0, 7])).unwrap(), 7);
        assert_eq!(final_code(&ended(Phase::Failed, &[137])).unwrap(), 137);
        let error = final_code(&ended(Phase::Failed, &[])).unwrap_err();
        assert_eq!(error.to_string(), "pod  failed: Why");
        assert!(final_code(&ended(Phase::Failed, &[0])).is_err());
    }

    #[test]
    fn variables_have_a_name() {
        assert_eq!(parse_env("A=b=c").unwrap().value, "b=c");
        assert!(parse_env("A").is_err());
        assert!(parse_env("=b").is_err());
    }
}
