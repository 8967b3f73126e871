//! Which replica decides.
//!
//! With the embedded store there is one, and it decides always. With etcd each waits
//! for its turn; the one that leads reads everything back and decides until it loses
//! its lease, and then at once no more: what it has not written yet, it forgets. The
//! others answer what can be read from the store, and know whom they wait for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use longship_proto::Failure;
use longship_scheduler::Policy;
use longship_store::{EtcdStore, Leadership, Leading, Store, StoreError};
use tokio::sync::{mpsc, watch};

use crate::auth::Tokens;
use crate::lease::Leases;
use crate::reconcile::{self, Command, State};
use crate::records;
use crate::serve::{RunError, StartError, token_key};
use crate::tenancy::{Tenancy, Unclaimed};

/// Between attempts where a term ended by a failure.
const RETRY: Duration = Duration::from_millis(200);

/// What this replica has to do now.
#[derive(Debug, Clone)]
pub(crate) enum Duty {
    /// It decides.
    Leads(Office),
    /// Another one does, or none yet.
    Waits,
}

/// What there is only while this replica decides.
#[derive(Debug, Clone)]
pub(crate) struct Office {
    /// What is to be decided.
    pub(crate) commands: mpsc::Sender<Command>,
    /// The key for access tokens.
    pub(crate) token_key: Arc<[u8]>,
    /// `None`: no other could decide.
    leading: Option<Leading>,
}

impl Office {
    /// An office that nobody else can take over.
    pub(crate) fn alone(commands: mpsc::Sender<Command>, token_key: Vec<u8>) -> Self {
        Self {
            commands,
            token_key: token_key.into(),
            leading: None,
        }
    }

    /// Whether it is held for certain: a process that was stopped for a while may not
    /// have noticed yet that it lost it.
    pub(crate) fn holds(&self) -> bool {
        self.leading.as_ref().is_none_or(Leading::holds)
    }
}

/// Follows what this replica has to do.
#[derive(Debug, Clone)]
pub(crate) struct Role {
    pub(crate) duty: watch::Receiver<Duty>,
    /// The leader's address; `None` without replicas.
    pub(crate) leader: Option<watch::Receiver<Option<String>>>,
}

impl Role {
    /// The office, where this replica has it.
    ///
    /// # Errors
    /// `UNAVAILABLE` with the leader's address.
    pub(crate) fn office(&self) -> Result<Office, Failure> {
        match &*self.duty.borrow() {
            Duty::Leads(office) if office.holds() => Ok(office.clone()),
            _ => Err(self.unavailable()),
        }
    }

    /// Why something cannot be done here.
    pub(crate) fn unavailable(&self) -> Failure {
        let Some(leader) = &self.leader else {
            return Failure::unavailable("the control plane is stopping");
        };
        Failure::unavailable(match &*leader.borrow() {
            Some(leader) => format!("this replica does not lead: {leader} does"),
            None => "no replica leads at the moment: try again".to_owned(),
        })
    }
}

/// How a term begins: everything is read back.
pub(crate) struct Beginning {
    pub(crate) policy: Policy,
    /// Of the cards.
    pub(crate) lease: Duration,
    pub(crate) fence_after: Duration,
    pub(crate) unclaimed: Unclaimed,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) tenancy: watch::Sender<Arc<Tenancy>>,
}

impl Beginning {
    /// The state to decide from, and the key for access tokens, which is made where
    /// there is none.
    pub(crate) async fn load(&self, store: &dyn Store) -> Result<(State, Vec<u8>), StartError> {
        let token_key = token_key(store).await?;
        self.tokens.reload(store).await?;
        let tenancy = Tenancy::load(store, self.unclaimed).await?;
        let leases = Leases::new(self.lease, self.fence_after);
        let tokens = Arc::clone(&self.tokens);
        let key = token_key.clone();
        let mut state = State::load(store, self.policy, leases, key, tenancy, tokens).await?;
        state.publish_to(self.tenancy.clone());
        Ok((state, token_key))
    }

    /// Keeps tenants and tokens as they are in the store, while another one decides.
    async fn follow(&self, store: &dyn Store) -> Infallible {
        loop {
            let followed = self.try_follow(store).await;
            let Err(error) = followed;
            // What was missed is read again at once.
            if !matches!(error, StartError::Store(StoreError::TooOld { .. })) {
                tracing::warn!(%error, "tenants and tokens cannot be followed");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn try_follow(&self, store: &dyn Store) -> Result<Infallible, StartError> {
        let before = store.list(records::TOKEN, "").await?.version;
        let mut tenants = store.watch(records::TENANT, "", before).await?;
        let mut tokens = store.watch(records::TOKEN, "", before).await?;
        loop {
            self.tokens.reload(store).await?;
            let tenancy = Tenancy::load(store, self.unclaimed).await?;
            self.tenancy.send_replace(Arc::new(tenancy));
            tokio::select! {
                changed = tenants.next() => changed.map(drop)?,
                changed = tokens.next() => changed.map(drop)?,
            }
        }
    }
}

/// One replica of several.
pub(crate) struct Candidate {
    pub(crate) store: Arc<EtcdStore>,
    /// Where clients and cards reach this replica.
    pub(crate) advertise: String,
    /// How long it may be silent before another leads.
    pub(crate) ttl: Duration,
}

impl Candidate {
    /// Leads whenever it can, until `stopping`.
    ///
    /// # Errors
    /// [`RunError::Load`] where what lies in the store cannot be used.
    pub(crate) async fn run(
        self,
        beginning: Beginning,
        duty: watch::Sender<Duty>,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<(), RunError> {
        loop {
            let leadership = tokio::select! {
                led = self.store.lead(&self.advertise, self.ttl) => led?,
                never = beginning.follow(&*self.store) => match never {},
                () = told_to_stop(&mut stopping) => return Ok(()),
            };
            tracing::info!(address = self.advertise, "this replica leads");
            let ended = tokio::select! {
                () = leadership.lost() => Ok(Some(StoreError::NotLeading { leader: None })),
                ended = self.term(&leadership, &beginning, &duty, &mut stopping) => ended,
            };
            // Whatever is on its way is answered no more.
            duty.send_replace(Duty::Waits);
            leadership.resign().await;
            match ended? {
                None => return Ok(()),
                Some(error) => tracing::warn!(%error, "this replica leads no more"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Decides. `None` where it was told to stop, and a store's error where another
    /// attempt may go better.
    async fn term(
        &self,
        leadership: &Leadership,
        beginning: &Beginning,
        duty: &watch::Sender<Duty>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Result<Option<StoreError>, RunError> {
        let (state, token_key) = match beginning.load(&*self.store).await {
            Ok(loaded) => loaded,
            Err(StartError::Store(error)) => return Ok(Some(error)),
            Err(error) => return Err(RunError::Load(Box::new(error))),
        };
        let (commands, queue) = mpsc::channel(reconcile::QUEUE);
        duty.send_replace(Duty::Leads(Office {
            commands,
            token_key: token_key.into(),
            leading: Some(leadership.watch()),
        }));
        tracing::info!("everything is read back, and this replica decides");
        let store: Arc<dyn Store> = self.store.clone();
        let deciding = reconcile::run(state, store, queue);
        tokio::pin!(deciding);
        let ended = tokio::select! {
            ended = &mut deciding => ended,
            () = told_to_stop(stopping) => {
                // It ends with the last call.
                duty.send_replace(Duty::Waits);
                deciding.await
            }
        };
        Ok(ended.err())
    }
}

async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
