//! Capacity reservations.

use longship_proto::control::v1::capacity_server::Capacity;
use longship_proto::control::v1::{
    CapacityReservation, CreateReservationRequest, DeleteReservationRequest,
    DeleteReservationResponse, ListReservationsRequest, ListReservationsResponse,
};
use longship_proto::{Failure, FailureExt, now_us};
use tonic::{Request, Response, Status};

use super::Control;
use crate::reconcile::Command;
use crate::validate;

#[tonic::async_trait]
impl Capacity for Control {
    async fn create_reservation(
        &self,
        request: Request<CreateReservationRequest>,
    ) -> Result<Response<CapacityReservation>, Status> {
        let scope = self.scope(&request)?;
        let given = request.into_inner().reservation;
        let given =
            given.ok_or_else(|| Failure::invalid("reservation", "must be given").into_status())?;
        let reservation = validate::reservation(given, now_us()).map_err(Failure::into_status)?;
        let tenant = scope.tenant("reservation.tenant", &reservation.tenant);
        let reservation = CapacityReservation {
            tenant: tenant.map_err(Failure::into_status)?,
            ..reservation
        };
        let kept = self.ask(|answer| Command::Reserve {
            reservation,
            answer,
        });
        Ok(Response::new(kept.await?))
    }

    async fn list_reservations(
        &self,
        request: Request<ListReservationsRequest>,
    ) -> Result<Response<ListReservationsResponse>, Status> {
        let tenant = self
            .scope(&request)?
            .tenants("tenant", &request.get_ref().tenant)
            .map_err(Failure::into_status)?;
        let found = self.ask(|answer| Command::ListReservations { tenant, answer });
        Ok(Response::new(ListReservationsResponse {
            reservations: found.await?,
        }))
    }

    async fn delete_reservation(
        &self,
        request: Request<DeleteReservationRequest>,
    ) -> Result<Response<DeleteReservationResponse>, Status> {
        let scope = self.scope(&request)?;
        let DeleteReservationRequest { tenant, name } = request.into_inner();
        let tenant = scope
            .tenant("tenant", &tenant)
            .map_err(Failure::into_status)?;
        validate::dns_label("name", &name).map_err(Failure::into_status)?;
        let ended = self.ask(|answer| Command::EndReservation {
            tenant,
            name,
            answer,
        });
        ended.await?;
        Ok(Response::new(DeleteReservationResponse {}))
    }
}
