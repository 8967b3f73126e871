//! Writing a plan, then telling and answering.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use longship_proto::control::v1::Registered;
use longship_proto::{Failure, token};
use longship_scheduler::PodId;
use longship_store::{Expect, Store, StoreError, Transaction};
use prost::Message;
use uuid::Uuid;

use super::plan::{Plan, Step, Tell, Written};
use super::state::State;
use crate::pods::PodRecord;
use crate::records::{self, FormerLabels, Notes};

/// Writes the plan, then tells and answers.
///
/// # Errors
/// The store's; memory is ahead of the store then.
pub(super) async fn flush(state: &mut State, store: &dyn Store) -> Result<(), StoreError> {
    let Plan {
        steps,
        tell,
        tenants,
        replies,
    } = std::mem::take(&mut state.plan);
    let (pods, transactions): (Vec<_>, Vec<_>) = steps
        .into_iter()
        .map(|step| (step.pod, state.transaction(step)))
        .unzip();
    let written = write(store, transactions).await;
    let versions = match written {
        Ok(versions) => versions,
        Err(error) => {
            let failure = Failure::unavailable(format!("not written: {error}"));
            for reply in replies {
                reply(Err(failure.clone()));
            }
            return Err(error);
        }
    };
    for (pod, version) in pods.into_iter().zip(&versions) {
        if let (Some(id), Some(version)) = (pod, version) {
            state.pods.set_version(id, *version);
            if let Some((ticket, _, false)) = state.fleet.placement(PodId(id.as_u128())) {
                // It is reserved: that was looked up just now.
                let _ = state.fleet.commit(ticket);
            }
        }
    }
    state.tenants_written(tenants, &versions);
    for tell in tell {
        state.tell(tell);
    }
    let written = Written {
        pods: &state.pods,
        versions: &versions,
    };
    for reply in replies {
        reply(Ok(&written));
    }
    Ok(())
}

/// Commits those transactions that write something. Their versions, and `None` for
/// those that do not.
async fn write(
    store: &dyn Store,
    transactions: Vec<Transaction>,
) -> Result<Vec<Option<u64>>, StoreError> {
    let mut versions = vec![None; transactions.len()];
    let (places, transactions): (Vec<usize>, Vec<Transaction>) = transactions
        .into_iter()
        .enumerate()
        .filter(|(_, transaction)| !transaction.ops.is_empty())
        .unzip();
    if transactions.is_empty() {
        return Ok(versions);
    }
    let results = store.commit_all(transactions).await;
    for (place, result) in places.into_iter().zip(results) {
        if let Some(version) = versions.get_mut(place) {
            *version = Some(result?);
        }
    }
    Ok(versions)
}

impl State {
    /// What a step writes: what it says, and its pod as it is now.
    fn transaction(&mut self, step: Step) -> Transaction {
        let mut transaction = step.transaction;
        let unwritten = step.pod.and_then(|id| self.pods.take_changed(id));
        let Some(unwritten) = unwritten else {
            return transaction;
        };
        let record = unwritten.record;
        let key = record.key();
        let mut bytes = record.to_bytes();
        if let Some(labels) = unwritten.former {
            bytes.extend(FormerLabels::of(labels).encode_to_vec());
        }
        transaction = transaction.put(records::POD, &key, bytes, Expect::Any);
        if record.notes != Notes::default() {
            let bytes = record.notes.encode_to_vec();
            transaction = transaction.put(records::NOTES, &key, bytes, Expect::Any);
        } else if unwritten.noted {
            transaction = transaction.delete(records::NOTES, &key, Expect::Any);
        }
        transaction
    }

    /// Tells a card what has been written.
    fn tell(&self, tell: Tell) {
        match tell {
            Tell::Everything { host, held } => {
                let Some(outbox) = self.inventory.outbox(&host) else {
                    return;
                };
                let all = self.all_for(&host);
                let known: HashSet<&str> =
                    all.iter().map(|(pod, _)| pod.meta.uid.as_str()).collect();
                for uid in held.iter().filter(|uid| !known.contains(uid.as_str())) {
                    outbox.release(uid.clone());
                }
                let lease = self.leases.duration().as_millis();
                let registered = Registered {
                    lease_ms: u32::try_from(lease).unwrap_or(u32::MAX),
                    token_key: token::host_key(&self.token_key, &host),
                };
                outbox.begin(registered, all);
                outbox.keep_images(self.images_for(&host));
            }
            Tell::Images { host } => {
                if let Some(outbox) = self.inventory.outbox(&host) {
                    outbox.keep_images(self.images_for(&host));
                }
            }
            Tell::Assign { host, id } => {
                let told = self.pods.get(id).filter(|pod| pod.status.host == host);
                if let Some(record) = told
                    && let Some(outbox) = self.inventory.outbox(&host)
                    && !self.is_held_back(id)
                {
                    outbox.assign(Arc::clone(record), self.pods.version(id));
                }
            }
            Tell::Release { host, uid } => {
                if let Some(outbox) = self.inventory.outbox(&host) {
                    outbox.release(uid);
                }
            }
        }
    }

    /// All that a host should run, the oldest first.
    fn all_for(&self, host: &str) -> VecDeque<(Arc<PodRecord>, u64)> {
        let pods = self.pods.on_host(host);
        let mut pods: Vec<(i64, Uuid)> = pods
            .filter(|pod| !self.is_held_back(pod.id))
            .map(|pod| (pod.meta.created_us, pod.id))
            .collect();
        pods.sort_unstable();
        let all = pods.into_iter().filter_map(|(_, id)| {
            let record = self.pods.get(id)?;
            Some((Arc::clone(record), self.pods.version(id)))
        });
        all.collect()
    }
}
