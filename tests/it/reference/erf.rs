//! The error function in f64, and the exact GELU built on it, for the reference network. Depends on
//! nothing and promises a relative error of a few 1e-16 on the whole line.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

/// erf(x). Below 2.5 the all-positive series `2/sqrt(pi) exp(-x^2) sum 2^k x^(2k+1) / (2k+1)!!`
/// (Abramowitz & Stegun 7.1.6), above it 1 - erfc by the continued fraction (A&S 7.1.14), which
/// needs few terms there.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() {
        return x;
    }
    if a > 6.0 {
        return 1f64.copysign(x); // erfc(6) = 2e-17 is below half a unit in the last place of 1
    }
    let value = if a < 2.5 {
        let (mut term, mut sum, mut k) = (a, a, 0.0);
        while term > 1e-18 * sum {
            k += 1.0;
            term *= 2.0 * a * a / (2.0 * k + 1.0);
            sum += term;
        }
        FRAC_2_SQRT_PI * (-a * a).exp() * sum
    } else {
        // erfc(a) sqrt(pi) exp(a^2) = 1/(a + (1/2)/(a + (2/2)/(a + (3/2)/(a + ...))))
        let mut tail = a;
        for k in (1..=120).rev() {
            tail = a + 0.5 * k as f64 / tail;
        }
        1.0 - (-a * a).exp() / (PI.sqrt() * tail)
    };
    value.copysign(x)
}

/// Exact GELU: z * Phi(z).
pub fn gelu(z: f64) -> f64 {
    0.5 * z * (1.0 + erf(z * FRAC_1_SQRT_2))
}

/// Its derivative: Phi(z) + z * phi(z).
pub fn gelu_slope(z: f64) -> f64 {
    0.5 * (1.0 + erf(z * FRAC_1_SQRT_2)) + z * (-0.5 * z * z).exp() / (2.0 * PI).sqrt()
}
