//! Tenants that come, change and go.

use std::collections::BTreeSet;
use std::sync::Arc;

use longship_proto::Failure;
use longship_proto::control::v1::{self as proto, ObjectMeta};
use longship_store::{Expect, Transaction};
use prost::Message;

use super::command::Answer;
use super::plan::{Step, refuse};
use super::state::{Now, State};
use crate::records;
use crate::tenancy::{self, Tenancy, Tenant};

/// More than one control plane is meant for.
const MAX_TENANTS: usize = 10_000;

/// What can be asked about tenants.
#[derive(Debug)]
pub(crate) enum TenantCommand {
    Put {
        name: String,
        tenant: Tenant,
        /// Not 0: the version that it must have now.
        if_version: u64,
        answer: Answer<proto::Tenant>,
    },
    /// That one; `None`: all.
    List {
        name: Option<String>,
        answer: Answer<Vec<proto::Tenant>>,
    },
    Delete {
        name: String,
        answer: Answer<()>,
    },
}

/// Whose a pod is. One from before there were tenants is the default one's.
pub(crate) fn tenant_of_pod(meta: &ObjectMeta) -> &str {
    match meta.tenant.as_str() {
        "" => tenancy::DEFAULT,
        tenant => tenant,
    }
}

impl State {
    pub(super) fn decide_tenants(&mut self, now: Now, command: TenantCommand) {
        match command {
            TenantCommand::Put {
                name,
                tenant,
                if_version,
                answer,
            } => match self.put_tenant(now, &name, tenant, if_version) {
                Ok(mut written) => self.plan.reply(true, answer, move |version| {
                    written.resource_version = version.unwrap_or_default();
                    written
                }),
                Err(failure) => refuse(answer, failure),
            },
            TenantCommand::List { name, answer } => match self.list_tenants(name.as_deref()) {
                Ok(tenants) => self.plan.reply(false, answer, move |_| tenants),
                Err(failure) => refuse(answer, failure),
            },
            TenantCommand::Delete { name, answer } => match self.delete_tenant(&name) {
                Ok(()) => self.plan.reply(true, answer, |_| ()),
                Err(failure) => refuse(answer, failure),
            },
        }
    }

    fn put_tenant(
        &mut self,
        now: Now,
        name: &str,
        tenant: Tenant,
        if_version: u64,
    ) -> Result<proto::Tenant, Failure> {
        let current = self.tenancy.get(name);
        if current.is_none() && self.tenancy.len() >= MAX_TENANTS {
            return Err(Failure::exhausted(format!(
                "there are {MAX_TENANTS} tenants"
            )));
        }
        let version = current.map_or(0, |current| current.version);
        if if_version != 0 && if_version != version {
            return Err(Failure {
                field: "if_resource_version".into(),
                ..Failure::conflict(format!("tenant `{name}` has version {version}"))
            });
        }
        for namespace in &tenant.namespaces {
            let owner = self.tenancy.owner(namespace);
            if let Some(owner) = owner.filter(|owner| *owner != name) {
                return Err(Failure {
                    field: "tenant.namespaces".into(),
                    ..Failure::conflict(format!("`{namespace}` is the tenant `{owner}`'s"))
                });
            }
        }
        let mut next = Tenancy::clone(&self.tenancy);
        next.put(name, tenant);
        self.check_pods_stay(name, &next)?;
        let written = next.get(name).cloned().unwrap_or_default();
        self.set_quota(now, name, written.quota, written.weight);
        let written = written.to_proto(name, None);
        self.tenancy = Arc::new(next);

        let bytes = written.encode_to_vec();
        self.plan.steps.push(Step {
            transaction: Transaction::new().put(records::TENANT, name, bytes, Expect::Any),
            pod: None,
        });
        let step = self.plan.steps.len() - 1;
        self.plan.tenants.push((step, name.to_owned()));
        tracing::info!(tenant = name, "tenant written");
        Ok(proto::Tenant {
            usage: Some(self.usage(name)),
            ..written
        })
    }

    fn list_tenants(&self, name: Option<&str>) -> Result<Vec<proto::Tenant>, Failure> {
        let Some(name) = name else {
            let all = self.tenancy.iter();
            let all = all.map(|(name, tenant)| tenant.to_proto(name, Some(self.usage(name))));
            return Ok(all.collect());
        };
        let tenant = self.tenancy.get(name).ok_or_else(|| no_tenant(name))?;
        Ok(vec![tenant.to_proto(name, Some(self.usage(name)))])
    }

    fn delete_tenant(&mut self, name: &str) -> Result<(), Failure> {
        if self.tenancy.get(name).is_none() {
            return Err(no_tenant(name));
        }
        if name == tenancy::DEFAULT {
            return Err(Failure::conflict("the tenant `default` exists always"));
        }
        if self.pods.of_tenant(name) > 0 {
            return Err(Failure::conflict(format!("tenant `{name}` still has pods")));
        }
        if self.reservations.has_of(name) {
            return Err(Failure::conflict(format!(
                "tenant `{name}` still has capacity reservations"
            )));
        }
        let vpcs = self.ipam.list(Some(name));
        if let Some(vpc) = vpcs.iter().find(|vpc| vpc.name != name) {
            return Err(Failure::conflict(format!(
                "tenant `{name}` still has the VPC `{}`",
                vpc.name
            )));
        }
        if !vpcs.is_empty() {
            // It came by itself with the first pod, and is empty.
            self.delete_vpc(None, name)?;
        }
        self.revoke_tokens_of(name);
        self.forget_caches_of(name);
        Arc::make_mut(&mut self.tenancy).remove(name);
        self.forget_quota(name);
        self.plan.steps.push(Step {
            transaction: Transaction::new().delete(records::TENANT, name, Expect::Any),
            pod: None,
        });
        tracing::info!(tenant = name, "tenant deleted");
        Ok(())
    }

    /// A pod stays its tenant's for as long as it lives.
    fn check_pods_stay(&self, name: &str, next: &Tenancy) -> Result<(), Failure> {
        let namespaces = |tenancy: &Tenancy| -> BTreeSet<String> {
            let tenant = tenancy.get(name);
            tenant.map(|t| t.namespaces.clone()).unwrap_or_default()
        };
        let (before, after) = (namespaces(&self.tenancy), namespaces(next));
        let changed = before.symmetric_difference(&after);
        let used = changed.filter(|namespace| self.pods.in_namespace(namespace) > 0);
        let used: BTreeSet<&String> = used.collect();
        if used.is_empty() {
            return Ok(());
        }
        let mut pods = self.pods.iter().map(|record| &record.meta);
        let lost = pods.find(|meta| {
            used.contains(&meta.namespace)
                && next.tenant_of(&meta.namespace) != Some(tenant_of_pod(meta))
        });
        let Some(meta) = lost else {
            return Ok(());
        };
        let (namespace, tenant) = (&meta.namespace, tenant_of_pod(meta));
        Err(Failure {
            field: "tenant.namespaces".into(),
            ..Failure::conflict(format!(
                "the namespace `{namespace}` has pods of the tenant `{tenant}`"
            ))
        })
    }

    /// Says what has been written, so that the API goes by it.
    pub(super) fn tenants_written(
        &mut self,
        written: Vec<(usize, String)>,
        versions: &[Option<u64>],
    ) {
        for (step, name) in written {
            if let Some(Some(version)) = versions.get(step) {
                Arc::make_mut(&mut self.tenancy).set_version(&name, *version);
            }
        }
        self.published.send_if_modified(|published| {
            let changed = !Arc::ptr_eq(published, &self.tenancy);
            if changed {
                published.clone_from(&self.tenancy);
            }
            changed
        });
    }
}

fn no_tenant(name: &str) -> Failure {
    Failure::not_found(format!("no tenant `{name}`"))
}
