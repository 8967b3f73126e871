//! Reading everything back from the store.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use longship_proto::control::v1::Pod;
use longship_scheduler::{Backlog, Flavors, Fleet, PodId, Policy};
use longship_store::{Expect, Object, Store, Transaction};
use tokio::sync::watch;
use uuid::Uuid;

use super::images::Images;
use super::once::Requests;
use super::placement::{unplace, waiting_since};
use super::plan::Plan;
use super::quota::Quotas;
use super::reservation::Reservations;
use super::state::{Now, State};
use super::tenants::tenant_of_pod;
use crate::auth::Tokens;
use crate::inventory::Inventory;
use crate::ipam::Ipam;
use crate::lease::Leases;
use crate::pods::{PodRecord, Pods};
use crate::records::{
    self, GangRecord, HostRecord, Notes, RecordError, ReservationRecord, VpcRecord,
};
use crate::serve::StartError;
use crate::tenancy::Tenancy;

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
        let state = Self::empty(Now::get(), policy, leases, token_key, tenancy, tokens);
        state.filled(Now::get(), store).await
    }

    /// As it is in the store.
    pub(super) async fn filled(mut self, now: Now, store: &dyn Store) -> Result<Self, StartError> {
        let state = &mut self;
        state.load_hosts(now, store).await?;
        for object in store.list(records::VPC, "").await?.objects {
            let record: VpcRecord = records::decode(&object)?;
            let adopted = state.ipam.adopt_vpc(&object.key, &record);
            adopted.map_err(|what| RecordError::new(&object, what))?;
        }
        for object in store.list(records::RESERVATION, "").await?.objects {
            let record: ReservationRecord = records::decode(&object)?;
            let adopted = state.adopt_reservation(now, record);
            adopted.map_err(|what| RecordError::new(&object, what))?;
        }
        state.load_pods(store).await?;
        state.load_gangs(now, store).await?;
        for object in store.list(records::IMAGE_CACHE, "").await?.objects {
            state.adopt_image_cache(&object)?;
        }
        for object in store.list(records::REQUEST, "").await?.objects {
            state.adopt_request(&object)?;
        }
        state.resume(now);
        Ok(self)
    }

    /// With nothing but what is given here.
    pub(super) fn empty(
        now: Now,
        policy: Policy,
        leases: Leases,
        token_key: Vec<u8>,
        tenancy: Tenancy,
        tokens: Arc<Tokens>,
    ) -> Self {
        let tenancy = Arc::new(tenancy);
        let mut state = Self {
            fleet: Fleet::new(Flavors::standard(), policy),
            backlog: Backlog::new(),
            pods: Pods::default(),
            ipam: Ipam::default(),
            inventory: Inventory::default(),
            leases,
            quotas: Quotas::default(),
            reservations: Reservations::default(),
            images: Images::default(),
            requests: Requests::default(),
            token_key,
            tokens,
            published: watch::Sender::new(Arc::clone(&tenancy)),
            tenancy,
            gangs: HashMap::new(),
            gang_of: HashMap::new(),
            unsuited: BTreeSet::new(),
            unaddressed: BTreeMap::new(),
            puzzled: VecDeque::new(),
            looked_at: None,
            next_look: now.at,
            hosts_changed: false,
            plan: Plan::default(),
        };
        let tenancy = Arc::clone(&state.tenancy);
        for (name, tenant) in tenancy.iter() {
            state.set_quota(now, name, tenant.quota, tenant.weight);
        }
        state
    }

    async fn load_hosts(&mut self, now: Now, store: &dyn Store) -> Result<(), StartError> {
        for object in store.list(records::HOST, "").await?.objects {
            let record: HostRecord = records::decode(&object)?;
            let name = &object.key;
            let wrong = |error| RecordError::new(&object, error);
            self.fleet.set_host(record.facts(name)).map_err(wrong)?;
            if record.cordoned {
                self.fleet.cordon(name).map_err(wrong)?;
            }
            if !record.fenced {
                self.leases.renew(name, now.at);
            }
            self.inventory.set(name, record);
        }
        Ok(())
    }

    async fn load_pods(&mut self, store: &dyn Store) -> Result<(), StartError> {
        let mut notes = HashMap::new();
        for object in store.list(records::NOTES, "").await?.objects {
            let note: Notes = records::decode(&object)?;
            notes.insert(object.key, note);
        }
        for object in store.list(records::POD, "").await?.objects {
            let adopted = self.adopt(&object, notes.remove(&object.key));
            adopted.map_err(|what| RecordError::new(&object, what))?;
        }
        Ok(())
    }

    fn adopt(&mut self, object: &Object, notes: Option<Notes>) -> Result<(), String> {
        let pod: Pod = records::decode(object).map_err(|error| error.to_string())?;
        let mut record = PodRecord::from_pod(pod)?;
        record.meta.tenant = tenant_of_pod(&record.meta).to_owned();
        let noted = notes.is_some();
        record.notes = notes.unwrap_or_default();
        let id = record.id;
        if let Some(eni) = &record.status.eni {
            self.ipam.adopt(&eni.vpc, &eni.address)?;
        }
        if !record.status.host.is_empty() && !record.is_over() {
            let template = self.template_of(&record)?;
            let flavor = record.status.flavor.as_ref();
            let flavor = flavor.ok_or("it has a host but no flavor")?;
            self.fleet
                .adopt(
                    record.pod_id(),
                    &template,
                    &record.status.host,
                    flavor.cpu_millis,
                    flavor.memory_bytes,
                    flavor.gpus,
                )
                .map_err(|error| error.to_string())?;
            if let Ok(drawn) = Uuid::parse_str(&record.notes.draws_on) {
                let drawn = longship_scheduler::BookingId(drawn.as_u128());
                self.fleet.adopt_draw(record.pod_id(), drawn);
            }
        }
        self.pods.put(record);
        self.pods.set_version(id, object.version);
        if noted {
            self.pods.set_noted(id);
        }
        Ok(())
    }

    /// Gangs that were only partly created were never answered, and go; of those that
    /// were only partly placed no card has heard, and they wait again.
    async fn load_gangs(&mut self, now: Now, store: &dyn Store) -> Result<(), StartError> {
        for object in store.list(records::GANG, "").await?.objects {
            let record: GangRecord = records::decode(&object)?;
            let uids = record.uids.iter().map(|uid| Uuid::parse_str(uid));
            let uids: Result<Vec<Uuid>, _> = uids.collect();
            let uids = uids.map_err(|error| RecordError::new(&object, error))?;
            let there: Vec<Uuid> = uids
                .iter()
                .copied()
                .filter(|id| self.pods.get(*id).is_some())
                .collect();
            let placed: Vec<Uuid> = there
                .iter()
                .copied()
                .filter(|id| self.pods.get(*id).is_some_and(|pod| !pod.waits()))
                .collect();
            self.adopt_gang(uids.clone(), record.one_zone);
            if there.len() < uids.len() {
                self.forget_gang(&uids, &there);
            } else if placed.len() == uids.len() {
                for id in placed {
                    let _ = self.end_gang(id);
                }
            } else {
                for id in placed {
                    self.take_back(now, id);
                }
            }
        }
        Ok(())
    }

    /// A gang that was never wholly created goes: its pods first, so that they go too
    /// where the server ends once more before all of it is written.
    fn forget_gang(&mut self, uids: &[Uuid], there: &[Uuid]) {
        let first = uids.first().copied();
        for id in uids {
            self.gang_of.remove(id);
        }
        if let Some(name) = first {
            self.gangs.remove(&name);
        }
        for id in there {
            if let Some(record) = self.record(*id) {
                self.forget(PodRecord::clone(&record));
            }
        }
        if let Some(name) = first {
            let transaction = Transaction::new();
            let key = name.to_string();
            self.plan
                .write(transaction.delete(records::GANG, &key, Expect::Any));
        }
    }

    /// A pod whose card has never heard of it waits as before.
    fn take_back(&mut self, now: Now, id: Uuid) {
        let Some(record) = self.record(id) else {
            return;
        };
        self.leave_host(id);
        self.leave_network(&record);
        self.change(id, |record| {
            unplace(&mut record.status);
            record.notes = Notes::default();
            let status = &mut record.status;
            status.set_phase(longship_proto::control::v1::Phase::Pending);
            status.timeline = waiting_since(now.us);
        });
    }

    /// Goes on where it was: those that have to leave leave, and those that wait wait.
    fn resume(&mut self, now: Now) {
        let mut winners: BTreeMap<Uuid, Vec<PodId>> = BTreeMap::new();
        for record in self.pods.iter() {
            let eviction = record.notes.eviction.as_ref();
            let winner = eviction.and_then(|eviction| Uuid::parse_str(&eviction.winner).ok());
            if let Some(winner) = winner {
                winners.entry(winner).or_default().push(record.pod_id());
            }
        }
        for (winner, mut victims) in winners {
            victims.sort_unstable();
            // The winner may have gone since, and its victims leave for nobody.
            let _ = self.fleet.adopt_eviction(PodId(winner.as_u128()), &victims);
        }
        let waiting: Vec<Uuid> = self.pods.waiting_after(None).map(|pod| pod.id).collect();
        for id in waiting {
            self.wait_again(id);
        }
        self.keep_reserved(now);
    }
}
