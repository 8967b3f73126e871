//! Objects with resource versions and a watch, kept through a restart.
//!
//! An [`Object`] is bytes under a kind and a key. Every [`Transaction`] that
//! changes something gets a later version of the store, and every object that it
//! wrote carries that version: so a writer can insist on the version it has seen
//! ([`Expect::Version`]), and a reader can go on from the version it knows
//! ([`Store::watch`]). Transactions that are given together and have no object in
//! common may share a version. What has been acknowledged is on disk: in the embedded
//! store ([`RedbStore`]) on this machine's, in etcd ([`EtcdStore`]) on a majority's.

mod backup;
mod error;
mod etcd;
mod memory;
mod object;
mod redb_store;
mod watch;
mod writer;

use async_trait::async_trait;

pub use backup::{Backup, BackupError, check_backup, restore};
pub use error::StoreError;
pub use etcd::{EtcdOptions, EtcdStore, Leadership, Leading};
pub use memory::MemoryStore;
pub use object::{
    Change, Event, Expect, Listing, MAX_KEY_BYTES, MAX_PAGE, MAX_VALUE_BYTES, Object, Op, Page,
    Transaction,
};
pub use redb_store::{RedbOptions, RedbStore};
pub use watch::Watch;

/// A store of versioned objects.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The object under `kind` and `key`.
    ///
    /// # Errors
    /// [`StoreError::Backend`], [`StoreError::Closed`].
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Object>, StoreError>;

    /// All objects of a kind whose keys begin with `prefix`, by key, and the version
    /// of which this is the whole truth.
    ///
    /// # Errors
    /// [`StoreError::Backend`], [`StoreError::Closed`].
    async fn list(&self, kind: &str, prefix: &str) -> Result<Listing, StoreError>;

    /// As [`Store::list`], but only up to `limit` objects (at least 1, at most
    /// [`MAX_PAGE`]) whose keys come after `after`. Costs as much as what it answers,
    /// however many objects there are.
    ///
    /// # Errors
    /// [`StoreError::Backend`], [`StoreError::Closed`].
    async fn list_page(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError>;

    /// Applies transactions one after the other, each wholly or not at all, and
    /// makes them durable. Answers one result a transaction, in order: the version it
    /// got (the newest before it, where it changed nothing). Where one fails for
    /// another reason than its own, none after it is applied.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] for one whose expectation does not hold (the others
    /// go on), [`StoreError::TooLarge`], [`StoreError::Empty`], and
    /// [`StoreError::Backend`] or [`StoreError::Closed`] for all.
    async fn commit_all(&self, transactions: Vec<Transaction>) -> Vec<Result<u64, StoreError>>;

    /// Applies one transaction wholly or not at all; the version it got.
    ///
    /// # Errors
    /// As [`Store::commit_all`].
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let results = self.commit_all(vec![transaction]).await;
        results
            .into_iter()
            .next()
            .unwrap_or(Err(StoreError::Closed))
    }

    /// Every change after version `after` of objects of `kind` whose keys begin with
    /// `prefix`.
    ///
    /// # Errors
    /// [`StoreError::TooOld`] where the log does not reach back that far (list, then
    /// watch from there), [`StoreError::FromTheFuture`], [`StoreError::Backend`].
    async fn watch(&self, kind: &str, prefix: &str, after: u64) -> Result<Watch, StoreError>;
}
