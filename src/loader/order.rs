//! Which record stands at which place of which epoch, and how it is cropped and turned. Depends on `rng` and the
//! augmentation codes. Promises that everything is a pure function of (seed, epoch, position) in constant memory: the
//! same batches for any number of threads and after any restart.
//!
//! Samples are numbered through: batch `b` of `batch` samples holds samples `b * batch ..`, and sample `s` stands in epoch
//! `s / records` at position `s % records`. Batches run across the ends of epochs, so no epoch drops a remainder.

use crate::plan::augment::{HFLIP, TRANSPOSE, VFLIP};
use crate::rng::{Rng, key, mix};

/// Rounds of the Feistel network: four make a pseudorandom permutation of a perfect round function (Luby, Rackoff 1988),
/// two more pay for a cheap one.
const ROUNDS: usize = 6;
/// Separates the keys of the order from those of the draws.
const PURPOSE_ORDER: u64 = 0x4F52_4445;
const PURPOSE_DRAW: u64 = 0x4452_4157;

/// A keyed permutation of `0..len` in constant memory: a Feistel network over the next even power of two, walked until it
/// falls inside (at most four steps on average).
#[derive(Clone, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The order of one epoch. `len` must not be 0.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        debug_assert!(len > 0);
        let bits = 64 - (len - 1).leading_zeros();
        let keys = std::array::from_fn(|round| key(&[PURPOSE_ORDER, seed, epoch, round as u64]));
        Permutation { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// The record at a position below `len`.
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

    fn once(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right.wrapping_add(key)) & mask));
        }
        left << self.half_bits | right
    }
}

/// How samples are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// Key of everything random.
    pub seed: u64,
    /// Mirror left-right with probability 1/2.
    pub hflip: bool,
    /// Mirror top-bottom and swap rows and columns, each with probability 1/2.
    pub rot: bool,
    /// Places an LQ crop can have along one side: stored size - crop size + 1.
    pub places: u64,
}

/// One sample of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Number of the record in the set.
    pub record: u64,
    /// Left edge of the LQ crop in the stored patch, pixels.
    pub x: u64,
    /// Top edge of the LQ crop in the stored patch, pixels.
    pub y: u64,
    /// Augmentation code, see `plan::augment`.
    pub augment: u8,
}

/// All samples in their order, epoch after epoch, without end.
#[derive(Clone, Debug)]
pub struct Order {
    records: u64,
    draws: Draws,
    epoch: u64,
    permutation: Permutation,
}

impl Order {
    /// The order over a set of `records` records (not 0).
    pub fn new(records: u64, draws: Draws) -> Self {
        Order { records, draws, epoch: 0, permutation: Permutation::new(records, draws.seed, 0) }
    }

    /// Sample `number` of all, counted from 0 through all epochs.
    pub fn sample(&mut self, number: u64) -> Sample {
        let (epoch, position) = (number / self.records, number % self.records);
        if epoch != self.epoch {
            self.epoch = epoch;
            self.permutation = Permutation::new(self.records, self.draws.seed, epoch);
        }
        let Draws { seed, hflip, rot, places } = self.draws;
        // every draw is made, wanted or not, so that switching one off leaves the others as they are
        let mut rng = Rng::new(&[PURPOSE_DRAW, seed, epoch, position]);
        let (x, y) = (rng.below(places), rng.below(places));
        let bits = rng.next_u64();
        let code = |wanted: bool, bit: u32, code: u8| if wanted && bits >> bit & 1 == 1 { code } else { 0 };
        let augment = code(hflip, 63, HFLIP) | code(rot, 62, VFLIP) | code(rot, 61, TRANSPOSE);
        Sample { record: self.permutation.at(position), x, y, augment }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(len: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let p = Permutation::new(len, seed, epoch);
        (0..len).map(|i| p.at(i)).collect()
    }

    fn is_permutation(mut values: Vec<u64>) -> bool {
        values.sort_unstable();
        values.iter().enumerate().all(|(i, &v)| i as u64 == v)
    }

    #[test]
    fn every_size_gives_a_permutation() {
        for len in (1..260).chain([1023, 1024, 1025, 4097, 10_000]) {
            assert!(is_permutation(order(len, 5, 1)), "{len}");
        }
    }

    #[test]
    fn huge_sets_stay_in_range() {
        for len in [1 << 40, (1 << 62) + 1, u64::MAX] {
            let p = Permutation::new(len, 1, 2);
            assert!((0..100).all(|i| p.at(i) < len && p.at(len - 1 - i) < len));
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_are_well_mixed() {
        let len = 1000;
        let base = order(len, 1, 0);
        for other in [order(len, 1, 1), order(len, 2, 0)] {
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of {len} at the same place"); // 1 is expected of a random permutation
        }
        // neighbours in the set do not stay neighbours in the epoch (2 are expected)
        let neighbours = base.windows(2).filter(|w| w[0].abs_diff(w[1]) == 1).count();
        assert!(neighbours < 12, "{neighbours}");
        // and the mean distance is that of two random numbers, len / 3
        let mean = base.windows(2).map(|w| w[0].abs_diff(w[1])).sum::<u64>() / (len - 1);
        assert!((290..380).contains(&mean), "{mean}");
    }

    #[test]
    fn draws_are_uniform_and_independent_switches() {
        let draws = Draws { seed: 3, hflip: true, rot: true, places: 5 };
        let mut order = Order::new(8000, draws);
        let mut plain = Order::new(8000, Draws { rot: false, ..draws });
        let (mut codes, mut places) = ([0u32; 8], [[0u32; 5]; 2]);
        for i in 0..8000 {
            let s = order.sample(i);
            codes[s.augment as usize] += 1;
            places[0][s.x as usize] += 1;
            places[1][s.y as usize] += 1;
            assert_eq!(plain.sample(i), Sample { augment: s.augment & HFLIP, ..s });
        }
        assert!(codes.iter().all(|&c| (850..1150).contains(&c)), "{codes:?}");
        assert!(places.iter().flatten().all(|&c| (1450..1750).contains(&c)), "{places:?}");
    }

    proptest! {
        #[test]
        fn an_epoch_covers_each_record_once_wherever_it_is_entered(len in 1u64..500, epoch in 0u64..1000, seed in any::<u64>()) {
            let draws = Draws { seed, hflip: true, rot: true, places: 9 };
            let mut order = Order::new(len, draws);
            let samples: Vec<Sample> = (0..len).map(|i| order.sample(epoch * len + i)).collect();
            prop_assert!(is_permutation(samples.iter().map(|s| s.record).collect()));
            // entering in the middle gives the same sample as walking there
            let some = seed % len;
            prop_assert_eq!(Order::new(len, draws).sample(epoch * len + some), samples[some as usize]);
        }
    }
}
