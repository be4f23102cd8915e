//! Several sets in one epoch, each with an exact number of samples. Depends on `permutation` and
//! `rng`. Promises that the set of a position is a pure function in constant memory, that an epoch
//! holds every quota to the sample, and that any part of an epoch holds nearly the same shares, so
//! that every set is read throughout the epoch, in its own order.
//!
//! An epoch is cut into groups. Group `g` takes from every set the samples between
//! `floor(quota * g / groups)` and `floor(quota * (g + 1) / groups)`, and a permutation mixes the
//! sets within the group.

use super::permutation::Permutation;
use crate::support::rng::key;
use anyhow::{Context, Result, ensure};

/// Mean number of samples in a group: within a group the order of the sets is random.
const GROUP: u64 = 4096;
/// Separates the keys of groups from those of sets.
const PURPOSE_GROUP: u64 = 0x4752_4F55;

/// The number of samples of every set in an epoch, and which set has which position.
#[derive(Clone, Debug)]
pub(super) struct Quotas {
    quotas: Vec<u64>,
    total: u64,
    groups: u64,
    seed: u64,
}

impl Quotas {
    /// The quotas of the sets, in samples an epoch.
    ///
    /// # Errors
    /// All quotas are 0, or their sum does not fit into 64 bits.
    pub fn new(quotas: Vec<u64>, seed: u64) -> Result<Self> {
        let total = quotas
            .iter()
            .try_fold(0u64, |sum, &quota| sum.checked_add(quota))
            .context("the sets hold too many records")?;
        ensure!(total > 0, "the sets give no sample to an epoch");
        Ok(Quotas {
            groups: total.div_ceil(GROUP),
            quotas,
            total,
            seed,
        })
    }

    /// Samples in an epoch.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Samples that set `set` gives before group `group`.
    fn before(&self, set: usize, group: u64) -> u64 {
        (u128::from(self.quotas[set]) * u128::from(group) / u128::from(self.groups)) as u64
    }

    /// First position of group `group` in an epoch.
    fn start(&self, group: u64) -> u64 {
        (0..self.quotas.len())
            .map(|set| self.before(set, group))
            .sum()
    }

    /// The set that gives the sample at `position` (below [`Quotas::total`]) of an epoch, and the
    /// number of that sample among all samples of the set, counted through all epochs.
    pub fn set_at(&self, epoch: u64, position: u64) -> (usize, u64) {
        if let [quota] = self.quotas[..] {
            return (0, epoch * quota + position); // a single set needs no mixing
        }
        let mut group =
            (u128::from(position) * u128::from(self.groups) / u128::from(self.total)) as u64;
        // Rounding can place `start(group)` up to `sets` samples early; step forward until the
        // position is inside.
        while self.start(group + 1) <= position {
            group += 1;
        }
        let (start, end) = (self.start(group), self.start(group + 1));
        let last = self.quotas.len() - 1;
        let secret = key(&[PURPOSE_GROUP, self.seed, epoch, group]);
        let mut at = Permutation::new(end - start, secret).at(position - start);
        let mut set = 0;
        // The samples of the group are those of its sets, one set after the other, so what the
        // other sets do not hold belongs to the last one.
        while set < last {
            let count = self.before(set, group + 1) - self.before(set, group);
            if at < count {
                break;
            }
            at -= count;
            set += 1;
        }
        (set, epoch * self.quotas[set] + self.before(set, group) + at)
    }
}

/// Shares `total` samples among weights: each weight gets its share rounded down, and the largest
/// remainders get one more.
pub(super) fn apportion(total: u64, weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let shares: Vec<f64> = weights.iter().map(|w| total as f64 * (w / sum)).collect();
    let mut quotas: Vec<u64> = shares.iter().map(|s| s.floor() as u64).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| {
        (shares[b] - shares[b].floor())
            .total_cmp(&(shares[a] - shares[a].floor()))
            .then(a.cmp(&b))
    });
    let given: u64 = quotas.iter().sum();
    for &i in order
        .iter()
        .cycle()
        .take(total.saturating_sub(given) as usize)
    {
        quotas[i] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_are_exact() {
        assert_eq!(apportion(10, &[1.0, 1.0]), [5, 5]);
        assert_eq!(apportion(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(apportion(7, &[0.1, 0.9]), [1, 6]);
        assert_eq!(apportion(3, &[1e-9, 1.0]), [0, 3]);
    }

    #[test]
    fn quotas_without_a_sample_or_above_64_bits_are_errors() {
        for (quotas, words) in [
            (vec![], "no sample"),
            (vec![0, 0], "no sample"),
            (vec![u64::MAX, 1], "too many records"),
        ] {
            let error = Quotas::new(quotas, 1).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(Quotas::new(vec![u64::MAX], 1).unwrap().total(), u64::MAX);
    }

    #[test]
    fn a_single_set_gives_its_own_stream() {
        let quotas = Quotas::new(vec![10_000], 1).unwrap();
        for position in [0, 1, 4095, 4096, 9_999] {
            assert_eq!(quotas.set_at(3, position), (0, 30_000 + position));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn an_epoch_holds_every_quota_and_every_part_its_share(
            quotas in proptest::collection::vec(0u64..9000, 1..5), epoch in 0u64..50, seed in any::<u64>(),
        ) {
            prop_assume!(quotas.iter().sum::<u64>() > 0);
            let q = Quotas::new(quotas.clone(), seed).unwrap();
            let mut seen: Vec<Vec<u64>> = vec![Vec::new(); quotas.len()];
            for position in 0..q.total() {
                let (set, number) = q.set_at(epoch, position);
                seen[set].push(number);
                if position % 1009 == 0 {
                    for (n, quota) in seen.iter().zip(&quotas) {
                        let share = position as f64 * *quota as f64 / q.total() as f64;
                        prop_assert!((n.len() as f64 - share).abs() < GROUP as f64, "{} for {share}", n.len());
                    }
                }
            }
            for (mut numbers, quota) in seen.into_iter().zip(quotas) {
                numbers.sort_unstable();
                prop_assert!(numbers.iter().copied().eq(epoch * quota..(epoch + 1) * quota));
            }
        }
    }
}
