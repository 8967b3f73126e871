//! When each step of an operation began and ended, for the start-up waterfall.

pub(crate) use longship_framed::now_us;

use longship_framed::vmm::Step;

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
