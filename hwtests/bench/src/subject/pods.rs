//! Control plane, card and agent, and pods in them, driven as a client would.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use longship_proto::card::v1::card_admin_client::CardAdminClient;
use longship_proto::card::v1::exec_output::Output;
use longship_proto::card::v1::pod_streams_client::PodStreamsClient;
use longship_proto::card::v1::{
    ExecInput, ExecStart, GetUsageRequest, GetUsageResponse, LogsRequest, exec_input::Input,
};
use longship_proto::control::v1::inventory_client::InventoryClient;
use longship_proto::control::v1::pod_event::Type;
use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::{
    Container, CreatePodRequest, DeletePodRequest, GetPodAccessRequest, HostState, ImagePullPolicy,
    ListHostsRequest, ObjectMeta, Phase, Pod, PodEvent, PodSpec, PodStatus, Resources,
    RestartPolicy, WatchPodsRequest,
};
use longship_proto::now_us;
use tokio::sync::Notify;
use tokio_stream::StreamExt;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::arguments::{Files, Machine, Profile};
use crate::error::{BenchError, call, system};
use crate::subject::agent::{agent_arguments, cgroup_of};
use crate::subject::daemon::Daemon;
use crate::subject::workshop::Workshop;
use crate::subject::{LOOK, connect, within};
use crate::summary::signed;

const NAMESPACE: &str = "bench";
/// For the host to be ready, a pod to run, or to be gone.
const SECONDS: u64 = 180;
/// What the only container of a pod says first.
const WORD: &str = "here";

/// A Longship of its own; it is ended, with all its pods, when this is dropped.
#[derive(Debug)]
pub(crate) struct Pods {
    pods: PodsClient<Channel>,
    streams: PodStreamsClient<Channel>,
    admin: CardAdminClient<Channel>,
    board: Arc<Board>,
    machine: Machine,
    image: String,
    watch: tokio::task::JoinHandle<()>,
    // In the order in which they are to end.
    card: Daemon,
    agent: Daemon,
    control: Daemon,
    cgroup: PathBuf,
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) status: PodStatus,
    /// Before the request, microseconds since the Unix epoch.
    pub(crate) asked_us: i64,
    /// When the card received the container's first output.
    pub(crate) output_us: i64,
}

/// What a command in a pod has said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) code: i32,
    /// Of the first and of the last piece of its output, microseconds since the epoch.
    pub(crate) first_us: i64,
    pub(crate) last_us: i64,
    /// All bytes of its standard output, kept or not.
    pub(crate) bytes: u64,
}

/// The newest that the control plane has said of each pod; `None`: gone.
#[derive(Debug, Default)]
struct Board {
    newest: Mutex<HashMap<String, Option<Pod>>>,
    changed: Notify,
}

impl Pods {
    /// Starts all three daemons, from copies in the workshop; the agent gets `flags`.
    ///
    /// # Errors
    /// [`BenchError::Daemon`] where one does not come up.
    pub(crate) async fn start(
        files: &Files,
        machine: Machine,
        image: &str,
        workshop: &Workshop,
        flags: &[String],
    ) -> Result<Self, BenchError> {
        let programs = ["control", "card", "agent", "vmm"]
            .map(|name| files.program(&format!("longship-{name}")))
            .map(|program| workshop.copy(&program?));
        let [control_program, card_program, agent_program, vmm] = programs;
        vmm?;
        let kernel = workshop.copy(&files.kernel)?;
        let initramfs = workshop.copy(&files.initramfs)?;
        let folder = workshop.folder("up")?;
        let at = |name: &str| folder.join(name).display().to_string();
        let [control_address, card_address] = free_addresses()?;
        let control_url = format!("http://{control_address}");

        let arguments = ["--listen", &control_address, "--state", &at("control")];
        let mut control = Daemon::start("control", &control_program?, arguments, workshop.path())?;
        let control_channel = connect(&mut control, &control_url).await?;

        let agent_address = format!("unix:{}", at("agent.sock"));
        let cgroup = cgroup_of("pods");
        let mut arguments = agent_arguments(&agent_address, &folder, &kernel, &initramfs, &cgroup);
        arguments.extend_from_slice(flags);
        let mut agent = Daemon::start("agent", &agent_program?, arguments, workshop.path())?;
        connect(&mut agent, &agent_address).await?;

        let admin_address = format!("unix:{}", at("card.sock"));
        let (state, runtime) = (at("card-state"), at("card"));
        let arguments = [
            ["--control", &control_url],
            ["--agent", &agent_address],
            ["--listen", &card_address],
            ["--admin", &admin_address],
            ["--state", &state],
            ["--runtime-dir", &runtime],
            ["--host", "bench"],
            ["--zone", "bench"],
        ];
        let arguments = arguments.as_flattened();
        let mut card = Daemon::start("card", &card_program?, arguments, workshop.path())?;
        let streams = connect(&mut card, &format!("http://{card_address}")).await?;
        let admin = connect(&mut card, &admin_address).await?;

        let mut pods = PodsClient::new(control_channel.clone());
        host_ready(InventoryClient::new(control_channel)).await?;
        let request = WatchPodsRequest {
            namespace: NAMESPACE.to_owned(),
            ..WatchPodsRequest::default()
        };
        let watch = pods.watch_pods(request).await.map_err(call("WatchPods"))?;
        let board = Arc::new(Board::default());
        let watch = tokio::spawn(follow(watch.into_inner(), Arc::clone(&board)));
        Ok(Self {
            pods,
            streams: PodStreamsClient::new(streams),
            admin: CardAdminClient::new(admin),
            board,
            machine,
            image: image.to_owned(),
            watch,
            card,
            agent,
            control,
            cgroup,
        })
    }

    /// Makes a pod whose container says a word and then waits; waits for that word.
    ///
    /// # Errors
    /// A refusal, or the pod's failure.
    pub(crate) async fn run(&self, name: &str, profile: Profile) -> Result<Running, BenchError> {
        let script = format!("echo {WORD}; exec sleep 1000000");
        let pod = self.pod(name, profile, script);
        let asked_us = now_us();
        let mut client = self.pods.clone();
        let created = client
            .create_pod(CreatePodRequest {
                pod: Some(pod),
                ..CreatePodRequest::default()
            })
            .await;
        created.map_err(call("CreatePod"))?;
        let what = format!("{name} does not run");
        let running = within(SECONDS, &what, self.board.running(name)).await??;
        let what = format!("{name} says nothing");
        let output_us = within(SECONDS, &what, self.first_output(name)).await??;
        Ok(Running {
            status: running.status.unwrap_or_default(),
            asked_us,
            output_us,
        })
    }

    fn pod(&self, name: &str, profile: Profile, script: String) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: name.to_owned(),
                namespace: NAMESPACE.to_owned(),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "c".to_owned(),
                    image: self.image.clone(),
                    image_pull_policy: ImagePullPolicy::IfNotPresent.into(),
                    command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
                    resources: Some(Resources {
                        cpu_millis: 0,
                        memory_bytes: self.machine.memory_bytes(),
                        ..Resources::default()
                    }),
                    ..Container::default()
                }],
                restart_policy: RestartPolicy::Never.into(),
                termination_grace_seconds: Some(0),
                memory_profile: profile.to_control().into(),
                ..PodSpec::default()
            }),
            status: None,
        }
    }

    /// Deletes a pod and waits until all of it is released.
    ///
    /// # Errors
    /// A refusal, or that it stays.
    pub(crate) async fn stop(&self, name: &str) -> Result<(), BenchError> {
        let request = DeletePodRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            grace_seconds: Some(0),
            ..DeletePodRequest::default()
        };
        let deleted = self.pods.clone().delete_pod(request).await;
        deleted.map_err(call("DeletePod"))?;
        let what = format!("{name} is not gone");
        within(SECONDS, &what, self.board.gone(name)).await
    }

    /// Runs a command in a pod to its end. At most `keep` bytes of its standard output
    /// are kept.
    ///
    /// # Errors
    /// A refusal, or a stream that breaks.
    pub(crate) async fn exec(
        &self,
        name: &str,
        command: &[&str],
        keep: usize,
    ) -> Result<Said, BenchError> {
        let (uid, authorization) = self.access(name).await?;
        let start = ExecInput {
            input: Some(Input::Start(ExecStart {
                pod_uid: uid,
                command: command.iter().map(|&word| word.to_owned()).collect(),
                ..ExecStart::default()
            })),
        };
        // The card takes the end of the inputs for the client's end.
        let inputs = tokio_stream::once(start).chain(tokio_stream::pending());
        let mut request = Request::new(inputs);
        request
            .metadata_mut()
            .insert("authorization", authorization);
        let exec = self.streams.clone().exec(request).await;
        let mut outputs = exec.map_err(call("Exec"))?.into_inner();
        let mut said = Said::default();
        loop {
            let output = outputs.message().await.map_err(call("Exec"))?;
            match output.and_then(|output| output.output) {
                Some(Output::Stdout(data)) => {
                    said.last_us = now_us();
                    if said.bytes == 0 {
                        said.first_us = said.last_us;
                    }
                    said.bytes = said.bytes.saturating_add(data.len() as u64);
                    let room = keep.saturating_sub(said.stdout.len());
                    said.stdout.extend(data.iter().take(room));
                }
                Some(Output::Stderr(data)) => said.stderr.extend(data),
                Some(Output::ExitCode(code)) => {
                    said.code = code;
                    return Ok(said);
                }
                None => {
                    let why = format!("{name}: the exec's stream ended before the command");
                    return Err(BenchError::Impossible(why));
                }
            }
        }
    }

    /// Runs a shell script in a pod and gives what it printed.
    ///
    /// # Errors
    /// As [`Pods::exec`], the script's failure, or that it does not end.
    pub(crate) async fn script(&self, name: &str, script: &str) -> Result<String, BenchError> {
        let what = format!("{name}: `{script}` does not end");
        let command = ["sh", "-c", script];
        let said = within(SECONDS, &what, self.exec(name, &command, 1 << 16)).await??;
        if said.code != 0 {
            let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
            let why = format!("{name}: `{script}` ended with {}: {stderr}", said.code);
            return Err(BenchError::Impossible(why));
        }
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    }

    /// What has become of a pod, for a person.
    pub(crate) fn describe(&self, name: &str) -> String {
        let Some(Some(pod)) = self.board.newest().get(name).cloned() else {
            return "gone".to_owned();
        };
        let status = pod.status.unwrap_or_default();
        let containers = status.containers.iter().map(|container| {
            format!(
                "{} is {}, code {}, {} restarts {}",
                container.name,
                container.state().as_str_name(),
                container.exit_code,
                container.restarts,
                container.reason
            )
        });
        let containers: Vec<String> = containers.collect();
        format!(
            "{} {} {}; {}",
            status.phase().as_str_name(),
            status.reason,
            status.message,
            containers.join("; ")
        )
    }

    /// What each pod costs, by the card's account.
    ///
    /// # Errors
    /// The card's refusal.
    pub(crate) async fn usage(&self) -> Result<GetUsageResponse, BenchError> {
        let usage = self.admin.clone().get_usage(GetUsageRequest {}).await;
        Ok(usage.map_err(call("GetUsage"))?.into_inner())
    }

    /// Process ids of the three daemons.
    pub(crate) fn daemons(&self) -> [(&'static str, u32); 3] {
        [
            ("control", self.control.pid()),
            ("card", self.card.pid()),
            ("agent", self.agent.pid()),
        ]
    }

    /// When the card received the first output of the only container.
    async fn first_output(&self, name: &str) -> Result<i64, BenchError> {
        let (uid, authorization) = self.access(name).await?;
        let mut request = Request::new(LogsRequest {
            pod_uid: uid,
            follow: true,
            ..LogsRequest::default()
        });
        request
            .metadata_mut()
            .insert("authorization", authorization);
        let logs = self.streams.clone().logs(request).await;
        let chunk = logs.map_err(call("Logs"))?.into_inner().message().await;
        match chunk.map_err(call("Logs"))? {
            Some(chunk) if chunk.data.starts_with(WORD.as_bytes()) => Ok(chunk.time_us),
            other => Err(BenchError::Impossible(format!(
                "{name} said {other:?} instead of `{WORD}`"
            ))),
        }
    }

    /// The pod's uid, and what allows its streams.
    async fn access(&self, name: &str) -> Result<(String, MetadataValue<Ascii>), BenchError> {
        let request = GetPodAccessRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
        };
        let access = self.pods.clone().get_pod_access(request).await;
        let access = access.map_err(call("GetPodAccess"))?.into_inner();
        let authorization = format!("Bearer {}", access.token)
            .parse()
            .map_err(|_| BenchError::Impossible("the token is none".to_owned()))?;
        Ok((access.pod_uid, authorization))
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.watch.abort();
        self.card.end();
        self.agent.end();
        let _ = std::fs::remove_dir(&self.cgroup);
        self.control.end();
    }
}

impl Running {
    /// From the request at the control plane to the container's first output,
    /// milliseconds.
    pub(crate) fn latency_ms(&self) -> f64 {
        signed(self.output_us.saturating_sub(self.asked_us)) / 1000.0
    }

    /// The same from the card's first step.
    pub(crate) fn since_card_ms(&self) -> Option<f64> {
        let stages = self.status.timeline.iter();
        let began = stages
            .filter(|stage| stage.component == "card")
            .map(|stage| stage.start_us)
            .min()?;
        Some(signed(self.output_us.saturating_sub(began)) / 1000.0)
    }

    /// Its address.
    pub(crate) fn address(&self) -> Result<&str, BenchError> {
        let eni = self.status.eni.as_ref();
        eni.map(|eni| eni.address.as_str())
            .ok_or_else(|| BenchError::Impossible("the pod has no address".to_owned()))
    }
}

async fn host_ready(inventory: InventoryClient<Channel>) -> Result<(), BenchError> {
    let ready = async {
        loop {
            let hosts = inventory
                .clone()
                .list_hosts(ListHostsRequest::default())
                .await;
            let hosts = hosts.map_err(call("ListHosts"))?.into_inner().hosts;
            if hosts.iter().any(|host| host.state() == HostState::Ready) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    within(SECONDS, "the card is not ready", ready).await?
}

/// Addresses of loopback that were free just now.
fn free_addresses() -> Result<[String; 2], BenchError> {
    let bind = || TcpListener::bind(("127.0.0.1", 0)).map_err(system("find a free port"));
    let sockets = [bind()?, bind()?];
    let address = |socket: &TcpListener| socket.local_addr().map(|address| address.to_string());
    let [one, other] = sockets.each_ref().map(address);
    let failed = |error| system("find a free port")(error);
    Ok([one.map_err(failed)?, other.map_err(failed)?])
}

/// Puts everything that the control plane says onto the board.
async fn follow(mut watch: Streaming<PodEvent>, board: Arc<Board>) {
    while let Ok(Some(event)) = watch.message().await {
        let gone = event.r#type() == Type::Deleted;
        let Some(pod) = event.pod else { continue };
        let name = pod.metadata.clone().unwrap_or_default().name;
        board.newest().insert(name, (!gone).then_some(pod));
        board.changed.notify_waiters();
    }
}

impl Board {
    fn newest(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<Pod>>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` has an answer.
    async fn until<T>(&self, look: impl Fn(&HashMap<String, Option<Pod>>) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(answer) = look(&self.newest()) {
                return answer;
            }
            changed.await;
        }
    }

    async fn running(&self, name: &str) -> Result<Pod, BenchError> {
        self.until(|newest| {
            let pod = newest.get(name)?.as_ref()?;
            let status = pod.status.clone().unwrap_or_default();
            match status.phase() {
                Phase::Running => Some(Ok(pod.clone())),
                Phase::Failed | Phase::Succeeded | Phase::Released => {
                    let (reason, message) = (status.reason, status.message);
                    let why = format!("{name} does not run: {reason}: {message}");
                    Some(Err(BenchError::Impossible(why)))
                }
                _ => None,
            }
        })
        .await
    }

    async fn gone(&self, name: &str) {
        self.until(|newest| newest.get(name)?.is_none().then_some(()))
            .await;
    }
}
