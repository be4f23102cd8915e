//! Random draws of a degradation. Every step has a stream of its own, keyed by (seed, image, patch,
//! variant, step), so that a draw depends neither on threads nor on the other steps. Logarithms and
//! cosines come from `libm`, not from the system, so that the bits are the same on every machine.
//! Depends on `support::rng`.

use crate::support::rng::{Rng, key, mix};
use std::sync::OnceLock;

/// Separates these draws from all others that are made with the same seed.
const PURPOSE_DEGRADE: u64 = 0xde64_ade5;
/// Weyl increment between the counters of a field of random numbers (that of SplitMix64).
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
/// Intervals of the table of normal quantiles, over the upper half of the distribution.
const INTERVALS: usize = 4096;
/// Bits of a random number that say the place within an interval.
const PART_BITS: u32 = 20;

/// The key of all draws for one LQ patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    key: u64,
}

impl Draws {
    /// The draws for one variant of a patch. In a loader, `patch` and `variant` may be the epoch and
    /// the position of a sample.
    pub fn new(seed: u64, image_key: u64, patch: u64, variant: u64) -> Draws {
        Draws {
            key: key(&[PURPOSE_DEGRADE, seed, image_key, patch, variant]),
        }
    }

    /// The stream of a step of the recipe. `round` differs between repetitions of the step.
    pub(crate) fn stream(self, step: u64, round: u64) -> Stream {
        Stream(Rng::new(&[self.key, step, round]))
    }
}

/// The draws of one step, in order.
pub(crate) struct Stream(Rng);

impl Stream {
    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0.unit()
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..n`; `n` must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        quantile((self.unit() + 0.5 / (1u64 << 53) as f64).min(1.0 - f64::EPSILON))
    }

    /// The key of a field of random numbers, one for each pixel.
    pub fn field(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// The 64 random bits at a place of the field with this key.
#[inline(always)]
pub(crate) fn field_bits(field: u64, at: usize) -> u64 {
    mix(field.wrapping_add(STEP.wrapping_mul(at as u64 + 1)))
}

/// Normal numbers from 32 random bits each: a sign and a place in a table of quantiles, between
/// whose entries the quantile is interpolated; in the last interval, beyond 3.6 deviations, it is
/// computed.
#[derive(Clone, Copy)]
pub(crate) struct Normals(&'static [Two; INTERVALS]);

/// Two numbers that a table is read for, as one value: compilers read the fields of a structure one by one.
#[derive(Clone, Copy, Default)]
pub(crate) struct Two(u64);

impl Two {
    pub fn new(first: f32, second: f32) -> Two {
        Two(u64::from(first.to_bits()) | u64::from(second.to_bits()) << 32)
    }

    #[inline(always)]
    pub fn first(self) -> f32 {
        f32::from_bits(self.0 as u32)
    }

    #[inline(always)]
    pub fn second(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }
}

impl Normals {
    /// The table, made at the first call.
    pub fn new() -> Normals {
        static TABLE: OnceLock<Box<[Two; INTERVALS]>> = OnceLock::new();
        Normals(TABLE.get_or_init(|| {
            let value = |i: usize| match i {
                INTERVALS => 0.0, // replaced: numbers of the last interval are computed
                i => quantile(0.5 + 0.5 * i as f64 / INTERVALS as f64),
            };
            Box::new(std::array::from_fn(|i| {
                let start = value(i);
                Two::new(start as f32, (value(i + 1) - start) as f32)
            }))
        }))
    }

    /// Standard normal numbers.
    #[inline(always)]
    pub fn block<const N: usize>(self, bits: &[u32; N]) -> [f32; N] {
        // a loop of its own for what the processor cannot do for several numbers at once
        let mut entries = [Two::default(); N];
        for (entry, &bits) in entries.iter_mut().zip(bits) {
            *entry = self.0[(bits << 1 >> PART_BITS) as usize];
        }
        let mut out = [0.0; N];
        let mut largest = 0;
        for i in 0..N {
            let place = bits[i] << 1;
            largest = largest.max(place);
            let size = entries[i].first() + entries[i].second() * part_of(place);
            out[i] = signed(size, bits[i]);
        }
        // one number in 4096
        if largest >> PART_BITS == INTERVALS as u32 - 1 {
            for (out, &bits) in out.iter_mut().zip(bits) {
                if bits << 1 >> PART_BITS == INTERVALS as u32 - 1 {
                    *out = signed(tail(part_of(bits << 1)), bits);
                }
            }
        }
        out
    }
}

/// The place within an interval, from 0 to 1.
#[inline(always)]
fn part_of(place: u32) -> f32 {
    (place & ((1 << PART_BITS) - 1)) as f32 * (1.0 / (1 << PART_BITS) as f32)
}

/// `size` with the sign of the highest bit.
#[inline(always)]
fn signed(size: f32, bits: u32) -> f32 {
    f32::from_bits(size.to_bits() | (bits & 1 << 31))
}

#[cold]
fn tail(part: f32) -> f32 {
    let upper = (1.0 - f64::from(part)) * 0.5 / INTERVALS as f64;
    -quantile(upper) as f32
}

/// The quantile of the standard normal distribution (M. Wichura: "Algorithm AS 241: the percentage
/// points of the normal distribution", 1988; its relative error is about 1e-16).
pub(crate) fn quantile(p: f64) -> f64 {
    let poly = |c: &[f64], x: f64| c.iter().rev().fold(0.0, |sum, c| sum * x + c);
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180625 - q * q;
        return q * poly(&CENTRE.0, r) / poly(&CENTRE.1, r);
    }
    let r = libm::sqrt(-libm::log(if q < 0.0 { p } else { 1.0 - p }));
    let z = if r <= 5.0 {
        poly(&MIDDLE.0, r - 1.6) / poly(&MIDDLE.1, r - 1.6)
    } else {
        poly(&FAR.0, r - 5.0) / poly(&FAR.1, r - 5.0)
    };
    if q < 0.0 { -z } else { z }
}

/// Coefficients of AS 241 by region: numerator and denominator, from the constant up.
type Rational = ([f64; 8], [f64; 8]);

#[allow(clippy::excessive_precision)] // as published
const CENTRE: Rational = (
    [
        3.387_132_872_796_366_608_0,
        1.331_416_678_917_843_774_5e2,
        1.971_590_950_306_551_442_7e3,
        1.373_169_376_550_946_112_5e4,
        4.592_195_393_154_987_145_7e4,
        6.726_577_092_700_870_085_3e4,
        3.343_057_558_358_812_810_5e4,
        2.509_080_928_730_122_672_7e3,
    ],
    [
        1.0,
        4.231_333_070_160_091_125_2e1,
        6.871_870_074_920_579_083_0e2,
        5.394_196_021_424_751_107_7e3,
        2.121_379_430_158_659_586_7e4,
        3.930_789_580_009_271_061_0e4,
        2.872_908_573_572_194_267_4e4,
        5.226_495_278_852_854_561_0e3,
    ],
);
#[allow(clippy::excessive_precision)] // as published
const MIDDLE: Rational = (
    [
        1.423_437_110_749_683_577_34,
        4.630_337_846_156_545_295_90,
        5.769_497_221_460_691_405_50,
        3.647_848_324_763_204_605_04,
        1.270_458_252_452_368_382_58,
        2.417_807_251_774_506_117_70e-1,
        2.272_384_498_926_918_458_33e-2,
        7.745_450_142_783_414_076_40e-4,
    ],
    [
        1.0,
        2.053_191_626_637_758_821_87,
        1.676_384_830_183_803_849_40,
        6.897_673_349_851_000_045_50e-1,
        1.481_039_764_274_800_745_90e-1,
        1.519_866_656_361_645_719_66e-2,
        5.475_938_084_995_344_946_00e-4,
        1.050_750_071_644_416_843_24e-9,
    ],
);
#[allow(clippy::excessive_precision)] // as published
const FAR: Rational = (
    [
        6.657_904_643_501_103_777_20,
        5.463_784_911_164_114_369_90,
        1.784_826_539_917_291_335_80,
        2.965_605_718_285_048_912_30e-1,
        2.653_218_952_657_612_309_30e-2,
        1.242_660_947_388_078_438_60e-3,
        2.711_555_568_743_487_578_15e-5,
        2.010_334_399_292_288_132_65e-7,
    ],
    [
        1.0,
        5.998_322_065_558_879_376_90e-1,
        1.369_298_809_227_358_053_10e-1,
        1.487_536_129_085_061_485_25e-2,
        7.868_691_311_456_132_591_00e-4,
        1.846_318_317_510_054_681_80e-5,
        1.421_511_758_316_445_888_70e-7,
        2.044_263_103_389_939_785_64e-15,
    ],
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        // SciPy's norm.ppf
        for (p, z) in [
            (0.5, 0.0),
            (0.75, 0.674_489_750_196_081_7),
            (0.975, 1.959_963_984_540_054),
            (0.001, -3.090_232_306_167_813_5),
            (1e-10, -6.361_340_902_404_056),
            (1e-15, -7.941_345_326_170_998),
        ] {
            assert!((quantile(p) - z).abs() < 1e-12 * z.abs().max(1.0), "{p}");
        }
    }

    #[test]
    fn a_field_has_the_moments_of_the_normal_distribution() {
        let (normals, n) = (Normals::new(), 400_000);
        let mut sums = [0.0f64; 4];
        let (mut beyond_two, mut beyond_four) = (0, 0);
        for i in 0..n {
            let bits = field_bits(5, i);
            for z in normals.block(&[bits as u32, (bits >> 32) as u32]) {
                let z = f64::from(z);
                sums.iter_mut().zip(1..).for_each(|(s, k)| *s += z.powi(k));
                beyond_two += u32::from(z.abs() > 2.0);
                beyond_four += u32::from(z.abs() > 4.0);
            }
        }
        let m = sums.map(|s| s / (2 * n) as f64);
        assert!(m[0].abs() < 4e-3 && (m[1] - 1.0).abs() < 6e-3, "{m:?}");
        assert!(m[2].abs() < 2e-2 && (m[3] - 3.0).abs() < 5e-2, "{m:?}");
        // of 800,000: 36,400 and 51
        assert!((35_500..37_300).contains(&beyond_two), "{beyond_two}");
        assert!((20..90).contains(&beyond_four), "{beyond_four}");
    }

    #[test]
    fn draws_depend_on_every_part_of_their_key() {
        let first = |d: Draws, step, round| d.stream(step, round).unit();
        let draws = Draws::new(1, 2, 3, 4);
        assert_eq!(first(draws, 5, 0), first(Draws::new(1, 2, 3, 4), 5, 0));
        for other in [
            Draws::new(0, 2, 3, 4),
            Draws::new(1, 0, 3, 4),
            Draws::new(1, 2, 0, 4),
            Draws::new(1, 2, 3, 0),
        ] {
            assert_ne!(first(draws, 5, 0), first(other, 5, 0));
        }
        assert_ne!(first(draws, 5, 0), first(draws, 6, 0));
        assert_ne!(first(draws, 5, 0), first(draws, 5, 1));
    }
}
