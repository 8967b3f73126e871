//! The latest changes, held once for all watchers.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::change::Change;

/// Changes of a sequence, numbered from 0 without gaps; the oldest are forgotten.
/// However many watchers there are and however slowly they read, no more is held.
#[derive(Debug)]
pub(crate) struct Recent {
    most: usize,
    most_bytes: usize,
    held: RwLock<Held>,
}

#[derive(Debug)]
struct Held {
    /// Number of the first that is held.
    first: u64,
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Every change after this version is held, up to `newest`.
    after: u64,
    newest: u64,
}

impl Recent {
    /// Without changes: the next is the first after `version`.
    pub(crate) fn new(version: u64, most: usize, most_bytes: usize) -> Self {
        Self {
            most: most.max(1),
            most_bytes,
            held: RwLock::new(Held {
                first: 0,
                changes: VecDeque::new(),
                bytes: 0,
                after: version,
                newest: version,
            }),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version up to which everything is held, or has been.
    pub(crate) fn newest(&self) -> u64 {
        self.read().newest
    }

    /// Adds the changes of one version; the number of the first.
    pub(crate) fn push(&self, changes: &[Arc<Change>]) -> u64 {
        let mut held = self.write();
        let number = held.end();
        for change in changes {
            held.bytes += change.cost();
            held.newest = change.version;
            held.changes.push_back(Arc::clone(change));
        }
        while held.changes.len() > self.most || held.bytes > self.most_bytes {
            held.forget_first();
        }
        number
    }

    /// Forgets everything: changes up to `version` have been missed.
    pub(crate) fn restart(&self, version: u64) {
        let mut held = self.write();
        while !held.changes.is_empty() {
            held.forget_first();
        }
        // A number that nobody heard: whoever waits for less has missed something.
        held.first += 1;
        (held.after, held.newest) = (version, version);
    }

    /// The number of the first change after a version; `None` where it is forgotten.
    pub(crate) fn number_after(&self, version: u64) -> Option<u64> {
        let held = self.read();
        if version < held.after {
            return None;
        }
        let at = held.changes.partition_point(|one| one.version <= version);
        u64::try_from(at).ok().map(|at| held.first + at)
    }

    /// Some changes from a number on; `None` where the first of them is forgotten.
    pub(crate) fn from(&self, number: u64, most: usize) -> Option<Part> {
        let held = self.read();
        let skip = usize::try_from(number.checked_sub(held.first)?).ok()?;
        // Not from the beginning: the queue may be long, and the rest of it short.
        let changes: Vec<_> = held
            .changes
            .range(skip.min(held.changes.len())..)
            .take(most)
            .cloned()
            .collect();
        let next = number.saturating_add(u64::try_from(changes.len()).ok()?);
        let newest = (next >= held.end()).then_some(held.newest);
        Some(Part {
            changes,
            next,
            newest,
        })
    }
}

/// Some of the changes that are held.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) changes: Vec<Arc<Change>>,
    /// The number of what comes next.
    pub(crate) next: u64,
    /// Nothing more is held: everything up to this version has been told then.
    pub(crate) newest: Option<u64>,
}

impl Held {
    fn end(&self) -> u64 {
        self.first
            .saturating_add(u64::try_from(self.changes.len()).unwrap_or(u64::MAX))
    }

    fn forget_first(&mut self) {
        if let Some(gone) = self.changes.pop_front() {
            self.first += 1;
            self.bytes -= gone.cost();
            self.after = gone.version;
        }
    }
}
