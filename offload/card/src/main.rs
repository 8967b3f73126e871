//! `longship-card`: the control path of one host.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use longship_card::{Config, TlsFiles, serve};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The card's daemon: takes pods from the control plane and serves their devices.
#[derive(Debug, Parser)]
#[command(name = "longship-card", version)]
struct Flags {
    /// Control plane; several replicas, separated by commas, are tried in turn.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7700")]
    control: String,
    /// Agent of the host: `unix:PATH` or an http address.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "unix:/run/longship/agent.sock"
    )]
    agent: String,
    /// Where clients reach logs and exec.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7702")]
    listen: SocketAddr,
    /// The CA of the control plane (PEM); needed where --control is https.
    #[arg(long, value_name = "FILE", requires_all = ["tls_cert", "tls_key"])]
    tls_ca: Option<PathBuf>,
    /// This card's certificate (PEM), by which the control plane knows the host; clients
    /// reach the streams by https then.
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    tls_key: Option<PathBuf>,
    /// The address that clients are told, where it is not http(s)://LISTEN.
    #[arg(
        long,
        value_name = "URL",
        default_value = "",
        hide_default_value = true
    )]
    endpoint: String,
    /// Operators' socket: `unix:PATH`.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "unix:/run/longship/card.sock"
    )]
    admin: String,
    /// What survives a restart: journal, images, scratch disks, logs.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/longship/card")]
    state: PathBuf,
    /// What does not: sockets.
    #[arg(long, value_name = "DIR", default_value = "/run/longship/card")]
    runtime_dir: PathBuf,
    /// This host's name.
    #[arg(long, value_name = "NAME")]
    host: String,
    /// This host's zone.
    #[arg(long, value_name = "ZONE")]
    zone: String,
    /// The most pods at once.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_pods: u32,
    /// Pods that may start at once; where it is not given, two a CPU of this machine, at
    /// least 4 and at most 64.
    #[arg(long, value_name = "N")]
    parallel_starts: Option<usize>,
    /// Size of a pod's scratch disk in bytes; it takes only what is written.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30)]
    scratch_bytes: u64,
    /// The largest image in bytes, flattened.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 30)]
    max_image_bytes: u64,
    /// A registry spoken to without TLS; loopback ones always are.
    #[arg(long = "insecure-registry", value_name = "HOST:PORT")]
    insecure_registries: Vec<String>,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let flags = Flags::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match run(flags).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let Some(admin) = flags.admin.strip_prefix("unix:").map(PathBuf::from) else {
        anyhow::bail!("--admin {}: must be `unix:PATH`", flags.admin);
    };
    let tls = match (flags.tls_ca, flags.tls_cert, flags.tls_key) {
        (Some(ca), Some(cert), Some(key)) => Some(TlsFiles { ca, cert, key }),
        _ => None,
    };
    let config = Config {
        tls,
        control: flags.control,
        agent: flags.agent,
        listen: flags.listen,
        endpoint: flags.endpoint,
        admin,
        state: flags.state,
        runtime_dir: flags.runtime_dir,
        host: flags.host,
        zone: flags.zone,
        max_pods: flags.max_pods,
        parallel_starts: flags.parallel_starts,
        scratch_bytes: flags.scratch_bytes,
        max_image_bytes: flags.max_image_bytes,
        insecure_registries: flags.insecure_registries,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    };
    Ok(serve(config, stop).await?)
}
