//! Counter-based random numbers: every draw is a pure function of its key, so that batches,
//! images and start values come out the same for any number of threads and after any restart.
//! Depends on nothing.

/// Weyl increment of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of SplitMix64: a bijection of 64 bits in which every input bit reaches every
/// output bit.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Folds a list of integers (seed, epoch, sample, purpose ...) into one 64-bit key; the order
/// matters.
pub fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(GOLDEN, |h, &p| {
        mix(h.wrapping_add(GOLDEN) ^ mix(p.wrapping_add(GOLDEN)))
    })
}

/// A short stream of draws under one key (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A stream keyed by the given integers; see [`key`].
    pub fn new(parts: &[u64]) -> Self {
        Rng { state: key(parts) }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `0..n` by multiply-shift (bias below `n / 2^64`). `n` must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        debug_assert!(n > 0);
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in [0, 1) with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Standard normal (Box-Muller, one of the pair).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_every_part_of_the_key() {
        let a = Rng::new(&[1, 2, 3]).next_u64();
        assert_eq!(a, Rng::new(&[1, 2, 3]).next_u64());
        for other in [[0, 2, 3], [1, 0, 3], [1, 2, 0], [2, 1, 3]] {
            assert_ne!(a, Rng::new(&other).next_u64());
        }
    }

    #[test]
    fn uniform_and_normal_have_the_right_moments() {
        let mut rng = Rng::new(&[7]);
        let n = 100_000;
        let (mut u, mut g, mut g2) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            u += rng.unit();
            let z = rng.normal();
            g += z;
            g2 += z * z;
        }
        let n = f64::from(n);
        assert!((u / n - 0.5).abs() < 5e-3);
        assert!((g / n).abs() < 2e-2 && (g2 / n - 1.0).abs() < 2e-2);
    }

    #[test]
    fn below_stays_in_range_and_reaches_both_ends() {
        let mut rng = Rng::new(&[9]);
        let mut seen = [0u32; 5];
        for _ in 0..5000 {
            seen[rng.below(5) as usize] += 1;
        }
        assert!(seen.iter().all(|&c| c > 800));
    }
}
