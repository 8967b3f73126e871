//! `longship cordon`, `uncordon`, `drain` and `remove`: what operators do with hosts.

use clap::Args;

use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::show;

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum HostKind {
    #[value(alias = "hosts")]
    Host,
}

/// Which host.
#[derive(Debug, Args)]
pub(crate) struct OneHost {
    /// What it is.
    kind: HostKind,
    /// Which one.
    name: String,
}

/// Let no new pods onto a host; those that are there stay.
#[derive(Debug, Args)]
pub(crate) struct Cordon {
    #[command(flatten)]
    host: OneHost,
}

/// Let pods onto a host again.
#[derive(Debug, Args)]
pub(crate) struct Uncordon {
    #[command(flatten)]
    host: OneHost,
}

/// Cordon a host, and end its pods; they begin again elsewhere unless their restart
/// policy is Never.
#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    host: OneHost,
    /// Seconds between SIGTERM and SIGKILL, instead of each pod's own.
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u32>,
}

/// Forget a host that is gone for good.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    host: OneHost,
}

fn say(name: &str, done: &str) -> Result<u8, CliError> {
    show::print(&format!("host/{name} {done}\n"))?;
    Ok(0)
}

impl Cordon {
    pub(crate) async fn run(self, address: &ServerAddress) -> Result<u8, CliError> {
        let OneHost {
            kind: HostKind::Host,
            name,
        } = self.host;
        Server::connect(address).await?.cordon(&name, true).await?;
        say(&name, "cordoned")
    }
}

impl Uncordon {
    pub(crate) async fn run(self, address: &ServerAddress) -> Result<u8, CliError> {
        let OneHost {
            kind: HostKind::Host,
            name,
        } = self.host;
        Server::connect(address).await?.cordon(&name, false).await?;
        say(&name, "uncordoned")
    }
}

impl Drain {
    pub(crate) async fn run(self, address: &ServerAddress) -> Result<u8, CliError> {
        let OneHost {
            kind: HostKind::Host,
            name,
        } = self.host;
        let host = Server::connect(address)
            .await?
            .drain(&name, self.grace)
            .await?;
        say(&name, &format!("is being drained of {} pods", host.pods))
    }
}

impl Remove {
    pub(crate) async fn run(self, address: &ServerAddress) -> Result<u8, CliError> {
        let OneHost {
            kind: HostKind::Host,
            name,
        } = self.host;
        Server::connect(address).await?.remove_host(&name).await?;
        say(&name, "removed")
    }
}
