//! Asking a server whether it serves, by gRPC's health protocol (`grpc.health.v1`).

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// `SERVING` of the protocol.
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Check {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Checked {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Whether that server decides: of several control planes, only the leader serves cards.
///
/// # Errors
/// Where it does not answer, or not that question.
pub async fn leads(channel: &Channel) -> Result<bool, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let check = Check {
        service: "longship.control.v1.Cards".to_owned(),
    };
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<Check, Checked>::default();
    let checked = grpc.unary(Request::new(check), path, codec).await?;
    Ok(checked.into_inner().status == SERVING)
}
