//! How much is logged of what a guest or a frontend can provoke without end.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Messages that are logged in each [`PERIOD`].
const MESSAGES: u32 = 5;
const PERIOD: Duration = Duration::from_secs(60);

/// A device's right to log. What goes beyond it is counted, not logged: a log that
/// a guest can fill is a disk that it can fill.
#[derive(Debug)]
pub struct LogQuota {
    began: Cell<Instant>,
    logged: Cell<u32>,
    omitted: Cell<u64>,
}

impl Default for LogQuota {
    fn default() -> Self {
        Self {
            began: Cell::new(Instant::now()),
            logged: Cell::new(0),
            omitted: Cell::new(0),
        }
    }
}

impl LogQuota {
    /// Whether the next message may be logged; with the number of those that were not
    /// since the last.
    pub fn next(&self) -> Option<u64> {
        self.next_at(Instant::now())
    }

    fn next_at(&self, now: Instant) -> Option<u64> {
        if now.duration_since(self.began.get()) >= PERIOD {
            self.began.set(now);
            self.logged.set(0);
        }
        if self.logged.get() >= MESSAGES {
            self.omitted.set(self.omitted.get().saturating_add(1));
            return None;
        }
        self.logged.set(self.logged.get() + 1);
        Some(self.omitted.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_messages_pass_and_the_others_are_counted() {
        let quota = LogQuota::default();
        let begin = Instant::now();
        let at = |seconds| quota.next_at(begin + Duration::from_secs(seconds));
        for _ in 0..MESSAGES {
            assert_eq!(at(1), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(at(30), None);
        }
        assert_eq!(at(61), Some(1000));
        assert_eq!(at(61), Some(0));
    }
}
