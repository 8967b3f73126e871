//! etcd is killed, and forgets; links break with writes on their way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longship_store::{Expect, RedbOptions, Store, StoreError, Transaction};
use longship_test_etcd::{Etcd, Link, State};

use crate::backend::{PATIENCE, TTL, connect, connect_to, put};

const PREFIX: &str = "/longship/";

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_lost_or_applied_twice_while_etcd_is_killed_again_and_again() {
    let mut etcd = Etcd::start();
    let store = Arc::new(connect(&etcd, PREFIX, RedbOptions::default()).await);
    let leadership = store.lead("http://me", TTL).await.unwrap();
    let mut watch = store.watch("pod", "", 0).await.unwrap();

    let (done, killer_done) = tokio::sync::oneshot::channel::<()>();
    let killer = tokio::task::spawn_blocking(move || {
        for n in 0..6 {
            std::thread::sleep(Duration::from_millis(150 + 40 * n));
            etcd.kill();
            etcd.restart();
        }
        let _ = done.send(());
        etcd
    });
    // Each batch insists on the counter that the one before left, so one that was
    // applied twice, or not at all, would break the chain.
    let mut killer_done = killer_done;
    let (mut batches, mut counter) = (0_u32, Expect::Absent);
    while killer_done.try_recv().is_err() {
        let count = Transaction::new().put("counter", "only", vec![], counter);
        let new = |n: u32| {
            let key = format!("{batches:06}-{n}");
            Transaction::new().put("pod", &key, vec![], Expect::Absent)
        };
        let all = [vec![count], (0..10).map(new).collect()].concat();
        let results = store.commit_all(all).await;
        for result in &results {
            result.as_ref().unwrap();
        }
        counter = Expect::Version(*results[0].as_ref().unwrap());
        batches += 1;
    }
    let _etcd = killer.await.unwrap();
    assert!(batches > 20, "{batches}");
    assert!(leadership.holds());

    let wanted: BTreeSet<String> = (0..batches)
        .flat_map(|batch| (0..10).map(move |n| format!("{batch:06}-{n}")))
        .collect();
    let listing = store.list("pod", "").await.unwrap();
    assert!(listing.objects.iter().map(|o| &o.key).eq(&wanted));
    let mut told = Vec::new();
    while told.len() < wanted.len() {
        let events = tokio::time::timeout(PATIENCE, watch.next()).await;
        told.extend(events.unwrap().unwrap().into_iter().map(|e| e.object.key));
    }
    assert!(told.iter().eq(&wanted), "each once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_is_found_to_hold_and_not_repeated() {
    let etcd = Etcd::start();
    let link = Link::to(&etcd.url()).await;
    let store = Arc::new(connect_to(link.url(), PREFIX, RedbOptions::default()).await);
    let direct = connect(&etcd, PREFIX, RedbOptions::default()).await;
    let _leadership = store.lead("http://me", TTL).await.unwrap();
    let mut watch = direct.watch("pod", "", 0).await.unwrap();

    for n in 0..3 {
        link.set(State::Deaf);
        let writing = {
            let store = Arc::clone(&store);
            let put = Transaction::new().put("pod", &n.to_string(), vec![1], Expect::Absent);
            tokio::spawn(async move { store.commit(put).await })
        };
        // It holds, but only others know.
        let events = tokio::time::timeout(PATIENCE, watch.next()).await;
        let events = events.unwrap().unwrap();
        assert_eq!(events.len(), 1);
        assert!(!writing.is_finished());
        link.set(State::Cut);
        link.set(State::Whole);
        let version = tokio::time::timeout(PATIENCE, writing).await;
        let version = version.unwrap().unwrap().unwrap();
        assert_eq!(version, events[0].object.version);
        let found = direct.get("pod", &n.to_string()).await.unwrap().unwrap();
        assert_eq!(found.version, version);
    }
    let more = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_with_the_leadership_is_answered_truly() {
    let etcd = Etcd::start();
    let direct = connect(&etcd, PREFIX, RedbOptions::default()).await;
    for arrives in [true, false] {
        let link = Link::to(&etcd.url()).await;
        let store = Arc::new(connect_to(link.url(), PREFIX, RedbOptions::default()).await);
        let ttl = Duration::from_secs(2);
        let leadership = store.lead("http://former", ttl).await.unwrap();
        let mut watch = {
            let newest = direct.list("pod", "").await.unwrap().version;
            direct.watch("pod", "", newest).await.unwrap()
        };
        link.set(if arrives { State::Deaf } else { State::Cut });
        let writing = {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(put("lost", b"x")).await })
        };
        let written = if arrives {
            let events = tokio::time::timeout(PATIENCE, watch.next()).await;
            Some(events.unwrap().unwrap()[0].object.version)
        } else {
            None
        };
        link.set(State::Cut);
        tokio::time::timeout(PATIENCE, leadership.lost())
            .await
            .unwrap();
        // Another one leads, and writes, before the former hears of anything.
        let next = direct.lead("http://next", TTL).await.unwrap();
        direct.commit(put("other", b"x")).await.unwrap();
        link.set(State::Whole);
        let answered = tokio::time::timeout(PATIENCE, writing).await;
        match (answered.unwrap().unwrap(), written) {
            (Ok(version), Some(written)) => assert_eq!(version, written),
            (Err(StoreError::NotLeading { .. }), None) => {}
            other => panic!("arrives: {arrives}: {other:?}"),
        }
        next.resign().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_after_etcd_was_killed() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd, PREFIX, RedbOptions::default()).await;
    let _leadership = store.lead("http://me", TTL).await.unwrap();
    let mut watch = store.watch("pod", "", 0).await.unwrap();
    for n in 0..3 {
        store.commit(put(&n.to_string(), b"x")).await.unwrap();
        etcd.kill();
        etcd.restart();
    }
    store.commit(put("3", b"x")).await.unwrap();
    for n in 0..4 {
        let events = tokio::time::timeout(PATIENCE, watch.next()).await;
        assert_eq!(events.unwrap().unwrap()[0].object.key, n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compacted_is_too_old_to_watch_and_a_new_listing_goes_on() {
    let etcd = Etcd::start();
    let small = RedbOptions {
        log_transactions: 50,
        log_bytes: 1 << 20,
    };
    let store = connect(&etcd, PREFIX, small).await;
    let _leadership = store.lead("http://me", TTL).await.unwrap();
    let first = store.commit(put("first", b"x")).await.unwrap();
    // A replica that hears of nothing while history goes on, and is forgotten.
    let link = Link::to(&etcd.url()).await;
    let deaf = connect_to(link.url(), PREFIX, small).await;
    let mut watch = deaf.watch("pod", "", first).await.unwrap();
    link.set(State::Cut);
    // More than is replayed when a store is opened.
    for n in 0..1500 {
        store
            .commit(put(&(n % 10).to_string(), b"x"))
            .await
            .unwrap();
    }
    // The leader has etcd compact: whoever asks etcd itself hears so.
    let until = Instant::now() + PATIENCE;
    loop {
        let fresh = connect(&etcd, PREFIX, RedbOptions::default()).await;
        let asked = fresh.watch("pod", "", first).await;
        let refused = match asked {
            Err(error) => Some(error),
            Ok(mut watch) => {
                let next = tokio::time::timeout(PATIENCE, watch.next()).await;
                next.unwrap().err()
            }
        };
        match refused {
            Some(StoreError::TooOld { .. }) => break,
            None => assert!(Instant::now() < until, "etcd is not compacted"),
            Some(other) => panic!("{other}"),
        }
    }
    link.set(State::Whole);
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
    assert!(matches!(ended, Err(StoreError::TooOld { .. })), "{ended:?}");
    let too_old = store.watch("pod", "", first).await;
    assert!(matches!(too_old, Err(StoreError::TooOld { .. })));

    let listing = deaf.list("pod", "").await.unwrap();
    assert_eq!(listing.objects.len(), 11);
    let mut watch = deaf.watch("pod", "", listing.version).await.unwrap();
    store.commit(put("new", b"x")).await.unwrap();
    let events = tokio::time::timeout(PATIENCE, watch.next()).await;
    assert_eq!(events.unwrap().unwrap()[0].object.key, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_calls_fail_in_bounded_time_and_go_on_with_it() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd, PREFIX, RedbOptions::default()).await;
    let leadership = store
        .lead("http://me", Duration::from_secs(2))
        .await
        .unwrap();
    store.commit(put("a", b"x")).await.unwrap();
    etcd.kill();
    let begun = Instant::now();
    let read = store.get("pod", "a").await;
    assert!(matches!(read, Err(StoreError::Backend(_))), "{read:?}");
    let written = store.commit(put("b", b"x")).await;
    assert!(written.is_err(), "{written:?}");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    leadership.lost().await;
    drop(leadership);
    etcd.restart();
    assert_eq!(store.get("pod", "a").await.unwrap().unwrap().value, b"x");
    let leading = store.lead("http://me", TTL);
    let _leadership = tokio::time::timeout(PATIENCE, leading)
        .await
        .unwrap()
        .unwrap();
    store.commit(put("b", b"x")).await.unwrap();
}
