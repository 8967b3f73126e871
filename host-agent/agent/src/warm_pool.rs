//! Paused clones that wait for a sandbox: those of shapes that were asked for lately.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::shape::Shape;

/// A shape that nobody asked for in this time gets no clones in advance.
const LATELY: Duration = Duration::from_secs(600);
/// Nothing is done in advance until no sandbox has been on its way for so long.
const QUIET: Duration = Duration::from_millis(50);

/// Clones in advance; `T` is one.
#[derive(Debug)]
pub(crate) struct WarmPool<T> {
    shapes: Mutex<HashMap<Shape, Waiting<T>>>,
    /// So many of each shape.
    each: usize,
    /// Sandboxes on their way.
    busy: watch::Sender<usize>,
    /// There may be something to do.
    pub(crate) changed: Notify,
}

#[derive(Debug)]
struct Waiting<T> {
    asked: Instant,
    clones: Vec<Warm<T>>,
}

#[derive(Debug)]
struct Warm<T> {
    clone: T,
    /// What it holds of the host's memory.
    bytes: u64,
}

/// A sandbox on its way, until this is dropped.
#[derive(Debug)]
pub(crate) struct Busy<'a>(&'a watch::Sender<usize>);

impl<T> WarmPool<T> {
    /// With so many clones of each shape; 0: none ever.
    pub(crate) fn new(each: usize) -> Self {
        Self {
            shapes: Mutex::default(),
            each,
            busy: watch::Sender::new(0),
            changed: Notify::new(),
        }
    }

    /// Takes a clone of this shape, where one waits, and notes that it was asked for.
    pub(crate) fn take(&self, shape: Shape, now: Instant) -> Option<T> {
        if self.each == 0 {
            return None;
        }
        let mut shapes = self.shapes();
        let waiting = shapes.entry(shape).or_insert_with(|| Waiting {
            asked: now,
            clones: Vec::new(),
        });
        waiting.asked = now;
        let taken = waiting.clones.pop().map(|warm| warm.clone);
        drop(shapes);
        self.changed.notify_one();
        taken
    }

    /// A shape that was asked for lately, is not in `except` and has too few clones.
    pub(crate) fn wanted(&self, except: &[Shape], now: Instant) -> Option<Shape> {
        self.shapes()
            .iter()
            .filter(|(shape, waiting)| {
                waiting.clones.len() < self.each
                    && now.duration_since(waiting.asked) < LATELY
                    && !except.contains(shape)
            })
            .min_by_key(|(_, waiting)| waiting.clones.len())
            .map(|(shape, _)| *shape)
    }

    /// Lets a clone wait that holds so many bytes of the host's memory.
    pub(crate) fn put(&self, shape: Shape, clone: T, bytes: u64) {
        if let Some(waiting) = self.shapes().get_mut(&shape) {
            waiting.clones.push(Warm { clone, bytes });
        }
    }

    /// Takes all clones out of shapes that nobody asked for lately or that are not to
    /// be `kept`.
    pub(crate) fn expired(&self, kept: impl Fn(Shape) -> bool, now: Instant) -> Vec<T> {
        let mut shapes = self.shapes();
        let mut expired = Vec::new();
        shapes.retain(|shape, waiting| {
            let old = now.duration_since(waiting.asked) >= LATELY;
            if old || !kept(*shape) {
                expired.append(&mut waiting.clones);
            }
            !old
        });
        expired.into_iter().map(|warm| warm.clone).collect()
    }

    /// Takes out all clones.
    pub(crate) fn drain(&self) -> Vec<T> {
        self.expired(|_| false, Instant::now())
    }

    /// How many of this shape wait.
    pub(crate) fn count(&self, shape: Shape) -> usize {
        self.shapes()
            .get(&shape)
            .map_or(0, |waiting| waiting.clones.len())
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.shapes()
            .values()
            .all(|waiting| waiting.clones.is_empty())
    }

    /// What all that wait hold of the host's memory, in bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        let shapes = self.shapes();
        let all = shapes.values().flat_map(|waiting| &waiting.clones);
        all.fold(0, |sum, warm| sum.saturating_add(warm.bytes))
    }

    /// A sandbox is on its way: what is done in advance waits.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.busy.send_modify(|count| *count += 1);
        Busy(&self.busy)
    }

    /// Waits until no sandbox has been on its way for a moment.
    pub(crate) async fn quiet(&self) {
        let mut busy = self.busy.subscribe();
        loop {
            if busy.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            let again = busy.wait_for(|count| *count > 0);
            if tokio::time::timeout(QUIET, again).await.is_err() {
                return;
            }
        }
    }

    fn shapes(&self) -> MutexGuard<'_, HashMap<Shape, Waiting<T>>> {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Profile;

    const fn shape(vcpus: u32) -> Shape {
        Shape {
            vcpus,
            memory_bytes: 1 << 27,
            profile: Profile::Dense,
        }
    }

    #[test]
    fn only_what_was_asked_for_lately_is_made_in_advance() {
        let pool = WarmPool::new(2);
        let now = Instant::now();
        assert_eq!(pool.wanted(&[], now), None);
        assert_eq!(pool.take(shape(1), now), None);
        assert_eq!(pool.wanted(&[], now), Some(shape(1)));
        assert_eq!(pool.wanted(&[shape(1)], now), None);
        for (clone, full) in [(10, false), (11, true)] {
            pool.put(shape(1), clone, 5);
            assert_eq!(pool.wanted(&[], now).is_none(), full);
        }
        assert_eq!((pool.count(shape(1)), pool.held_bytes()), (2, 10));
        assert_eq!(pool.take(shape(1), now), Some(11));
        assert_eq!(pool.wanted(&[], now), Some(shape(1)));
        assert!(pool.expired(|_| true, now).is_empty());

        let later = now + LATELY;
        assert_eq!(pool.wanted(&[], later), None);
        assert_eq!(pool.expired(|_| true, later), [10]);
        assert!(pool.is_empty());
    }

    #[test]
    fn clones_of_a_template_that_went_go_too() {
        let pool = WarmPool::new(1);
        let now = Instant::now();
        pool.take(shape(1), now);
        pool.take(shape(2), now);
        pool.put(shape(1), 1, 5);
        pool.put(shape(2), 2, 5);
        assert_eq!(pool.expired(|kept| kept == shape(2), now), [1]);
        assert_eq!(pool.held_bytes(), 5);
        assert_eq!(pool.drain(), [2]);
    }

    #[test]
    fn no_pool_is_none() {
        let pool = WarmPool::<u32>::new(0);
        assert_eq!(pool.take(shape(1), Instant::now()), None);
        assert_eq!(pool.wanted(&[], Instant::now()), None);
    }

    #[tokio::test]
    async fn what_is_done_in_advance_waits_for_sandboxes() {
        let pool = WarmPool::<u32>::new(1);
        let one = pool.busy();
        let long = QUIET * 3;
        assert!(tokio::time::timeout(long, pool.quiet()).await.is_err());
        let two = pool.busy();
        drop(one);
        assert!(tokio::time::timeout(long, pool.quiet()).await.is_err());
        drop(two);
        let started = Instant::now();
        pool.quiet().await;
        assert!(started.elapsed() >= QUIET);
    }
}
