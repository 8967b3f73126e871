//! Tenants, and their clients' tokens.

use longship_proto::control::v1::tenants_server::Tenants;
use longship_proto::control::v1::{
    CreateTokenRequest, CreateTokenResponse, DeleteTenantRequest, DeleteTenantResponse,
    GetTenantRequest, ListTenantsRequest, ListTenantsResponse, ListTokensRequest,
    ListTokensResponse, PutTenantRequest, RevokeTokenRequest, RevokeTokenResponse, Tenant,
    TokenInfo,
};
use longship_proto::{Failure, FailureExt, now_us};
use tonic::{Request, Response, Status};

use super::Control;
use crate::auth::NewToken;
use crate::reconcile::{Command, TenantCommand, TokenCommand};
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
        let scope = self.scope(&request)?;
        let name = request.into_inner().name;
        validate::dns_label("name", &name).map_err(Failure::into_status)?;
        let own = scope.tenant("name", &name);
        let name = own.map_err(Failure::into_status)?;
        let found = self.list(Some(name)).await?.pop();
        let found = found.ok_or_else(|| Status::internal("no tenant in the answer"))?;
        Ok(Response::new(found))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let own = self.scope(&request)?.confined().map(str::to_owned);
        let tenants = self.list(own).await?;
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
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let info = validate::token(request.into_inner(), now_us());
        let made = NewToken::random(info.map_err(Failure::into_status)?);
        let record = made.record;
        let info = self.ask(|answer| Command::Tokens(TokenCommand::Create { record, answer }));
        Ok(Response::new(CreateTokenResponse {
            info: Some(info.await?),
            token: made.token,
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let tenant = request.into_inner().tenant;
        let wanted = |info: &TokenInfo| tenant.is_empty() || info.tenant == tenant;
        let tokens = self.tokens.list(wanted);
        Ok(Response::new(ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let id = request.into_inner().id;
        self.ask(|answer| Command::Tokens(TokenCommand::Revoke { id, answer }))
            .await?;
        Ok(Response::new(RevokeTokenResponse {}))
    }
}

impl Control {
    async fn list(&self, name: Option<String>) -> Result<Vec<Tenant>, Status> {
        self.ask(|answer| Command::Tenants(TenantCommand::List { name, answer }))
            .await
    }
}
