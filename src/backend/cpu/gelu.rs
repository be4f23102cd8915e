//! The exact GELU, z Phi(z), and its slope, on vectors. Phi is symmetric, so |z| picks one of eight segments of [0, 6] and a
//! polynomial fitted there (at Chebyshev points): 1.4e-8 of fitting error, below 1.5e-7 with f32 rounding, which the tests
//! check. Depends on the vectors alone.

use super::simd::{Simd, Table};

/// Segments per unit of |z|.
const SEGMENTS: f32 = 8.0 / 6.0;
/// Beyond this |z|, GELU is z or 0 within f32 rounding; it stays inside the last segment.
const LIMIT: f32 = 5.999;
/// Adding it rounds to the nearest integer, whose lowest bits are then those of the sum.
const MAGIC: f32 = 12_582_912.0;

macro_rules! tables {
    ($($values:expr),* $(,)?) => { [$(Table::new($values)),*] };
}

/// Phi(a) - 1/2 by powers of the place in the segment, from -1/2 to 1/2.
#[rustfmt::skip]
static HALF_CDF: [Table; 7] = tables![
    [1.461697668e-1, 3.697054684e-1, 4.696036279e-1, 4.956675470e-1, 4.996309280e-1, 4.999814630e-1, 4.999994636e-1, 5.000000000e-1],
    [2.788911760e-1, 1.589076668e-1, 5.158971250e-2, 9.543084539e-3, 1.005840488e-3, 6.041019515e-5, 2.067730520e-6, 4.034610868e-8],
    [-3.921897337e-2, -6.703908741e-2, -3.627407178e-2, -9.394008666e-3, -1.273008296e-3, -9.344115824e-5, -3.779179224e-6, -8.504884619e-8],
    [-2.246453241e-2, 3.951191902e-3, 1.216673106e-2, 5.271800328e-3, 9.797650855e-4, 9.054102702e-5, 4.386794444e-6, 1.142728365e-7],
    [5.254269112e-3, 5.450012628e-3, -8.755545714e-4, -1.713537029e-3, -5.008289008e-4, -6.135495642e-5, -3.667647206e-6, -1.132751848e-7],
    [1.562062418e-3, -1.205500797e-3, -7.786810747e-4, 2.167490893e-4, 1.711813093e-4, 3.157549509e-5, 2.513327900e-6, 9.827009251e-8],
    [-4.538551439e-4, -2.313030127e-4, 2.409546578e-4, 5.512190910e-5, -3.362169809e-5, -1.124911705e-5, -1.202963290e-6, -5.765011224e-8],
];
/// Phi(a) - 1/2 + a phi(a), the slope of GELU less 1/2, likewise.
#[rustfmt::skip]
static HALF_SLOPE: [Table; 8] = tables![
    [2.856154144e-1, 6.080667377e-1, 5.985779166e-1, 5.290685296e-1, 5.041571856e-1, 5.003136992e-1, 5.000128746e-1, 5.000002980e-1],
    [5.185635686e-1, 1.166976914e-1, -7.819065452e-2, -4.667190090e-2, -9.445457719e-3, -9.070240194e-4, -4.498861381e-5, -1.194489869e-6],
    [-1.513600498e-1, -1.833102703e-1, -1.757056452e-2, 2.715483680e-2, 9.408354759e-3, 1.216156874e-3, 7.468952390e-5, 2.350187742e-6],
    [-7.936354727e-2, 4.852946848e-2, 3.990047425e-2, -2.904432826e-3, -5.093212705e-3, -9.877436096e-4, -7.798456500e-5, -2.960918437e-6],
    [3.026096709e-2, 1.785375178e-2, -1.412690431e-2, -4.547351506e-3, 1.340079820e-3, 5.275058793e-4, 5.688388046e-5, 2.662814722e-6],
    [8.190062828e-3, -9.608057328e-3, -9.549622191e-4, 2.494060667e-3, 9.350311302e-5, -1.823123312e-4, -3.041446871e-5, -1.829539883e-6],
    [-3.447274445e-3, -4.829451791e-4, 1.736661070e-3, -3.412659862e-4, -2.118155535e-4, 3.020158329e-5, 1.225456890e-5, 1.055448365e-6],
    [-5.641732714e-4, 8.906638250e-4, -2.706017985e-4, -1.259188284e-4, 6.953076081e-5, 4.293299298e-6, -3.334704161e-6, -4.392158814e-7],
];

/// Segment (in the lowest bits) and place in it of |z|.
#[inline(always)]
unsafe fn place<S: Simd>(a: S::V) -> (S::V, S::V) {
    unsafe {
        let u = S::fma(S::min(a, S::splat(LIMIT)), S::splat(SEGMENTS), S::splat(-0.5));
        let at = S::add(u, S::splat(MAGIC));
        (at, S::sub(u, S::sub(at, S::splat(MAGIC))))
    }
}

#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(tables: &[Table; N], at: S::V, r: S::V) -> S::V {
    unsafe {
        let mut sum = S::lookup(&tables[N - 1], at);
        for table in tables[..N - 1].iter().rev() {
            sum = S::fma(sum, r, S::lookup(table, at));
        }
        sum
    }
}

/// GELU: z Phi(z) = z / 2 + |z| (Phi(|z|) - 1/2).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn gelu<S: Simd>(z: S::V) -> S::V {
    unsafe {
        let a = S::abs(z);
        let (at, r) = place::<S>(a);
        S::fma(a, polynomial::<S, 7>(&HALF_CDF, at, r), S::mul(z, S::splat(0.5)))
    }
}

/// GELU and its derivative: (z Phi(z), Phi(z) + z phi(z)).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn gelu_and_slope<S: Simd>(z: S::V) -> (S::V, S::V) {
    unsafe {
        let a = S::abs(z);
        let (at, r) = place::<S>(a);
        let value = S::fma(a, polynomial::<S, 7>(&HALF_CDF, at, r), S::mul(z, S::splat(0.5)));
        (value, S::add(S::xor_sign(polynomial::<S, 8>(&HALF_SLOPE, at, r), z), S::splat(0.5)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Isa, Kernel, LANES};
    use super::*;

    struct Evaluate<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);

    impl Kernel for Evaluate<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            for i in (0..self.0.len()).step_by(LANES) {
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
        let z: Vec<f32> = (0..64_000).map(|i| (i as f32 - 32_000.0) / 2_000.0).collect();
        for isa in Isa::available() {
            let (mut g, mut s) = (vec![0.0; z.len()], vec![0.0; z.len()]);
            isa.run(Evaluate(&z, &mut g, &mut s));
            for i in 0..z.len() {
                let x = f64::from(z[i]);
                let cdf = 0.5 * (1.0 + erf(x / 2f64.sqrt()));
                let slope = cdf + x * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
                let scale = x.abs().max(1.0);
                assert!((f64::from(g[i]) - x * cdf).abs() < 2e-7 * scale, "{isa}: gelu({x}) = {} not {}", g[i], x * cdf);
                assert!((f64::from(s[i]) - slope).abs() < 1.5e-7, "{isa}: slope({x}) = {} not {slope}", s[i]);
            }
        }
    }
}
