//! The operators' view.

use longship_proto::control::v1::inventory_server::Inventory;
use longship_proto::control::v1::{
    CordonHostRequest, DrainHostRequest, Host, ListFlavorsRequest, ListFlavorsResponse,
    ListHostsRequest, ListHostsResponse, ListZonesRequest, ListZonesResponse, RemoveHostRequest,
    RemoveHostResponse, UncordonHostRequest,
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
        let page = self.ask(|answer| Command::ListHosts {
            zone: None,
            after: String::new(),
            limit: usize::MAX,
            answer,
        });
        Ok(Response::new(ListHostsResponse {
            hosts: page.await?.hosts,
            next_page_token: String::new(),
        }))
    }

    async fn list_flavors(
        &self,
        _: Request<ListFlavorsRequest>,
    ) -> Result<Response<ListFlavorsResponse>, Status> {
        let flavors = Flavors::standard().iter().map(flavor).collect();
        Ok(Response::new(ListFlavorsResponse { flavors }))
    }

    async fn list_zones(
        &self,
        _: Request<ListZonesRequest>,
    ) -> Result<Response<ListZonesResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn cordon_host(&self, _: Request<CordonHostRequest>) -> Result<Response<Host>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn uncordon_host(
        &self,
        _: Request<UncordonHostRequest>,
    ) -> Result<Response<Host>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn drain_host(&self, _: Request<DrainHostRequest>) -> Result<Response<Host>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn remove_host(
        &self,
        _: Request<RemoveHostRequest>,
    ) -> Result<Response<RemoveHostResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}
