//! A control plane that assigns what it is told to, and remembers what it hears.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use longship_proto::control::v1::cards_server::{Cards, CardsServer};
use longship_proto::control::v1::{
    Assignments, Changes, Container, Eni, Flavor, FromCard, ObjectMeta, Phase, Pod, PodReport,
    PodSpec, PodStatus, Registered, ToCard, from_card, to_card,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

#[derive(Default)]
struct State {
    to_card: Option<mpsc::UnboundedSender<ToCard>>,
    latest: HashMap<String, PodStatus>,
    generations: HashMap<String, u64>,
    reports: usize,
}

pub(crate) struct PlayedControl {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    attached: watch::Receiver<bool>,
}

struct Service {
    state: Arc<Mutex<State>>,
    attached: watch::Sender<bool>,
}

#[tonic::async_trait]
impl Cards for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<ToCard, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<FromCard>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let (to_card, queue) = mpsc::unbounded_channel();
        for message in [
            to_card::Message::Registered(Registered {
                lease_ms: 60_000,
                token_key: vec![1; 32],
            }),
            to_card::Message::Assignments(Assignments::default()),
        ] {
            let message = Some(message);
            to_card.send(ToCard { message }).unwrap();
        }
        let state = self.state.clone();
        state.lock().unwrap().to_card = Some(to_card);
        self.attached.send_replace(true);
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if let Some(from_card::Message::Reports(all)) = message.message {
                    let mut state = state.lock().unwrap();
                    for report in all.reports {
                        let PodReport {
                            uid,
                            generation,
                            status,
                        } = report;
                        state.reports += 1;
                        state.generations.insert(uid.clone(), generation);
                        state.latest.insert(uid, status.unwrap());
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(
            UnboundedReceiverStream::new(queue).map(Ok),
        )))
    }
}

impl PlayedControl {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (attached, seen) = watch::channel(false);
        let service = Service {
            state: state.clone(),
            attached,
        };
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(CardsServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self {
            address,
            state,
            attached: seen,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) async fn attached(&self) {
        self.attached.clone().wait_for(|a| *a).await.unwrap();
    }

    pub(crate) fn assign(&self, pod: Pod) {
        let changes = Changes {
            assign: vec![pod],
            ..Changes::default()
        };
        let message = Some(to_card::Message::Changes(changes));
        let state = self.state.lock().unwrap();
        state
            .to_card
            .as_ref()
            .unwrap()
            .send(ToCard { message })
            .unwrap();
    }

    pub(crate) fn in_phase(&self, phase: Phase) -> HashSet<String> {
        let state = self.state.lock().unwrap();
        let found = state.latest.iter().filter(|(_, s)| s.phase() == phase);
        found.map(|(uid, _)| uid.clone()).collect()
    }

    /// Why pods have failed.
    pub(crate) fn failures(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let failed = state.latest.iter();
        failed
            .filter(|(_, s)| s.phase() == Phase::Failed)
            .map(|(uid, s)| format!("{uid}: {} {}", s.reason, s.message))
            .collect()
    }

    /// The generation of which the latest report of a pod speaks.
    pub(crate) fn generation(&self, number: u32) -> u64 {
        let state = self.state.lock().unwrap();
        let generation = state.generations.get(&uid(number));
        generation.copied().unwrap_or_default()
    }

    pub(crate) fn reports(&self) -> usize {
        self.state.lock().unwrap().reports
    }
}

pub(crate) fn uid(number: u32) -> String {
    format!("00000000-0000-0000-0000-{number:012}")
}

pub(crate) fn pod(number: u32, image: &str) -> Pod {
    let (high, low) = (number / 200, number % 200 + 2);
    Pod {
        metadata: Some(ObjectMeta {
            name: format!("pod-{number}"),
            namespace: "default".into(),
            uid: uid(number),
            generation: 1,
            created_us: 1,
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "c".into(),
                image: image.into(),
                command: vec!["/x".into()],
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            eni: Some(Eni {
                vpc: "burst".into(),
                address: format!("10.99.{high}.{low}"),
                prefix_length: 16,
                gateway: "10.99.0.1".into(),
                mac: format!("02:00:0a:63:{high:02x}:{low:02x}"),
                mtu: 1500,
            }),
            flavor: Some(Flavor {
                name: "f".into(),
                cpu_millis: 250,
                memory_bytes: 128 << 20,
                vcpus: 1,
                ..Flavor::default()
            }),
            ..PodStatus::default()
        }),
    }
}

/// The same pod in another life.
pub(crate) fn again(number: u32, image: &str, generation: u64) -> Pod {
    let mut pod = pod(number, image);
    pod.metadata.as_mut().unwrap().generation = generation;
    pod
}

/// The same pod, which is to go.
pub(crate) fn deleted(number: u32, image: &str) -> Pod {
    let mut pod = pod(number, image);
    pod.metadata.as_mut().unwrap().deleted_us = 2;
    pod
}
