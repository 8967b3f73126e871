//! A pod's streams, straight from its card.

use std::time::Duration;

use longship_proto::card::v1::card_admin_client::CardAdminClient;
use longship_proto::card::v1::pod_streams_client::PodStreamsClient;
use longship_proto::card::v1::{
    ExecInput, ExecOutput, GetUsageRequest, GetUsageResponse, Held, ListHeldRequest, LogChunk,
    LogsRequest,
};
use tokio_stream::Stream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig};
use tonic::{Request, Streaming};

use crate::error::CliError;
use crate::server::{Server, connect};

/// For the card to answer its operator; it asks the host's agent itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer in bytes: some hundred for each pod.
const MESSAGE_BYTES: usize = 64 << 20;

/// The streams of one pod.
#[derive(Debug)]
pub(crate) struct PodStreams {
    client: PodStreamsClient<Channel>,
    authorization: MetadataValue<Ascii>,
    uid: String,
}

impl PodStreams {
    /// Asks the control plane where the pod's card is, and connects to that.
    ///
    /// # Errors
    /// The control plane's refusal, or [`CliError::Unreachable`].
    pub(crate) async fn open(
        server: &mut Server,
        namespace: &str,
        name: &str,
    ) -> Result<Self, CliError> {
        let access = server.access(namespace, name).await?;
        let authorization = format!("Bearer {}", access.token)
            .parse()
            .map_err(|_| CliError::Other("the control plane gave no valid token".to_owned()))?;
        let tls = server.tls_of_cards();
        let channel = connect("the pod's card", &access.endpoint, "", tls).await?;
        Ok(Self {
            client: PodStreamsClient::new(channel),
            authorization,
            uid: access.pod_uid,
        })
    }

    /// The pod that the streams are of.
    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    pub(crate) async fn logs(
        &mut self,
        container: &str,
        follow: bool,
        tail_lines: Option<u64>,
    ) -> Result<Streaming<LogChunk>, CliError> {
        let request = self.authorized(LogsRequest {
            pod_uid: self.uid.clone(),
            container: container.to_owned(),
            follow,
            tail_lines,
        });
        Ok(self.client.logs(request).await?.into_inner())
    }

    pub(crate) async fn exec(
        &mut self,
        input: impl Stream<Item = ExecInput> + Send + 'static,
    ) -> Result<Streaming<ExecOutput>, CliError> {
        let request = self.authorized(input);
        Ok(self.client.exec(request).await?.into_inner())
    }

    fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let authorization = self.authorization.clone();
        request
            .metadata_mut()
            .insert("authorization", authorization);
        request
    }
}

/// What a card holds, from its operators' socket at `address`.
///
/// # Errors
/// [`CliError::Unreachable`], or the card's refusal.
pub(crate) async fn list_held(address: &str) -> Result<Vec<Held>, CliError> {
    let mut card = admin(address).await?;
    Ok(answered(card.list_held(ListHeldRequest {})).await?.held)
}

/// What a card's pods cost, from its operators' socket at `address`.
///
/// # Errors
/// [`CliError::Unreachable`], or the card's refusal.
pub(crate) async fn usage(address: &str) -> Result<GetUsageResponse, CliError> {
    let mut card = admin(address).await?;
    answered(card.get_usage(GetUsageRequest {})).await
}

async fn admin(address: &str) -> Result<CardAdminClient<Channel>, CliError> {
    let hint = "; `longship up` says where its operators' socket is (--card)";
    let channel = connect("the card", address, hint, ClientTlsConfig::new()).await?;
    Ok(CardAdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES))
}

async fn answered<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CliError> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(CliError::Other(format!(
            "the card did not answer within {} s",
            PATIENCE.as_secs()
        ))),
    }
}
