//! What the card holds for its pods, written down before it is taken, so that
//! whoever comes after a crash can give it back.

use std::path::Path;

use longship_proto::Failure;
use longship_proto::card::v1::Held;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

/// (pod uid, kind, name) of everything held.
const HELD: TableDefinition<'_, (&str, &str, &str), ()> = TableDefinition::new("held");

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

/// The journal of one card.
#[derive(Debug)]
pub(crate) struct Journal {
    database: Database,
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
        let journal = Self { database };
        // The table must exist before anything reads it.
        journal.write(|_| Ok(()))?;
        Ok(journal)
    }

    /// Writes down that `items` are about to be taken for the pod, durably, in one step.
    ///
    /// # Errors
    /// [`JournalError::Transaction`]; nothing is written then.
    pub(crate) fn take(&self, pod_uid: &str, items: &[Item]) -> Result<(), JournalError> {
        self.write(|table| {
            for (kind, name) in items {
                table.insert((pod_uid, *kind, name.as_str()), ())?;
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
            table.retain(|(uid, _, _), ()| uid != pod_uid)?;
            Ok(())
        })
    }

    /// Everything held, in order of the pods' uids.
    ///
    /// # Errors
    /// [`JournalError::Transaction`].
    pub(crate) fn held(&self) -> Result<Vec<Held>, JournalError> {
        self.read().map_err(JournalError::Transaction)
    }

    fn read(&self) -> Result<Vec<Held>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(HELD)?;
        let mut held = Vec::new();
        for entry in table.iter()? {
            let (key, _) = entry?;
            let (pod_uid, kind, name) = key.value();
            held.push(Held {
                pod_uid: pod_uid.to_owned(),
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
        attempt().map_err(JournalError::Transaction)
    }
}

type HeldTable<'a> = redb::Table<'a, (&'static str, &'static str, &'static str), ()>;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(journal: &Journal) -> Vec<String> {
        let held = journal.held().unwrap();
        held.iter()
            .map(|h| format!("{}/{}/{}", h.pod_uid, h.kind, h.name))
            .collect()
    }

    #[test]
    fn what_was_taken_is_still_held_after_a_restart_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.redb");
        {
            let journal = Journal::open(&path).unwrap();
            journal
                .take("a", &[("eni", "eth0".into()), ("sandbox", "a".into())])
                .unwrap();
            journal.take("ab", &[("eni", "eth0".into())]).unwrap();
        }
        let journal = Journal::open(&path).unwrap();
        assert_eq!(
            names(&journal),
            ["a/eni/eth0", "a/sandbox/a", "ab/eni/eth0"]
        );
        journal.clear("a").unwrap();
        assert_eq!(names(&journal), ["ab/eni/eth0"]);
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
