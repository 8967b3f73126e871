//! `start`: from the request at the agent to the guest's first act.

use clap::Args;

use crate::arguments::{Machine, Origin, Programs};
use crate::document::{Axis, Chart, Figure, Findings};
use crate::environment::Clock;
use crate::error::BenchError;
use crate::measure::stages::Stages;
use crate::subject::agent::Agent;
use crate::subject::workshop::Workshop;

/// Starts of a sandbox: cold, cloned from a template, and from the warm pool
#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    machine: Machine,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Origin::Cold, Origin::Clone, Origin::Warm])]
    origins: Vec<Origin>,
    /// Rounds; each starts one sandbox of every kind
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Rounds before, which do not count
    #[arg(long, value_name = "N", default_value_t = 2)]
    warm_up: u32,
    /// Paused clones that the pool keeps for `warm`
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pool: u32,
}

/// An agent that makes its sandboxes in one way.
struct Lane {
    origin: Origin,
    agent: Agent,
    latencies: Vec<f64>,
    stops: Vec<f64>,
    stages: Stages,
}

impl Start {
    pub(crate) async fn run(&self) -> Result<Findings, BenchError> {
        let files = self.programs.find()?;
        let workshop = Workshop::new()?;
        let mut lanes: Vec<Lane> = Vec::new();
        for &origin in &self.origins {
            if lanes.iter().any(|lane| lane.origin == origin) {
                continue;
            }
            let flags = origin.agent_flags(self.pool);
            let agent =
                Agent::start(&files, self.machine, &workshop, origin.name(), &flags).await?;
            lanes.push(Lane {
                origin,
                agent,
                latencies: Vec::new(),
                stops: Vec::new(),
                stages: Stages::default(),
            });
        }
        for round in 0..self.warm_up.saturating_add(self.rounds) {
            let counts = round >= self.warm_up;
            // Every second round goes backwards, so that none is always the first.
            let order: Vec<&mut Lane> = match round % 2 {
                0 => lanes.iter_mut().collect(),
                _ => lanes.iter_mut().rev().collect(),
            };
            for lane in order {
                lane.start(round, counts, self.pool).await?;
            }
        }
        Ok(findings(&lanes))
    }
}

impl Lane {
    async fn start(&mut self, round: u32, counts: bool, pool: u32) -> Result<(), BenchError> {
        let wanted = if self.origin == Origin::Warm { pool } else { 0 };
        if self.origin != Origin::Cold && round > 0 {
            // The first sandbox had the template made. Nothing of that, or of the
            // pool's filling, is to go on while the next is measured.
            self.agent.template_ready(wanted).await?;
        }
        let id = format!("{}-{round}", self.origin.name());
        let started = self.agent.run(&id).await?;
        let stopping = longship_proto::now_us();
        self.agent.stop(&id).await?;
        let stopped = longship_proto::now_us();
        if wanted > 0 {
            self.agent.template_ready(wanted).await?;
        }
        if counts {
            self.latencies.push(started.latency_ms());
            let took = stopped.saturating_sub(stopping);
            self.stops.push(crate::summary::signed(took) / 1000.0);
            self.stages.add(started.asked_us, &started.stages);
        }
        Ok(())
    }
}

fn findings(lanes: &[Lane]) -> Findings {
    let unit = Clock::of_environment().unit();
    let mut findings = Findings {
        notes: vec![
            "From before the PrepareSandbox call of a client at the agent's socket until the \
             guest's first act, which the VMM times; no devices. Between two starts the warm \
             pool is filled again."
                .to_owned(),
        ],
        ..Findings::default()
    };
    let (mut spreads, mut bars) = (Vec::new(), Vec::new());
    for lane in lanes {
        let name = lane.origin.name();
        let figure = Figure::of(
            format!("start.{name}"),
            format!("{name}: request → guest's first act"),
            unit,
            lane.latencies.clone(),
        );
        spreads.extend(figure.iter().map(|figure| figure.spread(name)));
        let stop = Figure::of(
            format!("start.{name}.stop"),
            format!("{name}: stop"),
            unit,
            lane.stops.clone(),
        );
        findings.figures.extend(figure.into_iter().chain(stop));
        findings
            .tables
            .push(lane.stages.table(format!("Stages, {name}"), unit));
        bars.push(lane.stages.bar(name, "agent"));
    }
    findings.charts = vec![
        Chart::Spread {
            title: "Request → guest's first act".to_owned(),
            x: Axis::new("time", unit),
            rows: spreads,
        },
        Chart::Bars {
            title: "The agent's stages, medians".to_owned(),
            x: Axis::new("time", unit),
            bars,
        },
    ];
    findings
}
