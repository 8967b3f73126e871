//! `longship create`

use std::path::PathBuf;

use clap::Args;

use crate::error::CliError;
use crate::manifest;
use crate::server::{Server, ServerAddress};
use crate::show;

/// Create pods from a file of YAML documents.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// File in Kubernetes' own field names; `-`: standard input.
    #[arg(long, short = 'f', value_name = "FILE")]
    filename: PathBuf,
}

impl Create {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        // All are read before the first is created.
        let pods = manifest::read(&self.filename, namespace)?;
        let mut server = Server::connect(address).await?;
        for pod in pods {
            let created = server.create(pod).await?;
            let name = created.metadata.unwrap_or_default().name;
            show::print(&format!("pod/{name} created\n"))?;
        }
        Ok(0)
    }
}
