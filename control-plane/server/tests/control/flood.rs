//! Clients that send too much, too slowly, or never read: refused or bounded, and the
//! process's memory stays where it is.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Frame;
use longship_proto::control::v1::pods_client::PodsClient;
use longship_proto::control::v1::{
    CreatePodRequest, CreatePodsResponse, DeletePodRequest, Pod, WatchPodsRequest,
};
use longship_proto::{Class, Failure, failure_of};
use prost::Message;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::{Bytes, Service, http};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::process::{Running, start};
use crate::setup::{PATIENCE, answer, pod};

/// What the process may take beside what it takes when it has just begun, in bytes.
const MOST: u64 = 256 << 20;

/// The most that the process has taken since it was looked at last, in bytes.
fn peak(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

struct Flooded {
    running: Running,
    url: String,
    before: u64,
    _state: tempfile::TempDir,
}

impl Flooded {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let (running, url) = start(state.path());
        let before = peak(&running);
        Self {
            running,
            url,
            before,
            _state: state,
        }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(self.url.clone()).unwrap();
        endpoint.connect().await.unwrap()
    }

    async fn pods(&self) -> PodsClient<Channel> {
        PodsClient::new(self.channel().await)
    }

    /// It still serves, and has not grown.
    async fn check(&self, what: &str) {
        let name = format!("after-{what}");
        let request = CreatePodRequest {
            pod: Some(pod(&name, 250, 128)),
            ..CreatePodRequest::default()
        };
        let created = tokio::time::timeout(PATIENCE, self.pods().await.create_pod(request)).await;
        created.expect("an answer in time").unwrap();
        let grown = peak(&self.running).saturating_sub(self.before);
        println!("{what}: at most {} MiB more than at first", grown >> 20);
        assert!(grown < MOST, "{what}: {} MiB more", grown >> 20);
    }
}

/// Whatever a client may send in the place of new pods.
#[derive(Clone, PartialEq, Message)]
struct Anything {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pods: Vec<Vec<u8>>,
}

async fn send<Out: Message + Default + 'static>(
    channel: Channel,
    method: &'static str,
    request: Anything,
) -> Result<Out, Failure> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(method);
    let codec = ProstCodec::<Anything, Out>::default();
    let answered = grpc.unary(Request::new(request), path, codec).await;
    answer(answered)
}

const CREATE: &str = "/longship.control.v1.Pods/CreatePod";
const CREATE_MANY: &str = "/longship.control.v1.Pods/CreatePods";

/// A pod whose spec is `count` times the same two bytes: an empty container.
fn pod_of_empty_containers(count: usize) -> Vec<u8> {
    let mut spec = Vec::new();
    prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut spec);
    prost::encoding::encode_varint(u64::try_from(2 * count).unwrap(), &mut spec);
    spec.extend(std::iter::repeat_n([0x0a, 0], count).flatten());
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_refused_cheaply() {
    let flooded = Flooded::start();
    for _ in 0..4 {
        let mut huge = pod("huge", 250, 128);
        let annotations = &mut huge.metadata.as_mut().unwrap().annotations;
        annotations.insert("a".into(), "x".repeat(10 << 20));
        let request = CreatePodRequest {
            pod: Some(huge),
            ..CreatePodRequest::default()
        };
        let refused = answer(flooded.pods().await.create_pod(request).await);
        assert_eq!(refused.unwrap_err().class(), Class::Invalid, "10 MB");
    }
    flooded.check("ten-megabytes").await;

    for (count, field) in [(1_000_000, ""), (50_000, ""), (20_000, "metadata.labels")] {
        let mut labelled = pod("labels", 250, 128);
        let labels = &mut labelled.metadata.as_mut().unwrap().labels;
        labels.extend((0..count).map(|n| (format!("label-{n}"), String::new())));
        let request = CreatePodRequest {
            pod: Some(labelled),
            ..CreatePodRequest::default()
        };
        let refused = answer(flooded.pods().await.create_pod(request).await).unwrap_err();
        assert_eq!(refused.class(), Class::Invalid, "{count}: {refused}");
        assert_eq!(refused.field, field, "{count}: {refused}");
    }
    flooded.check("a-million-labels").await;

    // As messages these would be gigabytes.
    let calls = (0..8).map(|_| async {
        let empty = Anything {
            pods: vec![Vec::new(); 2_000_000],
        };
        let channel = flooded.channel().await;
        let refused = send::<CreatePodsResponse>(channel, CREATE_MANY, empty).await;
        let refused = refused.unwrap_err();
        assert_eq!(
            (refused.class(), refused.field.as_str()),
            (Class::Invalid, "pods")
        );
    });
    for call in calls {
        call.await;
    }
    flooded.check("empty-pods").await;
    for count in [250_000, 400_000, 2_000_000] {
        let containers = || vec![pod_of_empty_containers(count)];
        let one = Anything { pods: containers() };
        let refused = send::<Pod>(flooded.channel().await, CREATE, one).await;
        assert_eq!(refused.unwrap_err().class(), Class::Invalid);
        let many = Anything { pods: containers() };
        let channel = flooded.channel().await;
        let refused = send::<CreatePodsResponse>(channel, CREATE_MANY, many).await;
        assert_eq!(refused.unwrap_err().class(), Class::Invalid);
    }
    flooded.check("empty-containers").await;
}

/// The first megabytes of a message, and then nothing for ever.
struct Half {
    left: usize,
    begun: bool,
}

impl http_body::Body for Half {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        const PART: usize = 16 << 10;
        if !self.begun {
            self.begun = true;
            // Not compressed, and 4,000,000 bytes long.
            let header = Bytes::from_static(&[0, 0, 0x3d, 0x09, 0]);
            return Poll::Ready(Some(Ok(Frame::data(header))));
        }
        if self.left < PART {
            return Poll::Pending;
        }
        self.left -= PART;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; PART])))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_get_no_more_memory_than_there_is_room_for() {
    let flooded = Flooded::start();
    let mut calls = tokio::task::JoinSet::new();
    // Of each connection HTTP/2 holds a megabyte besides.
    for _ in 0..40 {
        let shared = flooded.channel().await;
        for _ in 0..8 {
            let mut channel = shared.clone();
            let half = Half {
                left: 3 << 20,
                begun: false,
            };
            let request = http::Request::post(CREATE_MANY)
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Body::new(half))
                .unwrap();
            calls.spawn(async move {
                std::future::poll_fn(|cx| channel.poll_ready(cx))
                    .await
                    .unwrap();
                channel.call(request).await
            });
        }
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    flooded.check("slow-clients").await;
    assert!(
        calls.try_join_next().is_none(),
        "none of them is answered yet"
    );
    drop(calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_are_never_read_cost_next_to_nothing_and_end() {
    let flooded = Flooded::start();
    let mut watches = Vec::new();
    for _ in 0..20 {
        let channel = flooded.channel().await;
        for _ in 0..50 {
            let mut client = PodsClient::new(channel.clone());
            let opened = client
                .watch_pods(WatchPodsRequest::default())
                .await
                .unwrap();
            watches.push(opened.into_inner());
        }
    }
    let mut client = flooded.pods().await;
    // More than is kept for watchers, in memory and in the store.
    for n in 0..700 {
        let mut large = pod(&format!("large-{n}"), 250, 128);
        let annotations = &mut large.metadata.as_mut().unwrap().annotations;
        annotations.insert("ballast".into(), "x".repeat(120_000));
        let request = CreatePodRequest {
            pod: Some(large),
            ..CreatePodRequest::default()
        };
        client.create_pod(request).await.unwrap();
        let request = DeletePodRequest {
            name: format!("large-{n}"),
            ..DeletePodRequest::default()
        };
        client.delete_pod(request).await.unwrap();
    }
    flooded.check("unread-watches").await;
    let mut one = watches.swap_remove(500);
    drop(watches);
    let ended = loop {
        match tokio::time::timeout(PATIENCE, one.message())
            .await
            .expect("an end in time")
        {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break failure_of(&status),
        }
    };
    assert_eq!(ended.class(), Class::Exhausted, "{ended}");
}
