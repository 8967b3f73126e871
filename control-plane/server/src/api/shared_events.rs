//! The service of pods, whose watches send bytes that were encoded once for all
//! watchers.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use longship_proto::control::v1::WatchPodsRequest;
use longship_proto::control::v1::pods_server::PodsServer;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::{Control, Ending};
use crate::watch::EncodedEvent;

const WATCH: &str = "/longship.control.v1.Pods/WatchPods";

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// [`PodsServer`], but for its watches.
#[derive(Clone)]
pub(crate) struct PodsService {
    control: Control,
    others: PodsServer<Control>,
    most_bytes: usize,
}

impl PodsService {
    /// Takes requests of up to so many bytes.
    pub(crate) fn new(control: Control, most_bytes: usize) -> Self {
        let others = PodsServer::new(control.clone()).max_decoding_message_size(most_bytes);
        Self {
            control,
            others,
            most_bytes,
        }
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
        if request.uri().path() != WATCH {
            return self.others.call(request);
        }
        let watch = Watch(self.control.clone());
        let most_bytes = self.most_bytes;
        Box::pin(async move {
            let codec = ProstCodec::<EncodedEvent, WatchPodsRequest>::default();
            let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(most_bytes), None);
            Ok(grpc.server_streaming(watch, request).await)
        })
    }
}

struct Watch(Control);

impl ServerStreamingService<WatchPodsRequest> for Watch {
    type Response = EncodedEvent;
    type ResponseStream = Ending<EncodedEvent>;
    type Future = Answer<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<WatchPodsRequest>) -> Self::Future {
        let control = self.0.clone();
        Box::pin(async move { control.watch_encoded(request).await.map(Response::new) })
    }
}
