//! The one task that changes anything.
//!
//! Commands queue up (and their senders wait where too many do). The task takes what
//! is there, decides on all of it in memory, writes it in one go, and only then tells
//! cards and answers callers: nobody hears of what is not durable. Where a write
//! fails, memory is ahead of the store, so the task ends and the process with it;
//! whoever starts it again reads everything back.

mod attach;
mod command;
mod create;
mod delete;
#[cfg(test)]
mod histories;
mod networks;
mod placement;
mod plan;
mod report;
mod state;
mod tenants;
mod tokens;

use std::sync::Arc;

use longship_proto::Failure;
use longship_store::{Store, StoreError, Transaction};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub(crate) use command::{Answer, CardNews, Command, GangOrder};
pub(crate) use networks::NetworkCommand;
pub(crate) use placement::flavor;
use state::Now;
pub(crate) use state::State;
pub(crate) use tenants::{TenantCommand, tenant_of_pod};
pub(crate) use tokens::TokenCommand;

/// Commands that may wait.
pub(crate) const QUEUE: usize = 1024;
/// Commands that are decided and written in one go, at most.
const BATCH: usize = 256;

/// Works until the last sender of commands is gone.
///
/// # Errors
/// The store's, where a write failed.
pub(crate) async fn run(
    mut state: State,
    store: Arc<dyn Store>,
    mut commands: mpsc::Receiver<Command>,
) -> Result<(), StoreError> {
    let mut batch = Vec::with_capacity(BATCH);
    // What was waiting when the server stopped may have room now.
    state.place_waiting(Now::get());
    flush(&mut state, &*store).await?;
    loop {
        let next_end = state.leases.next_end();
        tokio::select! {
            taken = commands.recv_many(&mut batch, BATCH) => if taken == 0 {
                return Ok(());
            },
            () = at(next_end) => {}
        }
        let now = Now::get();
        for command in batch.drain(..) {
            state.decide(now, command);
        }
        state.expire_leases(now);
        state.place_waiting(now);
        flush(&mut state, &*store).await?;
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl State {
    fn decide(&mut self, now: Now, command: Command) {
        match command {
            Command::Create { pod, uid, answer } => self.create(now, *pod, uid, answer),
            Command::Delete {
                namespace,
                name,
                grace_seconds,
                answer,
            } => self.delete(now, (&namespace, &name), grace_seconds, answer),
            Command::Access {
                namespace,
                name,
                answer,
            } => self.access(&namespace, &name, answer),
            Command::Networks(command) => self.decide_networks(command),
            Command::Tenants(command) => self.decide_tenants(command),
            Command::Tokens(command) => self.decide_tokens(now, command),
            Command::ListHosts {
                zone,
                after,
                limit,
                answer,
            } => {
                let mut hosts = self.inventory.list(&self.scheduler);
                hosts.retain(|host| {
                    host.name > after && zone.as_ref().is_none_or(|zone| *zone == host.zone)
                });
                let more = hosts.len() > limit;
                hosts.truncate(limit);
                self.plan
                    .reply(false, answer, move |_| command::HostPage { hosts, more });
            }
            Command::CreateMany { answer, .. } => plan::refuse(answer, not_yet()),
            Command::ListZones { answer } => plan::refuse(answer, not_yet()),
            Command::Cordon { answer, .. } | Command::Drain { answer, .. } => {
                plan::refuse(answer, not_yet());
            }
            Command::RemoveHost { answer, .. } | Command::EndReservation { answer, .. } => {
                plan::refuse(answer, not_yet());
            }
            Command::Reserve { answer, .. } => plan::refuse(answer, not_yet()),
            Command::ListReservations { answer, .. } => plan::refuse(answer, not_yet()),
            Command::Attach {
                register,
                session,
                answer,
            } => self.attach(now, *register, session, answer),
            Command::FromCard {
                host,
                session,
                news,
            } => {
                if !self.inventory.is_current(&host, session) {
                    return;
                }
                match news {
                    CardNews::Gone => self.detach(&host),
                    CardNews::Heartbeat => self.leases.renew(&host, now.at),
                    CardNews::Reports(reports) => {
                        self.leases.renew(&host, now.at);
                        for report in reports {
                            self.report(&host, report);
                        }
                    }
                }
            }
        }
    }
}

fn not_yet() -> Failure {
    Failure::unavailable("this server cannot do that yet")
}

/// Writes the plan, then tells and answers.
async fn flush(state: &mut State, store: &dyn Store) -> Result<(), StoreError> {
    let plan = std::mem::take(&mut state.plan);
    let mut versions = Vec::with_capacity(plan.steps.len());
    let (pods, transactions): (Vec<_>, Vec<Transaction>) = plan
        .steps
        .into_iter()
        .map(|step| (step.pod, step.transaction))
        .unzip();
    if !transactions.is_empty() {
        for result in store.commit_all(transactions).await {
            match result {
                Ok(version) => versions.push(version),
                Err(error) => {
                    let failure = Failure::unavailable(format!("not written: {error}"));
                    for (_, reply) in plan.replies {
                        reply(Err(failure.clone()));
                    }
                    return Err(error);
                }
            }
        }
    }
    for (pod, version) in pods.into_iter().zip(&versions) {
        if let Some(id) = pod {
            state.pods.set_version(id, *version);
            if let Some(placed) = state.pods.get(id).map(crate::pods::PodRecord::pod_id) {
                // It may have no place: it waits, or it is over.
                let _ = state.scheduler.commit(placed);
            }
        }
    }
    state.tenants_written(plan.tenants, &versions);
    for tell in plan.tell {
        state.tell(tell);
    }
    for (steps, reply) in plan.replies {
        let version = steps.checked_sub(1).and_then(|last| versions.get(last));
        reply(Ok(version.copied()));
    }
    Ok(())
}
