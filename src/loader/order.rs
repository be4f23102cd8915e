//! Which record is read at which position of which epoch, and how it is cropped and augmented.
//! Depends on `quotas`, `permutation`, `rng` and the augmentation codes. Promises that everything
//! is a pure function of (seed, epoch, position) in constant memory: the same batches for any
//! number of threads and after any restart.
//!
//! Samples are numbered through all epochs: sample `s` is at position `s % length` of epoch
//! `s / length`. Batches cross the ends of epochs, so no epoch drops a remainder.

use super::quotas::Quotas;
use super::set_order::{SetOrder, Shuffle, WindowPosition};
use crate::support::augment::{HFLIP, TRANSPOSE, VFLIP};
use crate::support::rng::{Rng, key};
use anyhow::Result;
use std::ops::Range;

/// Separates the keys of crops and augmentation from other keys.
const PURPOSE_DRAW: u64 = 0x4452_4157;
/// Separates the keys of variants from other keys: "VARI" in ASCII.
const PURPOSE_VARIANT: u64 = 0x5641_5249;

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
    /// Augmentation code, see [`crate::support::augment`].
    pub augment: u8,
    /// Epoch of the training, from 0.
    pub epoch: u64,
    /// Position in that epoch.
    pub position: u64,
    /// Number of the LQ patch in the record, for sets with variants: another one in each epoch of
    /// the set, all of them in as many epochs as there are.
    pub variant: u16,
}

/// The numbers of one set that its order is computed from.
#[derive(Clone, Copy, Debug)]
pub struct SetSpec {
    /// Records of the set, not 0.
    pub records: u64,
    /// Samples that the set gives in an epoch.
    pub quota: u64,
    /// Positions that an LQ crop can have along one side: stored size - crop size + 1.
    pub crop_positions: u64,
    /// How far the records are shuffled.
    pub shuffle: Shuffle,
    /// LQ patches of a record; 0 for HR alone.
    pub lqs: u16,
}

/// All samples in their order, epoch after epoch, without end.
#[derive(Clone, Debug)]
pub struct Order {
    quotas: Quotas,
    /// [`SetSpec::crop_positions`] of every set.
    crop_positions: Vec<u64>,
    /// [`SetSpec::lqs`] of every set.
    lqs: Vec<u16>,
    sets: Vec<SetOrder>,
    draws: Draws,
}

/// Where a sample is in the epochs of its set.
struct SetPosition {
    /// Number of the set.
    set: usize,
    /// Epoch of the set.
    epoch: u64,
    /// Position in that epoch.
    position: u64,
}

impl Order {
    /// The order over one or more sets.
    ///
    /// # Errors
    /// The sets give no sample to an epoch, or more than 64 bits can count.
    pub fn new(specs: &[SetSpec], draws: Draws) -> Result<Self> {
        let set = |(i, spec): (usize, &SetSpec)| {
            SetOrder::new(spec.records, key(&[draws.seed, i as u64]), spec.shuffle)
        };
        Ok(Order {
            quotas: Quotas::new(specs.iter().map(|spec| spec.quota).collect(), draws.seed)?,
            crop_positions: specs.iter().map(|spec| spec.crop_positions).collect(),
            lqs: specs.iter().map(|spec| spec.lqs).collect(),
            sets: specs.iter().enumerate().map(set).collect(),
            draws,
        })
    }

    /// Where sample `number` is found.
    fn set_position(&self, number: u64) -> SetPosition {
        let total = self.quotas.total();
        let (set, nth) = self.quotas.set_at(number / total, number % total);
        let len = self.sets[set].len();
        SetPosition {
            set,
            epoch: nth / len,
            position: nth % len,
        }
    }

    /// Sample `number`, counted from 0 through all epochs.
    pub fn sample(&mut self, number: u64) -> Sample {
        let SetPosition {
            set,
            epoch,
            position,
        } = self.set_position(number);
        let Draws { seed, hflip, rot } = self.draws;
        // All draws are made, also those that are not used, so that switching one off does not
        // change the others.
        let (of_training, at) = (number / self.quotas.total(), number % self.quotas.total());
        let mut rng = Rng::new(&[PURPOSE_DRAW, seed, of_training, at]);
        let positions = self.crop_positions[set];
        let (x, y) = (rng.below(positions), rng.below(positions));
        let bits = rng.next_u64();
        let code = |wanted: bool, bit: u32, code: u8| {
            if wanted && bits >> bit & 1 == 1 {
                code
            } else {
                0
            }
        };
        let augment = code(hflip, 63, HFLIP) | code(rot, 62, VFLIP) | code(rot, 61, TRANSPOSE);
        let record = self.sets[set].at(epoch, position);
        Sample {
            set,
            record,
            x,
            y,
            augment,
            epoch: of_training,
            position: at,
            variant: self.variant(set, record, epoch),
        }
    }

    /// The variant of a record's LQ in an epoch of its set: the first one is drawn for the record,
    /// the others follow in their order.
    fn variant(&self, set: usize, record: u64, epoch: u64) -> u16 {
        let lqs = u64::from(self.lqs[set].max(1));
        let first = key(&[PURPOSE_VARIANT, self.draws.seed, set as u64, record]) % lqs;
        ((first + epoch % lqs) % lqs) as u16
    }

    /// What to fetch and what to drop at sample `number` of a windowed set. `None` unless the
    /// sample is the first of a stretch as long as a chunk: the chunks of the next window are
    /// fetched one by one while this window is read.
    pub fn window_change(&mut self, number: u64) -> Option<WindowChange> {
        let SetPosition {
            set,
            epoch,
            position,
        } = self.set_position(number);
        let order = &mut self.sets[set];
        let Shuffle::Window { chunk, .. } = order.shuffle() else {
            return None;
        };
        let WindowPosition { window, position } = order.window_position(position);
        if position % chunk.clamp(1, order.len()) != 0 {
            return None;
        }
        let nth = position / chunk.clamp(1, order.len());
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

/// Records to prefetch and records to drop from the page cache, see [`Order::window_change`].
#[derive(Clone, Debug)]
pub struct WindowChange {
    /// Number of the set.
    pub set: usize,
    /// A chunk of the next window, to be fetched.
    pub needed: Option<[Range<u64>; 2]>,
    /// A chunk of the previous window, which this epoch does not read again.
    pub done: Option<[Range<u64>; 2]>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::set_order::tests::is_permutation;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn one(records: u64, crop_positions: u64, shuffle: Shuffle) -> [SetSpec; 1] {
        [SetSpec {
            records,
            quota: records,
            crop_positions,
            shuffle,
            lqs: 1,
        }]
    }

    #[test]
    fn draws_are_uniform_and_independent_switches() {
        let draws = Draws {
            seed: 3,
            hflip: true,
            rot: true,
        };
        let specs = one(8000, 5, Shuffle::Full);
        let mut order = Order::new(&specs, draws).unwrap();
        let mut plain = Order::new(
            &specs,
            Draws {
                rot: false,
                ..draws
            },
        )
        .unwrap();
        let (mut codes, mut corners) = ([0u32; 8], [[0u32; 5]; 2]);
        for i in 0..8000 {
            let s = order.sample(i);
            codes[s.augment as usize] += 1;
            corners[0][s.x as usize] += 1;
            corners[1][s.y as usize] += 1;
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
            corners.iter().flatten().all(|&c| (1450..1750).contains(&c)),
            "{corners:?}"
        );
    }

    #[test]
    fn chunks_are_fetched_and_dropped_once_an_epoch_and_in_time() {
        let (records, chunk) = (103, 5);
        let mut order = Order::new(
            &one(records, 1, Shuffle::Window { chunk, chunks: 3 }),
            Draws {
                seed: 9,
                hflip: false,
                rot: false,
            },
        )
        .unwrap();
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
                "{record} was dropped too early"
            );
        }
    }

    #[test]
    fn every_variant_comes_once_in_as_many_epochs_as_there_are() {
        let lqs = 5;
        let mut specs = one(60, 1, Shuffle::Full);
        specs[0].lqs = lqs;
        let draws = Draws {
            seed: 6,
            hflip: true,
            rot: true,
        };
        let mut order = Order::new(&specs, draws).unwrap();
        let mut seen: Vec<Vec<u16>> = vec![Vec::new(); 60];
        let mut firsts = BTreeSet::new();
        for number in 0..60 * u64::from(lqs) {
            let sample = order.sample(number);
            if sample.epoch == 0 {
                firsts.insert(sample.variant);
            }
            seen[sample.record as usize].push(sample.variant);
        }
        assert_eq!(firsts.len(), usize::from(lqs), "one epoch mixes variants");
        for mut variants in seen {
            variants.sort_unstable();
            assert!(variants.into_iter().eq(0..lqs));
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
            let mut order = Order::new(&one(len, 9, shuffle), draws).unwrap();
            let samples: Vec<Sample> = (0..len).map(|i| order.sample(epoch * len + i)).collect();
            prop_assert!(is_permutation(samples.iter().map(|s| s.record).collect()));
            // A new order that starts in the middle gives the same sample as one read up to there.
            let some = seed % len;
            let mut fresh = Order::new(&one(len, 9, shuffle), draws).unwrap();
            prop_assert_eq!(fresh.sample(epoch * len + some), samples[some as usize]);
        }

    }
}
