//! Requests for new pods that are asked again: answered with what became of them.

use std::collections::{BTreeSet, HashMap};

use longship_proto::Failure;
use longship_proto::control::v1::{ObjectMeta, Phase, Pod, PodStatus};
use longship_store::{Expect, Object, Transaction};
use prost::Message;
use uuid::Uuid;

use super::command::GangOrder;
use super::plan::Written;
use super::state::{Now, State};
use crate::pods::PodRecord;
use crate::records::{self, OnceRecord, Outcome, RecordError};
use crate::validate::{NewPod, Once};

/// For how long a key is known, in microseconds: a day.
const KEPT_US: i64 = 24 * 3600 * 1_000_000;
/// Keys of one tenant; the oldest are forgotten first.
const MAX_KEYS: usize = 20_000;
/// Keys that are forgotten in one go.
const AT_ONCE: usize = 256;

/// What became of one new pod.
pub(super) enum Created {
    /// It is created by this request.
    Now(Box<PodRecord>),
    /// It was by an earlier one.
    Before(Outcome),
}

impl Created {
    /// The pod as it is after the batch is written.
    pub(super) fn to_pod(&self, written: &Written<'_>) -> Pod {
        let id = match self {
            Self::Now(record) => Some(record.id),
            Self::Before(outcome) => Uuid::parse_str(&outcome.uid).ok(),
        };
        if let Some(id) = id
            && let Some(now) = written.pods.get(id)
        {
            return now.to_pod(written.pods.version(id));
        }
        match self {
            Self::Now(record) => record.to_pod(0),
            // It has come and gone.
            Self::Before(outcome) => Pod {
                metadata: Some(ObjectMeta {
                    name: outcome.name.clone(),
                    namespace: outcome.namespace.clone(),
                    uid: outcome.uid.clone(),
                    ..ObjectMeta::default()
                }),
                spec: None,
                status: Some(PodStatus {
                    phase: Phase::Released.into(),
                    ..PodStatus::default()
                }),
            },
        }
    }
}

/// Keys that are known, with what was asked and what became of it.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// By their places in the store, `TENANT/KEY`.
    known: HashMap<String, OnceRecord>,
    by_age: BTreeSet<(i64, String)>,
    of_tenants: HashMap<String, BTreeSet<(i64, String)>>,
}

impl Requests {
    fn insert(&mut self, place: String, record: OnceRecord) {
        self.remove(&place);
        let aged = (record.created_us, place.clone());
        let tenant = tenant_of(&place).to_owned();
        self.of_tenants
            .entry(tenant)
            .or_default()
            .insert(aged.clone());
        self.by_age.insert(aged);
        self.known.insert(place, record);
    }

    fn remove(&mut self, place: &str) {
        let Some(record) = self.known.remove(place) else {
            return;
        };
        let aged = (record.created_us, place.to_owned());
        self.by_age.remove(&aged);
        if let Some(keys) = self.of_tenants.get_mut(tenant_of(place)) {
            keys.remove(&aged);
            if keys.is_empty() {
                self.of_tenants.remove(tenant_of(place));
            }
        }
    }

    /// The oldest of a tenant that has too many.
    fn one_too_many(&self, tenant: &str) -> Option<String> {
        let keys = self.of_tenants.get(tenant)?;
        let oldest = keys.first().filter(|_| keys.len() > MAX_KEYS);
        oldest.map(|(_, place)| place.clone())
    }

    fn oldest_before(&self, us: i64) -> Option<String> {
        let oldest = self.by_age.first().filter(|(created, _)| *created <= us);
        oldest.map(|(_, place)| place.clone())
    }
}

fn tenant_of(place: &str) -> &str {
    place.split_once('/').map_or(place, |(tenant, _)| tenant)
}

impl State {
    /// Creates pods, unless a request with that key has done so already.
    ///
    /// # Errors
    /// `CONFLICT` at `idempotency_key`, where that one asked for something else.
    pub(super) fn create_once(
        &mut self,
        now: Now,
        once: Option<Once>,
        pods: Vec<(NewPod, Uuid)>,
        gang: Option<GangOrder>,
    ) -> Result<Vec<Result<Created, Failure>>, Failure> {
        let tenant = pods.first();
        let tenant = tenant.and_then(|(pod, _)| self.tenant_of(&pod.metadata.namespace).ok());
        let (Some(once), Some(tenant)) = (once, tenant) else {
            return Ok(self.create_all(now, pods, gang));
        };
        let place = format!("{tenant}/{}", once.key);
        let known = self.requests.known.get(&place);
        let known = known.filter(|known| now.us.saturating_sub(known.created_us) < KEPT_US);
        let created = match known {
            Some(known) if known.hash[..] != once.hash => {
                return Err(Failure {
                    field: "idempotency_key".into(),
                    ..Failure::conflict("a request with this key asked for something else")
                });
            }
            Some(known) if known.complete => {
                return Ok(known.outcomes.iter().cloned().map(remembered).collect());
            }
            Some(known) => {
                let outcomes = known.outcomes.clone();
                self.complete(now, &outcomes, pods, gang)
            }
            None => self.create_all(now, pods, gang),
        };
        self.remember(now, &tenant, place, once.hash, &created);
        Ok(created)
    }

    fn create_all(
        &mut self,
        now: Now,
        pods: Vec<(NewPod, Uuid)>,
        gang: Option<GangOrder>,
    ) -> Vec<Result<Created, Failure>> {
        let created = match gang {
            Some(order) => self.create_gang(now, pods, order),
            None => {
                let pods = pods.into_iter();
                pods.map(|(pod, id)| self.create_pod(now, pod, id))
                    .collect()
            }
        };
        let created = created.into_iter();
        created
            .map(|one| one.map(|record| Created::Now(Box::new(record))))
            .collect()
    }

    /// Creates what is missing of a request in whose midst the control plane had ended.
    fn complete(
        &mut self,
        now: Now,
        outcomes: &[Outcome],
        pods: Vec<(NewPod, Uuid)>,
        gang: Option<GangOrder>,
    ) -> Vec<Result<Created, Failure>> {
        let exists = |state: &Self, outcome: &Outcome| {
            let id = Uuid::parse_str(&outcome.uid).ok();
            id.is_some_and(|id| state.pods.get(id).is_some())
        };
        if !outcomes.iter().any(|outcome| exists(self, outcome)) {
            return self.create_all(now, pods, gang);
        }
        let pods = outcomes.iter().zip(pods);
        let completed = pods.map(|(outcome, (pod, id))| {
            if outcome.failure.is_some() || exists(self, outcome) {
                return remembered(outcome.clone());
            }
            let created = self.create_pod(now, pod, id);
            created.map(|record| Created::Now(Box::new(record)))
        });
        completed.collect()
    }

    /// Writes down what became of a request, together with its pods: what it was to
    /// become with the first of them, that it is complete with the last.
    fn remember(
        &mut self,
        now: Now,
        tenant: &str,
        place: String,
        hash: [u8; 32],
        created: &[Result<Created, Failure>],
    ) {
        let new = created.iter().filter_map(|created| match created {
            Ok(Created::Now(record)) => Some(record.id),
            _ => None,
        });
        let new: Vec<Uuid> = new.collect();
        let (Some(first), Some(last)) = (new.first(), new.last()) else {
            // Nothing was created: asking again may.
            return;
        };
        let mut record = OnceRecord {
            hash: hash.to_vec(),
            created_us: now.us,
            outcomes: created.iter().map(outcome).collect(),
            complete: false,
        };
        if first != last {
            self.write_with(*first, &place, &record);
        }
        record.complete = true;
        self.write_with(*last, &place, &record);
        self.requests.insert(place, record);
        if let Some(oldest) = self.requests.one_too_many(tenant) {
            self.forget_request(&oldest);
        }
    }

    /// Writes in the transaction that writes a pod.
    fn write_with(&mut self, pod: Uuid, place: &str, record: &OnceRecord) {
        let bytes = record.encode_to_vec();
        let mut steps = self.plan.steps.iter_mut().rev();
        if let Some(step) = steps.find(|step| step.pod == Some(pod)) {
            let transaction = std::mem::take(&mut step.transaction);
            step.transaction = transaction.put(records::REQUEST, place, bytes, Expect::Any);
        }
    }

    fn forget_request(&mut self, place: &str) {
        self.requests.remove(place);
        let transaction = Transaction::new();
        self.plan
            .write(transaction.delete(records::REQUEST, place, Expect::Any));
    }

    /// Forgets keys that are older than a day.
    pub(super) fn forget_old_requests(&mut self, now: Now) {
        for _ in 0..AT_ONCE {
            let Some(place) = self.requests.oldest_before(now.us.saturating_sub(KEPT_US)) else {
                return;
            };
            self.forget_request(&place);
        }
    }

    /// Takes a key over from the store.
    pub(super) fn adopt_request(&mut self, object: &Object) -> Result<(), RecordError> {
        let record: OnceRecord = records::decode(object)?;
        self.requests.insert(object.key.clone(), record);
        Ok(())
    }
}

fn remembered(outcome: Outcome) -> Result<Created, Failure> {
    match outcome.failure {
        Some(failure) => Err(failure),
        None => Ok(Created::Before(outcome)),
    }
}

fn outcome(created: &Result<Created, Failure>) -> Outcome {
    match created {
        Ok(Created::Now(record)) => Outcome {
            uid: record.meta.uid.clone(),
            namespace: record.meta.namespace.clone(),
            name: record.meta.name.clone(),
            failure: None,
        },
        Ok(Created::Before(outcome)) => outcome.clone(),
        Err(failure) => Outcome {
            failure: Some(failure.clone()),
            ..Outcome::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_first_of_each_tenant_and_of_all() {
        let mut requests = Requests::default();
        let record = |created_us| OnceRecord {
            created_us,
            ..OnceRecord::default()
        };
        for n in 0..=MAX_KEYS {
            let us = i64::try_from(n).unwrap();
            requests.insert(format!("red/{n}"), record(us));
        }
        requests.insert("blue/x".into(), record(-5));
        assert_eq!(requests.one_too_many("red"), Some("red/0".into()));
        assert_eq!(requests.one_too_many("blue"), None);
        requests.remove("red/0");
        assert_eq!(requests.one_too_many("red"), None);
        assert_eq!(requests.oldest_before(-6), None);
        assert_eq!(requests.oldest_before(-5), Some("blue/x".into()));
        requests.insert("blue/x".into(), record(7));
        assert_eq!(requests.oldest_before(-5), None);
        requests.remove("blue/x");
        assert!(!requests.of_tenants.contains_key("blue"));
        assert_eq!(requests.known.len(), requests.by_age.len());
    }
}
