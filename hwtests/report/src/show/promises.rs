//! What was promised beside what was measured.

use crate::document::{Document, Figure, Table};
use crate::environment::Clock;
use crate::show::show;
use crate::targets::{TARGETS, Target};

/// One line a promise.
pub fn promises(documents: &[Document]) -> Table {
    let columns = [
        "promise",
        "unit",
        "Firecracker",
        "first",
        "goal",
        "measured",
        "min",
        "max",
        "n",
        "",
    ];
    Table {
        title: "What was promised, and what was measured (medians)".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: TARGETS
            .iter()
            .map(|target| row(target, documents))
            .collect(),
    }
}

fn row(target: &Target, documents: &[Document]) -> Vec<String> {
    let mut cells = vec![
        target.title.to_owned(),
        target.unit.to_owned(),
        or_dash(target.firecracker),
        target.first.to_string(),
        target.goal.to_string(),
    ];
    match measured(target, documents) {
        None => cells.extend(["not measured", "", "", "", ""].map(str::to_owned)),
        Some(figure) => {
            let s = &figure.summary;
            let same_clock =
                target.unit != Clock::Instructions.unit() || figure.unit == target.unit;
            let mut median = show(s.median);
            if !same_clock {
                median += &format!(" {}", figure.unit);
            }
            cells.extend([median, show(s.min), show(s.max), s.n.to_string()]);
            cells.push(
                match same_clock {
                    false => "another clock",
                    true if target.goal.holds(s.median) => "goal",
                    true if target.first.holds(s.median) => "first",
                    true => "missed",
                }
                .to_owned(),
            );
        }
    }
    cells
}

/// The newest figure that shows it.
fn measured<'a>(target: &Target, documents: &'a [Document]) -> Option<&'a Figure> {
    let (label, id) = target.figure;
    documents
        .iter()
        .filter(|document| document.label == label)
        .filter_map(|document| {
            let mut figures = document.findings.figures.iter();
            let figure = figures.find(|figure| figure.id == id)?;
            Some((document.environment.time_us, figure))
        })
        .max_by_key(|(time, _)| *time)
        .map(|(_, figure)| figure)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "–" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::document;

    fn verdict(unit: &str, median: f64) -> Vec<String> {
        let figure = Figure::of("start.clone", "clone", unit, vec![median]);
        let table = promises(&[document(figure.into_iter().collect())]);
        let row = table.rows.iter().find(|row| row[0].starts_with("clone: "));
        row.unwrap().clone()
    }

    #[test]
    fn each_promise_is_judged_by_its_figure() {
        assert_eq!(verdict("ims", 9.0).last().unwrap(), "goal");
        assert_eq!(verdict("ims", 15.0).last().unwrap(), "first");
        assert_eq!(verdict("ims", 25.0).last().unwrap(), "missed");
        let other = verdict("ms", 9.0);
        assert_eq!(
            (other[5].as_str(), other[9].as_str()),
            ("9.00 ms", "another clock")
        );
    }

    #[test]
    fn what_was_not_measured_says_so() {
        let table = promises(&[]);
        assert_eq!(table.rows.len(), TARGETS.len());
        assert!(table.rows.iter().all(|row| row[5] == "not measured"));
    }
}
