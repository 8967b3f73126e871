//! Tenants' networks.

use longship_proto::control::v1::networks_server::Networks;
use longship_proto::control::v1::{
    CreateSubnetRequest, CreateVpcRequest, DeleteSubnetRequest, DeleteSubnetResponse,
    DeleteVpcRequest, DeleteVpcResponse, ListVpcsRequest, ListVpcsResponse, Subnet, Vpc,
};
use longship_proto::{Failure, FailureExt};
use tonic::{Request, Response, Status};

use super::Control;
use crate::reconcile::{Command, NetworkCommand};
use crate::validate;

#[tonic::async_trait]
impl Networks for Control {
    async fn create_vpc(
        &self,
        request: Request<CreateVpcRequest>,
    ) -> Result<Response<Vpc>, Status> {
        let scope = self.scope(&request)?;
        let given = request.into_inner().vpc;
        let given = given.ok_or_else(|| Failure::invalid("vpc", "must be given").into_status())?;
        let vpc = validate::vpc(&given).map_err(Failure::into_status)?;
        let tenant = scope.tenant("vpc.tenant", &given.tenant);
        let tenant = tenant.map_err(Failure::into_status)?;
        let made = self.network(|answer| NetworkCommand::CreateVpc {
            tenant,
            vpc,
            answer,
        });
        Ok(Response::new(made.await?))
    }

    async fn list_vpcs(
        &self,
        request: Request<ListVpcsRequest>,
    ) -> Result<Response<ListVpcsResponse>, Status> {
        let scope = self.scope(&request)?;
        let tenant = scope.tenants("tenant", &request.get_ref().tenant);
        let tenant = tenant.map_err(Failure::into_status)?;
        let vpcs = self.network(|answer| NetworkCommand::List { tenant, answer });
        Ok(Response::new(ListVpcsResponse { vpcs: vpcs.await? }))
    }

    async fn delete_vpc(
        &self,
        request: Request<DeleteVpcRequest>,
    ) -> Result<Response<DeleteVpcResponse>, Status> {
        let tenant = self.scope(&request)?.confined().map(str::to_owned);
        let vpc = request.into_inner().name;
        validate::dns_label("name", &vpc).map_err(Failure::into_status)?;
        self.network(|answer| NetworkCommand::DeleteVpc {
            tenant,
            vpc,
            answer,
        })
        .await?;
        Ok(Response::new(DeleteVpcResponse {}))
    }

    async fn create_subnet(
        &self,
        request: Request<CreateSubnetRequest>,
    ) -> Result<Response<Subnet>, Status> {
        let tenant = self.scope(&request)?.confined().map(str::to_owned);
        let CreateSubnetRequest { vpc, subnet } = request.into_inner();
        validate::dns_label("vpc", &vpc).map_err(Failure::into_status)?;
        let subnet =
            subnet.ok_or_else(|| Failure::invalid("subnet", "must be given").into_status())?;
        let subnet = validate::subnet(subnet).map_err(Failure::into_status)?;
        let made = self.network(|answer| NetworkCommand::CreateSubnet {
            tenant,
            vpc,
            subnet,
            answer,
        });
        Ok(Response::new(made.await?))
    }

    async fn delete_subnet(
        &self,
        request: Request<DeleteSubnetRequest>,
    ) -> Result<Response<DeleteSubnetResponse>, Status> {
        let tenant = self.scope(&request)?.confined().map(str::to_owned);
        let DeleteSubnetRequest { vpc, name } = request.into_inner();
        validate::dns_label("vpc", &vpc).map_err(Failure::into_status)?;
        validate::dns_label("name", &name).map_err(Failure::into_status)?;
        self.network(|answer| NetworkCommand::DeleteSubnet {
            tenant,
            vpc,
            name,
            answer,
        })
        .await?;
        Ok(Response::new(DeleteSubnetResponse {}))
    }
}

impl Control {
    async fn network<T>(
        &self,
        command: impl FnOnce(crate::reconcile::Answer<T>) -> NetworkCommand,
    ) -> Result<T, Status> {
        self.ask(|answer| Command::Networks(command(answer))).await
    }
}
