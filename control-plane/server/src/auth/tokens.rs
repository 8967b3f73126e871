//! Clients' tokens: made once, shown once, kept as hashes.
//!
//! A token is `ID.SECRET`. The store has the SHA-256 of the secret, which is random
//! enough (32 bytes) that nobody finds it from there. All tokens are in memory: a call
//! costs one hash and no read of the store, and one that is revoked is gone at once.

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use longship_proto::control::v1::{Role, TokenInfo};
use longship_store::Store;
use prost::Message;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::caller::{Caller, TokenLife, Who};
use crate::records::{self, RecordError};
use crate::serve::StartError;

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
/// As hexadecimal digits.
const ID_LENGTH: usize = 2 * ID_BYTES;
/// As base64url without padding.
const SECRET_LENGTH: usize = 43;

/// A token in the store, under its id.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TokenRecord {
    #[prost(message, required, tag = "1")]
    pub info: TokenInfo,
    /// SHA-256 of the secret, as it is sent.
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
}

/// A token that was just made: the only time that its secret is known.
pub(crate) struct NewToken {
    pub(crate) record: TokenRecord,
    /// What the client sends.
    pub(crate) token: String,
}

impl NewToken {
    /// Makes one with a new id and a new secret.
    pub(crate) fn random(info: TokenInfo) -> Self {
        let id = hex::encode(rand::random::<[u8; ID_BYTES]>());
        let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>());
        let token = format!("{id}.{secret}");
        let record = TokenRecord {
            info: TokenInfo { id, ..info },
            hash: Sha256::digest(secret.as_bytes()).to_vec(),
        };
        Self { record, token }
    }
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token is malformed")]
    Malformed,
    /// Never made, revoked, or made by another server.
    #[error("the token is unknown, or has been revoked")]
    Unknown,
    #[error("the token has expired")]
    Expired,
}

#[derive(Debug)]
struct Entry {
    record: TokenRecord,
    who: Who,
    revoked: watch::Sender<bool>,
}

/// All tokens that are good, or were until they expired.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    by_id: RwLock<HashMap<String, Entry>>,
}

impl Tokens {
    /// Makes them what the store has. Those that stay are not disturbed.
    pub(crate) async fn reload(&self, store: &dyn Store) -> Result<(), StartError> {
        let mut gone: HashSet<String> = self.read().keys().cloned().collect();
        for object in store.list(records::TOKEN, "").await?.objects {
            let record: TokenRecord = records::decode(&object)?;
            gone.remove(&record.info.id);
            let known = self
                .read()
                .get(&object.key)
                .map(|entry| entry.record.clone());
            if known.as_ref() == Some(&record) {
                continue;
            }
            if record.info.id != object.key || !self.put(record) {
                return Err(RecordError::new(&object, "it is no token").into());
            }
        }
        for id in gone {
            self.remove(&id);
        }
        Ok(())
    }

    /// Whose token that is.
    pub(crate) fn check(&self, token: &str, now_us: i64) -> Result<Caller, TokenError> {
        let (id, secret) = token.split_once('.').ok_or(TokenError::Malformed)?;
        if id.len() != ID_LENGTH || secret.len() != SECRET_LENGTH {
            return Err(TokenError::Malformed);
        }
        let tokens = self.read();
        let entry = tokens.get(id).ok_or(TokenError::Unknown)?;
        let hash = Sha256::digest(secret.as_bytes());
        if !bool::from(hash[..].ct_eq(&entry.record.hash[..])) {
            return Err(TokenError::Unknown);
        }
        let expires_us = entry.record.info.expires_us;
        if expires_us <= now_us {
            return Err(TokenError::Expired);
        }
        let life = TokenLife {
            expires_us,
            revoked: entry.revoked.subscribe(),
        };
        Ok(Caller::by_token(entry.who.clone(), life))
    }

    /// Adds a token; false where the record is none.
    pub(crate) fn put(&self, record: TokenRecord) -> bool {
        let tenant = record.info.tenant.as_str();
        let who = match record.info.role() {
            Role::Operator if tenant.is_empty() => Who::Operator,
            role @ (Role::Viewer | Role::Editor) if !tenant.is_empty() => Who::Client {
                tenant: tenant.into(),
                role,
            },
            _ => return false,
        };
        let entry = Entry {
            who,
            revoked: watch::Sender::new(false),
            record,
        };
        self.write().insert(entry.record.info.id.clone(), entry);
        true
    }

    /// Takes a token away from now on, and from what runs; false where there is none.
    pub(crate) fn remove(&self, id: &str) -> bool {
        let Some(entry) = self.write().remove(id) else {
            return false;
        };
        entry.revoked.send_replace(true);
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    /// What may be told of the tokens that `wanted` names, the oldest first.
    pub(crate) fn list(&self, wanted: impl Fn(&TokenInfo) -> bool) -> Vec<TokenInfo> {
        let tokens = self.read();
        let infos = tokens.values().map(|entry| &entry.record.info);
        let mut infos: Vec<TokenInfo> = infos.filter(|info| wanted(info)).cloned().collect();
        infos.sort_by(|a, b| (a.created_us, &a.id).cmp(&(b.created_us, &b.id)));
        infos
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Entry>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Entry>> {
        self.by_id.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn editor() -> NewToken {
        let mut info = TokenInfo {
            tenant: "red".into(),
            expires_us: 1_000,
            ..TokenInfo::default()
        };
        info.set_role(Role::Editor);
        NewToken::random(info)
    }

    #[test]
    fn a_token_is_its_tenants_until_it_expires_or_is_revoked() {
        let tokens = Tokens::default();
        let made = editor();
        let (token, id) = (&made.token, made.record.info.id.clone());
        assert_eq!(tokens.check(token, 0).unwrap_err(), TokenError::Unknown);
        assert!(tokens.put(made.record.clone()));
        let caller = tokens.check(token, 999).unwrap();
        assert_eq!(caller.tenant(), Some("red"));
        assert_eq!(tokens.check(token, 1_000).unwrap_err(), TokenError::Expired);
        assert!(tokens.remove(&id) && !tokens.remove(&id));
        assert_eq!(tokens.check(token, 0).unwrap_err(), TokenError::Unknown);
    }

    #[test]
    fn a_token_changed_in_any_place_is_refused() {
        let tokens = Tokens::default();
        let made = editor();
        tokens.put(made.record);
        for at in 0..made.token.len() {
            let mut bytes = made.token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(tokens.check(&changed, 0).is_err(), "{changed}");
        }
        let longer = format!("{}A", made.token);
        for token in ["", ".", "..", "a.b", &longer, &longer[..longer.len() - 2]] {
            assert_eq!(tokens.check(token, 0).unwrap_err(), TokenError::Malformed);
        }
    }

    #[test]
    fn the_store_has_no_secret() {
        let made = editor();
        let (_, secret) = made.token.split_once('.').unwrap();
        let stored = made.record.encode_to_vec();
        let contains = |part: &[u8]| stored.windows(part.len()).any(|window| window == part);
        assert!(!contains(secret.as_bytes()));
        assert!(!contains(&URL_SAFE_NO_PAD.decode(secret).unwrap()));
        assert!(contains(&made.record.hash));
    }

    #[test]
    fn a_role_that_does_not_fit_its_tenant_is_no_token() {
        for (tenant, role) in [
            ("red", Role::Operator),
            ("", Role::Editor),
            ("", Role::Unspecified),
            ("red", Role::Unspecified),
        ] {
            let mut info = TokenInfo {
                tenant: tenant.into(),
                ..TokenInfo::default()
            };
            info.set_role(role);
            assert!(!Tokens::default().put(NewToken::random(info).record));
        }
    }

    #[tokio::test]
    async fn what_runs_with_a_token_ends_with_it() {
        let tokens = Tokens::default();
        let mut made = editor();
        made.record.info.expires_us = i64::MAX;
        tokens.put(made.record.clone());
        let caller = tokens.check(&made.token, 0).unwrap();
        let ended = tokio::spawn(caller.ended());
        tokens.remove(&made.record.info.id);
        assert!(ended.await.unwrap().message.contains("revoked"));

        made.record.info.expires_us = longship_proto::now_us() + 20_000;
        tokens.put(made.record.clone());
        let caller = tokens.check(&made.token, 0).unwrap();
        assert!(caller.ended().await.message.contains("expired"));
    }
}
