//! The records of one set in the order of its own epochs: shuffled as a whole, or within windows.
//! Depends on `permutation` and `rng`. Promises that every epoch holds each record once, in an
//! order that is a pure function of (key, epoch) in constant memory.

use super::permutation::Permutation;
use crate::support::rng::key;
use std::ops::Range;

/// Separates the keys of the rotation of a windowed set from other keys.
const PURPOSE_ORDER: u64 = 0x4F52_4445;

/// How far the records of a set are shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shuffle {
    /// Every record can come at any position of an epoch.
    Full,
    /// For sets larger than the memory that can cache them. An epoch rotates the set by a random
    /// distance, cuts it into chunks of neighbouring records, shuffles the chunks, and shuffles the
    /// records within windows of `chunks` chunks, one window after the other: only the chunks of
    /// one window are read at a time, each in one piece.
    Window {
        /// Records in a chunk.
        chunk: u64,
        /// Chunks in a window.
        chunks: u64,
    },
}

/// A position of an epoch, as a window and a position within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowPosition {
    /// Number of the window in the epoch.
    pub window: u64,
    /// Position within the window.
    pub position: u64,
}

/// The records of one set in the order of its own epochs. Caches the permutations it used last.
#[derive(Clone, Debug)]
pub(super) struct SetOrder {
    /// Records of the set.
    len: u64,
    secret: u64,
    shuffle: Shuffle,
    epoch: u64,
    /// Permutation of all records (full shuffle) or of all full chunks (windows).
    outer: Permutation,
    /// A window and the permutation of its records.
    inner: (u64, Permutation),
}

impl SetOrder {
    /// The order of a set of `len` records (not 0) under the key `secret`.
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

    /// Caches the permutations of an epoch.
    fn enter(&mut self, epoch: u64) {
        self.epoch = epoch;
        let size = match self.shuffle {
            Shuffle::Full => self.len,
            Shuffle::Window { .. } => self.full_chunks().max(1),
        };
        self.outer = Permutation::new(size, key(&[self.secret, epoch]));
        self.inner = (u64::MAX, Permutation::new(1, 0));
    }

    /// Records of the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The shuffle that the set was made with.
    pub fn shuffle(&self) -> Shuffle {
        self.shuffle
    }

    /// Records in a chunk and chunks in a window; a full shuffle is one window of everything.
    fn chunking(&self) -> (u64, u64) {
        match self.shuffle {
            Shuffle::Full => (self.len, 1),
            Shuffle::Window { chunk, chunks } => (chunk.clamp(1, self.len), chunks.max(1)),
        }
    }

    /// Chunks of full length. The records left over form one shorter chunk in the last window.
    fn full_chunks(&self) -> u64 {
        self.len / self.chunking().0
    }

    /// Windows in an epoch: 1 for a full shuffle.
    pub fn windows(&self) -> u64 {
        self.full_chunks().div_ceil(self.chunking().1).max(1)
    }

    /// The window of a position of an epoch, and the position within that window.
    pub fn window_position(&self, position: u64) -> WindowPosition {
        let (chunk, chunks) = self.chunking();
        let span = chunk.saturating_mul(chunks);
        let window = (position / span).min(self.windows() - 1);
        WindowPosition {
            window,
            position: position - window * span,
        }
    }

    /// Records in a window.
    fn window_len(&self, window: u64) -> u64 {
        let (chunk, chunks) = self.chunking();
        let all = self.full_chunks();
        let inside = ((window + 1).saturating_mul(chunks))
            .min(all)
            .saturating_sub(window * chunks);
        let left_over = if window + 1 == self.windows() {
            self.len - all * chunk
        } else {
            0
        };
        inside * chunk + left_over
    }

    /// The records of chunk `number` of a window. A chunk may wrap around the end of the set, so
    /// there are two ranges, of which the second may be empty. `None`: the window has no such
    /// chunk.
    pub fn chunk(&mut self, epoch: u64, window: u64, number: u64) -> Option<[Range<u64>; 2]> {
        if epoch != self.epoch {
            self.enter(epoch);
        }
        let (chunk, _) = self.chunking();
        let length = self
            .window_len(window)
            .checked_sub(number.checked_mul(chunk)?)
            .filter(|&l| l > 0)?
            .min(chunk);
        let first = self.rotated(self.chunk_at(window, number) * chunk);
        let end = (first + length).min(self.len);
        Some([first..end, 0..first + length - end])
    }

    /// The chunk of the rotated set that comes as chunk `number` of a window; the shorter chunk at
    /// the end keeps its place.
    fn chunk_at(&self, window: u64, number: u64) -> u64 {
        let slot = window * self.chunking().1 + number;
        if slot < self.full_chunks() {
            self.outer.at(slot)
        } else {
            slot
        }
    }

    /// The record at an index of the rotated set. Written so that no sum overflows for any length.
    fn rotated(&self, record: u64) -> u64 {
        let distance = key(&[self.secret, self.epoch, PURPOSE_ORDER]) % self.len;
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
        let WindowPosition { window, position } = self.window_position(position);
        if self.inner.0 != window {
            self.inner = (
                window,
                Permutation::new(self.window_len(window), key(&[self.secret, epoch, window])),
            );
        }
        let (chunk, _) = self.chunking();
        let at = self.inner.1.at(position);
        self.rotated(self.chunk_at(window, at / chunk) * chunk + at % chunk)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(len: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let mut order = SetOrder::new(len, seed, Shuffle::Full);
        (0..len).map(|i| order.at(epoch, i)).collect()
    }

    /// Whether the values are those of `0..len`, in any order.
    pub fn is_permutation(mut values: Vec<u64>) -> bool {
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

    proptest! {
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
