//! `density`: more and more of them, and what each costs as their number grows.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::available::{KINDS, available, by_kind, settled};
use crate::cpu;
use crate::document::{Axis, Chart, Figure, Findings, Line, Table};
use crate::environment::Clock;
use crate::error::BenchError;
use crate::measure::stages::Stages;
use crate::smaps::own_memory;
use crate::subject::fleet::{Fleet, Kind};
use crate::subject::workshop::Workshop;
use crate::summary::{median, number};

/// Ever more sandboxes or pods: memory lost and cost of a start as they grow in number
#[derive(Debug, Args)]
pub(crate) struct Density {
    #[command(flatten)]
    kind: Kind,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Start no more when less than this is available
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    keep_free: u64,
    /// Start no more after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    time: u64,
    /// How many times memory is looked at on the way
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=100))]
    points: u32,
    /// Milliseconds before each of these looks, for what starts leave running
    #[arg(long, value_name = "MS", default_value_t = 3000)]
    calm: u64,
}

/// A look at the machine on the way.
#[derive(Debug, Clone, Copy)]
struct Point {
    alive: u32,
    /// Lost since the beginning, bytes.
    lost: f64,
    /// Milliseconds of CPU time for each start since the last look, where known.
    cpu_ms: Option<f64>,
    /// Median latency since the last look.
    latency_ms: f64,
}

impl Density {
    pub(crate) async fn run(&self) -> Result<Findings, BenchError> {
        let workshop = Workshop::new()?;
        let fleet = Arc::new(self.kind.start(&workshop).await?);
        // Twice, since the first of anything leaves caches behind.
        fleet.run("warm-up-2", &self.kind).await?;
        fleet.stop("warm-up-2").await?;
        let daemons_before = daemons(&fleet);
        let base = self.available().await?;
        let kinds_before = by_kind()?;

        let give_up = Instant::now() + Duration::from_secs(self.time);
        let mut points: Vec<Point> = Vec::new();
        let (mut latencies, mut from_card, mut stages) =
            (Vec::new(), Vec::new(), Stages::default());
        let mut since = 0;
        let (mut alive, mut why) = (0, "the count was reached".to_owned());
        let mut cpu_before = cpu::used_ms()?;
        while alive < self.count {
            if available()? < self.keep_free << 20 {
                why = format!("less than {} MiB was available", self.keep_free);
                break;
            }
            if Instant::now() > give_up {
                why = format!("{} s had passed", self.time);
                break;
            }
            let name = format!("d-{alive}");
            match fleet.run(&name, &self.kind).await {
                Ok(begun) => {
                    latencies.push(begun.latency_ms);
                    from_card.extend(begun.from_card_ms);
                    stages.add(begun.asked_us, &begun.stages);
                    alive += 1;
                }
                Err(error) => {
                    why = format!("one could not be started: {error}");
                    break;
                }
            }
            if alive * self.points / self.count > (alive - 1) * self.points / self.count {
                let used = cpu::used_ms()?
                    .zip(cpu_before)
                    .map(|(now, then)| now - then);
                let new = latencies.get(since..).unwrap_or_default();
                points.push(Point {
                    alive,
                    lost: base - self.available().await?,
                    cpu_ms: used.map(|used| used / number(new.len() as u64).max(1.0)),
                    latency_ms: median(new).unwrap_or_default(),
                });
                since = latencies.len();
                cpu_before = cpu::used_ms()?;
            }
        }
        let lost = base - self.available().await?;
        let kinds = by_kind()?;
        let daemons_after = daemons(&fleet);
        let silent = silent(&fleet, alive).await;
        clear(&fleet, alive).await;
        let left = base - self.available().await?;
        let grown = daemons_before.iter().zip(&daemons_after);
        let grown = grown.map(|((name, before), (_, after))| (*name, after - before));
        let seen = Seen {
            points,
            latencies,
            from_card,
            stages,
            alive,
            why,
            lost,
            left,
            silent,
            grown: grown.collect(),
            kinds: std::array::from_fn(|kind| {
                let at = |of: &[f64]| of.get(kind).copied().unwrap_or_default();
                at(&kinds) - at(&kinds_before)
            }),
        };
        Ok(self.findings(seen))
    }

    /// Memory that is available once all is calm, bytes.
    async fn available(&self) -> Result<f64, BenchError> {
        tokio::time::sleep(Duration::from_millis(self.calm)).await;
        settled().await
    }

    fn findings(&self, seen: Seen) -> Findings {
        let unit = Clock::of_environment().unit();
        let name = self.kind.name();
        let kind = format!("{name}, {}", self.kind.origin.name());
        let id = |what: &str| format!("density.{name}.{what}");
        let each = |bytes: f64| bytes / f64::from(seen.alive.max(1)) / 1e6;
        let growth = |of: fn(&Point) -> Option<f64>| {
            let (first, last) = (seen.points.first()?, seen.points.last()?);
            Some((of(last)? / of(first)? - 1.0) * 100.0)
        };
        let one = |what: &str, title: &str, unit: &str, value: Option<f64>| {
            let samples = value.into_iter().collect();
            Figure::of(id(what), format!("{kind}: {title}"), unit, samples)
        };
        let mut figures = vec![
            one("alive", "alive at once", "", Some(f64::from(seen.alive))),
            one(
                "lost",
                "available memory lost, each",
                "MB",
                Some(each(seen.lost)),
            ),
            one(
                "left",
                "available memory lost after all have ended",
                "MB",
                Some(seen.left / 1e6),
            ),
            one(
                "silent",
                "that did not answer",
                "",
                Some(number(seen.silent.len() as u64)),
            ),
            one(
                "growth.cpu",
                "CPU time of a start, last part against first",
                "%",
                growth(|p| p.cpu_ms),
            ),
            one(
                "growth.latency",
                "latency, last part against first",
                "%",
                growth(|p| Some(p.latency_ms)),
            ),
        ];
        for (daemon, bytes) in &seen.grown {
            let title = format!("anonymous memory of the {daemon}, each");
            figures.push(one(
                &format!("daemon.{daemon}"),
                &title,
                "MB",
                Some(each(*bytes)),
            ));
        }
        figures.push(Figure::of(
            id("latency"),
            format!("{kind}: latency"),
            unit,
            seen.latencies.clone(),
        ));
        figures.push(Figure::of(
            id("from-card"),
            format!("{kind}: card's first step → first output"),
            unit,
            seen.from_card,
        ));
        let rows = seen.points.iter().map(|point| {
            let each = point.lost / f64::from(point.alive) / 1e6;
            let cells = [Some(each), point.cpu_ms, Some(point.latency_ms)];
            let cells =
                cells.map(|cell| cell.map_or("–".to_owned(), |value| format!("{value:.2}")));
            std::iter::once(point.alive.to_string())
                .chain(cells)
                .collect()
        });
        let columns = [
            "alive",
            "MB lost, each",
            "CPU ms a start",
            &format!("latency, {unit}"),
        ];
        let mut tables = vec![
            Table {
                title: format!("As they grow in number ({kind})"),
                columns: columns.map(str::to_owned).to_vec(),
                rows: rows.collect(),
            },
            Table {
                title: format!("Where it went, by the kernel's counts ({kind})"),
                columns: vec!["kind".to_owned(), "MB, each".to_owned()],
                rows: KINDS
                    .iter()
                    .zip(seen.kinds)
                    .map(|((_, title), bytes)| {
                        vec![(*title).to_owned(), format!("{:.3}", each(bytes))]
                    })
                    .collect(),
            },
            seen.stages.table(format!("Stages ({kind})"), unit),
        ];
        if !seen.silent.is_empty() {
            tables.push(Table {
                title: "That did not answer".to_owned(),
                columns: vec!["what".to_owned()],
                rows: seen.silent.iter().map(|why| vec![why.clone()]).collect(),
            });
        }
        let line = |of: &dyn Fn(&Point) -> Option<f64>| Line {
            name: kind.clone(),
            points: seen
                .points
                .iter()
                .filter_map(|point| Some((f64::from(point.alive), of(point)?)))
                .collect(),
        };
        let axis = || Axis::new("alive", "");
        let numbered = seen.latencies.iter().zip(1_u32..);
        let starts = Line {
            name: kind.clone(),
            points: numbered.map(|(ms, n)| (f64::from(n), *ms)).collect(),
        };
        let mut charts = vec![
            Chart::Lines {
                title: "Available memory lost, each".to_owned(),
                x: axis(),
                y: Axis::new("memory", "MB"),
                lines: vec![line(&|point| {
                    Some(point.lost / f64::from(point.alive) / 1e6)
                })],
            },
            Chart::Lines {
                title: "Latency of a start".to_owned(),
                x: axis(),
                y: Axis::new("time", unit),
                lines: vec![starts],
            },
        ];
        if seen.points.iter().any(|point| point.cpu_ms.is_some()) {
            charts.push(Chart::Lines {
                title: "CPU time of a start".to_owned(),
                x: axis(),
                y: Axis::new("time", "ms"),
                lines: vec![line(&|point| point.cpu_ms)],
            });
        }
        Findings {
            figures: figures.into_iter().flatten().collect(),
            tables,
            charts,
            notes: vec![format!(
                "{} alive: {}. Memory: what is free or file cache, before and after, caches \
                 dropped, still; all that they cost is in it, whoever holds it; the template \
                 is not.",
                seen.alive, seen.why
            )],
        }
    }
}

/// All that was seen.
struct Seen {
    points: Vec<Point>,
    latencies: Vec<f64>,
    from_card: Vec<f64>,
    stages: Stages,
    alive: u32,
    why: String,
    lost: f64,
    left: f64,
    silent: Vec<String>,
    grown: Vec<(&'static str, f64)>,
    /// What each of [`KINDS`] has grown by, bytes.
    kinds: [f64; KINDS.len()],
}

/// Anonymous memory of each daemon, bytes.
fn daemons(fleet: &Fleet) -> Vec<(&'static str, f64)> {
    let daemons = fleet.daemons().into_iter();
    daemons
        .map(|(name, pid)| {
            let own = own_memory(pid, u64::MAX).unwrap_or_default();
            (name, number(own.anonymous))
        })
        .collect()
}

/// Those of `alive` that do not answer, and why.
async fn silent(fleet: &Arc<Fleet>, alive: u32) -> Vec<String> {
    let mut silent = Vec::new();
    for index in 0..alive {
        if let Err(error) = fleet.answers(&format!("d-{index}")).await {
            silent.push(error.to_string());
        }
    }
    silent
}

async fn clear(fleet: &Arc<Fleet>, alive: u32) {
    let mut ends = JoinSet::new();
    for index in 0..alive {
        let fleet = Arc::clone(fleet);
        ends.spawn(async move { drop(fleet.stop(&format!("d-{index}")).await) });
        if ends.len() >= 8 {
            ends.join_next().await;
        }
    }
    while ends.join_next().await.is_some() {}
}
