//! Many pods stored, many watchers: what they cost, and how fast a change arrives.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use longship_proto::control::v1::{PodEvent, WatchPodsRequest, pod_event};
use longship_report::document::{Figure, Findings};
use longship_report::summary::{Summary, number};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Streaming;

use super::follow::Follower;
use super::load::{self, NAMESPACE};
use super::place::{Place, PlaceOptions, mb};
use crate::client::{Client, small_pod};
use crate::fleet::FleetShape;

/// Watches that share a connection.
const WATCHES_A_CONNECTION: usize = 50;
/// Every watcher has to have heard of a change by then.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(20);

/// Many pods stored and listed, many watchers: memory, CPU, and how fast a change arrives
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Pods that are stored
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pods: u32,
    /// Watchers of all pods
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    watchers: u32,
    /// Single changes that are followed
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    changes: u16,
    /// Simulated cards
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    cards: u32,
    /// Pods a page of the listing
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=5000))]
    page: u32,
    /// Pods a request while they are created; 1: CreatePod, else CreatePods
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Listings that count; one goes before
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    #[command(flatten)]
    place: PlaceOptions,
}

/// One watcher has seen a pod appear.
struct Arrival {
    name: String,
    at: Instant,
}

impl Watch {
    pub(crate) async fn run(&self) -> anyhow::Result<Findings> {
        let place = Place::new(&self.place).await?;
        let shape = FleetShape::with_room(usize::try_from(self.cards)?, self.pods);
        let _fleet = place.cards(&shape).await?;
        let before = place.usage()?;
        let client = place.clients(1).await?.pop().context("a client")?;
        self.fill(&place, &client).await?;
        let filled = place.usage()?;

        let version = client.list(1, String::new()).await?.resource_version;
        let watchers = usize::try_from(self.watchers)?;
        let (arrivals, mut seen) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let mut left = watchers;
        for client in place
            .clients(watchers.div_ceil(WATCHES_A_CONNECTION))
            .await?
        {
            for _ in 0..WATCHES_A_CONNECTION.min(left) {
                let stream = client.watch(WatchPodsRequest {
                    resource_version: version,
                    ..WatchPodsRequest::default()
                });
                tasks.spawn(hear(stream.await?, arrivals.clone()));
                left -= 1;
            }
        }
        let watched = place.usage()?;

        let (mut all, mut last) = (Vec::new(), Vec::new());
        let cpu = place.usage()?.cpu_ms;
        for change in 0..self.changes {
            let name = format!("change-{change:05}");
            let times = one_change(&client, &name, watchers, &mut seen).await?;
            last.extend(times.iter().copied().reduce(f64::max));
            all.extend(times);
            tokio::time::sleep(PAUSE).await;
        }
        let cpu = number(place.usage()?.cpu_ms - cpu) / f64::from(self.changes);
        let changed = place.usage()?;

        let (mut listing, mut page_ms, mut list_cpu) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=self.rounds {
            let before = place.usage()?;
            let begun = Instant::now();
            let pages = self.list(&client).await?;
            if round > 0 {
                listing.push(begun.elapsed().as_secs_f64());
                list_cpu.push(number(place.usage()?.cpu_ms - before.cpu_ms));
                page_ms.extend(pages);
            }
        }
        let fill_cpu = number(filled.cpu_ms - before.cpu_ms) / f64::from(self.pods);
        let each = |grown: u64, of: u32| number(grown) / 1e3 / f64::from(of);
        let pod_kb = each(filled.resident.saturating_sub(before.resident), self.pods);
        let watcher_kb = each(
            watched.resident.saturating_sub(filled.resident),
            self.watchers,
        );
        let slowest = Summary::of(&all).map(|summary| summary.p99);
        let figures = [
            Figure::of(
                "watch.change.p99",
                "a change: request → seen, 99th percentile",
                "ms",
                slowest.into_iter().collect(),
            ),
            Figure::of(
                "watch.change",
                "a change: request → seen, each watcher",
                "ms",
                all,
            ),
            Figure::of(
                "watch.change.last",
                "a change: request → seen by all",
                "ms",
                last,
            ),
            Figure::of(
                "watch.change.cpu",
                "CPU time of the control plane, a change",
                "ms",
                vec![cpu],
            ),
            Figure::of("watch.list", "listing all pods in pages", "s", listing),
            Figure::of("watch.list.page", "a page", "ms", page_ms),
            Figure::of(
                "watch.list.cpu",
                "CPU time of the control plane, a listing",
                "ms",
                list_cpu,
            ),
            Figure::of(
                "watch.fill.cpu",
                "CPU time of the control plane, a pod's start",
                "ms",
                vec![fill_cpu],
            ),
            Figure::of(
                "watch.resident.pods",
                "resident memory with all pods",
                "MB",
                vec![mb(filled.resident)],
            ),
            Figure::of("watch.resident.pod", "a pod", "kB", vec![pod_kb]),
            Figure::of(
                "watch.resident.watchers",
                "with all watchers",
                "MB",
                vec![mb(watched.resident)],
            ),
            Figure::of(
                "watch.resident.watcher",
                "a watcher",
                "kB",
                vec![watcher_kb],
            ),
            Figure::of(
                "watch.resident.changes",
                "after the changes",
                "MB",
                vec![mb(changed.resident)],
            ),
            Figure::of(
                "watch.resident.most",
                "at most",
                "MB",
                vec![mb(place.usage()?.most)],
            ),
        ];
        Ok(Findings {
            figures: figures.into_iter().flatten().collect(),
            notes: vec![format!(
                "{} pods, {} watchers of all of them; a change is a new pod, and each watcher \
                 hears of its start too; the watchers run on the same CPUs as the control plane",
                self.pods, self.watchers
            )],
            ..Findings::default()
        })
    }

    async fn fill(&self, place: &Place, watcher: &Client) -> anyhow::Result<()> {
        let clients = place.clients(8).await?;
        let mut follower = Follower::new(watcher).await?;
        load::fill(&clients, &mut follower, self.pods, self.batch.into()).await
    }

    /// All pages: how long each took, in milliseconds.
    async fn list(&self, client: &Client) -> anyhow::Result<Vec<f64>> {
        let (mut pages, mut found, mut token) = (Vec::new(), 0, String::new());
        loop {
            let begun = Instant::now();
            let page = client.list(self.page, token).await?;
            pages.push(begun.elapsed().as_secs_f64() * 1e3);
            found += page.pods.len();
            token = page.next_page_token;
            if token.is_empty() {
                ensure!(
                    found >= usize::try_from(self.pods)?,
                    "the listing has {found} pods of {}",
                    self.pods
                );
                return Ok(pages);
            }
        }
    }
}

/// Tells of every pod that appears.
async fn hear(mut events: Streaming<PodEvent>, arrivals: mpsc::UnboundedSender<Arrival>) {
    while let Ok(Some(event)) = events.message().await {
        let at = Instant::now();
        let name = event.pod.as_ref().and_then(|pod| pod.metadata.as_ref());
        if event.r#type() == pod_event::Type::Added
            && let Some(meta) = name
        {
            let name = meta.name.clone();
            if arrivals.send(Arrival { name, at }).is_err() {
                return;
            }
        }
    }
}

/// Creates a pod, and waits until every watcher has seen it: milliseconds each.
async fn one_change(
    client: &Client,
    name: &str,
    watchers: usize,
    seen: &mut mpsc::UnboundedReceiver<Arrival>,
) -> anyhow::Result<Vec<f64>> {
    let asked = Instant::now();
    client
        .create(small_pod(NAMESPACE, name.to_owned()), "")
        .await?;
    let mut times = Vec::with_capacity(watchers);
    let all = async {
        while times.len() < watchers {
            let arrival = seen.recv().await.context("all watches have ended")?;
            if arrival.name == name {
                times.push(arrival.at.duration_since(asked).as_secs_f64() * 1e3);
            }
        }
        anyhow::Ok(())
    };
    let heard = tokio::time::timeout(PATIENCE, all).await;
    match heard {
        Ok(heard) => heard?,
        Err(_) => anyhow::bail!("{} of {watchers} watchers heard of a change", times.len()),
    }
    Ok(times)
}
