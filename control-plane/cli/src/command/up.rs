//! `longship up`

mod daemon;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use longship_proto::agent::v1::GetHostRequest;
use longship_proto::agent::v1::agent_client::AgentClient;
use longship_proto::control::v1::{Host, HostState};
use tonic::transport::ClientTlsConfig;

use crate::command::up::daemon::{Daemon, Daemons};
use crate::error::CliError;
use crate::manifest::show_cpu;
use crate::server::{Server, ServerAddress, connect};
use crate::show;
use crate::signals::EndSignals;

/// For a daemon to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// Between looks whether it is.
const LOOK: Duration = Duration::from_millis(50);

/// Run control plane, card and agent on this machine until Ctrl-C or SIGTERM.
///
/// They run as child processes; what they log comes on standard error. Where one ends by
/// itself, the others are ended too, and this command exits with 1.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Folder for what outlives a restart.
    #[arg(long, default_value = "/var/lib/longship")]
    state: PathBuf,
    /// Folder for sockets.
    #[arg(long, default_value = "/run/longship")]
    runtime_dir: PathBuf,
    /// Where clients reach the control plane.
    #[arg(long, default_value = "127.0.0.1:7700")]
    listen: String,
    /// Where clients reach the card's streams.
    #[arg(long, default_value = "127.0.0.1:7702")]
    card_listen: String,
    /// This host's name; where it is not given, the machine's.
    #[arg(long)]
    host: Option<String>,
    /// This host's zone.
    #[arg(long, default_value = "local")]
    zone: String,
    /// Registry that is reached without TLS; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    insecure_registry: Vec<String>,
    /// The largest image in bytes, flattened; where it is not given, the card's default.
    #[arg(long, value_name = "BYTES")]
    max_image_bytes: Option<u64>,
    /// Folder with the guest's vmlinux and initramfs.cpio; where it is not given, `guest`
    /// beside this program, above it, or /usr/lib/longship/guest.
    #[arg(long)]
    guest: Option<PathBuf>,
    /// Guest kernel, instead of the folder's.
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Guest's initramfs, instead of the folder's.
    #[arg(long)]
    initramfs: Option<PathBuf>,
    /// The KVM device.
    #[arg(long, default_value = "/dev/kvm")]
    kvm: PathBuf,
    /// The cgroup for sandboxes.
    #[arg(long, default_value = "/sys/fs/cgroup/longship")]
    cgroup: PathBuf,
    /// Memory that pods may be promised, in bytes; where it is not given, seven eighths of
    /// what is free. It may be more than there is: a pod is promised its flavor's memory and
    /// takes what it touches, which for many idle pods is little. Where they come to use
    /// what they were promised, the host runs out of memory and ends some; `longship top`
    /// shows what is left.
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// CPUs that pods may be promised; where it is not given, all. It may be more than there
    /// are: pods then share them.
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// The most pods at once; where it is not given, the card's default.
    #[arg(long, value_name = "N")]
    max_pods: Option<u32>,
    /// Paused clones that wait for a pod, of each template; where it is not given, the
    /// agent's default.
    #[arg(long, value_name = "N")]
    warm_pool: Option<u32>,
    /// Boot every pod's machine by itself instead of cloning it from a template.
    #[arg(long)]
    no_templates: bool,
}

/// Everything that was decided before the first daemon starts.
struct Plan {
    control: Daemon,
    agent: Daemon,
    card: Daemon,
    host: String,
    server: ServerAddress,
    agent_address: String,
}

impl Up {
    pub(crate) async fn run(self) -> Result<u8, CliError> {
        let plan = self.plan()?;
        let mut signals = EndSignals::catch()?;
        let mut daemons = Daemons::default();
        let outcome = tokio::select! {
            outcome = self.serve(plan, &mut daemons) => outcome,
            _ = signals.next() => Ok(()),
        };
        // Card, agent, control: each ends before what it speaks to.
        let stopped = daemons.stop().await;
        outcome?;
        stopped?;
        Ok(0)
    }

    fn plan(&self) -> Result<Plan, CliError> {
        let exe = std::env::current_exe()
            .map_err(|error| CliError::Other(format!("find this program: {error}")))?;
        let folder = exe.parent().unwrap_or(Path::new("/"));
        let kernel = self.guest_file(&self.kernel, folder, "vmlinux", "--kernel")?;
        let initramfs =
            self.guest_file(&self.initramfs, folder, "initramfs.cpio", "--initramfs")?;
        let host = match &self.host {
            Some(host) => host.clone(),
            None => machine_name()?,
        };
        let server: ServerAddress = format!("http://{}", self.listen)
            .parse()
            .map_err(|error| CliError::Other(format!("--listen {}: {error}", self.listen)))?;
        let agent_socket = self.runtime_dir.join("agent.sock");
        let agent_address = format!("unix:{}", agent_socket.display());
        for folder in [&self.state, &self.runtime_dir] {
            std::fs::create_dir_all(folder).map_err(|error| CliError::File {
                path: folder.clone(),
                error,
            })?;
        }

        let mut control = Daemon::new("longship-control", folder)?;
        control.flag("--listen", &self.listen);
        control.flag("--state", self.state.join("control"));

        let mut agent = Daemon::new("longship-agent", folder)?;
        agent.flag("--listen", &agent_address);
        agent.flag("--runtime-dir", self.runtime_dir.join("agent"));
        agent.flag("--kernel", kernel);
        agent.flag("--initramfs", initramfs);
        agent.flag("--kvm", &self.kvm);
        agent.flag("--cgroup", &self.cgroup);
        if let Some(memory) = self.memory {
            agent.flag("--memory", memory.to_string());
        }
        if let Some(cpus) = self.cpus {
            agent.flag("--cpus", cpus.to_string());
        }

        if let Some(clones) = self.warm_pool {
            agent.flag("--warm-pool", clones.to_string());
        }
        if self.no_templates {
            agent.switch("--no-templates");
        }

        let mut card = Daemon::new("longship-card", folder)?;
        card.flag("--control", format!("http://{}", self.listen));
        card.flag("--agent", &agent_address);
        card.flag("--listen", &self.card_listen);
        let admin = self.runtime_dir.join("card.sock");
        card.flag("--admin", format!("unix:{}", admin.display()));
        card.flag("--state", self.state.join("card"));
        card.flag("--runtime-dir", self.runtime_dir.join("card"));
        card.flag("--host", &host);
        card.flag("--zone", &self.zone);
        for registry in &self.insecure_registry {
            card.flag("--insecure-registry", registry);
        }
        if let Some(pods) = self.max_pods {
            card.flag("--max-pods", pods.to_string());
        }
        if let Some(bytes) = self.max_image_bytes {
            card.flag("--max-image-bytes", bytes.to_string());
        }
        Ok(Plan {
            control,
            agent,
            card,
            host,
            server,
            agent_address,
        })
    }

    fn guest_file(
        &self,
        given: &Option<PathBuf>,
        folder: &Path,
        name: &str,
        flag: &str,
    ) -> Result<PathBuf, CliError> {
        if let Some(path) = given {
            return Ok(path.clone());
        }
        let folders = match &self.guest {
            Some(folder) => vec![folder.clone()],
            None => vec![
                folder.join("guest"),
                folder.join("../guest"),
                PathBuf::from("/usr/lib/longship/guest"),
            ],
        };
        let candidates: Vec<PathBuf> = folders.iter().map(|folder| folder.join(name)).collect();
        candidates
            .iter()
            .find(|path| path.is_file())
            .cloned()
            .ok_or_else(|| {
                let looked: Vec<String> = candidates
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                CliError::Other(format!(
                    "{flag}: no {name} found (looked for {}); `make guest` builds it",
                    looked.join(", ")
                ))
            })
    }

    /// Starts the three in order and waits for the end of any.
    async fn serve(&self, plan: Plan, daemons: &mut Daemons) -> Result<(), CliError> {
        daemons.start(plan.control)?;
        let mut server = daemons.or_died(control_ready(&plan.server)).await?;
        daemons.start(plan.agent)?;
        daemons.or_died(agent_ready(&plan.agent_address)).await?;
        daemons.start(plan.card)?;
        let host = daemons.or_died(card_ready(&mut server, &plan.host)).await?;
        self.announce(&host)?;
        daemons.or_died(std::future::pending()).await
    }

    fn announce(&self, host: &Host) -> Result<(), CliError> {
        let capacity = host.capacity.unwrap_or_default();
        show::print(&format!(
            "control plane  http://{}\n\
             card           {}, operators: unix:{}\n\
             agent          unix:{}\n\
             state          {}\n\
             host {} in zone {} is ready: {} CPU and {} MiB for pods\n",
            self.listen,
            host.card_endpoint,
            self.runtime_dir.join("card.sock").display(),
            self.runtime_dir.join("agent.sock").display(),
            self.state.display(),
            host.name,
            host.zone,
            show_cpu(capacity.cpu_millis),
            capacity.memory_bytes >> 20,
        ))
    }
}

async fn control_ready(address: &ServerAddress) -> Result<Server, CliError> {
    retry("the control plane", async || {
        let mut server = Server::connect(address).await?;
        server.hosts().await?;
        Ok(Some(server))
    })
    .await
}

async fn agent_ready(address: &str) -> Result<(), CliError> {
    retry("the agent", async || {
        let channel = connect("the agent", address, "", ClientTlsConfig::new()).await?;
        AgentClient::new(channel)
            .get_host(GetHostRequest {})
            .await?;
        Ok(Some(()))
    })
    .await
}

async fn card_ready(server: &mut Server, name: &str) -> Result<Host, CliError> {
    let server = &*server;
    retry("the card", async || {
        let hosts = server.clone().hosts().await?;
        Ok(hosts
            .into_iter()
            .find(|host| host.name == name && host.state() == HostState::Ready))
    })
    .await
}

/// Tries until there is an answer, up to [`READY_PATIENCE`].
async fn retry<T>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<Option<T>, CliError>,
) -> Result<T, CliError> {
    let give_up = tokio::time::Instant::now() + READY_PATIENCE;
    loop {
        let outcome = attempt().await;
        if let Ok(Some(ready)) = outcome {
            return Ok(ready);
        }
        if tokio::time::Instant::now() > give_up {
            let why = outcome
                .err()
                .map(|error| format!(": {error}"))
                .unwrap_or_default();
            return Err(CliError::Other(format!(
                "{what} is not ready after {} s{why}",
                READY_PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn machine_name() -> Result<String, CliError> {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| CliError::Other("--host: this machine has no name".to_owned()))
}
