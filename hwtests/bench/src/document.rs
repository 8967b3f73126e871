//! What a benchmark has found, as plain data: it is printed, written as JSON and
//! drawn as HTML from this, and read back to be put together with others.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::error::{BenchError, file};
use crate::summary::Summary;

/// Version of the JSON. It rises with every change that an older reader would
/// misunderstand.
pub(crate) const SCHEMA: u32 = 1;

/// One run of one benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// Which benchmark: `start`, `compare`…
    pub(crate) benchmark: String,
    /// Tells it from others of the same benchmark.
    pub(crate) label: String,
    /// The arguments it ran with.
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Environment,
    #[serde(flatten)]
    pub(crate) findings: Findings,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Findings {
    pub(crate) figures: Vec<Figure>,
    pub(crate) tables: Vec<Table>,
    pub(crate) charts: Vec<Chart>,
    /// What a reader must know to take the figures for what they are.
    pub(crate) notes: Vec<String>,
}

/// One measured quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// Names it for ever, e.g. `start.clone`.
    pub(crate) id: String,
    /// Names it for a person.
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) summary: Summary,
    pub(crate) samples: Vec<f64>,
}

/// Text in columns; the first column names the row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// Something to be drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Chart {
    /// Lines through points.
    Lines {
        title: String,
        x: Axis,
        y: Axis,
        lines: Vec<Line>,
    },
    /// One bar a row, of pieces that add up.
    Bars {
        title: String,
        x: Axis,
        bars: Vec<Bar>,
    },
    /// From the least to the greatest sample, the middle half as a box, the median
    /// as a stroke.
    Spread {
        title: String,
        x: Axis,
        rows: Vec<Spread>,
    },
}

/// What an axis shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Axis {
    pub(crate) title: String,
    /// Empty for a count.
    pub(crate) unit: String,
}

/// A line of a chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A bar of a chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) pieces: Vec<(String, f64)>,
}

/// A row of a chart of spreads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) name: String,
    pub(crate) summary: Summary,
}

impl Figure {
    /// Of samples; `None` where there is none.
    pub(crate) fn of(
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
    pub(crate) fn spread(&self, name: impl Into<String>) -> Spread {
        Spread {
            name: name.into(),
            summary: self.summary.clone(),
        }
    }
}

impl Axis {
    pub(crate) fn new(title: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            unit: unit.into(),
        }
    }
}

impl Document {
    /// Reads one that was written as JSON.
    ///
    /// # Errors
    /// [`BenchError::File`], or [`BenchError::NoReport`] where it is none of this version.
    pub(crate) fn read(path: &Path) -> Result<Self, BenchError> {
        let text = std::fs::read_to_string(path).map_err(file("read", path))?;
        Self::parse(&text).map_err(|why| BenchError::NoReport {
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
    /// [`BenchError::Impossible`] where a figure is no number.
    pub(crate) fn to_json(&self) -> Result<String, BenchError> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|error| BenchError::Impossible(format!("write the report: {error}")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn document(figures: Vec<Figure>) -> Document {
        Document {
            schema: SCHEMA,
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
