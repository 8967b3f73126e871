//! `longship create`

mod tenancy;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use longship_proto::Failure;
use longship_proto::control::v1::{
    CapacityReservation, CreatePodsRequest, Gang, ImageCache, Pod, PodResult, Subnet, Vpc,
    pod_result,
};

use crate::error::CliError;
use crate::manifest;
use crate::server::{Server, ServerAddress};
use crate::show;

/// Pods of one request.
const BATCH_PODS: usize = 1000;
/// Bytes of one request; below what the control plane takes.
const BATCH_BYTES: usize = 3 << 20;

/// Create pods from a file of YAML documents, many at a time, or something else by flags.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Create {
    /// File in Kubernetes' own field names; `-`: standard input.
    #[arg(long, short = 'f', value_name = "FILE", required = true)]
    filename: Option<PathBuf>,
    /// The pods get their places together or not at all.
    #[arg(long)]
    gang: bool,
    /// All of a gang in one zone.
    #[arg(long, requires = "gang")]
    one_zone: bool,
    /// Makes repeating the command harmless: the same key again answers what the first
    /// time answered.
    #[arg(
        long,
        value_name = "KEY",
        default_value = "",
        hide_default_value = true
    )]
    idempotency_key: String,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    Tenant(Box<tenancy::NewTenant>),
    Token(tenancy::NewToken),
    /// A network of one's own.
    Vpc {
        /// DNS label, unique.
        name: String,
        /// Private IPv4 prefix, /8 to /28; the next free 10.N.0.0/16 where it is not given.
        #[arg(long, default_value = "", hide_default_value = true)]
        cidr: String,
        /// Whose it is, instead of the caller's.
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
    },
    /// A part of a VPC.
    Subnet {
        /// DNS label, unique in its VPC.
        name: String,
        /// The VPC.
        #[arg(long)]
        vpc: String,
        /// Prefix inside the VPC's.
        #[arg(long)]
        cidr: String,
        /// Only pods of this zone.
        #[arg(long, default_value = "", hide_default_value = true)]
        zone: String,
    },
    /// Room that is kept for pods of the class `reserved`.
    Reservation {
        /// DNS label, unique in the tenant.
        name: String,
        /// Flavor of the pods.
        #[arg(long)]
        flavor: String,
        /// How many pods.
        #[arg(long)]
        count: u32,
        /// Zone to keep it in; may be repeated. Anywhere where it is not given.
        #[arg(long)]
        zone: Vec<String>,
        /// For how long, e.g. 30m or 12h.
        #[arg(long = "for", value_name = "DURATION", value_parser = crate::duration::parse)]
        duration: Duration,
        /// Whose it is, instead of the caller's.
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
    },
    /// Images that cards keep ready. Creating one that exists changes it.
    #[command(name = "imagecache")]
    ImageCache {
        /// DNS label, unique in the tenant.
        name: String,
        /// Image; may be repeated.
        #[arg(long, required = true)]
        image: Vec<String>,
        /// Zone whose hosts keep them; may be repeated. All where it is not given.
        #[arg(long)]
        zone: Vec<String>,
        /// Whose it is, instead of the caller's.
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
    },
}

impl Create {
    pub(crate) async fn run(
        self,
        address: &ServerAddress,
        namespace: &str,
    ) -> Result<u8, CliError> {
        match (&self.filename, self.what) {
            (_, Some(what)) => what.create(Server::connect(address).await?).await?,
            (Some(filename), None) => {
                // All are read before the first is created.
                let pods = manifest::read(filename, namespace)?;
                let gang = self.gang.then_some(Gang {
                    one_zone: self.one_zone,
                });
                create_pods(address, pods, gang, &self.idempotency_key).await?;
            }
            (None, None) => {
                return Err(CliError::Other("give a file, or what to create".to_owned()));
            }
        }
        Ok(0)
    }
}

async fn create_pods(
    address: &ServerAddress,
    pods: Vec<Pod>,
    gang: Option<Gang>,
    key: &str,
) -> Result<(), CliError> {
    let batches = batches(pods);
    let count = batches.len();
    if gang.is_some() && count > 1 {
        let message = "a gang must fit one request: at most 1000 pods of together 3 MiB";
        return Err(Failure::invalid("", message).into());
    }
    let mut server = Server::connect(address).await?;
    let mut first = Ok(());
    for (at, pods) in batches.into_iter().enumerate() {
        // What is wrong in one batch is told; those before it stay.
        first?;
        let names: Vec<String> = pods.iter().map(name_of).collect();
        let request = CreatePodsRequest {
            pods,
            idempotency_key: match (key.is_empty(), count) {
                (true, _) | (_, 1) => key.to_owned(),
                (false, _) => format!("{key}/{at}"),
            },
            gang,
        };
        let results = server.create_many(request).await?;
        first = names
            .iter()
            .zip(results)
            .try_fold(Ok(()), |first, (name, result)| tell(name, result, first))?;
    }
    first
}

/// Prints what became of a pod; the first that was refused is the command's failure.
fn tell(
    name: &str,
    result: PodResult,
    first: Result<(), CliError>,
) -> Result<Result<(), CliError>, CliError> {
    match result.result {
        Some(pod_result::Result::Failure(failure)) => {
            if first.is_err() {
                eprintln!("error: pod/{name}: {failure}");
                return Ok(first);
            }
            Ok(Err(failure.into()))
        }
        Some(pod_result::Result::Pod(_)) => {
            show::print(&format!("pod/{name} created\n"))?;
            Ok(first)
        }
        None => Err(CliError::Other(format!("no answer about pod/{name}"))),
    }
}

fn name_of(pod: &Pod) -> String {
    pod.metadata.clone().unwrap_or_default().name
}

/// As many pods as fit one request, and the rest in more of them.
fn batches(pods: Vec<Pod>) -> Vec<Vec<Pod>> {
    let mut batches: Vec<Vec<Pod>> = Vec::new();
    let mut bytes = 0;
    for pod in pods {
        let size = prost_size(&pod);
        match batches.last_mut() {
            Some(last) if last.len() < BATCH_PODS && bytes + size <= BATCH_BYTES => {
                bytes += size;
                last.push(pod);
            }
            _ => {
                bytes = size;
                batches.push(vec![pod]);
            }
        }
    }
    batches
}

fn prost_size(pod: &Pod) -> usize {
    use prost::Message;
    pod.encoded_len()
}

impl What {
    async fn create(self, mut server: Server) -> Result<(), CliError> {
        let done = match self {
            Self::Tenant(tenant) => tenant.put(&mut server).await?,
            Self::Token(token) => token.create(&mut server).await?,
            Self::Vpc { name, cidr, tenant } => {
                let vpc = Vpc {
                    name,
                    tenant,
                    cidr,
                    subnets: Vec::new(),
                };
                let vpc = server.create_vpc(vpc).await?;
                format!("vpc/{} created with {}", vpc.name, vpc.cidr)
            }
            Self::Subnet {
                name,
                vpc,
                cidr,
                zone,
            } => {
                let subnet = Subnet {
                    name,
                    cidr,
                    zone,
                    addresses_used: 0,
                };
                let made = server.create_subnet(&vpc, subnet).await?;
                format!("subnet/{} created in vpc/{vpc}", made.name)
            }
            Self::Reservation {
                name,
                flavor,
                count,
                zone,
                duration,
                tenant,
            } => {
                let lasts = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
                let reservation = CapacityReservation {
                    name,
                    tenant,
                    flavor,
                    count,
                    zones: zone,
                    ends_us: show::time::now_us().saturating_add(lasts),
                    ..CapacityReservation::default()
                };
                let kept = server.reserve(reservation).await?;
                format!("reservation/{} created: {} places", kept.name, kept.count)
            }
            Self::ImageCache {
                name,
                image,
                zone,
                tenant,
            } => {
                let cache = ImageCache {
                    name,
                    tenant,
                    images: image,
                    zones: zone,
                    status: Vec::new(),
                };
                let put = server.put_image_cache(cache).await?;
                format!("imagecache/{} written", put.name)
            }
        };
        show::print(&format!("{done}\n"))
    }
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::ObjectMeta;

    use super::*;

    #[test]
    fn pods_are_sent_in_requests_that_fit() {
        let pod = |bytes: usize| Pod {
            metadata: Some(ObjectMeta {
                name: "x".repeat(bytes),
                ..ObjectMeta::default()
            }),
            ..Pod::default()
        };
        let sizes = |pods: Vec<Pod>| {
            let batches = batches(pods);
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(vec![pod(10); 2500]), [1000, 1000, 500]);
        assert_eq!(sizes(vec![pod(1 << 20); 4]), [2, 2]);
        assert_eq!(sizes(vec![pod(5 << 20), pod(1)]), [1, 1]);
    }
}
