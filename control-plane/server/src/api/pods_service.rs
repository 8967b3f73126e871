//! The service of pods as it is on the wire, where that is not what is generated:
//!
//! - watches send bytes that were encoded once for all watchers;
//! - new pods are counted and measured before they are decoded, since a few megabytes
//!   can say "a million empty containers", and these take gigabytes.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use longship_proto::control::v1::pods_server::PodsServer;
use longship_proto::control::v1::{CreatePodsResponse, Gang, Pod, WatchPodsRequest};
use longship_proto::{Failure, FailureExt};
use prost::Message;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::codegen::{Service, http};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Control;
use super::events_body::EventsBody;
use crate::validate;

const CREATE: &str = "/longship.control.v1.Pods/CreatePod";
const CREATE_MANY: &str = "/longship.control.v1.Pods/CreatePods";
const WATCH: &str = "/longship.control.v1.Pods/WatchPods";

/// The largest batch of new pods, in bytes.
const MAX_BATCH: usize = 4 << 20;
/// The largest other request: one new pod, or a change of one.
const MAX_REQUEST: usize = 1 << 20;

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// [`PodsServer`], but for those calls.
#[derive(Clone)]
pub(crate) struct PodsService {
    control: Control,
    others: PodsServer<Control>,
}

impl PodsService {
    pub(crate) fn new(control: Control) -> Self {
        let others = PodsServer::new(control.clone()).max_decoding_message_size(MAX_REQUEST);
        Self { control, others }
    }
}

impl NamedService for PodsService {
    const NAME: &'static str = <PodsServer<Control> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for PodsService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.others, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let calls = Calls(self.control.clone());
        match request.uri().path() {
            WATCH => Box::pin(async move {
                let answered = calls.watch(request).await;
                Ok(answered.unwrap_or_else(Status::into_http))
            }),
            CREATE => Box::pin(async move {
                let mut grpc = grpc::<Pod, EncodedPod>(MAX_REQUEST);
                Ok(grpc.unary(calls, request).await)
            }),
            CREATE_MANY => Box::pin(async move {
                let mut grpc = grpc::<CreatePodsResponse, EncodedPods>(MAX_BATCH);
                Ok(grpc.unary(calls, request).await)
            }),
            _ => self.others.call(request),
        }
    }
}

fn grpc<Out: Message + 'static, In: Message + Default + 'static>(
    most_bytes: usize,
) -> Grpc<ProstCodec<Out, In>> {
    Grpc::new(ProstCodec::default()).apply_max_message_size_config(Some(most_bytes), None)
}

/// A [`longship_proto::control::v1::CreatePodRequest`], its pod not looked at yet.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EncodedPod {
    #[prost(bytes = "bytes", optional, tag = "1")]
    pod: Option<Bytes>,
    #[prost(string, tag = "2")]
    idempotency_key: String,
}

/// A [`longship_proto::control::v1::CreatePodsRequest`], its pods not looked at yet.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EncodedPods {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pods: Vec<Bytes>,
    #[prost(string, tag = "2")]
    idempotency_key: String,
    #[prost(message, optional, tag = "3")]
    gang: Option<Gang>,
}

fn decode(bytes: Bytes) -> Result<Pod, Failure> {
    validate::pod_size(bytes.len())?;
    Pod::decode(bytes).map_err(|error| Failure::invalid("", format!("is no pod: {error}")))
}

/// The calls that are not generated.
struct Calls(Control);

impl UnaryService<EncodedPod> for Calls {
    type Response = Pod;
    type Future = Answer<Result<Response<Pod>, Status>>;

    fn call(&mut self, request: Request<EncodedPod>) -> Self::Future {
        let control = self.0.clone();
        Box::pin(async move {
            let scope = control.scope(&request)?;
            let request = request.into_inner();
            let pod = request.pod.map(decode).transpose();
            let pod = pod.map_err(Failure::into_status)?;
            let created = control.create(&scope, pod, request.idempotency_key);
            Ok(Response::new(created.await?))
        })
    }
}

impl UnaryService<EncodedPods> for Calls {
    type Response = CreatePodsResponse;
    type Future = Answer<Result<Response<CreatePodsResponse>, Status>>;

    fn call(&mut self, request: Request<EncodedPods>) -> Self::Future {
        let control = self.0.clone();
        Box::pin(async move {
            let scope = control.scope(&request)?;
            let EncodedPods {
                pods,
                idempotency_key,
                gang,
            } = request.into_inner();
            validate::pod_count(pods.len()).map_err(Failure::into_status)?;
            let pods = pods.into_iter().enumerate().map(|(at, bytes)| {
                decode(bytes).map_err(|failure| validate::in_batch(at, failure))
            });
            // One after the other: what is wrong with the first is told before the
            // second is decoded.
            let created = control.create_many(&scope, pods, gang, idempotency_key);
            Ok(Response::new(created.await?))
        })
    }
}

impl Calls {
    /// As a generated service does, but for the answer's bytes.
    async fn watch(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let decoder = ProstCodec::<(), WatchPodsRequest>::default().decoder();
        let mut messages = Streaming::new_request(decoder, body, None, Some(MAX_REQUEST));
        let message = messages.message().await?;
        let message = message.ok_or_else(|| Status::internal("a request without a message"))?;
        let metadata = MetadataMap::from_headers(parts.headers);
        let request = Request::from_parts(metadata, parts.extensions, message);
        let events = self.0.watch_encoded(request).await?;
        let mut response = http::Response::new(Body::new(EventsBody::new(events)));
        let headers = response.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }
}
