//! An agent of its own, driven as a card would drive it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use longship_proto::agent::v1::agent_client::AgentClient;
use longship_proto::agent::v1::{
    GetHostRequest, GetUsageRequest, HostUsage, ListTemplatesRequest, PrepareSandboxRequest,
    Sandbox, SandboxState, StartSandboxRequest, StopSandboxRequest, Template, TemplateState,
    WatchSandboxesRequest,
};
use longship_proto::control::v1::Stage;
use longship_proto::now_us;
use tokio::sync::Notify;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::arguments::{Files, Machine};
use crate::error::{BenchError, call};
use crate::subject::daemon::Daemon;
use crate::subject::workshop::Workshop;
use crate::subject::{LOOK, connect, within};

/// More than there is, for guests that touch little of theirs: what is measured is
/// what they really take.
pub(crate) const MEMORY_FOR_SANDBOXES: u64 = 4 << 40;
/// So that CPUs are no limit to their number either.
pub(crate) const CPUS_FOR_SANDBOXES: u32 = 4096;
/// For a guest's first act.
const ALIVE_SECONDS: u64 = 120;
/// For a template and its warm clones.
const TEMPLATE_SECONDS: u64 = 120;

/// An agent; it is ended, with all its sandboxes, when this is dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    client: AgentClient<Channel>,
    board: Arc<Board>,
    machine: Machine,
    watch: tokio::task::JoinHandle<()>,
    daemon: Daemon,
    cgroup: PathBuf,
}

/// A start that succeeded.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    /// Before the request, microseconds since the Unix epoch.
    pub(crate) asked_us: i64,
    /// When the guest did its first act.
    pub(crate) alive_us: i64,
    /// What the two calls cost by the agent's own account.
    pub(crate) stages: Vec<Stage>,
}

impl Started {
    /// From the request to the guest's first act, milliseconds.
    pub(crate) fn latency_ms(&self) -> f64 {
        crate::summary::signed(self.alive_us.saturating_sub(self.asked_us)) / 1000.0
    }
}

/// The newest that the agent has said of each sandbox.
#[derive(Debug, Default)]
struct Board {
    newest: Mutex<HashMap<String, Sandbox>>,
    changed: Notify,
}

impl Agent {
    /// Starts one, called `name`, with these flags more, from copies in the workshop.
    ///
    /// # Errors
    /// [`BenchError::Daemon`] where it does not come up.
    pub(crate) async fn start(
        files: &Files,
        machine: Machine,
        workshop: &Workshop,
        name: &str,
        flags: &[String],
    ) -> Result<Self, BenchError> {
        let program = workshop.copy(&files.program("longship-agent")?)?;
        workshop.copy(&files.program("longship-vmm")?)?;
        let kernel = workshop.copy(&files.kernel)?;
        let initramfs = workshop.copy(&files.initramfs)?;
        let folder = workshop.folder(name)?;
        let address = format!("unix:{}", folder.join("agent.sock").display());
        let cgroup = cgroup_of(name);
        let mut arguments = agent_arguments(&address, &folder, &kernel, &initramfs, &cgroup);
        arguments.extend_from_slice(flags);
        let mut daemon = Daemon::start(
            &format!("agent-{name}"),
            &program,
            arguments,
            workshop.path(),
        )?;
        let channel = connect(&mut daemon, &address).await?;
        let mut client = AgentClient::new(channel);
        client
            .get_host(GetHostRequest {})
            .await
            .map_err(call("GetHost"))?;
        let watch = client
            .watch_sandboxes(WatchSandboxesRequest {})
            .await
            .map_err(call("WatchSandboxes"))?;
        let board = Arc::new(Board::default());
        let watch = tokio::spawn(follow(watch.into_inner(), Arc::clone(&board)));
        Ok(Self {
            client,
            board,
            machine,
            watch,
            daemon,
            cgroup,
        })
    }

    /// The agent's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Prepares and starts a sandbox without devices and waits for its guest's first act.
    ///
    /// # Errors
    /// The agent's refusal, or the guest's end.
    pub(crate) async fn run(&self, id: &str) -> Result<Started, BenchError> {
        let mut client = self.client.clone();
        let (id, generation) = (id.to_owned(), 1);
        let prepare = PrepareSandboxRequest {
            id: id.clone(),
            generation,
            vcpus: self.machine.vcpus,
            memory_bytes: self.machine.memory_bytes(),
            cpu_millis: 0,
            profile: self.machine.profile.to_agent().into(),
        };
        let start = StartSandboxRequest {
            id: id.clone(),
            generation,
            devices: Vec::new(),
        };
        let asked_us = now_us();
        let prepared = client.prepare_sandbox(prepare).await;
        let prepared = prepared.map_err(call("PrepareSandbox"))?.into_inner();
        let started = client.start_sandbox(start).await;
        let started = started.map_err(call("StartSandbox"))?.into_inner();
        let what = format!("{id}: no first act of the guest");
        let alive_us = within(ALIVE_SECONDS, &what, self.board.alive(&id)).await??;
        let mut stages = prepared.timeline;
        stages.extend(started.timeline);
        Ok(Started {
            pid: started.pid,
            asked_us,
            alive_us,
            stages,
        })
    }

    /// Stops a sandbox.
    ///
    /// # Errors
    /// The agent's refusal.
    pub(crate) async fn stop(&self, id: &str) -> Result<(), BenchError> {
        let request = StopSandboxRequest {
            id: id.to_owned(),
            generation: 1,
        };
        let stopped = self.client.clone().stop_sandbox(request).await;
        stopped.map_err(call("StopSandbox"))?;
        self.board.forget(id);
        Ok(())
    }

    /// # Errors
    /// The agent's refusal.
    pub(crate) async fn usage(&self) -> Result<HostUsage, BenchError> {
        let usage = self.client.clone().get_usage(GetUsageRequest {}).await;
        Ok(usage.map_err(call("GetUsage"))?.into_inner())
    }

    /// # Errors
    /// The agent's refusal.
    pub(crate) async fn templates(&self) -> Result<Vec<Template>, BenchError> {
        let mut client = self.client.clone();
        let templates = client.list_templates(ListTemplatesRequest {}).await;
        let templates = templates.map_err(call("ListTemplates"))?;
        Ok(templates.into_inner().templates)
    }

    /// Waits until a template is there, with at least `warm` paused clones.
    ///
    /// # Errors
    /// [`BenchError::Impossible`] where it could not be made, [`BenchError::Late`].
    pub(crate) async fn template_ready(&self, warm: u32) -> Result<(), BenchError> {
        let ready = async {
            loop {
                for template in self.templates().await? {
                    match template.state() {
                        TemplateState::Ready if template.warm >= warm => return Ok(()),
                        TemplateState::Failed => {
                            let why = format!("the template failed: {}", template.message);
                            return Err(BenchError::Impossible(why));
                        }
                        _ => {}
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let what = format!("no template with {warm} warm clones");
        within(TEMPLATE_SECONDS, &what, ready).await?
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.watch.abort();
        // The agent removes its sandboxes' cgroups when it ends, but keeps their parent.
        self.daemon.end();
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

/// The cgroup for the sandboxes of one agent of this run.
pub(crate) fn cgroup_of(name: &str) -> PathBuf {
    PathBuf::from(format!(
        "/sys/fs/cgroup/longship-bench-{}-{name}",
        std::process::id()
    ))
}

/// The flags that every agent gets here.
pub(crate) fn agent_arguments(
    address: &str,
    folder: &Path,
    kernel: &Path,
    initramfs: &Path,
    cgroup: &Path,
) -> Vec<String> {
    let folder = folder.join("run");
    let pairs = [
        ("--listen", address.to_owned()),
        ("--runtime-dir", folder.display().to_string()),
        ("--kernel", kernel.display().to_string()),
        ("--initramfs", initramfs.display().to_string()),
        ("--cgroup", cgroup.display().to_string()),
        ("--memory", MEMORY_FOR_SANDBOXES.to_string()),
        ("--cpus", CPUS_FOR_SANDBOXES.to_string()),
    ];
    pairs
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

/// Puts everything that the agent says onto the board.
async fn follow(mut watch: Streaming<Sandbox>, board: Arc<Board>) {
    while let Ok(Some(sandbox)) = watch.message().await {
        board.newest().insert(sandbox.id.clone(), sandbox);
        board.changed.notify_waiters();
    }
}

impl Board {
    fn newest(&self) -> std::sync::MutexGuard<'_, HashMap<String, Sandbox>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: &str) {
        self.newest().remove(id);
    }

    /// When the guest of `id` did its first act; waits for it.
    async fn alive(&self, id: &str) -> Result<i64, BenchError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(sandbox) = self.newest().get(id) {
                if sandbox.alive_us != 0 {
                    return Ok(sandbox.alive_us);
                }
                if matches!(sandbox.state(), SandboxState::Exited | SandboxState::Gone) {
                    let exit = sandbox.exit.clone().unwrap_or_default();
                    let why = format!("{id} has ended: {} {}", exit.message, exit.console_tail);
                    return Err(BenchError::Impossible(why));
                }
            }
            changed.await;
        }
    }
}
