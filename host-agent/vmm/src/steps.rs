//! When each step of an operation began and ended, for the start-up waterfall.

use std::time::{SystemTime, UNIX_EPOCH};

use longship_framed::vmm::Step;

/// Microseconds since the Unix epoch.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The steps of one operation.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<Step>);

impl Steps {
    /// Does `work` and notes it as `name`.
    pub(crate) fn measure<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> T {
        let start_us = now_us();
        let result = work();
        self.0.push(Step {
            name: name.to_owned(),
            start_us,
            end_us: now_us(),
        });
        result
    }

    /// What was noted, in order.
    pub(crate) fn into_vec(self) -> Vec<Step> {
        self.0
    }
}
