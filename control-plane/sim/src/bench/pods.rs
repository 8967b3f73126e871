//! Pods from create to Running, as a watcher sees them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use longship_report::document::{Figure, Findings, Table};
use longship_report::show::show;
use longship_report::summary::{Summary, number, signed};

use super::follow::{Follower, Seen};
use super::load;
use super::place::{Place, PlaceOptions, mb};
use crate::client::Client;
use crate::fleet::{Fleet, FleetShape};
use crate::usage::Usage;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Many pods at once: from create to Running as a watcher sees it
#[derive(Debug, Args)]
pub(crate) struct Pods {
    /// Simulated cards
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    cards: u32,
    /// Pods a round
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pods: u32,
    /// Clients that create at the same time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// Pods a request; 1: CreatePod, else CreatePods
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Rounds that count; one of a tenth of the pods goes before
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    #[command(flatten)]
    place: PlaceOptions,
}

/// What the rounds have found.
#[derive(Default)]
pub(crate) struct Samples {
    /// From the first request until all were seen running, each round.
    pub(crate) seconds: Vec<f64>,
    create_seconds: Vec<f64>,
    delete_seconds: Vec<f64>,
    cpu_ms: Vec<f64>,
    own_cpu_ms: Vec<f64>,
    resident: Vec<f64>,
    stages: [Vec<f64>; 6],
}

/// The stages of a pod's way, each from the end of the one before.
const STAGES: [&str; 6] = [
    "create: request → answer",
    "create's request → decided",
    "decided → at the card",
    "at the card → running there (simulated)",
    "running there → seen by the watcher",
    "all: request → seen running",
];

impl Pods {
    pub(crate) async fn run(&self) -> anyhow::Result<Findings> {
        let shape = FleetShape {
            cards: usize::try_from(self.cards)?,
            ..FleetShape::default()
        };
        let place = Place::new(&self.place).await?;
        let mut bed = Bed::new(place, &shape, self.clients.into()).await?;
        let (pods, batch) = (usize::try_from(self.pods)?, usize::from(self.batch));
        bed.round(pods.div_ceil(10), batch, &mut Samples::default())
            .await?;
        let mut samples = Samples::default();
        let (reports, _) = bed.fleet.counts().reports();
        let seen = bed.follower.seen;
        for _ in 0..self.rounds {
            bed.round(pods, batch, &mut samples).await?;
        }
        let usage = bed.place.usage()?;
        let all = number(u64::from(self.pods)) * f64::from(self.rounds);
        let a_pod = |count: usize| show(number(u64::try_from(count).unwrap_or(0)) / all);
        let (reports_now, _) = bed.fleet.counts().reports();
        let mut findings = samples.findings(f64::from(self.pods));
        findings.notes.extend([
            format!(
                "{} reports and {} watch events a pod, its deletion included",
                a_pod(reports_now - reports),
                a_pod(bed.follower.seen - seen)
            ),
            format!(
                "the control plane's memory was at most {} MB",
                show(mb(usage.most))
            ),
            "cards, clients and the watcher run on the same CPUs as the control plane; \
             their CPU time stands beside it"
                .to_owned(),
        ]);
        Ok(findings)
    }
}

/// A control plane with cards, clients and a watcher.
pub(crate) struct Bed {
    place: Place,
    fleet: Fleet,
    clients: Vec<Client>,
    follower: Follower,
}

impl Bed {
    pub(crate) async fn new(
        place: Place,
        shape: &FleetShape,
        clients: usize,
    ) -> anyhow::Result<Self> {
        let fleet = place.cards(shape).await?;
        let watcher = place.clients(1).await?.pop().context("a client")?;
        Ok(Self {
            clients: place.clients(clients).await?,
            follower: Follower::new(&watcher).await?,
            place,
            fleet,
        })
    }

    /// So many pods come, run, and go.
    pub(crate) async fn round(
        &mut self,
        count: usize,
        batch: usize,
        samples: &mut Samples,
    ) -> anyhow::Result<()> {
        let before = (self.place.usage()?, Usage::own()?);
        let begun = Instant::now();
        let names = (0..count).map(|number| format!("pod-{number:06}"));
        let creating = load::create(&self.clients, names.collect(), batch);
        let waiting = async {
            let running = tokio::time::timeout(PATIENCE, self.follower.running(count)).await;
            running.context("the pods do not all run in time")?
        };
        let (created, running) = tokio::try_join!(creating, waiting)?;
        samples.seconds.push(begun.elapsed().as_secs_f64());
        let after = (self.place.usage()?, Usage::own()?);
        samples.create_seconds.push(created.took.as_secs_f64());
        samples
            .cpu_ms
            .push(number(after.0.cpu_ms - before.0.cpu_ms));
        samples
            .own_cpu_ms
            .push(number(after.1.cpu_ms - before.1.cpu_ms));
        samples.resident.push(mb(after.0.resident));
        samples.add_stages(&created.calls, &running)?;

        let begun = Instant::now();
        let names: Vec<String> = running.into_keys().collect();
        let deleting = load::delete(&self.clients, names);
        let waiting = async {
            let gone = tokio::time::timeout(PATIENCE, self.follower.gone(count)).await;
            gone.context("the pods do not all go in time")?
        };
        tokio::try_join!(deleting, waiting)?;
        samples.delete_seconds.push(begun.elapsed().as_secs_f64());
        Ok(())
    }
}

impl Samples {
    fn add_stages(
        &mut self,
        calls: &HashMap<String, (i64, i64)>,
        running: &HashMap<String, Seen>,
    ) -> anyhow::Result<()> {
        for (name, seen) in running {
            let (asked, answered) = *calls.get(name).context("a pod that nobody created")?;
            let status = seen.pod.status.as_ref().context("a pod without status")?;
            let stage = |name: &str| {
                let found = status.timeline.iter().find(|stage| stage.name == name);
                found.with_context(|| format!("no stage `{name}` in the timeline"))
            };
            let decided = stage("schedule")?.end_us;
            let at_card = stage("image")?.start_us;
            let ran = stage("container")?.end_us;
            let ms = |from: i64, to: i64| signed(to - from) / 1000.0;
            let took = [
                ms(asked, answered),
                ms(asked, decided),
                ms(decided, at_card),
                ms(at_card, ran),
                ms(ran, seen.at_us),
                ms(asked, seen.at_us),
            ];
            for (samples, took) in self.stages.iter_mut().zip(took) {
                samples.push(took);
            }
        }
        ensure!(!running.is_empty(), "no pod ran");
        Ok(())
    }

    fn findings(self, pods: f64) -> Findings {
        let rate = self.seconds.iter().map(|seconds| pods / seconds).collect();
        let figures = [
            Figure::of(
                "pods.seconds",
                "all created → all seen running",
                "s",
                self.seconds,
            ),
            Figure::of("pods.rate", "pods a second", "1/s", rate),
            Figure::of("pods.create", "all created", "s", self.create_seconds),
            Figure::of(
                "pods.delete",
                "all deleted → all gone",
                "s",
                self.delete_seconds,
            ),
            Figure::of(
                "pods.cpu",
                "CPU time of the control plane",
                "ms",
                self.cpu_ms,
            ),
            Figure::of(
                "pods.cpu.cards",
                "CPU time of cards, clients, watcher",
                "ms",
                self.own_cpu_ms,
            ),
            Figure::of(
                "pods.resident",
                "resident memory of the control plane",
                "MB",
                self.resident,
            ),
        ];
        let columns = ["a pod's way", "p50", "p90", "p99", "max"].map(str::to_owned);
        let rows = STAGES
            .iter()
            .zip(&self.stages)
            .filter_map(|(name, samples)| {
                let s = Summary::of(samples)?;
                let values = [s.median, s.p90, s.p99, s.max].map(show);
                Some([(*name).to_owned()].into_iter().chain(values).collect())
            });
        Findings {
            figures: figures.into_iter().flatten().collect(),
            tables: vec![Table {
                title: "Where the time of a pod goes, ms".to_owned(),
                columns: columns.to_vec(),
                rows: rows.collect(),
            }],
            ..Findings::default()
        }
    }
}
