//! The control plane's process.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use longship_control::{Config, Replica, Server, TlsFiles, operator_token};
use longship_store::Backup;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Longship's control plane: the API, the scheduler, and what they remember.
///
/// Without --tls-cert, --tls-key and --client-ca the API is open: whoever reaches its
/// address may create and delete pods of all tenants. So it listens on the loopback
/// address then, unless --insecure-open is given. With them, clients show a token, and
/// cards and operators a certificate that the CA has signed.
#[derive(Debug, Parser)]
#[command(
    name = "longship-control",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Address and port for clients and cards.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// Where the state lies: in a file of this process, or in etcd, for several replicas.
    #[arg(long, value_enum, default_value_t = StoreKind::Redb)]
    store: StoreKind,
    /// Directory of the embedded store; created where it does not exist.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "etcd",
        conflicts_with = "etcd"
    )]
    state: Option<PathBuf>,
    /// Where etcd's members serve clients; several, separated by commas.
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        required_if_eq("store", "etcd")
    )]
    etcd: Vec<String>,
    /// Where clients and cards reach this replica.
    #[arg(
        long,
        value_name = "URL",
        required_if_eq("store", "etcd"),
        requires = "etcd"
    )]
    advertise: Option<String>,
    /// How long a leader may be silent before another one leads, in seconds. etcd has a
    /// least, by default 2.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    leader_lease: u64,
    /// The server's certificate (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "client_ca"])]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The CA that signs cards' and operators' certificates (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// Let everybody who reaches the address do everything, whichever address it is.
    #[arg(long, conflicts_with = "tls_cert")]
    insecure_open: bool,
    /// Connections at once; the others wait.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    max_connections: usize,
    /// How long a host whose card is silent has been unknown before its pods are given
    /// up and begin again elsewhere.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    fence_after: u32,
}

#[derive(Debug, Subcommand)]
enum Action {
    Token(Token),
    Backup(TakeBackup),
    Restore(Restore),
}

/// Write all that the embedded store holds, as it is at one moment, into a new file. The
/// server may run meanwhile.
#[derive(Debug, Args)]
struct TakeBackup {
    /// Directory of the embedded store.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The file; it holds secrets, and only its owner may read it.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Make a new embedded store of a backup. Watches begin anew.
#[derive(Debug, Args)]
struct Restore {
    /// Directory of the store; it must be empty, or not exist.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Make an operator's token, while the server does not run, and print it. While it runs,
/// operators make tokens by `longship create token`.
#[derive(Debug, Args)]
struct Token {
    /// Directory of the embedded store; created where it does not exist.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// What it may do.
    #[arg(long, value_enum)]
    role: TokenRole,
    /// How many days it is good for.
    #[arg(long, value_name = "N", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=366))]
    days: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TokenRole {
    /// Everything, of all tenants.
    Operator,
}

impl Token {
    async fn make(&self) -> anyhow::Result<()> {
        let TokenRole::Operator = self.role;
        let ttl = Duration::from_secs(u64::from(self.days) * 24 * 3600);
        println!("{}", operator_token(&self.state, ttl).await?);
        Ok(())
    }
}

/// Where the state lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreKind {
    /// In a file of this process.
    Redb,
    /// In etcd.
    Etcd,
}

impl Arguments {
    fn config(self) -> Config {
        let tls = match (self.tls_cert, self.tls_key, self.client_ca) {
            (Some(cert), Some(key), Some(client_ca)) => Some(TlsFiles {
                cert,
                key,
                client_ca,
            }),
            _ => None,
        };
        let replica = match (self.store, self.advertise) {
            (StoreKind::Etcd, Some(advertise)) => Some(Replica {
                etcd: self.etcd,
                advertise,
                leader_lease: Duration::from_secs(self.leader_lease),
            }),
            _ => None,
        };
        Config {
            replica,
            tls,
            insecure_open: self.insecure_open,
            max_connections: self.max_connections,
            fence_after: Duration::from_secs(self.fence_after.into()),
            ..Config::new(self.listen, self.state.unwrap_or_default())
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match &arguments.action {
        Some(Action::Token(token)) => return token.make().await,
        Some(Action::Backup(TakeBackup { state, file })) => {
            say("written", file, longship_control::backup(state, file)?);
            return Ok(());
        }
        Some(Action::Restore(Restore { state, file })) => {
            say("restored", state, longship_control::restore(state, file)?);
            return Ok(());
        }
        None => {}
    }
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let config = arguments.config();
    allow_connections();
    let server = Server::start(&config).await?;
    if config.tls.is_none() {
        tracing::warn!("open: whoever reaches the address may do everything");
    }
    tracing::info!(address = %server.local_addr()?, "listening");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(server.run(stop).await?)
}

fn say(done: &str, path: &Path, backup: Backup) {
    let Backup { version, objects } = backup;
    println!(
        "{}: {done}: {objects} objects, version {version}",
        path.display()
    );
}

/// Thousands of connections take more descriptors than a process is usually given; the
/// system's own limit stays.
fn allow_connections() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most)
    {
        tracing::warn!(%error, "raising the limit of open files");
    }
}
