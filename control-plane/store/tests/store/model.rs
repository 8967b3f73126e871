//! A plain map with a list of changes: what a store must read as.

use std::collections::{BTreeMap, BTreeSet};

use longship_store::{Change, Event, Expect, Object, Op, Transaction};

type Place = (String, String);

/// What the store must hold.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) objects: BTreeMap<Place, (u64, Vec<u8>)>,
    pub(crate) log: Vec<(u64, Vec<Event>)>,
    pub(crate) version: u64,
}

/// What a transaction must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Written,
    Conflict,
    Empty,
}

pub(crate) fn place(op: &Op) -> Place {
    let (Op::Put { kind, key, .. } | Op::Delete { kind, key, .. }) = op;
    (kind.clone(), key.clone())
}

impl Model {
    /// What the transaction must answer now.
    pub(crate) fn answer(&self, transaction: &Transaction) -> Answer {
        let mut places = BTreeSet::new();
        if transaction.ops.is_empty() || !transaction.ops.iter().all(|op| places.insert(place(op)))
        {
            return Answer::Empty;
        }
        let holds = |op: &Op| {
            let (Op::Put { expect, .. } | Op::Delete { expect, .. }) = op;
            let found = self.objects.get(&place(op)).map(|(version, _)| *version);
            match expect {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::Version(version) => found == Some(*version),
            }
        };
        match transaction.ops.iter().all(holds) {
            true => Answer::Written,
            false => Answer::Conflict,
        }
    }

    /// Applies a transaction that got a version; whether it changed anything.
    pub(crate) fn apply(&mut self, transaction: &Transaction, version: u64) -> bool {
        let mut events = Vec::new();
        for op in &transaction.ops {
            let (kind, key) = place(op);
            let at = (kind.clone(), key.clone());
            let (change, value) = match op {
                Op::Put { value, .. } => {
                    let before = self.objects.insert(at, (version, value.clone()));
                    let change = match before {
                        Some(_) => Change::Updated,
                        None => Change::Created,
                    };
                    (change, value.clone())
                }
                Op::Delete { .. } => match self.objects.remove(&at) {
                    Some((_, value)) => (Change::Deleted, value),
                    None => continue,
                },
            };
            let object = Object {
                kind,
                key,
                value,
                version,
            };
            events.push(Event { change, object });
        }
        let changed = !events.is_empty();
        if changed {
            self.log.push((version, events));
        }
        self.version = self.version.max(version);
        changed
    }

    /// What a watch of `kind` from `after` must tell.
    pub(crate) fn since(&self, kind: &str, after: u64) -> Vec<Event> {
        let later = self.log.iter().filter(|(version, _)| *version > after);
        let events = later.flat_map(|(_, events)| events);
        events.filter(|e| e.object.kind == kind).cloned().collect()
    }
}
