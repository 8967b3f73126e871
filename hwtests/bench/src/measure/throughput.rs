//! `throughput`: disk, network and control channel from inside pods, in both memory
//! profiles side by side.

use clap::Args;

use crate::arguments::{Machine, Origin, Profile, Programs};
use crate::document::{Axis, Chart, Figure, Findings, Table};
use crate::error::BenchError;
use crate::subject::fleet::image;
use crate::subject::pods::{Pods, Running};
use crate::subject::workshop::Workshop;
use crate::summary::{number, signed};

/// Disk, network and output of commands from inside pods, dense and direct side by side
#[derive(Debug, Args)]
pub(crate) struct Throughput {
    #[command(flatten)]
    programs: Programs,
    /// Its profile is not looked at: both are measured
    #[command(flatten)]
    machine: Machine,
    /// How a pod's sandbox comes to its guest
    #[arg(long, value_enum, default_value_t = Origin::Clone)]
    origin: Origin,
    /// Image of the pods, as for `burst`; it needs busybox
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Size of the file on disk; more than a guest's memory, or reads are not reads
    #[arg(long, value_name = "MIB", default_value_t = 160, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    disk_mib: u32,
    /// What goes over the network; it must fit into a guest's memory
    #[arg(long, value_name = "MIB", default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    net_mib: u32,
    /// What a command prints
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    exec_mib: u32,
    /// Rounds; each measures both profiles
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// What is measured, in MB a second.
const KINDS: [(&str, &str); 4] = [
    ("blk-write", "disk, written"),
    ("blk-read", "disk, read"),
    ("net", "network, pod to pod"),
    ("vsock", "output of a command"),
];

/// Two pods of one profile, and what was measured in them.
struct Lane {
    profile: Profile,
    server: Running,
    /// By kind, as in [`KINDS`].
    samples: [Vec<f64>; 4],
}

impl Throughput {
    pub(crate) async fn run(&self) -> Result<Findings, BenchError> {
        let files = self.programs.find()?;
        let image = image(self.image.as_deref(), &files)?;
        let workshop = Workshop::new()?;
        let flags = self.origin.agent_flags(1);
        let pods = Pods::start(&files, self.machine, &image, &workshop, &flags).await?;
        let mut lanes = Vec::new();
        for profile in [Profile::Dense, Profile::Direct] {
            let name = profile.name();
            pods.run(&format!("{name}-client"), profile).await?;
            let server = pods.run(&format!("{name}-server"), profile).await?;
            let script = format!(
                "mkdir -p /www && dd if=/dev/zero of=/www/file bs=1M count={} 2>/dev/null && \
                 cat /www/file >/dev/null && httpd -h /www </dev/null >/dev/null 2>&1",
                self.net_mib
            );
            pods.script(&format!("{name}-server"), &script).await?;
            lanes.push(Lane {
                profile,
                server,
                samples: Default::default(),
            });
        }
        for round in 0..self.rounds {
            if round % 2 == 1 {
                lanes.reverse();
            }
            for lane in &mut lanes {
                self.round(&pods, lane).await?;
            }
        }
        lanes.sort_by_key(|lane| lane.profile.name());
        for lane in &lanes {
            for role in ["client", "server"] {
                pods.stop(&format!("{}-{role}", lane.profile.name()))
                    .await?;
            }
        }
        Ok(self.findings(&lanes))
    }

    async fn round(&self, pods: &Pods, lane: &mut Lane) -> Result<(), BenchError> {
        let client = format!("{}-client", lane.profile.name());
        let address = lane.server.address()?;
        let write = format!(
            "dd if=/dev/zero of=/disk bs=1M count={} conv=fsync 2>/dev/null",
            self.disk_mib
        );
        let get = format!("wget -q -O /dev/null http://{address}/file");
        let [written, read, net, vsock] = &mut lane.samples;
        written.push(rate(self.disk_mib, timed(pods, &client, &write).await?));
        let cat = "cat /disk >/dev/null";
        read.push(rate(self.disk_mib, timed(pods, &client, cat).await?));
        net.push(rate(self.net_mib, timed(pods, &client, &get).await?));

        let count = format!("count={}", self.exec_mib);
        let command = ["dd", "if=/dev/zero", "bs=1M", &count];
        let said = pods.exec(&client, &command, 0).await?;
        if said.code != 0 || said.bytes != u64::from(self.exec_mib) << 20 {
            let why = format!("{client}: {} bytes arrived, code {}", said.bytes, said.code);
            return Err(BenchError::Impossible(why));
        }
        let took = signed(said.last_us.saturating_sub(said.first_us)) / 1e6;
        vsock.push(rate(self.exec_mib, took));
        pods.script(&client, "rm /disk").await?;
        Ok(())
    }

    fn findings(&self, lanes: &[Lane]) -> Findings {
        let mut findings = Findings {
            notes: vec![format!(
                "Busybox in pods of {} MiB: dd to a file of {} MiB with fsync, then its reading; \
                 wget of {} MiB from another pod's httpd; {} MiB of an exec's output, at the \
                 client. MB: 10^6 bytes.",
                self.machine.memory_bytes() >> 20,
                self.disk_mib,
                self.net_mib,
                self.exec_mib
            )],
            ..Findings::default()
        };
        let (mut rows, mut spreads) = (Vec::new(), Vec::new());
        for (index, (id, title)) in KINDS.into_iter().enumerate() {
            let mut row = vec![title.to_owned()];
            let mut medians = Vec::new();
            for lane in lanes {
                let profile = lane.profile.name();
                let samples = lane.samples.get(index).cloned().unwrap_or_default();
                let figure = Figure::of(
                    format!("throughput.{profile}.{id}"),
                    format!("{title}, {profile}"),
                    "MB/s",
                    samples,
                );
                let Some(figure) = figure else { continue };
                row.push(format!("{:.1}", figure.summary.median));
                medians.push(figure.summary.median);
                spreads.push(figure.spread(format!("{title}, {profile}")));
                findings.figures.push(figure);
            }
            if let [dense, direct] = medians.as_slice() {
                row.push(format!("{:.2}", dense / direct));
            }
            rows.push(row);
        }
        let columns = ["MB/s, medians", "dense", "direct", "dense / direct"];
        findings.tables.push(Table {
            title: "Throughput from inside pods".to_owned(),
            columns: columns.map(str::to_owned).to_vec(),
            rows,
        });
        findings.charts.push(Chart::Spread {
            title: "Throughput from inside pods".to_owned(),
            x: Axis::new("throughput", "MB/s"),
            rows: spreads,
        });
        findings
    }
}

/// MB a second.
fn rate(mib: u32, seconds: f64) -> f64 {
    number(u64::from(mib) << 20) / 1e6 / seconds.max(0.01)
}

/// Seconds that a script takes, by the clock of the pod it runs in.
async fn timed(pods: &Pods, pod: &str, script: &str) -> Result<f64, BenchError> {
    // Seconds with hundredths since the guest's start are the first word there.
    let script =
        format!("read a _ </proc/uptime; {script} || exit 1; read b _ </proc/uptime; echo $a $b");
    let printed = pods.script(pod, &script).await?;
    let times: Vec<f64> = printed
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match times.as_slice() {
        [a, b] if b >= a => Ok(b - a),
        _ => Err(BenchError::Impossible(format!(
            "{pod}: no times: {printed}"
        ))),
    }
}
