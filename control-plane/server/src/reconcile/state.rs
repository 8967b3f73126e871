//! All that the control plane knows.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use longship_proto::Failure;
use longship_proto::control::v1::Phase;
use longship_scheduler::{Backlog, Fleet, PodId, Time};
use longship_store::{Expect, Transaction};
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::gang::WaitingGang;
use super::images::Images;
use super::once::Requests;
use super::plan::{Plan, Step, Tell};
use super::quota::Quotas;
use super::reservation::Reservations;
use crate::auth::Tokens;
use crate::inventory::Inventory;
use crate::ipam::Ipam;
use crate::lease::Leases;
use crate::pods::{PodRecord, Pods};
use crate::records::{self, HostRecord};
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

    /// As the scheduler counts.
    pub(crate) fn time(self) -> Time {
        time(self.us)
    }
}

/// A point in time as the scheduler counts.
pub(crate) fn time(us: i64) -> Time {
    Time(u64::try_from(us / 1000).unwrap_or_default())
}

/// All that the control plane knows. It decides without waiting for anything; what
/// has to be written, told and answered gathers in the plan.
pub(crate) struct State {
    pub(super) fleet: Fleet,
    /// Pods that wait for room.
    pub(super) backlog: Backlog,
    pub(super) pods: Pods,
    pub(super) ipam: Ipam,
    pub(super) inventory: Inventory,
    pub(super) leases: Leases,
    pub(super) quotas: Quotas,
    pub(super) reservations: Reservations,
    /// Images that cards keep ready.
    pub(super) images: Images,
    /// Requests for new pods that may be asked again.
    pub(super) requests: Requests,
    pub(super) token_key: Vec<u8>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) tenancy: Arc<Tenancy>,
    /// What of it is durable, for the API.
    pub(super) published: watch::Sender<Arc<Tenancy>>,
    /// Gangs that wait, by their names.
    pub(super) gangs: HashMap<Uuid, WaitingGang>,
    /// The gang of each pod of these.
    pub(super) gang_of: HashMap<Uuid, Uuid>,
    /// Pods that nothing is tried for until the hosts change: what they ask for is
    /// not there.
    pub(super) unsuited: BTreeSet<Uuid>,
    /// Pods that wait for an address, by VPC.
    pub(super) unaddressed: BTreeMap<String, BTreeSet<Uuid>>,
    /// Pods that wait and have not been told why.
    pub(super) puzzled: VecDeque<Uuid>,
    /// The last pod whose reason was looked at again.
    pub(super) looked_at: Option<(i64, Uuid)>,
    /// When reasons are looked at again.
    pub(super) next_look: Instant,
    /// Hosts have come or gone.
    pub(super) hosts_changed: bool,
    pub(super) plan: Plan,
}

impl State {
    /// Changes a pod, here now and in the store at the end of the batch.
    pub(super) fn change(&mut self, id: Uuid, change: impl FnOnce(&mut PodRecord)) {
        self.pods.change(id, change);
        self.mark_changed(id);
    }

    /// Remembers a changed or a new pod, here now and in the store at the end of the
    /// batch.
    pub(super) fn save(&mut self, record: PodRecord) {
        let id = record.id;
        self.pods.put(record);
        self.mark_changed(id);
    }

    fn mark_changed(&mut self, id: Uuid) {
        if self.pods.mark_changed(id) {
            self.plan.steps.push(Step {
                transaction: Transaction::new(),
                pod: Some(id),
            });
        }
    }

    /// Tells the pod's card of it.
    pub(super) fn tell_card(&mut self, id: Uuid) {
        if let Some(record) = self.pods.get(id).filter(|pod| !pod.status.host.is_empty()) {
            let host = record.status.host.clone();
            self.plan.tell.push(Tell::Assign { host, id });
        }
    }

    /// Whether the pod has a place that others have not left yet: its card has not
    /// heard of it.
    pub(super) fn is_held_back(&self, id: Uuid) -> bool {
        let pod = PodId(id.as_u128());
        self.fleet.placement(pod).is_some() && !self.fleet.may_start(pod)
    }

    /// Gives the pod's place on its host back, if it has one. Whoever waited for that
    /// may start.
    pub(super) fn leave_host(&mut self, id: Uuid) {
        let held = self.fleet.placement(PodId(id.as_u128()));
        let Some((ticket, ..)) = held else {
            return;
        };
        // It is held: that was looked up just now.
        let Ok(released) = self.fleet.release(ticket) else {
            return;
        };
        for started in released.startable {
            let id = Uuid::from_u128(started.pod.0);
            self.change(id, |record| {
                record.status.reason.clear();
                record.status.message.clear();
            });
            self.tell_card(id);
        }
    }

    /// Gives the pod's address back, if it has one.
    pub(super) fn leave_network(&mut self, record: &PodRecord) {
        if let Some(eni) = &record.status.eni {
            self.ipam.release(&eni.vpc, &eni.address);
            self.try_addresses_again(&eni.vpc.clone());
        }
    }

    /// Forgets a pod, here and in the store; what it held is free again. Answers it as
    /// it was in the end.
    pub(super) fn forget(&mut self, mut record: PodRecord) -> PodRecord {
        self.wait_no_more(record.id);
        self.leave_host(record.id);
        self.leave_network(&record);
        if self.pods.version(record.id) > 0 {
            let key = record.key();
            let mut transaction = Transaction::new().delete(records::POD, &key, Expect::Any);
            if self.pods.is_noted(record.id) {
                transaction = transaction.delete(records::NOTES, &key, Expect::Any);
            }
            self.plan.write(transaction);
        }
        self.pods.remove(record.id);
        record.status.set_phase(Phase::Released);
        record
    }

    /// Remembers what is known of a host, here and in the store.
    pub(super) fn save_host(&mut self, name: &str, record: HostRecord) {
        let bytes = record.encode_to_vec();
        let transaction = Transaction::new().put(records::HOST, name, bytes, Expect::Any);
        self.plan.write(transaction);
        self.inventory.set(name, record);
    }

    /// A pod's record as it is now.
    pub(super) fn record(&self, id: Uuid) -> Option<Arc<PodRecord>> {
        self.pods.get(id).cloned()
    }

    /// Whose a namespace is.
    ///
    /// # Errors
    /// `NOT_FOUND` at `metadata.namespace`.
    pub(super) fn tenant_of(&self, namespace: &str) -> Result<String, Failure> {
        let tenant = self.tenancy.tenant_of(namespace);
        tenant.map(str::to_owned).ok_or_else(|| Failure {
            field: "metadata.namespace".into(),
            ..Failure::not_found(format!("no tenant has the namespace `{namespace}`"))
        })
    }

    /// Has the tenants published there from now on.
    pub(crate) fn publish_to(&mut self, published: watch::Sender<Arc<Tenancy>>) {
        published.send_replace(Arc::clone(&self.tenancy));
        self.published = published;
    }
}
