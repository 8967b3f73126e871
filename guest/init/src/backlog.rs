//! Bytes that could not be handed on yet.

/// A queue of bytes; holds no memory while it is empty.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: Vec<u8>,
    done: usize,
}

impl Backlog {
    /// Appends.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What is left to hand on.
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.done..).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    /// `count` more bytes have been handed on.
    pub(crate) fn advance(&mut self, count: usize) {
        self.done = self.done.saturating_add(count);
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_in_which_they_came(
            steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..9), 0_usize..9), 0..20),
        ) {
            let (mut backlog, mut came, mut left) = (Backlog::default(), vec![], vec![]);
            for (bytes, take) in steps {
                backlog.push(&bytes);
                came.extend(bytes);
                let take = take.min(backlog.rest().len());
                left.extend_from_slice(&backlog.rest()[..take]);
                backlog.advance(take);
            }
            left.extend_from_slice(backlog.rest());
            prop_assert_eq!(left, came);
        }
    }
}
