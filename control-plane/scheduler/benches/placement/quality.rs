//! Whether fast decisions are good ones: the same pods, one after the other, until
//! they outnumber the hosts, with each scheduler.

use std::fmt;

use longship_scheduler::{Amount, PodId, Policy};
use serde_json::{Value, json};

use crate::hardware::{self, GIB};
use crate::measure::float;
use crate::naive::Naive;
use crate::workload::{Random, Workload};

/// A large pod, to see what room is left for one.
const LARGE: (u32, u64) = (16_000, 64 * GIB);

/// How full standard hosts are, in percent.
#[derive(Debug, Clone, Copy)]
struct Fill {
    cpu: f64,
    memory: f64,
    /// Of what large pods the free CPU and memory would hold in one piece, how many
    /// it does hold as it lies.
    large: f64,
    placed: usize,
}

/// Half full, and when no more than a few still find room.
#[derive(Debug)]
struct Outcome {
    name: &'static str,
    half: Fill,
    full: Fill,
}

/// The outcomes of all schedulers.
#[derive(Debug)]
pub(crate) struct Quality {
    hosts: usize,
    pods: usize,
    outcomes: Vec<Outcome>,
}

fn fill(hosts: impl Iterator<Item = (Amount, Amount)>, placed: usize) -> Fill {
    let (mut cpu, mut memory, mut all_cpu, mut all_memory, mut large) = (0, 0, 0, 0, 0);
    for (capacity, free) in hosts {
        all_cpu += u64::from(capacity.cpu_millis);
        all_memory += capacity.memory_bytes;
        cpu += u64::from(free.cpu_millis);
        memory += free.memory_bytes;
        let by_cpu = u64::from(free.cpu_millis / LARGE.0);
        large += by_cpu.min(free.memory_bytes / (LARGE.1 + (16 << 20)));
    }
    let in_one_piece = (cpu / u64::from(LARGE.0)).min(memory / LARGE.1).max(1);
    Fill {
        cpu: 100.0 - 100.0 * float(cpu) / float(all_cpu),
        memory: 100.0 - 100.0 * float(memory) / float(all_memory),
        large: 100.0 * float(large) / float(in_one_piece),
        placed,
    }
}

/// The same pods with each scheduler.
pub(crate) fn compare(hosts: usize) -> Quality {
    let capacity = hardware::fleet(hosts, Policy::Pack).capacity().cpu_millis;
    let (mut workload, mut random) = (Workload::new(), Random(5));
    let mut pods = Vec::new();
    let (mut asked, mut half) = (0, 0);
    while asked < capacity / 10 * 13 {
        let template = workload.next(&mut random);
        asked += u64::from(workload.templates[template].cpu_millis.max(250));
        pods.push(template);
        if asked < capacity / 2 {
            half = pods.len();
        }
    }
    let templates = &workload.templates;

    let mut outcomes = Vec::new();
    for (name, policy) in [
        ("indexed, pack", Policy::Pack),
        ("indexed, spread", Policy::Spread),
    ] {
        let mut fleet = hardware::fleet(hosts, policy);
        let (mut placed, mut at_half) = (0, None);
        for (at, template) in pods.iter().enumerate() {
            let pod = PodId(u128::try_from(at).unwrap());
            if let Ok(place) = fleet.reserve(pod, &templates[*template]) {
                fleet.commit(place.ticket).unwrap();
                placed += 1;
            }
            if at == half {
                at_half = Some((fleet.hosts().collect::<Vec<_>>(), placed));
            }
        }
        let standard = |hosts: Vec<longship_scheduler::HostStatus>, placed| {
            let standard = hosts.into_iter().filter(|host| host.facts.family == "std");
            fill(
                standard.map(|host| (host.facts.capacity, host.free)),
                placed,
            )
        };
        let (at_half, placed_then) = at_half.unwrap();
        outcomes.push(Outcome {
            name,
            half: standard(at_half, placed_then),
            full: standard(fleet.hosts().collect(), placed),
        });
    }
    for (name, enough) in [
        ("filter-and-score, all", usize::MAX),
        ("filter-and-score, sampled", Naive::adaptive(hosts)),
    ] {
        let mut naive = Naive::new(hosts, enough);
        let (mut placed, mut at_half) = (0, None);
        for (at, template) in pods.iter().enumerate() {
            placed += usize::from(naive.place(&templates[*template]).is_some());
            if at == half {
                at_half = Some(fill(naive.standard(), placed));
            }
        }
        outcomes.push(Outcome {
            name,
            half: at_half.unwrap(),
            full: fill(naive.standard(), placed),
        });
    }
    Quality {
        hosts,
        pods: pods.len(),
        outcomes,
    }
}

impl Quality {
    pub(crate) fn json(&self) -> Value {
        let fill = |fill: &Fill| {
            json!({
                "cpu_percent": fill.cpu, "memory_percent": fill.memory,
                "large_percent": fill.large, "placed": fill.placed,
            })
        };
        let outcomes = self.outcomes.iter().map(|outcome| {
            json!({ "name": outcome.name, "half": fill(&outcome.half), "full": fill(&outcome.full) })
        });
        json!({ "hosts": self.hosts, "pods": self.pods, "outcomes": outcomes.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "quality: the same {} pods, asking for 1.3 times what {} hosts have",
            self.pods, self.hosts
        )?;
        writeln!(
            f,
            "  {:<26} half asked for: room for large pods   all asked for: CPU   memory   pods placed",
            "standard hosts"
        )?;
        for outcome in &self.outcomes {
            writeln!(
                f,
                "  {:<26} {:>36.1} % {:>18.1} % {:>6.1} % {:>13}",
                outcome.name,
                outcome.half.large,
                outcome.full.cpu,
                outcome.full.memory,
                outcome.full.placed
            )?;
        }
        write!(
            f,
            "  (room for large pods: of the 16-CPU, 64-GiB pods that all that is free would hold \
             in one piece, how many it holds)"
        )
    }
}
