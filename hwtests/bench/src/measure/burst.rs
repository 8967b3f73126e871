//! `burst`: many at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use longship_proto::now_us;
use tokio::task::JoinSet;

use crate::cpu;
use crate::document::{Axis, Chart, Figure, Findings, Line, Table};
use crate::environment::Clock;
use crate::error::BenchError;
use crate::measure::stages::Stages;
use crate::subject::fleet::{Begun, Fleet, Kind};
use crate::subject::workshop::Workshop;
use crate::summary::{number, signed};

/// Many starts at once: percentiles, rate, CPU time, failures, time by stage
#[derive(Debug, Args)]
pub(crate) struct Burst {
    #[command(flatten)]
    kind: Kind,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// How many at most at the same time; where it is not given, all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: Option<u32>,
    /// Stop each as soon as it has begun, so that the rate is that of whole lives
    #[arg(long)]
    stop: bool,
    /// Times that all of it is done
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// What came of all rounds.
#[derive(Default)]
struct Outcome {
    latencies: Vec<f64>,
    from_card: Vec<f64>,
    /// By round: per second, and CPU milliseconds each.
    rates: Vec<f64>,
    cpu_ms: Vec<f64>,
    failures: BTreeMap<String, u32>,
    failed: Vec<f64>,
    stages: Stages,
    /// Of the last round: when each had begun, milliseconds after the first request.
    begun_ms: Vec<f64>,
}

impl Burst {
    pub(crate) async fn run(&self) -> Result<Findings, BenchError> {
        let workshop = Workshop::new()?;
        let fleet = Arc::new(self.kind.start(&workshop).await?);
        let mut outcome = Outcome::default();
        for round in 0..self.rounds {
            self.round(round, &fleet, &mut outcome).await?;
        }
        Ok(self.findings(outcome))
    }

    async fn round(
        &self,
        round: u32,
        fleet: &Arc<Fleet>,
        outcome: &mut Outcome,
    ) -> Result<(), BenchError> {
        let concurrency = self.concurrency.unwrap_or(self.count);
        let mut lives = JoinSet::new();
        let mut begun_ms = Vec::new();
        let mut failed = 0_u32;
        let (cpu_before, began_us) = (cpu::used_ms()?, now_us());
        let mut asked = 0;
        loop {
            while asked < self.count && lives.len() < concurrency as usize {
                let name = format!("b{round}-{asked}");
                lives.spawn(live(Arc::clone(fleet), self.kind.clone(), name, self.stop));
                asked += 1;
            }
            match lives.join_next().await {
                None => break,
                Some(Ok(Ok((begun, begun_us)))) => {
                    outcome.latencies.push(begun.latency_ms);
                    outcome.from_card.extend(begun.from_card_ms);
                    outcome.stages.add(begun.asked_us, &begun.stages);
                    begun_ms.push(signed(begun_us.saturating_sub(began_us)) / 1000.0);
                }
                Some(failure) => {
                    let why = match failure {
                        Ok(Err(error)) => error.to_string(),
                        Err(panic) => panic.to_string(),
                        Ok(Ok(_)) => continue,
                    };
                    failed += 1;
                    *outcome.failures.entry(why).or_default() += 1;
                }
            }
        }
        let took_ms = signed(now_us().saturating_sub(began_us)) / 1000.0;
        let used_ms = cpu::used_ms()?
            .zip(cpu_before)
            .map(|(now, then)| now - then);
        begun_ms.sort_by(f64::total_cmp);
        let good = number(begun_ms.len() as u64);
        // Where they stay, the rate is that of starts; else of starts and ends.
        let span_ms = if self.stop {
            took_ms
        } else {
            begun_ms.last().copied().unwrap_or(took_ms)
        };
        outcome.rates.push(good / span_ms * 1000.0);
        outcome
            .cpu_ms
            .extend(used_ms.map(|used| used / good.max(1.0)));
        outcome.failed.push(f64::from(failed));
        outcome.begun_ms = begun_ms;
        if !self.stop {
            self.clear(round, fleet).await;
        }
        Ok(())
    }

    /// Stops all of a round; those that failed to start are gone or go now.
    async fn clear(&self, round: u32, fleet: &Arc<Fleet>) {
        let mut ends = JoinSet::new();
        for index in 0..self.count {
            let fleet = Arc::clone(fleet);
            ends.spawn(async move { drop(fleet.stop(&format!("b{round}-{index}")).await) });
            if ends.len() >= 8 {
                ends.join_next().await;
            }
        }
        while ends.join_next().await.is_some() {}
    }

    fn findings(&self, outcome: Outcome) -> Findings {
        let unit = Clock::of_environment().unit();
        let name = self.kind.name();
        let kind = format!("{name}, {}", self.kind.origin.name());
        let many = self.kind.plural();
        let at_once = match self.concurrency {
            Some(n) => format!("{} {many}, {n} at a time", self.count),
            None => format!("{} {many} at once", self.count),
        };
        let id = |what: &str| format!("burst.{name}.{what}");
        let whole = if self.stop {
            "started and ended"
        } else {
            "started"
        };
        let figures = [
            Figure::of(
                id("latency"),
                format!("{kind}: latency"),
                unit,
                outcome.latencies,
            ),
            Figure::of(
                id("from-card"),
                format!("{kind}: card's first step → first output"),
                unit,
                outcome.from_card,
            ),
            Figure::of(
                id("rate"),
                format!("{kind}: {whole} a second"),
                "1/s",
                outcome.rates,
            ),
            Figure::of(
                id("cpu"),
                format!("{kind}: CPU time each"),
                "ms",
                outcome.cpu_ms,
            ),
            Figure::of(
                id("failures"),
                format!("{kind}: failures a round"),
                "",
                outcome.failed,
            ),
        ];
        let mut tables = vec![outcome.stages.table(format!("Stages, {at_once}"), unit)];
        if !outcome.failures.is_empty() {
            let rows = outcome.failures.into_iter();
            tables.push(Table {
                title: "Failures".to_owned(),
                columns: vec!["what".to_owned(), "times".to_owned()],
                rows: rows
                    .map(|(why, times)| vec![why, times.to_string()])
                    .collect(),
            });
        }
        let points = outcome.begun_ms.iter().zip(1_u32..);
        let points = points.map(|(ms, n)| (*ms, f64::from(n))).collect();
        Findings {
            figures: figures.into_iter().flatten().collect(),
            tables,
            charts: vec![
                Chart::Lines {
                    title: format!("{at_once}: how many had begun (last round)"),
                    x: Axis::new("time after the first request", unit),
                    y: Axis::new(many, ""),
                    lines: vec![Line { name: kind, points }],
                },
                Chart::Bars {
                    title: "Stages, medians".to_owned(),
                    x: Axis::new("time", unit),
                    bars: ["card", "agent", "vmm", "guest"]
                        .map(|of| outcome.stages.bar(of, of))
                        .into_iter()
                        .filter(|bar| !bar.pieces.is_empty())
                        .collect(),
                },
            ],
            notes: vec![format!(
                "{at_once}, {} rounds; the client runs on the same CPUs.",
                self.rounds
            )],
        }
    }
}

/// One life; when it had begun, too.
async fn live(
    fleet: Arc<Fleet>,
    kind: Kind,
    name: String,
    stop: bool,
) -> Result<(Begun, i64), BenchError> {
    let begun = fleet.run(&name, &kind).await?;
    let begun_us = now_us();
    if stop {
        fleet.stop(&name).await?;
    }
    Ok((begun, begun_us))
}
