//! Who calls.

use std::sync::Arc;
use std::time::Duration;

use longship_proto::control::v1::Role;
use longship_proto::{Failure, now_us};
use tokio::sync::watch;

/// Whom a call comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Nobody was asked: the server is open.
    Anybody,
    /// Everything of all tenants, but not what only cards may.
    Operator,
    /// A tenant's client.
    Client { tenant: Arc<str>, role: Role },
    /// The card of that host.
    Card { host: Arc<str> },
}

/// Whom a call comes from, and for how long that holds.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) who: Who,
    token: Option<TokenLife>,
}

/// A token ends when its time is over, or when it is revoked.
#[derive(Debug, Clone)]
pub(crate) struct TokenLife {
    pub(crate) expires_us: i64,
    pub(crate) revoked: watch::Receiver<bool>,
}

impl Caller {
    /// A caller for as long as the connection lasts.
    pub(crate) fn new(who: Who) -> Self {
        Self { who, token: None }
    }

    pub(super) fn by_token(who: Who, life: TokenLife) -> Self {
        Self {
            who,
            token: Some(life),
        }
    }

    /// The tenant that the caller is confined to; `None`: it is not.
    pub(crate) fn tenant(&self) -> Option<&str> {
        match &self.who {
            Who::Client { tenant, .. } => Some(tenant),
            Who::Anybody | Who::Operator | Who::Card { .. } => None,
        }
    }

    /// Whether the caller may speak for that host's card.
    pub(crate) fn is_card_of(&self, name: &str) -> bool {
        match &self.who {
            Who::Anybody => true,
            Who::Card { host } => **host == *name,
            Who::Operator | Who::Client { .. } => false,
        }
    }

    /// Waits until the caller may no longer be served, and says why.
    pub(crate) async fn ended(self) -> Failure {
        let Some(mut token) = self.token else {
            return std::future::pending().await;
        };
        let left = token.expires_us.saturating_sub(now_us());
        let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
        tokio::select! {
            // Either it is revoked, or nobody knows the token any more.
            _ = token.revoked.wait_for(|revoked| *revoked) => {
                Failure::denied("the token has been revoked")
            }
            () = tokio::time::sleep(left) => Failure::denied("the token has expired"),
        }
    }
}
