//! Objects, and what can be done to them.

use crate::error::StoreError;

/// The longest kind and key together, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// The most objects in a page.
pub const MAX_PAGE: usize = 10_000;

/// Bytes under a kind and a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is, e.g. `pod`. Has no slash.
    pub kind: String,
    /// Unique among its kind.
    pub key: String,
    /// The store does not look into it.
    pub value: Vec<u8>,
    /// Version of the transaction that wrote it.
    pub version: u64,
}

/// What a transaction insists on before it changes an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The object does not exist.
    Absent,
    /// The object exists in exactly this version.
    Version(u64),
}

/// One change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes it, whether or not it exists.
    Put {
        /// Kind of the object.
        kind: String,
        /// Its key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
        /// What must hold.
        expect: Expect,
    },
    /// Removes it; nothing happens where it does not exist.
    Delete {
        /// Kind of the object.
        kind: String,
        /// Its key.
        key: String,
        /// What must hold.
        expect: Expect,
    },
}

impl Op {
    pub(crate) fn place(&self) -> (&str, &str) {
        match self {
            Self::Put { kind, key, .. } | Self::Delete { kind, key, .. } => (kind, key),
        }
    }

    /// Why the expectation does not hold, where an object was found in that version
    /// (0: none was).
    pub(crate) fn conflict(&self, found: u64) -> Option<StoreError> {
        let holds = match self.expect() {
            Expect::Any => true,
            Expect::Absent => found == 0,
            Expect::Version(wanted) => wanted != 0 && found == wanted,
        };
        if holds {
            return None;
        }
        let (kind, key) = self.place();
        Some(StoreError::Conflict {
            kind: kind.to_owned(),
            key: key.to_owned(),
            found: match found {
                0 => "it does not exist".to_owned(),
                version => format!("it exists in version {version}"),
            },
        })
    }

    pub(crate) fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } => *expect,
        }
    }
}

/// Changes that happen together or not at all. Each object at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The changes.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// Without changes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, kind: &str, key: &str, value: Vec<u8>, expect: Expect) -> Self {
        self.ops.push(Op::Put {
            kind: kind.to_owned(),
            key: key.to_owned(),
            value,
            expect,
        });
        self
    }

    /// Adds a removal.
    #[must_use]
    pub fn delete(mut self, kind: &str, key: &str, expect: Expect) -> Self {
        self.ops.push(Op::Delete {
            kind: kind.to_owned(),
            key: key.to_owned(),
            expect,
        });
        self
    }

    /// Checks what can be checked without the store.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let mut seen = std::collections::HashSet::new();
        if self.ops.is_empty() || !self.ops.iter().all(|op| seen.insert(op.place())) {
            return Err(StoreError::Empty);
        }
        for op in &self.ops {
            let (kind, key) = op.place();
            if kind.is_empty() || kind.contains('/') {
                return Err(StoreError::Kind(kind.chars().take(64).collect()));
            }
            let too_large = |bytes| StoreError::TooLarge {
                kind: kind.chars().take(64).collect(),
                key: key.chars().take(64).collect(),
                bytes,
            };
            let place = kind.len().saturating_add(key.len());
            if place > MAX_KEY_BYTES {
                return Err(too_large(place));
            }
            if let Op::Put { value, .. } = op
                && value.len() > MAX_VALUE_BYTES
            {
                return Err(too_large(value.len()));
            }
        }
        Ok(())
    }
}

/// How an object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Created,
    /// It was there in another version.
    Updated,
    /// It is gone; the event has its last value.
    Deleted,
}

/// One object's change, as a watch tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// How it changed.
    pub change: Change,
    /// The object after the change (before it, where it was deleted), with the
    /// version of the change.
    pub object: Object,
}

/// Objects as they were at one version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// By key.
    pub objects: Vec<Object>,
    /// Watch from here to miss nothing.
    pub version: u64,
}

/// Some of the objects of a kind, one after the other, as they were at one version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// By key.
    pub objects: Vec<Object>,
    /// The store's version when the page was read. Each page has its own: whoever
    /// wants what the pages miss watches from the version of the first.
    pub version: u64,
    /// Objects follow: ask for those after the last key of this page.
    pub more: bool,
}
