//! `longship delete`

use clap::{Args, ValueEnum};

use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::show;
use crate::together::together;
use crate::watch::{PodWatch, Seen};

/// Delete pods.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// What it is.
    kind: Kind,
    /// Which ones.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Seconds between SIGTERM and SIGKILL, instead of a pod's own.
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u32>,
    /// Wait until all that the pods held has been given back.
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
        let server = Server::connect(address).await?;
        let mut deleted = Vec::new();
        let delete = |name: String| {
            let (mut server, namespace) = (server.clone(), namespace.to_owned());
            async move {
                let pod = server.delete(&namespace, &name, self.grace).await?;
                Ok((name, pod))
            }
        };
        let outcome = together(self.names, delete, |(name, pod)| {
            if !self.wait {
                show::print(&format!("pod/{name} is being deleted\n"))?;
            }
            deleted.push((name, pod));
            Ok(())
        })
        .await;
        if self.wait {
            for (name, pod) in deleted {
                let mut watch = PodWatch::of(&server, &pod);
                while let Seen::Pod(_) = watch.next().await? {}
                show::print(&format!("pod/{name} deleted\n"))?;
            }
        }
        outcome.map(|()| 0)
    }
}
