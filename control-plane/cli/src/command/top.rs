//! `longship top`

use std::time::Duration;

use clap::Args;
use longship_proto::card::v1::GetUsageResponse;
use serde_json::{Value, json};

use crate::card::usage;
use crate::error::CliError;
use crate::show::{self, Format, usage as show_usage};
use crate::terminal;

/// Show what each pod costs its host and its card, and what the host has left.
///
/// GUEST is guest memory of the pod's own: what its kernel, init and containers have
/// written. OVERHEAD is all the rest: WINDOW (memory its devices share), VMM, TABLES
/// (page tables, the guest's nested ones too), KERNEL (other kernel memory) and CARD
/// (its part of the card's daemon: what that has grown by since before its first pod,
/// in equal parts). SHARED is memory of the template, and IMAGE disk space of the
/// images, that the pod has in common with others: by how many, all in all, stands
/// behind it. SCRATCH is what its scratch disk takes.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Show it again and again, each so many seconds (2 where none are given).
    #[arg(
        long,
        short = 'w',
        value_name = "INTERVAL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2s",
        value_parser = crate::duration::parse
    )]
    watch: Option<Duration>,
    /// Operators' socket of the card.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "unix:/run/longship/card.sock"
    )]
    card: String,
    /// Form of the output.
    #[arg(long, short = 'o')]
    output: Option<Format>,
}

/// The shortest time between two looks: each walks through all of the host's VMMs.
const SHORTEST: Duration = Duration::from_millis(100);
/// Clears a terminal and goes to its upper left corner (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

impl Top {
    pub(crate) async fn run(self) -> Result<u8, CliError> {
        let Some(interval) = self.watch else {
            return self.once("").await;
        };
        let clear = if terminal::shows_text() { CLEAR } else { "" };
        loop {
            self.once(clear).await?;
            tokio::time::sleep(interval.max(SHORTEST)).await;
        }
    }

    async fn once(&self, before: &str) -> Result<u8, CliError> {
        let usage = usage(&self.card).await?;
        match self.output {
            None | Some(Format::Wide) => {
                show::print(&format!("{before}{}", show_usage::table(&usage)))?;
            }
            // One line a look, for whoever reads on and on.
            Some(Format::Json) if self.watch.is_some() => {
                show::print(&format!("{}\n", document(&usage)))?;
            }
            Some(Format::Yaml) if self.watch.is_some() => {
                show::print("---\n")?;
                show::print_document(&document(&usage), Format::Yaml)?;
            }
            Some(format) => show::print_document(&document(&usage), format)?,
        }
        if usage.host.is_none() {
            return Err(CliError::Other(
                "the host's agent does not answer the card: only the card's side is shown"
                    .to_owned(),
            ));
        }
        Ok(0)
    }
}

fn document(usage: &GetUsageResponse) -> Value {
    json!({
        "pods": usage.pods.iter().map(show_usage::pod).collect::<Vec<Value>>(),
        "host": usage.host.as_ref().map(show_usage::host),
        "card": {
            "bytes": usage.card_bytes,
            "baseBytes": usage.card_base_bytes,
        },
    })
}
