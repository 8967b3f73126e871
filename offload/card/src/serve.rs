//! Brings a card up, and down again.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longship_eni::BridgeEnis;
use longship_image::{ImageStore, StoreConfig};
use longship_proto::Failure;
use longship_proto::card::v1::card_admin_server::CardAdminServer;
use longship_proto::card::v1::pod_streams_server::PodStreamsServer;
use longship_proto::control::v1::{HostCapacity, ImagePullPolicy, Register};
use longship_volume::{ScratchStore, VhostUserVolumes};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Endpoint, Server};
use tracing::{info, warn};

use crate::agent::AgentLink;
use crate::api::{Admin, Streams};
use crate::card::Card;
use crate::images::Images;
use crate::journal::Journal;
use crate::keeper::{self, Keeper};
use crate::link::Link;
use crate::logs::LogStore;
use crate::reconciler::Reconciler;
use crate::status::Reports;
use crate::tls::{Tls, TlsFiles};
use crate::turns::Turns;
use crate::usage;

/// How long the card waits for its agent when it starts.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);
/// How long the control plane may be silent while something is expected of it.
const CONTROL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a card that ends tries to give everything back.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// What a card is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Control plane, `http://host:port` or `https://host:port`.
    pub control: String,
    /// Agent, `unix:/path` or `http://host:port`.
    pub agent: String,
    /// Where clients reach the pods' streams.
    pub listen: SocketAddr,
    /// The card's keys; needed where the control plane is https. With them, clients
    /// reach the streams by https too.
    pub tls: Option<TlsFiles>,
    /// The address that clients are told; empty: `http://` (or `https://`) and `listen`.
    pub endpoint: String,
    /// Path of the operators' socket.
    pub admin: PathBuf,
    /// What survives a restart: journal, images, scratch disks, logs.
    pub state: PathBuf,
    /// What does not: sockets.
    pub runtime_dir: PathBuf,
    /// This host's name.
    pub host: String,
    /// This host's zone.
    pub zone: String,
    /// The most pods at once.
    pub max_pods: u32,
    /// Pods that may start at once; `None`: as fits this machine.
    pub parallel_starts: Option<usize>,
    /// Size of a pod's scratch disk in bytes.
    pub scratch_bytes: u64,
    /// The largest image in bytes, flattened.
    pub max_image_bytes: u64,
    /// Registries spoken to without TLS, `host:port`.
    pub insecure_registries: Vec<String>,
}

/// Why a card cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A flag's value cannot be used.
    #[error("{flag} {value}: {reason}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// Why it is of no use.
        reason: String,
    },
    /// The journal cannot be relied on any more.
    #[error("{0}; start the card again")]
    Journal(String),
    /// The agent does not answer, or what a former card left cannot be released.
    #[error("{0}")]
    Failure(#[from] Failure),
}

pub(crate) fn flag(
    flag: &'static str,
    value: impl std::fmt::Display,
    reason: impl std::fmt::Display,
) -> StartError {
    StartError::Flag {
        flag,
        value: value.to_string(),
        reason: reason.to_string(),
    }
}

/// Runs a card until `stop` resolves, then gives everything back.
///
/// # Errors
/// [`StartError`], before anything was taken.
pub async fn serve(config: Config, stop: impl Future<Output = ()>) -> Result<(), StartError> {
    let tls = config.tls.as_ref().map(Tls::read).transpose()?;
    let control = controls(&config.control, tls.as_ref())?;
    let mut server =
        crate::tls::server(tls.as_ref()).map_err(|e| flag("--tls-cert", tls_cert(&config), e))?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|e| flag("--listen", config.listen, e))?;
    for (name, directory) in [
        ("--state", &config.state),
        ("--runtime-dir", &config.runtime_dir),
    ] {
        std::fs::create_dir_all(directory).map_err(|e| flag(name, directory.display(), e))?;
    }
    let admin = bind_unix(&config.admin)
        .await
        .map_err(|e| flag("--admin", config.admin.display(), e))?;
    let agent = AgentLink::new(&config.agent)?;
    let host = agent.host(AGENT_PATIENCE).await?;
    let card = Arc::new(open(&config, agent, Turns::new(config.parallel_starts))?);
    let formatting = card.clone();
    // Until it is done the first pod waits, as it would without.
    tokio::task::spawn_blocking(move || {
        if let Err(error) = formatting.volumes.format_ahead(formatting.scratch_bytes) {
            warn!(%error, "no scratch disk is formatted ahead");
        }
    });

    let reconciler = Arc::new(Reconciler::begin(card.clone()).await);
    let (token_key, key) = watch::channel(None);
    let bound = listener
        .local_addr()
        .map_err(|e| flag("--listen", config.listen, e))?;
    let endpoint = match config.endpoint.as_str() {
        "" if tls.is_some() => format!("https://{bound}"),
        "" => format!("http://{bound}"),
        given => given.to_owned(),
    };
    let register = Register {
        host: config.host.clone(),
        zone: config.zone.clone(),
        capacity: Some(HostCapacity {
            cpu_millis: host.cpus.saturating_mul(1000),
            memory_bytes: host.memory_bytes,
            pods: config.max_pods,
            ..HostCapacity::default()
        }),
        endpoint,
        held: Vec::new(),
        family: String::new(),
    };
    let keeper = Arc::new(Keeper::new(keeper::RETRY));
    let link = Link {
        keeper: keeper.clone(),
        endpoints: control,
        register,
        reconciler: reconciler.clone(),
        reports: card.reports.clone(),
        token_key,
    };
    let streams = Streams::new(card.clone(), reconciler.clone(), key);
    let clients = server
        .add_service(PodStreamsServer::new(streams))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let base_bytes = usage::own_bytes().map_err(|e| flag("--state", "/proc/self", e))?;
    let admin_service = Admin::new(card.clone(), reconciler.clone(), base_bytes);
    let operators = Server::builder()
        .add_service(CardAdminServer::new(admin_service))
        .serve_with_incoming(UnixListenerStream::new(admin));
    info!(host = config.host, zone = config.zone, listen = %bound, "the card is up");
    tokio::select! {
        served = clients => served.map_err(|e| flag("--listen", bound, e))?,
        served = operators => served.map_err(|e| flag("--admin", config.admin.display(), e))?,
        () = link.keep() => {}
        () = keeper.keep(|image| keep_image(&card, image)) => {}
        reason = card.journal.failed() => return Err(StartError::Journal(reason)),
        () = stop => {}
    }
    info!("the card ends, giving back what its pods hold");
    if tokio::time::timeout(END_PATIENCE, reconciler.end())
        .await
        .is_err()
    {
        // It is in the journal: the next card goes on with it.
        warn!("not everything could be given back");
    }
    let _ = std::fs::remove_file(&config.admin);
    Ok(())
}

/// Where the control plane is: one, or several replicas, separated by commas.
fn controls(addresses: &str, tls: Option<&Tls>) -> Result<Vec<Endpoint>, StartError> {
    let addresses = addresses.split(',');
    addresses.map(|address| control(address, tls)).collect()
}

/// One of them, and who this card is to it. One that hangs counts as gone.
fn control(address: &str, tls: Option<&Tls>) -> Result<Endpoint, StartError> {
    let wrong = |e: &dyn std::fmt::Display| flag("--control", address, e);
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|e| wrong(&e))?;
    let endpoint = endpoint
        .connect_timeout(CONTROL_PATIENCE)
        .http2_keep_alive_interval(CONTROL_PATIENCE)
        .keep_alive_timeout(CONTROL_PATIENCE);
    if endpoint.uri().scheme_str() != Some("https") {
        return Ok(endpoint);
    }
    let needed = "https needs --tls-ca, --tls-cert and --tls-key";
    let tls = tls.ok_or_else(|| wrong(&needed))?;
    tls.client(endpoint)
        .map_err(|e| flag("--tls-cert", address, e))
}

fn tls_cert(config: &Config) -> String {
    let cert = config.tls.as_ref().map(|tls| tls.cert.display());
    cert.map(|path| path.to_string()).unwrap_or_default()
}

fn open(config: &Config, agent: AgentLink, turns: Turns) -> Result<Card, StartError> {
    let state = |e: &dyn std::fmt::Display| flag("--state", config.state.display(), e);
    let images = ImageStore::open(StoreConfig {
        directory: config.state.join("images"),
        max_image_bytes: config.max_image_bytes,
        insecure_registries: config.insecure_registries.clone(),
    });
    let scratch = ScratchStore::open(config.state.join("scratch"));
    let journal = Journal::open(&config.state.join("journal")).map_err(|e| state(&e))?;
    let journal = Arc::new(journal);
    Ok(Card {
        images: Images::new(images.map_err(|e| state(&e))?, journal.clone()),
        volumes: Arc::new(VhostUserVolumes::new(scratch.map_err(|e| state(&e))?)),
        enis: BridgeEnis::new(),
        agent,
        turns,
        journal,
        logs: LogStore::open(config.state.join("logs")).map_err(|e| state(&e))?,
        reports: Arc::new(Reports::default()),
        scratch: config.state.join("scratch/disks"),
        runtime_dir: config.runtime_dir.clone(),
        scratch_bytes: config.scratch_bytes,
    })
}

/// Has an image; one that a pod waits for too is pulled once for both.
async fn keep_image(card: &Card, image: String) -> Result<(), Failure> {
    let got = card.images.get(&image, ImagePullPolicy::Unspecified).await;
    got.map(|_| ()).map_err(|(_, failure)| failure)
}

/// Binds a UNIX socket; one that a killed card left is taken over, one that
/// answers is not.
async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::from(io::ErrorKind::AddrInUse));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(path)
}
