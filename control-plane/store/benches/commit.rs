//! What writing costs: `cargo bench -p longship-store --bench commit [-- FILTER]`.
//!
//! 10,000 pods are written four times each (created, preparing, running, deleted), in
//! batches as the reconciler's, each waited for before the next: on the embedded store,
//! and on a real etcd of one member. Both sync what they acknowledge to this disk.
#![allow(clippy::unwrap_used)] // a benchmark may end with its reason

use std::sync::Arc;
use std::time::{Duration, Instant};

use longship_store::{EtcdOptions, EtcdStore, Expect, RedbOptions, RedbStore, Store, Transaction};
use longship_test_etcd::Etcd;

const PODS: usize = 10_000;
/// About what a pod with its status takes, in bytes.
const VALUE: usize = 1500;

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |name: &str| filter.as_ref().is_none_or(|f| name.contains(f.as_str()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    println!("{PODS} pods of {VALUE} bytes, 4 writes each");
    println!(
        "{:<10} {:>6} {:>9} {:>12} {:>11} {:>11}",
        "store", "batch", "seconds", "writes/s", "median ms", "p99 ms"
    );
    if wanted("embedded") {
        for batch in [64, 256, 1024] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("store.redb");
            let store = RedbStore::open(&path, RedbOptions::default()).unwrap();
            runtime.block_on(run("embedded", Arc::new(store), batch));
        }
    }
    if wanted("etcd") {
        for batch in [64, 256, 1024] {
            let etcd = Etcd::start();
            runtime.block_on(async {
                let options = EtcdOptions::new(vec![etcd.url()]);
                let store = EtcdStore::connect(options).await.unwrap();
                let leading = store.lead("http://bench", Duration::from_secs(10));
                let leadership = leading.await.unwrap();
                run("etcd", Arc::new(store), batch).await;
                assert!(leadership.holds());
            });
        }
    }
}

async fn run(name: &str, store: Arc<dyn Store>, batch: usize) {
    let value = |step: usize| vec![u8::try_from(step).unwrap(); VALUE];
    let mut each = Vec::new();
    let begun = Instant::now();
    for step in 0..4 {
        for first in (0..PODS).step_by(batch) {
            let pods = first..PODS.min(first + batch);
            let all = pods.map(|n| {
                let key = format!("default/pod-{n:05}");
                match step {
                    3 => Transaction::new().delete("pod", &key, Expect::Any),
                    _ => Transaction::new().put("pod", &key, value(step), Expect::Any),
                }
            });
            let asked = Instant::now();
            for result in store.commit_all(all.collect()).await {
                result.unwrap();
            }
            each.push(asked.elapsed());
        }
    }
    let took = begun.elapsed().as_secs_f64();
    each.sort_unstable();
    let quantile = |q: usize| each[(each.len() - 1) * q / 100].as_secs_f64() * 1e3;
    let writes = u32::try_from(PODS * 4).unwrap();
    println!(
        "{name:<10} {batch:>6} {took:>9.2} {:>12.0} {:>11.2} {:>11.2}",
        f64::from(writes) / took,
        quantile(50),
        quantile(99)
    );
}
