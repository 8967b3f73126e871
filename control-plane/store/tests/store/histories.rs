//! Any history reads as a plain map with a list of changes would, through any number
//! of restarts.

use std::collections::BTreeSet;
use std::time::Duration;

use longship_store::{Expect, RedbOptions, Store, StoreError, Transaction};
use proptest::prelude::*;

use crate::backend::{Backend, PATIENCE};
use crate::model::{Answer, Model, place};

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

/// A transaction relative to what was there before its batch; `written` says what the
/// batch has written so far, in versions that nobody knows yet.
fn transaction(model: &Model, written: &Model, draft: &Draft) -> Transaction {
    let mut transaction = Transaction::new();
    for (kind, key, value, hope) in draft {
        let (kind, key) = (format!("kind-{kind}"), format!("key-{key}"));
        let at = (kind.clone(), key.clone());
        let known = model.objects.get(&at).map(|(version, _)| *version);
        let now = written.objects.get(&at).map(|(version, _)| *version);
        let expect = match (hope, now) {
            (Hope::Any, _) => Expect::Any,
            (Hope::Absent, _) | (Hope::Current, None) => Expect::Absent,
            (Hope::Current, now) if now == known => Expect::Version(now.unwrap()),
            (Hope::Current, Some(_)) => Expect::Any,
            (Hope::Stale, now) if now == known => {
                Expect::Version(now.map_or(1, |version| version.saturating_sub(1)))
            }
            // What it was before the batch.
            (Hope::Stale, _) => Expect::Version(known.unwrap_or(0)),
        };
        transaction = match value {
            Some(value) => transaction.put(&kind, &key, vec![*value; usize::from(*value)], expect),
            None => transaction.delete(&kind, &key, expect),
        };
    }
    transaction
}

type Found = ((String, String), (u64, Vec<u8>));

/// All objects of a kind, page by page.
async fn pages(store: &dyn Store, kind: &str, limit: usize) -> Result<Vec<Found>, TestCaseError> {
    let mut all: Vec<Found> = Vec::new();
    loop {
        let after = all.last().map(|((_, key), _)| key.clone());
        let page = store.list_page(kind, "key-", after.as_deref(), limit).await;
        let page = page.unwrap();
        prop_assert!(page.objects.len() <= limit);
        prop_assert!(!page.more || page.objects.len() == limit);
        let objects = page.objects.into_iter();
        all.extend(objects.map(|o| ((o.kind, o.key), (o.version, o.value))));
        if !page.more {
            return Ok(all);
        }
    }
}

async fn check_contents(
    backend: &Backend,
    store: &dyn Store,
    model: &Model,
) -> Result<(), TestCaseError> {
    for kind in ["kind-0", "kind-1"] {
        let listing = store.list(kind, "key-").await.unwrap();
        if backend.is_etcd() {
            // Its revisions count other things too.
            prop_assert!(listing.version >= model.version);
        } else {
            prop_assert_eq!(listing.version, model.version);
        }
        let found = listing.objects.into_iter();
        let found: Vec<_> = found
            .map(|o| ((o.kind, o.key), (o.version, o.value)))
            .collect();
        let wanted = model.objects.iter().filter(|((k, _), _)| k == kind);
        let wanted: Vec<_> = wanted.map(|(k, v)| (k.clone(), v.clone())).collect();
        prop_assert_eq!(&found, &wanted);
        for limit in [1, 2, 6] {
            prop_assert_eq!(&pages(store, kind, limit).await?, &wanted);
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
    store: &dyn Store,
    model: &Model,
    kind: &str,
    after: u64,
) -> Result<(), TestCaseError> {
    let wanted = model.since(kind, after);
    let too_old = |oldest: u64| {
        prop_assert!(after < oldest && oldest <= model.version);
        // No more is forgotten than the limits ask for.
        let kept = model.log.iter().filter(|(version, _)| *version > after);
        let bytes = |events: &Vec<longship_store::Event>| {
            events.iter().map(|e| e.object.value.len()).sum::<usize>()
        };
        let (count, bytes) = kept.fold((0, 0), |(n, b), (_, one)| (n + 1, b + bytes(one)));
        prop_assert!(count > SMALL.log_transactions || bytes as u64 > SMALL.log_bytes);
        Ok(())
    };
    let mut watch = match store.watch(kind, "", after).await {
        Ok(watch) => watch,
        Err(StoreError::TooOld { oldest, .. }) => return too_old(oldest),
        Err(other) => return Err(TestCaseError::fail(other.to_string())),
    };
    let mut told = Vec::new();
    while told.len() < wanted.len() {
        match tokio::time::timeout(PATIENCE, watch.next()).await {
            Ok(Ok(events)) => told.extend(events),
            // In etcd, a change that was heard of since may have been too much.
            Ok(Err(StoreError::TooOld { oldest, .. })) => return too_old(oldest),
            other => return Err(TestCaseError::fail(format!("{other:?}, not {wanted:?}"))),
        }
    }
    prop_assert_eq!(told, wanted);
    let more = tokio::time::timeout(Duration::ZERO, watch.next()).await;
    prop_assert!(more.is_err(), "more than there was: {:?}", more);
    Ok(())
}

/// Writes a batch, and checks each answer.
async fn commit(
    store: &dyn Store,
    model: &mut Model,
    drafts: &[Draft],
) -> Result<(), TestCaseError> {
    let mut written = Model {
        objects: model.objects.clone(),
        ..Model::default()
    };
    let mut ahead = Vec::new();
    let mut wanted = Vec::new();
    for (unknown, draft) in (1 << 60..).zip(drafts) {
        let transaction = transaction(model, &written, draft);
        let answer = written.answer(&transaction);
        if answer == Answer::Written {
            written.apply(&transaction, unknown);
        }
        wanted.push(answer);
        ahead.push(transaction);
    }
    let results = store.commit_all(ahead.clone()).await;
    prop_assert_eq!(results.len(), ahead.len());
    let (mut newest, mut together) = (model.version, BTreeSet::new());
    for ((transaction, result), wanted) in ahead.iter().zip(results).zip(wanted) {
        let version = match (result, wanted) {
            (Ok(version), Answer::Written) => version,
            (Err(StoreError::Conflict { .. }), Answer::Conflict)
            | (Err(StoreError::Empty), Answer::Empty) => continue,
            (result, wanted) => {
                return Err(TestCaseError::fail(format!("{result:?}, not {wanted:?}")));
            }
        };
        if version > newest {
            together.clear();
            newest = version;
        }
        prop_assert_eq!(version, newest, "versions only grow");
        let changed = model.apply(transaction, version);
        prop_assert!(!changed || version > 0);
        // Only those that have nothing in common share a version.
        for op in &transaction.ops {
            prop_assert!(!changed || together.insert(place(op)));
        }
    }
    Ok(())
}

async fn play(backend: &Backend, drafts: &[Step]) -> Result<(), TestCaseError> {
    let mut open = backend.open(SMALL).await;
    let mut model = Model::default();
    let mut seen = open.store.list("kind-1", "").await.unwrap().version;
    model.version = seen;
    for draft in drafts {
        match draft {
            Step::Commit(drafts) => commit(&*open.store, &mut model, drafts).await?,
            Step::Reopen => {
                open.close().await;
                open = backend.open(SMALL).await;
            }
            Step::Follow => {
                follow(&*open.store, &model, "kind-1", seen).await?;
                seen = model.version;
                let ahead = open.store.watch("kind-1", "", model.version + 100).await;
                prop_assert!(
                    matches!(ahead, Err(StoreError::FromTheFuture { .. })),
                    "{:?}",
                    ahead
                );
            }
        }
        check_contents(backend, &*open.store, &model).await?;
    }
    open.close().await;
    Ok(())
}

fn any_history(mut backend: Backend, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    };
    let mut number = 0;
    let backend = std::cell::RefCell::new(&mut backend);
    let number = std::cell::RefCell::new(&mut number);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let ran = runner.run(&steps(), |drafts| {
        let mut backend = backend.borrow_mut();
        **number.borrow_mut() += 1;
        backend.empty_again(**number.borrow());
        runtime.block_on(play(&backend, &drafts))
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

#[test]
fn any_history_reads_as_a_plain_map_would_embedded() {
    any_history(Backend::embedded(), 64);
}

#[test]
fn any_history_reads_as_a_plain_map_would_in_etcd() {
    any_history(Backend::etcd(), 64);
}

#[test]
fn any_history_reads_as_a_plain_map_would_in_memory() {
    any_history(Backend::memory(), 64);
}
