//! The card's link to the control plane: registered, kept by heartbeats, made anew
//! whenever it breaks.

use std::sync::Arc;
use std::time::Duration;

use longship_proto::control::v1::cards_client::CardsClient;
use longship_proto::control::v1::{
    FromCard, Heartbeat, ImageReports, Pod, PodReports, Register, ToCard, from_card, to_card,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Endpoint;
use tracing::{info, warn};

use crate::keeper::Keeper;
use crate::reconciler::Reconciler;
use crate::status::Reports;

/// The wait after the first failed attempt; it doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// The longest wait between attempts.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The same, where there are several control planes.
const RETRY_MAX_REPLICAS: Duration = Duration::from_secs(1);
/// The largest message taken, in bytes. Assignments come in parts.
const MESSAGE_BYTES: usize = 8 << 20;
/// Pods that one host is told of, at most.
const MAX_PODS: usize = 100_000;
/// Messages on their way to the control plane.
const OUTGOING: usize = 64;

/// Everything the link needs.
pub(crate) struct Link {
    /// The control plane: its replicas, of which one leads. At least one.
    pub(crate) endpoints: Vec<Endpoint>,
    /// What this card says of itself; `held` is filled in at each registration.
    pub(crate) register: Register,
    /// The pods.
    pub(crate) reconciler: Arc<Reconciler>,
    /// Images that are kept ready.
    pub(crate) keeper: Arc<Keeper>,
    /// News of them.
    pub(crate) reports: Arc<Reports>,
    /// The key for access tokens, once the control plane has given one.
    pub(crate) token_key: watch::Sender<Option<Vec<u8>>>,
}

impl Link {
    /// Keeps the link for as long as the card lives.
    pub(crate) async fn keep(&self) {
        let mut wait = RETRY_MIN;
        // Who has only one control plane spares it; another replica leads soon.
        let most = match self.endpoints.len() {
            1 => RETRY_MAX,
            _ => RETRY_MAX_REPLICAS,
        };
        loop {
            for endpoint in &self.endpoints {
                match self.attach(endpoint, &mut wait).await {
                    Ok(()) => warn!("the control plane closed the link"),
                    Err(status) => {
                        warn!(
                            control = %endpoint.uri(),
                            error = status.message(),
                            "no link to the control plane, trying on"
                        );
                    }
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(most);
        }
    }

    async fn attach(&self, endpoint: &Endpoint, wait: &mut Duration) -> Result<(), Status> {
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|e| Status::unavailable(chain(&e)))?;
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let register = Register {
            held: self.reconciler.held(),
            ..self.register.clone()
        };
        send(&outgoing, from_card::Message::Register(register)).await?;
        let stream = CardsClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .attach(ReceiverStream::new(queue))
            .await?;
        let mut stream = stream.into_inner();

        let Some(ToCard {
            message: Some(to_card::Message::Registered(registered)),
        }) = stream.message().await?
        else {
            return Err(Status::internal(
                "the control plane did not answer the registration",
            ));
        };
        info!(
            host = self.register.host,
            lease_ms = registered.lease_ms,
            "registered"
        );
        *wait = RETRY_MIN;
        self.token_key.send_replace(Some(registered.token_key));
        self.reports.resend();
        self.keeper.resend();

        let lease = Duration::from_millis(u64::from(registered.lease_ms.max(300)));
        let mut told = Vec::new();
        let mut heartbeat = tokio::time::interval(lease / 3);
        loop {
            tokio::select! {
                message = stream.message() => match message? {
                    Some(message) => self.receive(message, &mut told)?,
                    None => return Ok(()),
                },
                reports = self.reports.next() => {
                    let reports = PodReports { reports };
                    send(&outgoing, from_card::Message::Reports(reports)).await?;
                }
                reports = self.keeper.next() => {
                    let reports = ImageReports { reports };
                    send(&outgoing, from_card::Message::Images(reports)).await?;
                }
                _ = heartbeat.tick() => {
                    send(&outgoing, from_card::Message::Heartbeat(Heartbeat {})).await?;
                }
            }
        }
    }

    /// Takes a message. What comes in parts is gathered in `told` until it is whole.
    fn receive(&self, message: ToCard, told: &mut Vec<Pod>) -> Result<(), Status> {
        match message.message {
            Some(to_card::Message::Assignments(part)) => {
                if told.len().saturating_add(part.pods.len()) > MAX_PODS {
                    return Err(Status::resource_exhausted("more pods than a host can have"));
                }
                told.extend(part.pods);
                if !part.more {
                    self.reconciler.assign_all(std::mem::take(told));
                }
            }
            Some(to_card::Message::Changes(changes)) => {
                for pod in changes.assign {
                    self.reconciler.assign(pod);
                }
                for uid in changes.release_uids {
                    self.reconciler.release(&uid);
                }
            }
            Some(to_card::Message::Images(all)) => self.keeper.want(all.images),
            Some(to_card::Message::Registered(_)) | None => {
                warn!("the control plane sent a message that has no place here");
            }
        }
        Ok(())
    }
}

async fn send(queue: &mpsc::Sender<FromCard>, message: from_card::Message) -> Result<(), Status> {
    let sent = queue
        .send(FromCard {
            message: Some(message),
        })
        .await;
    sent.map_err(|_| Status::unavailable("the link is closed"))
}

/// An error with its causes: a transport's own text says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
