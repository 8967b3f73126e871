//! How many pods may be in one stage of their start at once.
//!
//! What contends in the kernel gets slower, not faster, when more of it is asked for
//! at the same time, so each stage is bounded by itself. A pod waits for its turn
//! without a time limit: limits count from its turn on, so that nothing fails only
//! because there was a queue.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

/// Disks being made or taken away: each call blocks a thread.
const VOLUMES: usize = 8;
/// ENIs being made or taken away: the kernel does them one after the other, under
/// one lock (rtnl).
const ENIS: usize = 4;
/// Machines asked for, or ended, at the agent. It bounds its own stages; this keeps
/// the queue here, where it costs nothing.
const MACHINES: usize = 16;
/// Guests that come up at once, where the card is not told: at least, at most, and a
/// CPU of this machine. Each is busy until it runs, so that more are only slower. (What
/// the agent has for pods is no measure: it may promise more CPUs than there are.)
const STARTS: std::ops::RangeInclusive<usize> = 4..=64;
const STARTS_A_CPU: usize = 2;
/// A start that takes longer hangs, and no longer keeps others from theirs. A host that is
/// merely slow must not get there: more starts at once would make it slower still.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(120);

/// The turns of all stages.
#[derive(Debug)]
pub(crate) struct Turns {
    /// See [`VOLUMES`].
    pub(crate) volumes: Stage,
    /// See [`ENIS`].
    pub(crate) enis: Stage,
    /// Machines being prepared; see [`MACHINES`].
    pub(crate) machines: Stage,
    /// Machines being ended.
    pub(crate) ends: Stage,
    /// From a machine's start until its containers run.
    pub(crate) starts: Stage,
}

/// The turns of one stage, first come, first served.
#[derive(Debug, Clone)]
pub(crate) struct Stage(Arc<Semaphore>);

/// A turn, over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// A turn that is over when it is dropped, or after a while.
#[derive(Debug)]
pub(crate) struct LimitedTurn(AbortHandle);

impl Turns {
    /// The turns of a card that starts so many pods at once; `None`: as fits this machine.
    pub(crate) fn new(starts: Option<usize>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let fitting = cpus.saturating_mul(STARTS_A_CPU);
        let fitting = fitting.clamp(*STARTS.start(), *STARTS.end());
        Self {
            volumes: Stage::new(VOLUMES),
            enis: Stage::new(ENIS),
            machines: Stage::new(MACHINES),
            ends: Stage::new(MACHINES),
            starts: Stage::new(starts.unwrap_or(fitting).max(1)),
        }
    }
}

impl Stage {
    fn new(turns: usize) -> Self {
        Self(Arc::new(Semaphore::new(turns.min(Semaphore::MAX_PERMITS))))
    }

    /// Waits for a turn.
    pub(crate) async fn turn(&self) -> Option<Turn> {
        // Never closed: there is always a turn at last.
        let permit = self.0.clone().acquire_owned().await.ok()?;
        Some(Turn { _permit: permit })
    }

    /// Waits for a turn that ends after `limit` at the latest.
    pub(crate) async fn limited_turn(&self, limit: Duration) -> Option<LimitedTurn> {
        let turn = self.turn().await?;
        let end = tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            drop(turn);
        });
        Some(LimitedTurn(end.abort_handle()))
    }
}

impl Drop for LimitedTurn {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn no_more_than_its_turns_are_in_a_stage_and_all_get_through() {
        let stage = Stage::new(3);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let (stage, now, most) = (stage.clone(), now.clone(), most.clone());
            tasks.spawn(async move {
                let _turn = stage.turn().await.unwrap();
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
        assert_eq!(tasks.join_all().await.len(), 500);
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_start_that_hangs_keeps_nobody_from_theirs_for_long() {
        let limit = Duration::from_millis(50);
        let stage = Stage::new(1);
        let hanging = stage.limited_turn(limit).await.unwrap();
        let waited = tokio::time::Instant::now();
        let next = stage.limited_turn(Duration::from_secs(600)).await.unwrap();
        assert!(waited.elapsed() >= limit);
        drop(hanging);
        assert_eq!(stage.0.available_permits(), 0);
        drop(next);
        let _third = stage.turn().await.unwrap();
    }
}
