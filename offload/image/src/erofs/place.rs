//! Where inodes go: best fit into what earlier ones left of their blocks.

use std::collections::BTreeSet;

use super::BLOCK;
use super::format::SLOT;

/// Hands out places from `start` on, in bytes from the disk's beginning.
#[derive(Debug)]
pub(super) struct Places {
    /// What is left of used blocks: length and offset.
    gaps: BTreeSet<(u64, u64)>,
    end: u64,
}

impl Places {
    /// `start` is a multiple of the block size.
    pub(super) fn new(start: u64) -> Self {
        Self {
            gaps: BTreeSet::new(),
            end: start,
        }
    }

    /// A place for `size` bytes. What fits into one block lies in one block.
    pub(super) fn take(&mut self, size: u64) -> u64 {
        let size = size.next_multiple_of(SLOT);
        if let Some(&(length, offset)) = self.gaps.range((size, 0)..).next() {
            self.gaps.remove(&(length, offset));
            self.leave(offset + size, length - size);
            return offset;
        }
        let offset = self.end;
        self.end += size.next_multiple_of(BLOCK);
        self.leave(offset + size, self.end - offset - size);
        offset
    }

    /// Where the last used block ends.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    fn leave(&mut self, offset: u64, length: u64) {
        if length > 0 {
            self.gaps.insert((length, offset));
        }
    }
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_neither_overlap_nor_cross_blocks(sizes in prop::collection::vec(1_u64..9000, 1..200)) {
            let mut places = Places::new(BLOCK);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for size in sizes {
                let offset = places.take(size);
                prop_assert_eq!(offset % SLOT, 0);
                prop_assert!(offset >= BLOCK && offset + size <= places.end());
                if size <= BLOCK {
                    prop_assert_eq!(offset / BLOCK, (offset + size - 1) / BLOCK);
                }
                taken.push((offset, size));
            }
            taken.sort_unstable();
            for pair in taken.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
        }
    }
}
