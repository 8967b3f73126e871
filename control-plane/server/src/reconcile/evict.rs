//! Pods that have to leave their host though nobody has deleted them.
//!
//! A pod that is evicted ends on its card as a deleted one does, with its grace. What
//! comes then is its restart policy's to say: it waits for another place, with a higher
//! generation, or it has failed.

use longship_proto::control::v1::{Phase, RestartPolicy};
use uuid::Uuid;

use super::placement::{unplace, waiting_since};
use super::state::{Now, State};
use crate::records::{Eviction, Notes};

/// Why a pod has to leave its host.
#[derive(Debug, Clone, Copy)]
pub(super) enum Why {
    /// Another pod gets its place.
    Preempted { winner: Uuid },
    /// An operator empties the host.
    Drained,
}

impl Why {
    fn reason(self) -> &'static str {
        match self {
            Self::Preempted { .. } => "Preempted",
            Self::Drained => "HostDrained",
        }
    }

    fn message(self, host: &str) -> String {
        match self {
            Self::Preempted { .. } => {
                format!("a more important pod gets its place on host `{host}`")
            }
            Self::Drained => format!("host `{host}` is being drained"),
        }
    }
}

impl State {
    /// Has a pod leave its host. One that leaves already, leaves.
    pub(super) fn evict(&mut self, now: Now, id: Uuid, why: Why, grace_seconds: Option<u32>) {
        let Some(record) = self.record(id) else {
            return;
        };
        let host = &record.status.host;
        if host.is_empty() || record.is_over() {
            return;
        }
        let winner = match why {
            Why::Preempted { winner } => winner.to_string(),
            Why::Drained => String::new(),
        };
        if let Some(leaving) = &record.notes.eviction {
            let sooner = grace_seconds.is_some() && leaving.grace_seconds != grace_seconds;
            if winner.is_empty() && !sooner {
                return;
            }
        }
        if self.is_held_back(id) {
            // Its card has not heard of it.
            return self.begin_again(now, id, why.reason(), why.message(host));
        }
        let message = why.message(host);
        self.change(id, |record| {
            let before = record.notes.eviction.take();
            let before = before.unwrap_or_else(|| Eviction {
                reason: why.reason().to_owned(),
                message,
                since_us: now.us,
                ..Eviction::default()
            });
            if !record.is_deleted() {
                before.reason.clone_into(&mut record.status.reason);
                before.message.clone_into(&mut record.status.message);
            }
            record.notes.eviction = Some(Eviction {
                grace_seconds: grace_seconds.or(before.grace_seconds),
                winner: match winner.is_empty() {
                    true => before.winner.clone(),
                    false => winner,
                },
                ..before
            });
        });
        self.tell_card(id);
    }

    /// An evicted pod has left its host.
    pub(super) fn has_left(&mut self, now: Now, id: Uuid) {
        let Some(record) = self.record(id) else {
            return;
        };
        let Some(eviction) = &record.notes.eviction else {
            return;
        };
        if record.is_over() {
            // It had ended by itself before.
            self.leave_host(id);
            self.leave_network(&record);
            return self.change(id, |record| {
                unplace(&mut record.status);
                record.notes = Notes::default();
            });
        }
        let (reason, message) = (eviction.reason.clone(), eviction.message.clone());
        self.begin_again(now, id, &reason, message);
    }

    /// A pod has nothing on its host any more, or has been given up there. It waits for
    /// another place, or has failed, as its restart policy says.
    pub(super) fn begin_again(&mut self, now: Now, id: Uuid, reason: &str, message: String) {
        let Some(record) = self.record(id) else {
            return;
        };
        self.leave_host(id);
        self.leave_network(&record);
        let moves = record.spec.restart_policy() != RestartPolicy::Never;
        self.change(id, |record| {
            unplace(&mut record.status);
            record.notes = Notes::default();
            let status = &mut record.status;
            reason.clone_into(&mut status.reason);
            status.message = message;
            if moves {
                record.meta.generation += 1;
                status.moves = status.moves.saturating_add(1);
                status.set_phase(Phase::Pending);
                status.containers.clear();
                status.timeline = waiting_since(now.us);
            } else {
                status.set_phase(Phase::Failed);
            }
        });
        if moves {
            self.wait(id);
        }
    }
}
