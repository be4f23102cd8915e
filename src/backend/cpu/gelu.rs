//! The exact GELU, z Phi(z), and its derivative, on vectors. Phi is symmetric up to a constant, so
//! |z| selects one of eight segments of [0, 6], and a polynomial fitted in the segment (at
//! Chebyshev points) is evaluated. The fit has an error of 4e-8; with f32 rounding it stays below
//! 2e-7, which the tests check. Depends on the vectors alone.

use super::simd::{LookupTable, Simd};

/// Segments per unit of |z|.
const SEGMENTS: f32 = 8.0 / 6.0;
/// For larger |z|, GELU is z or 0 within f32 rounding. The limit lies inside the last segment.
const LIMIT: f32 = 5.999;
/// Adding it (1.5 x 2^23) rounds to the nearest integer, whose lowest bits are then the lowest bits
/// of the sum.
const MAGIC: f32 = 12_582_912.0;

macro_rules! tables {
    ($($values:expr),* $(,)?) => { [$(LookupTable::new($values)),*] };
}

/// Coefficients of Phi(a) - 1/2 for each segment, by powers of the position r in the segment, from
/// -1/2 to 1/2; one table for each power. They are the integral of a fit of the density, so that
/// the derivative is accurate as well.
#[rustfmt::skip]
#[allow(clippy::excessive_precision)] // the digits of the fit
static HALF_CDF: [LookupTable; 8] = tables![
    [1.461697668e-1, 3.697054684e-1, 4.696036279e-1, 4.956675470e-1, 4.996309280e-1, 4.999814630e-1, 4.999994636e-1, 5.000000000e-1],
    [2.788913250e-1, 1.589074880e-1, 5.158970505e-2, 9.543135762e-3, 1.005839324e-3, 6.040533844e-5, 2.066948809e-6, 4.029825362e-8],
    [-3.921888396e-2, -6.703907996e-2, -3.627411649e-2, -9.393996559e-3, -1.273003058e-3, -9.344238060e-5, -3.779574172e-6, -8.508131799e-8],
    [-2.246922813e-2, 3.957096487e-3, 1.216693409e-2, 5.270168185e-3, 9.798028041e-4, 9.069636872e-5, 4.411806458e-6, 1.158041769e-7],
    [5.253324285e-3, 5.449934863e-3, -8.750836714e-4, -1.713662641e-3, -5.008846638e-4, -6.134186697e-5, -3.663435791e-6, -1.129288236e-7],
    [1.599627198e-3, -1.252737828e-3, -7.803072804e-4, 2.298050822e-4, 1.708792115e-4, 3.033271969e-5, 2.313230880e-6, 8.601939072e-8],
    [-4.513360036e-4, -2.310956625e-4, 2.396989148e-4, 5.545660679e-5, -3.347293386e-5, -1.128401618e-5, -1.214193844e-6, -5.857375029e-8],
    [-8.586228068e-5, 1.079702488e-4, 3.716990705e-6, -2.984227467e-5, 6.905128771e-7, 2.840628213e-6, 4.573643935e-7, 2.800157262e-8],
];

/// The segment of `a` = |z| (a number in the lowest bits), and the position r in the segment.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn segment<S: Simd>(a: S::V) -> (S::V, S::V) {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let u = S::fma(
            S::min(a, S::splat(LIMIT)),
            S::splat(SEGMENTS),
            S::splat(-0.5),
        );
        let at = S::add(u, S::splat(MAGIC));
        (at, S::sub(u, S::sub(at, S::splat(MAGIC))))
    }
}

/// GELU: z Phi(z) = z / 2 + |z| (Phi(|z|) - 1/2).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn gelu<S: Simd>(z: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let a = S::abs(z);
        let (at, r) = segment::<S>(a);
        let mut half = S::lookup(&HALF_CDF[7], at);
        for table in HALF_CDF[..7].iter().rev() {
            half = S::fma(half, r, S::lookup(table, at));
        }
        S::fma(a, half, S::mul(z, S::splat(0.5)))
    }
}

/// GELU and its derivative: (z Phi(z), Phi(z) + z phi(z)). The density phi is the derivative of the
/// polynomial.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn gelu_and_slope<S: Simd>(z: S::V) -> (S::V, S::V) {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let a = S::abs(z);
        let (at, r) = segment::<S>(a);
        let mut density = S::lookup(&HALF_CDF[7], at);
        let mut half = S::fma(density, r, S::lookup(&HALF_CDF[6], at));
        for table in HALF_CDF[..6].iter().rev() {
            density = S::fma(density, r, half);
            half = S::fma(half, r, S::lookup(table, at));
        }
        let value = S::fma(a, half, S::mul(z, S::splat(0.5)));
        // beyond the limit, |z| would enlarge the density's error at the limit
        let inside = S::min(a, S::splat(LIMIT));
        let slope = S::fma(S::mul(inside, S::splat(SEGMENTS)), density, half);
        (value, S::add(S::xor_sign(slope, z), S::splat(0.5)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Kernel, LANES};
    use super::*;
    use crate::support::isa::Isa;

    struct Evaluate<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);

    impl Kernel for Evaluate<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            for i in (0..self.0.len()).step_by(LANES) {
                // SAFETY: `Isa::run` chose S for this processor, and the three slices have the same
                // length, a multiple of a vector
                unsafe {
                    let (g, s) = gelu_and_slope::<S>(S::load(self.0.as_ptr().add(i)));
                    S::store(self.1.as_mut_ptr().add(i), g);
                    S::store(self.2.as_mut_ptr().add(i), s);
                }
            }
        }
    }

    /// erf to f64 precision by its Taylor series (|x| < 3) or the continued fraction of erfc.
    fn erf(x: f64) -> f64 {
        let a = x.abs();
        let value = if a < 3.0 {
            let (mut term, mut sum) = (a, a);
            for n in 1..200 {
                term *= -a * a / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        } else {
            let mut f = 0.0;
            for k in (1..80).rev() {
                f = f64::from(k) / 2.0 / (a + f);
            }
            1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + f)
        };
        value.copysign(x)
    }

    #[test]
    fn gelu_and_its_slope_are_exact_within_the_stated_error_on_every_instruction_set() {
        let large = [17.0, 25.0, 104.0, 403.0, 1e3, 1e4, 1e6, 1e9];
        let z: Vec<f32> = (0..64_000)
            .map(|i| (i as f32 - 32_000.0) / 2_000.0)
            .chain(large.into_iter().flat_map(|z| [z, -z]))
            .collect();
        for isa in Isa::available() {
            let (mut g, mut s) = (vec![0.0; z.len()], vec![0.0; z.len()]);
            isa.run(Evaluate(&z, &mut g, &mut s));
            for i in 0..z.len() {
                let x = f64::from(z[i]);
                let cdf = 0.5 * (1.0 + erf(x / 2f64.sqrt()));
                let slope = cdf + x * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
                let scale = x.abs().max(1.0);
                assert!(
                    (f64::from(g[i]) - x * cdf).abs() < 2e-7 * scale,
                    "{isa}: gelu({x}) = {} not {}",
                    g[i],
                    x * cdf
                );
                assert!(
                    (f64::from(s[i]) - slope).abs() < 2.5e-7,
                    "{isa}: slope({x}) = {} not {slope}",
                    s[i]
                );
            }
        }
    }
}
