//! How the control plane's objects lie in the store: one kind each, protobuf inside.

use std::collections::HashMap;

use longship_proto::control::v1::Pod;
use longship_scheduler::{Capacity, HostSpec};
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
/// Keys, under what they are for; the value is the key itself.
pub(crate) const SECRET: &str = "secret";
/// The secret with which access tokens are signed.
pub(crate) const TOKEN_KEY: &str = "token-key";

/// A host as it last registered.
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
}

impl HostRecord {
    /// The record of a host.
    #[must_use]
    pub(crate) fn new(spec: &HostSpec, endpoint: &str) -> Self {
        Self {
            zone: spec.zone.clone(),
            cpu_millis: spec.capacity.cpu_millis,
            memory_bytes: spec.capacity.memory_bytes,
            pods: spec.capacity.pods,
            endpoint: endpoint.to_owned(),
        }
    }

    /// The host of the record.
    #[must_use]
    pub(crate) fn spec(&self, name: &str) -> HostSpec {
        HostSpec {
            name: name.to_owned(),
            zone: self.zone.clone(),
            capacity: Capacity {
                cpu_millis: self.cpu_millis,
                memory_bytes: self.memory_bytes,
                pods: self.pods,
            },
        }
    }
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
