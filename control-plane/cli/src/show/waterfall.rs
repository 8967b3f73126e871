//! Where a pod's start time went: one bar a step, on one scale.

use std::fmt::Write;

use longship_proto::control::v1::Stage;

use super::time::length;

/// Cells of the longest bar.
const WIDTH: i64 = 48;

/// The waterfall of `stages` as lines of text; a step that still goes on ends at
/// `now_us` and is marked.
pub(crate) fn waterfall(stages: &[Stage], now_us: i64) -> String {
    let mut stages: Vec<&Stage> = stages.iter().filter(|stage| stage.start_us > 0).collect();
    stages.sort_by_key(|stage| (stage.start_us, std::cmp::Reverse(stage.end_us)));
    let end_of = |stage: &Stage| {
        let end = if stage.end_us == 0 {
            now_us
        } else {
            stage.end_us
        };
        end.max(stage.start_us)
    };
    let Some(first) = stages.iter().map(|stage| stage.start_us).min() else {
        return String::new();
    };
    let last = stages
        .iter()
        .map(|stage| end_of(stage))
        .max()
        .unwrap_or(first);
    let total = last.saturating_sub(first).max(1);
    let cell = |time: i64| {
        let cells = i128::from(time.saturating_sub(first)) * i128::from(WIDTH) / i128::from(total);
        usize::try_from(cells).unwrap_or(0)
    };
    let widest = |of: fn(&Stage) -> &str| {
        stages
            .iter()
            .map(|stage| of(stage).chars().count())
            .max()
            .unwrap_or(0)
    };
    let name_width = widest(|stage| &stage.name);
    let component_width = widest(|stage| &stage.component);
    let mut text = String::new();
    for stage in stages {
        let (from, to) = (cell(stage.start_us), cell(end_of(stage)));
        let bar = if to > from {
            "█".repeat(to - from)
        } else {
            "▏".to_owned()
        };
        let open = if stage.end_us == 0 { "…" } else { "" };
        let at = length(stage.start_us - first);
        let took = length(end_of(stage) - stage.start_us);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:component_width$}  {:name_width$}  {at:>8}  {took:>8}  {}{bar}{open}",
            stage.component,
            stage.name,
            " ".repeat(from),
        );
    }
    let _ = writeln!(text, "  {} in all", length(total));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stage(name: &str, component: &str, start_us: i64, end_us: i64) -> Stage {
        Stage {
            name: name.into(),
            component: component.into(),
            start_us,
            end_us,
        }
    }

    #[test]
    fn bars_lie_where_their_steps_do() {
        let text = waterfall(
            &[
                stage("boot", "card", 600_000, 1_001_000),
                stage("schedule", "control", 1000, 1500),
                stage("image", "card", 1000, 501_000),
                stage("container", "guest", 1_001_000, 0),
            ],
            1_001_000,
        );
        let expected = "  card     image        0.0 ms    500 ms  ████████████████████████
  control  schedule     0.0 ms    0.5 ms  ▏
  card     boot         599 ms    401 ms                              ████████████████████
  guest    container    1.00 s    0.0 ms                                                  ▏…
  1.00 s in all
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn nothing_is_shown_for_nothing() {
        assert_eq!(waterfall(&[], 5), "");
        assert_eq!(waterfall(&[stage("later", "card", 0, 0)], 5), "");
    }

    proptest! {
        #[test]
        fn no_times_make_it_panic_or_too_wide(
            times in prop::collection::vec((any::<i64>(), any::<i64>()), 0..8), now in any::<i64>(),
        ) {
            let stages: Vec<Stage> =
                times.iter().map(|(start, end)| stage("s", "c", *start, *end)).collect();
            for line in waterfall(&stages, now).lines() {
                prop_assert!(line.chars().count() < 120, "{line}");
            }
        }
    }
}
