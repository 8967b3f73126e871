//! Durations, memory, and where results are kept.

use std::path::PathBuf;
use std::time::Duration;

use longship_scheduler::{PodId, Policy};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::hardware;
use crate::scale;

/// What many durations were like, in nanoseconds: the mean by the thread's own clock,
/// the others by the clock on the wall, where other programs may get in between.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    pub(crate) mean: f64,
    pub(crate) p50: u32,
    pub(crate) p99: u32,
    pub(crate) p999: u32,
}

impl Summary {
    pub(crate) fn of(durations: &mut [u32], together: Duration) -> Self {
        durations.sort_unstable();
        let at = |per_mille: usize| durations[(durations.len() - 1) * per_mille / 1000];
        Self {
            mean: float(together.as_nanos()) / float(durations.len()),
            p50: at(500),
            p99: at(990),
            p999: at(999),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "mean_ns": self.mean, "p50_ns": self.p50, "p99_ns": self.p99,
            "p999_ns": self.p999,
        })
    }
}

/// What this thread has run for.
pub(crate) fn cpu_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

/// A count as a float; what is counted here is far below 2^53.
pub(crate) fn float(count: impl TryInto<u64>) -> f64 {
    let count = count.try_into().ok().unwrap();
    let high = u32::try_from(count >> 32).unwrap();
    let low = u32::try_from(count & u64::from(u32::MAX)).unwrap();
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

pub(crate) fn ln(count: usize) -> f64 {
    float(count).ln()
}

pub(crate) fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target")));
    let directory = target.join("bench/scheduler");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// What hosts and pods cost.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) hosts: usize,
    pub(crate) bytes_a_host: u64,
    pub(crate) pods: usize,
    pub(crate) bytes_a_host_with_pods: u64,
    pub(crate) bytes_a_pod: u64,
}

impl Memory {
    pub(crate) fn json(&self) -> Value {
        json!({
            "hosts": self.hosts, "bytes_a_host": self.bytes_a_host, "pods": self.pods,
            "bytes_a_host_with_pods": self.bytes_a_host_with_pods,
            "bytes_a_pod": self.bytes_a_pod,
        })
    }
}

/// By what the process takes of the machine before and after.
pub(crate) fn memory(count: usize) -> Memory {
    let before = resident();
    let mut fleet = hardware::fleet(count, Policy::Pack);
    let with_hosts = resident();
    let mut run = scale::Run::default();
    run.fill(&mut fleet, PodId(1));
    let with_pods = resident();
    let pods = run.live.len();
    // The benchmark's own list of pods is no part of it.
    let own = std::mem::size_of_val(run.live.as_slice());
    let hosts = u64::try_from(count).unwrap();
    let grown = with_pods
        .saturating_sub(with_hosts)
        .saturating_sub(u64::try_from(own).unwrap());
    Memory {
        hosts: count,
        bytes_a_host: with_hosts.saturating_sub(before) / hosts,
        pods,
        bytes_a_host_with_pods: (with_hosts.saturating_sub(before) + grown) / hosts,
        bytes_a_pod: grown / u64::try_from(pods).unwrap(),
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
