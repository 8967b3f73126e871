//! A server, and clients of it.

use std::net::SocketAddr;
use std::time::Duration;

use longship_control::{Config, Server};
use longship_proto::control::v1::inventory_client::InventoryClient;
use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::{
    Container, CreatePodRequest, DeletePodRequest, GetPodRequest, Host, ListHostsRequest,
    ObjectMeta, Phase, Pod, PodSpec, Resources,
};
use longship_proto::{Failure, failure_of};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::{Channel, ClientTlsConfig};

/// Longer than anything here takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server whose state outlives it.
pub(crate) struct Control {
    _dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) address: SocketAddr,
    /// Where the server wants it: as whom all of this calls.
    pub(crate) operator: Option<ClientTlsConfig>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Control {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let mut config = Config::new(listen, dir.path().join("state"));
        change(&mut config);
        let mut control = Self {
            _dir: dir,
            address: listen,
            operator: None,
            config,
            running: None,
        };
        control.run().await;
        control
    }

    async fn run(&mut self) {
        let server = Server::start(&self.config).await.unwrap();
        self.address = server.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server.run(stopped).await.unwrap();
        });
        self.running = Some((stop, running));
    }

    /// Stops the server, and starts another one on the same state and address.
    pub(crate) async fn restart(&mut self) {
        let (stop, running) = self.running.take().unwrap();
        stop.send(()).unwrap();
        running.await.unwrap();
        self.config.listen = self.address;
        self.run().await;
    }

    pub(crate) fn url(&self) -> String {
        match self.operator {
            None => format!("http://{}", self.address),
            Some(_) => format!("https://{}", self.address),
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.connect(self.operator.clone()).await.unwrap()
    }

    /// As somebody else.
    pub(crate) async fn connect(
        &self,
        tls: Option<ClientTlsConfig>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut endpoint = Channel::from_shared(self.url()).unwrap();
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls).unwrap();
        }
        endpoint.connect().await
    }

    pub(crate) async fn pods(&self) -> PodsClient<Channel> {
        PodsClient::new(self.channel().await)
    }

    pub(crate) async fn create(&self, pod: Pod) -> Result<Pod, Failure> {
        let request = CreatePodRequest {
            pod: Some(pod),
            ..CreatePodRequest::default()
        };
        answer(self.pods().await.create_pod(request).await)
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Pod, Failure> {
        let request = GetPodRequest {
            namespace: String::new(),
            name: name.into(),
        };
        answer(self.pods().await.get_pod(request).await)
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<Pod, Failure> {
        let request = DeletePodRequest {
            namespace: String::new(),
            name: name.into(),
            ..DeletePodRequest::default()
        };
        answer(self.pods().await.delete_pod(request).await)
    }

    pub(crate) async fn hosts(&self) -> Vec<Host> {
        let mut inventory = InventoryClient::new(self.channel().await);
        let hosts = inventory
            .list_hosts(ListHostsRequest::default())
            .await
            .unwrap();
        hosts.into_inner().hosts
    }

    /// Waits until the pod is as wanted.
    pub(crate) async fn wait(&self, name: &str, wanted: impl Fn(&Pod) -> bool) -> Pod {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let pod = self.get(name).await.unwrap();
            if wanted(&pod) {
                return pod;
            }
            assert!(tokio::time::Instant::now() < until, "still {pod:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn wait_phase(&self, name: &str, phase: Phase) -> Pod {
        self.wait(name, |pod| status(pod).phase() == phase).await
    }

    pub(crate) async fn wait_gone(&self, name: &str) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while let Ok(pod) = self.get(name).await {
            assert!(tokio::time::Instant::now() < until, "still {pod:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn wait_hosts(&self, wanted: impl Fn(&[Host]) -> bool) -> Vec<Host> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let hosts = self.hosts().await;
            if wanted(&hosts) {
                return hosts;
            }
            assert!(tokio::time::Instant::now() < until, "still {hosts:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn answer<T>(answered: Result<tonic::Response<T>, Status>) -> Result<T, Failure> {
    let answered = answered.map(tonic::Response::into_inner);
    answered.map_err(|status| failure_of(&status))
}

/// A pod of one container that asks for so much.
pub(crate) fn pod(name: &str, cpu_millis: u32, mib: u64) -> Pod {
    Pod {
        metadata: Some(ObjectMeta {
            name: name.into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".into(),
                image: "127.0.0.1:5000/hello:latest".into(),
                resources: Some(Resources {
                    cpu_millis,
                    memory_bytes: mib << 20,
                    gpus: 0,
                }),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: None,
    }
}

pub(crate) fn meta(pod: &Pod) -> &ObjectMeta {
    pod.metadata.as_ref().unwrap()
}

pub(crate) fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap()
}

pub(crate) fn status(pod: &Pod) -> &longship_proto::control::v1::PodStatus {
    pod.status.as_ref().unwrap()
}
