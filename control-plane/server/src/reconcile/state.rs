//! All that the control plane knows, and how it is read back from the store.

use std::sync::Arc;

use longship_proto::control::v1::{Phase, Pod};
use longship_scheduler::{Flavors, Policy, Scheduler};
use longship_store::{Expect, Store, Transaction};
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;

use super::plan::{Plan, Step};
use crate::auth::Tokens;
use crate::inventory::Inventory;
use crate::ipam::Ipam;
use crate::lease::Leases;
use crate::phase::is_over;
use crate::pods::{PodRecord, Pods};
use crate::records::{self, HostRecord, RecordError, VpcRecord};
use crate::serve::StartError;
use crate::tenancy::Tenancy;

/// The two clocks: one for people, one for leases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Microseconds since the Unix epoch.
    pub(crate) us: i64,
    pub(crate) at: Instant,
}

impl Now {
    pub(crate) fn get() -> Self {
        Self {
            us: longship_proto::now_us(),
            at: Instant::now(),
        }
    }
}

/// All that the control plane knows. It decides without waiting for anything; what
/// has to be written, told and answered gathers in the plan.
pub(crate) struct State {
    pub(super) scheduler: Scheduler,
    pub(super) pods: Pods,
    pub(super) ipam: Ipam,
    pub(super) inventory: Inventory,
    pub(super) leases: Leases,
    pub(super) token_key: Vec<u8>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) tenancy: Arc<Tenancy>,
    /// What of it is durable, for the API.
    pub(super) published: watch::Sender<Arc<Tenancy>>,
    /// There is room that was not there before: those that wait may try again.
    pub(super) room: bool,
    pub(super) plan: Plan,
}

impl State {
    /// Reads everything back. Hosts have until the end of a lease to attach again.
    pub(crate) async fn load(
        store: &dyn Store,
        policy: Policy,
        leases: Leases,
        token_key: Vec<u8>,
        tenancy: Tenancy,
        tokens: Arc<Tokens>,
    ) -> Result<Self, StartError> {
        let tenancy = Arc::new(tenancy);
        let mut state = Self {
            scheduler: Scheduler::new(Flavors::standard(), policy),
            pods: Pods::default(),
            ipam: Ipam::default(),
            inventory: Inventory::default(),
            leases,
            token_key,
            tokens,
            published: watch::Sender::new(Arc::clone(&tenancy)),
            tenancy,
            room: true,
            plan: Plan::default(),
        };
        let now = Instant::now();
        for object in store.list(records::HOST, "").await?.objects {
            let record: HostRecord = records::decode(&object)?;
            let spec = record.spec(&object.key);
            let added = state.scheduler.set_host(spec);
            added.map_err(|error| RecordError::new(&object, error))?;
            state.inventory.set(&object.key, &record.endpoint);
            state.leases.renew(&object.key, now);
        }
        for object in store.list(records::VPC, "").await?.objects {
            let record: VpcRecord = records::decode(&object)?;
            let adopted = state.ipam.adopt_vpc(&object.key, &record);
            adopted.map_err(|what| RecordError::new(&object, what))?;
        }
        for object in store.list(records::POD, "").await?.objects {
            let pod: Pod = records::decode(&object)?;
            let adopted = PodRecord::from_pod(pod).and_then(|record| state.adopt(record));
            let id = adopted.map_err(|what| RecordError::new(&object, what))?;
            state.pods.set_version(id, object.version);
        }
        Ok(state)
    }

    /// Follows the tenants.
    pub(crate) fn tenancy(&self) -> watch::Receiver<Arc<Tenancy>> {
        self.published.subscribe()
    }

    fn adopt(&mut self, record: PodRecord) -> Result<uuid::Uuid, String> {
        let id = record.id;
        if let Some(eni) = &record.status.eni {
            self.ipam.adopt(&eni.vpc, &eni.address)?;
        }
        if !record.status.host.is_empty() && !is_over(record.status.phase()) {
            let flavor = record.status.flavor.as_ref();
            let flavor = flavor.ok_or("it has a host but no flavor")?;
            self.scheduler
                .adopt(
                    record.pod_id(),
                    &record.status.host,
                    flavor.cpu_millis,
                    flavor.memory_bytes,
                )
                .map_err(|error| error.to_string())?;
        }
        self.pods.put(record);
        Ok(id)
    }

    /// Remembers a changed pod, here and in the store.
    pub(super) fn save(&mut self, record: PodRecord) {
        let transaction = Transaction::new();
        self.save_with(record, transaction);
    }

    /// As [`State::save`], with more in the same transaction.
    pub(super) fn save_with(&mut self, record: PodRecord, transaction: Transaction) {
        let bytes = record.to_bytes();
        let transaction = transaction.put(records::POD, &record.key(), bytes, Expect::Any);
        self.plan.steps.push(Step {
            transaction,
            pod: Some(record.id),
        });
        self.pods.put(record);
    }

    /// Forgets a pod, here and in the store; what it held is free again. Answers it as
    /// it was in the end.
    pub(super) fn forget(&mut self, mut record: PodRecord) -> PodRecord {
        // It may hold none: it waited, or it is over.
        let _ = self.scheduler.release(record.pod_id());
        if let Some(eni) = &record.status.eni {
            self.ipam.release(&eni.vpc, &eni.address);
        }
        self.room = true;
        let transaction = Transaction::new().delete(records::POD, &record.key(), Expect::Any);
        self.plan.steps.push(Step {
            transaction,
            pod: None,
        });
        self.pods.remove(record.id);
        record.status.set_phase(Phase::Released);
        record
    }

    /// Remembers a host in the store.
    pub(super) fn save_host(&mut self, name: &str, record: &HostRecord) {
        let bytes = record.encode_to_vec();
        self.plan.steps.push(Step {
            transaction: Transaction::new().put(records::HOST, name, bytes, Expect::Any),
            pod: None,
        });
    }
}
