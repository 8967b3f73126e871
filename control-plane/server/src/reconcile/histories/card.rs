//! A card that does what it is told, and no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use longship_proto::control::v1::{Flavor, Pod, to_card};
use tokio_stream::StreamExt;

use crate::outbox::{CardStream, Outbox};

/// What runs on a card.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) pod: Pod,
    /// It has been told that the pod shall go.
    pub(super) to_go: bool,
    /// It has given the sandbox back.
    pub(super) over: bool,
}

impl Running {
    pub(super) fn generation(&self) -> u64 {
        self.pod.metadata.as_ref().unwrap().generation
    }

    pub(super) fn flavor(&self) -> &Flavor {
        self.pod.status.as_ref().unwrap().flavor.as_ref().unwrap()
    }
}

#[derive(Debug, Default)]
pub(super) struct Card {
    stream: Option<CardStream>,
    pub(super) session: u64,
    pub(super) running: BTreeMap<String, Running>,
    /// It has nothing of these, and has been told that they shall go.
    pub(super) unknown: Vec<Pod>,
}

impl Card {
    pub(super) fn attach(&mut self, session: u64, outbox: &Arc<Outbox>) {
        self.stream = Some(outbox.stream().0);
        self.session = session;
    }

    pub(super) fn detach(&mut self) {
        self.stream = None;
    }

    pub(super) fn is_attached(&self) -> bool {
        self.stream.is_some()
    }

    /// Hears all that it has been told.
    pub(super) async fn hear(&mut self) {
        let Some(mut stream) = self.stream.take() else {
            return;
        };
        let mut all: Vec<Pod> = Vec::new();
        loop {
            let next = std::future::poll_fn(|cx| {
                let next = std::pin::pin!(stream.next()).as_mut().poll(cx);
                std::task::Poll::Ready(next)
            });
            match next.await {
                std::task::Poll::Pending => break,
                std::task::Poll::Ready(Some(Ok(message))) => match message.message.unwrap() {
                    to_card::Message::Assignments(part) => {
                        all.extend(part.pods);
                        if !part.more {
                            self.take_all(std::mem::take(&mut all));
                        }
                    }
                    to_card::Message::Changes(changes) => {
                        for pod in changes.assign {
                            self.assign(pod);
                        }
                        for uid in changes.release_uids {
                            self.running.remove(&uid);
                        }
                    }
                    _ => {}
                },
                // It was cut off.
                std::task::Poll::Ready(_) => return,
            }
        }
        self.stream = Some(stream);
    }

    fn take_all(&mut self, pods: Vec<Pod>) {
        let uids = pods
            .iter()
            .map(|pod| pod.metadata.as_ref().unwrap().uid.clone());
        let uids: std::collections::BTreeSet<String> = uids.collect();
        self.running.retain(|uid, _| uids.contains(uid));
        for pod in pods {
            self.assign(pod);
        }
    }

    fn assign(&mut self, pod: Pod) {
        let meta = pod.metadata.clone().unwrap();
        let to_go = meta.deleted_us > 0;
        let over = crate::phase::is_over(pod.status.as_ref().unwrap().phase());
        match self.running.get_mut(&meta.uid) {
            Some(running) if running.generation() > meta.generation => {}
            Some(running) if running.generation() == meta.generation => running.to_go |= to_go,
            // A new life, which begins when the former one has gone.
            _ if !to_go => {
                self.running.insert(meta.uid, Running { pod, to_go, over });
            }
            _ => {
                self.running.remove(&meta.uid);
                self.unknown.push(pod);
            }
        }
    }
}
