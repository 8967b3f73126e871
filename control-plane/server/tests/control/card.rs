//! A card that speaks the real protocol, and does what the test says.

use std::collections::VecDeque;

use longship_proto::control::v1::cards_client::CardsClient;
use longship_proto::control::v1::{
    FromCard, Heartbeat, HeldPod, HostCapacity, ImageReport, ImageReports, Phase, Pod, PodReport,
    PodReports, PodStatus, Register, Stage, ToCard, from_card, to_card,
};
use longship_proto::{Failure, failure_of};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::setup::{Control, PATIENCE, meta, status};

pub(crate) struct Card {
    to_control: mpsc::Sender<FromCard>,
    from_control: Streaming<ToCard>,
    pub(crate) lease_ms: u32,
    pub(crate) token_key: Vec<u8>,
    /// As they were sent when the card attached.
    pub(crate) assignments: Vec<Pod>,
    /// Told, and not asked for yet.
    changes: VecDeque<Change>,
    /// What it was told to keep, last.
    images: Option<Vec<String>>,
}

/// What a card is told.
#[derive(Debug)]
pub(crate) enum Change {
    Assign(Box<Pod>),
    Release(String),
}

/// A registration of a host with 4 CPUs and 8 GiB.
pub(crate) fn register(host: &str, zone: &str) -> Register {
    Register {
        host: host.into(),
        zone: zone.into(),
        capacity: Some(HostCapacity {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            pods: 100,
            ..HostCapacity::default()
        }),
        endpoint: format!("http://{host}.cards:7702"),
        held: Vec::new(),
        family: String::new(),
    }
}

impl Card {
    pub(crate) async fn attach(control: &Control, host: &str, zone: &str) -> Self {
        Self::attach_as(control, register(host, zone))
            .await
            .unwrap()
    }

    pub(crate) async fn attach_as(control: &Control, register: Register) -> Result<Self, Failure> {
        Self::attach_over(control.channel().await, register).await
    }

    pub(crate) async fn attach_over(channel: Channel, register: Register) -> Result<Self, Failure> {
        let (to_control, outgoing) = mpsc::channel(64);
        send(&to_control, from_card::Message::Register(register)).await;
        let mut client = CardsClient::new(channel);
        let stream = client.attach(ReceiverStream::new(outgoing)).await;
        let mut from_control = stream.map_err(|s| failure_of(&s))?.into_inner();
        let mut next = async || {
            let message = from_control.message().await.map_err(|s| failure_of(&s))?;
            Ok::<_, Failure>(message.and_then(|message| message.message))
        };
        let Some(to_card::Message::Registered(registered)) = next().await? else {
            panic!("not registered");
        };
        let Some(to_card::Message::Assignments(assignments)) = next().await? else {
            panic!("no assignments");
        };
        Ok(Self {
            to_control,
            from_control,
            lease_ms: registered.lease_ms,
            token_key: registered.token_key,
            assignments: assignments.pods,
            changes: VecDeque::new(),
            images: None,
        })
    }

    /// The next change, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Change>, Failure> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(Some(change));
            }
            match self.next_message().await? {
                Some(to_card::Message::Changes(all)) => {
                    let boxed = all.assign.into_iter().map(Box::new);
                    let assign = boxed.map(Change::Assign);
                    self.changes.extend(assign);
                    let releases = all.release_uids.into_iter().map(Change::Release);
                    self.changes.extend(releases);
                }
                Some(to_card::Message::Images(images)) => self.images = Some(images.images),
                Some(other) => panic!("no change but {other:?}"),
                None => return Ok(None),
            }
        }
    }

    /// Waits until it is told to keep exactly these.
    pub(crate) async fn wait_images(&mut self, wanted: &[&str]) {
        while self.images.as_ref().is_none_or(|images| images != wanted) {
            let told = tokio::time::timeout(PATIENCE, self.next_message()).await;
            match told.expect("a message in time").unwrap() {
                Some(to_card::Message::Images(images)) => self.images = Some(images.images),
                other => panic!("no images but {other:?}"),
            }
        }
    }

    /// Says which images it has, and why not the others.
    pub(crate) async fn report_images(&self, images: &[(&str, &str)]) {
        let reports = images.iter().map(|(image, why)| ImageReport {
            image: (*image).into(),
            ready: why.is_empty(),
            message: (*why).into(),
        });
        let reports = ImageReports {
            reports: reports.collect(),
        };
        send(&self.to_control, from_card::Message::Images(reports)).await;
    }

    async fn next_message(&mut self) -> Result<Option<to_card::Message>, Failure> {
        let message = tokio::time::timeout(PATIENCE, self.from_control.message());
        let message = message.await.expect("a message in time");
        let message = message.map_err(|status| failure_of(&status))?;
        Ok(message.and_then(|message| message.message))
    }

    pub(crate) async fn next_assigned(&mut self) -> Pod {
        match self.next().await.unwrap() {
            Some(Change::Assign(pod)) => *pod,
            other => panic!("no assignment but {other:?}"),
        }
    }

    pub(crate) async fn next_release(&mut self) -> String {
        match self.next().await.unwrap() {
            Some(Change::Release(uid)) => uid,
            other => panic!("no release but {other:?}"),
        }
    }

    pub(crate) async fn heartbeat(&self) {
        send(
            &self.to_control,
            from_card::Message::Heartbeat(Heartbeat {}),
        )
        .await;
    }

    /// Reports that the pod is in that phase, as a card does: with all it knows.
    pub(crate) async fn report(&self, pod: &Pod, phase: Phase) {
        let mut reported = status(pod).clone();
        reported.set_phase(phase);
        reported.timeline.push(Stage {
            name: "image".into(),
            component: "card".into(),
            start_us: meta(pod).created_us + 1,
            end_us: meta(pod).created_us + 2,
        });
        self.report_as(&meta(pod).uid, meta(pod).generation, reported)
            .await;
    }

    pub(crate) async fn report_as(&self, uid: &str, generation: u64, status: PodStatus) {
        let report = PodReport {
            uid: uid.into(),
            generation,
            status: Some(status),
        };
        send(
            &self.to_control,
            from_card::Message::Reports(PodReports {
                reports: vec![report],
            }),
        )
        .await;
    }
}

async fn send(to_control: &mpsc::Sender<FromCard>, message: from_card::Message) {
    let message = FromCard {
        message: Some(message),
    };
    // A stream that the server has ended takes nothing any more.
    let _ = to_control.send(message).await;
}

pub(crate) fn held(uid: &str) -> HeldPod {
    HeldPod {
        uid: uid.into(),
        generation: 1,
    }
}
