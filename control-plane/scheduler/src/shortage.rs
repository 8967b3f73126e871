//! Why a pod waits, in words for a person.

use std::collections::BTreeMap;
use std::fmt;

use crate::amount::{Amount, SANDBOX_OVERHEAD_BYTES};
use crate::flavor::CPU_STEP_MILLIS;
use crate::quantity::{bytes_text, cpus_text};
use crate::reason::LimitReached;

/// Why a host takes no pod of a template. Each host counts under the first that
/// holds for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Its card is not attached.
    Unreachable,
    /// An operator keeps pods off it.
    Cordoned,
    /// It has shrunk: its pods have more of something than it has.
    Shrunk,
    /// It is for flavors of another family.
    OtherFamily,
    /// It runs as many pods as it may.
    Pods,
    /// It has neither the CPU nor the memory.
    CpuAndMemory,
    /// It has the memory, but not the CPU.
    Cpu,
    /// It has the CPU, but not the memory.
    Memory,
    /// It has no ENI left, or too few.
    Enis,
    /// It can take no more disks, or too few.
    Disks,
    /// It has no GPU left, or too few.
    Gpus,
    /// Its zone has a pod that this one must be apart from.
    ApartZone,
    /// It has such a pod itself.
    ApartHost,
    /// Its zone has a pod that must be apart from this one.
    GuardedZone,
    /// It has such a pod itself.
    GuardedHost,
    /// Its zone has none of the pods that this one must be with.
    NotWithZone,
    /// It has none itself.
    NotWithHost,
    /// Its zone has more of the pods that are to be spread than others.
    SkewZone,
    /// It has itself.
    SkewHost,
}

impl Cause {
    fn text(self, one: bool) -> &'static str {
        match (self, one) {
            (Self::Unreachable, true) => "is unreachable",
            (Self::Unreachable, false) => "are unreachable",
            (Self::Cordoned, true) => "is cordoned",
            (Self::Cordoned, false) => "are cordoned",
            (Self::Shrunk, true) => "has less than its pods take",
            (Self::Shrunk, false) => "have less than their pods take",
            (Self::OtherFamily, true) => "is of another family",
            (Self::OtherFamily, false) => "are of another family",
            (Self::Pods, true) => "runs as many pods as it may",
            (Self::Pods, false) => "run as many pods as they may",
            (Self::CpuAndMemory, true) => "lacks CPU and memory",
            (Self::CpuAndMemory, false) => "lack CPU and memory",
            (Self::Cpu, true) => "lacks CPU",
            (Self::Cpu, false) => "lack CPU",
            (Self::Memory, true) => "lacks memory",
            (Self::Memory, false) => "lack memory",
            (Self::Enis, true) => "lacks ENIs",
            (Self::Enis, false) => "lack ENIs",
            (Self::Disks, true) => "lacks places for disks",
            (Self::Disks, false) => "lack places for disks",
            (Self::Gpus, true) => "lacks GPUs",
            (Self::Gpus, false) => "lack GPUs",
            (Self::ApartZone, true) => "is in a zone with a pod that it must be apart from",
            (Self::ApartZone, false) => "are in zones with pods that it must be apart from",
            (Self::ApartHost, true) => "has a pod that it must be apart from",
            (Self::ApartHost, false) => "have pods that it must be apart from",
            (Self::GuardedZone, true) => "is in a zone with a pod that keeps it away",
            (Self::GuardedZone, false) => "are in zones with pods that keep it away",
            (Self::GuardedHost, true) => "has a pod that keeps it away",
            (Self::GuardedHost, false) => "have pods that keep it away",
            (Self::NotWithZone, true) => "is in a zone without the pods that it must be with",
            (Self::NotWithZone, false) => "are in zones without the pods that it must be with",
            (Self::NotWithHost, true) => "has none of the pods that it must be with",
            (Self::NotWithHost, false) => "have none of the pods that it must be with",
            (Self::SkewZone, true) => "is in a zone with its share of the spread",
            (Self::SkewZone, false) => "are in zones with their share of the spread",
            (Self::SkewHost, true) => "has its share of the spread",
            (Self::SkewHost, false) => "have their share of the spread",
        }
    }
}

/// Why a pod of a template has no place now: every host that could be meant, counted
/// under what keeps the pod off it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shortage {
    /// What the pod asks for, as the smallest flavor that it accepts.
    pub flavor: String,
    /// What it takes, the sandbox's own included.
    pub takes: Amount,
    /// Zones it may be in, by name; empty: any.
    pub zones: Vec<String>,
    /// Hosts in these zones.
    pub hosts: u32,
    /// Hosts by what is in the way.
    pub causes: BTreeMap<Cause, u32>,
    /// Hosts that could take it now: it was not tried since they can.
    pub fitting: u32,
    /// The most of each that one host has free, of those that take pods.
    pub largest: Amount,
    /// The tenant's limit, where it is that.
    pub limit: Option<LimitReached>,
}

impl Shortage {
    fn place(&self) -> String {
        match self.zones.as_slice() {
            [] => String::new(),
            [zone] => format!(" in zone {zone}"),
            [zones @ .., last] => format!(" in zones {} and {last}", zones.join(", ")),
        }
    }

    /// What the flavor's memory is, without the sandbox's own.
    fn guest_memory(&self) -> u64 {
        self.takes
            .memory_bytes
            .saturating_sub(SANDBOX_OVERHEAD_BYTES)
    }

    /// All hosts have the same in their way.
    fn single(&self, cause: Cause, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place();
        match cause {
            Cause::Cpu => {
                let steps = self.largest.cpu_millis / CPU_STEP_MILLIS;
                write!(
                    f,
                    "no host{place} has {} free: the largest gap is {}",
                    cpus_text(self.takes.cpu_millis),
                    cpus_text(steps * CPU_STEP_MILLIS)
                )
            }
            Cause::Memory => write!(
                f,
                "no host{place} has {} of memory free (and {} for the sandbox itself): \
                 the largest gap is {}",
                bytes_text(self.guest_memory()),
                bytes_text(SANDBOX_OVERHEAD_BYTES),
                bytes_text(self.largest.memory_bytes)
            ),
            cause if self.hosts == 1 => write!(f, "the only host{place} {}", cause.text(true)),
            cause => write!(f, "all {} hosts{place} {}", self.hosts, cause.text(false)),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(limit) = &self.limit {
            return write!(f, "{limit}");
        }
        if self.hosts == 0 {
            return match self.zones.is_empty() {
                true => f.write_str("no host has registered yet"),
                false => write!(f, "there is no host{}", self.place()),
            };
        }
        if self.fitting > 0 {
            let hosts = if self.fitting == 1 {
                "1 host has"
            } else {
                "hosts have"
            };
            return write!(f, "{hosts} room{}: its turn will come", self.place());
        }
        if let [(cause, _)] = self.causes.iter().collect::<Vec<_>>().as_slice() {
            return self.single(**cause, f);
        }
        let hosts = if self.hosts == 1 { "host" } else { "hosts" };
        write!(f, "of {} {hosts}{}: ", self.hosts, self.place())?;
        let mut causes: Vec<_> = self.causes.iter().collect();
        causes.sort_by_key(|(cause, count)| (std::cmp::Reverse(**count), **cause));
        for (at, (cause, count)) in causes.into_iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{count} {}", cause.text(*count == 1))?;
        }
        Ok(())
    }
}
