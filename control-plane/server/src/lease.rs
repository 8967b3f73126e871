//! Which cards are still heard of.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

/// The leases of all hosts: each holds until its card has been silent for too long.
#[derive(Debug)]
pub(crate) struct Leases {
    duration: Duration,
    ends: HashMap<String, Instant>,
    by_end: BTreeSet<(Instant, String)>,
}

impl Leases {
    /// Leases of that length.
    #[must_use]
    pub(crate) fn new(duration: Duration) -> Self {
        Self {
            duration,
            ends: HashMap::new(),
            by_end: BTreeSet::new(),
        }
    }

    /// How long a card may be silent.
    #[must_use]
    pub(crate) fn duration(&self) -> Duration {
        self.duration
    }

    /// The host's card was heard of `now`.
    pub(crate) fn renew(&mut self, host: &str, now: Instant) {
        let end = now + self.duration;
        if let Some(before) = self.ends.insert(host.to_owned(), end) {
            self.by_end.remove(&(before, host.to_owned()));
        }
        self.by_end.insert((end, host.to_owned()));
    }

    /// Whether the host's card was heard of recently.
    #[must_use]
    pub(crate) fn holds(&self, host: &str) -> bool {
        self.ends.contains_key(host)
    }

    /// Takes away the leases that are over.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<String> {
        let mut lost = Vec::new();
        while let Some((end, _)) = self.by_end.first() {
            if *end > now {
                break;
            }
            if let Some((_, host)) = self.by_end.pop_first() {
                self.ends.remove(&host);
                lost.push(host);
            }
        }
        lost
    }

    /// When the next lease ends.
    #[must_use]
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.by_end.first().map(|(end, _)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_once_and_only_without_news() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leases = Leases::new(Duration::from_secs(10));
        leases.renew("a", at(0));
        leases.renew("b", at(0));
        leases.renew("a", at(8));
        assert_eq!(leases.next_end(), Some(at(10)));
        assert_eq!(leases.expire(at(9)), Vec::<String>::new());
        assert_eq!(leases.expire(at(10)), ["b"]);
        assert!(leases.holds("a") && !leases.holds("b"));
        assert_eq!(leases.expire(at(30)), ["a"]);
        assert_eq!(leases.expire(at(60)), Vec::<String>::new());
        assert_eq!(leases.next_end(), None);
    }
}
