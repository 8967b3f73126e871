//! All pods in memory, found by uid, by name, by host, and those that wait.

use std::collections::{BTreeSet, HashMap};

use longship_proto::control::v1::{ObjectMeta, Pod, PodSpec, PodStatus};
use longship_scheduler::PodId;
use prost::Message;
use uuid::Uuid;

/// A pod whose parts are all there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodRecord {
    pub(crate) id: Uuid,
    pub(crate) meta: ObjectMeta,
    pub(crate) spec: PodSpec,
    pub(crate) status: PodStatus,
}

impl PodRecord {
    /// A pod from the store.
    pub(crate) fn from_pod(pod: Pod) -> Result<Self, String> {
        let meta = pod.metadata.ok_or("it has no metadata")?;
        let id = Uuid::parse_str(&meta.uid).map_err(|e| format!("uid `{}`: {e}", meta.uid))?;
        Ok(Self {
            id,
            meta,
            spec: pod.spec.ok_or("it has no spec")?,
            status: pod.status.unwrap_or_default(),
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

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.to_pod(0).encode_to_vec()
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
    record: PodRecord,
    version: u64,
}

/// All pods.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    by_uid: HashMap<Uuid, Entry>,
    by_key: HashMap<String, Uuid>,
    by_host: HashMap<String, BTreeSet<Uuid>>,
    /// Without a host, the oldest first.
    waiting: BTreeSet<(i64, Uuid)>,
}

impl Pods {
    pub(crate) fn get(&self, id: Uuid) -> Option<&PodRecord> {
        self.by_uid.get(&id).map(|entry| &entry.record)
    }

    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<&PodRecord> {
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
        let version = self.version(id);
        self.remove(id);
        self.by_key.insert(record.key(), id);
        if record.status.host.is_empty() {
            self.waiting.insert((record.meta.created_us, id));
        } else {
            let host = self.by_host.entry(record.status.host.clone()).or_default();
            host.insert(id);
        }
        self.by_uid.insert(id, Entry { record, version });
    }

    pub(crate) fn remove(&mut self, id: Uuid) -> Option<PodRecord> {
        let record = self.by_uid.remove(&id)?.record;
        self.by_key.remove(&record.key());
        self.waiting.remove(&(record.meta.created_us, id));
        if let Some(host) = self.by_host.get_mut(&record.status.host) {
            host.remove(&id);
            if host.is_empty() {
                self.by_host.remove(&record.status.host);
            }
        }
        Some(record)
    }

    /// All pods, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PodRecord> {
        self.by_uid.values().map(|entry| &entry.record)
    }

    /// The pods of a host.
    pub(crate) fn on_host(&self, host: &str) -> impl Iterator<Item = &PodRecord> {
        let ids = self.by_host.get(host).into_iter().flatten();
        ids.filter_map(|id| self.get(*id))
    }

    /// The pods without a host, the oldest first.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &PodRecord> {
        self.waiting.iter().filter_map(|(_, id)| self.get(*id))
    }
}
