//! Whose a namespace is, and how much its owner may have.
//!
//! The reconciler changes it; the API reads snapshots of it, each of which is what
//! the store had at some moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use longship_proto::control::v1::{self as proto, Quota, QuotaUsage};
use longship_store::Store;

use crate::records::{self, RecordError};
use crate::serve::StartError;

/// The tenant, and its namespace, that exist always.
pub(crate) const DEFAULT: &str = "default";

/// What becomes of a namespace that no tenant claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unclaimed {
    /// It is nobody's: nothing can be created in it.
    Nobodys,
    /// It is the tenant `default`'s, so that a server for one needs no tenants.
    Defaults,
}

/// One tenant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tenant {
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) quota: Quota,
    /// At least 1.
    pub(crate) weight: u32,
    /// Of the store when it was written last; 0: never.
    pub(crate) version: u64,
}

impl Default for Tenant {
    fn default() -> Self {
        Self {
            namespaces: BTreeSet::new(),
            quota: Quota::default(),
            weight: 1,
            version: 0,
        }
    }
}

impl Tenant {
    /// As clients see it, and as it lies in the store.
    pub(crate) fn to_proto(&self, name: &str, usage: Option<QuotaUsage>) -> proto::Tenant {
        proto::Tenant {
            name: name.to_owned(),
            namespaces: self.namespaces.iter().cloned().collect(),
            quota: Some(self.quota),
            weight: self.weight,
            usage,
            resource_version: self.version,
        }
    }
}

/// All tenants.
#[derive(Debug, Clone)]
pub(crate) struct Tenancy {
    tenants: BTreeMap<String, Arc<Tenant>>,
    /// Namespace to tenant.
    owners: HashMap<String, String>,
    unclaimed: Unclaimed,
}

impl Tenancy {
    /// Only the tenant `default`.
    pub(crate) fn new(unclaimed: Unclaimed) -> Self {
        let mut tenancy = Self {
            tenants: BTreeMap::new(),
            owners: HashMap::new(),
            unclaimed,
        };
        tenancy.put(DEFAULT, Tenant::default());
        tenancy
    }

    /// Reads all tenants from the store.
    pub(crate) async fn load(store: &dyn Store, unclaimed: Unclaimed) -> Result<Self, StartError> {
        let mut tenancy = Self::new(unclaimed);
        for object in store.list(records::TENANT, "").await?.objects {
            let stored: proto::Tenant = records::decode(&object)?;
            let namespaces: BTreeSet<String> = stored.namespaces.into_iter().collect();
            let taken = namespaces.iter().find(|namespace| {
                let owner = tenancy.owners.get(*namespace);
                owner.is_some_and(|owner| *owner != object.key)
            });
            if let Some(namespace) = taken {
                let what = format!("the namespace `{namespace}` is another tenant's too");
                return Err(RecordError::new(&object, what).into());
            }
            tenancy.put(
                &object.key,
                Tenant {
                    namespaces,
                    quota: stored.quota.unwrap_or_default(),
                    weight: stored.weight.max(1),
                    version: object.version,
                },
            );
        }
        Ok(tenancy)
    }

    /// Whose a namespace is.
    pub(crate) fn tenant_of(&self, namespace: &str) -> Option<&str> {
        match (self.owners.get(namespace), self.unclaimed) {
            (Some(owner), _) => Some(owner),
            (None, Unclaimed::Defaults) => Some(DEFAULT),
            (None, Unclaimed::Nobodys) => None,
        }
    }

    /// Which tenant claims a namespace.
    pub(crate) fn owner(&self, namespace: &str) -> Option<&str> {
        self.owners.get(namespace).map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Tenant> {
        self.tenants.get(name).map(|tenant| &**tenant)
    }

    /// All, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Tenant)> {
        let tenants = self.tenants.iter();
        tenants.map(|(name, tenant)| (name.as_str(), &**tenant))
    }

    pub(crate) fn len(&self) -> usize {
        self.tenants.len()
    }

    /// Adds a tenant, or puts it in the place of what it was. `default` keeps its own
    /// namespace.
    pub(crate) fn put(&mut self, name: &str, mut tenant: Tenant) {
        if name == DEFAULT {
            tenant.namespaces.insert(DEFAULT.to_owned());
        }
        self.remove(name);
        for namespace in &tenant.namespaces {
            self.owners.insert(namespace.clone(), name.to_owned());
        }
        self.tenants.insert(name.to_owned(), Arc::new(tenant));
    }

    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(tenant) = self.tenants.remove(name) {
            for namespace in &tenant.namespaces {
                self.owners.remove(namespace);
            }
        }
    }

    /// Says at which version the tenant was written.
    pub(crate) fn set_version(&mut self, name: &str, version: u64) {
        if let Some(tenant) = self.tenants.get_mut(name) {
            Arc::make_mut(tenant).version = version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(namespaces: &[&str]) -> Tenant {
        Tenant {
            namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
            ..Tenant::default()
        }
    }

    #[test]
    fn a_namespace_is_whose_tenant_claims_it() {
        let mut tenancy = Tenancy::new(Unclaimed::Nobodys);
        tenancy.put("red", with(&["shop", "test"]));
        assert_eq!(tenancy.tenant_of("shop"), Some("red"));
        assert_eq!(tenancy.tenant_of("default"), Some("default"));
        assert_eq!(tenancy.tenant_of("bench"), None);
        tenancy.put("red", with(&["test"]));
        assert_eq!(tenancy.tenant_of("shop"), None);
        tenancy.remove("red");
        assert_eq!(tenancy.tenant_of("test"), None);
        assert_eq!(tenancy.len(), 1);
    }

    #[test]
    fn where_nobody_is_asked_who_they_are_the_rest_is_the_default_tenants() {
        let mut tenancy = Tenancy::new(Unclaimed::Defaults);
        tenancy.put("red", with(&["shop"]));
        assert_eq!(tenancy.tenant_of("bench"), Some("default"));
        assert_eq!(tenancy.tenant_of("shop"), Some("red"));
    }

    #[test]
    fn the_default_tenant_keeps_its_namespace() {
        let mut tenancy = Tenancy::new(Unclaimed::Nobodys);
        tenancy.put(DEFAULT, with(&["more"]));
        assert_eq!(tenancy.tenant_of("default"), Some("default"));
        assert_eq!(tenancy.tenant_of("more"), Some("default"));
    }
}
