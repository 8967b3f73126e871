//! The gRPC services: each checks what came, hands it on, and answers.

mod capacity;
mod cards;
mod events_body;
mod image_cache;
mod inventory;
mod list;
mod network;
mod pods;
mod pods_service;
mod stream;
mod tenants;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use longship_proto::{Failure, FailureExt};
use longship_store::Store;
use tokio::sync::{Semaphore, oneshot, watch};
use tonic::{Request, Status};

pub(crate) use pods_service::PodsService;
pub(crate) use stream::Ending;

use crate::auth::{Scope, Tokens};
use crate::leader::{Office, Role};
use crate::reconcile::Command;
use crate::tenancy::Tenancy;
use crate::watch::Feed;

/// What all services share.
#[derive(Clone)]
pub(crate) struct Control {
    /// Whether this replica decides.
    pub(crate) role: Role,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sessions: Arc<AtomicU64>,
    /// Cards that may register at once.
    pub(crate) registrations: Arc<Semaphore>,
    /// Whose namespaces are whose.
    pub(crate) tenancy: watch::Receiver<Arc<Tenancy>>,
    /// Clients' tokens.
    pub(crate) tokens: Arc<Tokens>,
    /// True once the server stops: streams end then.
    pub(crate) stopping: watch::Receiver<bool>,
    /// Changes of pods, for watchers.
    pub(crate) feed: Arc<Feed>,
    /// How long a watcher may leave an event unread.
    pub(crate) watcher_patience: Duration,
    /// How often a watcher that asks for it is told that nothing changes.
    pub(crate) bookmark_interval: Duration,
}

impl Control {
    /// Whose things a call may be about.
    pub(crate) fn scope<T>(&self, request: &Request<T>) -> Result<Scope, Status> {
        Scope::of(request, &self.tenancy)
    }

    /// Has a command done.
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Command,
    ) -> Result<T, Status> {
        let office = self.role.office().map_err(Failure::into_status)?;
        self.ask_in(&office, command).await
    }

    /// As [`Control::ask`], of that office only.
    async fn ask_in<T>(
        &self,
        office: &Office,
        command: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Command,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let over = || self.role.unavailable().into_status();
        let sent = office.commands.send(command(answer)).await;
        sent.map_err(|_| over())?;
        match answered.await {
            Ok(answer) => answer.map_err(Failure::into_status),
            Err(_) => Err(over()),
        }
    }
}
