//! The exponential function of a softmax, on vectors: its arguments are differences to the largest
//! one, so they are never above 0. Depends on the vectors alone.

use super::simd::Simd;

/// exp(x) for a smaller x gives the value at the limit, 1.6e-38: a softmax, whose sum is at least 1,
/// does not notice.
const LIMIT: f32 = -87.0;
/// Adding it (1.5 x 2^23 + 127) rounds to the nearest integer n, and leaves n + 127 in the lowest
/// bits of the sum, for [`Simd::power_of_two`].
const MAGIC: f32 = 12_583_039.0;
/// ln 2 in two parts; a multiple up to 127 of the first one is exact.
const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
/// (exp(r) - 1 - r) / r^2 by powers of r, for |r| up to ln 2 / 2: a minimax fit with an error of
/// 1.1e-7 of exp(r).
#[allow(clippy::excessive_precision)] // the digits of the fit
const EXPONENTIAL: [f32; 4] = [
    4.9999230309e-1,
    1.6667115389e-1,
    4.1890331549e-2,
    8.3125012727e-3,
];

/// exp(x) for x up to 0, within 3e-7 of the value down to x = -87; at least 1.6e-38 everywhere.
/// exp(0) is 1 exactly, and NaN stays NaN.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        // in this order NaN stays NaN
        let x = S::max(S::splat(LIMIT), x);
        // x = n ln 2 + r
        let at = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(MAGIC));
        let n = S::sub(at, S::splat(MAGIC));
        let r = S::fma(n, S::splat(-LN_2[0]), x);
        let r = S::fma(n, S::splat(-LN_2[1]), r);
        let mut p = S::splat(EXPONENTIAL[3]);
        for &c in EXPONENTIAL[..3].iter().rev() {
            p = S::fma(p, r, S::splat(c));
        }
        p = S::fma(p, r, S::splat(1.0));
        p = S::fma(p, r, S::splat(1.0));
        S::mul(p, S::power_of_two(at))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Kernel, LANES};
    use super::*;
    use crate::support::isa::Isa;

    struct Evaluate<'a>(&'a [f32], &'a mut [f32]);

    impl Kernel for Evaluate<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            for i in (0..self.0.len()).step_by(LANES) {
                // SAFETY: `Isa::run` chose S for this processor, and both slices have the same
                // length, a multiple of a vector
                unsafe {
                    let value = exp::<S>(S::load(self.0.as_ptr().add(i)));
                    S::store(self.1.as_mut_ptr().add(i), value);
                }
            }
        }
    }

    #[test]
    fn exp_is_exact_within_the_stated_error_on_every_instruction_set() {
        let fine = (0..64_000).map(|i| -(i as f32) / 64_000.0);
        let coarse = (0..64_000).map(|i| -87.0 * (i as f32) / 63_999.0);
        let x: Vec<f32> = fine.chain(coarse).collect();
        for isa in Isa::available() {
            let mut values = vec![0.0; x.len()];
            isa.run(Evaluate(&x, &mut values));
            for (&x, &value) in x.iter().zip(&values) {
                let expected = f64::from(x).exp();
                let error = (f64::from(value) / expected - 1.0).abs();
                assert!(error < 3e-7, "{isa}: exp({x}) = {value} not {expected}");
            }
        }
    }

    #[test]
    fn exp_of_zero_of_very_small_numbers_and_of_nan() {
        let mut x = [0.0; LANES];
        x[1..7].copy_from_slice(&[
            -0.0,
            -87.5,
            -1e30,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::from_bits(u32::MAX), // a NaN that would change the exponent
        ]);
        for isa in Isa::available() {
            let mut values = [0.0; LANES];
            isa.run(Evaluate(&x, &mut values));
            assert_eq!(values[..2], [1.0, 1.0], "{isa}");
            let tiny = |v: &f32| *v > 0.0 && *v < 2e-38;
            assert!(values[2..5].iter().all(tiny), "{isa}: {values:?}");
            assert!(values[5..7].iter().all(|v| v.is_nan()), "{isa}: {values:?}");
        }
    }
}
