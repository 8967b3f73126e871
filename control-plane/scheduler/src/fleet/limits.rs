//! What tenants may hold, and what they hold.

use super::Fleet;
use crate::amount::{Amount, Total};
use crate::reason::LimitReached;
use crate::slab::number;
use crate::tenant::{Limits, Tenant};

impl Fleet {
    /// Sets what a tenant may hold. What it holds already stays.
    pub fn set_limits(&mut self, tenant: &str, limits: Limits) {
        let tenant = self.ensure_tenant(tenant);
        self.tenants[tenant as usize].limits = limits;
        self.news.tenants.insert(tenant);
    }

    /// Sets how much of the fleet is fair for a tenant against the others' weights
    /// (1 where nothing was said; 0 counts as 1).
    pub fn set_weight(&mut self, tenant: &str, weight: u32) {
        let tenant = self.ensure_tenant(tenant);
        self.tenants[tenant as usize].weight = weight.max(1);
    }

    /// What a tenant holds, its reserved capacity included.
    #[must_use]
    pub fn held(&self, tenant: &str) -> Total {
        let tenant = self.tenant_names.get(tenant);
        tenant.map_or_else(Total::default, |tenant| self.tenants[*tenant as usize].held)
    }

    /// A tenant's dominant share of the fleet for its weight, in billionths.
    pub(crate) fn weighted_share(&self, tenant: u32) -> u64 {
        let tenant = &self.tenants[tenant as usize];
        tenant.held.dominant_share(&self.capacity) / u64::from(tenant.weight)
    }

    pub(super) fn check_limits(&self, tenant: u32, more: Amount) -> Result<(), LimitReached> {
        let tenant = &self.tenants[tenant as usize];
        match tenant.limits.exceeded(&tenant.held, more) {
            None => Ok(()),
            Some((what, limit, held)) => Err(LimitReached {
                tenant: tenant.name.clone(),
                what,
                limit,
                held,
            }),
        }
    }

    pub(super) fn ensure_tenant(&mut self, name: &str) -> u32 {
        if let Some(&tenant) = self.tenant_names.get(name) {
            return tenant;
        }
        let tenant = number(self.tenants.len());
        self.tenants.push(Tenant::new(name));
        self.tenant_names.insert(name.to_owned(), tenant);
        tenant
    }
}
