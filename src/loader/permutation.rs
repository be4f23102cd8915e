//! A random order of any number of things in constant memory. Depends on `rng`. Promises the same
//! order for the same key, everywhere.

use crate::support::rng::{key, mix};

/// Rounds of the Feistel network: four make a pseudorandom permutation of a perfect round function
/// (Luby, Rackoff 1988), two more pay for a cheap one.
const ROUNDS: usize = 6;
/// Separates the keys of permutations from those of draws.
pub(super) const PURPOSE_ORDER: u64 = 0x4F52_4445;

/// A keyed permutation of `0..len` in constant memory: a Feistel network over the next even power
/// of two, repeated until the value is below `len` (at most four rounds on average).
#[derive(Clone, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of a key. `len` must not be 0.
    pub fn new(len: u64, secret: u64) -> Self {
        debug_assert!(len > 0);
        let bits = 64 - (len - 1).leading_zeros();
        let keys = std::array::from_fn(|round| key(&[PURPOSE_ORDER, secret, round as u64]));
        Permutation {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys,
        }
    }

    /// The value at a position below `len`.
    pub fn at(&self, position: u64) -> u64 {
        debug_assert!(position < self.len);
        let mut value = position;
        loop {
            value = self.once(value);
            if value < self.len {
                return value;
            }
        }
    }

    /// One pass of the Feistel network over `2 * half_bits` bits.
    fn once(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right.wrapping_add(key)) & mask));
        }
        left << self.half_bits | right
    }
}
