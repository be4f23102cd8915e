//! Several sets in one epoch, each with an exact number of samples. Depends on `order`'s
//! permutation and `rng`. Promises that the set of a position is a pure function in constant
//! memory, that an epoch holds every quota to the sample, and that any stretch of it holds nearly
//! the same shares, so that a set is read in its own order throughout the epoch.
//!
//! An epoch is cut into groups; a group takes from every set the part of its quota between two
//! roundings, and its positions are permuted among the sets.

use super::order::Permutation;
use crate::support::rng::key;

/// Mean samples of a group: within it the order of the sets is random.
const GROUP: u64 = 4096;
/// Separates the keys of groups from those of sets.
const PURPOSE_GROUP: u64 = 0x4752_4F55;

/// The samples of every set in an epoch, and where they stand.
#[derive(Clone, Debug)]
pub struct Quotas {
    quotas: Vec<u64>,
    total: u64,
    groups: u64,
    seed: u64,
}

impl Quotas {
    /// For quotas that are not all 0 and whose sum fits.
    pub fn new(quotas: Vec<u64>, seed: u64) -> Self {
        let total: u64 = quotas.iter().sum();
        debug_assert!(total > 0);
        Quotas {
            groups: total.div_ceil(GROUP),
            quotas,
            total,
            seed,
        }
    }

    /// Samples in an epoch.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Samples that set `set` gives before group `group`.
    fn before(&self, set: usize, group: u64) -> u64 {
        (u128::from(self.quotas[set]) * u128::from(group) / u128::from(self.groups)) as u64
    }

    fn start(&self, group: u64) -> u64 {
        (0..self.quotas.len())
            .map(|set| self.before(set, group))
            .sum()
    }

    /// The set of a position of an epoch, and the number of the sample in that set's own stream,
    /// counted through all epochs.
    pub fn place(&self, epoch: u64, position: u64) -> (usize, u64) {
        if let [quota] = self.quotas[..] {
            return (0, epoch * quota + position);
        }
        let mut group =
            (u128::from(position) * u128::from(self.groups) / u128::from(self.total)) as u64;
        while self.start(group + 1) <= position {
            group += 1; // roundings put a group's start at most one sample a set below its share
        }
        let (start, end) = (self.start(group), self.start(group + 1));
        let mut at = Permutation::new(end - start, key(&[PURPOSE_GROUP, self.seed, epoch, group]))
            .at(position - start);
        for set in 0..self.quotas.len() {
            let (first, next) = (self.before(set, group), self.before(set, group + 1));
            if at < next - first {
                return (set, epoch * self.quotas[set] + first + at);
            }
            at -= next - first;
        }
        unreachable!("a group is the sum of its sets");
    }
}

/// Shares `total` samples among weights: each gets its share rounded down, and the largest
/// remainders one more.
pub fn apportion(total: u64, weights: &[f64]) -> Vec<u64> {
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn an_epoch_holds_every_quota_and_every_stretch_its_share(
            quotas in proptest::collection::vec(0u64..9000, 1..5), epoch in 0u64..50, seed in any::<u64>(),
        ) {
            prop_assume!(quotas.iter().sum::<u64>() > 0);
            let q = Quotas::new(quotas.clone(), seed);
            let mut seen: Vec<Vec<u64>> = vec![Vec::new(); quotas.len()];
            for position in 0..q.total() {
                let (set, place) = q.place(epoch, position);
                seen[set].push(place);
                if position % 1009 == 0 {
                    for (n, quota) in seen.iter().zip(&quotas) {
                        let share = position as f64 * *quota as f64 / q.total() as f64;
                        prop_assert!((n.len() as f64 - share).abs() < GROUP as f64, "{} for {share}", n.len());
                    }
                }
            }
            for (mut places, quota) in seen.into_iter().zip(quotas) {
                places.sort_unstable();
                prop_assert!(places.iter().copied().eq(epoch * quota..(epoch + 1) * quota));
            }
        }
    }
}
