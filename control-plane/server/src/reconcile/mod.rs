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
mod evict;
mod flush;
mod gang;
#[cfg(test)]
mod histories;
mod hosts;
mod images;
mod load;
#[cfg(test)]
mod locality;
mod networks;
mod once;
mod patch;
mod placement;
mod plan;
mod quota;
mod report;
mod reservation;
mod silence;
mod state;
mod tenants;
mod tokens;
#[cfg(test)]
mod torn;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use longship_store::{Store, StoreError};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub(crate) use command::{Answer, CardNews, Command, GangOrder};
use flush::flush;
pub(crate) use images::ImageCommand;
pub(crate) use networks::NetworkCommand;
pub(crate) use placement::flavor;
use state::Now;
pub(crate) use state::State;
pub(crate) use tenants::{TenantCommand, tenant_of_pod};
pub(crate) use tokens::TokenCommand;

/// Commands that may wait.
pub(crate) const QUEUE: usize = 1024;
/// Commands that are decided and written in one go, at most.
const BATCH: usize = 512;

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
    loop {
        let now = Now::get();
        for command in batch.drain(..) {
            state.decide(now, command);
        }
        state.go_on(now);
        flush(&mut state, &*store).await?;
        let written = Now::get();
        let next = state.next_event(written);
        tokio::select! {
            taken = commands.recv_many(&mut batch, BATCH) => if taken == 0 {
                return Ok(());
            },
            () = at(next) => {}
        }
        // What cards say waits while a write takes long, or this machine sleeps.
        let due = next.map_or(written.at, |next| next.max(written.at));
        let woken = Instant::now();
        let deaf = (written.at - now.at) + next.map_or(Duration::ZERO, |_| woken - due.min(woken));
        if deaf > state.leases.duration() / 2 {
            tracing::warn!(
                ?deaf,
                "no card was listened to for a while: all leases begin anew"
            );
            state.leases.forgive(woken);
        }
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
            Command::Create {
                pod,
                uid,
                once,
                answer,
            } => self.create(now, (*pod, uid), once, answer),
            Command::CreateMany {
                pods,
                gang,
                once,
                answer,
            } => self.create_many(now, pods, gang, once, answer),
            Command::Delete {
                namespace,
                name,
                grace_seconds,
                if_uid,
                answer,
            } => self.delete(now, (&namespace, &name), grace_seconds, &if_uid, answer),
            Command::Patch { patch, answer } => self.patch(*patch, answer),
            Command::Access {
                namespace,
                name,
                answer,
            } => self.access(&namespace, &name, answer),
            Command::Images(command) => self.decide_images(command),
            Command::Networks(command) => self.decide_networks(command),
            Command::Tenants(command) => self.decide_tenants(now, command),
            Command::Tokens(command) => self.decide_tokens(now, command),
            Command::ListHosts {
                zone,
                after,
                limit,
                answer,
            } => self.list_hosts(zone.as_deref(), &after, limit, answer),
            Command::ListZones { answer } => self.list_zones(answer),
            Command::Cordon {
                host,
                cordoned,
                answer,
            } => self.cordon(&host, cordoned, answer),
            Command::Drain {
                host,
                grace_seconds,
                answer,
            } => self.drain(now, &host, grace_seconds, answer),
            Command::RemoveHost { host, answer } => self.remove_host(now, &host, answer),
            Command::Reserve {
                reservation,
                answer,
            } => self.reserve(now, reservation, answer),
            Command::ListReservations { tenant, answer } => {
                self.list_reservations(tenant.as_deref(), answer);
            }
            Command::EndReservation {
                tenant,
                name,
                answer,
            } => self.end_reservation(&tenant, &name, answer),
            Command::Attach {
                register,
                session,
                answer,
            } => self.attach(now, *register, session, answer),
            Command::FromCard {
                host,
                session,
                news,
            } => self.hear(now, &host, session, news),
        }
    }

    /// What a card says, unless it is a former stream of its that says it.
    fn hear(&mut self, now: Now, host: &str, session: u64, news: CardNews) {
        if !self.inventory.is_current(host, session) {
            return;
        }
        match news {
            CardNews::Gone => self.detach(host),
            CardNews::Heartbeat => self.leases.renew(host, now.at),
            CardNews::Images(reports) => {
                self.leases.renew(host, now.at);
                self.hear_images(host, reports);
            }
            CardNews::Reports(reports) => {
                self.leases.renew(host, now.at);
                for report in reports {
                    self.report(now, host, report);
                }
            }
        }
    }

    /// What follows from the commands, and from the time.
    fn go_on(&mut self, now: Now) {
        self.expire_leases(now);
        self.forget_old_requests(now);
        let ends = self.fleet.next_end();
        if ends.is_some_and(|ends| ends <= now.time()) {
            self.keep_reserved(now);
        }
        self.place_waiting(now);
    }

    /// When something follows though no command comes.
    fn next_event(&self, now: Now) -> Option<Instant> {
        let reserved = self.fleet.next_end().map(|ends| {
            let left = ends.0.saturating_sub(now.time().0);
            now.at + Duration::from_millis(left)
        });
        let next = [self.leases.next_end(), self.next_look(now.at), reserved];
        next.into_iter().flatten().min()
    }
}
