//! The embedded store does what a plain map with a list of changes would do,
//! through any number of restarts.
#![allow(clippy::unwrap_used)] // the helpers are tests too

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use longship_store::{
    Change, Event, Expect, Object, Op, RedbOptions, RedbStore, Store, StoreError, Transaction,
};
use proptest::prelude::*;

const SMALL: RedbOptions = RedbOptions {
    log_transactions: 20,
    log_bytes: 400,
};

/// What a step expects is relative to the model, so that many expectations hold.
#[derive(Debug, Clone, Copy)]
enum Hope {
    Any,
    Absent,
    Current,
    Stale,
}

fn hope() -> impl Strategy<Value = Hope> {
    prop_oneof![
        3 => Just(Hope::Any),
        1 => Just(Hope::Absent),
        2 => Just(Hope::Current),
        1 => Just(Hope::Stale),
    ]
}

type Draft = Vec<(u8, u8, Option<u8>, Hope)>;

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<Draft>),
    Reopen,
    /// A watch of one kind is read to its end, then left.
    Follow,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let op = (
        0_u8..2,
        0_u8..6,
        prop::option::weighted(0.7, 0_u8..40),
        hope(),
    );
    let transaction = prop::collection::vec(op, 0..4);
    let step = prop_oneof![
        8 => prop::collection::vec(transaction, 1..4).prop_map(Step::Commit),
        1 => Just(Step::Reopen),
        2 => Just(Step::Follow),
    ];
    prop::collection::vec(step, 1..40)
}

#[derive(Default)]
struct Model {
    objects: BTreeMap<(String, String), (u64, Vec<u8>)>,
    log: Vec<(u64, Vec<Event>)>,
    version: u64,
}

impl Model {
    fn commit(&mut self, transaction: &Transaction) -> Result<u64, &'static str> {
        let mut places = std::collections::BTreeSet::new();
        let place = |op: &Op| match op {
            Op::Put { kind, key, .. } | Op::Delete { kind, key, .. } => (kind.clone(), key.clone()),
        };
        if transaction.ops.is_empty() || !transaction.ops.iter().all(|op| places.insert(place(op)))
        {
            return Err("empty");
        }
        for op in &transaction.ops {
            let (Op::Put { expect, .. } | Op::Delete { expect, .. }) = op;
            let found = self.objects.get(&place(op)).map(|(version, _)| *version);
            let holds = match expect {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::Version(version) => found == Some(*version),
            };
            if !holds {
                return Err("conflict");
            }
        }
        let version = self.version + 1;
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
        if !events.is_empty() {
            self.version = version;
            self.log.push((version, events));
        }
        Ok(self.version)
    }

    /// What a watch of `kind` from `after` must tell.
    fn since(&self, kind: &str, after: u64) -> Vec<Event> {
        let later = self.log.iter().filter(|(version, _)| *version > after);
        let events = later.flat_map(|(_, events)| events);
        events.filter(|e| e.object.kind == kind).cloned().collect()
    }
}

fn transaction(model: &Model, draft: &Draft) -> Transaction {
    let mut transaction = Transaction::new();
    for (kind, key, value, hope) in draft {
        let (kind, key) = (format!("kind-{kind}"), format!("key-{key}"));
        let found = model.objects.get(&(kind.clone(), key.clone()));
        let expect = match (hope, found) {
            (Hope::Any, _) => Expect::Any,
            (Hope::Absent, _) | (Hope::Current, None) => Expect::Absent,
            (Hope::Current, Some((version, _))) => Expect::Version(*version),
            (Hope::Stale, found) => Expect::Version(found.map_or(1, |(v, _)| v.saturating_sub(1))),
        };
        transaction = match value {
            Some(value) => transaction.put(&kind, &key, vec![*value; usize::from(*value)], expect),
            None => transaction.delete(&kind, &key, expect),
        };
    }
    transaction
}

fn open(path: &Path) -> RedbStore {
    RedbStore::open(path, SMALL).unwrap()
}

fn in_temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    (dir, path)
}

type Found = ((String, String), (u64, Vec<u8>));

/// All objects of a kind, page by page.
async fn pages(
    store: &RedbStore,
    kind: &str,
    limit: usize,
    version: u64,
) -> Result<Vec<Found>, TestCaseError> {
    let mut all: Vec<Found> = Vec::new();
    loop {
        let after = all.last().map(|((_, key), _)| key.clone());
        let page = store.list_page(kind, "key-", after.as_deref(), limit).await;
        let page = page.unwrap();
        prop_assert_eq!(page.version, version);
        prop_assert!(page.objects.len() <= limit);
        prop_assert!(!page.more || page.objects.len() == limit);
        let objects = page.objects.into_iter();
        all.extend(objects.map(|o| ((o.kind, o.key), (o.version, o.value))));
        if !page.more {
            return Ok(all);
        }
    }
}

async fn check_contents(store: &RedbStore, model: &Model) -> Result<(), TestCaseError> {
    for kind in ["kind-0", "kind-1"] {
        let listing = store.list(kind, "key-").await.unwrap();
        prop_assert_eq!(listing.version, model.version);
        let found = listing.objects.into_iter();
        let found: Vec<_> = found
            .map(|o| ((o.kind, o.key), (o.version, o.value)))
            .collect();
        let wanted = model.objects.iter().filter(|((k, _), _)| k == kind);
        let wanted: Vec<_> = wanted.map(|(k, v)| (k.clone(), v.clone())).collect();
        prop_assert_eq!(&found, &wanted);
        for limit in [1, 2, 6] {
            let paged = pages(store, kind, limit, model.version).await?;
            prop_assert_eq!(&paged, &wanted);
        }
        for key in (0..6).map(|key| format!("key-{key}")) {
            let found = store.get(kind, &key).await.unwrap();
            let wanted = model.objects.get(&(kind.to_owned(), key));
            prop_assert_eq!(found.map(|o| (o.version, o.value)), wanted.cloned());
        }
    }
    Ok(())
}

/// Reads a watch until it has told all, or says that it cannot.
async fn follow(
    store: &RedbStore,
    model: &Model,
    kind: &str,
    after: u64,
) -> Result<bool, TestCaseError> {
    let wanted = model.since(kind, after);
    let mut watch = match store.watch(kind, "", after).await {
        Ok(watch) => watch,
        Err(StoreError::TooOld { oldest, .. }) => {
            prop_assert!(after < oldest && oldest <= model.version);
            // No more is forgotten than the limits ask for.
            let kept = model.log.iter().filter(|(version, _)| *version > after);
            let bytes = |(_, events): &(u64, Vec<Event>)| {
                events.iter().map(|e| e.object.value.len()).sum::<usize>()
            };
            let (count, bytes) = kept.fold((0, 0), |(n, b), one| (n + 1, b + bytes(one)));
            prop_assert!(count > SMALL.log_transactions || bytes as u64 > SMALL.log_bytes);
            return Ok(false);
        }
        Err(other) => return Err(TestCaseError::fail(other.to_string())),
    };
    let mut told = Vec::new();
    while told.len() < wanted.len() {
        told.extend(watch.next().await.unwrap());
    }
    prop_assert_eq!(told, wanted);
    let more = tokio::time::timeout(std::time::Duration::ZERO, watch.next()).await;
    prop_assert!(more.is_err(), "more than there was: {:?}", more);
    Ok(true)
}

async fn play(drafts: &[Step]) -> Result<(), TestCaseError> {
    let (_dir, path) = in_temporary();
    let mut model = Model::default();
    let mut store = open(&path);
    let mut seen = 0;
    for draft in drafts {
        match draft {
            Step::Commit(drafts) => {
                let mut ahead = Vec::new();
                let mut wanted = Vec::new();
                for draft in drafts {
                    let transaction = transaction(&model, draft);
                    wanted.push(model.commit(&transaction));
                    ahead.push(transaction);
                }
                let results = store.commit_all(ahead).await;
                let results: Vec<_> = results
                    .into_iter()
                    .map(|result| match result {
                        Ok(version) => Ok(version),
                        Err(StoreError::Conflict { .. }) => Err("conflict"),
                        Err(StoreError::Empty) => Err("empty"),
                        Err(other) => panic!("{other}"),
                    })
                    .collect();
                prop_assert_eq!(results, wanted);
            }
            Step::Reopen => {
                drop(store);
                store = open(&path);
            }
            Step::Follow => {
                follow(&store, &model, "kind-1", seen).await?;
                seen = model.version;
                let ahead = store.watch("kind-1", "", model.version + 1).await;
                prop_assert!(
                    matches!(ahead, Err(StoreError::FromTheFuture { .. })),
                    "{:?}",
                    ahead
                );
            }
        }
        check_contents(&store, &model).await?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_history_reads_as_a_plain_map_would(drafts in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(&drafts))?;
    }
}

fn put(key: &str, value: &[u8]) -> Transaction {
    Transaction::new().put("pod", key, value.to_vec(), Expect::Any)
}

#[tokio::test]
async fn a_watch_tells_everything_once_while_others_write() {
    let (_dir, path) = in_temporary();
    let store = std::sync::Arc::new(RedbStore::open(&path, RedbOptions::default()).unwrap());
    let mut watch = store.watch("pod", "", 0).await.unwrap();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..200 {
                    store
                        .commit(put(&format!("{writer}-{n}"), b"x"))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    let mut versions = Vec::new();
    while versions.len() < 800 {
        let events = watch.next().await.unwrap();
        versions.extend(events.iter().map(|event| event.object.version));
    }
    assert_eq!(versions, (1..=800).collect::<Vec<u64>>());
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_watch_that_nobody_reads_ends_and_does_not_grow() {
    let (_dir, path) = in_temporary();
    let store = open(&path);
    let mut watch = store.watch("pod", "", 0).await.unwrap();
    // More than the live events and the log hold together.
    let all = (0..600).map(|n| put(&n.to_string(), b"xx")).collect();
    for result in store.commit_all(all).await {
        result.unwrap();
    }
    let refused = watch.next().await;
    assert!(
        matches!(refused, Err(StoreError::TooOld { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_watch_ends_when_the_store_closes() {
    let (_dir, path) = in_temporary();
    let store = open(&path);
    let mut watch = store.watch("pod", "", 0).await.unwrap();
    drop(store);
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
    open(&path);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_rest_goes_on() {
    let (_dir, path) = in_temporary();
    let store = open(&path);
    let results = store
        .commit_all(vec![
            put("large", &vec![0; longship_store::MAX_VALUE_BYTES + 1]),
            put(&"k".repeat(longship_store::MAX_KEY_BYTES), b""),
            put("small", b"x"),
        ])
        .await;
    assert!(matches!(results[0], Err(StoreError::TooLarge { .. })));
    assert!(matches!(results[1], Err(StoreError::TooLarge { .. })));
    assert!(matches!(results[2], Ok(1)));
}

#[test]
fn a_file_that_is_no_store_and_one_in_use_are_told_apart() {
    let (_dir, path) = in_temporary();
    std::fs::write(&path, "this is a letter to a friend".repeat(400)).unwrap();
    let refused = RedbStore::open(&path, SMALL).unwrap_err();
    assert!(matches!(refused, StoreError::Format { .. }), "{refused:?}");
    std::fs::remove_file(&path).unwrap();

    let store = open(&path);
    let refused = RedbStore::open(&path, SMALL).unwrap_err();
    assert!(matches!(refused, StoreError::Locked(_)), "{refused:?}");
    drop(store);
    open(&path);

    let refused = RedbStore::open(Path::new("/nowhere/store.redb"), SMALL).unwrap_err();
    assert!(matches!(refused, StoreError::Backend(_)), "{refused:?}");
}
