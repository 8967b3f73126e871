//! Where a benchmark runs: a control plane of its own, cards, and clients.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use longship_proto::Class;
use longship_test_etcd::Etcd;
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
    /// Where the control plane keeps its state
    #[arg(long, value_enum, global = true, default_value_t = StoreKind::Embedded)]
    store: StoreKind,
    /// Directory under which the embedded store lies for as long as it runs
    #[arg(long, value_name = "DIR", global = true, default_value_os_t = std::env::temp_dir())]
    state: PathBuf,
    /// Streams of cards that share a connection; 1: each has its own
    #[arg(long, value_name = "N", global = true, default_value_t = 100,
          value_parser = clap::value_parser!(u16).range(1..=100))]
    streams: u16,
}

impl PlaceOptions {
    pub(crate) fn binary(&self) -> anyhow::Result<PathBuf> {
        match &self.control {
            Some(binary) => Ok(binary.clone()),
            None => Ok(std::env::current_exe()
                .context("finding this program")?
                .with_file_name("longship-control")),
        }
    }
}

/// Where a control plane keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreKind {
    /// In a file of its own
    Embedded,
    /// In an etcd of one member, started for this
    Etcd,
}

/// A control plane, on its own state.
pub(crate) struct Place {
    pub(crate) control: ControlProcess,
    streams: usize,
    _dir: Option<tempfile::TempDir>,
    _etcd: Option<Etcd>,
}

/// How one replica is started, and where it will be reached.
pub(crate) fn replica(binary: PathBuf, etcd: &Etcd) -> anyhow::Result<(ControlOptions, String)> {
    // Free now: nobody else on this machine takes it in the meantime, or it does not start.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let (listen, url) = (
        format!("127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}"),
    );
    let arguments = [
        "--listen",
        &listen,
        "--store",
        "etcd",
        "--etcd",
        &etcd.url(),
        "--advertise",
        &url,
    ];
    let options = ControlOptions {
        binary,
        arguments: arguments.map(str::to_owned).to_vec(),
    };
    Ok((options, url))
}

/// Starts an etcd; it ends with its handle.
pub(crate) async fn etcd() -> anyhow::Result<Etcd> {
    Ok(tokio::task::spawn_blocking(Etcd::start).await?)
}

impl Place {
    pub(crate) async fn new(options: &PlaceOptions) -> anyhow::Result<Self> {
        Self::on(options, options.store).await
    }

    /// With its state there, whatever the options say.
    pub(crate) async fn on(options: &PlaceOptions, store: StoreKind) -> anyhow::Result<Self> {
        let binary = options.binary()?;
        let (control, dir, etcd) = match store {
            StoreKind::Embedded => {
                let dir = tempfile::Builder::new()
                    .prefix("longship-sim-")
                    .tempdir_in(&options.state)
                    .with_context(|| format!("--state {}", options.state.display()))?;
                let path = dir.path().join("control");
                let path = path.to_str().context("--state must be UTF-8")?;
                let arguments = ["--listen", "127.0.0.1:0", "--state", path];
                let arguments = arguments.map(str::to_owned).to_vec();
                (ControlOptions { binary, arguments }, Some(dir), None)
            }
            StoreKind::Etcd => {
                let etcd = etcd().await?;
                (replica(binary, &etcd)?.0, None, Some(etcd))
            }
        };
        let place = Self {
            control: ControlProcess::start(&control).await?,
            streams: options.streams.into(),
            _dir: dir,
            _etcd: etcd,
        };
        place.wait_leading().await?;
        Ok(place)
    }

    /// A replica decides only when its turn has come.
    async fn wait_leading(&self) -> anyhow::Result<()> {
        let client = Client::new(self.endpoint()?.connect().await?);
        leading(&client).await
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

/// Waits until the control plane behind a client decides.
pub(crate) async fn leading(client: &Client) -> anyhow::Result<()> {
    let asked = async {
        loop {
            match client.delete("default", "nobody").await {
                Err(failure) if failure.class() == Class::Unavailable => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                _ => return,
            }
        }
    };
    let led = tokio::time::timeout(Duration::from_secs(60), asked).await;
    led.context("no control plane leads")
}

/// Bytes as MB of 10^6 bytes.
pub(crate) fn mb(bytes: u64) -> f64 {
    longship_report::summary::number(bytes) / 1e6
}
