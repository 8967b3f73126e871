//! How much memory the host has left, by the kernel's own reckoning.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{BenchError, file};
use crate::summary::{median, number};

const MEMINFO: &str = "/proc/meminfo";
const ZONEINFO: &str = "/proc/zoneinfo";
/// Size of a page, bytes.
const PAGE: u64 = 4096;
/// Between looks.
const LOOK: Duration = Duration::from_millis(200);
/// Looks of which the difference must be small.
const LOOKS: usize = 4;
/// How far they may differ, bytes.
const STILL: f64 = 192.0 * 1024.0;
/// After this long it is taken as it is.
const PATIENCE: Duration = Duration::from_secs(8);

/// `MemAvailable` in bytes, as it is now.
pub(crate) fn available() -> Result<u64, BenchError> {
    field("MemAvailable")
}

/// What is free or holds files that could be read again, in bytes, once it is still:
/// caches are dropped (where allowed), then it is looked at until some looks agree.
///
/// It is `MemAvailable` with three differences. Its deductions are left out, which depend
/// on how much is cached at the moment. So is slab that counts as reclaimable: what of
/// that is left after caches were dropped is held by something. And pages on the CPUs'
/// own lists count as free, which the kernel does not count: tens of megabytes, now
/// there, now not.
pub(crate) async fn settled() -> Result<f64, BenchError> {
    nix::unistd::sync();
    // Only root may; elsewhere the kernel counts most of what is cached as available.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    let give_up = Instant::now() + PATIENCE;
    let mut looks = Vec::new();
    loop {
        tokio::time::sleep(LOOK).await;
        looks.push(number(unheld()?));
        let last = looks.get(looks.len().saturating_sub(LOOKS)..);
        let last = last.unwrap_or_default();
        let most = last.iter().copied().fold(f64::MIN, f64::max);
        let least = last.iter().copied().fold(f64::MAX, f64::min);
        if (last.len() == LOOKS && most - least <= STILL) || Instant::now() > give_up {
            return median(last)
                .ok_or_else(|| BenchError::Impossible("no memory was seen".to_owned()));
        }
    }
}

/// Kinds of memory that the kernel counts apart and that do not come back by
/// themselves (proc_meminfo(5)).
pub(crate) const KINDS: [(&str, &str); 8] = [
    ("AnonPages", "anonymous"),
    ("Shmem", "memfds, files in memory"),
    ("PageTables", "page tables of processes"),
    ("SecPageTables", "page tables of guests"),
    ("KernelStack", "kernel stacks"),
    ("SUnreclaim", "slab"),
    ("SReclaimable", "slab, in use though reclaimable"),
    ("Percpu", "per-CPU"),
];

/// What each of [`KINDS`] holds now, bytes; 0 where this kernel does not count it.
///
/// # Errors
/// That the kernel does not say it.
pub(crate) fn by_kind() -> Result<[f64; KINDS.len()], BenchError> {
    let text = std::fs::read_to_string(MEMINFO).map_err(file("read", MEMINFO))?;
    Ok(KINDS.map(|(name, _)| number(parse(&text, name).unwrap_or(0))))
}

/// Free, or file cache.
fn unheld() -> Result<u64, BenchError> {
    let parts = ["MemFree", "Active(file)", "Inactive(file)"].map(field);
    let counted: u64 = parts.into_iter().sum::<Result<_, _>>()?;
    let zones = std::fs::read_to_string(ZONEINFO).map_err(file("read", ZONEINFO))?;
    Ok(counted.saturating_add(on_lists_of_cpus(&zones).saturating_mul(PAGE)))
}

/// Free pages on the CPUs' own lists, of all zones.
fn on_lists_of_cpus(zoneinfo: &str) -> u64 {
    zoneinfo
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("count:"))
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum()
}

fn field(name: &'static str) -> Result<u64, BenchError> {
    let text = std::fs::read_to_string(MEMINFO).map_err(file("read", MEMINFO))?;
    parse(&text, name)
        .ok_or_else(|| BenchError::Impossible(format!("{MEMINFO} does not say {name}")))
}

fn parse(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value
        .trim()
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_meminfo() {
        let text = "MemTotal:        3055492 kB\nMemFree:  1 kB\nMemAvailable:    2936536 kB\n";
        assert_eq!(parse(text, "MemAvailable"), Some(2_936_536 << 10));
        assert_eq!(parse(text, "Mem"), None);
        assert_eq!(parse(text, "SwapFree"), None);
    }

    #[test]
    fn pages_on_the_cpus_lists_are_found() {
        let text = "Node 0, zone    DMA32\n  pages free     16\n  pagesets\n    cpu: 0\n              \
                    count:    120\n              high:  252\n    cpu: 1\n              count:  3\n\
                    Node 0, zone   Normal\n  pagesets\n    cpu: 0\n              count: 7\n";
        assert_eq!(on_lists_of_cpus(text), 130);
    }
}
