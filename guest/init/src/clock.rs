//! Time of day and time since the start.

use std::time::{SystemTime, UNIX_EPOCH};

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

/// The time of day in microseconds since the Unix epoch.
pub(crate) fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or(0)
}

/// Sets the time of day to `time_us` microseconds since the Unix epoch.
///
/// # Errors
/// The kernel's.
pub(crate) fn set(time_us: i64) -> Result<(), Failed> {
    let time = TimeSpec::new(
        time_us.div_euclid(1_000_000),
        time_us.rem_euclid(1_000_000) * 1000,
    );
    clock_settime(ClockId::CLOCK_REALTIME, time)
        .doing(|| format!("set the clock to {time_us} us after the epoch"))
}
