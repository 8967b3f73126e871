//! Hosts of one zone by what they have free.

use std::collections::{BTreeMap, BTreeSet};

use crate::scheduler::Policy;

/// Where a host stands in the index: free CPU in steps, free memory in bytes, and
/// the host's slot.
pub(crate) type Entry = (u32, u64, usize);

/// Hosts that can take a pod, by free CPU in whole steps, then by free memory.
///
/// There are few distinct CPU steps (four a CPU of the largest host), so a lookup
/// walks those at most and costs a logarithm of the hosts in each.
#[derive(Debug, Default)]
pub(crate) struct FreeIndex {
    by_steps: BTreeMap<u32, BTreeSet<(u64, usize)>>,
}

impl FreeIndex {
    pub(crate) fn insert(&mut self, (steps, memory, slot): Entry) {
        self.by_steps
            .entry(steps)
            .or_default()
            .insert((memory, slot));
    }

    pub(crate) fn remove(&mut self, (steps, memory, slot): Entry) {
        if let Some(hosts) = self.by_steps.get_mut(&steps) {
            hosts.remove(&(memory, slot));
            if hosts.is_empty() {
                self.by_steps.remove(&steps);
            }
        }
    }

    /// The host that the policy likes best among those with room.
    pub(crate) fn find(&self, policy: Policy, steps: u32, memory: u64) -> Option<Entry> {
        let fitting = self.by_steps.range(steps..);
        match policy {
            Policy::Pack => fitting
                .filter_map(|(&free, hosts)| {
                    let (memory, slot) = hosts.range((memory, 0)..).next()?;
                    Some((free, *memory, *slot))
                })
                .next(),
            Policy::Spread => fitting
                .rev()
                .filter_map(|(&free, hosts)| {
                    let &(most, _) = hosts.last().filter(|(most, _)| *most >= memory)?;
                    // Of equals the first registered, as when packing.
                    let (memory, slot) = hosts.range((most, 0)..).next()?;
                    Some((free, *memory, *slot))
                })
                .next(),
        }
    }

    /// The most CPU (in steps) and the most memory that any host has free, each for
    /// itself; `None` where no host can take a pod.
    pub(crate) fn largest(&self) -> Option<(u32, u64)> {
        let (&steps, _) = self.by_steps.last_key_value()?;
        let memory = self
            .by_steps
            .values()
            .filter_map(|hosts| hosts.last())
            .map(|(memory, _)| *memory)
            .max()?;
        Some((steps, memory))
    }
}
