//! Clients' tokens that come and go.

use longship_proto::Failure;
use longship_proto::control::v1::TokenInfo;
use longship_store::{Expect, Transaction};
use prost::Message;

use super::command::Answer;
use super::plan::{Step, refuse};
use super::state::{Now, State};
use crate::auth::TokenRecord;
use crate::records;

/// More than clients need; each takes some hundred bytes of memory.
const MAX_TOKENS: usize = 100_000;
/// Expired tokens that are forgotten in one go.
const MAX_SWEPT: usize = 1000;

/// What can be asked about tokens.
#[derive(Debug)]
pub(crate) enum TokenCommand {
    Create {
        record: TokenRecord,
        answer: Answer<TokenInfo>,
    },
    Revoke {
        id: String,
        answer: Answer<()>,
    },
}

impl State {
    pub(super) fn decide_tokens(&mut self, now: Now, command: TokenCommand) {
        match command {
            TokenCommand::Create { record, answer } => match self.create_token(now, record) {
                Ok(info) => self.plan.reply(true, answer, move |_| info),
                Err(failure) => refuse(answer, failure),
            },
            TokenCommand::Revoke { id, answer } => match self.tokens.remove(&id) {
                true => {
                    self.forget_tokens([id].into_iter());
                    self.plan.reply(true, answer, |_| ());
                }
                false => refuse(answer, Failure::not_found(format!("no token `{id}`"))),
            },
        }
    }

    fn create_token(&mut self, now: Now, record: TokenRecord) -> Result<TokenInfo, Failure> {
        let info = record.info.clone();
        if !info.tenant.is_empty() && self.tenancy.get(&info.tenant).is_none() {
            return Err(Failure {
                field: "tenant".into(),
                ..Failure::not_found(format!("no tenant `{}`", info.tenant))
            });
        }
        self.sweep_tokens(now);
        if self.tokens.len() >= MAX_TOKENS {
            return Err(Failure::exhausted(format!("there are {MAX_TOKENS} tokens")));
        }
        let bytes = record.encode_to_vec();
        // Nobody knows its secret before the answer, which waits for the write.
        if !self.tokens.put(record) {
            return Err(Failure::invalid("role", "does not fit the tenant"));
        }
        self.plan.steps.push(Step {
            transaction: Transaction::new().put(records::TOKEN, &info.id, bytes, Expect::Absent),
            pod: None,
        });
        tracing::info!(token = info.id, tenant = info.tenant, "token created");
        Ok(info)
    }

    /// Forgets tokens that have expired.
    fn sweep_tokens(&mut self, now: Now) {
        let expired = self.tokens.list(|info| info.expires_us <= now.us);
        self.remove_tokens(expired.into_iter().take(MAX_SWEPT));
    }

    /// Takes all tokens of a tenant away.
    pub(super) fn revoke_tokens_of(&mut self, tenant: &str) {
        let tokens = self.tokens.list(|info| info.tenant == tenant);
        self.remove_tokens(tokens.into_iter());
    }

    fn remove_tokens(&mut self, tokens: impl Iterator<Item = TokenInfo>) {
        let ids: Vec<String> = tokens.map(|info| info.id).collect();
        for id in &ids {
            self.tokens.remove(id);
        }
        self.forget_tokens(ids.into_iter());
    }

    fn forget_tokens(&mut self, ids: impl Iterator<Item = String>) {
        for id in ids {
            tracing::info!(token = id, "token gone");
            self.plan.steps.push(Step {
                transaction: Transaction::new().delete(records::TOKEN, &id, Expect::Any),
                pod: None,
            });
        }
    }
}
