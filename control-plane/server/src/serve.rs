//! Starting and stopping the server.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use longship_proto::FILE_DESCRIPTOR_SET;
use longship_proto::control::v1::capacity_server::CapacityServer;
use longship_proto::control::v1::cards_server::CardsServer;
use longship_proto::control::v1::image_caches_server::ImageCachesServer;
use longship_proto::control::v1::inventory_server::InventoryServer;
use longship_proto::control::v1::networks_server::NetworksServer;
use longship_proto::control::v1::pods_server::PodsServer;
use longship_proto::control::v1::tenants_server::TenantsServer;
use longship_scheduler::Policy;
use longship_store::{
    EtcdOptions, EtcdStore, Expect, RedbOptions, RedbStore, Store, StoreError, Transaction,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tonic_health::server::HealthReporter;

use crate::api::{Control, PodsService};
use crate::auth::{AuthLayer, Tokens};
use crate::backup;
use crate::intake::IntakeLayer;
use crate::leader::{Beginning, Candidate, Duty, Office, Role};
use crate::listen::{self, TlsError, TlsFiles};
use crate::reconcile::{self, State};
use crate::records::{self, RecordError};
use crate::tenancy::{Tenancy, Unclaimed};
use crate::watch::Feed;

/// The largest message that a card may send, in bytes.
const MAX_MESSAGE: usize = 4 << 20;
/// The largest message of other calls than those about pods, in bytes.
const MAX_REQUEST: usize = 256 << 10;
/// The largest message that a card gets, in bytes: what it is told comes in parts of
/// about a MiB.
const MAX_ASSIGNMENTS: usize = 8 << 20;
/// The largest headers of a call, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// Streams at once on one connection: watches, and cards that share one.
const MAX_STREAMS: u32 = 4096;
/// Calls of one connection that wait for their answer at once: as many messages may be
/// on their way in.
const MAX_CALLS: usize = 512;
/// How long a call may take until its answer begins, its message included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Cards that may register at once: each may say a lot, and all come back at once.
const REGISTRATIONS: usize = 256;
/// How long calls may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a silent connection is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The embedded store's name in its directory.
pub(crate) const STORE_FILE: &str = "control.redb";

/// Length of the token key in bytes: that of the hash (RFC 2104, section 3).
const TOKEN_KEY_BYTES: usize = 32;

/// How one of several replicas runs.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Where etcd's members serve clients: `http://HOST:PORT`.
    pub etcd: Vec<String>,
    /// Where clients and cards reach this replica.
    pub advertise: String,
    /// How long a leader may be silent before another one leads; whole seconds.
    pub leader_lease: Duration,
}

/// How a server runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where its state lies; created where it does not exist.
    pub state_dir: PathBuf,
    /// One of several, with the state in etcd instead.
    pub replica: Option<Replica>,
    /// Its keys. Without them the server is open: whoever says nothing of themselves may
    /// do everything.
    pub tls: Option<TlsFiles>,
    /// It may be open on an address that others than this machine reach.
    pub insecure_open: bool,
    /// Connections at once.
    pub max_connections: usize,
    /// How long a connection may take for its TLS handshake, and then for the first call
    /// of somebody who is known.
    pub stranger_patience: Duration,
    /// How long a card may be silent before its host counts as unreachable.
    pub lease: Duration,
    /// How long after that the host's pods are given up, and begin again elsewhere.
    pub fence_after: Duration,
    /// Which host a pod gets.
    pub policy: Policy,
    /// How much history is kept for watchers.
    pub history: RedbOptions,
    /// How long a watcher may leave an event unread before its watch ends.
    pub watcher_patience: Duration,
    /// How often a watcher that asks for it is told that nothing changes.
    pub bookmark_interval: Duration,
}

impl Config {
    /// The usual settings.
    #[must_use]
    pub fn new(listen: SocketAddr, state_dir: PathBuf) -> Self {
        Self {
            listen,
            state_dir,
            replica: None,
            tls: None,
            insecure_open: false,
            max_connections: 20_000,
            stranger_patience: Duration::from_secs(10),
            lease: Duration::from_secs(10),
            fence_after: Duration::from_secs(60),
            policy: Policy::default(),
            history: RedbOptions::default(),
            watcher_patience: Duration::from_secs(60),
            bookmark_interval: Duration::from_secs(10),
        }
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be had.
    #[error("--listen {address}: {}", reason(error))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// Everybody could do everything.
    #[error(
        "--listen {0}: others than this machine reach it: give --tls-cert, --tls-key and \
         --client-ca, or --insecure-open"
    )]
    Open(SocketAddr),
    /// A key cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The state's directory cannot be used.
    #[error("--state {}: {}", path.display(), reason(error))]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The store cannot be used.
    #[error("--state: {0}")]
    Store(#[from] StoreError),
    /// etcd cannot be used.
    #[error("--etcd: {0}")]
    Etcd(StoreError),
    /// What lies in the store cannot be used.
    #[error("--state: {0}")]
    Record(#[from] RecordError),
}

/// The system's reason without its number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "address in use".into(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "not a directory".into(),
        _ => error.to_string(),
    }
}

/// Why a server ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A write failed; what is in memory is not what is on disk.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    /// The listener failed.
    #[error("serving: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The reflection service does not take our own descriptors.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// What lies in the store cannot be used.
    #[error("{0}")]
    Load(Box<StartError>),
    /// A fault of the server itself.
    #[error("the reconciler ended without a reason")]
    Reconciler,
}

/// A server that listens already, and has read its state.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: listen::Limits,
    service: Service,
}

/// All of a server but its listener.
pub struct Service {
    store: Arc<dyn Store>,
    decider: Decider,
    tokens: Arc<Tokens>,
    tenancy: watch::Receiver<Arc<Tenancy>>,
    open: bool,
    feed: Arc<Feed>,
    watcher_patience: Duration,
    bookmark_interval: Duration,
}

/// Who decides.
enum Decider {
    /// This process, always.
    Alone(Box<State>, Vec<u8>),
    /// This process when its turn comes.
    Candidate(Candidate, Beginning),
}

impl Server {
    /// Takes the address, opens the store and reads everything back.
    ///
    /// # Errors
    /// Any [`StartError`].
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let address = config.listen;
        if config.tls.is_none() && !address.ip().is_loopback() && !config.insecure_open {
            return Err(StartError::Open(address));
        }
        let tls = config.tls.as_ref().map(listen::acceptor).transpose()?;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| StartError::Listen { address, error })?;
        let service = match &config.replica {
            Some(replica) => Service::join(config, replica).await?,
            None => {
                create_private(&config.state_dir).map_err(|error| StartError::StateDir {
                    path: config.state_dir.clone(),
                    error,
                })?;
                let path = config.state_dir.join(STORE_FILE);
                let store = Arc::new(RedbStore::open(&path, config.history)?);
                if let Err(error) = backup::offer(&config.state_dir, &store) {
                    tracing::warn!(%error, "no backup can be taken while this server runs");
                }
                Service::load(config, store).await?
            }
        };
        Ok(Self {
            listener,
            tls,
            limits: listen::Limits {
                connections: config.max_connections,
                patience: config.stranger_patience,
            },
            service,
        })
    }

    /// The address that it really has.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` completes, then ends all streams and closes the store.
    ///
    /// # Errors
    /// Any [`RunError`], where it ends by itself.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let incoming = listen::connections(self.listener, self.tls, self.limits);
        self.service.run(incoming, stop).await
    }
}

impl Service {
    /// Reads everything back from the store. Of the configuration, what is of listener
    /// and directory does not matter here.
    ///
    /// # Errors
    /// [`StartError::Store`], [`StartError::Record`].
    pub async fn load(config: &Config, store: Arc<dyn Store>) -> Result<Self, StartError> {
        let beginning = beginning(config);
        let (state, token_key) = beginning.load(&*store).await?;
        let decider = Decider::Alone(Box::new(state), token_key);
        let (tokens, tenancy) = (beginning.tokens, beginning.tenancy.subscribe());
        Self::new(config, store, decider, tokens, tenancy).await
    }

    /// Joins the replicas: connects to etcd, and waits for its turn when it runs.
    async fn join(config: &Config, replica: &Replica) -> Result<Self, StartError> {
        let options = EtcdOptions {
            history: config.history,
            ..EtcdOptions::new(replica.etcd.clone())
        };
        let store = EtcdStore::connect(options)
            .await
            .map_err(StartError::Etcd)?;
        let store = Arc::new(store);
        let candidate = Candidate {
            store: Arc::clone(&store),
            advertise: replica.advertise.clone(),
            ttl: replica.leader_lease,
        };
        let beginning = beginning(config);
        beginning.tokens.reload(&*store).await?;
        let known = Tenancy::load(&*store, beginning.unclaimed).await?;
        beginning.tenancy.send_replace(Arc::new(known));
        let (tokens, tenancy) = (Arc::clone(&beginning.tokens), beginning.tenancy.subscribe());
        let decider = Decider::Candidate(candidate, beginning);
        Self::new(config, store, decider, tokens, tenancy).await
    }

    async fn new(
        config: &Config,
        store: Arc<dyn Store>,
        decider: Decider,
        tokens: Arc<Tokens>,
        tenancy: watch::Receiver<Arc<Tenancy>>,
    ) -> Result<Self, StartError> {
        let history = (config.history.log_transactions, config.history.log_bytes);
        let feed = Feed::start(Arc::clone(&store), history).await?;
        Ok(Self {
            store,
            feed,
            decider,
            tokens,
            tenancy,
            open: config.tls.is_none(),
            watcher_patience: config.watcher_patience,
            bookmark_interval: config.bookmark_interval,
        })
    }

    /// Serves what comes in until `stop` completes, then ends all streams and closes the
    /// store.
    ///
    /// # Errors
    /// Any [`RunError`], where it ends by itself.
    pub async fn run<I, E>(
        self,
        incoming: impl Stream<Item = Result<I, E>>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), RunError>
    where
        I: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let (duty, current_duty) = watch::channel(Duty::Waits);
        let (stopping, stopped) = watch::channel(false);
        let leader = match &self.decider {
            Decider::Alone(..) => None,
            Decider::Candidate(candidate, _) => Some(candidate.store.leader()),
        };
        let role = Role {
            duty: current_duty,
            leader,
        };
        let control = Control {
            role: role.clone(),
            store: Arc::clone(&self.store),
            sessions: Arc::new(AtomicU64::new(1)),
            registrations: Arc::new(Semaphore::new(REGISTRATIONS)),
            tenancy: self.tenancy,
            tokens: Arc::clone(&self.tokens),
            stopping: stopped.clone(),
            feed: self.feed,
            watcher_patience: self.watcher_patience,
            bookmark_interval: self.bookmark_interval,
        };
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<PodsServer<Control>>().await;
        health.set_serving::<InventoryServer<Control>>().await;
        health.set_serving::<TenantsServer<Control>>().await;
        health.set_serving::<CapacityServer<Control>>().await;
        health.set_serving::<NetworksServer<Control>>().await;
        health.set_serving::<ImageCachesServer<Control>>().await;
        tokio::spawn(tell_cards(role.duty, health));
        let pods = PodsService::new(control.clone());
        let inventory =
            InventoryServer::new(control.clone()).max_decoding_message_size(MAX_REQUEST);
        let tenants = TenantsServer::new(control.clone()).max_decoding_message_size(MAX_REQUEST);
        let capacity = CapacityServer::new(control.clone()).max_decoding_message_size(MAX_REQUEST);
        let images = ImageCachesServer::new(control.clone()).max_decoding_message_size(MAX_REQUEST);
        let networks = NetworksServer::new(control.clone()).max_decoding_message_size(MAX_REQUEST);
        let cards = CardsServer::new(control)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_ASSIGNMENTS);
        let mut until = stopped.clone();
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .http2_max_header_list_size(MAX_HEADERS)
            .max_concurrent_streams(MAX_STREAMS)
            .concurrency_limit_per_connection(MAX_CALLS)
            .timeout(CALL_TIMEOUT)
            .layer(AuthLayer {
                tokens: self.tokens,
                open: self.open,
            })
            .layer(IntakeLayer::new())
            .add_service(health_service)
            .add_service(reflection)
            .add_service(pods)
            .add_service(inventory)
            .add_service(tenants)
            .add_service(capacity)
            .add_service(networks)
            .add_service(images)
            .add_service(cards)
            .serve_with_incoming_shutdown(incoming, async move {
                let _ = until.wait_for(|stopping| *stopping).await;
            });
        tokio::pin!(serving);
        let mut deciding = match self.decider {
            Decider::Alone(state, token_key) => {
                let (commands, queue) = mpsc::channel(reconcile::QUEUE);
                duty.send_replace(Duty::Leads(Office::alone(commands, token_key)));
                let run = reconcile::run(*state, self.store, queue);
                let mut stopped = stopped.clone();
                tokio::spawn(async move {
                    tokio::pin!(run);
                    let ended = tokio::select! {
                        ended = &mut run => Some(ended),
                        _ = stopped.wait_for(|stopping| *stopping) => None,
                    };
                    // It ends with the last call; the store closes with it.
                    duty.send_replace(Duty::Waits);
                    let ended = match ended {
                        Some(ended) => ended,
                        None => run.await,
                    };
                    ended.map_err(RunError::Store)
                })
            }
            Decider::Candidate(candidate, beginning) => {
                drop(self.store);
                tokio::spawn(candidate.run(beginning, duty, stopped.clone()))
            }
        };

        let ended = tokio::select! {
            () = stop => Ok(()),
            served = &mut serving => return Ok(served?),
            ended = &mut deciding => match ended {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(RunError::Reconciler),
            },
        };
        stopping.send_replace(true);
        if tokio::time::timeout(STOP_TIMEOUT, serving).await.is_err() {
            tracing::warn!("some calls did not end in time");
        }
        if ended.is_ok() {
            let _ = tokio::time::timeout(STOP_TIMEOUT, deciding).await;
        }
        ended
    }
}

/// How this process begins to decide.
fn beginning(config: &Config) -> Beginning {
    let unclaimed = match config.tls {
        None => Unclaimed::Defaults,
        Some(_) => Unclaimed::Nobodys,
    };
    Beginning {
        policy: config.policy,
        lease: config.lease,
        fence_after: config.fence_after,
        unclaimed,
        tokens: Arc::default(),
        tenancy: watch::Sender::new(Arc::new(Tenancy::new(unclaimed))),
    }
}

/// Says whether cards are served here, which only the leader does.
async fn tell_cards(mut duty: watch::Receiver<Duty>, health: HealthReporter) {
    loop {
        let leads = matches!(&*duty.borrow_and_update(), Duty::Leads(_));
        match leads {
            true => health.set_serving::<CardsServer<Control>>().await,
            false => health.set_not_serving::<CardsServer<Control>>().await,
        }
        if duty.changed().await.is_err() {
            return;
        }
    }
}

/// Creates a directory that only its owner may look into.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// The key for access tokens: made once, the same through restarts.
pub(crate) async fn token_key(store: &dyn Store) -> Result<Vec<u8>, StartError> {
    if let Some(object) = store.get(records::SECRET, records::TOKEN_KEY).await? {
        if object.value.len() < TOKEN_KEY_BYTES {
            return Err(RecordError::new(&object, "the key is too short").into());
        }
        return Ok(object.value);
    }
    let key = rand::random::<[u8; TOKEN_KEY_BYTES]>().to_vec();
    let transaction = Transaction::new();
    let transaction = transaction.put(
        records::SECRET,
        records::TOKEN_KEY,
        key.clone(),
        Expect::Absent,
    );
    store.commit(transaction).await?;
    Ok(key)
}
