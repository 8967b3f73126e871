//! What a benchmark has found, as plain data: it is printed, written as JSON and
//! drawn as HTML from this, and read back to be put together with others.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::error::{ReportError, file};
use crate::show;
use crate::summary::Summary;

/// Version of the JSON. It rises with every change that an older reader would
/// misunderstand.
pub const SCHEMA: u32 = 1;

/// One run of one benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The program that has measured it.
    #[serde(default = "sandboxes")]
    pub program: String,
    /// Which benchmark: `start`, `compare`…
    pub benchmark: String,
    /// Tells it from others of the same benchmark.
    pub label: String,
    /// The arguments it ran with.
    pub arguments: Vec<String>,
    /// Where.
    pub environment: Environment,
    /// What was found.
    #[serde(flatten)]
    pub findings: Findings,
}

/// Reports of the time before there were other programs that measure.
fn sandboxes() -> String {
    "longship-bench".to_owned()
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// What was measured.
    pub figures: Vec<Figure>,
    /// More, as text.
    pub tables: Vec<Table>,
    /// Drawings, in the HTML page only.
    pub charts: Vec<Chart>,
    /// What a reader must know to take the figures for what they are.
    pub notes: Vec<String>,
}

/// One measured quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Names it for ever, e.g. `start.clone`.
    pub id: String,
    /// Names it for a person.
    pub title: String,
    /// Of all its samples; empty for a count.
    pub unit: String,
    /// What is said of the samples.
    pub summary: Summary,
    /// Each as it was measured.
    pub samples: Vec<f64>,
}

/// Text in columns; the first column names the row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Names it for a person.
    pub title: String,
    /// Heads of the columns.
    pub columns: Vec<String>,
    /// One text a column.
    pub rows: Vec<Vec<String>>,
}

/// Something to be drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Chart {
    /// Lines through points.
    Lines {
        /// Names it for a person.
        title: String,
        /// To the right.
        x: Axis,
        /// Upwards.
        y: Axis,
        /// Each in a color of its own.
        lines: Vec<Line>,
    },
    /// One bar a row, of pieces that add up.
    Bars {
        /// Names it for a person.
        title: String,
        /// To the right.
        x: Axis,
        /// From the top.
        bars: Vec<Bar>,
    },
    /// From the least to the greatest sample, the middle half as a box, the median
    /// as a stroke.
    Spread {
        /// Names it for a person.
        title: String,
        /// To the right.
        x: Axis,
        /// From the top.
        rows: Vec<Spread>,
    },
}

/// What an axis shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Axis {
    /// Of what.
    pub title: String,
    /// Empty for a count.
    pub unit: String,
}

/// A line of a chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Names it for a person.
    pub name: String,
    /// In order of x.
    pub points: Vec<(f64, f64)>,
}

/// A bar of a chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// Names it for a person.
    pub name: String,
    /// Each with its name.
    pub pieces: Vec<(String, f64)>,
}

/// A row of a chart of spreads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Names it for a person.
    pub name: String,
    /// What it shows.
    pub summary: Summary,
}

impl Figure {
    /// Of samples; `None` where there is none.
    pub fn of(
        id: impl Into<String>,
        title: impl Into<String>,
        unit: impl Into<String>,
        samples: Vec<f64>,
    ) -> Option<Self> {
        Some(Self {
            id: id.into(),
            title: title.into(),
            unit: unit.into(),
            summary: Summary::of(&samples)?,
            samples,
        })
    }

    /// As a row of a chart.
    pub fn spread(&self, name: impl Into<String>) -> Spread {
        Spread {
            name: name.into(),
            summary: self.summary.clone(),
        }
    }
}

impl Axis {
    /// Of that in that unit.
    pub fn new(title: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            unit: unit.into(),
        }
    }
}

impl Document {
    /// A benchmark's findings on this machine, now; named as the benchmark where it is
    /// given no label.
    #[must_use]
    pub fn new(program: &str, benchmark: &str, label: Option<String>, findings: Findings) -> Self {
        Self {
            schema: SCHEMA,
            program: program.to_owned(),
            benchmark: benchmark.to_owned(),
            label: label.unwrap_or_else(|| benchmark.to_owned()),
            arguments: std::env::args().skip(1).collect(),
            environment: Environment::look(),
            findings,
        }
    }

    /// Prints it, and writes it where that is wanted.
    ///
    /// # Errors
    /// [`ReportError::File`], [`ReportError::NoNumber`].
    pub fn publish(
        &self,
        json: Option<&PathBuf>,
        html: Option<&PathBuf>,
    ) -> Result<(), ReportError> {
        print!("{}", show::text::document(self));
        if let Some(path) = json {
            write(path, &self.to_json()?)?;
        }
        if let Some(path) = html {
            write(path, &show::html::page(std::slice::from_ref(self)))?;
        }
        Ok(())
    }

    /// Reads one that was written as JSON.
    ///
    /// # Errors
    /// [`ReportError::File`], or [`ReportError::NoReport`] where it is none of this version.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let text = std::fs::read_to_string(path).map_err(file("read", path))?;
        Self::parse(&text).map_err(|why| ReportError::NoReport {
            path: path.to_owned(),
            why,
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let not_json = |error: serde_json::Error| format!("is no report: {error}");
        let value: serde_json::Value = serde_json::from_str(text).map_err(not_json)?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            Some(schema) => {
                return Err(format!(
                    "is a report of version {schema}; this program reads version {SCHEMA}"
                ));
            }
            None => return Err("is no report: it says no schema".to_owned()),
        }
        serde_json::from_value(value).map_err(not_json)
    }

    /// As JSON.
    ///
    /// # Errors
    /// [`ReportError::NoNumber`] where a figure is no number.
    pub fn to_json(&self) -> Result<String, ReportError> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(ReportError::NoNumber)
    }
}

/// Checks that a report could be written there: what takes minutes must not fail at its
/// end.
///
/// # Errors
/// [`ReportError::File`].
pub fn check_writable(path: &Path) -> Result<(), ReportError> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.create(true).append(true).open(path);
    opened.map(drop).map_err(file("write", path))
}

/// Writes a report's text.
///
/// # Errors
/// [`ReportError::File`].
pub fn write(path: &Path, text: &str) -> Result<(), ReportError> {
    std::fs::write(path, text).map_err(file("write", path))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn document(figures: Vec<Figure>) -> Document {
        Document {
            schema: SCHEMA,
            program: "longship-bench".to_owned(),
            benchmark: "start".to_owned(),
            label: "start".to_owned(),
            arguments: vec!["start".to_owned(), "--rounds=3".to_owned()],
            environment: Environment::default(),
            findings: Findings {
                figures,
                tables: vec![Table {
                    title: "Stages".to_owned(),
                    columns: vec!["stage".to_owned(), "ms".to_owned()],
                    rows: vec![vec!["spawn <vmm>".to_owned(), "1.5".to_owned()]],
                }],
                charts: vec![
                    Chart::Lines {
                        title: "Growth".to_owned(),
                        x: Axis::new("alive", ""),
                        y: Axis::new("lost", "MB"),
                        lines: vec![Line {
                            name: "clone".to_owned(),
                            points: vec![(1.0, 2.0), (8.0, 2.5)],
                        }],
                    },
                    Chart::Bars {
                        title: "Parts".to_owned(),
                        x: Axis::new("memory", "MB"),
                        bars: vec![Bar {
                            name: "pod".to_owned(),
                            pieces: vec![("guest".to_owned(), 2.0), ("vmm".to_owned(), 0.5)],
                        }],
                    },
                ],
                notes: vec!["a & b".to_owned()],
            },
        }
    }

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let figure = Figure::of("start.clone", "clone", "ms", vec![1.0, 2.0, 4.5]).unwrap();
        let document = document(vec![figure]);
        let text = document.to_json().unwrap();
        assert_eq!(Document::parse(&text).unwrap(), document);
    }

    #[test]
    fn another_version_and_what_is_no_report_are_refused() {
        let newer = document(Vec::new())
            .to_json()
            .unwrap()
            .replace("\"schema\": 1", "\"schema\": 2");
        let refused = Document::parse(&newer).unwrap_err();
        assert!(refused.contains("version 2"), "{refused}");
        for bad in ["", "[]", "{}", "{\"schema\": 1}", "{\"schema\": \"1\"}"] {
            let refused = Document::parse(bad).unwrap_err();
            assert!(refused.contains("is no report"), "{bad}: {refused}");
        }
    }

    #[test]
    fn a_figure_needs_a_sample() {
        assert_eq!(Figure::of("a", "a", "ms", Vec::new()), None);
    }
}
