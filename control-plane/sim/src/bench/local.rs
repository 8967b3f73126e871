//! Whether one pod's change costs the same however large the cluster is.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use longship_report::document::{Figure, Findings, Table};
use longship_report::show::show;
use longship_report::summary::{Summary, number};

use super::follow::Follower;
use super::load;
use super::place::{Place, PlaceOptions};
use crate::client::Client;
use crate::fleet::FleetShape;

/// How long nothing is done, to see what heartbeats cost by themselves.
const IDLE: Duration = Duration::from_secs(4);

/// What one pod's life costs, in clusters of several sizes
#[derive(Debug, Args)]
pub(crate) struct Local {
    /// Hosts, each with a card
    #[arg(long, value_delimiter = ',', default_values_t = [10, 10_000])]
    hosts: Vec<u32>,
    /// Pods that are stored already
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 100_000])]
    pods: Vec<u32>,
    /// Pods a round that come and go
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    changes: u32,
    /// Rounds that count; one goes before
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Pods a request while the cluster is filled; 1: CreatePod, else CreatePods
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    #[command(flatten)]
    place: PlaceOptions,
}

/// What was found in one cluster.
struct Size {
    hosts: u32,
    pods: u32,
    /// CPU time of the control plane for one pod's life, microseconds, a round.
    cpu_us: Vec<f64>,
    /// From create to seen running, seconds, all pods of a round.
    seconds: Vec<f64>,
}

impl Local {
    pub(crate) async fn run(&self) -> anyhow::Result<Findings> {
        let mut sizes = Vec::new();
        for hosts in &self.hosts {
            for pods in &self.pods {
                sizes.push(self.measure(*hosts, *pods).await?);
            }
        }
        let smallest = sizes.first().context("no size")?;
        let median = |samples: &[f64]| Summary::of(samples).map_or(f64::NAN, |s| s.median);
        let (cpu, seconds) = (median(&smallest.cpu_us), median(&smallest.seconds));
        let mut figures = Vec::new();
        let mut rows = Vec::new();
        for size in &sizes {
            let name = format!("{} hosts, {} pods", size.hosts, size.pods);
            let id = format!("local.cpu.{}.{}", size.hosts, size.pods);
            let title = format!("CPU a pod's life: {name}");
            figures.extend(Figure::of(id, title, "µs", size.cpu_us.clone()));
            rows.push(vec![
                name,
                show(median(&size.cpu_us)),
                show(median(&size.cpu_us) / cpu),
                show(median(&size.seconds)),
                show(median(&size.seconds) / seconds),
            ]);
        }
        let largest = sizes.last().map(|size| median(&size.cpu_us) / cpu);
        figures.extend(Figure::of(
            "local.ratio",
            "CPU a pod's life: largest cluster to smallest",
            "",
            largest.into_iter().collect(),
        ));
        let columns = [
            "cluster",
            "CPU a pod's life, µs",
            "ratio",
            "a round, s",
            "ratio",
        ];
        Ok(Findings {
            figures,
            tables: vec![Table {
                title: format!("{} pods come and go (medians)", self.changes),
                columns: columns.map(str::to_owned).to_vec(),
                rows,
            }],
            notes: vec![
                "a pod's life: created, running, deleted, gone; CPU time of the control plane \
                 without what heartbeats take by themselves in the same time"
                    .to_owned(),
            ],
            ..Findings::default()
        })
    }

    async fn measure(&self, hosts: u32, pods: u32) -> anyhow::Result<Size> {
        let place = Place::new(&self.place).await?;
        let room = pods.saturating_add(self.changes);
        let shape = FleetShape::with_room(usize::try_from(hosts)?, room);
        let _fleet = place.cards(&shape).await?;
        let clients = place.clients(8).await?;
        let watcher = place.clients(1).await?.pop().context("a client")?;
        let mut follower = Follower::new(&watcher).await?;
        load::fill(&clients, &mut follower, pods, self.batch.into()).await?;

        let before = (place.usage()?, Instant::now());
        tokio::time::sleep(IDLE).await;
        let idle_ms = number(place.usage()?.cpu_ms - before.0.cpu_ms);
        let idle = idle_ms / before.1.elapsed().as_secs_f64();

        let (mut cpu_us, mut seconds) = (Vec::new(), Vec::new());
        for round in 0..=self.rounds {
            let before = (place.usage()?, Instant::now());
            let running = self.change(&clients, &mut follower).await?;
            let took = before.1.elapsed().as_secs_f64();
            let cpu = number(place.usage()?.cpu_ms - before.0.cpu_ms) - idle * took;
            if round > 0 {
                cpu_us.push(cpu * 1e3 / f64::from(self.changes));
                seconds.push(running);
            }
        }
        Ok(Size {
            hosts,
            pods,
            cpu_us,
            seconds,
        })
    }

    /// Pods come and go; how long it took until all ran, in seconds.
    async fn change(&self, clients: &[Client], follower: &mut Follower) -> anyhow::Result<f64> {
        let count = usize::try_from(self.changes)?;
        let begun = Instant::now();
        let names = (0..count).map(|number| format!("change-{number:06}"));
        let names: Vec<String> = names.collect();
        let creating = load::create(clients, names.clone(), 1);
        tokio::try_join!(creating, follower.running(count))?;
        let took = begun.elapsed().as_secs_f64();
        tokio::try_join!(load::delete(clients, names), follower.gone(count))?;
        Ok(took)
    }
}
