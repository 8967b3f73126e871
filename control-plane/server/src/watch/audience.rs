//! Who is to hear of which pods: a change costs as much as those who asked for it,
//! however many others watch.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longship_scheduler::Selector;
use tokio::sync::Notify;

use super::change::Change;
use crate::pods::namespace_of;

/// Which pods are listed or watched, before their labels are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodSet {
    /// That one: `NAMESPACE/NAME`.
    Pod(String),
    /// Those of the namespace.
    Namespace(String),
    /// Those of the tenant, and where their keys begin, in order.
    Tenant { name: String, prefixes: Vec<String> },
    /// Everybody's.
    All,
}

impl PodSet {
    /// The pods of a tenant with these namespaces.
    pub(crate) fn tenant(name: &str, namespaces: &BTreeSet<String>) -> Self {
        let prefixes = namespaces.iter().map(|namespace| format!("{namespace}/"));
        let mut prefixes: Vec<String> = prefixes.collect();
        // With their slashes they sort as keys do.
        prefixes.sort_unstable();
        Self::Tenant {
            name: name.to_owned(),
            prefixes,
        }
    }

    /// Where the keys of its pods begin, in order.
    pub(crate) fn prefixes(&self) -> Vec<String> {
        match self {
            Self::Pod(key) => vec![key.clone()],
            Self::Namespace(namespace) => vec![format!("{namespace}/")],
            Self::Tenant { prefixes, .. } => prefixes.clone(),
            Self::All => vec![String::new()],
        }
    }

    /// Whether it has the pod of that key and tenant.
    pub(crate) fn has_key(&self, key: &str, tenant: &str) -> bool {
        match self {
            Self::Pod(only) => only == key,
            Self::Namespace(namespace) => namespace == namespace_of(key),
            Self::Tenant { name, .. } => name == tenant,
            Self::All => true,
        }
    }

    /// Whether the change is of one of its pods.
    pub(crate) fn has(&self, change: &Change) -> bool {
        self.has_key(&change.key, &change.tenant)
    }
}

/// Nothing has been heard.
const NOTHING: u64 = u64::MAX;

/// One watcher, as far as others know it.
#[derive(Debug)]
pub(crate) struct Ear {
    /// Number of the first change that has been heard of and not been looked at.
    first: AtomicU64,
    heard: Notify,
}

impl Ear {
    fn hear(&self, number: u64) {
        self.first.fetch_min(number, Ordering::AcqRel);
        self.heard.notify_one();
    }

    /// Waits until there is something: the number of the first change to look at.
    pub(crate) async fn next(&self) -> u64 {
        loop {
            match self.first.swap(NOTHING, Ordering::AcqRel) {
                NOTHING => self.heard.notified().await,
                number => return number,
            }
        }
    }
}

/// All watchers.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    ears: Arc<Mutex<Ears>>,
}

#[derive(Debug, Default)]
struct Ears {
    next_id: u64,
    pods: HashMap<String, Group>,
    namespaces: HashMap<String, Group>,
    tenants: HashMap<String, Group>,
    all: Group,
}

/// Watchers of one set, by the label that their selectors ask for.
#[derive(Debug, Default)]
struct Group {
    open: HashMap<u64, Arc<Ear>>,
    labelled: HashMap<String, HashMap<String, HashMap<u64, Arc<Ear>>>>,
}

/// A place in the audience; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    ears: Arc<Mutex<Ears>>,
    id: u64,
    set: PodSet,
    label: Option<(String, String)>,
    pub(crate) ear: Arc<Ear>,
}

fn lock(ears: &Mutex<Ears>) -> MutexGuard<'_, Ears> {
    ears.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Audience {
    /// Begins to listen.
    pub(crate) fn join(&self, set: PodSet, selector: &Selector) -> Seat {
        let ear = Arc::new(Ear {
            first: AtomicU64::new(NOTHING),
            heard: Notify::new(),
        });
        let label = selector.labels.first_key_value();
        let label = label.map(|(key, value)| (key.clone(), value.clone()));
        let mut ears = lock(&self.ears);
        ears.next_id += 1;
        let id = ears.next_id;
        let group = ears.group(&set);
        let place = match &label {
            None => &mut group.open,
            Some((key, value)) => {
                let values = group.labelled.entry(key.clone()).or_default();
                values.entry(value.clone()).or_default()
            }
        };
        place.insert(id, Arc::clone(&ear));
        drop(ears);
        Seat {
            ears: Arc::clone(&self.ears),
            id,
            set,
            label,
            ear,
        }
    }

    /// Tells those who are concerned.
    pub(crate) fn tell(&self, number: u64, change: &Change) {
        let ears = lock(&self.ears);
        for group in [
            ears.pods.get(&change.key),
            ears.namespaces.get(change.namespace()),
            ears.tenants.get(&change.tenant),
            Some(&ears.all),
        ]
        .into_iter()
        .flatten()
        {
            group.tell(number, change);
        }
    }

    /// Tells everybody: something has been missed.
    pub(crate) fn tell_all(&self, number: u64) {
        let ears = lock(&self.ears);
        let named = [&ears.pods, &ears.namespaces, &ears.tenants];
        let groups = named.into_iter().flat_map(HashMap::values);
        for group in groups.chain([&ears.all]) {
            let labelled = group.labelled.values().flat_map(HashMap::values);
            let labelled = labelled.flat_map(HashMap::values);
            labelled
                .chain(group.open.values())
                .for_each(|ear| ear.hear(number));
        }
    }
}

impl Ears {
    fn group(&mut self, set: &PodSet) -> &mut Group {
        match set {
            PodSet::Pod(key) => self.pods.entry(key.clone()).or_default(),
            PodSet::Namespace(name) => self.namespaces.entry(name.clone()).or_default(),
            PodSet::Tenant { name, .. } => self.tenants.entry(name.clone()).or_default(),
            PodSet::All => &mut self.all,
        }
    }
}

impl Group {
    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.labelled.is_empty()
    }

    fn tell(&self, number: u64, change: &Change) {
        self.open.values().for_each(|ear| ear.hear(number));
        if self.labelled.is_empty() {
            return;
        }
        for (key, value) in change.labels.iter().chain(change.former.iter().flatten()) {
            let ears = self.labelled.get(key).and_then(|values| values.get(value));
            ears.into_iter()
                .flat_map(HashMap::values)
                .for_each(|ear| ear.hear(number));
        }
    }

    fn leave(&mut self, id: u64, label: Option<&(String, String)>) {
        let Some((key, value)) = label else {
            self.open.remove(&id);
            return;
        };
        if let Some(values) = self.labelled.get_mut(key) {
            if let Some(ears) = values.get_mut(value) {
                ears.remove(&id);
                if ears.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.labelled.remove(key);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut ears = lock(&self.ears);
        let group = ears.group(&self.set);
        group.leave(self.id, self.label.as_ref());
        if group.is_empty() {
            match &self.set {
                PodSet::Pod(name) => drop(ears.pods.remove(name)),
                PodSet::Namespace(name) => drop(ears.namespaces.remove(name)),
                PodSet::Tenant { name, .. } => drop(ears.tenants.remove(name)),
                PodSet::All => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use longship_proto::control::v1::{ObjectMeta, Pod};
    use longship_store::{Change as Kind, Event, Object};
    use prost::Message;

    use super::*;
    use crate::validate::selector;

    fn change(key: &str, labels: &[(&str, &str)]) -> Change {
        let pod = Pod {
            metadata: Some(ObjectMeta {
                tenant: "red".into(),
                labels: labels
                    .iter()
                    .map(|(k, v)| ((*k).into(), (*v).into()))
                    .collect(),
                ..ObjectMeta::default()
            }),
            ..Pod::default()
        };
        let event = Event {
            change: Kind::Updated,
            object: Object {
                kind: "pod".into(),
                key: key.into(),
                value: pod.encode_to_vec(),
                version: 1,
            },
        };
        Change::of_all(&[event]).unwrap().remove(0)
    }

    fn heard(seat: &Seat) -> bool {
        seat.ear.first.swap(NOTHING, Ordering::AcqRel) != NOTHING
    }

    #[test]
    fn only_those_are_told_whom_it_concerns_and_nothing_of_them_stays() {
        let audience = Audience::default();
        let web = selector("s", "app=web").unwrap();
        let any = Selector::default();
        let join = |set, selector| audience.join(set, selector);
        let seats = [
            join(PodSet::All, &any),
            join(PodSet::tenant("red", &BTreeSet::new()), &any),
            join(PodSet::tenant("blue", &BTreeSet::new()), &any),
            join(PodSet::Namespace("a".into()), &any),
            join(PodSet::Namespace("b".into()), &any),
            join(PodSet::Pod("a/x".into()), &any),
            join(PodSet::Pod("a/y".into()), &any),
            join(PodSet::All, &web),
            join(PodSet::Namespace("a".into()), &web),
        ];
        let told = |change: &Change| {
            audience.tell(7, change);
            seats.iter().map(heard).collect::<Vec<_>>()
        };
        let (o, x) = (false, true);
        assert_eq!(told(&change("a/x", &[])), [x, x, o, x, o, x, o, o, o]);
        assert_eq!(
            told(&change("a/y", &[("app", "web")])),
            [x, x, o, x, o, o, x, x, x]
        );
        assert_eq!(
            told(&change("b/y", &[("app", "db")])),
            [x, x, o, o, x, o, o, o, o]
        );
        let mut left = change("a/z", &[("app", "db")]);
        left.former = Some([("app".to_owned(), "web".to_owned())].into());
        assert_eq!(told(&left), [x, x, o, x, o, o, o, x, x]);
        drop(seats);
        let ears = lock(&audience.ears);
        let named = [&ears.pods, &ears.namespaces, &ears.tenants];
        assert!(named.into_iter().all(HashMap::is_empty) && ears.all.is_empty());
    }
}
