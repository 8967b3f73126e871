//! The link to the control plane.

mod tenancy;
mod tenant;

use std::str::FromStr;
use std::time::Duration;

use longship_proto::control::v1::capacity_client::CapacityClient;
use longship_proto::control::v1::image_caches_client::ImageCachesClient;
use longship_proto::control::v1::inventory_client::InventoryClient;
use longship_proto::control::v1::networks_client::NetworksClient;
use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::tenants_client::TenantsClient;
use longship_proto::control::v1::{
    CordonHostRequest, CreatePodRequest, CreatePodsRequest, DeletePodRequest, DrainHostRequest,
    Flavor, GetPodAccessRequest, GetPodRequest, Host, ListFlavorsRequest, ListHostsRequest,
    ListPodsRequest, ListZonesRequest, PatchPodRequest, Pod, PodAccess, PodEvent, PodResult,
    RemoveHostRequest, UncordonHostRequest, WatchPodsRequest, Zone,
};
use longship_proto::health;
use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::credentials::{Authorization, Credentials};
use crate::error::{CliError, innermost};

/// For a connection to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// For one call that does not stream.
const CALL_PATIENCE: Duration = Duration::from_secs(30);

/// How long a leader is looked for among several servers.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// What is said where no server is reached.
const HINT: &str = "; is `longship up` running?";

/// Where the control plane is (`http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`;
/// several, separated by commas, of which one leads), and who calls.
#[derive(Debug, Clone)]
pub(crate) struct ServerAddress {
    urls: Vec<String>,
    credentials: Credentials,
}

impl ServerAddress {
    /// The same, for whoever has these.
    pub(crate) fn with(self, credentials: Credentials) -> Self {
        Self {
            credentials,
            ..self
        }
    }
}

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        for url in text.split(',') {
            if !["http://", "https://", "unix:"]
                .iter()
                .any(|scheme| url.starts_with(scheme))
            {
                return Err("must begin with http://, https:// or unix:".to_owned());
            }
            Endpoint::from_shared(url.to_owned()).map_err(|_| "is no address".to_owned())?;
        }
        Ok(Self {
            urls: text.split(',').map(str::to_owned).collect(),
            credentials: Credentials::default(),
        })
    }
}

/// A connection to the control plane, on which each call says who calls.
pub(crate) type Link = InterceptedService<Channel, Authorization>;

/// Calls to the control plane.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pods: PodsClient<Link>,
    inventory: InventoryClient<Link>,
    networks: NetworksClient<Link>,
    capacity: CapacityClient<Link>,
    image_caches: ImageCachesClient<Link>,
    tenants: TenantsClient<Link>,
    credentials: Credentials,
}

impl Server {
    /// Connects.
    ///
    /// # Errors
    /// [`CliError::Unreachable`].
    pub(crate) async fn connect(address: &ServerAddress) -> Result<Self, CliError> {
        let credentials = address.credentials.clone();
        let (url, channel) = leader(&address.urls, &credentials).await?;
        let uri = url.parse().unwrap_or_default();
        let channel = Link::new(channel, credentials.authorization(&uri)?);
        Ok(Self {
            pods: PodsClient::new(channel.clone()),
            inventory: InventoryClient::new(channel.clone()),
            networks: NetworksClient::new(channel.clone()),
            capacity: CapacityClient::new(channel.clone()),
            image_caches: ImageCachesClient::new(channel.clone()),
            tenants: TenantsClient::new(channel),
            credentials,
        })
    }

    /// How to speak TLS with cards.
    pub(crate) fn tls_of_cards(&self) -> ClientTlsConfig {
        self.credentials.tls_of_cards()
    }

    pub(crate) async fn create(&mut self, pod: Pod) -> Result<Pod, CliError> {
        let request = CreatePodRequest {
            pod: Some(pod),
            ..CreatePodRequest::default()
        };
        bounded(self.pods.create_pod(request)).await
    }

    /// Many at once; what became of each, in order.
    pub(crate) async fn create_many(
        &mut self,
        request: CreatePodsRequest,
    ) -> Result<Vec<PodResult>, CliError> {
        Ok(bounded(self.pods.create_pods(request)).await?.results)
    }

    pub(crate) async fn patch(&mut self, request: PatchPodRequest) -> Result<Pod, CliError> {
        bounded(self.pods.patch_pod(request)).await
    }

    pub(crate) async fn get(&mut self, namespace: &str, name: &str) -> Result<Pod, CliError> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        bounded(self.pods.get_pod(GetPodRequest { namespace, name })).await
    }

    /// All pods of a namespace (empty: of all) that the selector means, page by page.
    pub(crate) async fn list(
        &mut self,
        namespace: &str,
        label_selector: &str,
    ) -> Result<Vec<Pod>, CliError> {
        let mut request = ListPodsRequest {
            namespace: namespace.to_owned(),
            label_selector: label_selector.to_owned(),
            ..ListPodsRequest::default()
        };
        let mut pods = Vec::new();
        loop {
            let mut page = bounded(self.pods.list_pods(request.clone())).await?;
            pods.append(&mut page.pods);
            if page.next_page_token.is_empty() {
                return Ok(pods);
            }
            request.page_token = page.next_page_token;
        }
    }

    pub(crate) async fn watch(
        &mut self,
        namespace: &str,
        name: &str,
    ) -> Result<Streaming<PodEvent>, CliError> {
        let request = WatchPodsRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..WatchPodsRequest::default()
        };
        bounded(self.pods.watch_pods(request)).await
    }

    pub(crate) async fn delete(
        &mut self,
        namespace: &str,
        name: &str,
        grace_seconds: Option<u32>,
    ) -> Result<Pod, CliError> {
        let request = DeletePodRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            grace_seconds,
            ..DeletePodRequest::default()
        };
        bounded(self.pods.delete_pod(request)).await
    }

    pub(crate) async fn access(
        &mut self,
        namespace: &str,
        name: &str,
    ) -> Result<PodAccess, CliError> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        bounded(
            self.pods
                .get_pod_access(GetPodAccessRequest { namespace, name }),
        )
        .await
    }

    /// All hosts, page by page.
    pub(crate) async fn hosts(&mut self) -> Result<Vec<Host>, CliError> {
        let mut request = ListHostsRequest::default();
        let mut hosts = Vec::new();
        loop {
            let mut page = bounded(self.inventory.list_hosts(request.clone())).await?;
            hosts.append(&mut page.hosts);
            if page.next_page_token.is_empty() {
                return Ok(hosts);
            }
            request.page_token = page.next_page_token;
        }
    }

    pub(crate) async fn zones(&mut self) -> Result<Vec<Zone>, CliError> {
        let request = ListZonesRequest {};
        Ok(bounded(self.inventory.list_zones(request)).await?.zones)
    }

    /// Keeps new pods off a host, or lets them come again.
    pub(crate) async fn cordon(&mut self, name: &str, cordoned: bool) -> Result<Host, CliError> {
        let name = name.to_owned();
        match cordoned {
            true => bounded(self.inventory.cordon_host(CordonHostRequest { name })).await,
            false => bounded(self.inventory.uncordon_host(UncordonHostRequest { name })).await,
        }
    }

    pub(crate) async fn drain(
        &mut self,
        name: &str,
        grace_seconds: Option<u32>,
    ) -> Result<Host, CliError> {
        let request = DrainHostRequest {
            name: name.to_owned(),
            grace_seconds,
        };
        bounded(self.inventory.drain_host(request)).await
    }

    pub(crate) async fn remove_host(&mut self, name: &str) -> Result<(), CliError> {
        let name = name.to_owned();
        bounded(self.inventory.remove_host(RemoveHostRequest { name })).await?;
        Ok(())
    }

    pub(crate) async fn flavors(&mut self) -> Result<Vec<Flavor>, CliError> {
        Ok(bounded(self.inventory.list_flavors(ListFlavorsRequest {}))
            .await?
            .flavors)
    }
}

/// The one server, or of several the one that leads. Where none does for a while, one
/// that answers: it has what can be read, and says why it does nothing else.
async fn leader<'a>(
    urls: &'a [String],
    credentials: &Credentials,
) -> Result<(&'a str, Channel), CliError> {
    let until = tokio::time::Instant::now() + LEADER_PATIENCE;
    loop {
        let mut answers = None;
        let mut failed = None;
        for url in urls {
            match connect("the control plane", url, HINT, credentials.tls()).await {
                Ok(channel) if urls.len() == 1 => return Ok((url, channel)),
                Ok(channel) => {
                    let leads = tokio::time::timeout(LEADER_PATIENCE, health::leads(&channel));
                    match leads.await {
                        Ok(Ok(true)) => return Ok((url, channel)),
                        Ok(Ok(false)) => answers = Some((url.as_str(), channel)),
                        // It hangs, or speaks another language.
                        Ok(Err(_)) | Err(_) => {}
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        let over = urls.len() == 1 || tokio::time::Instant::now() >= until;
        match (answers, failed) {
            (Some(found), _) if over => return Ok(found),
            (None, Some(error)) if over => return Err(error),
            (None, None) if over => {
                let none = "no server says whether it leads";
                return Err(longship_proto::Failure::unavailable(none).into());
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Connects to `what` at `address`, by `tls` where that is https; `hint` follows the
/// reason where that fails.
pub(crate) async fn connect(
    what: &'static str,
    address: &str,
    hint: &'static str,
    tls: ClientTlsConfig,
) -> Result<Channel, CliError> {
    let unreachable = |cause: String| CliError::Unreachable {
        what,
        address: address.to_owned(),
        cause,
        hint,
    };
    let mut endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|error| unreachable(innermost(&error)))?;
    if address.starts_with("https://") {
        let secured = endpoint.tls_config(tls);
        endpoint = secured.map_err(|error| unreachable(innermost(&error)))?;
    }
    endpoint
        .connect_timeout(CONNECT_PATIENCE)
        .connect()
        .await
        .map_err(|error| unreachable(innermost(&error)))
}

async fn bounded<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CliError> {
    match tokio::time::timeout(CALL_PATIENCE, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(longship_proto::Failure::unavailable(format!(
            "the control plane did not answer within {} s",
            CALL_PATIENCE.as_secs()
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_servers_are_several_addresses() {
        let address: ServerAddress = "http://a:1,https://b:2".parse().unwrap();
        assert_eq!(address.urls, ["http://a:1", "https://b:2"]);
        for wrong in [
            "",
            "a:1",
            "http://a:1,",
            "http://a:1,b:2",
            "http://a:1 http://b:2",
        ] {
            assert!(wrong.parse::<ServerAddress>().is_err(), "{wrong}");
        }
    }
}
