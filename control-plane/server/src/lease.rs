//! Which cards are still heard of, and which have been silent for too long.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

/// Points in time, one a host at most.
#[derive(Debug, Default)]
struct Ends {
    of: HashMap<String, Instant>,
    in_order: BTreeSet<(Instant, String)>,
}

impl Ends {
    fn set(&mut self, host: &str, end: Instant) {
        self.remove(host);
        self.of.insert(host.to_owned(), end);
        self.in_order.insert((end, host.to_owned()));
    }

    fn remove(&mut self, host: &str) {
        if let Some((host, end)) = self.of.remove_entry(host) {
            self.in_order.remove(&(end, host));
        }
    }

    fn pop(&mut self, now: Instant) -> Option<String> {
        self.in_order.first().filter(|(end, _)| *end <= now)?;
        let (_, host) = self.in_order.pop_first()?;
        self.of.remove(&host);
        Some(host)
    }

    fn first(&self) -> Option<Instant> {
        self.in_order.first().map(|(end, _)| *end)
    }
}

/// The leases of all hosts: each holds until its card has been silent for too long.
/// A host whose card stays silent for longer yet is fenced.
#[derive(Debug)]
pub(crate) struct Leases {
    duration: Duration,
    fence_after: Duration,
    held: Ends,
    silent: Ends,
}

impl Leases {
    /// Leases of that length; a host is fenced so long after its lease has ended.
    #[must_use]
    pub(crate) fn new(duration: Duration, fence_after: Duration) -> Self {
        Self {
            duration,
            fence_after,
            held: Ends::default(),
            silent: Ends::default(),
        }
    }

    /// How long a card may be silent.
    #[must_use]
    pub(crate) fn duration(&self) -> Duration {
        self.duration
    }

    /// How long after that its host is fenced.
    #[must_use]
    pub(crate) fn fence_after(&self) -> Duration {
        self.fence_after
    }

    /// The host's card was heard of `now`.
    pub(crate) fn renew(&mut self, host: &str, now: Instant) {
        self.silent.remove(host);
        self.held.set(host, now + self.duration);
    }

    /// The host is gone.
    pub(crate) fn forget(&mut self, host: &str) {
        self.held.remove(host);
        self.silent.remove(host);
    }

    /// Whether the host's card was heard of recently.
    #[must_use]
    pub(crate) fn holds(&self, host: &str) -> bool {
        self.held.of.contains_key(host)
    }

    /// Takes away the leases that are over.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<String> {
        let mut lost = Vec::new();
        while let Some(host) = self.held.pop(now) {
            // From now on: whoever was asleep for long itself gives all cards that time.
            self.silent.set(&host, now + self.fence_after);
            lost.push(host);
        }
        lost
    }

    /// Nobody has listened for a while: no card was silent, as far as is known. What
    /// runs begins anew.
    pub(crate) fn forgive(&mut self, now: Instant) {
        for (ends, length) in [
            (&mut self.held, self.duration),
            (&mut self.silent, self.fence_after),
        ] {
            let hosts: Vec<String> = ends.of.keys().cloned().collect();
            for host in hosts {
                ends.set(&host, now + length);
            }
        }
    }

    /// The hosts that are to be fenced now; each is told once.
    pub(crate) fn fence(&mut self, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| self.silent.pop(now)).collect()
    }

    /// When the next lease ends or the next host is to be fenced.
    #[must_use]
    pub(crate) fn next_end(&self) -> Option<Instant> {
        let ends = [self.held.first(), self.silent.first()];
        ends.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases() -> (Leases, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let leases = Leases::new(Duration::from_secs(10), Duration::from_secs(60));
        (leases, move |seconds| start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_lease_ends_once_and_only_without_news() {
        let (mut leases, at) = leases();
        leases.renew("a", at(0));
        leases.renew("b", at(0));
        leases.renew("a", at(8));
        assert_eq!(leases.next_end(), Some(at(10)));
        assert_eq!(leases.expire(at(9)), Vec::<String>::new());
        assert_eq!(leases.expire(at(10)), ["b"]);
        assert!(leases.holds("a") && !leases.holds("b"));
        assert_eq!(leases.expire(at(30)), ["a"]);
        assert_eq!(leases.expire(at(60)), Vec::<String>::new());
    }

    #[test]
    fn who_did_not_listen_blames_no_card() {
        let (mut leases, at) = leases();
        leases.renew("a", at(0));
        leases.renew("b", at(0));
        leases.expire(at(10));
        leases.renew("a", at(10));
        // Asleep for long.
        leases.forgive(at(1000));
        assert_eq!(leases.expire(at(1009)), Vec::<String>::new());
        assert_eq!(leases.fence(at(1059)), Vec::<String>::new());
        assert_eq!(leases.expire(at(1010)), ["a"]);
        assert_eq!(leases.fence(at(1060)), ["b"]);
        // Who was only just found to be silent is not given up in the same moment.
        leases.renew("c", at(2000));
        assert_eq!(leases.expire(at(9000)), ["c"]);
        assert!(!leases.fence(at(9000)).contains(&"c".to_owned()));
    }

    #[test]
    fn a_silent_host_is_fenced_once_unless_it_is_heard_of_again() {
        let (mut leases, at) = leases();
        leases.renew("a", at(0));
        leases.renew("b", at(0));
        assert_eq!(leases.expire(at(12)), ["a", "b"]);
        assert_eq!(leases.next_end(), Some(at(72)));
        leases.renew("b", at(20));
        assert_eq!(leases.expire(at(30)), ["b"]);
        assert_eq!(leases.fence(at(71)), Vec::<String>::new());
        assert_eq!(leases.fence(at(80)), ["a"]);
        assert_eq!(leases.fence(at(89)), Vec::<String>::new());
        leases.forget("b");
        assert_eq!(leases.fence(at(1000)), Vec::<String>::new());
        assert_eq!(leases.next_end(), None);
    }
}
