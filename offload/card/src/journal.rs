//! What the card holds for its pods, written down before it is taken, so that
//! whoever comes after a crash can give it back; and what image references stood for.
//!
//! One thread writes. What is asked for while it writes goes into its next
//! transaction together, so that a hundred pods cost hardly more syncs than one.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use longship_proto::Failure;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{oneshot, watch};

/// (pod uid, kind, name) of everything held, with the pod's generation.
const HELD: TableDefinition<'_, (&str, &str, &str), u64> = TableDefinition::new("held");
/// Digest of the image that a reference stood for when it was last looked up.
const REFERENCES: TableDefinition<'_, &str, &str> = TableDefinition::new("references");

/// Memory for the file's pages in bytes: a journal is small.
const CACHE: usize = 1 << 20;
/// Changes written in one transaction, at most.
const BATCH: usize = 256;

/// Why the journal could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum JournalError {
    /// The file cannot be opened: wrong place, no rights, or another card has it.
    #[error("open the journal {path}: {reason}")]
    Open {
        /// The journal's file.
        path: String,
        /// redb's reason.
        reason: String,
    },
    /// A transaction failed.
    #[error("journal: {0}")]
    Transaction(String),
    /// The thread that writes cannot be started, or has ended.
    #[error("journal: {0}")]
    Thread(String),
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
    database: Arc<Database>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    failed: watch::Sender<Option<String>>,
}

#[derive(Debug)]
struct Job {
    change: Change,
    done: oneshot::Sender<Result<(), JournalError>>,
}

#[derive(Debug)]
enum Change {
    Take {
        pod_uid: String,
        generation: u64,
        items: Vec<Item>,
    },
    Clear {
        pod_uid: String,
    },
    Reference {
        reference: String,
        digest: String,
    },
}

impl Change {
    /// Whether it may not be lost. A pod whose end is forgotten is released once
    /// more, and a reference looked up once more: both come with the next sync.
    fn is_durable(&self) -> bool {
        matches!(self, Self::Take { .. })
    }
}

impl Journal {
    /// Opens the journal at `path`, or begins it.
    ///
    /// # Errors
    /// [`JournalError::Open`] where the file is unusable or already in use.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create(path)
            .map_err(|reason| JournalError::Open {
                path: path.display().to_string(),
                reason: reason.to_string(),
            })?;
        // The tables must exist before anything reads them.
        write(&database, &[]).map_err(|e| JournalError::Transaction(e.to_string()))?;
        let database = Arc::new(database);
        let failed = watch::channel(None).0;
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn({
                let (database, failed) = (database.clone(), failed.clone());
                move || write_all(&database, &queue, &failed)
            })
            .map_err(|e| JournalError::Thread(format!("start its thread: {e}")))?;
        Ok(Self {
            database,
            jobs: Some(jobs),
            thread: Some(thread),
            failed,
        })
    }

    /// Writes down that `items` are about to be taken for the pod, durably, in one step.
    ///
    /// # Errors
    /// [`JournalError::Transaction`]; nothing is written then.
    pub(crate) async fn take(
        &self,
        pod_uid: &str,
        generation: u64,
        items: Vec<Item>,
    ) -> Result<(), JournalError> {
        let pod_uid = pod_uid.to_owned();
        self.change(Change::Take {
            pod_uid,
            generation,
            items,
        })
        .await
    }

    /// Writes down that nothing is held for the pod any more. A crash may forget it:
    /// then the pod is released once more.
    ///
    /// # Errors
    /// [`JournalError::Transaction`]; everything stays written then.
    pub(crate) async fn clear(&self, pod_uid: &str) -> Result<(), JournalError> {
        let pod_uid = pod_uid.to_owned();
        self.change(Change::Clear { pod_uid }).await
    }

    /// Writes down what a reference stands for. A crash may forget it.
    ///
    /// # Errors
    /// [`JournalError::Transaction`].
    pub(crate) async fn remember_reference(
        &self,
        reference: &str,
        digest: &str,
    ) -> Result<(), JournalError> {
        let (reference, digest) = (reference.to_owned(), digest.to_owned());
        self.change(Change::Reference { reference, digest }).await
    }

    async fn change(&self, change: Change) -> Result<(), JournalError> {
        let (done, written) = oneshot::channel();
        let job = Job { change, done };
        let ended = || JournalError::Thread("its thread has ended".to_owned());
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        jobs.send(job).map_err(|_| ended())?;
        written.await.map_err(|_| ended())?
    }

    /// Everything held, in order of the pods' uids.
    ///
    /// # Errors
    /// [`JournalError::Transaction`].
    pub(crate) fn held(&self) -> Result<Vec<HeldItem>, JournalError> {
        self.read(None)
    }

    /// Everything held for one pod.
    ///
    /// # Errors
    /// [`JournalError::Transaction`].
    pub(crate) fn held_for(&self, pod_uid: &str) -> Result<Vec<HeldItem>, JournalError> {
        self.read(Some(pod_uid))
    }

    /// What references stood for: (reference, digest).
    ///
    /// # Errors
    /// [`JournalError::Transaction`].
    pub(crate) fn references(&self) -> Result<Vec<(String, String)>, JournalError> {
        let read = || -> Result<Vec<(String, String)>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(REFERENCES)?;
            let mut found = Vec::new();
            for entry in table.iter()? {
                let (reference, digest) = entry?;
                found.push((reference.value().to_owned(), digest.value().to_owned()));
            }
            Ok(found)
        };
        read().map_err(|error| failure(&self.failed, &error))
    }

    /// Resolves with the reason when a transaction has failed. Then all that follow
    /// fail too (redb trusts its file no more), and only a new start helps.
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        let reason = match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    fn read(&self, only: Option<&str>) -> Result<Vec<HeldItem>, JournalError> {
        let read = || -> Result<Vec<HeldItem>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(HELD)?;
            let mut held = Vec::new();
            for entry in table.range((only.unwrap_or(""), "", "")..)? {
                let (key, generation) = entry?;
                let (pod_uid, kind, name) = key.value();
                if only.is_some_and(|only| only != pod_uid) {
                    break;
                }
                held.push(HeldItem {
                    pod_uid: pod_uid.to_owned(),
                    generation: generation.value(),
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                });
            }
            Ok(held)
        };
        read().map_err(|error| failure(&self.failed, &error))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // The thread ends with the last sender, and with it the file is closed.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn failure(failed: &watch::Sender<Option<String>>, error: &redb::Error) -> JournalError {
    let error = JournalError::Transaction(error.to_string());
    failed.send_replace(Some(error.to_string()));
    error
}

/// Writes until the last sender of jobs is gone.
fn write_all(
    database: &Database,
    jobs: &mpsc::Receiver<Job>,
    failed: &watch::Sender<Option<String>>,
) {
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        let (changes, waiting): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|job| (job.change, job.done)).unzip();
        let written = write(database, &changes).map_err(|error| failure(failed, &error));
        for done in waiting {
            // Whoever asked may have gone.
            let _ = done.send(written.clone());
        }
    }
}

/// One transaction; synced where one of the changes may not be lost.
fn write(database: &Database, changes: &[Change]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    if !changes.is_empty() && !changes.iter().any(Change::is_durable) {
        transaction
            .set_durability(Durability::None)
            .map_err(|e| redb::Error::Io(std::io::Error::other(e.to_string())))?;
    }
    {
        let mut held = transaction.open_table(HELD)?;
        let mut references = transaction.open_table(REFERENCES)?;
        for change in changes {
            match change {
                Change::Take {
                    pod_uid,
                    generation,
                    items,
                } => {
                    for (kind, name) in items {
                        held.insert((pod_uid.as_str(), *kind, name.as_str()), generation)?;
                    }
                }
                Change::Clear { pod_uid } => {
                    let mut keys = Vec::new();
                    for entry in held.range((pod_uid.as_str(), "", "")..)? {
                        let (uid, kind, name) = {
                            let (key, _) = entry?;
                            let (uid, kind, name) = key.value();
                            (uid == pod_uid, kind.to_owned(), name.to_owned())
                        };
                        if !uid {
                            break;
                        }
                        keys.push((kind, name));
                    }
                    for (kind, name) in keys {
                        held.remove((pod_uid.as_str(), kind.as_str(), name.as_str()))?;
                    }
                }
                Change::Reference { reference, digest } => {
                    references.insert(reference.as_str(), digest.as_str())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(journal: &Journal) -> Vec<String> {
        let held = journal.held().unwrap();
        held.iter()
            .map(|h| format!("{}@{}/{}/{}", h.pod_uid, h.generation, h.kind, h.name))
            .collect()
    }

    #[tokio::test]
    async fn what_was_taken_is_still_held_after_a_restart_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.redb");
        {
            let journal = Journal::open(&path).unwrap();
            let items = vec![("eni", "eth0".into()), ("sandbox", "a".into())];
            journal.take("a", 7, items).await.unwrap();
            let items = vec![("eni", "eth0".into())];
            journal.take("ab", 1, items).await.unwrap();
        }
        let journal = Journal::open(&path).unwrap();
        assert_eq!(
            names(&journal),
            ["a@7/eni/eth0", "a@7/sandbox/a", "ab@1/eni/eth0"]
        );
        assert_eq!(journal.held_for("a").unwrap().len(), 2);
        assert_eq!(journal.held_for("aa").unwrap(), []);
        journal.clear("a").await.unwrap();
        assert_eq!(names(&journal), ["ab@1/eni/eth0"]);
        journal.clear("unknown").await.unwrap();
    }

    #[tokio::test]
    async fn what_a_reference_stands_for_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.redb");
        {
            let journal = Journal::open(&path).unwrap();
            for digest in ["sha256:1", "sha256:2"] {
                journal.remember_reference("a:1", digest).await.unwrap();
            }
            // What comes with a sync takes with it what came before.
            journal.take("a", 1, Vec::new()).await.unwrap();
        }
        let journal = Journal::open(&path).unwrap();
        let wanted = [("a:1".to_owned(), "sha256:2".to_owned())];
        assert_eq!(journal.references().unwrap(), wanted);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_pods_at_once_all_find_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(&dir.path().join("journal.redb")).unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..500_u32 {
            let journal = journal.clone();
            tasks.spawn(async move {
                let uid = format!("pod-{n}");
                let items = vec![("eni", uid.clone()), ("sandbox", uid.clone())];
                journal.take(&uid, 1, items).await.unwrap();
                if n % 2 == 0 {
                    journal.clear(&uid).await.unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert_eq!(journal.held().unwrap().len(), 500);
        assert_eq!(journal.held_for("pod-2").unwrap(), []);
        assert_eq!(journal.held_for("pod-3").unwrap().len(), 2);
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
