//! What the card holds for its pods, written down before it is taken, so that
//! whoever comes after a crash can give it back.

use std::path::Path;

use longship_proto::Failure;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;

/// (pod uid, kind, name) of everything held, with the pod's generation.
const HELD: TableDefinition<'_, (&str, &str, &str), u64> = TableDefinition::new("held");

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The file cannot be opened: wrong place, no rights, or another card has it.
    #[error("open the journal {path}: {source}")]
    Open {
        /// The journal's file.
        path: String,
        /// redb's reason.
        source: redb::DatabaseError,
    },
    /// A transaction failed.
    #[error("journal: {0}")]
    Transaction(#[from] redb::Error),
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Failure::internal(error.to_string())
    }
}

/// One thing to be held: its kind (`eni`, `scratch`, `image`, `sandbox`) and name.
pub(crate) type Item = (&'static str, String);

/// An [`Item`] of a pod, as it stands in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldItem {
    /// The pod.
    pub(crate) pod_uid: String,
    /// The generation for which it was taken.
    pub(crate) generation: u64,
    /// Its kind.
    pub(crate) kind: String,
    /// Its name.
    pub(crate) name: String,
}

/// The journal of one card.
#[derive(Debug)]
pub(crate) struct Journal {
    database: Database,
    failed: watch::Sender<Option<String>>,
}

impl Journal {
    /// Opens the journal at `path`, or begins it.
    ///
    /// # Errors
    /// [`JournalError::Open`] where the file is unusable or already in use.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let database = Database::create(path).map_err(|source| JournalError::Open {
            path: path.display().to_string(),
            source,
        })?;
        let journal = Self {
            database,
            failed: watch::channel(None).0,
        };
        // The table must exist before anything reads it.
        journal.write(|_| Ok(()))?;
        Ok(journal)
    }

    /// Writes down that `items` are about to be taken for the pod, durably, in one step.
    ///
    /// # Errors
    /// [`JournalError::Transaction`]; nothing is written then.
    pub(crate) fn take(
        &self,
        pod_uid: &str,
        generation: u64,
        items: &[Item],
    ) -> Result<(), JournalError> {
        self.write(|table| {
            for (kind, name) in items {
                table.insert((pod_uid, *kind, name.as_str()), generation)?;
            }
            Ok(())
        })
    }

    /// Writes down that nothing is held for the pod any more.
    ///
    /// # Errors
    /// [`JournalError::Transaction`]; everything stays written then.
    pub(crate) fn clear(&self, pod_uid: &str) -> Result<(), JournalError> {
        self.write(|table| {
            table.retain(|(uid, _, _), _| uid != pod_uid)?;
            Ok(())
        })
    }

    /// Everything held, in order of the pods' uids.
    ///
    /// # Errors
    /// [`JournalError::Transaction`].
    pub(crate) fn held(&self) -> Result<Vec<HeldItem>, JournalError> {
        self.read().map_err(|error| self.transaction(error))
    }

    /// Resolves with the reason when a transaction has failed. Then all that follow
    /// fail too (redb trusts its file no more), and only a new start helps.
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            _ => std::future::pending().await,
        }
    }

    fn transaction(&self, error: redb::Error) -> JournalError {
        let error = JournalError::Transaction(error);
        self.failed.send_replace(Some(error.to_string()));
        error
    }

    fn read(&self) -> Result<Vec<HeldItem>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(HELD)?;
        let mut held = Vec::new();
        for entry in table.iter()? {
            let (key, generation) = entry?;
            let (pod_uid, kind, name) = key.value();
            held.push(HeldItem {
                pod_uid: pod_uid.to_owned(),
                generation: generation.value(),
                kind: kind.to_owned(),
                name: name.to_owned(),
            });
        }
        Ok(held)
    }

    fn write(
        &self,
        change: impl FnOnce(&mut HeldTable<'_>) -> Result<(), redb::StorageError>,
    ) -> Result<(), JournalError> {
        let attempt = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            change(&mut transaction.open_table(HELD)?)?;
            transaction.commit()?;
            Ok(())
        };
        attempt().map_err(|error| self.transaction(error))
    }
}

type HeldTable<'a> = redb::Table<'a, (&'static str, &'static str, &'static str), u64>;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(journal: &Journal) -> Vec<String> {
        let held = journal.held().unwrap();
        held.iter()
            .map(|h| format!("{}@{}/{}/{}", h.pod_uid, h.generation, h.kind, h.name))
            .collect()
    }

    #[test]
    fn what_was_taken_is_still_held_after_a_restart_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.redb");
        {
            let journal = Journal::open(&path).unwrap();
            journal
                .take("a", 7, &[("eni", "eth0".into()), ("sandbox", "a".into())])
                .unwrap();
            journal.take("ab", 1, &[("eni", "eth0".into())]).unwrap();
        }
        let journal = Journal::open(&path).unwrap();
        assert_eq!(
            names(&journal),
            ["a@7/eni/eth0", "a@7/sandbox/a", "ab@1/eni/eth0"]
        );
        journal.clear("a").unwrap();
        assert_eq!(names(&journal), ["ab@1/eni/eth0"]);
        journal.clear("unknown").unwrap();
    }

    #[test]
    fn a_second_card_with_the_same_journal_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.redb");
        let _first = Journal::open(&path).unwrap();
        let refused = Journal::open(&path).unwrap_err();
        assert!(refused.to_string().contains("journal.redb"), "{refused}");
    }
}
