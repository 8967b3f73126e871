//! Cards that come, are lost, and come again.

use longship_proto::Failure;
use longship_proto::FailureExt;
use longship_proto::control::v1::{Assignments, Changes, Registered, ToCard, to_card};
use tonic::Status;

use super::command::Answer;
use super::delete::UNREACHABLE;
use super::plan::{Tell, refuse};
use super::state::{Now, State};
use crate::inventory::Session;
use crate::phase::is_over;
use crate::pods::PodRecord;
use crate::records::HostRecord;
use crate::validate::ValidRegister;

impl State {
    /// Registers a card: its host is ready, and the card gets all that it should run.
    /// A former stream of that host ends: only one may speak for it.
    pub(super) fn attach(
        &mut self,
        now: Now,
        register: ValidRegister,
        session: Session,
        answer: Answer<Vec<ToCard>>,
    ) {
        let host = register.spec.name.clone();
        let record = HostRecord::new(&register.spec, &register.endpoint);
        let before = self.scheduler.host(&host).map(|view| {
            let endpoint = self.inventory.endpoint(&host).unwrap_or_default();
            HostRecord::new(&view.spec, endpoint)
        });
        if let Err(error) = self.scheduler.set_host(register.spec) {
            let failure = Failure {
                field: "register.zone".into(),
                ..Failure::conflict(error.to_string())
            };
            return refuse(answer, failure);
        }
        if before.as_ref() != Some(&record) {
            self.save_host(&host, &record);
        }
        self.inventory.set(&host, &register.endpoint);
        if let Some(former) = self.inventory.open(&host, session) {
            let message = format!("a newer stream of host `{host}` has taken over");
            tracing::warn!(host, "a newer stream takes over");
            let _ = former.end.send(Failure::conflict(message).into_status());
        }
        self.leases.renew(&host, now.at);
        let _ = self.scheduler.set_ready(&host, true);
        self.room = true;
        tracing::info!(host, zone = record.zone, "card attached");

        let silenced = self.pods.on_host(&host);
        let silenced = silenced.filter(|record| record.status.reason == UNREACHABLE);
        for mut record in silenced.cloned().collect::<Vec<PodRecord>>() {
            record.status.reason.clear();
            record.status.message.clear();
            self.save(record);
        }
        let first = self.first_messages(&host, &register.held);
        self.plan.reply(true, answer, move |_| first);
    }

    fn first_messages(&self, host: &str, held: &std::collections::BTreeSet<String>) -> Vec<ToCard> {
        let mut pods: Vec<&PodRecord> = self.pods.on_host(host).collect();
        pods.sort_by_key(|record| (record.meta.created_us, record.id));
        let strangers = held
            .iter()
            .filter(|uid| !pods.iter().any(|record| record.meta.uid == **uid));
        let strangers = Changes {
            release_uids: strangers.cloned().collect(),
            ..Changes::default()
        };
        let lease = self.leases.duration().as_millis();
        let registered = Registered {
            lease_ms: u32::try_from(lease).unwrap_or(u32::MAX),
            token_key: self.token_key.clone(),
        };
        let assignments = pods.iter().map(|record| {
            let version = self.pods.version(record.id);
            record.to_pod(version)
        });
        let assignments = Assignments {
            pods: assignments.collect(),
            more: false,
        };
        [
            to_card::Message::Registered(registered),
            to_card::Message::Assignments(assignments),
        ]
        .into_iter()
        .chain((!strangers.release_uids.is_empty()).then_some(to_card::Message::Changes(strangers)))
        .map(|message| ToCard {
            message: Some(message),
        })
        .collect()
    }

    /// The host's stream has ended. It takes no more pods; its lease runs on.
    pub(super) fn detach(&mut self, host: &str) {
        tracing::warn!(host, "the card's stream has ended");
        self.inventory.close(host);
        let _ = self.scheduler.set_ready(host, false);
    }

    /// Ends the streams of cards that have been silent for too long, and says so at
    /// their pods.
    pub(super) fn expire_leases(&mut self, now: Now) {
        for host in self.leases.expire(now.at) {
            tracing::warn!(host, "the card has lost its lease");
            if let Some(session) = self.inventory.close(&host) {
                let silent = self.leases.duration().as_secs_f32();
                let message = format!("host `{host}` lost its lease: silent for over {silent} s");
                let _ = session
                    .end
                    .send(Failure::unavailable(message).into_status());
            }
            let _ = self.scheduler.set_ready(&host, false);
            let pods: Vec<PodRecord> = self.pods.on_host(&host).cloned().collect();
            for mut record in pods {
                // What is over has its own reason, and keeps it.
                if record.is_deleted() || !is_over(record.status.phase()) {
                    self.say_unreachable(&mut record);
                    self.save(record);
                }
            }
        }
    }

    /// Tells a card what has been written. One that does not keep up is cut off, and
    /// begins again with everything.
    pub(super) fn tell(&mut self, tell: Tell) {
        let mut changes = Changes::default();
        let host = match tell {
            Tell::Assign { host, id } => {
                let Some(record) = self.pods.get(id) else {
                    return;
                };
                changes.assign.push(record.to_pod(self.pods.version(id)));
                host
            }
            Tell::Release { host, uid } => {
                changes.release_uids.push(uid);
                host
            }
        };
        if !self
            .inventory
            .send(&host, to_card::Message::Changes(changes))
        {
            tracing::warn!(host, "the card does not keep up; its stream ends");
            if let Some(session) = self.inventory.close(&host) {
                let status = Status::unavailable("the card does not keep up: attach again");
                let _ = session.end.send(status);
            }
            let _ = self.scheduler.set_ready(&host, false);
        }
    }
}
