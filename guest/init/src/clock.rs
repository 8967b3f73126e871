//! Time of day and time since the start.

pub(crate) use longship_framed::now_us;

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::failed::{Doing, Failed};

/// The guest's uptime in microseconds.
pub(crate) fn uptime_us() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| {
        now.tv_sec()
            .saturating_mul(1_000_000)
            .saturating_add(now.tv_nsec() / 1000)
    })
}

/// Sets the time of day to `time` since the Unix epoch.
///
/// # Errors
/// The kernel's.
pub(crate) fn set(time: Duration) -> Result<(), Failed> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time))
        .doing(|| format!("set the clock to {time:?} after the epoch"))
}
