//! What both stores promise.

use longship_store::{Expect, RedbOptions, StoreError, Transaction};

use crate::backend::{Backend, PATIENCE, put};

const SMALL: RedbOptions = RedbOptions {
    log_transactions: 20,
    log_bytes: 400,
};

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Backend::embedded()).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Backend::etcd()).await;
            })*
        }
    };
}

on_both!(
    a_watch_tells_everything_once_while_others_write,
    a_watch_that_nobody_reads_ends_and_does_not_grow,
    a_watch_ends_when_the_store_closes,
    a_watch_goes_on_after_the_store_is_opened_again,
    what_does_not_fit_is_refused_and_the_rest_goes_on,
    of_many_writers_that_expect_the_same_version_one_wins,
    a_large_batch_is_written_in_order,
    many_objects_are_listed_whole_and_in_pages,
);

/// All but the end of watches: a store in memory outlives whoever uses it.
mod memory {
    macro_rules! on_memory {
        ($($name:ident),* $(,)?) => {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Backend::memory()).await;
            })*
        };
    }
    on_memory!(
        a_watch_tells_everything_once_while_others_write,
        a_watch_that_nobody_reads_ends_and_does_not_grow,
        a_watch_goes_on_after_the_store_is_opened_again,
        what_does_not_fit_is_refused_and_the_rest_goes_on,
        of_many_writers_that_expect_the_same_version_one_wins,
        a_large_batch_is_written_in_order,
        many_objects_are_listed_whole_and_in_pages,
    );
}

async fn a_watch_tells_everything_once_while_others_write(backend: Backend) {
    let open = backend.open(RedbOptions::default()).await;
    let store = &open.store;
    let mut watch = store.watch("pod", "", 0).await.unwrap();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..200 {
                    let put = put(&format!("{writer}-{n}"), b"x");
                    store.commit(put).await.unwrap();
                }
            })
        })
        .collect();
    let mut told = Vec::new();
    while told.len() < 800 {
        let events = tokio::time::timeout(PATIENCE, watch.next()).await;
        told.extend(events.unwrap().unwrap().into_iter().map(|e| e.object));
    }
    assert!(told.is_sorted_by_key(|object| object.version));
    for writer in 0..4 {
        let own = told
            .iter()
            .filter(|o| o.key.starts_with(&format!("{writer}-")));
        let wanted = (0..200).map(|n| format!("{writer}-{n}"));
        assert!(own.map(|o| o.key.clone()).eq(wanted), "each once, in order");
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn a_watch_that_nobody_reads_ends_and_does_not_grow(backend: Backend) {
    let open = backend.open(SMALL).await;
    let store = &open.store;
    let mut watch = store.watch("pod", "", 0).await.unwrap();
    // More than the live events and the log hold together.
    for part in 0..60 {
        let all = (0..10).map(|n| put(&format!("{part}-{n}"), b"xx"));
        for result in store.commit_all(all.collect()).await {
            result.unwrap();
        }
    }
    let refused = loop {
        match tokio::time::timeout(PATIENCE, watch.next()).await.unwrap() {
            // In etcd what is written is heard of a little later.
            Ok(_) if backend.is_etcd() => tokio::time::sleep(PATIENCE / 100).await,
            other => break other,
        }
    };
    assert!(
        matches!(refused, Err(StoreError::TooOld { .. })),
        "{refused:?}"
    );
}

async fn a_watch_ends_when_the_store_closes(backend: Backend) {
    let open = backend.open(SMALL).await;
    let mut watch = open.store.watch("pod", "", 0).await.unwrap();
    open.close().await;
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
    assert!(matches!(ended, Err(StoreError::Closed)), "{ended:?}");
    backend.open(SMALL).await;
}

async fn a_watch_goes_on_after_the_store_is_opened_again(backend: Backend) {
    let open = backend.open(SMALL).await;
    open.store.commit(put("a", b"1")).await.unwrap();
    let seen = open.store.commit(put("b", b"2")).await.unwrap();
    open.store.commit(put("c", b"3")).await.unwrap();
    open.close().await;

    let open = backend.open(SMALL).await;
    let mut watch = open.store.watch("pod", "", seen).await.unwrap();
    open.store.commit(put("d", b"4")).await.unwrap();
    for wanted in ["c", "d"] {
        let events = tokio::time::timeout(PATIENCE, watch.next()).await;
        assert_eq!(events.unwrap().unwrap()[0].object.key, wanted);
    }
    let future = open.store.watch("pod", "", seen + 10_000).await;
    assert!(
        matches!(future, Err(StoreError::FromTheFuture { .. })),
        "{future:?}"
    );
}

async fn what_does_not_fit_is_refused_and_the_rest_goes_on(backend: Backend) {
    let open = backend.open(SMALL).await;
    let slash = Transaction::new().put("a/b", "c", Vec::new(), Expect::Any);
    let results = open
        .store
        .commit_all(vec![
            put("large", &vec![0; longship_store::MAX_VALUE_BYTES + 1]),
            put(&"k".repeat(longship_store::MAX_KEY_BYTES), b""),
            slash,
            put("largest", &vec![0; longship_store::MAX_VALUE_BYTES]),
            put("small", b"x"),
        ])
        .await;
    assert!(matches!(results[0], Err(StoreError::TooLarge { .. })));
    assert!(matches!(results[1], Err(StoreError::TooLarge { .. })));
    assert!(matches!(results[2], Err(StoreError::Kind(_))));
    assert!(results[3].is_ok(), "{:?}", results[3]);
    assert!(results[4].is_ok(), "{:?}", results[4]);
}

async fn of_many_writers_that_expect_the_same_version_one_wins(backend: Backend) {
    let open = backend.open(SMALL).await;
    let first = open.store.commit(put("one", b"0")).await.unwrap();
    let racing = (0..20).map(|n: u8| {
        let store = open.store.clone();
        tokio::spawn(async move {
            let expect = Expect::Version(first);
            let put = Transaction::new().put("pod", "one", vec![n], expect);
            store.commit(put).await
        })
    });
    let racing: Vec<_> = racing.collect();
    let mut won = 0;
    for one in racing {
        match one.await.unwrap() {
            Ok(_) => won += 1,
            Err(StoreError::Conflict { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(won, 1);
}

async fn a_large_batch_is_written_in_order(backend: Backend) {
    let open = backend.open(RedbOptions::default()).await;
    // Some keys come again and again, so that not all fit together.
    let all = (0..1000).map(|n: u32| put(&(n % 150).to_string(), &n.to_be_bytes()));
    let results = open.store.commit_all(all.collect()).await;
    let versions: Vec<u64> = results.into_iter().map(Result::unwrap).collect();
    assert!(versions.is_sorted());
    let listing = open.store.list("pod", "").await.unwrap();
    assert_eq!(listing.objects.len(), 150);
    for object in listing.objects {
        let key: u32 = object.key.parse().unwrap();
        let last = (0..1000).rev().find(|n| n % 150 == key).unwrap();
        assert_eq!(object.value, last.to_be_bytes());
        assert_eq!(object.version, versions[last as usize]);
    }
}

async fn many_objects_are_listed_whole_and_in_pages(backend: Backend) {
    let open = backend.open(RedbOptions::default()).await;
    let keys: Vec<String> = (0..1500).map(|n| format!("ns-{}/{n:04}", n % 3)).collect();
    let all = keys.iter().map(|key| put(key, key.as_bytes()));
    for result in open.store.commit_all(all.collect()).await {
        result.unwrap();
    }
    let mut sorted = keys.clone();
    sorted.sort();
    let listing = open.store.list("pod", "").await.unwrap();
    let found: Vec<String> = listing.objects.into_iter().map(|o| o.key).collect();
    assert_eq!(found, sorted);

    let wanted: Vec<_> = sorted.iter().filter(|k| k.starts_with("ns-1/")).collect();
    for limit in [1, 7, 499, 500, 501] {
        let mut found: Vec<String> = Vec::new();
        loop {
            let after = found.last().map(String::as_str);
            let page = open.store.list_page("pod", "ns-1/", after, limit).await;
            let page = page.unwrap();
            assert!(page.objects.len() <= limit);
            assert_eq!(page.version, listing.version);
            found.extend(page.objects.into_iter().map(|o| o.key));
            if !page.more {
                break;
            }
        }
        assert!(found.iter().eq(wanted.iter().copied()), "by {limit}");
    }
    let none = open.store.list_page("pod", "ns-1/", Some("ns-2"), 9).await;
    assert_eq!(none.unwrap().objects, []);
    // A key before the prefix: from the beginning.
    let first = open
        .store
        .list_page("pod", "ns-1/", Some("ns-0/5"), 1)
        .await;
    assert_eq!(first.unwrap().objects[0].key, *wanted[0]);
}
