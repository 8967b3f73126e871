//! Entries under small numbers that stay theirs until they are removed.

use std::ops::{Index, IndexMut};

/// No entry.
pub(crate) const NONE: u32 = u32::MAX;

/// A vector with holes; the last hole is filled first, so that the same history
/// gives the same numbers.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, entry: T) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.entries[slot as usize] = Some(entry);
            return slot;
        }
        let slot = number(self.entries.len());
        self.entries.push(Some(entry));
        slot
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let removed = self.entries.get_mut(slot as usize)?.take();
        if removed.is_some() {
            self.free.push(slot);
        }
        removed
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// All, by their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let slots = self.entries.iter().enumerate();
        slots.filter_map(|(slot, entry)| Some((number(slot), entry.as_ref()?)))
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    /// # Panics
    /// Where there is no such entry: numbers are only ever this crate's own.
    #[allow(clippy::expect_used)]
    fn index(&self, slot: u32) -> &T {
        self.get(slot).expect("a number that was given out")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[allow(clippy::expect_used)]
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.get_mut(slot).expect("a number that was given out")
    }
}

/// A position as a number. Memory ends long before the numbers do.
pub(crate) fn number(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_again_only_after_its_entry_has_gone() {
        let mut slab = Slab::default();
        assert_eq!((slab.insert('a'), slab.insert('b')), (0, 1));
        assert_eq!(slab.remove(0), Some('a'));
        assert_eq!(slab.remove(0), None);
        assert_eq!(slab.insert('c'), 0);
        assert_eq!(slab.insert('d'), 2);
        let all: Vec<_> = slab.iter().map(|(slot, entry)| (slot, *entry)).collect();
        assert_eq!(all, [(0, 'c'), (1, 'b'), (2, 'd')]);
        assert_eq!(slab.len(), 3);
    }
}
