//! What the control plane does under load, measured from outside.

mod cards;
mod failover;
mod follow;
mod load;
mod local;
mod place;
mod pods;
mod stores;
mod watch;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use longship_report::document::{Document, check_writable};

use cards::Cards;
use failover::Failover;
use local::Local;
use pods::Pods;
use stores::Stores;
use watch::Watch;

/// Measures a control plane that it starts itself.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// Write the report there as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report there as one HTML page
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Name of the report; where it is not given, the benchmark's
    #[arg(long, global = true, value_name = "NAME")]
    label: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    Pods(Pods),
    Watch(Watch),
    Cards(Cards),
    Local(Local),
    Failover(Failover),
    Stores(Stores),
}

impl Bench {
    /// Measures, prints and writes.
    ///
    /// # Errors
    /// Whatever kept it from measuring.
    pub async fn run(&self) -> anyhow::Result<()> {
        for path in [&self.json, &self.html].into_iter().flatten() {
            check_writable(path)?;
        }
        let (name, findings) = match &self.benchmark {
            Benchmark::Pods(pods) => ("control-pods", pods.run().await?),
            Benchmark::Watch(watch) => ("control-watch", watch.run().await?),
            Benchmark::Cards(cards) => ("control-cards", cards.run().await?),
            Benchmark::Local(local) => ("control-local", local.run().await?),
            Benchmark::Stores(stores) => ("control-stores", stores.run().await?),
            Benchmark::Failover(failover) => ("control-failover", failover.run().await?),
        };
        let document = Document::new("longship-sim", name, self.label.clone(), findings);
        document.publish(self.json.as_ref(), self.html.as_ref())?;
        Ok(())
    }
}
