//! How the control plane's objects lie in the store: one kind each, protobuf inside.

use std::collections::HashMap;

use longship_proto::Failure;
use longship_proto::control::v1::Pod;
use longship_scheduler::{Amount, HostFacts, STANDARD_FAMILY};
use longship_store::Object;
use prost::Message;

/// Pods, under `NAMESPACE/NAME`; the value is a [`Pod`].
pub(crate) const POD: &str = "pod";
/// Hosts, under their names; the value is a [`HostRecord`].
pub(crate) const HOST: &str = "host";
/// Tenants, under their names; the value is a `Tenant` of the API, without its usage.
pub(crate) const TENANT: &str = "tenant";
/// Clients' tokens, under their ids; the value is a `TokenRecord`.
pub(crate) const TOKEN: &str = "token";
/// VPCs, under their names; the value is a [`VpcRecord`].
pub(crate) const VPC: &str = "vpc";
/// What is noted of pods beside themselves, under their keys; the value is [`Notes`].
pub(crate) const NOTES: &str = "pod-notes";
/// Gangs that wait, under their first pod's uid; the value is a [`GangRecord`].
pub(crate) const GANG: &str = "gang";
/// Capacity reservations, under `TENANT/NAME`; the value is a [`ReservationRecord`].
pub(crate) const RESERVATION: &str = "reservation";
/// Image caches, under `TENANT/NAME`; the value is an
/// [`longship_proto::control::v1::ImageCache`] without status.
pub(crate) const IMAGE_CACHE: &str = "image-cache";
/// Requests for new pods that may be asked again, under `TENANT/KEY`; the value is a
/// [`OnceRecord`].
pub(crate) const REQUEST: &str = "request";
/// Keys, under what they are for; the value is the key itself.
pub(crate) const SECRET: &str = "secret";
/// The secret with which access tokens are signed.
pub(crate) const TOKEN_KEY: &str = "token-key";

/// A host as it last registered, and what became of it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct HostRecord {
    /// Where it stands.
    #[prost(string, tag = "1")]
    pub zone: String,
    /// Thousandths of a CPU.
    #[prost(uint32, tag = "2")]
    pub cpu_millis: u32,
    /// Bytes.
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
    /// How many pods it may run.
    #[prost(uint32, tag = "4")]
    pub pods: u32,
    /// gRPC address of its card.
    #[prost(string, tag = "5")]
    pub endpoint: String,
    /// Flavors that it takes; empty: the standard family's.
    #[prost(string, tag = "6")]
    pub family: String,
    /// ENIs; 0: no limit but that of pods.
    #[prost(uint32, tag = "7")]
    pub enis: u32,
    /// Disks; 0: no limit.
    #[prost(uint32, tag = "8")]
    pub disks: u32,
    /// GPUs.
    #[prost(uint32, tag = "9")]
    pub gpus: u32,
    /// An operator keeps new pods off it.
    #[prost(bool, tag = "10")]
    pub cordoned: bool,
    /// Its pods have been told to leave.
    #[prost(bool, tag = "11")]
    pub draining: bool,
    /// Its pods have been given up.
    #[prost(bool, tag = "12")]
    pub fenced: bool,
}

impl HostRecord {
    /// The host of the record, as the scheduler knows it.
    #[must_use]
    pub(crate) fn facts(&self, name: &str) -> HostFacts {
        let no_limit = |limit: u32| if limit == 0 { u32::MAX } else { limit };
        HostFacts {
            name: name.to_owned(),
            zone: self.zone.clone(),
            family: match self.family.as_str() {
                "" => STANDARD_FAMILY.to_owned(),
                family => family.to_owned(),
            },
            capacity: Amount {
                memory_bytes: self.memory_bytes,
                cpu_millis: self.cpu_millis,
                pods: self.pods,
                enis: no_limit(self.enis),
                disks: no_limit(self.disks),
                gpus: self.gpus,
            },
        }
    }
}

/// What the control plane remembers of a pod beside what clients see.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Notes {
    /// It has to leave its host, though nobody has deleted it.
    #[prost(message, optional, tag = "1")]
    pub eviction: Option<Eviction>,
    /// The [`longship_proto::control::v1::Phase`] it was in when its card was last heard
    /// of; 0 while it is heard of.
    #[prost(int32, tag = "2")]
    pub phase_before: i32,
    /// Uid of the capacity reservation that it draws on.
    #[prost(string, tag = "3")]
    pub draws_on: String,
}

/// Why a pod has to leave its host.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Eviction {
    /// One CamelCase word.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// In a sentence.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Microseconds since the Unix epoch.
    #[prost(int64, tag = "3")]
    pub since_us: i64,
    /// Instead of the pod's own, in seconds.
    #[prost(uint32, optional, tag = "4")]
    pub grace_seconds: Option<u32>,
    /// Uid of the pod that gets its place; empty: none.
    #[prost(string, tag = "5")]
    pub winner: String,
}

/// Pods that wait to get their places together. It goes when they have them.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GangRecord {
    /// Uids, in order.
    #[prost(string, repeated, tag = "1")]
    pub uids: Vec<String>,
    /// All in one zone.
    #[prost(bool, tag = "2")]
    pub one_zone: bool,
}

/// A capacity reservation.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReservationRecord {
    /// Unique, never used again.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Whose it is.
    #[prost(string, tag = "2")]
    pub tenant: String,
    /// Unique in the tenant.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Flavor's name.
    #[prost(string, tag = "4")]
    pub flavor: String,
    /// How many pods.
    #[prost(uint32, tag = "5")]
    pub count: u32,
    /// Empty: anywhere.
    #[prost(string, repeated, tag = "6")]
    pub zones: Vec<String>,
    /// Microseconds since the Unix epoch.
    #[prost(int64, tag = "7")]
    pub ends_us: i64,
}

/// What became of a request for new pods.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OnceRecord {
    /// Of what was asked.
    #[prost(bytes = "vec", tag = "1")]
    pub hash: Vec<u8>,
    /// Microseconds since the Unix epoch.
    #[prost(int64, tag = "2")]
    pub created_us: i64,
    /// One a pod, in order.
    #[prost(message, repeated, tag = "3")]
    pub outcomes: Vec<Outcome>,
    /// All of its pods are in the store, or have been.
    #[prost(bool, tag = "4")]
    pub complete: bool,
}

/// What became of one pod of a request.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Outcome {
    /// The pod's, where it was created.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Why it was not created.
    #[prost(message, optional, tag = "4")]
    pub failure: Option<Failure>,
}

/// A tenant's network.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct VpcRecord {
    /// N of 10.N.0.0/16, where nothing else is said: a record from before there were
    /// subnets.
    #[prost(uint32, tag = "1")]
    pub subnet: u32,
    /// Whose it is; empty: the default tenant's.
    #[prost(string, tag = "2")]
    pub tenant: String,
    /// Its prefix.
    #[prost(string, tag = "3")]
    pub cidr: String,
    /// Parts of it.
    #[prost(message, repeated, tag = "4")]
    pub subnets: Vec<SubnetRecord>,
}

/// A part of a VPC.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SubnetRecord {
    /// Unique in its VPC.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its prefix.
    #[prost(string, tag = "2")]
    pub cidr: String,
    /// Only pods of this zone; empty: any.
    #[prost(string, tag = "3")]
    pub zone: String,
}

/// What a pod's value has beside the pod, where its labels were changed: what they
/// were before, so that a watch by labels can tell who leaves it. The next change of
/// the pod drops it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FormerLabels {
    /// There are some, or none.
    #[prost(message, optional, tag = "100")]
    pub former: Option<LabelSet>,
}

impl FormerLabels {
    /// These are what they were.
    pub(crate) fn of(labels: HashMap<String, String>) -> Self {
        Self {
            former: Some(LabelSet { labels }),
        }
    }
}

/// A pod's labels.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LabelSet {
    /// By key.
    #[prost(map = "string, string", tag = "1")]
    pub labels: HashMap<String, String>,
}

/// A pod's labels before this version of it, where this changed them.
///
/// # Errors
/// [`RecordError`] where the value is no pod.
pub(crate) fn former_labels(
    object: &Object,
) -> Result<Option<HashMap<String, String>>, RecordError> {
    let former: FormerLabels = decode(object)?;
    Ok(former.former.map(|former| former.labels))
}

/// A record that cannot be used: the store was damaged, or is another program's.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the stored {kind} `{key}` cannot be used: {what}")]
pub struct RecordError {
    kind: String,
    key: String,
    what: String,
}

impl RecordError {
    /// An error about that object.
    pub(crate) fn new(object: &Object, what: impl std::fmt::Display) -> Self {
        Self {
            kind: object.kind.clone(),
            key: object.key.clone(),
            what: what.to_string(),
        }
    }
}

/// The message in an object.
///
/// # Errors
/// [`RecordError`] where it holds none.
pub(crate) fn decode<M: Message + Default>(object: &Object) -> Result<M, RecordError> {
    M::decode(&object.value[..]).map_err(|error| RecordError::new(object, error))
}

/// The pod in an object, with the object's version.
///
/// # Errors
/// [`RecordError`] where it holds none.
pub(crate) fn decode_pod(object: &Object) -> Result<Pod, RecordError> {
    let mut pod: Pod = decode(object)?;
    pod.metadata.get_or_insert_default().resource_version = object.version;
    Ok(pod)
}
