//! What clients do: create, delete, list, watch.

use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::{
    Container, CreatePodRequest, CreatePodsRequest, DeletePodRequest, Gang, GetPodRequest,
    ListPodsRequest, ListPodsResponse, ObjectMeta, Pod, PodEvent, PodSpec, Resources,
    WatchPodsRequest, pod_result,
};
use longship_proto::{Class, Failure, failure_of};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// The largest answer taken, in bytes: a page of pods.
const MESSAGE_BYTES: usize = 64 << 20;

/// A client of the pods' API.
#[derive(Debug, Clone)]
pub struct Client {
    pods: PodsClient<Channel>,
}

impl Client {
    /// Over that connection.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self {
            pods: PodsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES),
        }
    }

    /// Creates one pod.
    ///
    /// # Errors
    /// The server's.
    pub async fn create(&self, pod: Pod, idempotency_key: &str) -> Result<Pod, Failure> {
        let request = CreatePodRequest {
            pod: Some(pod),
            idempotency_key: idempotency_key.to_owned(),
        };
        answer(self.pods.clone().create_pod(request).await)
    }

    /// Creates many in one request, as a gang or each for itself; one result a pod.
    ///
    /// # Errors
    /// The server's, where it refuses all of them.
    pub async fn create_many(
        &self,
        pods: Vec<Pod>,
        gang: Option<Gang>,
        idempotency_key: &str,
    ) -> Result<Vec<Result<Pod, Failure>>, Failure> {
        let request = CreatePodsRequest {
            pods,
            gang,
            idempotency_key: idempotency_key.to_owned(),
        };
        let answered = answer(self.pods.clone().create_pods(request).await)?;
        let results = answered.results.into_iter().map(|one| match one.result {
            Some(pod_result::Result::Pod(pod)) => Ok(*pod),
            Some(pod_result::Result::Failure(failure)) => Err(failure),
            None => Err(Failure::internal("a result without a pod")),
        });
        Ok(results.collect())
    }

    /// A pod.
    ///
    /// # Errors
    /// The server's.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Pod, Failure> {
        let request = GetPodRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        answer(self.pods.clone().get_pod(request).await)
    }

    /// Marks a pod for deletion.
    ///
    /// # Errors
    /// The server's.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<Pod, Failure> {
        let request = DeletePodRequest {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            grace_seconds: Some(0),
            ..DeletePodRequest::default()
        };
        answer(self.pods.clone().delete_pod(request).await)
    }

    /// One page of pods.
    ///
    /// # Errors
    /// The server's.
    pub async fn list(&self, limit: u32, page_token: String) -> Result<ListPodsResponse, Failure> {
        let request = ListPodsRequest {
            limit,
            page_token,
            ..ListPodsRequest::default()
        };
        answer(self.pods.clone().list_pods(request).await)
    }

    /// Follows pods.
    ///
    /// # Errors
    /// The server's.
    pub async fn watch(&self, request: WatchPodsRequest) -> Result<Streaming<PodEvent>, Failure> {
        answer(self.pods.clone().watch_pods(request).await)
    }
}

fn answer<T>(answered: Result<tonic::Response<T>, Status>) -> Result<T, Failure> {
    let answered = answered.map(tonic::Response::into_inner);
    answered.map_err(|status| failure(&status))
}

/// Why a call failed. What the server has not said itself is the connection's fault, and
/// worth another attempt.
#[must_use]
pub fn failure(status: &Status) -> Failure {
    let failure = failure_of(status);
    match failure.class() {
        Class::Internal if status.details().is_empty() => {
            Failure::unavailable(format!("the connection broke: {}", failure.message))
        }
        _ => failure,
    }
}

/// A pod of one container that asks for a quarter of a CPU and 128 MiB.
#[must_use]
pub fn small_pod(namespace: &str, name: String) -> Pod {
    Pod {
        metadata: Some(ObjectMeta {
            name,
            namespace: namespace.to_owned(),
            labels: [("app".to_owned(), "sim".to_owned())].into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: "registry.example/library/hello:1.0".to_owned(),
                resources: Some(Resources {
                    cpu_millis: 250,
                    memory_bytes: 128 << 20,
                    gpus: 0,
                }),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: None,
    }
}
