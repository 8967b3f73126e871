//! Chains of pods: each pod hangs in its host's and in its tenant's.

use crate::slab::{NONE, Slab};

/// A chain's end and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    head: u32,
    pub(crate) len: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { head: NONE, len: 0 }
    }
}

/// Neighbours in a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neighbours {
    previous: u32,
    next: u32,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self {
            previous: NONE,
            next: NONE,
        }
    }
}

/// What hangs in chains, one for each `K`.
pub(crate) trait Chained<const K: usize> {
    fn neighbours(&self) -> Neighbours;
    fn neighbours_mut(&mut self) -> &mut Neighbours;
}

impl Chain {
    /// Puts an entry first.
    pub(crate) fn push<const K: usize, T: Chained<K>>(&mut self, slab: &mut Slab<T>, slot: u32) {
        *slab[slot].neighbours_mut() = Neighbours {
            previous: NONE,
            next: self.head,
        };
        if self.head != NONE {
            slab[self.head].neighbours_mut().previous = slot;
        }
        self.head = slot;
        self.len += 1;
    }

    /// Takes an entry out; it must be in this chain.
    pub(crate) fn remove<const K: usize, T: Chained<K>>(&mut self, slab: &mut Slab<T>, slot: u32) {
        let Neighbours { previous, next } = slab[slot].neighbours();
        match previous {
            NONE => self.head = next,
            previous => slab[previous].neighbours_mut().next = next,
        }
        if next != NONE {
            slab[next].neighbours_mut().previous = previous;
        }
        *slab[slot].neighbours_mut() = Neighbours::default();
        self.len -= 1;
    }

    /// All entries, the last that came first.
    pub(crate) fn iter<const K: usize, T: Chained<K>>(
        self,
        slab: &Slab<T>,
    ) -> impl Iterator<Item = (u32, &T)> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let slot = at;
            let entry = slab.get(slot)?;
            at = entry.neighbours().next;
            Some((slot, entry))
        })
    }
}
