//! `longship delete`

use clap::{Args, ValueEnum};

use crate::error::CliError;
use crate::server::{Server, ServerAddress};
use crate::show;
use crate::together::together;
use crate::watch::{PodWatch, Seen};

/// Delete pods, networks, capacity reservations, image caches, tenants or tokens.
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
    /// The subnets' VPC.
    #[arg(long, required_if_eq("kind", "subnet"))]
    vpc: Option<String>,
    /// Whose reservation or image cache it is, instead of the caller's.
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Wait until all that the pods held has been given back.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    #[value(alias = "pods", alias = "po")]
    Pod,
    #[value(alias = "vpcs")]
    Vpc,
    #[value(alias = "subnets")]
    Subnet,
    #[value(alias = "reservations")]
    Reservation,
    #[value(name = "imagecache", alias = "imagecaches")]
    ImageCache,
    #[value(alias = "tenants")]
    Tenant,
    /// By its id; whoever has it is refused from then on.
    #[value(alias = "tokens")]
    Token,
}

impl Delete {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        let server = Server::connect(address).await?;
        if !matches!(self.kind, Kind::Pod) {
            return self.delete_others(server).await;
        }
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

    /// What is gone when the control plane says so.
    async fn delete_others(self, mut server: Server) -> Result<u8, CliError> {
        for name in &self.names {
            let kind = match self.kind {
                Kind::Pod => "pod",
                Kind::Vpc => {
                    server.delete_vpc(name).await?;
                    "vpc"
                }
                Kind::Subnet => {
                    let vpc = self.vpc.as_deref().unwrap_or_default();
                    server.delete_subnet(vpc, name).await?;
                    "subnet"
                }
                Kind::Reservation => {
                    server.delete_reservation(&self.tenant, name).await?;
                    "reservation"
                }
                Kind::Tenant => {
                    server.delete_tenant(name).await?;
                    "tenant"
                }
                Kind::Token => {
                    server.revoke_token(name).await?;
                    "token"
                }
                Kind::ImageCache => {
                    server.delete_image_cache(&self.tenant, name).await?;
                    "imagecache"
                }
            };
            show::print(&format!("{kind}/{name} deleted\n"))?;
        }
        Ok(0)
    }
}
