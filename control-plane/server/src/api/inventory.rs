//! The operators' view.

use longship_proto::control::v1::inventory_server::Inventory;
use longship_proto::control::v1::{
    ListFlavorsRequest, ListFlavorsResponse, ListHostsRequest, ListHostsResponse,
};
use longship_scheduler::Flavors;
use tonic::{Request, Response, Status};

use super::Control;
use crate::reconcile::{Command, flavor};

#[tonic::async_trait]
impl Inventory for Control {
    async fn list_hosts(
        &self,
        _: Request<ListHostsRequest>,
    ) -> Result<Response<ListHostsResponse>, Status> {
        let hosts = self.ask(|answer| Command::ListHosts { answer }).await?;
        Ok(Response::new(ListHostsResponse { hosts }))
    }

    async fn list_flavors(
        &self,
        _: Request<ListFlavorsRequest>,
    ) -> Result<Response<ListFlavorsResponse>, Status> {
        let flavors = Flavors::standard().iter().map(flavor).collect();
        Ok(Response::new(ListFlavorsResponse { flavors }))
    }
}
