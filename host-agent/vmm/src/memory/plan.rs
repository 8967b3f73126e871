//! What guest RAM is to be: checked numbers, before any of it exists.

use std::ops::Range;

use crate::memory::layout::{self, MAX_MEMORY, MEMORY_GRANULE, MIN_MEMORY};

/// The largest DMA window in bytes.
const MAX_WINDOW: u64 = 256 << 20;

/// Who can reach guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Profile {
    /// Every backend, all of it: one memfd.
    Direct,
    /// This process alone, but for a window of `window` bytes: a memfd of its own.
    Dense { window: u64 },
}

/// Size and profile of guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RamPlan {
    /// All of it, in bytes.
    pub(crate) bytes: u64,
    pub(crate) profile: Profile,
}

/// Why there is no such RAM.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RamPlanError {
    #[error("{0} is below the minimum of {MIN_MEMORY} bytes (32 MiB)")]
    Below(u64),
    #[error("{0} is above the limit of {MAX_MEMORY} bytes (1 TiB)")]
    Above(u64),
    #[error("{0} is not a multiple of {MEMORY_GRANULE} bytes (2 MiB)")]
    Uneven(u64),
    #[error("{0} is not a multiple of {MEMORY_GRANULE} bytes (2 MiB) above 0")]
    WindowUneven(u64),
    #[error("{0} is above the limit of {MAX_WINDOW} bytes (256 MiB)")]
    WindowAbove(u64),
    #[error("{window} is more than half of the {memory} bytes of memory")]
    WindowLarge { window: u64, memory: u64 },
}

impl RamPlanError {
    /// The field of a request that is wrong.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Below(_) | Self::Above(_) | Self::Uneven(_) => "memory_bytes",
            Self::WindowUneven(_) | Self::WindowAbove(_) | Self::WindowLarge { .. } => {
                "dma_window_bytes"
            }
        }
    }
}

impl RamPlan {
    /// RAM of `bytes`, all of it shared with backends.
    #[cfg(test)]
    pub(crate) fn direct(bytes: u64) -> Self {
        Self {
            bytes,
            profile: Profile::Direct,
        }
    }

    /// RAM of `bytes`, of which `window` are shared with backends.
    #[cfg(test)]
    pub(crate) fn dense(bytes: u64, window: u64) -> Self {
        Self {
            bytes,
            profile: Profile::Dense { window },
        }
    }

    /// Says whether a guest can have such RAM.
    pub(crate) fn check(&self) -> Result<(), RamPlanError> {
        let memory = self.bytes;
        if memory < MIN_MEMORY {
            return Err(RamPlanError::Below(memory));
        }
        if memory > MAX_MEMORY {
            return Err(RamPlanError::Above(memory));
        }
        if !memory.is_multiple_of(MEMORY_GRANULE) {
            return Err(RamPlanError::Uneven(memory));
        }
        match self.profile {
            Profile::Direct => Ok(()),
            Profile::Dense { window } if window == 0 || !window.is_multiple_of(MEMORY_GRANULE) => {
                Err(RamPlanError::WindowUneven(window))
            }
            Profile::Dense { window } if window > MAX_WINDOW => {
                Err(RamPlanError::WindowAbove(window))
            }
            Profile::Dense { window } if window > memory / 2 => {
                Err(RamPlanError::WindowLarge { window, memory })
            }
            Profile::Dense { .. } => Ok(()),
        }
    }

    /// The DMA window, guest-physical.
    pub(crate) fn window(&self) -> Option<Range<u64>> {
        match self.profile {
            Profile::Direct => None,
            Profile::Dense { window } => Some(layout::dma_window(self.bytes, window)),
        }
    }

    /// Whether some of `bytes` at `guest` lie in the window.
    pub(crate) fn touches_window(&self, guest: u64, bytes: u64) -> bool {
        self.window()
            .is_some_and(|window| guest < window.end && guest.saturating_add(bytes) > window.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_field() {
        let mib = |n: u64| n << 20;
        let good = [
            RamPlan::direct(mib(32)),
            RamPlan::direct(MAX_MEMORY),
            RamPlan::dense(mib(32), mib(16)),
            RamPlan::dense(mib(128), mib(2)),
            RamPlan::dense(mib(4096), mib(256)),
        ];
        for plan in good {
            assert_eq!(plan.check(), Ok(()), "{plan:?}");
        }
        let bad = [
            (RamPlan::direct(mib(16)), "memory_bytes"),
            (RamPlan::direct(mib(33)), "memory_bytes"),
            (RamPlan::direct(MAX_MEMORY + mib(2)), "memory_bytes"),
            (RamPlan::direct(u64::MAX), "memory_bytes"),
            (RamPlan::dense(mib(64), 0), "dma_window_bytes"),
            (RamPlan::dense(mib(64), mib(3)), "dma_window_bytes"),
            (RamPlan::dense(mib(64), mib(34)), "dma_window_bytes"),
            (RamPlan::dense(mib(4096), mib(258)), "dma_window_bytes"),
            (RamPlan::dense(mib(4096), u64::MAX), "dma_window_bytes"),
        ];
        for (plan, field) in bad {
            assert_eq!(plan.check().unwrap_err().field(), field, "{plan:?}");
        }
    }

    #[test]
    fn what_touches_the_window_is_known() {
        let plan = RamPlan::dense(64 << 20, 2 << 20);
        let window = plan.window().unwrap();
        assert_eq!(window, (62 << 20)..(64 << 20));
        assert!(!plan.touches_window(window.start - 4096, 4096));
        assert!(plan.touches_window(window.start - 4096, 4097));
        assert!(plan.touches_window(window.end - 1, 1));
        assert!(!plan.touches_window(window.end, u64::MAX));
        assert!(plan.touches_window(0, u64::MAX));
        assert!(!RamPlan::direct(64 << 20).touches_window(0, u64::MAX));
    }
}
