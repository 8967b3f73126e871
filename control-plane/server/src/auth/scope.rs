//! Whose things a call may be about.

use std::collections::BTreeSet;
use std::sync::Arc;

use longship_proto::{Failure, FailureExt};
use tokio::sync::watch;
use tonic::{Request, Status};

use super::caller::Caller;
use crate::tenancy::{self, Tenancy};

/// What a caller may see, at the moment of its call. What is another tenant's does not
/// exist for it.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    caller: Caller,
    tenancy: Arc<Tenancy>,
    changes: watch::Receiver<Arc<Tenancy>>,
}

impl Scope {
    /// The scope of a call.
    ///
    /// # Errors
    /// Where nobody has found out who calls.
    pub(crate) fn of<T>(
        request: &Request<T>,
        changes: &watch::Receiver<Arc<Tenancy>>,
    ) -> Result<Self, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let unknown = || Failure::internal("nobody knows who calls").into_status();
        let mut changes = changes.clone();
        let tenancy = changes.borrow_and_update().clone();
        Ok(Self {
            caller: caller.ok_or_else(unknown)?,
            tenancy,
            changes,
        })
    }

    /// The tenant that the caller is confined to; `None`: it may see all.
    pub(crate) fn confined(&self) -> Option<&str> {
        self.caller.tenant()
    }

    /// Whether the caller may see what is in that namespace.
    pub(crate) fn sees(&self, namespace: &str) -> bool {
        match self.confined() {
            None => true,
            Some(tenant) => self.tenancy.tenant_of(namespace) == Some(tenant),
        }
    }

    /// That the caller may see what is in that namespace.
    ///
    /// # Errors
    /// `NOT_FOUND` at `field`, whether it is another's or nobody's.
    pub(crate) fn check_namespace(&self, field: &str, namespace: &str) -> Result<(), Failure> {
        if self.sees(namespace) {
            return Ok(());
        }
        Err(Failure {
            field: field.into(),
            ..Failure::not_found(format!("no tenant has the namespace `{namespace}`"))
        })
    }

    /// The namespaces that the caller is confined to, by name; `None`: it may see all.
    pub(crate) fn namespaces(&self) -> Option<BTreeSet<String>> {
        let tenant = self.tenancy.get(self.confined()?);
        Some(tenant.map(|t| t.namespaces.clone()).unwrap_or_default())
    }

    /// The tenant that a request is about, where it must be about one: the one given,
    /// else the caller's own (`default` of one that may see all).
    ///
    /// # Errors
    /// `NOT_FOUND` at `field`, for one that does not exist or is another.
    pub(crate) fn tenant(&self, field: &str, given: &str) -> Result<String, Failure> {
        match self.tenants(field, given)? {
            Some(tenant) => Ok(tenant),
            None => Ok(tenancy::DEFAULT.to_owned()),
        }
    }

    /// The tenant that a request to list is about; `None`: all.
    ///
    /// # Errors
    /// As [`Scope::tenant`].
    pub(crate) fn tenants(&self, field: &str, given: &str) -> Result<Option<String>, Failure> {
        if given.is_empty() {
            return Ok(self.confined().map(str::to_owned));
        }
        let own = self.confined().is_none_or(|own| own == given);
        if own && self.tenancy.get(given).is_some() {
            return Ok(Some(given.to_owned()));
        }
        Err(Failure {
            field: field.into(),
            ..Failure::not_found(format!("no tenant `{}`", given.escape_debug()))
        })
    }

    /// Waits until what the caller may see is no longer what it was, and says why: its
    /// token has ended, or its tenant's namespaces have changed.
    pub(crate) async fn ended(mut self) -> Failure {
        let before = self.namespaces();
        let Some(tenant) = self.confined().map(str::to_owned) else {
            return self.caller.ended().await;
        };
        let same = |now: &Arc<Tenancy>| now.get(&tenant).map(|t| &t.namespaces) == before.as_ref();
        tokio::select! {
            why = self.caller.ended() => why,
            _ = self.changes.wait_for(|now| !same(now)) => Failure::unavailable(
                "the tenant's namespaces have changed: list and watch again",
            ),
        }
    }
}
