//! Many cards: what their streams cost, and how all of them come back at once.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use longship_report::document::{Figure, Findings};
use longship_report::summary::number;

use super::follow::Follower;
use super::load;
use super::place::{Place, PlaceOptions, mb};
use crate::fleet::{Fleet, FleetShape};

/// All cards have to be back by then.
const PATIENCE: Duration = Duration::from_secs(120);

/// Many card streams: what they cost, and a reconnect storm of all at once
#[derive(Debug, Args)]
pub(crate) struct Cards {
    /// Simulated cards
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    cards: u32,
    /// Pods that the cards hold when the storm comes
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pods: u32,
    /// Storms that count; one goes before
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Seconds in which nothing but heartbeats happens, to see what they cost
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=600))]
    steady: u16,
    #[command(flatten)]
    place: PlaceOptions,
}

impl Cards {
    pub(crate) async fn run(&self) -> anyhow::Result<Findings> {
        let place = Place::new(&self.place).await?;
        let empty = place.usage()?;
        let shape = FleetShape {
            cards: usize::try_from(self.cards)?,
            ..FleetShape::default()
        };
        let begun = Instant::now();
        let fleet = place.cards(&shape).await?;
        let first = begun.elapsed().as_secs_f64();
        let attached = place.usage()?;
        self.fill(&place).await?;
        let filled = place.usage()?;

        let mut storms = Vec::new();
        let mut cpu = Vec::new();
        for round in 0..=self.rounds {
            let before = place.usage()?;
            let took = storm(&fleet).await?;
            if round > 0 {
                storms.push(took);
                cpu.push(number(place.usage()?.cpu_ms - before.cpu_ms));
            }
        }
        let stormed = place.usage()?;

        let cards = f64::from(self.cards);
        let before = (place.usage()?, Instant::now());
        tokio::time::sleep(Duration::from_secs(self.steady.into())).await;
        let seconds = before.1.elapsed().as_secs_f64();
        let steady_ms = number(place.usage()?.cpu_ms - before.0.cpu_ms);
        let a_card = number(attached.resident.saturating_sub(empty.resident)) / 1e3 / cards;
        let figures = [
            Figure::of(
                "cards.first",
                "all attached for the first time",
                "s",
                vec![first],
            ),
            Figure::of(
                "cards.storm",
                "storm: all broke off → all attached",
                "s",
                storms,
            ),
            Figure::of(
                "cards.storm.cpu",
                "CPU time of the control plane, a storm",
                "ms",
                cpu,
            ),
            Figure::of(
                "cards.steady",
                "CPU of the control plane for heartbeats, of one core",
                "%",
                vec![steady_ms / seconds / 10.0],
            ),
            Figure::of(
                "cards.resident.empty",
                "resident memory of the control plane: nothing yet",
                "MB",
                vec![mb(empty.resident)],
            ),
            Figure::of(
                "cards.resident.attached",
                "all cards attached",
                "MB",
                vec![mb(attached.resident)],
            ),
            Figure::of("cards.resident.card", "a card", "kB", vec![a_card]),
            Figure::of(
                "cards.resident.pods",
                "with the pods",
                "MB",
                vec![mb(filled.resident)],
            ),
            Figure::of(
                "cards.resident.storms",
                "after the storms",
                "MB",
                vec![mb(stormed.resident)],
            ),
            Figure::of(
                "cards.resident.most",
                "at most, storms included",
                "MB",
                vec![mb(place.usage()?.most)],
            ),
        ];
        let failed = fleet.counts().broken();
        Ok(Findings {
            figures: figures.into_iter().flatten().collect(),
            notes: vec![
                format!("{failed} attempts to attach failed or attachments broke by themselves"),
                format!(
                    "a card sends a heartbeat each third of its lease; {} cards hold {} pods",
                    self.cards, self.pods
                ),
            ],
            ..Findings::default()
        })
    }

    async fn fill(&self, place: &Place) -> anyhow::Result<()> {
        if self.pods == 0 {
            return Ok(());
        }
        let clients = place.clients(16).await?;
        let watcher = place.clients(1).await?.pop().context("a client")?;
        let mut follower = Follower::new(&watcher).await?;
        load::fill(&clients, &mut follower, self.pods, 1).await
    }
}

/// How long it takes, in seconds.
async fn storm(fleet: &Fleet) -> anyhow::Result<f64> {
    let goal = fleet.counts().attachments() + fleet.len();
    let begun = Instant::now();
    fleet.storm();
    let late = || format!("not all cards came back: {}", fleet.counts().trouble());
    let back = tokio::time::timeout(PATIENCE, fleet.all_attached(goal));
    back.await.with_context(late)?;
    Ok(begun.elapsed().as_secs_f64())
}
