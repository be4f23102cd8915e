//! Which record stands at which place of which epoch, and how it is cropped and turned. Depends on
//! `quotas`, `rng` and the augmentation codes. Promises that everything is a pure function of
//! (seed, epoch, position) in constant memory: the same batches for any number of threads and after
//! any restart.
//!
//! Samples are numbered through: sample `s` stands in epoch `s / length` at position `s % length`.
//! Batches run across the ends of epochs, so no epoch drops a remainder.

use super::quotas::Quotas;
use crate::support::augment::{HFLIP, TRANSPOSE, VFLIP};
use crate::support::rng::{Rng, key, mix};

/// Rounds of the Feistel network: four make a pseudorandom permutation of a perfect round function
/// (Luby, Rackoff 1988), two more pay for a cheap one.
const ROUNDS: usize = 6;
/// Separates the keys of the order from those of the draws.
const PURPOSE_ORDER: u64 = 0x4F52_4445;
const PURPOSE_DRAW: u64 = 0x4452_4157;

/// A keyed permutation of `0..len` in constant memory: a Feistel network over the next even power
/// of two, walked until it falls inside (at most four steps on average).
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

    fn once(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right.wrapping_add(key)) & mask));
        }
        left << self.half_bits | right
    }
}

/// How far the records of a set are shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    /// Every record can stand anywhere in an epoch.
    Full,
    /// For sets larger than the memory that can cache them. An epoch turns the set by a random
    /// distance, cuts it into chunks of neighbouring records, shuffles the chunks, and shuffles the
    /// records within windows of so many chunks, one window after the other: only the chunks of one
    /// window are read at a time, each in one piece.
    Window {
        /// Records in a chunk.
        chunk: u64,
        /// Chunks in a window.
        chunks: u64,
    },
}

/// Where a position of a windowed epoch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderPosition {
    /// The window's number.
    pub window: u64,
    /// Position within the window.
    pub position: u64,
}

/// The records of one set in the order of an epoch of its own. Remembers the permutations it used
/// last.
#[derive(Clone, Debug)]
pub struct SetOrder {
    len: u64,
    secret: u64,
    shuffle: Shuffle,
    epoch: u64,
    /// Of all records, or of all whole chunks.
    outer: Permutation,
    /// Of the records of a window, and the window it is for.
    inner: (u64, Permutation),
}

impl SetOrder {
    /// The order of a set of `len` records (not 0) under a key.
    pub fn new(len: u64, secret: u64, shuffle: Shuffle) -> Self {
        let mut order = SetOrder {
            len,
            secret,
            shuffle,
            epoch: 0,
            outer: Permutation::new(1, 0),
            inner: (0, Permutation::new(1, 0)),
        };
        order.enter(0);
        order
    }

    fn enter(&mut self, epoch: u64) {
        self.epoch = epoch;
        let size = match self.shuffle {
            Shuffle::Full => self.len,
            Shuffle::Window { .. } => self.whole_chunks().max(1),
        };
        self.outer = Permutation::new(size, key(&[self.secret, epoch]));
        self.inner = (u64::MAX, Permutation::new(1, 0));
    }

    fn chunking(&self) -> (u64, u64) {
        match self.shuffle {
            Shuffle::Full => (self.len, 1),
            Shuffle::Window { chunk, chunks } => (chunk.clamp(1, self.len), chunks.max(1)),
        }
    }

    /// Chunks of full length; what is left over at the end is one more, in the last window.
    fn whole_chunks(&self) -> u64 {
        self.len / self.chunking().0
    }

    /// Windows in an epoch: 1 for a full shuffle.
    pub fn windows(&self) -> u64 {
        self.whole_chunks().div_ceil(self.chunking().1).max(1)
    }

    /// The window of a position, and where in it.
    pub fn place(&self, position: u64) -> OrderPosition {
        let (chunk, chunks) = self.chunking();
        let span = chunk.saturating_mul(chunks);
        let window = (position / span).min(self.windows() - 1);
        OrderPosition {
            window,
            position: position - window * span,
        }
    }

    /// Records in a window.
    pub fn window_len(&self, window: u64) -> u64 {
        let (chunk, chunks) = self.chunking();
        let whole = self.whole_chunks();
        let full = ((window + 1).saturating_mul(chunks))
            .min(whole)
            .saturating_sub(window * chunks);
        full * chunk
            + if window + 1 == self.windows() {
                self.len - whole * chunk
            } else {
                0
            }
    }

    /// The records of chunk `number` of a window, as up to two ranges (the set is a ring); `None`
    /// behind the last.
    pub fn chunk(
        &mut self,
        epoch: u64,
        window: u64,
        number: u64,
    ) -> Option<[std::ops::Range<u64>; 2]> {
        if epoch != self.epoch {
            self.enter(epoch);
        }
        let (chunk, _) = self.chunking();
        let length = self
            .window_len(window)
            .checked_sub(number.checked_mul(chunk)?)
            .filter(|&l| l > 0)?
            .min(chunk);
        let first = self.turned(self.chunk_at(window, number) * chunk);
        let end = (first + length).min(self.len);
        Some([first..end, 0..first + length - end])
    }

    fn chunk_at(&self, window: u64, number: u64) -> u64 {
        let slot = window * self.chunking().1 + number;
        if slot < self.whole_chunks() {
            self.outer.at(slot)
        } else {
            slot
        }
    }

    fn turned(&self, record: u64) -> u64 {
        let distance = key(&[self.secret, self.epoch, PURPOSE_ORDER]) % self.len;
        // without overflow for any length
        if record >= self.len - distance {
            record - (self.len - distance)
        } else {
            record + distance
        }
    }

    /// The record at a position of an epoch.
    pub fn at(&mut self, epoch: u64, position: u64) -> u64 {
        if epoch != self.epoch {
            self.enter(epoch);
        }
        if self.shuffle == Shuffle::Full {
            return self.outer.at(position);
        }
        let OrderPosition { window, position } = self.place(position);
        if self.inner.0 != window {
            self.inner = (
                window,
                Permutation::new(self.window_len(window), key(&[self.secret, epoch, window])),
            );
        }
        let (chunk, _) = self.chunking();
        let at = self.inner.1.at(position);
        self.turned(self.chunk_at(window, at / chunk) * chunk + at % chunk)
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
}

/// One sample of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Number of the set.
    pub set: usize,
    /// Number of the record in the set.
    pub record: u64,
    /// Left edge of the LQ crop in the stored patch, pixels.
    pub x: u64,
    /// Top edge of the LQ crop in the stored patch, pixels.
    pub y: u64,
    /// Augmentation code, see `support::augment`.
    pub augment: u8,
}

/// One set as the order sees it.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its records, not 0.
    pub records: u64,
    /// Samples it gives in an epoch.
    pub quota: u64,
    /// Places an LQ crop can have along one side: stored size - crop size + 1.
    pub places: u64,
    /// How far it is shuffled.
    pub shuffle: Shuffle,
}

/// All samples in their order, epoch after epoch, without end.
#[derive(Clone, Debug)]
pub struct Order {
    quotas: Quotas,
    places: Vec<u64>,
    sets: Vec<SetOrder>,
    draws: Draws,
}

impl Order {
    /// The order over one or more sets.
    pub fn new(parts: &[Part], draws: Draws) -> Self {
        let set = |(i, p): (usize, &Part)| {
            SetOrder::new(p.records, key(&[draws.seed, i as u64]), p.shuffle)
        };
        Order {
            quotas: Quotas::new(parts.iter().map(|p| p.quota).collect(), draws.seed),
            places: parts.iter().map(|p| p.places).collect(),
            sets: parts.iter().enumerate().map(set).collect(),
            draws,
        }
    }

    /// Samples in an epoch.
    pub fn epoch_len(&self) -> u64 {
        self.quotas.total()
    }

    /// Where sample `number` stands: its set, the epoch of that set, the position in it.
    fn stand(&self, number: u64) -> (usize, u64, u64) {
        let total = self.quotas.total();
        let (set, place) = self.quotas.place(number / total, number % total);
        (set, place / self.sets[set].len, place % self.sets[set].len)
    }

    /// Sample `number` of all, counted from 0 through all epochs.
    pub fn sample(&mut self, number: u64) -> Sample {
        let (set, epoch, position) = self.stand(number);
        let Draws { seed, hflip, rot } = self.draws;
        // every draw is made, wanted or not, so that switching one off leaves the others as they
        // are
        let mut rng = Rng::new(&[
            PURPOSE_DRAW,
            seed,
            number / self.quotas.total(),
            number % self.quotas.total(),
        ]);
        let (x, y) = (rng.below(self.places[set]), rng.below(self.places[set]));
        let bits = rng.next_u64();
        let code = |wanted: bool, bit: u32, code: u8| {
            if wanted && bits >> bit & 1 == 1 {
                code
            } else {
                0
            }
        };
        let augment = code(hflip, 63, HFLIP) | code(rot, 62, VFLIP) | code(rot, 61, TRANSPOSE);
        Sample {
            set,
            record: self.sets[set].at(epoch, position),
            x,
            y,
            augment,
        }
    }

    /// The chunks that change hands with sample `number`, where it is the first of a stretch of a
    /// windowed set as long as a chunk: its set, the records needed when the next window begins,
    /// and those of the window before that will not be read again in this epoch.
    pub fn window_change(&mut self, number: u64) -> Option<WindowChange> {
        let (set, epoch, position) = self.stand(number);
        let order = &mut self.sets[set];
        let Shuffle::Window { chunk, .. } = order.shuffle else {
            return None;
        };
        let OrderPosition { window, position } = order.place(position);
        if position % chunk.clamp(1, order.len) != 0 {
            return None;
        }
        let nth = position / chunk.clamp(1, order.len);
        let (next_epoch, next) = if window + 1 < order.windows() {
            (epoch, window + 1)
        } else {
            (epoch + 1, 0)
        };
        let needed = order.chunk(next_epoch, next, nth);
        let done = if window > 0 {
            order.chunk(epoch, window - 1, nth)
        } else {
            None
        };
        Some(WindowChange { set, needed, done })
    }
}

/// See [`Order::window_change`].
#[derive(Clone, Debug)]
pub struct WindowChange {
    /// Number of the set.
    pub set: usize,
    /// Records of the next window.
    pub needed: Option<[std::ops::Range<u64>; 2]>,
    /// Records of the window before.
    pub done: Option<[std::ops::Range<u64>; 2]>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn one(records: u64, places: u64, shuffle: Shuffle) -> [Part; 1] {
        [Part {
            records,
            quota: records,
            places,
            shuffle,
        }]
    }

    fn order(len: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let mut order = SetOrder::new(len, seed, Shuffle::Full);
        (0..len).map(|i| order.at(epoch, i)).collect()
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
            for shuffle in [
                Shuffle::Full,
                Shuffle::Window {
                    chunk: 1000,
                    chunks: 1000,
                },
            ] {
                let mut p = SetOrder::new(len, 1, shuffle);
                assert!((0..100).all(|i| p.at(2, i) < len && p.at(2, len - 1 - i) < len));
            }
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
        let draws = Draws {
            seed: 3,
            hflip: true,
            rot: true,
        };
        let parts = one(8000, 5, Shuffle::Full);
        let mut order = Order::new(&parts, draws);
        let mut plain = Order::new(
            &parts,
            Draws {
                rot: false,
                ..draws
            },
        );
        let (mut codes, mut places) = ([0u32; 8], [[0u32; 5]; 2]);
        for i in 0..8000 {
            let s = order.sample(i);
            codes[s.augment as usize] += 1;
            places[0][s.x as usize] += 1;
            places[1][s.y as usize] += 1;
            assert_eq!(
                plain.sample(i),
                Sample {
                    augment: s.augment & HFLIP,
                    ..s
                }
            );
        }
        assert!(codes.iter().all(|&c| (850..1150).contains(&c)), "{codes:?}");
        assert!(
            places.iter().flatten().all(|&c| (1450..1750).contains(&c)),
            "{places:?}"
        );
    }

    #[test]
    fn chunks_change_hands_once_an_epoch_and_in_time() {
        let (records, chunk) = (103, 5);
        let mut order = Order::new(
            &one(records, 1, Shuffle::Window { chunk, chunks: 3 }),
            Draws {
                seed: 9,
                hflip: false,
                rot: false,
            },
        );
        let mut announced: BTreeSet<u64> = BTreeSet::new();
        let mut last_use = vec![0; records as usize];
        let mut done_at = vec![None; records as usize];
        for number in 0..2 * records {
            if let Some(t) = order.window_change(number) {
                announced.extend(t.needed.into_iter().flatten().flatten());
                for record in t.done.into_iter().flatten().flatten() {
                    done_at[record as usize] = Some(number);
                }
            }
            let record = order.sample(number).record;
            last_use[record as usize] = number;
            // from the second window on, everything was announced before it is read
            assert!(
                number < 15 || announced.remove(&record),
                "record {record} at {number} was not announced"
            );
            assert!(
                done_at[record as usize].is_none_or(|at| at / records < number / records),
                "{record} was let go too early"
            );
        }
    }

    fn shuffles() -> impl Strategy<Value = Shuffle> {
        prop_oneof![
            Just(Shuffle::Full),
            (1u64..40, 1u64..9).prop_map(|(chunk, chunks)| Shuffle::Window { chunk, chunks })
        ]
    }

    proptest! {
        #[test]
        fn an_epoch_covers_each_record_once_wherever_it_is_entered(
            len in 1u64..500, epoch in 0u64..1000, seed in any::<u64>(), shuffle in shuffles(),
        ) {
            let draws = Draws { seed, hflip: true, rot: true };
            let mut order = Order::new(&one(len, 9, shuffle), draws);
            let samples: Vec<Sample> = (0..len).map(|i| order.sample(epoch * len + i)).collect();
            prop_assert!(is_permutation(samples.iter().map(|s| s.record).collect()));
            // entering in the middle gives the same sample as walking there
            let some = seed % len;
            prop_assert_eq!(Order::new(&one(len, 9, shuffle), draws).sample(epoch * len + some), samples[some as usize]);
        }

        #[test]
        fn a_window_reads_only_its_own_chunks(len in 1u64..500, epoch in 0u64..9, chunk in 1u64..40, chunks in 1u64..9) {
            let mut order = SetOrder::new(len, 4, Shuffle::Window { chunk, chunks });
            let mut position = 0;
            for window in 0..order.windows() {
                let mut expected: Vec<u64> = (0..).map_while(|n| order.chunk(epoch, window, n)).flatten().flatten().collect();
                expected.sort_unstable();
                let mut got: Vec<u64> = (0..order.window_len(window)).map(|i| order.at(epoch, position + i)).collect();
                position += order.window_len(window);
                got.sort_unstable();
                prop_assert_eq!(&got, &expected);
                prop_assert!(got.len() as u64 <= chunk * (chunks + 1));
            }
            prop_assert_eq!(position, len);
        }
    }
}
