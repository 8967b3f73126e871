//! Hosts whose cards are not heard of: first their pods are unknown, then they are
//! given up.

use longship_proto::control::v1::Phase;
use longship_proto::{Failure, FailureExt};
use uuid::Uuid;

use super::delete::UNREACHABLE;
use super::state::{Now, State};
use crate::pods::PodRecord;

/// Reason of a pod whose host was given up.
const LOST: &str = "HostLost";

impl State {
    /// Ends the streams of cards that have been silent for too long, and says so at
    /// their pods; gives up the hosts that have been silent for longer yet.
    pub(super) fn expire_leases(&mut self, now: Now) {
        for host in self.leases.expire(now.at) {
            self.lose_sight(&host);
        }
        for host in self.leases.fence(now.at) {
            tracing::warn!(host, "the card stays silent: its pods are given up");
            self.fence(now, &host);
        }
    }

    fn lose_sight(&mut self, host: &str) {
        tracing::warn!(host, "the card has lost its lease");
        let silent = self.leases.duration().as_secs_f32();
        let message = format!("host `{host}` lost its lease: silent for over {silent} s");
        self.inventory
            .close(host, Some(Failure::unavailable(message).into_status()));
        let _ = self.fleet.set_ready(host, false);
        for id in self.ids_on(host) {
            let Some(record) = self.record(id) else {
                continue;
            };
            // What is over has its own reason, and keeps it.
            if record.is_over() && !record.is_deleted() {
                continue;
            }
            let mut changed = PodRecord::clone(&record);
            self.say_unreachable(&mut changed);
            if !record.is_over() && record.status.phase() != Phase::Unknown {
                changed.notes.phase_before = record.status.phase;
                changed.status.set_phase(Phase::Unknown);
            }
            if changed != *record {
                self.save(changed);
            }
        }
    }

    /// The host's card is heard of again: its pods are what they were.
    pub(super) fn regain_sight(&mut self, host: &str) {
        for id in self.ids_on(host) {
            let Some(record) = self.pods.get(id) else {
                continue;
            };
            if record.status.reason != UNREACHABLE && record.status.phase() != Phase::Unknown {
                continue;
            }
            self.change(id, |record| {
                let status = &mut record.status;
                if status.phase() == Phase::Unknown {
                    status.phase = std::mem::take(&mut record.notes.phase_before);
                }
                status.reason.clear();
                status.message.clear();
                if let Some(eviction) = &record.notes.eviction {
                    eviction.reason.clone_into(&mut status.reason);
                    eviction.message.clone_into(&mut status.message);
                }
            });
        }
    }

    /// Gives up what is on a host. Those of its pods that may begin again elsewhere do,
    /// the others have failed; should its card come back, it is not told of them.
    pub(super) fn fence(&mut self, now: Now, host: &str) {
        // Nobody is placed there, and nobody waits there for others to leave.
        if let Err(error) = self.fleet.lose_host(host) {
            tracing::error!(host, %error, "a host that is not in the fleet");
        }
        if let Some(record) = self.inventory.record(host).cloned() {
            let fenced = crate::records::HostRecord {
                fenced: true,
                ..record
            };
            self.save_host(host, fenced);
        }
        let message = format!("host `{host}` was given up: its card was silent for too long");
        for id in self.ids_on(host) {
            let Some(record) = self.record(id) else {
                continue;
            };
            if record.is_deleted() {
                self.forget(PodRecord::clone(&record));
            } else if !record.is_over() {
                self.begin_again(now, id, LOST, message.clone());
            }
        }
        self.hosts_changed = true;
    }

    /// The pods of a host, the oldest first.
    pub(super) fn ids_on(&self, host: &str) -> Vec<Uuid> {
        let pods = self.pods.on_host(host);
        let mut ids: Vec<(i64, Uuid)> = pods.map(|pod| (pod.meta.created_us, pod.id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }
}
