//! `longship create`

use std::path::PathBuf;

use clap::Args;

use crate::error::CliError;
use crate::manifest;
use crate::server::{Server, ServerAddress};
use crate::show;
use crate::together::together;

/// Create pods from a file of YAML documents, many at a time.
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
        let server = Server::connect(address).await?;
        let create = |pod| {
            let mut server = server.clone();
            async move { server.create(pod).await }
        };
        together(pods, create, |created| {
            let name = created.metadata.unwrap_or_default().name;
            show::print(&format!("pod/{name} created\n"))
        })
        .await?;
        Ok(0)
    }
}
