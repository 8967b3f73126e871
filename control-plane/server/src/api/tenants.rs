//! Tenants.

use longship_proto::control::v1::tenants_server::Tenants;
use longship_proto::control::v1::{
    CreateTokenRequest, CreateTokenResponse, DeleteTenantRequest, DeleteTenantResponse,
    GetTenantRequest, ListTenantsRequest, ListTenantsResponse, ListTokensRequest,
    ListTokensResponse, PutTenantRequest, RevokeTokenRequest, RevokeTokenResponse, Tenant,
};
use longship_proto::{Failure, FailureExt};
use tonic::{Request, Response, Status};

use super::Control;
use crate::reconcile::{Command, TenantCommand};
use crate::validate;

#[tonic::async_trait]
impl Tenants for Control {
    async fn put_tenant(
        &self,
        request: Request<PutTenantRequest>,
    ) -> Result<Response<Tenant>, Status> {
        let request = request.into_inner();
        let tenant = request.tenant;
        let tenant =
            tenant.ok_or_else(|| Failure::invalid("tenant", "must be given").into_status())?;
        let (name, tenant) = validate::tenant(tenant).map_err(Failure::into_status)?;
        let written = self.ask(|answer| {
            Command::Tenants(TenantCommand::Put {
                name,
                tenant,
                if_version: request.if_resource_version,
                answer,
            })
        });
        Ok(Response::new(written.await?))
    }

    async fn get_tenant(
        &self,
        request: Request<GetTenantRequest>,
    ) -> Result<Response<Tenant>, Status> {
        let name = request.into_inner().name;
        validate::dns_label("name", &name).map_err(Failure::into_status)?;
        let found = self.list(Some(name)).await?.pop();
        let found = found.ok_or_else(|| Status::internal("no tenant in the answer"))?;
        Ok(Response::new(found))
    }

    async fn list_tenants(
        &self,
        _: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let tenants = self.list(None).await?;
        Ok(Response::new(ListTenantsResponse { tenants }))
    }

    async fn delete_tenant(
        &self,
        request: Request<DeleteTenantRequest>,
    ) -> Result<Response<DeleteTenantResponse>, Status> {
        let name = request.into_inner().name;
        validate::dns_label("name", &name).map_err(Failure::into_status)?;
        self.ask(|answer| Command::Tenants(TenantCommand::Delete { name, answer }))
            .await?;
        Ok(Response::new(DeleteTenantResponse {}))
    }

    async fn create_token(
        &self,
        _: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn list_tokens(
        &self,
        _: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn revoke_token(
        &self,
        _: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}

impl Control {
    async fn list(&self, name: Option<String>) -> Result<Vec<Tenant>, Status> {
        self.ask(|answer| Command::Tenants(TenantCommand::List { name, answer }))
            .await
    }
}
