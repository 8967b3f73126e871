//! Tables on a terminal.

use std::fmt::Write;

use comfy_table::presets::NOTHING;

use crate::document::{Document, Figure, Table};
use crate::show::show;

/// Everything of a report but its charts.
pub fn document(document: &Document) -> String {
    let mut text = String::new();
    let environment = &document.environment;
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "\n== {}: {} {}",
        document.label,
        document.program,
        document.arguments.join(" ")
    );
    let _ = writeln!(
        text,
        "{}{}, Linux {}, {} CPUs, {} MB; times: {}",
        if environment.testbed { "testbed, " } else { "" },
        environment.cpu_model,
        environment.kernel,
        environment.cpus,
        environment.memory_bytes / 1_000_000,
        environment.clock.describe(),
    );
    let _ = writeln!(text, "{}", table(&figures(&document.findings.figures)));
    for found in &document.findings.tables {
        let _ = writeln!(text, "{}\n{}", found.title, table(found));
    }
    for note in &document.findings.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// Figures with their spread, as a table.
pub fn figures(figures: &[Figure]) -> Table {
    let columns = [
        "figure", "unit", "min", "p25", "median", "p75", "p99", "max", "n",
    ];
    let rows = figures.iter().map(|figure| {
        let s = &figure.summary;
        let values = [s.min, s.p25, s.median, s.p75, s.p99, s.max].map(show);
        [figure.title.clone(), figure.unit.clone()]
            .into_iter()
            .chain(values)
            .chain([s.n.to_string()])
            .collect()
    });
    Table {
        title: "Figures".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

/// A table.
pub fn table(table: &Table) -> String {
    let mut shown = comfy_table::Table::new();
    shown.load_style(NOTHING).set_header(&table.columns);
    for row in &table.rows {
        shown.add_row(row);
    }
    shown.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::document as sample;

    #[test]
    fn a_report_shows_its_figures_tables_notes_and_clock() {
        let figure = Figure::of("start.clone", "clone: start", "ms", vec![1.0, 2.0, 4.5]);
        let text = document(&sample(figure.into_iter().collect()));
        for part in [
            "clone: start",
            "4.50",
            "spawn <vmm>",
            "note: a & b",
            "wall clock",
        ] {
            assert!(text.contains(part), "`{part}` is missing in\n{text}");
        }
    }
}
