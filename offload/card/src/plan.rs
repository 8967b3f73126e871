//! From an assigned pod to what has to be done for it: everything is checked here,
//! before anything is taken.

use std::net::Ipv4Addr;
use std::time::Duration;

use longship_framed::guest::{Interface, Process};
use longship_image::ImageConfig;
use longship_proto::Failure;
use longship_proto::agent::v1::MemoryProfile;
use longship_proto::control::v1::{self as control, Container, Eni, Flavor, Pod, RestartPolicy};

/// Seconds between SIGTERM and SIGKILL where a pod names none, as in Kubernetes.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// A pod, checked and complete.
#[derive(Debug, Clone)]
pub(crate) struct PodPlan {
    /// The pod's uid: also its sandbox's id and its directory's name.
    pub(crate) uid: String,
    /// The pod's namespace and name, for people.
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Generation that calls made for it carry.
    pub(crate) generation: u64,
    /// Host name in the guest.
    pub(crate) hostname: String,
    /// Name servers for the guest.
    pub(crate) nameservers: Vec<String>,
    /// VPC that the ENI belongs to.
    pub(crate) vpc: String,
    /// The ENI's MAC as the control plane wrote it.
    pub(crate) mac: String,
    /// The ENI's address.
    pub(crate) address: Ipv4Addr,
    /// Length of the subnet's prefix in bits.
    pub(crate) prefix_length: u8,
    /// The card's gateway.
    pub(crate) gateway: Ipv4Addr,
    /// Largest IP packet in bytes.
    pub(crate) mtu: u16,
    /// Size of the machine.
    pub(crate) flavor: Flavor,
    /// Who can reach the machine's memory.
    pub(crate) profile: MemoryProfile,
    /// What runs in it.
    pub(crate) containers: Vec<Container>,
    /// When a container is started again.
    pub(crate) restart: RestartPolicy,
    /// Between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
}

impl PodPlan {
    /// Checks what the control plane assigned.
    ///
    /// # Errors
    /// `Invalid` with the path of the field: the control plane and this card do not
    /// understand each other.
    pub(crate) fn new(pod: &Pod) -> Result<Self, Failure> {
        let meta = pod.metadata.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let eni: Eni = status
            .eni
            .ok_or_else(|| Failure::invalid("status.eni", "the pod has no ENI assigned"))?;
        let flavor: Flavor = status
            .flavor
            .ok_or_else(|| Failure::invalid("status.flavor", "the pod has no flavor assigned"))?;
        check_label("metadata.uid", &meta.uid)?;
        if spec.containers.is_empty() {
            return Err(Failure::invalid("spec.containers", "there is no container"));
        }
        for (i, container) in spec.containers.iter().enumerate() {
            check_label(&format!("spec.containers[{i}].name"), &container.name)?;
        }
        let hostname = if spec.hostname.is_empty() {
            meta.name.clone()
        } else {
            spec.hostname.clone()
        };
        Ok(Self {
            uid: meta.uid,
            namespace: meta.namespace,
            name: meta.name,
            generation: meta.generation,
            hostname,
            vpc: eni.vpc,
            mac: eni.mac,
            address: address("status.eni.address", &eni.address)?,
            prefix_length: number("status.eni.prefixLength", eni.prefix_length)?,
            gateway: address("status.eni.gateway", &eni.gateway)?,
            mtu: number("status.eni.mtu", eni.mtu)?,
            flavor,
            profile: match spec.memory_profile() {
                control::MemoryProfile::Direct => MemoryProfile::Direct,
                control::MemoryProfile::Dense | control::MemoryProfile::Unspecified => {
                    MemoryProfile::Dense
                }
            },
            restart: spec.restart_policy(),
            grace: spec
                .termination_grace_seconds
                .map_or(DEFAULT_GRACE, |s| Duration::from_secs(s.into())),
            nameservers: spec.nameservers,
            containers: spec.containers,
        })
    }

    /// Its scratch disk's id among the card's volumes.
    pub(crate) fn scratch_id(&self) -> String {
        format!("{}-scratch", self.uid)
    }

    /// The guest's view of the ENI.
    pub(crate) fn interface(&self) -> Interface {
        Interface {
            mac: self.mac.clone(),
            name: "eth0".to_owned(),
            address: self.address.to_string(),
            prefix_length: self.prefix_length.into(),
            gateway: self.gateway.to_string(),
            mtu: self.mtu.into(),
        }
    }

    /// The first process of container `index` when its image says `image`. As in
    /// Kubernetes, `command` replaces entrypoint and command of the image, `args`
    /// alone only the command.
    ///
    /// # Errors
    /// `Invalid` where neither says what to run.
    pub(crate) fn process(&self, index: usize, image: &ImageConfig) -> Result<Process, Failure> {
        let Some(container) = self.containers.get(index) else {
            return Err(Failure::internal(format!(
                "the pod has no container {index}"
            )));
        };
        let mut argv = container.command.clone();
        if argv.is_empty() {
            argv.clone_from(&image.entrypoint);
        }
        if !container.args.is_empty() {
            argv.extend_from_slice(&container.args);
        } else if container.command.is_empty() {
            argv.extend_from_slice(&image.command);
        }
        if argv.is_empty() {
            return Err(Failure::invalid(
                format!("spec.containers[{index}].command"),
                format!(
                    "there is no command to run: neither the pod nor the image {} names one",
                    container.image
                ),
            ));
        }
        let mut env = image.env.clone();
        for variable in &container.env {
            let prefix = format!("{}=", variable.name);
            env.retain(|e| !e.starts_with(&prefix));
            env.push(format!("{prefix}{}", variable.value));
        }
        let working_dir = if container.working_dir.is_empty() {
            image.working_dir.clone()
        } else {
            container.working_dir.clone()
        };
        Ok(Process {
            argv,
            env,
            working_dir,
            user: image.user.clone(),
            ..Process::default()
        })
    }

    /// Whether a container that ended with `code` is to be started again.
    pub(crate) fn restarts(&self, code: i32) -> bool {
        match self.restart {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Always | RestartPolicy::Unspecified => true,
        }
    }
}

/// Names that become file names: DNS labels.
fn check_label(field: &str, name: &str) -> Result<(), Failure> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(legal) {
        return Err(Failure::invalid(field, format!("`{name}` is no DNS label")));
    }
    Ok(())
}

fn address(field: &str, text: &str) -> Result<Ipv4Addr, Failure> {
    text.parse()
        .map_err(|_| Failure::invalid(field, format!("`{text}` is no IPv4 address")))
}

fn number<T: TryFrom<u32>>(field: &str, value: u32) -> Result<T, Failure> {
    T::try_from(value).map_err(|_| Failure::invalid(field, format!("{value} is out of range")))
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{EnvVar, ObjectMeta, PodSpec, PodStatus};

    use super::*;

    fn pod(container: Container) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: "web".into(),
                uid: "0a-1".into(),
                generation: 3,
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                containers: vec![container],
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                eni: Some(Eni {
                    vpc: "default".into(),
                    address: "10.88.0.5".into(),
                    prefix_length: 16,
                    gateway: "10.88.0.1".into(),
                    mac: "02:00:0a:58:00:05".into(),
                    mtu: 1500,
                }),
                flavor: Some(Flavor::default()),
                ..PodStatus::default()
            }),
        }
    }

    fn container() -> Container {
        Container {
            name: "c".into(),
            image: "i".into(),
            ..Container::default()
        }
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            command: vec!["default".into()],
            env: vec!["PATH=/bin".into(), "A=image".into()],
            working_dir: "/srv".into(),
            user: "nobody".into(),
            stop_signal: None,
        }
    }

    fn process(container: Container, image: &ImageConfig) -> Result<Process, Failure> {
        PodPlan::new(&pod(container)).unwrap().process(0, image)
    }

    #[test]
    fn command_and_args_replace_what_the_image_says_as_in_kubernetes() {
        let cases: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/entry", "default"]),
            (&[], &["a"], &["/entry", "a"]),
            (&["c"], &[], &["c"]),
            (&["c"], &["a"], &["c", "a"]),
        ];
        for (command, args, argv) in cases {
            let strings = |s: &[&str]| s.iter().map(ToString::to_string).collect();
            let container = Container {
                command: strings(command),
                args: strings(args),
                ..container()
            };
            assert_eq!(process(container, &image()).unwrap().argv, argv);
        }
    }

    #[test]
    fn the_pods_environment_overrides_the_images() {
        let env = vec![EnvVar {
            name: "A".into(),
            value: "pod".into(),
        }];
        let process = process(Container { env, ..container() }, &image()).unwrap();
        assert_eq!(process.env, ["PATH=/bin", "A=pod"]);
        assert_eq!(
            (process.working_dir.as_str(), process.user.as_str()),
            ("/srv", "nobody")
        );
    }

    #[test]
    fn a_pod_is_dense_unless_it_says_otherwise() {
        for (asked, profile) in [
            (control::MemoryProfile::Unspecified, MemoryProfile::Dense),
            (control::MemoryProfile::Dense, MemoryProfile::Dense),
            (control::MemoryProfile::Direct, MemoryProfile::Direct),
        ] {
            let mut pod = pod(container());
            pod.spec.as_mut().unwrap().set_memory_profile(asked);
            assert_eq!(PodPlan::new(&pod).unwrap().profile, profile);
        }
    }

    #[test]
    fn no_command_anywhere_is_refused_by_its_field() {
        let bare = ImageConfig {
            entrypoint: vec![],
            command: vec![],
            ..image()
        };
        let refused = process(container(), &bare).unwrap_err();
        assert_eq!(refused.field, "spec.containers[0].command");
    }

    #[test]
    fn an_assignment_that_makes_no_sense_names_the_field() {
        type Break = fn(&mut Pod);
        let break_it: [(&str, Break); 5] = [
            ("status.eni", |p| p.status.as_mut().unwrap().eni = None),
            ("status.flavor", |p| {
                p.status.as_mut().unwrap().flavor = None
            }),
            ("metadata.uid", |p| {
                p.metadata.as_mut().unwrap().uid = "../x".into()
            }),
            ("spec.containers", |p| {
                p.spec.as_mut().unwrap().containers.clear()
            }),
            ("spec.containers[0].name", |p| {
                p.spec.as_mut().unwrap().containers[0].name = "a/b".into();
            }),
        ];
        for (field, change) in break_it {
            let mut pod = pod(container());
            change(&mut pod);
            assert_eq!(PodPlan::new(&pod).unwrap_err().field, field);
        }
    }

    #[test]
    fn the_restart_policy_decides_by_the_exit_code() {
        for (policy, after_0, after_1) in [
            (RestartPolicy::Never, false, false),
            (RestartPolicy::OnFailure, false, true),
            (RestartPolicy::Always, true, true),
            (RestartPolicy::Unspecified, true, true),
        ] {
            let plan = PodPlan {
                restart: policy,
                ..PodPlan::new(&pod(container())).unwrap()
            };
            assert_eq!((plan.restarts(0), plan.restarts(1)), (after_0, after_1));
        }
    }
}
