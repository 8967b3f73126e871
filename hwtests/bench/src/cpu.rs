//! CPU time that the whole machine has used (`/proc/stat`).

use crate::environment::Clock;
use crate::error::{BenchError, file};
use crate::summary::number;

const STAT: &str = "/proc/stat";
/// Milliseconds of a tick (USER_HZ is 100 on x86-64).
const TICK_MS: f64 = 10.0;

/// CPU time used so far by everything, milliseconds, over all CPUs; `None` where
/// instructions are counted, since there something always runs.
///
/// # Errors
/// That the kernel does not say it.
pub(crate) fn used_ms() -> Result<Option<f64>, BenchError> {
    if Clock::of_environment() == Clock::Instructions {
        return Ok(None);
    }
    let text = std::fs::read_to_string(STAT).map_err(file("read", STAT))?;
    busy_ticks(&text)
        .map(|ticks| Some(number(ticks) * TICK_MS))
        .ok_or_else(|| BenchError::Impossible(format!("{STAT} does not say the time used")))
}

/// The first line: user, nice, system, idle, iowait, irq, softirq, steal, and guest
/// times, which user and nice hold already (proc(5)).
fn busy_ticks(stat: &str) -> Option<u64> {
    let mut words = stat.lines().next()?.split_whitespace();
    if words.next()? != "cpu" {
        return None;
    }
    let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    let all = ticks.get(..7)?;
    let idle = all.get(3)?.checked_add(*all.get(4)?)?;
    all.iter().sum::<u64>().checked_sub(idle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_guest_time_do_not_count() {
        let text = "cpu  10 2 30 1000 50 1 2 7 9 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(text), Some(45));
        assert_eq!(busy_ticks("cpu0 1 2 3 4 5 6 7\n"), None);
        assert_eq!(busy_ticks("cpu 1 2 3\n"), None);
    }
}
