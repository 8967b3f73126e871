//! What the card holds for its pods, written down before it is taken, so that
//! whoever comes after a crash can give it back; and what image references stood for.
//!
//! A file of lines, appended to: see [`record`]. All of it is in memory too, and only
//! read from there. One thread writes: what is asked for while it writes goes into
//! its next write together, so that a hundred pods cost hardly more syncs than one.

mod record;

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use longship_proto::Failure;
use tokio::sync::{oneshot, watch};
use tracing::warn;

use record::Record;

/// Changes written at once, at most.
const BATCH: usize = 256;
/// A file that is longer, in bytes, and mostly of no use any more is written anew.
const COMPACT_BYTES: u64 = 1 << 20;

/// Why the journal could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum JournalError {
    /// The file cannot be used: wrong place, no rights, or another card has it.
    #[error("open the journal {path}: {reason}")]
    Open {
        /// The journal's file.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// A change could not be written.
    #[error("write the journal {path}: {reason}")]
    Write {
        /// The journal's file.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// A name cannot stand in the journal.
    #[error("journal: `{0}` has a tab or a line break")]
    Name(String),
    /// The thread that writes has ended.
    #[error("journal: the thread that writes it has ended")]
    Ended,
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

/// What stands in the journal.
#[derive(Debug, Default)]
struct Contents {
    /// By pod, then by kind and name.
    held: BTreeMap<String, BTreeMap<(String, String), u64>>,
    references: HashMap<String, String>,
}

impl Contents {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Take {
                pod_uid,
                generation,
                kind,
                name,
            } => {
                let pod = self.held.entry(pod_uid).or_default();
                pod.insert((kind, name), generation);
            }
            Record::Clear { pod_uid } => {
                self.held.remove(&pod_uid);
            }
            Record::Reference { reference, digest } => {
                self.references.insert(reference, digest);
            }
        }
    }

    fn records(&self) -> impl Iterator<Item = Record> {
        let held = self.held.iter().flat_map(|(pod_uid, items)| {
            items
                .iter()
                .map(move |((kind, name), generation)| Record::Take {
                    pod_uid: pod_uid.clone(),
                    generation: *generation,
                    kind: kind.clone(),
                    name: name.clone(),
                })
        });
        let references = self.references.iter().map(|(r, d)| Record::Reference {
            reference: r.clone(),
            digest: d.clone(),
        });
        held.chain(references)
    }
}

/// The journal of one card.
#[derive(Debug)]
pub(crate) struct Journal {
    contents: Arc<Mutex<Contents>>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    failed: watch::Sender<Option<String>>,
    /// Locked as long as the journal lives.
    _lock: File,
}

#[derive(Debug)]
struct Job {
    records: Vec<Record>,
    done: oneshot::Sender<Result<(), JournalError>>,
}

impl Journal {
    /// Opens the journal at `path`, or begins it.
    ///
    /// # Errors
    /// [`JournalError::Open`] where the file is unusable or already in use.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let failed_to = |reason: io::Error| JournalError::Open {
            path: path.display().to_string(),
            reason: reason.to_string(),
        };
        let lock = File::create(path.with_extension("lock")).map_err(failed_to)?;
        lock.try_lock().map_err(|reason| JournalError::Open {
            path: path.display().to_string(),
            reason: match reason {
                std::fs::TryLockError::WouldBlock => "another card has it".to_owned(),
                std::fs::TryLockError::Error(error) => error.to_string(),
            },
        })?;
        let contents = read(path).map_err(failed_to)?;
        let file = write_anew(path, &contents).map_err(failed_to)?;
        let contents = Arc::new(Mutex::new(contents));
        let failed = watch::channel(None).0;
        let (jobs, queue) = mpsc::channel();
        let mut writer = Writer {
            path: path.to_owned(),
            bytes: file.metadata().map_err(failed_to)?.len(),
            compact: COMPACT_BYTES,
            file,
            contents: contents.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn({
                let failed = failed.clone();
                move || writer.run(&queue, &failed)
            })
            .map_err(failed_to)?;
        Ok(Self {
            contents,
            jobs: Some(jobs),
            thread: Some(thread),
            failed,
            _lock: lock,
        })
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        lock(&self.contents)
    }

    /// Writes down that `items` are about to be taken for the pod, durably, in one step.
    ///
    /// # Errors
    /// [`JournalError`]; then none of it may be taken.
    pub(crate) async fn take(
        &self,
        pod_uid: &str,
        generation: u64,
        items: Vec<Item>,
    ) -> Result<(), JournalError> {
        let records = items.into_iter().map(|(kind, name)| Record::Take {
            pod_uid: pod_uid.to_owned(),
            generation,
            kind: kind.to_owned(),
            name,
        });
        self.write(records.collect()).await
    }

    /// Writes down that nothing is held for the pod any more. A crash may forget it:
    /// then the pod is released once more.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(crate) async fn clear(&self, pod_uid: &str) -> Result<(), JournalError> {
        let pod_uid = pod_uid.to_owned();
        self.write(vec![Record::Clear { pod_uid }]).await
    }

    /// Writes down what a reference stands for. A crash may forget it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(crate) async fn remember_reference(
        &self,
        reference: &str,
        digest: &str,
    ) -> Result<(), JournalError> {
        let (reference, digest) = (reference.to_owned(), digest.to_owned());
        self.write(vec![Record::Reference { reference, digest }])
            .await
    }

    async fn write(&self, records: Vec<Record>) -> Result<(), JournalError> {
        if let Some(name) = records.iter().find_map(Record::illegal) {
            return Err(JournalError::Name(name.to_owned()));
        }
        let (done, written) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(JournalError::Ended)?;
        jobs.send(Job { records, done })
            .map_err(|_| JournalError::Ended)?;
        written.await.map_err(|_| JournalError::Ended)?
    }

    /// Everything held, in order of the pods' uids.
    pub(crate) fn held(&self) -> Vec<HeldItem> {
        let contents = self.contents();
        let pods = contents.held.iter();
        pods.flat_map(|(uid, items)| of_pod(uid, items)).collect()
    }

    /// Everything held for one pod.
    pub(crate) fn held_for(&self, pod_uid: &str) -> Vec<HeldItem> {
        let contents = self.contents();
        let items = contents.held.get(pod_uid);
        items.map_or_else(Vec::new, |items| of_pod(pod_uid, items).collect())
    }

    /// What references stood for: (reference, digest).
    pub(crate) fn references(&self) -> HashMap<String, String> {
        self.contents().references.clone()
    }

    /// Resolves with the reason when a write has failed. Then all that follow fail
    /// too (the file's end is not known any more), and only a new start helps.
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
}

impl Drop for Journal {
    fn drop(&mut self) {
        // The thread ends with the last sender.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn of_pod<'a>(
    pod_uid: &'a str,
    items: &'a BTreeMap<(String, String), u64>,
) -> impl Iterator<Item = HeldItem> + 'a {
    items
        .iter()
        .map(move |((kind, name), generation)| HeldItem {
            pod_uid: pod_uid.to_owned(),
            generation: *generation,
            kind: kind.clone(),
            name: name.clone(),
        })
}

/// A poisoned lock only says that another thread panicked between two complete
/// states; what it guards is still usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file at the end of what is written.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// The length from which on it is looked at whether the file is to be written anew.
    compact: u64,
    contents: Arc<Mutex<Contents>>,
}

impl Writer {
    /// Writes until the last sender of jobs is gone.
    fn run(&mut self, jobs: &mpsc::Receiver<Job>, failed: &watch::Sender<Option<String>>) {
        let mut broken: Option<JournalError> = None;
        while let Ok(first) = jobs.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = jobs.try_recv()
            {
                batch.push(next);
            }
            let (records, waiting): (Vec<Vec<Record>>, Vec<_>) =
                batch.into_iter().map(|job| (job.records, job.done)).unzip();
            let written = match &broken {
                Some(error) => Err(error.clone()),
                None => self
                    .append(records.into_iter().flatten().collect())
                    .map_err(|reason| JournalError::Write {
                        path: self.path.display().to_string(),
                        reason: reason.to_string(),
                    }),
            };
            if let Err(error) = &written
                && broken.is_none()
            {
                failed.send_replace(Some(error.to_string()));
                broken = Some(error.clone());
            }
            for done in waiting {
                // Whoever asked may have gone.
                let _ = done.send(written.clone());
            }
        }
    }

    /// Synced where one of the records may not be lost.
    fn append(&mut self, records: Vec<Record>) -> io::Result<()> {
        let text: String = records.iter().map(Record::line).collect();
        self.file.write_all(text.as_bytes())?;
        if records.iter().any(Record::is_durable) {
            self.file.sync_data()?;
        }
        self.bytes = self.bytes.saturating_add(text.len() as u64);
        let mut contents = lock(&self.contents);
        records.into_iter().for_each(|r| contents.apply(r));
        if self.bytes > self.compact {
            self.file = write_anew(&self.path, &contents)?;
            self.bytes = self.file.metadata()?.len();
            self.compact = self.bytes.saturating_mul(4).max(COMPACT_BYTES);
        }
        Ok(())
    }
}

/// What stands in the file at `path`; nothing where there is none. What a crash cut
/// off at its end was never answered, and is passed over.
fn read(path: &Path) -> io::Result<Contents> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let mut contents = Contents::default();
    for (at, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(record) = Record::parse(line) else {
            let line = at + 1;
            warn!(path = %path.display(), line, "the journal ends at a record that is not whole");
            break;
        };
        contents.apply(record);
    }
    Ok(contents)
}

/// Puts a file with `contents` alone in the place of what is at `path`, or leaves
/// that as it is; the file, to be appended to.
fn write_anew(path: &Path, contents: &Contents) -> io::Result<File> {
    let partial = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&partial)?;
    let text: String = contents.records().map(|r| r.line()).collect();
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests;
