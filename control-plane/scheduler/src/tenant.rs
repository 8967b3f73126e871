//! Tenants: what they hold, what they may hold, and their pods by rank.

use std::collections::{BTreeMap, BTreeSet};

use crate::amount::{Amount, Total};
use crate::chain::Chain;
use crate::table::Table;
use crate::template::Class;

/// The most that a tenant may hold at once, reserved capacity included. `None`: no
/// limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Pods.
    pub pods: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Bytes, with the sandboxes' own.
    pub memory_bytes: Option<u64>,
    /// Elastic network interfaces.
    pub enis: Option<u64>,
    /// GPUs.
    pub gpus: Option<u64>,
}

impl Limits {
    /// The first limit that more of that would exceed: what, the limit, and what is
    /// held.
    pub(crate) fn exceeded(&self, held: &Total, more: Amount) -> Option<(Limited, u64, u64)> {
        let over = |what, limit: Option<u64>, held: u64, more: u64| {
            let limit = limit.filter(|limit| held.saturating_add(more) > *limit)?;
            Some((what, limit, held))
        };
        over(Limited::Pods, self.pods, held.pods, more.pods.into())
            .or_else(|| {
                over(
                    Limited::Cpu,
                    self.cpu_millis,
                    held.cpu_millis,
                    more.cpu_millis.into(),
                )
            })
            .or_else(|| {
                over(
                    Limited::Memory,
                    self.memory_bytes,
                    held.memory_bytes,
                    more.memory_bytes,
                )
            })
            .or_else(|| over(Limited::Enis, self.enis, held.enis, more.enis.into()))
            .or_else(|| over(Limited::Gpus, self.gpus, held.gpus, more.gpus.into()))
    }
}

/// What a tenant's limit is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Pods.
    Pods,
    /// Thousandths of a CPU.
    Cpu,
    /// Bytes.
    Memory,
    /// Elastic network interfaces.
    Enis,
    /// GPUs.
    Gpus,
}

#[derive(Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) held: Total,
    pub(crate) limits: Limits,
    /// Share of the fleet that is fair, against other tenants' weights.
    pub(crate) weight: u32,
    /// Its pods, by rank.
    pub(crate) ranks: BTreeMap<(Class, i32), Chain>,
    /// Its templates that are known.
    pub(crate) templates: BTreeSet<u32>,
    /// The same by their labels' keys and values.
    pub(crate) labelled: Table<String, Table<String, BTreeSet<u32>>>,
    /// Terms by the first label of their selector.
    pub(crate) terms: Table<String, Table<String, Vec<u32>>>,
    /// Terms whose selector names no label.
    pub(crate) open_terms: Vec<u32>,
    /// Its capacity reservations.
    pub(crate) bookings: Vec<u32>,
}

impl Tenant {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            weight: 1,
            ..Self::default()
        }
    }
}
