//! The agent as a process, in a place of its own.

#![allow(dead_code, unreachable_pub, reason = "each test uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use longship_proto::agent::v1::agent_client::AgentClient;
use longship_proto::agent::v1::{
    DeviceHandle, HostUsage, ListTemplatesRequest, PrepareSandboxRequest, Sandbox,
    StartSandboxRequest, StopSandboxRequest, Template,
};
use longship_proto::agent::v1::{GetUsageRequest, ListSandboxesRequest};
use longship_proto::{Failure, failure_of};
use tonic::transport::{Channel, Endpoint};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// What an agent is started with beside its place.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `None`: the guest's, as `make guest` leaves it.
    pub kernel: Option<PathBuf>,
    pub flags: Vec<String>,
}

/// An agent of its own place, ended with the test.
pub struct Agent {
    pub process: Child,
    pub folder: tempfile::TempDir,
    pub cgroup: PathBuf,
    pub client: AgentClient<Channel>,
    options: Options,
}

impl Agent {
    pub async fn start(name: &str, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cgroup = PathBuf::from(format!("/sys/fs/cgroup/longship-{name}"));
        let process = spawn(folder.path(), &cgroup, &options);
        let client = connect(folder.path()).await;
        Self {
            process,
            folder,
            cgroup,
            client,
            options,
        }
    }

    /// Another agent in the place of one that was killed.
    pub async fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = spawn(self.folder.path(), &self.cgroup, &self.options);
        self.client = connect(self.folder.path()).await;
    }

    pub async fn prepare(&mut self, request: PrepareSandboxRequest) -> Result<Sandbox, Failure> {
        let answer = self.client.prepare_sandbox(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| failure_of(&status))
    }

    pub async fn start_sandbox(
        &mut self,
        id: &str,
        devices: Vec<DeviceHandle>,
    ) -> Result<Sandbox, Failure> {
        let request = StartSandboxRequest {
            id: id.into(),
            generation: 1,
            devices,
        };
        let answer = self.client.start_sandbox(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| failure_of(&status))
    }

    pub async fn stop(&mut self, id: &str, generation: u64) -> Result<(), Failure> {
        let id = id.into();
        let answer = self
            .client
            .stop_sandbox(StopSandboxRequest { id, generation })
            .await;
        answer.map(drop).map_err(|status| failure_of(&status))
    }

    pub async fn usage(&mut self) -> HostUsage {
        let usage = self.client.get_usage(GetUsageRequest {}).await;
        usage.unwrap().into_inner()
    }

    pub async fn templates(&mut self) -> Vec<Template> {
        let templates = self.client.list_templates(ListTemplatesRequest {}).await;
        templates.unwrap().into_inner().templates
    }

    /// What the sandbox is now.
    pub async fn look(&mut self, id: &str) -> Sandbox {
        let all = self.client.list_sandboxes(ListSandboxesRequest {}).await;
        let mut all = all.unwrap().into_inner().sandboxes.into_iter();
        all.find(|sandbox| sandbox.id == id).unwrap()
    }

    /// Waits until the guest has done its first act; when that was.
    pub async fn alive(&mut self, id: &str) -> i64 {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            let sandbox = self.look(id).await;
            if sandbox.alive_us != 0 {
                return sandbox.alive_us;
            }
            assert!(
                tokio::time::Instant::now() < give_up,
                "the guest does nothing: {sandbox:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many clones wait in advance.
    pub async fn warm(&mut self, clones: u32) {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            let warm: u32 = self.templates().await.iter().map(|one| one.warm).sum();
            if warm == clones {
                return;
            }
            assert!(
                tokio::time::Instant::now() < give_up,
                "{warm} clones wait instead of {clones}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The cgroups of its VMMs.
    pub fn cgroups(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.cgroup).into_iter().flatten();
        entries
            .map(Result::unwrap)
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    /// The descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Processes that it has started and not reaped.
    pub fn children(&self) -> Vec<u32> {
        let tasks = format!("/proc/{}/task", self.process.id());
        let mut children = Vec::new();
        for task in std::fs::read_dir(tasks).unwrap() {
            let of_task = read(task.unwrap().path().join("children"));
            children.extend(
                of_task
                    .split_whitespace()
                    .map(|pid| pid.parse::<u32>().unwrap()),
            );
        }
        children
    }

    pub fn cgroup_of(&self, sandbox: &Sandbox) -> PathBuf {
        let lines = read(format!("/proc/{}/cgroup", sandbox.pid).into());
        let path = lines.trim().strip_prefix("0::/").unwrap();
        let cgroup = Path::new("/sys/fs/cgroup").join(path);
        assert_eq!(cgroup.parent(), Some(self.cgroup.as_path()));
        cgroup
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Agent {
    /// Lets it take its sandboxes along: the next test counts memory.
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            self.signal(nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.process.wait();
    }
}

fn spawn(folder: &Path, cgroup: &Path, options: &Options) -> Child {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_longship-agent"));
    let guest = built.parent().unwrap().join("../guest");
    // Another build of it can be named, to measure.
    let agent = std::env::var_os("LONGSHIP_AGENT").map_or(built, PathBuf::from);
    let kernel = options.kernel.clone();
    let mut command = Command::new(agent);
    command
        .arg("--listen")
        .arg(format!("unix:{}", folder.join("agent.sock").display()))
        .arg("--runtime-dir")
        .arg(folder.join("run"))
        .arg("--kernel")
        .arg(kernel.unwrap_or_else(|| guest.join("vmlinux")))
        .arg("--initramfs")
        .arg(guest.join("initramfs.cpio"))
        .arg("--cgroup")
        .arg(cgroup)
        .args(&options.flags);
    if let Some(vmm) = std::env::var_os("LONGSHIP_VMM") {
        command.arg("--vmm").arg(vmm);
    }
    command.spawn().unwrap()
}

async fn connect(folder: &Path) -> AgentClient<Channel> {
    let address = format!("unix:{}", folder.join("agent.sock").display());
    let give_up = tokio::time::Instant::now() + PATIENCE;
    loop {
        let endpoint = Endpoint::from_shared(address.clone()).unwrap();
        if let Ok(channel) = endpoint.connect().await {
            return AgentClient::new(channel);
        }
        assert!(
            tokio::time::Instant::now() < give_up,
            "the agent does not answer"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn sandbox(id: &str, generation: u64) -> PrepareSandboxRequest {
    PrepareSandboxRequest {
        id: id.into(),
        generation,
        vcpus: 1,
        memory_bytes: 128 << 20,
        cpu_millis: 500,
        profile: 0,
    }
}

pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

pub fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}
