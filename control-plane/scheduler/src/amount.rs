//! Amounts of what hosts have and pods take.

/// Host memory that a sandbox takes beside its guest's: the VMM, page tables,
/// kernel objects, the backends' share. Reserved with every pod.
pub const SANDBOX_OVERHEAD_BYTES: u64 = 16 << 20;

/// An amount of everything that a host has and that pods take of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Amount {
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Places for pods, whatever their size.
    pub pods: u32,
    /// Elastic network interfaces.
    pub enis: u32,
    /// Disks that can be attached.
    pub disks: u32,
    /// GPUs.
    pub gpus: u32,
}

impl Amount {
    /// What a pod of that size takes of its host.
    #[must_use]
    pub fn of_pod(cpu_millis: u32, memory_bytes: u64, gpus: u32, enis: u32, disks: u32) -> Self {
        Self {
            memory_bytes: memory_bytes.saturating_add(SANDBOX_OVERHEAD_BYTES),
            cpu_millis,
            pods: 1,
            enis,
            disks,
            gpus,
        }
    }

    /// Whether all of it is within `room`.
    #[must_use]
    pub fn fits(self, room: Self) -> bool {
        self.memory_bytes <= room.memory_bytes
            && self.cpu_millis <= room.cpu_millis
            && self.pods <= room.pods
            && self.enis <= room.enis
            && self.disks <= room.disks
            && self.gpus <= room.gpus
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add, u32::saturating_add)
    }

    /// Both together, where that can be counted.
    #[must_use]
    pub fn checked_plus(self, other: Self) -> Option<Self> {
        Some(Self {
            memory_bytes: self.memory_bytes.checked_add(other.memory_bytes)?,
            cpu_millis: self.cpu_millis.checked_add(other.cpu_millis)?,
            pods: self.pods.checked_add(other.pods)?,
            enis: self.enis.checked_add(other.enis)?,
            disks: self.disks.checked_add(other.disks)?,
            gpus: self.gpus.checked_add(other.gpus)?,
        })
    }

    /// What is left without `other`; nothing of what `other` has more of.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub, u32::saturating_sub)
    }

    /// Of each the smaller.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        self.with(other, u64::min, u32::min)
    }

    /// Of each the larger.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        self.with(other, u64::max, u32::max)
    }

    fn with(self, other: Self, wide: fn(u64, u64) -> u64, narrow: fn(u32, u32) -> u32) -> Self {
        Self {
            memory_bytes: wide(self.memory_bytes, other.memory_bytes),
            cpu_millis: narrow(self.cpu_millis, other.cpu_millis),
            pods: narrow(self.pods, other.pods),
            enis: narrow(self.enis, other.enis),
            disks: narrow(self.disks, other.disks),
            gpus: narrow(self.gpus, other.gpus),
        }
    }
}

/// A sum over many hosts or pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Pods, or places for them.
    pub pods: u64,
    /// Elastic network interfaces.
    pub enis: u64,
    /// Disks.
    pub disks: u64,
    /// GPUs.
    pub gpus: u64,
}

impl Total {
    pub(crate) fn add(&mut self, amount: Amount) {
        self.memory_bytes = self.memory_bytes.saturating_add(amount.memory_bytes);
        self.cpu_millis += u64::from(amount.cpu_millis);
        self.pods += u64::from(amount.pods);
        self.enis += u64::from(amount.enis);
        self.disks += u64::from(amount.disks);
        self.gpus += u64::from(amount.gpus);
    }

    pub(crate) fn take(&mut self, amount: Amount) {
        self.memory_bytes = self.memory_bytes.saturating_sub(amount.memory_bytes);
        self.cpu_millis -= u64::from(amount.cpu_millis).min(self.cpu_millis);
        self.pods -= u64::from(amount.pods).min(self.pods);
        self.enis -= u64::from(amount.enis).min(self.enis);
        self.disks -= u64::from(amount.disks).min(self.disks);
        self.gpus -= u64::from(amount.gpus).min(self.gpus);
    }

    /// The largest part of `whole` that this is, in billionths (the dominant share
    /// of DRF). What `whole` has nothing of is left out.
    #[must_use]
    pub fn dominant_share(&self, whole: &Self) -> u64 {
        let part = |of: u64, all: u64| {
            let part = u128::from(of) * 1_000_000_000 / u128::from(all.max(1));
            if all == 0 {
                0
            } else {
                u64::try_from(part).unwrap_or(u64::MAX)
            }
        };
        [
            part(self.memory_bytes, whole.memory_bytes),
            part(self.cpu_millis, whole.cpu_millis),
            part(self.pods, whole.pods),
            part(self.enis, whole.enis),
            part(self.disks, whole.disks),
            part(self.gpus, whole.gpus),
        ]
        .into_iter()
        .max()
        .unwrap_or_default()
    }
}
