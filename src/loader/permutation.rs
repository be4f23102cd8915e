//! A keyed permutation in constant memory. Depends on `rng` alone. Promises a bijection of `0..len`
//! that is a pure function of its key, so that an order needs no table.

use crate::support::rng::{key, mix};

/// Rounds of the Feistel network: four rounds of a perfect round function make a pseudorandom
/// permutation (Luby, Rackoff 1988); two more make up for a cheap round function.
const ROUNDS: usize = 6;
/// Separates the round keys from other keys.
const PURPOSE_ROUND: u64 = 0x4F52_4445;

/// A keyed permutation of `0..len`: a Feistel network over the next even power of two, applied
/// again until its value is below `len` (four times on average at most).
#[derive(Clone, Debug)]
pub(super) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..len` under `secret`. A length of 0 is treated as 1.
    pub fn new(len: u64, secret: u64) -> Self {
        let len = len.max(1);
        let bits = 64 - (len - 1).leading_zeros();
        let keys = std::array::from_fn(|round| key(&[PURPOSE_ROUND, secret, round as u64]));
        Permutation {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys,
        }
    }

    /// The value at `position`, which is below `len`.
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

    /// One pass of the Feistel network, a bijection of `2 * half_bits` bits.
    fn once(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right.wrapping_add(key)) & mask));
        }
        left << self.half_bits | right
    }
}
