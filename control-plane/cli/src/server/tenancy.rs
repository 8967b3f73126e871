//! Calls about tenants and their clients' tokens.

use longship_proto::control::v1::{
    CreateTokenRequest, CreateTokenResponse, DeleteTenantRequest, GetTenantRequest,
    ListTenantsRequest, ListTokensRequest, PutTenantRequest, RevokeTokenRequest, Tenant, TokenInfo,
};

use super::{Server, bounded};
use crate::error::CliError;

impl Server {
    pub(crate) async fn tenants(&mut self) -> Result<Vec<Tenant>, CliError> {
        let listed = bounded(self.tenants.list_tenants(ListTenantsRequest {})).await?;
        Ok(listed.tenants)
    }

    pub(crate) async fn tenant(&mut self, name: &str) -> Result<Tenant, CliError> {
        let name = name.to_owned();
        bounded(self.tenants.get_tenant(GetTenantRequest { name })).await
    }

    /// Writes a tenant, where it still is as it was (`resource_version` 0: whatever it
    /// was).
    pub(crate) async fn put_tenant(&mut self, tenant: Tenant) -> Result<Tenant, CliError> {
        let request = PutTenantRequest {
            if_resource_version: tenant.resource_version,
            tenant: Some(tenant),
        };
        bounded(self.tenants.put_tenant(request)).await
    }

    pub(crate) async fn delete_tenant(&mut self, name: &str) -> Result<(), CliError> {
        let name = name.to_owned();
        bounded(self.tenants.delete_tenant(DeleteTenantRequest { name })).await?;
        Ok(())
    }

    pub(crate) async fn create_token(
        &mut self,
        request: CreateTokenRequest,
    ) -> Result<CreateTokenResponse, CliError> {
        bounded(self.tenants.create_token(request)).await
    }

    /// Tokens of a tenant; empty: all.
    pub(crate) async fn tokens(&mut self, tenant: &str) -> Result<Vec<TokenInfo>, CliError> {
        let tenant = tenant.to_owned();
        let listed = bounded(self.tenants.list_tokens(ListTokensRequest { tenant })).await?;
        Ok(listed.tokens)
    }

    pub(crate) async fn revoke_token(&mut self, id: &str) -> Result<(), CliError> {
        let id = id.to_owned();
        bounded(self.tenants.revoke_token(RevokeTokenRequest { id })).await?;
        Ok(())
    }
}
