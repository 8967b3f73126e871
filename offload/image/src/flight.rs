//! Single flight: work that several want at the same time is done once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Work under way, by what it is for.
#[derive(Debug)]
pub(crate) struct Flights<K, V> {
    running: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

/// The work ended without a result: it panicked, or the runtime is shutting down.
#[derive(Debug)]
pub(crate) struct Lost;

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self {
            running: Arc::default(),
        }
    }

    /// The result of the work for `key`: of the one under way, else of `work`. It
    /// runs in a task of its own, to its end even if nobody waits any more.
    pub(crate) async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, Lost>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut result = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&key) {
                // One that was lost has no sender any more.
                Some(receiver) if receiver.has_changed().is_ok() => receiver.clone(),
                _ => {
                    let (sender, receiver) = watch::channel(None);
                    running.insert(key.clone(), receiver.clone());
                    let all = Arc::clone(&self.running);
                    let work = work();
                    tokio::spawn(async move {
                        let value = work.await;
                        // First no longer to be found, then done: who comes later
                        // sees what the work has left behind.
                        all.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .remove(&key);
                        sender.send_replace(Some(value));
                    });
                    receiver
                }
            }
        };
        let value = result.wait_for(Option::is_some).await.map_err(|_| Lost)?;
        value.clone().ok_or(Lost)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_same_work_is_done_once_and_again_later() {
        let flights = Arc::new(Flights::new());
        let done = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(false);
        let mut waiting = Vec::new();
        for key in ["a", "a", "b", "a"] {
            let (flights, done, mut gate) = (flights.clone(), done.clone(), gate.clone());
            waiting.push(tokio::spawn(async move {
                let work = || async move {
                    let _ = gate.wait_for(|open| *open).await;
                    done.fetch_add(1, Ordering::SeqCst);
                    key
                };
                flights.join(key, work).await.unwrap()
            }));
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        open.send_replace(true);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(done.load(Ordering::SeqCst), 2);
        assert_eq!(
            flights.join("a", || async { "again" }).await.unwrap(),
            "again"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn work_goes_on_when_nobody_waits_and_a_panic_is_not_forever() {
        let flights = Arc::new(Flights::new());
        let (done, mut finished) = watch::channel(false);
        let work = || async move {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            done.send_replace(true);
        };
        let impatient =
            tokio::time::timeout(std::time::Duration::from_millis(5), flights.join(1, work)).await;
        assert!(impatient.is_err());
        finished.wait_for(|done| *done).await.unwrap();

        let lost = flights.join(2, || async { panic!("on purpose") }).await;
        assert!(lost.is_err());
        flights.join(2, || async {}).await.unwrap();
    }
}
