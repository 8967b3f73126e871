//! One change of a pod, decoded and encoded once for all who hear of it.

use std::collections::HashMap;

use longship_proto::control::v1::pod_event::Type;
use longship_proto::control::v1::{Phase, Pod, PodEvent};
use longship_scheduler::Selector;
use longship_store::{Change as Kind, Event};
use prost::Message;
use prost::bytes::Bytes;

use crate::pods::namespace_of;
use crate::reconcile::tenant_of_pod;
use crate::records::{self, RecordError, decode_pod};

/// A [`PodEvent`] whose pod is encoded already: the same bytes on the wire.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EncodedEvent {
    /// As in [`PodEvent`].
    #[prost(enumeration = "Type", tag = "1")]
    pub r#type: i32,
    /// An encoded [`Pod`]; a message and its bytes are the same on the wire.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub pod: Option<Bytes>,
    /// As in [`PodEvent`].
    #[prost(uint64, tag = "3")]
    pub resource_version: u64,
}

impl EncodedEvent {
    /// Says that everything up to a version has been told.
    pub(crate) fn bookmark(version: u64) -> Self {
        Self {
            r#type: Type::Bookmark.into(),
            pod: None,
            resource_version: version,
        }
    }

    /// With its pod as a message.
    pub(crate) fn decode_pod(self) -> Result<PodEvent, prost::DecodeError> {
        Ok(PodEvent {
            r#type: self.r#type,
            pod: self.pod.map(Pod::decode).transpose()?,
            resource_version: self.resource_version,
        })
    }
}

/// A change of one pod.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    /// No more of this version follow.
    last: bool,
    kind: Kind,
    /// `NAMESPACE/NAME`.
    pub(crate) key: String,
    pub(crate) tenant: String,
    pub(crate) labels: HashMap<String, String>,
    /// The labels before, where this changed them.
    pub(crate) former: Option<HashMap<String, String>>,
    /// The pod after the change, encoded.
    pod: Bytes,
}

impl Change {
    /// The changes that one transaction made.
    ///
    /// # Errors
    /// [`RecordError`] where one is no pod.
    pub(crate) fn of_all(events: &[Event]) -> Result<Vec<Self>, RecordError> {
        let mut changes = Vec::with_capacity(events.len());
        for (at, event) in events.iter().enumerate() {
            changes.push(Self::of(event, at + 1 == events.len())?);
        }
        Ok(changes)
    }

    fn of(event: &Event, last: bool) -> Result<Self, RecordError> {
        let mut pod = decode_pod(&event.object)?;
        if event.change == Kind::Deleted {
            let status = pod.status.get_or_insert_default();
            status.set_phase(Phase::Released);
        }
        let encoded = pod.encode_to_vec().into();
        let meta = pod.metadata.unwrap_or_default();
        let former = match event.change {
            Kind::Updated => records::former_labels(&event.object)?,
            Kind::Created | Kind::Deleted => None,
        };
        Ok(Self {
            version: event.object.version,
            last,
            kind: event.change,
            key: event.object.key.clone(),
            tenant: tenant_of_pod(&meta).to_owned(),
            labels: meta.labels,
            former,
            pod: encoded,
        })
    }

    /// The version up to which nothing is missing after this.
    pub(crate) fn complete_to(&self) -> u64 {
        self.version - u64::from(!self.last)
    }

    pub(crate) fn namespace(&self) -> &str {
        namespace_of(&self.key)
    }

    /// Bytes that it holds, about.
    pub(crate) fn cost(&self) -> usize {
        let labels = self.labels.iter().chain(self.former.iter().flatten());
        let labels: usize = labels
            .map(|(key, value)| key.len() + value.len() + 64)
            .sum();
        size_of::<Self>() + self.pod.len() + self.key.len() + labels
    }

    /// What it is to somebody who sees only pods that the selector means.
    pub(crate) fn seen_by(&self, selector: &Selector) -> Option<EncodedEvent> {
        let matches = |labels: &HashMap<String, String>| {
            selector.matches_with(|key| labels.get(key).map(String::as_str))
        };
        let now = self.kind != Kind::Deleted && matches(&self.labels);
        let before =
            self.kind != Kind::Created && matches(self.former.as_ref().unwrap_or(&self.labels));
        let kind = match (before, now) {
            (false, true) => Type::Added,
            (true, true) => Type::Modified,
            (true, false) => Type::Deleted,
            (false, false) => return None,
        };
        Some(EncodedEvent {
            r#type: kind.into(),
            pod: Some(self.pod.clone()),
            // Whoever goes on from here must not miss the rest of the transaction.
            resource_version: self.complete_to(),
        })
    }
}
