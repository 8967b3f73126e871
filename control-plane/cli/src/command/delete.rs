//! `longship delete`

use clap::{Args, ValueEnum};

use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::show;
use crate::watch::{PodWatch, Seen};

/// Delete a pod.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// What it is.
    kind: Kind,
    /// Which one.
    name: String,
    /// Seconds between SIGTERM and SIGKILL, instead of the pod's own.
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u32>,
    /// Wait until all that the pod held has been given back.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    #[value(alias = "pods", alias = "po")]
    Pod,
}

impl Delete {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let Kind::Pod = self.kind;
        let mut server = Server::connect(address).await?;
        let pod = server.delete(namespace, &self.name, self.grace).await?;
        if self.wait {
            let mut watch = PodWatch::of(&server, &pod);
            while let Seen::Pod(_) = watch.next().await? {}
            show::print(&format!("pod/{} deleted\n", self.name))?;
        } else {
            show::print(&format!("pod/{} is being deleted\n", self.name))?;
        }
        Ok(0)
    }
}
