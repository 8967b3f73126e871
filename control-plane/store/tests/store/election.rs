//! One leads at a time, and only that one writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longship_store::{Expect, RedbOptions, Store, StoreError, Transaction};
use longship_test_etcd::{Etcd, Link, State};

use crate::backend::{PATIENCE, TTL, connect, connect_to, put};

const PREFIX: &str = "/longship/";
const SHORT: Duration = Duration::from_secs(1);

fn refused(result: &Result<u64, StoreError>) -> bool {
    matches!(result, Err(StoreError::NotLeading { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_reads_and_may_not_write_and_leads_when_the_first_resigns() {
    let etcd = Etcd::start();
    let first = connect(&etcd, PREFIX, RedbOptions::default()).await;
    let second = Arc::new(connect(&etcd, PREFIX, RedbOptions::default()).await);
    assert!(refused(&first.commit(put("a", b"x")).await));
    let leadership = first.lead("http://first", TTL).await.unwrap();
    first.commit(put("a", b"x")).await.unwrap();

    assert!(second.get("pod", "a").await.unwrap().is_some());
    let mut leader = second.leader();
    let told = leader.wait_for(|leader| leader.as_deref() == Some("http://first"));
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    let written = second.commit(put("b", b"x")).await;
    let Err(StoreError::NotLeading {
        leader: Some(named),
    }) = written
    else {
        panic!("{written:?}");
    };
    assert_eq!(named, "http://first");

    let waiting = {
        let second = Arc::clone(&second);
        tokio::spawn(async move { second.lead("http://second", TTL).await.unwrap() })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    leadership.resign().await;
    let _leadership = tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap();
    second.commit(put("b", b"x")).await.unwrap();
    assert!(refused(&first.commit(put("c", b"x")).await));
    assert_eq!(first.list("pod", "").await.unwrap().objects.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_refuses_a_leader_that_lost_its_key_without_knowing() {
    let etcd = Etcd::start();
    let store = connect(&etcd, PREFIX, RedbOptions::default()).await;
    let leadership = store.lead("http://former", TTL).await.unwrap();
    store.commit(put("a", b"1")).await.unwrap();
    etcd.remove("/longship/leader");
    assert!(leadership.holds(), "it has heard of nothing");
    let written = store.commit(put("a", b"2")).await;
    assert!(refused(&written), "{written:?}");
    assert_eq!(store.get("pod", "a").await.unwrap().unwrap().value, b"1");
    tokio::time::timeout(PATIENCE, leadership.lost())
        .await
        .unwrap();
    assert!(!leadership.holds());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_knows_before_another_leads() {
    let etcd = Etcd::start();
    let link = Link::to(&etcd.url()).await;
    let first = connect_to(link.url(), PREFIX, RedbOptions::default()).await;
    let second = connect(&etcd, PREFIX, RedbOptions::default()).await;
    let leadership = first.lead("http://first", SHORT).await.unwrap();
    first.commit(put("a", b"1")).await.unwrap();
    link.set(State::Cut);
    let leading = second.lead("http://second", TTL);
    let _second = tokio::time::timeout(PATIENCE, leading)
        .await
        .unwrap()
        .unwrap();
    assert!(!leadership.holds());
    tokio::time::timeout(PATIENCE, leadership.lost())
        .await
        .unwrap();
    link.set(State::Whole);
    assert!(refused(&first.commit(put("a", b"2")).await));
    second.commit(put("a", b"3")).await.unwrap();
}

/// Two replicas lead by turns, their links breaking at random; each, while it leads,
/// writes a register without conditions. Every acknowledged write must have been the
/// newest when it was acknowledged: the versions show whether two wrote at a time.
#[tokio::test(flavor = "multi_thread")]
async fn two_leaders_never_both_write_whatever_breaks() {
    let etcd = Etcd::start();
    let stop = Arc::new(AtomicBool::new(false));
    let mut links = Vec::new();
    let mut replicas = Vec::new();
    for name in ["one", "two"] {
        let link = Link::to(&etcd.url()).await;
        let store = connect_to(link.url(), PREFIX, RedbOptions::default()).await;
        links.push(link);
        let stop = Arc::clone(&stop);
        replicas.push(tokio::spawn(async move {
            let (mut terms, mut written) = (Vec::new(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let leading = store.lead(name, SHORT);
                let Ok(led) = tokio::time::timeout(PATIENCE, leading).await else {
                    break;
                };
                let leadership = led.unwrap();
                let mut term = Vec::new();
                for n in 0_u32.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let value = format!("{name}-{}-{n}", terms.len()).into_bytes();
                    let put = Transaction::new().put("pod", "register", value.clone(), Expect::Any);
                    match store.commit(put).await {
                        Ok(version) => {
                            term.push(version);
                            written.push((version, value));
                        }
                        Err(StoreError::NotLeading { .. } | StoreError::Uncertain) => break,
                        Err(other) => panic!("{other}"),
                    }
                }
                if let (Some(first), Some(last)) = (term.first(), term.last()) {
                    terms.push((*first, *last));
                }
                drop(leadership);
            }
            (terms, written)
        }));
    }
    let watcher = connect(&etcd, PREFIX, RedbOptions::default()).await;
    let mut watch = watcher.watch("pod", "", 0).await.unwrap();
    for round in 0..6_usize {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let broken = [State::Cut, State::Deaf][round % 2];
        links[round % 2].set(broken);
        tokio::time::sleep(Duration::from_millis(1800)).await;
        links[round % 2].set(State::Cut);
        links[round % 2].set(State::Whole);
    }
    stop.store(true, Ordering::Relaxed);
    let (mut terms, mut written) = (Vec::new(), Vec::new());
    for replica in replicas {
        let (own, wrote) = tokio::time::timeout(PATIENCE, replica)
            .await
            .unwrap()
            .unwrap();
        terms.extend(own);
        written.extend(wrote);
    }
    terms.sort_unstable();
    assert!(terms.len() >= 4, "{terms:?}");
    for pair in terms.windows(2) {
        assert!(pair[0].1 < pair[1].0, "two led at a time: {terms:?}");
    }
    // What was acknowledged is in the history, in the version that was answered.
    written.sort_unstable();
    let mut acknowledged = written.into_iter().peekable();
    while let Some((version, value)) = acknowledged.peek() {
        let events = tokio::time::timeout(PATIENCE, watch.next()).await;
        for event in events.unwrap().unwrap() {
            assert!(
                event.object.version <= *version,
                "an acknowledged write is missing"
            );
            if event.object.version == *version {
                assert_eq!(event.object.value, *value);
                acknowledged.next();
                break;
            }
        }
    }
}
