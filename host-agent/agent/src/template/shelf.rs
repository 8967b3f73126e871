//! Which templates there are: one for each shape, each made by one task however many
//! ask for it, the least recently used dropped when all together take too much.

use std::collections::HashMap;
use std::time::Duration;

use longship_proto::agent::v1::TemplateState;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::shape::Shape;

/// After its first failure; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(600);

/// What is known of one shape's template.
#[derive(Debug, Clone)]
pub(super) enum State<T> {
    Making,
    Ready(T),
    Failed(Failed),
}

#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) message: String,
    /// When it is worth another attempt.
    retry_at: Instant,
}

/// What [`Shelf::look`] finds.
#[derive(Debug)]
pub(super) struct Look<T> {
    /// It is there, on its way, or known not to be had now.
    pub(super) state: watch::Receiver<State<T>>,
    /// Nobody makes it: whoever gets this has to. It ends with [`Shelf::put`] or
    /// [`Shelf::fail`].
    pub(super) missing: Option<watch::Sender<State<T>>>,
    /// The last attempt failed: it is not worth waiting for this one.
    pub(super) doubtful: bool,
}

#[derive(Debug)]
struct Slot<T> {
    state: watch::Sender<State<T>>,
    bytes: u64,
    /// Rises with every use, over all slots.
    used: u64,
    failures: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shelf<T> {
    slots: HashMap<Shape, Slot<T>>,
    uses: u64,
    most: usize,
    most_bytes: u64,
}

impl<T> State<T> {
    pub(super) fn shown(&self) -> TemplateState {
        match self {
            Self::Making => TemplateState::Making,
            Self::Ready(_) => TemplateState::Ready,
            Self::Failed(_) => TemplateState::Failed,
        }
    }
}

impl<T: Clone> Shelf<T> {
    /// For at most so many templates that hold at most so many bytes. The newest one is
    /// kept even where it alone is too large, as it would be made again and again.
    pub(super) fn new(most: usize, most_bytes: u64) -> Self {
        Self {
            slots: HashMap::new(),
            uses: 0,
            most,
            most_bytes,
        }
    }

    /// Looks a shape up for use.
    pub(super) fn look(&mut self, shape: Shape, now: Instant) -> Look<T> {
        self.uses += 1;
        let used = self.uses;
        let slot = self.slots.entry(shape).or_insert_with(|| Slot {
            // As if it had failed long ago.
            state: watch::Sender::new(State::Failed(Failed {
                message: String::new(),
                retry_at: now,
            })),
            bytes: 0,
            used,
            failures: 0,
        });
        slot.used = used;
        let due = matches!(&*slot.state.borrow(), State::Failed(failed) if failed.retry_at <= now);
        if due {
            slot.state.send_replace(State::Making);
        }
        Look {
            state: slot.state.subscribe(),
            missing: due.then(|| slot.state.clone()),
            doubtful: slot.failures > 0,
        }
    }

    /// The one of this shape, where it is at hand.
    pub(super) fn ready(&self, shape: Shape) -> Option<T> {
        match &*self.slots.get(&shape)?.state.borrow() {
            State::Ready(item) => Some(item.clone()),
            State::Making | State::Failed(_) => None,
        }
    }

    /// The one that was missing is there.
    pub(super) fn put(
        &mut self,
        shape: Shape,
        item: T,
        bytes: u64,
        done: &watch::Sender<State<T>>,
    ) {
        if let Some(slot) = self.slots.get_mut(&shape) {
            slot.bytes = bytes;
            slot.failures = 0;
        }
        done.send_replace(State::Ready(item));
        self.trim(shape);
    }

    /// The one that was missing cannot be had, or the one at hand is of no use.
    pub(super) fn fail(&mut self, shape: Shape, message: String, now: Instant) {
        let Some(slot) = self.slots.get_mut(&shape) else {
            return;
        };
        let doubled =
            RETRY_FIRST.saturating_mul(1_u32.checked_shl(slot.failures).unwrap_or(u32::MAX));
        slot.failures = slot.failures.saturating_add(1);
        slot.bytes = 0;
        slot.state.send_replace(State::Failed(Failed {
            message,
            retry_at: now + doubled.min(RETRY_MAX),
        }));
    }

    /// What those at hand hold, in bytes.
    pub(super) fn held_bytes(&self) -> u64 {
        self.slots
            .values()
            .fold(0, |sum, slot| sum.saturating_add(slot.bytes))
    }

    /// All of them, in an order that does not change.
    pub(super) fn all(&self) -> Vec<(Shape, State<T>)> {
        let mut all: Vec<_> = self
            .slots
            .iter()
            .map(|(shape, slot)| (*shape, slot.state.borrow().clone()))
            .collect();
        all.sort_by_key(|(shape, _)| *shape);
        all
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
    }

    /// Drops the least recently used until the rest fits.
    fn trim(&mut self, newest: Shape) {
        loop {
            let at_hand = || self.slots.iter().filter(|(_, slot)| slot.bytes > 0);
            if at_hand().count() <= self.most && self.held_bytes() <= self.most_bytes {
                return;
            }
            let oldest = at_hand()
                .filter(|(shape, _)| **shape != newest)
                .min_by_key(|(_, slot)| slot.used)
                .map(|(shape, _)| *shape);
            let Some(oldest) = oldest else { return };
            tracing::info!("the template of {oldest} makes room");
            self.slots.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shape::Profile;

    fn shape(vcpus: u32) -> Shape {
        Shape {
            vcpus,
            memory_bytes: 1 << 27,
            profile: Profile::Dense,
        }
    }

    fn made(shelf: &mut Shelf<u32>, number: u32, bytes: u64) {
        let look = shelf.look(shape(number), Instant::now());
        shelf.put(shape(number), number, bytes, &look.missing.unwrap());
    }

    #[test]
    fn one_is_made_however_many_ask() {
        let mut shelf = Shelf::new(4, 100);
        let done = shelf.look(shape(1), Instant::now()).missing.unwrap();
        let waiting = shelf.look(shape(1), Instant::now());
        assert!(waiting.missing.is_none() && !waiting.doubtful);
        assert!(shelf.ready(shape(1)).is_none());
        shelf.put(shape(1), 7, 10, &done);
        assert!(matches!(&*waiting.state.borrow(), State::Ready(7)));
        assert_eq!((shelf.ready(shape(1)), shelf.held_bytes()), (Some(7), 10));
    }

    #[test]
    fn a_failure_is_tried_again_later_and_later() {
        let mut shelf = Shelf::<u32>::new(4, 100);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        let first = shelf.look(shape(1), now);
        assert!(first.missing.is_some() && !first.doubtful);
        for _ in 0..8 {
            shelf.fail(shape(1), "no".into(), now);
            let failed_at = now;
            while shelf.look(shape(1), now).missing.is_none() {
                now += Duration::from_secs(10);
            }
            assert!(
                shelf.look(shape(1), now).doubtful,
                "nobody waits for this one"
            );
            waits.push((now - failed_at).as_secs());
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600, 600]);
    }

    #[test]
    fn the_newest_stays_even_where_it_alone_is_too_large() {
        let mut shelf = Shelf::new(4, 100);
        made(&mut shelf, 1, 60);
        made(&mut shelf, 2, 400);
        assert_eq!(
            (shelf.ready(shape(1)), shelf.ready(shape(2))),
            (None, Some(2))
        );
    }

    proptest! {
        #[test]
        fn what_is_kept_fits_and_is_what_was_used_last(
            uses in prop::collection::vec((1_u32..9, 1_u64..50), 1..60),
        ) {
            let mut shelf = Shelf::new(3, 100);
            // The model: most recently used first.
            let mut kept: Vec<(u32, u64)> = Vec::new();
            for (number, bytes) in uses {
                if let Some(at) = kept.iter().position(|(other, _)| *other == number) {
                    let known = kept.remove(at);
                    kept.insert(0, known);
                    prop_assert!(shelf.look(shape(number), Instant::now()).missing.is_none());
                } else {
                    made(&mut shelf, number, bytes);
                    kept.insert(0, (number, bytes));
                    while kept.len() > 3 || kept.iter().map(|(_, bytes)| bytes).sum::<u64>() > 100 {
                        kept.pop();
                    }
                }
                for number in 1..9 {
                    let expected = kept.iter().any(|(other, _)| *other == number).then_some(number);
                    prop_assert_eq!(shelf.ready(shape(number)), expected);
                }
            }
        }
    }
}
