//! The steps in which free room is measured.
//!
//! Pods only ever take flavors, so only the flavors' sizes matter: whether a host
//! has room for one is decided exactly by how many of these steps its free room
//! reaches. More steps are put between them, so that a host with a little too much
//! is told from one with far too much.

use crate::amount::{Amount, SANDBOX_OVERHEAD_BYTES};
use crate::flavor::{CPU_STEP_MILLIS, Flavors, MAX_GPUS};

/// ENIs a pod may ask for.
pub const MAX_ENIS: u32 = 8;
/// Disks a pod may ask for.
pub const MAX_DISKS: u32 = 32;

/// Classes of free memory: the bits of one word.
pub(crate) const CLASSES: usize = 64;
/// Steps of free CPU; what has more counts as having this many.
pub(crate) const LAST_ROW: u32 = 1023;

/// What one unit of a score is: a quarter of a GiB of memory, or as much CPU as
/// usually goes with it (a quarter of a step).
const SCORE_UNIT_BYTES: u64 = 256 << 20;
/// Score units a step of CPU: a quarter of a CPU goes with one GiB.
pub(crate) const STEP_SCORE: u64 = 4;

/// Where a host's free room stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    /// Steps of CPU.
    pub(crate) row: u16,
    /// Class of memory.
    pub(crate) class: u8,
    /// ENIs, disks and GPUs, each up to what one pod may ask for.
    pub(crate) devices: Devices,
}

/// Counts of devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Devices {
    enis: u8,
    disks: u8,
    gpus: u8,
}

impl Devices {
    fn of(amount: Amount) -> Self {
        let up_to = |count: u32, most: u32| u8::try_from(count.min(most)).unwrap_or(u8::MAX);
        Self {
            enis: up_to(amount.enis, MAX_ENIS),
            disks: up_to(amount.disks, MAX_DISKS),
            gpus: up_to(amount.gpus, MAX_GPUS),
        }
    }

    pub(crate) fn fit(self, room: Self) -> bool {
        self.enis <= room.enis && self.disks <= room.disks && self.gpus <= room.gpus
    }
}

/// The classes of memory.
#[derive(Debug)]
pub(crate) struct Levels {
    /// Least free memory of each class, in bytes, rising.
    memory: Vec<u64>,
    /// The same in units of a score.
    scores: Vec<u64>,
    smallest_cpu_steps: u32,
}

impl Levels {
    pub(crate) fn new(flavors: &Flavors) -> Self {
        let mut memory: Vec<u64> = flavors
            .iter()
            .map(|flavor| flavor.memory_bytes.saturating_add(SANDBOX_OVERHEAD_BYTES))
            .collect();
        let mut top = memory.iter().copied().max().unwrap_or_default();
        for _ in 0..6 {
            top = top.saturating_mul(2);
            memory.push(top);
        }
        memory.sort_unstable();
        memory.dedup();
        while memory.len() < CLASSES {
            // The widest gap, as a ratio, gets a step in its middle.
            let ratio = |pair: &[u64]| match pair {
                [low, high] => u128::from(*high) * 1_000_000 / u128::from((*low).max(1)),
                _ => 0,
            };
            let gap = (1..memory.len()).max_by_key(|&at| ratio(&memory[at - 1..=at]));
            let Some(at) = gap else { break };
            let middle = u64::midpoint(memory[at - 1], memory[at]);
            if middle == memory[at - 1] {
                break;
            }
            memory.insert(at, middle);
        }
        let steps = flavors
            .iter()
            .map(|flavor| flavor.cpu_millis / CPU_STEP_MILLIS);
        Self {
            scores: memory
                .iter()
                .map(|bytes| bytes / SCORE_UNIT_BYTES)
                .collect(),
            memory,
            smallest_cpu_steps: steps.min().unwrap_or_default(),
        }
    }

    /// Where a host with that much free stands; `None` where no flavor fits.
    pub(crate) fn of_room(&self, room: Amount) -> Option<Level> {
        let steps = room.cpu_millis / CPU_STEP_MILLIS;
        if room.pods == 0 || room.enis == 0 || steps < self.smallest_cpu_steps {
            return None;
        }
        let reached = self
            .memory
            .partition_point(|&least| least <= room.memory_bytes);
        Some(Level {
            row: u16::try_from(steps.min(LAST_ROW)).ok()?,
            class: u8::try_from(reached.checked_sub(1)?).ok()?,
            devices: Devices::of(room),
        })
    }

    /// What a host must reach to have room for that. `None`: more than any host is
    /// known to have.
    pub(crate) fn of_need(&self, need: Amount) -> Option<Level> {
        let steps = need.cpu_millis.div_ceil(CPU_STEP_MILLIS);
        let class = self
            .memory
            .partition_point(|&least| least < need.memory_bytes);
        if steps > LAST_ROW || class == self.memory.len() {
            return None;
        }
        Some(Level {
            row: u16::try_from(steps).ok()?,
            class: u8::try_from(class).ok()?,
            devices: Devices::of(need),
        })
    }

    /// The score of the least memory of a class.
    pub(crate) fn score(&self, class: u8) -> u64 {
        self.scores
            .get(usize::from(class))
            .copied()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_of_a_flavor_is_a_step_and_the_steps_rise() {
        let flavors = Flavors::standard();
        let levels = Levels::new(&flavors);
        assert_eq!(levels.memory.len(), CLASSES);
        assert!(levels.memory.windows(2).all(|pair| pair[0] < pair[1]));
        for flavor in flavors.iter() {
            let takes = Amount::of_pod(flavor.cpu_millis, flavor.memory_bytes, 0, 1, 0);
            assert_eq!(levels.of_room(takes), levels.of_need(takes));
            let less = Amount {
                memory_bytes: takes.memory_bytes - 1,
                ..takes
            };
            let (room, need) = (levels.of_room(less), levels.of_need(takes));
            assert!(room.map(|room| room.class) < need.map(|need| need.class));
        }
    }
}
