//! `CardAdmin`, for operators, on the card's own socket only.

use std::sync::Arc;

use longship_proto::card::v1::card_admin_server::CardAdmin;
use longship_proto::card::v1::{Held, ListHeldRequest, ListHeldResponse};
use longship_proto::{Failure, FailureExt};
use tonic::{Request, Response, Status};

use crate::card::Card;

/// The service.
pub(crate) struct Admin {
    card: Arc<Card>,
}

impl Admin {
    /// Serves `card`'s books.
    pub(crate) fn new(card: Arc<Card>) -> Self {
        Self { card }
    }
}

#[tonic::async_trait]
impl CardAdmin for Admin {
    async fn list_held(
        &self,
        _: Request<ListHeldRequest>,
    ) -> Result<Response<ListHeldResponse>, Status> {
        let held = self
            .card
            .journal
            .held()
            .map_err(|e| Failure::from(e).into_status())?;
        let held = held.into_iter().map(|item| Held {
            pod_uid: item.pod_uid,
            kind: item.kind,
            name: item.name,
        });
        Ok(Response::new(ListHeldResponse {
            held: held.collect(),
        }))
    }
}
