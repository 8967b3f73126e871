//! `PodStreams`: logs and exec, straight from the card to the client.

use std::pin::Pin;
use std::sync::Arc;

use longship_proto::card::v1::pod_streams_server::PodStreams;
use longship_proto::card::v1::{ExecInput, ExecOutput, LogChunk, LogsRequest, exec_input};
use longship_proto::{Failure, FailureExt, token};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::exec;
use crate::card::Card;
use crate::reconciler::Reconciler;
use longship_proto::now_us;

/// Chunks on their way to a client: a slow one stops its own reading, nothing else.
const OUTGOING: usize = 16;

/// The service.
pub(crate) struct Streams {
    card: Arc<Card>,
    reconciler: Arc<Reconciler>,
    token_key: watch::Receiver<Option<Vec<u8>>>,
}

impl Streams {
    /// Serves the pods of `reconciler` to whoever has a token signed with the key.
    pub(crate) fn new(
        card: Arc<Card>,
        reconciler: Arc<Reconciler>,
        token_key: watch::Receiver<Option<Vec<u8>>>,
    ) -> Self {
        Self {
            card,
            reconciler,
            token_key,
        }
    }

    /// The token of a call, which must be good for `pod_uid`.
    fn authorize(&self, token: Option<String>, pod_uid: &str) -> Result<(), Failure> {
        let token = token.ok_or_else(|| {
            Failure::denied("the call carries no `authorization: Bearer …` token")
        })?;
        let key = self.token_key.borrow().clone();
        let key = key.ok_or_else(|| {
            Failure::unavailable("the card is not registered yet and cannot check tokens")
        })?;
        token::verify(&key, &token, pod_uid, now_us())
            .map_err(|e| Failure::denied(format!("the access token is refused: {e}")))?;
        Ok(())
    }
}

fn bearer(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(str::to_owned)
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PodStreams for Streams {
    type LogsStream = Outgoing<LogChunk>;
    type ExecStream = Outgoing<ExecOutput>;

    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let token = bearer(request.metadata());
        let request = request.into_inner();
        let reader = (|| {
            self.authorize(token, &request.pod_uid)?;
            let container = self.reconciler.access(&request.pod_uid)?;
            let container = container.container(&request.container)?;
            let log = self.card.logs.log(&request.pod_uid, &container);
            log.and_then(|log| log.read(request.follow, request.tail_lines))
                .map_err(|e| Failure::internal(format!("read the log: {e}")))
        })();
        let mut reader = reader.map_err(Failure::into_status)?;
        let (chunks, outgoing) = mpsc::channel(OUTGOING);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = reader.next() => next,
                    () = chunks.closed() => return,
                };
                let chunk = match next {
                    Ok(Some(chunk)) => Ok(chunk),
                    Ok(None) => return,
                    Err(e) => Err(Failure::internal(format!("read the log: {e}")).into_status()),
                };
                let failed = chunk.is_err();
                if chunks.send(chunk).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn exec(
        &self,
        request: Request<Streaming<ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let token = bearer(request.metadata());
        let mut input = request.into_inner();
        let Some(ExecInput {
            input: Some(exec_input::Input::Start(start)),
        }) = input.message().await?
        else {
            let failure = Failure::invalid("input", "the first input must be `start`");
            return Err(failure.into_status());
        };
        let access = self
            .authorize(token, &start.pod_uid)
            .and_then(|()| self.reconciler.access(&start.pod_uid))
            .map_err(Failure::into_status)?;
        let (output, outgoing) = mpsc::channel(OUTGOING);
        let (begun, began) = oneshot::channel();
        // A task of its own: a client that leaves while its process is being started
        // must not leave that behind. It has closed `output`, which ends the session.
        tokio::spawn(async move {
            match exec::Session::begin(&access, start).await {
                Ok(session) => {
                    let _ = begun.send(Ok(()));
                    session.serve(input, output).await;
                }
                Err(failure) => {
                    let _ = begun.send(Err(failure.into_status()));
                }
            }
        });
        began
            .await
            .map_err(|_| Failure::internal("the exec's task ended").into_status())??;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
