//! The control plane's process.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use longship_control::{Config, Server};
use tokio::signal::unix::{SignalKind, signal};

/// Longship's control plane: the API, the scheduler, and what they remember.
///
/// The API has no authentication yet: whoever reaches its address may create and
/// delete pods. So it listens on the loopback address unless told otherwise.
#[derive(Debug, Parser)]
#[command(name = "longship-control", version)]
struct Arguments {
    /// Address and port for clients and cards.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// Directory of the store; created where it does not exist.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
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
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let server = Server::start(&Config::new(arguments.listen, arguments.state)).await?;
    tracing::info!(address = %server.local_addr()?, "listening");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(server.run(stop).await?)
}
