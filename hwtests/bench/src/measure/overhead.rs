//! `overhead`: one idle sandbox and one idle pod, split into their parts.

use std::time::Duration;

use clap::Args;
use longship_proto::agent::v1::{HostUsage, SandboxUsage};

use crate::arguments::{Files, Machine, Origin, Programs};
use crate::document::{Axis, Bar, Chart, Figure, Findings, Table};
use crate::error::BenchError;
use crate::smaps::{Own, own_memory};
use crate::subject::agent::Agent;
use crate::subject::fleet::image;
use crate::subject::pods::Pods;
use crate::subject::workshop::Workshop;
use crate::summary::{median, number};

/// One idle clone and one idle pod, split into what they hold
#[derive(Debug, Args)]
pub(crate) struct Overhead {
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    machine: Machine,
    /// How a sandbox comes to its guest
    #[arg(long, value_enum, default_value_t = Origin::Clone)]
    origin: Origin,
    /// Look at a pod too
    #[arg(long)]
    pods: bool,
    /// Image of the pod, as for `burst`
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Milliseconds for a guest to become idle
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    idle: u64,
    /// Rounds; each with a fresh sandbox and pod
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// Parts of what something holds, by name, bytes a round.
type Parts = Vec<(&'static str, Vec<f64>)>;

impl Overhead {
    pub(crate) async fn run(&self) -> Result<Findings, BenchError> {
        let files = self.programs.find()?;
        let mut findings = Findings {
            notes: vec![format!(
                "By the daemons' own account (GetUsage), {} ms after the start; what is shared \
                 with others is not in the sum.",
                self.idle
            )],
            ..Findings::default()
        };
        let mut bars = Vec::new();
        let (parts, vmms) = self.sandboxes(&files).await?;
        let name = format!("sandbox, {}", self.origin.name());
        bars.push(tell("sandbox", &name, &parts, &mut findings));
        findings.figures.extend(vmm_figures(&name, &vmms));
        if self.pods {
            let image = image(self.image.as_deref(), &files)?;
            let parts = self.some_pods(&files, &image).await?;
            let name = format!("busybox pod, {}", self.origin.name());
            bars.push(tell("pod", &name, &parts, &mut findings));
        }
        findings.charts.push(Chart::Bars {
            title: "What one holds for itself".to_owned(),
            x: Axis::new("memory", "MB"),
            bars,
        });
        Ok(findings)
    }

    async fn sandboxes(&self, files: &Files) -> Result<(Parts, Vec<Own>), BenchError> {
        let workshop = Workshop::new()?;
        let flags = self.origin.agent_flags(1);
        let agent = Agent::start(files, self.machine, &workshop, "overhead", &flags).await?;
        agent.run("warm-up").await?;
        agent.stop("warm-up").await?;
        let (mut parts, mut vmms) = (Parts::new(), Vec::new());
        for round in 0..self.rounds {
            let id = format!("o-{round}");
            let started = agent.run(&id).await?;
            tokio::time::sleep(Duration::from_millis(self.idle)).await;
            let usage = agent.usage().await?;
            add(&mut parts, parts_of(sandbox_of(&usage, &id)?));
            vmms.push(own_memory(started.pid, self.machine.memory_bytes())?);
            agent.stop(&id).await?;
        }
        Ok((parts, vmms))
    }

    async fn some_pods(&self, files: &Files, image: &str) -> Result<Parts, BenchError> {
        let workshop = Workshop::new()?;
        let flags = self.origin.agent_flags(1);
        let pods = Pods::start(files, self.machine, image, &workshop, &flags).await?;
        pods.run("warm-up", self.machine.profile).await?;
        pods.stop("warm-up").await?;
        let mut parts = Parts::new();
        for round in 0..self.rounds {
            let name = format!("o-{round}");
            pods.run(&name, self.machine.profile).await?;
            tokio::time::sleep(Duration::from_millis(self.idle)).await;
            let usage = pods.usage().await?;
            let pod = usage.pods.into_iter().find(|pod| pod.name == name);
            let pod = pod.ok_or_else(|| {
                BenchError::Impossible(format!("the card's account has no pod {name}"))
            })?;
            let mut now = parts_of(&pod.sandbox.unwrap_or_default());
            now.push(("card's share", pod.card_bytes));
            now.push(("scratch disk", pod.scratch_bytes));
            now.push(("image (shared)", pod.image_bytes));
            add(&mut parts, now);
            pods.stop(&name).await?;
        }
        Ok(parts)
    }
}

fn sandbox_of<'a>(usage: &'a HostUsage, id: &str) -> Result<&'a SandboxUsage, BenchError> {
    usage
        .sandboxes
        .iter()
        .find(|sandbox| sandbox.id == id)
        .ok_or_else(|| BenchError::Impossible(format!("the agent's account has no sandbox {id}")))
}

/// Those that others share too say so.
fn parts_of(usage: &SandboxUsage) -> Vec<(&'static str, u64)> {
    vec![
        ("guest RAM", usage.guest_bytes),
        ("DMA window", usage.window_bytes),
        ("VMM", usage.vmm_bytes),
        ("page tables", usage.page_table_bytes),
        ("kernel", usage.kernel_bytes),
        ("template (shared)", usage.shared_bytes),
    ]
}

fn add(parts: &mut Parts, round: Vec<(&'static str, u64)>) {
    for (name, bytes) in round {
        match parts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, samples)) => samples.push(number(bytes)),
            None => parts.push((name, vec![number(bytes)])),
        }
    }
}

/// Adds figures and a table of `parts`; gives the bar of those that are its own.
fn tell(id: &str, name: &str, parts: &Parts, findings: &mut Findings) -> Bar {
    let own = || parts.iter().filter(|(part, _)| !part.ends_with("(shared)"));
    let rounds = parts.iter().map(|(_, samples)| samples.len()).min();
    let sums = (0..rounds.unwrap_or(0)).map(|round| {
        let of_round = own().filter_map(|(_, samples)| samples.get(round));
        of_round.sum::<f64>() / 1e6
    });
    let sum = Figure::of(
        format!("overhead.{id}.sum"),
        format!("{name}: its own, all parts"),
        "MB",
        sums.collect(),
    );
    let mb = |samples: &[f64]| median(samples).unwrap_or_default() / 1e6;
    let mut rows: Vec<Vec<String>> = parts
        .iter()
        .map(|(part, samples)| vec![(*part).to_owned(), format!("{:.3}", mb(samples))])
        .collect();
    if let Some(sum) = &sum {
        let sum = format!("{:.3}", sum.summary.median);
        rows.push(vec!["sum of its own".to_owned(), sum]);
    }
    findings.tables.push(Table {
        title: format!("{name}, idle"),
        columns: vec!["part".to_owned(), "MB, median".to_owned()],
        rows,
    });
    findings.figures.extend(sum);
    Bar {
        name: name.to_owned(),
        pieces: own()
            .map(|(part, samples)| ((*part).to_owned(), mb(samples)))
            .collect(),
    }
}

fn vmm_figures(name: &str, vmms: &[Own]) -> Vec<Figure> {
    let of = |part: fn(&Own) -> u64| vmms.iter().map(|own| number(part(own)) / 1e6).collect();
    [
        ("rss", "VMM's RSS without guest RAM", of(|own| own.resident)),
        (
            "anonymous",
            "VMM's anonymous memory without guest RAM",
            of(|own| own.anonymous),
        ),
    ]
    .into_iter()
    .filter_map(|(part, title, samples): (_, _, Vec<f64>)| {
        Figure::of(
            format!("overhead.vmm.{part}"),
            format!("{name}: {title}"),
            "MB",
            samples,
        )
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_not_in_the_sum() {
        let mut parts = Parts::new();
        for guest in [1_000_000, 3_000_000, 2_000_000] {
            let usage = SandboxUsage {
                guest_bytes: guest,
                vmm_bytes: 250_000,
                shared_bytes: 9_000_000,
                ..SandboxUsage::default()
            };
            add(&mut parts, parts_of(&usage));
        }
        let mut findings = Findings::default();
        let bar = tell("sandbox", "sandbox", &parts, &mut findings);
        assert!((findings.figures[0].summary.median - 2.25).abs() < 1e-9);
        assert!(bar.pieces.iter().all(|(name, _)| !name.contains("shared")));
        assert_eq!(
            findings.tables[0].rows.last().unwrap(),
            &["sum of its own", "2.250"]
        );
    }
}
