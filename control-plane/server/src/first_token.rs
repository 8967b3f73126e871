//! The first operator's token, made in the store itself.

use std::path::Path;
use std::time::Duration;

use longship_proto::control::v1::{Role, TokenInfo};
use longship_proto::now_us;
use longship_store::{Expect, RedbOptions, RedbStore, Store, Transaction};
use prost::Message;

use crate::auth::NewToken;
use crate::records;
use crate::serve::{STORE_FILE, StartError};

/// Makes an operator's token, good for `ttl`, in the store of a server that does not run
/// now: who may read and write its directory is an operator anyhow.
///
/// # Errors
/// [`StartError::StateDir`], [`StartError::Store`], also where a server has it open.
pub async fn operator_token(state_dir: &Path, ttl: Duration) -> Result<String, StartError> {
    super::serve::create_private(state_dir).map_err(|error| StartError::StateDir {
        path: state_dir.to_owned(),
        error,
    })?;
    let store = RedbStore::open(&state_dir.join(STORE_FILE), RedbOptions::default())?;
    let now = now_us();
    let ttl = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
    let made = NewToken::random(TokenInfo {
        role: Role::Operator.into(),
        created_us: now,
        expires_us: now.saturating_add(ttl),
        note: "made on the server".into(),
        ..TokenInfo::default()
    });
    let id = made.record.info.id.clone();
    let bytes = made.record.encode_to_vec();
    let transaction = Transaction::new().put(records::TOKEN, &id, bytes, Expect::Absent);
    store.commit(transaction).await?;
    Ok(made.token)
}
