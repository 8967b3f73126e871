//! The embedded store and etcd beside each other.

use clap::Args;
use longship_report::document::{Figure, Findings};

use super::place::{Place, PlaceOptions, StoreKind};
use super::pods::{Bed, Samples};
use crate::fleet::FleetShape;

/// Many pods at once with the embedded store and with etcd, in turn
#[derive(Debug, Args)]
pub(crate) struct Stores {
    /// Simulated cards of each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
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
    /// Rounds that count of each; one of a tenth of the pods goes before
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    #[command(flatten)]
    place: PlaceOptions,
}

impl Stores {
    pub(crate) async fn run(&self) -> anyhow::Result<Findings> {
        let shape = FleetShape {
            cards: usize::try_from(self.cards)?,
            ..FleetShape::default()
        };
        let (pods, batch) = (usize::try_from(self.pods)?, usize::from(self.batch));
        let mut beds = Vec::new();
        for store in [StoreKind::Embedded, StoreKind::Etcd] {
            let place = Place::on(&self.place, store).await?;
            let mut bed = Bed::new(place, &shape, self.clients.into()).await?;
            bed.round(pods.div_ceil(10), batch, &mut Samples::default())
                .await?;
            beds.push((bed, Samples::default()));
        }
        for round in 0..self.rounds {
            let turns: [usize; 2] = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for turn in turns {
                if let Some((bed, samples)) = beds.get_mut(turn) {
                    bed.round(pods, batch, samples).await?;
                }
            }
        }
        let seconds = beds.into_iter().map(|(_, samples)| samples.seconds);
        let seconds: Vec<Vec<f64>> = seconds.collect();
        let [embedded, etcd] = seconds.as_slice() else {
            anyhow::bail!("there are two stores");
        };
        let pairs = embedded.iter().zip(etcd);
        let ratios = pairs.map(|(embedded, etcd)| etcd / embedded).collect();
        let all = "all created → all seen running";
        let figures = [
            Figure::of(
                "stores.embedded",
                format!("embedded: {all}"),
                "s",
                embedded.clone(),
            ),
            Figure::of("stores.etcd", format!("etcd: {all}"), "s", etcd.clone()),
            Figure::of(
                "stores.ratio",
                "etcd to embedded, round by round",
                "",
                ratios,
            ),
        ];
        Ok(Findings {
            figures: figures.into_iter().flatten().collect(),
            notes: vec![
                "etcd has one member on the same CPUs and the same disk; the cards of both \
                 stay attached all the time"
                    .to_owned(),
            ],
            ..Findings::default()
        })
    }
}
