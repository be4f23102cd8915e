//! How the values of a gradient are divided among ranks that add them. Depends on nothing. Promises
//! that every value has one owner, whatever their number.

use std::ops::Range;

/// Up to this number of values received in a round, gradients are sent whole: 1 MiB, which takes
/// about as long as the second exchange costs on Ethernet (0.1 ms at 100 Gbit/s).
pub const MOST_WHOLE: usize = 256 << 10;
/// Parts begin at multiples of this many values: 128 bytes, which copies between cards are fast
/// with.
const ALIGNED: usize = 32;

/// The parts of a gradient that ranks own: each adds its own of all ranks' gradients. Small
/// gradients are *whole*: every rank adds everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    ranks: usize,
    values: usize,
    /// Values of a part, but those of the last ones, which may be shorter or empty.
    longest: usize,
    whole: bool,
}

impl Parts {
    /// The parts of `values` values for `ranks` ranks.
    pub fn new(ranks: usize, values: usize) -> Parts {
        Parts::with_limit(ranks, values, MOST_WHOLE)
    }

    /// The same with another limit than [`MOST_WHOLE`].
    pub(crate) fn with_limit(ranks: usize, values: usize, most_whole: usize) -> Parts {
        let whole = values.saturating_mul(ranks.saturating_sub(1)) <= most_whole;
        let part = values.div_ceil(ranks.max(1)).next_multiple_of(ALIGNED);
        Parts {
            ranks,
            values,
            longest: if whole { values } else { part.min(values) },
            whole,
        }
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.values
    }

    /// Whether every rank adds everything.
    pub fn whole(&self) -> bool {
        self.whole
    }

    /// Values of the longest part.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The values that a rank owns; all of them if gradients are whole.
    pub fn owned(&self, rank: usize) -> Range<usize> {
        if self.whole {
            return 0..self.values;
        }
        let end = (rank + 1) * self.longest;
        (rank * self.longest).min(self.values)..end.min(self.values)
    }

    /// Where the values of a part begin in memory for several: parts follow one another at this
    /// distance.
    pub fn stride(&self) -> usize {
        self.longest.next_multiple_of(ALIGNED)
    }

    /// Values in the memory of a device that sums gradients: the sums of a rank's part, and that part
    /// of every other rank's gradient, each [`Parts::stride`] long.
    pub fn device_values(&self) -> usize {
        self.ranks * self.stride()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_one_owner() {
        for values in [0, 1, 31, 32, 997, 3_000_001] {
            for ranks in [1, 2, 3, 7, 64] {
                let parts = Parts::with_limit(ranks, values, 0);
                let mut end = 0;
                for rank in 0..ranks {
                    let owned = parts.owned(rank);
                    assert!(parts.whole() || owned.start == end, "{parts:?}, {rank}");
                    assert!(owned.len() <= parts.longest() && parts.longest() <= parts.stride());
                    end = owned.end;
                }
                assert_eq!(end, values, "{parts:?}");
            }
        }
        assert!(Parts::new(16, 16_780).whole() && !Parts::new(17, 16_780).whole());
        assert_eq!(Parts::new(4, 16_780).device_values(), 4 * 16_800);
    }
}
