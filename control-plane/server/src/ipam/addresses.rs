//! Which addresses of a subnet are taken; the lowest free one comes first.

/// One bit an address, as far as addresses have ever been taken.
#[derive(Debug)]
pub(super) struct Addresses {
    size: u32,
    taken: Vec<u64>,
    /// No word before this one has a free bit.
    first_free: usize,
    /// How many pods have.
    used: u32,
}

/// The network's address, and the gateway's. The last is the broadcast address.
const NETWORK: u32 = 0;
const GATEWAY: u32 = 1;

impl Addresses {
    pub(super) fn new(size: u32) -> Self {
        Self {
            size,
            taken: Vec::new(),
            first_free: 0,
            used: 0,
        }
    }

    /// How many are taken.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    fn is_reserved(&self, number: u32) -> bool {
        number == NETWORK || number == GATEWAY || number >= self.size - 1
    }

    /// Takes an address; false where it is no pod's to have, or taken already.
    pub(super) fn take(&mut self, number: u32) -> bool {
        let Some((word, bit)) = place(number).filter(|_| !self.is_reserved(number)) else {
            return false;
        };
        if self.taken.len() <= word {
            self.taken.resize(word + 1, 0);
        }
        let Some(bits) = self.taken.get_mut(word).filter(|bits| **bits & bit == 0) else {
            return false;
        };
        *bits |= bit;
        self.used += 1;
        true
    }

    /// Gives an address back; false where nobody had it.
    pub(super) fn give_back(&mut self, number: u32) -> bool {
        let Some((word, bit)) = place(number) else {
            return false;
        };
        let Some(bits) = self.taken.get_mut(word).filter(|bits| **bits & bit != 0) else {
            return false;
        };
        *bits &= !bit;
        self.used -= 1;
        self.first_free = self.first_free.min(word);
        true
    }

    /// Takes the lowest that is free.
    pub(super) fn take_lowest(&mut self) -> Option<u32> {
        loop {
            let word = self.first_free;
            let bits = self.taken.get(word).copied().unwrap_or(0);
            for bit in bits.trailing_ones()..64 {
                let number = u32::try_from(word)
                    .ok()?
                    .checked_mul(64)?
                    .checked_add(bit)?;
                if number >= self.size {
                    return None;
                }
                if self.take(number) {
                    return Some(number);
                }
            }
            self.first_free += 1;
        }
    }
}

fn place(number: u32) -> Option<(usize, u64)> {
    Some((usize::try_from(number / 64).ok()?, 1_u64 << (number % 64)))
}
