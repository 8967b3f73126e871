//! Cards that come and go.

use longship_proto::{Failure, FailureExt};

use super::command::Answer;
use super::plan::{Tell, refuse};
use super::state::{Now, State};
use crate::inventory::Session;
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
        answer: Answer<()>,
    ) {
        let host = register.host;
        let before = self.inventory.record(&host).cloned();
        let (cordoned, draining) = before
            .as_ref()
            .map_or((false, false), |before| (before.cordoned, before.draining));
        let record = HostRecord {
            cordoned,
            draining,
            fenced: false,
            ..register.record
        };
        if let Err(error) = self.fleet.set_host(record.facts(&host)) {
            let failure = Failure {
                field: "register.zone".into(),
                ..Failure::conflict(error.to_string())
            };
            return refuse(answer, failure);
        }
        tracing::info!(host, zone = record.zone, "card attached");
        if before.as_ref() != Some(&record) {
            self.hosts_changed = true;
            self.save_host(&host, record);
        }
        if let Some(former) = self.inventory.open(&host, session) {
            let message = format!("a newer stream of host `{host}` has taken over");
            tracing::warn!(host, "a newer stream takes over");
            former.outbox.end(Failure::conflict(message).into_status());
        }
        self.leases.renew(&host, now.at);
        let _ = self.fleet.set_ready(&host, true);
        // What is reserved comes before those that wait.
        self.keep_reserved(now);
        self.regain_sight(&host);
        let held = register.held;
        self.plan.tell.push(Tell::Everything { host, held });
        self.plan.reply(false, answer, |_| ());
    }

    /// The host's stream has ended. It takes no more pods; its lease runs on.
    pub(super) fn detach(&mut self, host: &str) {
        tracing::warn!(host, "the card's stream has ended");
        self.inventory.close(host, None);
        let _ = self.fleet.set_ready(host, false);
    }
}
