//! All pods in memory, found by uid, by name, by host, and those that wait.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use longship_proto::control::v1::{ObjectMeta, Phase, Pod, PodSpec, PodStatus};
use longship_scheduler::PodId;
use uuid::Uuid;

use crate::phase::is_over;
use crate::records::Notes;

/// A pod whose parts are all there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodRecord {
    pub(crate) id: Uuid,
    pub(crate) meta: ObjectMeta,
    pub(crate) spec: PodSpec,
    pub(crate) status: PodStatus,
    /// What clients do not see.
    pub(crate) notes: Notes,
}

impl PodRecord {
    /// A pod from the store, without notes.
    pub(crate) fn from_pod(pod: Pod) -> Result<Self, String> {
        let meta = pod.metadata.ok_or("it has no metadata")?;
        let id = Uuid::parse_str(&meta.uid).map_err(|e| format!("uid `{}`: {e}", meta.uid))?;
        Ok(Self {
            id,
            meta,
            spec: pod.spec.ok_or("it has no spec")?,
            status: pod.status.unwrap_or_default(),
            notes: Notes::default(),
        })
    }

    /// The pod as it was at a version of the store.
    pub(crate) fn to_pod(&self, version: u64) -> Pod {
        let mut meta = self.meta.clone();
        meta.resource_version = version;
        Pod {
            metadata: Some(meta),
            spec: Some(self.spec.clone()),
            status: Some(self.status.clone()),
        }
    }

    /// The pod as its card is told of it: one that is evicted ends there as one that
    /// is deleted does.
    pub(crate) fn for_card(&self, version: u64) -> Pod {
        let mut pod = self.to_pod(version);
        if let (Some(eviction), false) = (&self.notes.eviction, self.is_deleted()) {
            if let Some(meta) = &mut pod.metadata {
                meta.deleted_us = eviction.since_us;
            }
            if let (Some(spec), Some(grace)) = (&mut pod.spec, eviction.grace_seconds) {
                spec.termination_grace_seconds = Some(grace);
            }
        }
        pod
    }

    /// As it lies in the store: a [`Pod`] without a version.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // The pod's parts are encoded where they are: a copy of all of it would cost
        // more than this.
        let mut bytes = Vec::with_capacity(1024);
        prost::encoding::message::encode(1, &self.meta, &mut bytes);
        prost::encoding::message::encode(2, &self.spec, &mut bytes);
        prost::encoding::message::encode(3, &self.status, &mut bytes);
        bytes
    }

    /// Where it lies in the store.
    pub(crate) fn key(&self) -> String {
        key(&self.meta.namespace, &self.meta.name)
    }

    /// The scheduler's name for it.
    pub(crate) fn pod_id(&self) -> PodId {
        PodId(self.id.as_u128())
    }

    /// Whether somebody has asked for its deletion.
    pub(crate) fn is_deleted(&self) -> bool {
        self.meta.deleted_us > 0
    }

    /// Whether it waits for a place.
    pub(crate) fn waits(&self) -> bool {
        self.status.host.is_empty() && self.status.phase() == Phase::Pending
    }

    /// Whether it has ended, and nothing of it is left to end.
    pub(crate) fn is_over(&self) -> bool {
        is_over(self.status.phase())
    }
}

/// Where a pod lies in the store.
pub(crate) fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// The namespace in such a key.
pub(crate) fn namespace_of(key: &str) -> &str {
    key.split_once('/').map_or(key, |(namespace, _)| namespace)
}

#[derive(Debug)]
struct Entry {
    record: Arc<PodRecord>,
    version: u64,
    /// It has changed since it was written.
    changed: bool,
    /// Notes of it lie in the store.
    noted: bool,
    /// Its labels as they lie in the store, where they have changed since.
    former: Option<HashMap<String, String>>,
}

/// By what a pod is found.
#[derive(Debug, PartialEq, Eq)]
struct Facets {
    host: String,
    /// When it was created, where it waits.
    waits_since: Option<i64>,
    /// Its tenant, where it is not over.
    alive_of: Option<String>,
}

impl Facets {
    fn of(record: &PodRecord) -> Self {
        Self {
            host: record.status.host.clone(),
            waits_since: record.waits().then_some(record.meta.created_us),
            alive_of: (!record.is_over()).then(|| record.meta.tenant.clone()),
        }
    }
}

/// What is to be written of a changed pod.
#[derive(Debug)]
pub(crate) struct Unwritten {
    pub(crate) record: Arc<PodRecord>,
    /// Notes of it lie in the store.
    pub(crate) noted: bool,
    /// Its labels before, where they have changed.
    pub(crate) former: Option<HashMap<String, String>>,
}

/// All pods.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    by_uid: HashMap<Uuid, Entry>,
    by_key: HashMap<String, Uuid>,
    by_host: HashMap<String, BTreeSet<Uuid>>,
    /// Without a place, the oldest first.
    waiting: BTreeSet<(i64, Uuid)>,
    /// Pods that are not over, by tenant.
    alive: HashMap<String, u64>,
    /// All pods, by namespace and by tenant.
    by_namespace: HashMap<String, u64>,
    by_tenant: HashMap<String, u64>,
}

impl Pods {
    pub(crate) fn get(&self, id: Uuid) -> Option<&Arc<PodRecord>> {
        self.by_uid.get(&id).map(|entry| &entry.record)
    }

    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<&Arc<PodRecord>> {
        let id = self.by_key.get(&key(namespace, name))?;
        self.get(*id)
    }

    /// The version in which the pod lies in the store; 0: not yet.
    pub(crate) fn version(&self, id: Uuid) -> u64 {
        self.by_uid.get(&id).map_or(0, |entry| entry.version)
    }

    pub(crate) fn set_version(&mut self, id: Uuid, version: u64) {
        if let Some(entry) = self.by_uid.get_mut(&id) {
            entry.version = version;
        }
    }

    /// Adds a pod, or puts it in the place of what it was.
    pub(crate) fn put(&mut self, record: PodRecord) {
        let id = record.id;
        let (version, changed, noted, former) = match self.by_uid.remove(&id) {
            None => {
                self.by_key.insert(record.key(), id);
                let namespace = record.meta.namespace.clone();
                *self.by_namespace.entry(namespace).or_default() += 1;
                let tenant = record.meta.tenant.clone();
                *self.by_tenant.entry(tenant).or_default() += 1;
                (0, false, false, None)
            }
            Some(before) => {
                self.unindex(id, &Facets::of(&before.record));
                (before.version, before.changed, before.noted, before.former)
            }
        };
        self.index(id, Facets::of(&record));
        let entry = Entry {
            record: Arc::new(record),
            version,
            changed,
            noted,
            former,
        };
        self.by_uid.insert(id, entry);
    }

    /// Changes a pod in place. Its uid, namespace and name stay.
    pub(crate) fn change(&mut self, id: Uuid, change: impl FnOnce(&mut PodRecord)) {
        let Some(entry) = self.by_uid.get_mut(&id) else {
            return;
        };
        let before = Facets::of(&entry.record);
        change(Arc::make_mut(&mut entry.record));
        let after = Facets::of(&entry.record);
        if after != before {
            self.unindex(id, &before);
            self.index(id, after);
        }
    }

    /// Says that the pod is to be written. False where that was said already.
    pub(crate) fn mark_changed(&mut self, id: Uuid) -> bool {
        let entry = self.by_uid.get_mut(&id);
        entry.is_some_and(|entry| !std::mem::replace(&mut entry.changed, true))
    }

    /// Whether the pod has changed since it was written.
    pub(crate) fn is_changed(&self, id: Uuid) -> bool {
        self.by_uid.get(&id).is_some_and(|entry| entry.changed)
    }

    /// Remembers what labels the pod had, for those who watch by them.
    pub(crate) fn set_former(&mut self, id: Uuid, labels: HashMap<String, String>) {
        if let Some(entry) = self.by_uid.get_mut(&id) {
            entry.former.get_or_insert(labels);
        }
    }

    /// What is to be written of the pod; nothing where it is gone or is written.
    pub(crate) fn take_changed(&mut self, id: Uuid) -> Option<Unwritten> {
        let entry = self.by_uid.get_mut(&id).filter(|entry| entry.changed)?;
        entry.changed = false;
        let noted = std::mem::replace(&mut entry.noted, entry.record.notes != Notes::default());
        Some(Unwritten {
            record: Arc::clone(&entry.record),
            noted,
            former: entry.former.take(),
        })
    }

    /// Says that notes of the pod lie in the store.
    pub(crate) fn set_noted(&mut self, id: Uuid) {
        if let Some(entry) = self.by_uid.get_mut(&id) {
            entry.noted = true;
        }
    }

    /// Whether notes of the pod lie in the store.
    pub(crate) fn is_noted(&self, id: Uuid) -> bool {
        self.by_uid.get(&id).is_some_and(|entry| entry.noted)
    }

    pub(crate) fn remove(&mut self, id: Uuid) -> Option<Arc<PodRecord>> {
        let record = self.by_uid.remove(&id)?.record;
        self.by_key.remove(&record.key());
        one_less(&mut self.by_namespace, &record.meta.namespace);
        one_less(&mut self.by_tenant, &record.meta.tenant);
        self.unindex(id, &Facets::of(&record));
        Some(record)
    }

    fn index(&mut self, id: Uuid, facets: Facets) {
        if let Some(since) = facets.waits_since {
            self.waiting.insert((since, id));
        }
        if !facets.host.is_empty() {
            self.by_host.entry(facets.host).or_default().insert(id);
        }
        if let Some(tenant) = facets.alive_of {
            *self.alive.entry(tenant).or_default() += 1;
        }
    }

    fn unindex(&mut self, id: Uuid, facets: &Facets) {
        if let Some(since) = facets.waits_since {
            self.waiting.remove(&(since, id));
        }
        if let Some(host) = self.by_host.get_mut(&facets.host) {
            host.remove(&id);
            if host.is_empty() {
                self.by_host.remove(&facets.host);
            }
        }
        if let Some(tenant) = &facets.alive_of {
            one_less(&mut self.alive, tenant);
        }
    }

    /// The pods of a host, those that are over there included.
    pub(crate) fn on_host(&self, host: &str) -> impl Iterator<Item = &Arc<PodRecord>> {
        let ids = self.by_host.get(host).into_iter().flatten();
        ids.filter_map(|id| self.get(*id))
    }

    /// Some of the pods without a place, the oldest first: those after that one.
    pub(crate) fn waiting_after(
        &self,
        after: Option<(i64, Uuid)>,
    ) -> impl Iterator<Item = &Arc<PodRecord>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let waiting = self.waiting.range((from, Bound::Unbounded));
        waiting.filter_map(|(_, id)| self.get(*id))
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<PodRecord>> {
        self.by_uid.values().map(|entry| &entry.record)
    }

    /// Whether no pod waits.
    pub(crate) fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A tenant's pods that are not over.
    pub(crate) fn alive(&self, tenant: &str) -> u64 {
        self.alive.get(tenant).copied().unwrap_or_default()
    }

    /// A tenant's pods, those that are over included.
    pub(crate) fn of_tenant(&self, tenant: &str) -> u64 {
        self.by_tenant.get(tenant).copied().unwrap_or_default()
    }

    /// The pods of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> u64 {
        self.by_namespace
            .get(namespace)
            .copied()
            .unwrap_or_default()
    }
}

fn one_less(counts: &mut HashMap<String, u64>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_a_pod() {
        let record = PodRecord {
            id: Uuid::from_u128(7),
            meta: ObjectMeta {
                name: "web".into(),
                uid: Uuid::from_u128(7).to_string(),
                labels: [("app".to_owned(), "web".to_owned())].into(),
                ..ObjectMeta::default()
            },
            spec: PodSpec {
                vpc: "default".into(),
                ..PodSpec::default()
            },
            status: PodStatus::default(),
            notes: Notes::default(),
        };
        assert_eq!(record.to_bytes(), record.to_pod(0).encode_to_vec());
        let read = Pod::decode(&record.to_bytes()[..]).unwrap();
        assert_eq!(PodRecord::from_pod(read).unwrap(), record);
    }
}
