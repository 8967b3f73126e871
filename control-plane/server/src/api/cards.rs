//! The cards' streams.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longship_proto::control::v1::cards_server::Cards;
use longship_proto::control::v1::{FromCard, from_card};
use longship_proto::{Failure, FailureExt};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status, Streaming};

use super::Control;
use crate::auth::Caller;
use crate::inventory::Session;
use crate::outbox::{CardStream, Outbox};
use crate::reconcile::{CardNews, Command};
use crate::validate;

/// How long a card may take to register.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl Cards for Control {
    type AttachStream = CardStream;

    async fn attach(
        &self,
        request: Request<Streaming<FromCard>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        // Whoever comes when too many register waits here, before anything is read.
        let _turn = self.registrations.acquire().await;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(REGISTER_TIMEOUT, incoming.message()).await;
        let first = first.map_err(|_| {
            let late = format!("no registration within {REGISTER_TIMEOUT:?}");
            Failure::unavailable(late).into_status()
        })??;
        let Some(from_card::Message::Register(register)) = first.and_then(|first| first.message)
        else {
            let expected = "the first message must be `register`";
            return Err(Failure::invalid("message", expected).into_status());
        };
        let register = validate::register(register).map_err(Failure::into_status)?;
        let host = register.host.clone();
        if !caller.is_some_and(|caller| caller.is_card_of(&host)) {
            let other = format!("your certificate is not of host `{host}`");
            return Err(Failure {
                field: "register.host".into(),
                ..Failure::denied(other)
            }
            .into_status());
        }

        let office = self.role.office().map_err(Failure::into_status)?;
        let id = self.sessions.fetch_add(1, Ordering::Relaxed);
        let outbox = Arc::new(Outbox::default());
        let (stream, gone) = outbox.stream();
        let session = Session {
            id,
            outbox: Arc::clone(&outbox),
        };
        let register = Box::new(register);
        // Should the client break off just now, the lease takes the stream off again.
        let listener = Listener {
            stopping: self.stopping.clone(),
            commands: office.commands.clone(),
            outbox,
            host,
            session: id,
        };
        let answered = self.ask_in(&office, |answer| Command::Attach {
            register,
            session,
            answer,
        });
        if let Err(status) = answered.await {
            listener.pass_on(CardNews::Gone).await;
            return Err(status);
        }
        // A former leader must not tell a card what to run.
        if !office.holds() {
            return Err(self.role.unavailable().into_status());
        }
        tokio::spawn(listener.listen(incoming, gone));
        Ok(Response::new(stream))
    }
}

/// Hears one card's stream.
struct Listener {
    stopping: watch::Receiver<bool>,
    /// Of the office in which the card attached.
    commands: mpsc::Sender<Command>,
    outbox: Arc<Outbox>,
    host: String,
    session: u64,
}

impl Listener {
    /// Until the card is silent for good, or nobody listens to the answers any more
    /// (`gone` resolves then), or nobody decides here any more.
    async fn listen(self, mut incoming: Streaming<FromCard>, mut gone: oneshot::Receiver<()>) {
        let mut stopping = self.stopping.clone();
        loop {
            let message = tokio::select! {
                message = incoming.message() => message,
                _ = &mut gone => break,
                () = self.commands.closed() => {
                    let over = "this replica does not lead any more: attach again";
                    return self.outbox.end(Failure::unavailable(over).into_status());
                }
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            let message = match message {
                Ok(Some(message)) => message.message,
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(host = self.host, %status, "a card's stream broke");
                    break;
                }
            };
            let news = match message {
                Some(from_card::Message::Heartbeat(_)) => CardNews::Heartbeat,
                Some(from_card::Message::Reports(all)) => CardNews::Reports(all.reports),
                Some(from_card::Message::Images(all)) => CardNews::Images(all.reports),
                Some(from_card::Message::Register(_)) | None => {
                    tracing::warn!(host = self.host, "a message that has no place here");
                    continue;
                }
            };
            if !self.pass_on(news).await {
                break;
            }
        }
        self.pass_on(CardNews::Gone).await;
    }

    async fn pass_on(&self, news: CardNews) -> bool {
        let command = Command::FromCard {
            host: self.host.clone(),
            session: self.session,
            news,
        };
        self.commands.send(command).await.is_ok()
    }
}
