//! Where the time of starts went, by the stages that daemons and VMMs report.

use std::collections::BTreeMap;

use longship_proto::control::v1::Stage;

use crate::document::{Bar, Table};
use crate::summary::{Summary, median, signed};

/// Durations of stages over many starts, in order of their usual beginning.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    /// By component and name: (beginning after the request, duration), milliseconds.
    seen: BTreeMap<(String, String), Vec<(f64, f64)>>,
}

impl Stages {
    /// Takes the stages of one start that was asked for at `asked_us`.
    pub(crate) fn add(&mut self, asked_us: i64, stages: &[Stage]) {
        // A stage may come more than once (a device each): its times add up.
        let mut sums: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
        for stage in stages.iter().filter(|stage| stage.end_us != 0) {
            let begin = signed(stage.start_us.saturating_sub(asked_us)) / 1000.0;
            let took = signed(stage.end_us.saturating_sub(stage.start_us)) / 1000.0;
            let key = (stage.component.clone(), stage.name.clone());
            sums.entry(key)
                .and_modify(|(_, sum)| *sum += took)
                .or_insert((begin, took));
        }
        for (key, times) in sums {
            self.seen.entry(key).or_default().push(times);
        }
    }

    /// The stages with their medians, in order of their beginning.
    fn in_order(&self) -> Vec<(String, f64, Summary)> {
        let mut rows: Vec<_> = self
            .seen
            .iter()
            .filter_map(|((component, name), times)| {
                let begins: Vec<f64> = times.iter().map(|(begin, _)| *begin).collect();
                let took: Vec<f64> = times.iter().map(|(_, took)| *took).collect();
                let name = format!("{component} {name}");
                Some((name, median(&begins)?, Summary::of(&took)?))
            })
            .collect();
        rows.sort_by(|a, b| a.1.total_cmp(&b.1));
        rows
    }

    /// As a table; `unit` is that of the times.
    pub(crate) fn table(&self, title: impl Into<String>, unit: &str) -> Table {
        let columns = ["stage", "begins", "median", "p75", "max"];
        let rows = self.in_order().into_iter().map(|(name, begin, took)| {
            let times = [begin, took.median, took.p75, took.max];
            let times = times.map(|time| format!("{time:.2}"));
            std::iter::once(name).chain(times).collect()
        });
        Table {
            title: format!("{} ({unit})", title.into()),
            columns: columns.map(str::to_owned).to_vec(),
            rows: rows.collect(),
        }
    }

    /// As one bar, of the stages that `of` measured, which follow one another.
    pub(crate) fn bar(&self, name: impl Into<String>, of: &str) -> Bar {
        let prefix = format!("{of} ");
        let pieces = self.in_order().into_iter().filter_map(|(name, _, took)| {
            Some((name.strip_prefix(&prefix)?.to_owned(), took.median))
        });
        Bar {
            name: name.into(),
            pieces: pieces.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(component: &str, name: &str, start_us: i64, end_us: i64) -> Stage {
        Stage {
            name: name.to_owned(),
            component: component.to_owned(),
            start_us,
            end_us,
        }
    }

    #[test]
    fn medians_in_order_of_beginning() {
        let mut stages = Stages::default();
        for took in [1000, 3000, 2000] {
            stages.add(
                10_000,
                &[
                    stage("agent", "spawn", 12_000, 12_000 + took),
                    stage("agent", "cgroup", 11_000, 11_500),
                    stage("vmm", "attach", 20_000, 20_100),
                    stage("vmm", "attach", 20_200, 20_300),
                    stage("agent", "boot", 20_000, 0),
                ],
            );
        }
        let table = stages.table("clone", "ms");
        let rows: Vec<String> = table.rows.iter().map(|row| row.join("|")).collect();
        assert_eq!(
            rows,
            [
                "agent cgroup|1.00|0.50|0.50|0.50",
                "agent spawn|2.00|2.00|2.50|3.00",
                "vmm attach|10.00|0.20|0.20|0.20",
            ]
        );
        let bar = stages.bar("clone", "agent");
        assert_eq!(
            bar.pieces,
            [("cgroup".to_owned(), 0.5), ("spawn".to_owned(), 2.0)]
        );
    }
}
