//! How many sandboxes may be at one stage of their start at the same time. Hundreds
//! asked for at once would only make each other slow where the kernel does such things
//! one by one anyway; each stage is bounded by itself, so that none waits for another.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One stage. Whoever waits for it is let in in order, and no deadline runs meanwhile.
#[derive(Debug)]
pub(crate) struct Stage(Arc<Semaphore>);

/// A place in a stage, held until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Stage {
    fn new(width: usize) -> Self {
        let width = width.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(width)))
    }

    /// Waits for a place.
    pub(crate) async fn enter(&self) -> Place {
        // An error would mean that it was closed, which nobody does.
        let _permit = Arc::clone(&self.0).acquire_owned().await.ok();
        Place { _permit }
    }
}

/// The stages that contend.
#[derive(Debug)]
pub(crate) struct Stages {
    /// Making and removing cgroups: under one lock of the kernel's.
    pub(crate) cgroup: Stage,
    /// Starting processes.
    pub(crate) process: Stage,
    /// Building machines: KVM's own locks, and memory.
    pub(crate) machine: Stage,
    /// Guests between their start and their first act: more than there are CPUs only
    /// make each other's later.
    pub(crate) guest: Stage,
}

impl Stages {
    /// For a host that may start so many at once.
    pub(crate) fn new(width: usize) -> Self {
        Self {
            cgroup: Stage::new(width),
            process: Stage::new(width),
            machine: Stage::new(width),
            guest: Stage::new(width),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn no_more_than_its_width_are_in_a_stage_and_all_get_through() {
        let stages = Arc::new(Stages::new(3));
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let all: Vec<_> = (0..50)
            .map(|_| {
                let (stages, inside, most) =
                    (Arc::clone(&stages), Arc::clone(&inside), Arc::clone(&most));
                tokio::spawn(async move {
                    let _place = stages.cgroup.enter().await;
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }
}
