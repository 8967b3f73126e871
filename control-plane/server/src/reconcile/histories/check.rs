//! What must hold between two batches.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use longship_proto::control::v1::{Phase, Pod, RestartPolicy};
use longship_scheduler::{Amount, SANDBOX_OVERHEAD_BYTES};
use longship_store::Store;
use proptest::prelude::*;
use uuid::Uuid;

use super::acts::TENANTS;
use super::{HOST_CPU_MILLIS, HOST_MEMORY_BYTES, HOST_PODS, World, load};
use crate::pods::PodRecord;
use crate::records::{self, Notes};

impl World {
    pub(super) async fn check(&mut self) -> Result<(), TestCaseError> {
        let pods = self.check_store().await?;
        for record in &pods {
            self.check_pod(record)?;
        }
        self.check_addresses(&pods)?;
        self.check_hosts(&pods)?;
        self.check_cards()?;
        self.check_quotas()?;
        self.check_gangs(&pods)?;
        self.check_apart(&pods)
    }

    /// What is stored is what is known.
    async fn check_store(&self) -> Result<Vec<PodRecord>, TestCaseError> {
        let mut notes: HashMap<String, Notes> = HashMap::new();
        for object in self.store.list(records::NOTES, "").await.unwrap().objects {
            notes.insert(object.key.clone(), records::decode(&object).unwrap());
        }
        let mut pods = Vec::new();
        for object in self.store.list(records::POD, "").await.unwrap().objects {
            let pod: Pod = records::decode(&object).unwrap();
            let mut record = PodRecord::from_pod(pod).unwrap();
            record.notes = notes.remove(&object.key).unwrap_or_default();
            let known = self.state.pods.get(record.id).map(|known| &**known);
            prop_assert_eq!(known, Some(&record));
            prop_assert_eq!(self.state.pods.version(record.id), object.version);
            pods.push(record);
        }
        prop_assert_eq!(self.state.pods.iter().count(), pods.len());
        prop_assert!(notes.is_empty(), "notes of nobody: {:?}", notes);
        let gangs = self.store.list(records::GANG, "").await.unwrap().objects;
        prop_assert_eq!(gangs.len(), self.state.gangs.len());
        Ok(pods)
    }

    fn check_pod(&mut self, record: &PodRecord) -> Result<(), TestCaseError> {
        let (status, id) = (&record.status, record.id);
        let pending = status.phase() == Phase::Pending;
        prop_assert_eq!(pending, record.waits(), "{:?}", record);
        let placed = !status.host.is_empty();
        prop_assert!(placed || pending || record.is_over(), "{:?}", record);
        prop_assert_eq!(placed, status.eni.is_some(), "{:?}", record);
        if pending {
            prop_assert!(!status.reason.is_empty() && !status.message.is_empty());
            prop_assert!(!record.is_deleted(), "deleted, nowhere, still there");
            let queued = self.state.backlog.line(record.pod_id()).is_some();
            let set_aside = self.state.unsuited.contains(&id)
                || self
                    .state
                    .unaddressed
                    .values()
                    .any(|pods| pods.contains(&id));
            prop_assert!(queued || set_aside, "nobody looks after {:?}", record);
        }
        let held = self.state.fleet.placement(record.pod_id());
        let host = held.map(|(_, host, _)| self.state.fleet.host_name(host).to_owned());
        match placed && !record.is_over() {
            true => prop_assert_eq!(host.as_ref(), Some(&status.host)),
            false => prop_assert_eq!(host, None, "{:?}", record),
        }
        if !record.spec.zone.is_empty() && placed {
            prop_assert_eq!(&record.spec.zone, &status.zone);
        }
        let before = self.generations.insert(id, record.meta.generation);
        prop_assert!(before.unwrap_or(1) <= record.meta.generation);
        prop_assert_eq!(u64::from(status.moves) + 1, record.meta.generation);
        if record.spec.restart_policy() == RestartPolicy::Never {
            prop_assert_eq!(status.moves, 0, "one that never begins again has");
        }
        Ok(())
    }

    fn check_addresses(&self, pods: &[PodRecord]) -> Result<(), TestCaseError> {
        let mut addresses = BTreeSet::new();
        for eni in pods.iter().filter_map(|record| record.status.eni.as_ref()) {
            let fresh = addresses.insert((&eni.vpc, &eni.address));
            prop_assert!(fresh, "given twice: {:?}", eni);
        }
        prop_assert_eq!(self.addresses_used(), addresses.len());
        Ok(())
    }

    fn addresses_used(&self) -> usize {
        let vpcs = self.state.ipam.list(None);
        let subnets = vpcs.iter().flat_map(|vpc| &vpc.subnets);
        let used: u32 = subnets.map(|subnet| subnet.addresses_used).sum();
        used as usize
    }

    /// Hosts have promised what their pods have and what is reserved, and no more, but
    /// for those that wait for others to leave.
    fn check_hosts(&self, pods: &[PodRecord]) -> Result<(), TestCaseError> {
        let mut sums: BTreeMap<&str, Amount> = BTreeMap::new();
        for record in pods {
            let held = self.state.fleet.placement(record.pod_id());
            let takes = held.and_then(|(ticket, ..)| self.state.fleet.takes(ticket));
            if let Some(takes) = takes {
                let sum = sums.entry(&record.status.host).or_default();
                *sum = sum.plus(takes);
            }
        }
        for host in self.state.fleet.hosts() {
            let sum = sums.get(host.facts.name.as_str()).copied();
            let sum = sum.unwrap_or_default();
            prop_assert!(sum.fits(host.used), "{:?} has {:?}", host, sum);
        }
        let kept: u32 = self.state.fleet.bookings().map(|view| view.idle).sum();
        let used: u32 = self.state.fleet.hosts().map(|host| host.used.pods).sum();
        let pods: u32 = sums.values().map(|sum| sum.pods).sum();
        prop_assert_eq!(used, pods + kept);
        Ok(())
    }

    /// No card is told to run more than its host has, and no life of a pod is on two.
    fn check_cards(&self) -> Result<(), TestCaseError> {
        let mut lives = BTreeSet::new();
        for (host, card) in &self.cards {
            let running = card.running.iter().filter(|(_, running)| !running.over);
            let (mut cpu, mut memory, mut count) = (0, 0, 0);
            for (uid, running) in running {
                let fresh = lives.insert((uid, running.generation()));
                prop_assert!(fresh, "{} runs twice", uid);
                cpu += running.flavor().cpu_millis;
                memory += running.flavor().memory_bytes + SANDBOX_OVERHEAD_BYTES;
                count += 1;
            }
            if card.is_attached() {
                let fits = cpu <= HOST_CPU_MILLIS && memory <= HOST_MEMORY_BYTES;
                prop_assert!(
                    fits && count <= HOST_PODS,
                    "{} has {:?}",
                    host,
                    card.running
                );
            }
        }
        Ok(())
    }

    fn check_quotas(&self) -> Result<(), TestCaseError> {
        for (tenant, quota) in TENANTS.into_iter().zip(self.quotas) {
            let alive = self.state.pods.alive(tenant);
            prop_assert!(
                quota.pods.is_none_or(|most| alive <= most),
                "{} pods",
                alive
            );
            let held = self.state.fleet.held(tenant).cpu_millis;
            prop_assert!(quota.cpu_millis.is_none_or(|most| held <= most), "{}", held);
        }
        Ok(())
    }

    /// Those that wait together are placed together.
    fn check_gangs(&mut self, pods: &[PodRecord]) -> Result<(), TestCaseError> {
        let by_id: BTreeMap<Uuid, &PodRecord> = pods.iter().map(|pod| (pod.id, pod)).collect();
        let mut waiting = Vec::new();
        for gang in std::mem::take(&mut self.gangs) {
            let there: Vec<_> = gang.iter().filter_map(|id| by_id.get(id)).collect();
            // One that has lost a pod is another gang, or none.
            if there.len() < gang.len() {
                continue;
            }
            let wait = there.iter().filter(|pod| pod.waits()).count();
            prop_assert!(
                wait == 0 || wait == gang.len(),
                "{} of {:?} wait",
                wait,
                gang
            );
            if wait > 0 {
                waiting.push(gang);
            }
        }
        self.gangs = waiting;
        Ok(())
    }

    fn check_apart(&self, pods: &[PodRecord]) -> Result<(), TestCaseError> {
        let mut hosts = BTreeSet::new();
        for record in pods {
            let apart = record.meta.labels.contains_key("app");
            if apart && self.state.fleet.placement(record.pod_id()).is_some() {
                let host = (&record.meta.tenant, &record.status.host);
                prop_assert!(
                    hosts.insert(host),
                    "two that must be apart are on {:?}",
                    host
                );
            }
        }
        Ok(())
    }

    /// The server ends and begins again: with what was written.
    pub(super) async fn restart(&mut self, written: bool) -> Result<(), TestCaseError> {
        let before = (self.places(), self.addresses_used());
        self.answers.clear();
        for card in self.cards.values_mut() {
            card.detach();
        }
        self.state = load(self.now, &self.store).await;
        if written {
            let after = (self.places(), self.addresses_used());
            prop_assert_eq!(after, before, "something was lost or leaked");
        }
        self.state.go_on(self.now);
        super::super::flush(&mut self.state, &self.store)
            .await
            .unwrap();
        self.check().await
    }

    /// Who is where, and who has to leave first.
    fn places(&self) -> BTreeMap<Uuid, (String, bool)> {
        let pods = self.state.pods.iter();
        let placed = pods.filter_map(|pod| {
            let (_, host, _) = self.state.fleet.placement(pod.pod_id())?;
            let host = self.state.fleet.host_name(host).to_owned();
            Some((pod.id, (host, self.state.is_held_back(pod.id))))
        });
        placed.collect()
    }
}
