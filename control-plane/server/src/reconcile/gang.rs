//! Gangs: pods that get their places together or not at all.

use longship_scheduler::{Gang, PodTemplate};
use longship_store::{Expect, Transaction};
use prost::Message;
use uuid::Uuid;

use super::state::State;
use crate::records::{self, GangRecord};

/// A gang that waits. It lasts until its pods have their places; each is for itself
/// from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WaitingGang {
    pub(super) pods: Vec<Uuid>,
    pub(super) one_zone: bool,
}

impl State {
    /// Remembers that pods belong together, before any of them is remembered: a gang of
    /// which some are missing was never created.
    pub(super) fn bind_gang(&mut self, pods: &[Uuid], one_zone: bool) {
        let Some(name) = pods.first() else {
            return;
        };
        let record = GangRecord {
            uids: pods.iter().map(Uuid::to_string).collect(),
            one_zone,
        };
        let bytes = record.encode_to_vec();
        let key = name.to_string();
        self.plan
            .write(Transaction::new().put(records::GANG, &key, bytes, Expect::Any));
        self.adopt_gang(pods.to_vec(), one_zone);
    }

    /// As [`State::bind_gang`], for one that is remembered already.
    pub(super) fn adopt_gang(&mut self, pods: Vec<Uuid>, one_zone: bool) {
        let Some(name) = pods.first().copied() else {
            return;
        };
        self.gang_of.extend(pods.iter().map(|pod| (*pod, name)));
        self.gangs.insert(name, WaitingGang { pods, one_zone });
    }

    /// Pods that wait and belong together from now on.
    pub(super) fn wait_together(&mut self, pods: &[Uuid], one_zone: bool) {
        match pods {
            [] => {}
            [one] => self.wait(*one),
            [first, ..] => {
                self.bind_gang(pods, one_zone);
                self.gang_waits(*first);
            }
        }
    }

    /// A gang begins to wait.
    pub(super) fn gang_waits(&mut self, name: Uuid) {
        let Some(gang) = self.gangs.get(&name).cloned() else {
            return;
        };
        let mut pods = Vec::with_capacity(gang.pods.len());
        let mut wrong = None;
        for id in &gang.pods {
            let Some(record) = self.record(*id) else {
                continue;
            };
            let template = self.template_of(&record);
            let least = template.as_ref().ok();
            let least = least.and_then(|template| self.fleet.least(template).ok());
            let least = least.unwrap_or_default();
            self.quotas.wait(&record.meta.tenant, *id, least);
            match template {
                Ok(template) => pods.push((record.pod_id(), template)),
                Err(why) => wrong = Some(why),
            }
        }
        let pushed = match wrong {
            Some(why) => Err(why),
            None => self.push_gang(pods, gang.one_zone),
        };
        for id in gang.pods {
            match &pushed {
                Ok(()) => self.puzzled.push_back(id),
                Err(why) => self.set_unsuited(id, why.clone()),
            }
        }
    }

    fn push_gang(
        &mut self,
        pods: Vec<(longship_scheduler::PodId, PodTemplate)>,
        one_zone: bool,
    ) -> Result<(), String> {
        let gang = Gang { pods, one_zone };
        let pushed = self.backlog.push_gang(&mut self.fleet, gang);
        pushed.map_err(|refusal| refusal.to_string())
    }

    /// The gang of a pod, if it waits in one, is no more. Answers its other pods.
    pub(super) fn end_gang(&mut self, id: Uuid) -> Option<(Vec<Uuid>, bool)> {
        let name = self.gang_of.get(&id).copied()?;
        let mut gang = self.gangs.remove(&name)?;
        for pod in &gang.pods {
            self.gang_of.remove(pod);
            self.unsuited.remove(pod);
        }
        let transaction = Transaction::new();
        let key = name.to_string();
        self.plan
            .write(transaction.delete(records::GANG, &key, Expect::Any));
        gang.pods.retain(|pod| *pod != id);
        Some((gang.pods, gang.one_zone))
    }
}
