//! What operators see of hosts, and do with them.

use longship_proto::Failure;
use longship_proto::control::v1::{Host, HostCapacity, HostState, Zone};
use longship_scheduler::Amount;
use longship_store::{Expect, Transaction};

use super::command::{Answer, HostPage};
use super::evict::Why;
use super::placement::unplace;
use super::plan::refuse;
use super::state::{Now, State};
use crate::records::{self, HostRecord};

impl State {
    /// Some hosts after a name, in the order of their names.
    pub(super) fn list_hosts(
        &mut self,
        zone: Option<&str>,
        after: &str,
        limit: usize,
        answer: Answer<HostPage>,
    ) {
        let in_zone = |record: &HostRecord| zone.is_none_or(|zone| zone == record.zone);
        let hosts = self.inventory.after(after);
        let mut found = hosts.filter(|(_, record)| in_zone(record));
        let hosts = found.by_ref().take(limit);
        let hosts: Vec<Host> = hosts
            .map(|(name, record)| self.view(name, record))
            .collect();
        let more = found.next().is_some();
        self.plan
            .reply(false, answer, move |_| HostPage { hosts, more });
    }

    /// All zones that have a host.
    pub(super) fn list_zones(&mut self, answer: Answer<Vec<Zone>>) {
        let zones = self.fleet.zones_open().map(|(name, available)| Zone {
            name: name.to_owned(),
            available,
        });
        let zones: Vec<Zone> = zones.collect();
        self.plan.reply(false, answer, move |_| zones);
    }

    /// Keeps new pods off a host, or lets them come again.
    pub(super) fn cordon(&mut self, host: &str, cordoned: bool, answer: Answer<Host>) {
        let changed = self.set_cordoned(host, cordoned, false);
        self.answer_host(host, changed, answer);
    }

    /// Cordons a host, and has its pods leave it.
    pub(super) fn drain(
        &mut self,
        now: Now,
        host: &str,
        grace_seconds: Option<u32>,
        answer: Answer<Host>,
    ) {
        let changed = self.set_cordoned(host, true, true);
        if changed.is_ok() {
            for id in self.ids_on(host) {
                self.evict(now, id, Why::Drained, grace_seconds);
            }
        }
        self.answer_host(host, changed, answer);
    }

    /// Forgets a host that is gone for good.
    pub(super) fn remove_host(&mut self, now: Now, host: &str, answer: Answer<()>) {
        let Some(record) = self.inventory.record(host) else {
            return refuse(answer, no_host(host));
        };
        if self.leases.holds(host) {
            let there = format!("host `{host}` is there: only one that is gone can be removed");
            return refuse(answer, Failure::conflict(there));
        }
        if !record.fenced {
            self.fence(now, host);
        }
        // Those that are over had nothing left there but their logs.
        for id in self.ids_on(host) {
            if let Some(record) = self.record(id) {
                self.leave_network(&record);
                self.change(id, |record| unplace(&mut record.status));
            }
        }
        let _ = self.fleet.remove_host(host);
        self.leases.forget(host);
        self.inventory.remove(host);
        self.forget_images_of(host);
        self.hosts_changed = true;
        let transaction = Transaction::new();
        self.plan
            .write(transaction.delete(records::HOST, host, Expect::Any));
        self.plan.reply(true, answer, |_| ());
    }

    fn set_cordoned(&mut self, host: &str, cordoned: bool, draining: bool) -> Result<(), Failure> {
        let before = self.inventory.record(host).cloned();
        let before = before.ok_or_else(|| no_host(host))?;
        let set = match cordoned {
            true => self.fleet.cordon(host),
            false => self.fleet.uncordon(host),
        };
        set.map_err(|error| Failure::not_found(error.to_string()))?;
        let record = HostRecord {
            cordoned,
            draining: cordoned && (draining || before.draining),
            ..before.clone()
        };
        if record != before {
            self.save_host(host, record);
        }
        Ok(())
    }

    fn answer_host(&mut self, host: &str, done: Result<(), Failure>, answer: Answer<Host>) {
        let found = done.and_then(|()| {
            let record = self.inventory.record(host);
            let record = record.ok_or_else(|| no_host(host))?;
            Ok(self.view(host, record))
        });
        match found {
            Ok(host) => self.plan.reply(true, answer, move |_| host),
            Err(failure) => refuse(answer, failure),
        }
    }

    fn view(&self, name: &str, record: &HostRecord) -> Host {
        let status = self.fleet.host(name);
        let (free, used, ready) = status.map_or_else(Default::default, |status| {
            (status.free, status.used, status.ready)
        });
        let state = match (record.fenced, ready) {
            (true, _) => HostState::Fenced,
            (false, true) => HostState::Ready,
            (false, false) => HostState::Unknown,
        };
        let no_limit = |limit: u32, free: u32| if limit == 0 { 0 } else { free };
        Host {
            name: name.to_owned(),
            zone: record.zone.clone(),
            capacity: Some(HostCapacity {
                cpu_millis: record.cpu_millis,
                memory_bytes: record.memory_bytes,
                pods: record.pods,
                enis: record.enis,
                disks: record.disks,
                gpus: record.gpus,
            }),
            free: Some(HostCapacity {
                enis: no_limit(record.enis, free.enis),
                disks: no_limit(record.disks, free.disks),
                ..capacity(free)
            }),
            pods: used.pods,
            card_endpoint: record.endpoint.clone(),
            state: state.into(),
            cordoned: record.cordoned,
            draining: record.draining,
            family: record.family.clone(),
        }
    }
}

fn capacity(amount: Amount) -> HostCapacity {
    HostCapacity {
        cpu_millis: amount.cpu_millis,
        memory_bytes: amount.memory_bytes,
        pods: amount.pods,
        enis: amount.enis,
        disks: amount.disks,
        gpus: amount.gpus,
    }
}

fn no_host(host: &str) -> Failure {
    Failure::not_found(format!("no host `{host}`"))
}
