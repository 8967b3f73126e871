//! Where a benchmark runs: a control plane of its own, cards, and clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tonic::transport::{Channel, Endpoint};

use crate::client::Client;
use crate::control::{ControlOptions, ControlProcess};
use crate::fleet::{Fleet, FleetShape};
use crate::network::{Network, SharedConnections};
use crate::usage::Usage;

/// What all benchmarks take.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceOptions {
    /// The program to measure; where it is not given, `longship-control` beside this one
    #[arg(long, value_name = "FILE", global = true)]
    control: Option<PathBuf>,
    /// Directory under which its state lies for as long as it runs
    #[arg(long, value_name = "DIR", global = true, default_value_os_t = std::env::temp_dir())]
    state: PathBuf,
    /// Streams of cards that share a connection; 1: each has its own
    #[arg(long, value_name = "N", global = true, default_value_t = 100,
          value_parser = clap::value_parser!(u16).range(1..=100))]
    streams: u16,
}

impl PlaceOptions {
    fn binary(&self) -> anyhow::Result<PathBuf> {
        match &self.control {
            Some(binary) => Ok(binary.clone()),
            None => Ok(std::env::current_exe()
                .context("finding this program")?
                .with_file_name("longship-control")),
        }
    }
}

/// A control plane, on its own state.
pub(crate) struct Place {
    pub(crate) control: ControlProcess,
    streams: usize,
    _dir: tempfile::TempDir,
}

impl Place {
    pub(crate) async fn new(options: &PlaceOptions) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("longship-sim-")
            .tempdir_in(&options.state)
            .with_context(|| format!("--state {}", options.state.display()))?;
        let state: &Path = dir.path();
        let control = ControlOptions::new(&options.binary()?, &state.join("control"));
        Ok(Self {
            control: ControlProcess::start(&control).await?,
            streams: options.streams.into(),
            _dir: dir,
        })
    }

    pub(crate) fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let url = format!("http://{}", self.control.address());
        Ok(Channel::from_shared(url)?.tcp_nodelay(true))
    }

    /// Starts cards, and waits until all are attached.
    pub(crate) async fn cards(&self, shape: &FleetShape) -> anyhow::Result<Fleet> {
        let connections = shape.cards.div_ceil(self.streams);
        let network = SharedConnections::new(&self.endpoint()?, connections);
        let network: Arc<dyn Network> = Arc::new(network);
        let fleet = Fleet::start(shape, &network);
        let late = || format!("the cards do not attach: {}", fleet.counts().trouble());
        tokio::time::timeout(Duration::from_secs(120), fleet.all_attached(shape.cards))
            .await
            .with_context(late)?;
        Ok(fleet)
    }

    /// So many clients, each with a connection of its own.
    pub(crate) async fn clients(&self, count: usize) -> anyhow::Result<Vec<Client>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(Client::new(self.endpoint()?.connect().await?));
        }
        Ok(clients)
    }

    /// What the control plane has used so far.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let ended = || format!("longship-control has ended:\n{}", self.control.log());
        let pid = self.control.pid().with_context(ended)?;
        Usage::of(pid).with_context(ended)
    }
}

/// Bytes as MB of 10^6 bytes.
pub(crate) fn mb(bytes: u64) -> f64 {
    longship_report::summary::number(bytes) / 1e6
}
