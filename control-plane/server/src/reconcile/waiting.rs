//! Pods that wait for a place: whose turn it is, and what they are told meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use longship_proto::control::v1::PodStatus;
use longship_scheduler::{Decision, Declined, PodId, PodTemplate};
use tokio::time::Instant;
use uuid::Uuid;

use super::state::{Now, State};
use crate::pods::PodRecord;
use crate::template::template;

/// Places that are looked for in one batch, at most: others are heard in between.
const ATTEMPTS: usize = 2048;
/// Hosts that are looked at in one batch to find out why pods wait, at most (but for
/// one pod, which is always looked at).
const LOOKED_AT: usize = 50_000;
/// Pods whose reason is looked at again each time.
const LOOKS: usize = 64;
/// How often that is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon those are tried again for whom there was no time.
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// Reasons of pods that wait.
pub(super) const UNSCHEDULABLE: &str = "Unschedulable";
const REFUSED: &str = "Refused";

/// What is in the way of a line of pods, found once a batch.
type Found = HashMap<u32, String>;

impl State {
    /// What a pod asks of the scheduler.
    pub(super) fn template_of(&self, record: &PodRecord) -> Result<PodTemplate, String> {
        let template = template(&record.meta.tenant, &record.meta, &record.spec);
        template.map_err(|failure| failure.to_string())
    }

    /// A pod begins to wait for a place.
    pub(super) fn wait(&mut self, id: Uuid) {
        let Some(record) = self.record(id) else {
            return;
        };
        let pushed = self.template_of(&record).and_then(|template| {
            let least = self.fleet.least(&template).unwrap_or_default();
            self.quotas.wait(&record.meta.tenant, id, least);
            let pushed = self
                .backlog
                .push(&mut self.fleet, record.pod_id(), &template);
            pushed.map_err(|refusal| refusal.to_string())
        });
        match pushed {
            Ok(()) => self.puzzled.push_back(id),
            Err(why) => self.set_unsuited(id, why),
        }
    }

    /// A pod waits no more, whatever for; with it its gang, whose other pods wait for
    /// themselves then.
    pub(super) fn wait_no_more(&mut self, id: Uuid) {
        self.quotas.wait_no_more(id);
        let others = self.end_gang(id);
        self.backlog.cancel(&mut self.fleet, PodId(id.as_u128()));
        self.unsuited.remove(&id);
        self.unaddressed.retain(|_, pods| {
            pods.remove(&id);
            !pods.is_empty()
        });
        if let Some((others, one_zone)) = others {
            self.wait_together(&others, one_zone);
        }
    }

    /// What the pod asks for is not there: it waits for other hosts.
    pub(super) fn set_unsuited(&mut self, id: Uuid, why: String) {
        self.unsuited.insert(id);
        self.say_waiting(id, REFUSED, why);
    }

    /// Gives places to those whose turn it is, and says to others why they wait.
    pub(super) fn place_waiting(&mut self, now: Now) {
        if std::mem::take(&mut self.hosts_changed) {
            for id in std::mem::take(&mut self.unsuited) {
                self.wait_again(id);
            }
        }
        for decision in self.backlog.pump(&mut self.fleet, ATTEMPTS) {
            match decision {
                Decision::Placed(placed) => self.take_places(now, vec![placed]),
                Decision::Gang(places) => self.take_places(now, places),
                Decision::Dropped(pods, declined) => self.drop_waiting(&pods, &declined),
            }
        }
        let mut found = Found::new();
        self.tell_puzzled(&mut found);
        if now.at >= self.next_look {
            self.next_look = now.at + LOOK_EVERY;
            self.look_again(&mut found);
        }
    }

    /// A pod that something stood in the way of that room would not help with is tried
    /// again, with its gang.
    pub(super) fn wait_again(&mut self, id: Uuid) {
        match self.gang_of.get(&id).copied() {
            Some(gang) => self.gang_waits(gang),
            None => self.wait(id),
        }
    }

    fn drop_waiting(&mut self, pods: &[PodId], declined: &Declined) {
        for pod in pods {
            self.set_unsuited(Uuid::from_u128(pod.0), declined.to_string());
        }
    }

    /// When somebody who waits wants something done though nothing happens.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        if self.backlog.is_restless(&self.fleet) || self.hosts_changed {
            return Some(now + AGAIN_AFTER);
        }
        (!self.pods.nobody_waits()).then_some(self.next_look)
    }

    /// Says why they wait to those who have not been told.
    fn tell_puzzled(&mut self, found: &mut Found) {
        let mut later = Vec::new();
        while let Some(id) = self.puzzled.pop_front() {
            match self.why(id, found) {
                Why::Found(message) => self.say_waiting(id, UNSCHEDULABLE, message),
                Why::NotNow => {
                    let waits = self.pods.get(id);
                    if waits.is_some_and(|pod| pod.status.reason.is_empty()) {
                        let message = "it waits for a place".to_owned();
                        self.say_waiting(id, UNSCHEDULABLE, message);
                    }
                    later.push(id);
                }
                Why::Elsewhere => {}
            }
            if later.len() >= LOOKS {
                break;
            }
        }
        // Whoever is left is told within the next batches.
        let rest = std::mem::take(&mut self.puzzled);
        self.puzzled = later.into_iter().chain(rest).collect();
    }

    /// Looks at some reasons again.
    fn look_again(&mut self, found: &mut Found) {
        let pods = self.pods.waiting_after(self.looked_at);
        let pods: Vec<(i64, Uuid)> = pods
            .take(LOOKS)
            .map(|pod| (pod.meta.created_us, pod.id))
            .collect();
        self.looked_at = pods.last().copied().filter(|_| pods.len() == LOOKS);
        for (_, id) in pods {
            if let Why::Found(message) = self.why(id, found) {
                self.say_waiting(id, UNSCHEDULABLE, message);
            }
        }
    }

    /// What is in the way of a pod. One look at the hosts serves all pods of a line.
    fn why(&mut self, id: Uuid, found: &mut Found) -> Why {
        let pod = PodId(id.as_u128());
        let Some(line) = self.backlog.line(pod) else {
            return Why::Elsewhere;
        };
        if let Some(message) = found.get(&line) {
            return Why::Found(message.clone());
        }
        let looks = LOOKED_AT / self.inventory.count().max(1);
        if found.len() >= looks.clamp(1, LOOKS) {
            return Why::NotNow;
        }
        let waiting = self.backlog.why_line(&mut self.fleet, pod);
        let message = waiting
            .map(|waiting| waiting.to_string())
            .unwrap_or_default();
        found.insert(line, message.clone());
        Why::Found(message)
    }

    /// Says in a pod's status why it waits. Amounts change all the time, and are not
    /// worth a write each.
    pub(super) fn say_waiting(&mut self, id: Uuid, reason: &str, message: String) {
        let Some(record) = self.pods.get(id).filter(|record| record.waits()) else {
            return;
        };
        if cause(&record.status) != (reason, cause_of(&message)) {
            self.change(id, |record| {
                reason.clone_into(&mut record.status.reason);
                record.status.message = message;
            });
        }
    }
}

enum Why {
    Found(String),
    /// Enough has been looked at for now.
    NotNow,
    /// It does not wait for room.
    Elsewhere,
}

/// Why a pod waits, without the amounts.
fn cause(status: &PodStatus) -> (&str, &str) {
    (&status.reason, cause_of(&status.message))
}

fn cause_of(message: &str) -> &str {
    message.split(':').next().unwrap_or_default()
}
