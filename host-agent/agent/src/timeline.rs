//! Where a call's time went, step by step.

pub(crate) use longship_framed::now_us;

use longship_framed::vmm::Step;
use longship_proto::control::v1::Stage;

/// The steps of one call, in order of their start.
#[derive(Debug, Default)]
pub(crate) struct Timeline(Vec<Stage>);

impl Timeline {
    /// Waits for `work` and notes how long it took as the agent's step `name`.
    pub(crate) async fn measure<T>(&mut self, name: &str, work: impl Future<Output = T>) -> T {
        let start_us = now_us();
        let result = work.await;
        self.add(name, "agent", start_us, now_us());
        result
    }

    /// Notes the steps that the VMM measured itself.
    pub(crate) fn add_vmm(&mut self, steps: Vec<Step>) {
        for step in steps {
            self.add(&step.name, "vmm", step.start_us, step.end_us);
        }
    }

    /// Notes one step of the agent that has ended now.
    pub(crate) fn add_agent(&mut self, name: &str, start_us: i64) {
        self.add(name, "agent", start_us, now_us());
    }

    fn add(&mut self, name: &str, component: &str, start_us: i64, end_us: i64) {
        self.0.push(Stage {
            name: name.to_owned(),
            component: component.to_owned(),
            start_us,
            end_us,
        });
    }

    /// All steps.
    pub(crate) fn into_stages(mut self) -> Vec<Stage> {
        self.0.sort_by_key(|stage| stage.start_us);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn steps_come_in_order_of_their_start_with_who_measured_them() {
        let mut timeline = Timeline::default();
        let result = timeline.measure("spawn", async { 7 }).await;
        assert_eq!(result, 7);
        timeline.add_vmm(vec![Step {
            name: "memory".into(),
            start_us: 5,
            end_us: 9,
        }]);
        let stages = timeline.into_stages();
        let seen: Vec<_> = stages
            .iter()
            .map(|stage| (stage.component.as_str(), stage.name.as_str()))
            .collect();
        assert_eq!(seen, [("vmm", "memory"), ("agent", "spawn")]);
        assert!(stages[1].start_us <= stages[1].end_us);
    }
}
