//! The wall clock, as the API counts it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since the Unix epoch.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let us = since.map(|since| since.as_micros()).unwrap_or_default();
    i64::try_from(us).unwrap_or(i64::MAX)
}
