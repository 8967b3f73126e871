//! What there is to run pods on: zones and flavors for everybody, hosts for operators.

use longship_proto::control::v1::inventory_server::Inventory;
use longship_proto::control::v1::{
    CordonHostRequest, DrainHostRequest, Host, ListFlavorsRequest, ListFlavorsResponse,
    ListHostsRequest, ListHostsResponse, ListZonesRequest, ListZonesResponse, RemoveHostRequest,
    RemoveHostResponse, UncordonHostRequest,
};
use longship_proto::{Failure, FailureExt};
use longship_scheduler::Flavors;
use tonic::{Request, Response, Status};

use super::Control;
use crate::reconcile::{Command, flavor};
use crate::{page, validate};

#[tonic::async_trait]
impl Inventory for Control {
    async fn list_hosts(
        &self,
        request: Request<ListHostsRequest>,
    ) -> Result<Response<ListHostsResponse>, Status> {
        let request = request.into_inner();
        let zone = request.zone;
        if !zone.is_empty() {
            validate::dns_label("zone", &zone).map_err(Failure::into_status)?;
        }
        let limit = page::limit(request.limit).map_err(Failure::into_status)?;
        let asked = ["hosts", zone.as_str()];
        let place = page::place(&asked, &request.page_token).map_err(Failure::into_status)?;
        let page = self.ask(|answer| Command::ListHosts {
            zone: (!zone.is_empty()).then(|| zone.clone()),
            after: place.map(|place| place.after).unwrap_or_default(),
            limit,
            answer,
        });
        let page = page.await?;
        let last = page.hosts.last().filter(|_| page.more);
        Ok(Response::new(ListHostsResponse {
            next_page_token: last
                .map_or_else(String::new, |last| page::token(&asked, &last.name, 0)),
            hosts: page.hosts,
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
        let zones = self.ask(|answer| Command::ListZones { answer }).await?;
        Ok(Response::new(ListZonesResponse { zones }))
    }

    async fn cordon_host(
        &self,
        request: Request<CordonHostRequest>,
    ) -> Result<Response<Host>, Status> {
        self.cordon(request.into_inner().name, true).await
    }

    async fn uncordon_host(
        &self,
        request: Request<UncordonHostRequest>,
    ) -> Result<Response<Host>, Status> {
        self.cordon(request.into_inner().name, false).await
    }

    async fn drain_host(
        &self,
        request: Request<DrainHostRequest>,
    ) -> Result<Response<Host>, Status> {
        let DrainHostRequest {
            name,
            grace_seconds,
        } = request.into_inner();
        let host = host_name(name)?;
        if let Some(seconds) = grace_seconds {
            validate::grace_limit("grace_seconds", seconds).map_err(Failure::into_status)?;
        }
        let drained = self.ask(|answer| Command::Drain {
            host,
            grace_seconds,
            answer,
        });
        Ok(Response::new(drained.await?))
    }

    async fn remove_host(
        &self,
        request: Request<RemoveHostRequest>,
    ) -> Result<Response<RemoveHostResponse>, Status> {
        let host = host_name(request.into_inner().name)?;
        self.ask(|answer| Command::RemoveHost { host, answer })
            .await?;
        Ok(Response::new(RemoveHostResponse {}))
    }
}

impl Control {
    async fn cordon(&self, name: String, cordoned: bool) -> Result<Response<Host>, Status> {
        let host = host_name(name)?;
        let changed = self.ask(|answer| Command::Cordon {
            host,
            cordoned,
            answer,
        });
        Ok(Response::new(changed.await?))
    }
}

fn host_name(name: String) -> Result<String, Status> {
    validate::dns_label("name", &name).map_err(Failure::into_status)?;
    Ok(name)
}
