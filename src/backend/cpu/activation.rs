//! The activation functions and their derivatives on rows of whole vectors of channels, for the
//! convolutions that apply one while they read their input and for the operation of its own.
//! Depends on the vectors alone. Every function maps 0 to 0, so channels that fill the last vector
//! stay 0.

#[cfg(test)]
mod tests;

use super::arena::SharedPtr;
use super::gelu::{gelu, gelu_and_slope};
use super::simd::{LANES, LookupTable, Simd};
use crate::plan::Activation;

/// exp(x) is computed for |x| up to this: a larger |x| gives the bits of the limit. There,
/// sigmoid(x) is 1 within f32 rounding, or 1e-19.
const LIMIT: f32 = 43.6;
/// Adding it (1.5 x 2^23) rounds to the nearest integer, whose lowest bits are then the lowest bits
/// of the sum.
const MAGIC: f32 = 12_582_912.0;
/// 2 ln 2 in two parts; a multiple up to 63 of the first one is exact.
const TWO_LN_2: [f32; 2] = [1.386_291_5, 2.857_213_6e-6];

/// 4 to the power of the number in the three lowest bits.
static POWERS_OF_4: LookupTable =
    LookupTable::new([1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0]);
/// 2^16 to the power of the number in the three lowest bits, a two's complement from -4 to 3.
static POWERS_OF_65536: LookupTable = {
    const P: f32 = 65_536.0;
    let (two, three) = (P * P, P * P * P);
    LookupTable::new([
        1.0,
        P,
        two,
        three,
        1.0 / (two * two),
        1.0 / three,
        1.0 / two,
        1.0 / P,
    ])
};
/// (exp(r) - 1) / r by powers of r, for |r| up to ln 2: a fit with an error of 1.2e-8 of exp(r).
#[allow(clippy::excessive_precision)] // the digits of the fit
const EXPONENTIAL: [f32; 7] = [
    1.000000053,
    5.000004672e-1,
    1.666657136e-1,
    4.166051435e-2,
    8.337070794e-3,
    1.411531641e-3,
    1.955113396e-4,
];

/// exp(x) for |x| up to [`LIMIT`], within 2e-7 of the value.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        // x = m 2 ln 2 + r with an integer m from -31 to 31, and m = 8 q + the three lowest bits
        let at = S::fma(x, S::splat(std::f32::consts::LOG2_E / 2.0), S::splat(MAGIC));
        let m = S::sub(at, S::splat(MAGIC));
        let q = S::fma(S::sub(m, S::splat(3.5)), S::splat(0.125), S::splat(MAGIC));
        let mut r = S::fma(m, S::splat(-TWO_LN_2[0]), x);
        r = S::fma(m, S::splat(-TWO_LN_2[1]), r);
        let mut p = S::splat(EXPONENTIAL[6]);
        for &c in EXPONENTIAL[..6].iter().rev() {
            p = S::fma(p, r, S::splat(c));
        }
        p = S::fma(p, r, S::splat(1.0));
        S::mul(
            S::mul(p, S::lookup(&POWERS_OF_4, at)),
            S::lookup(&POWERS_OF_65536, q),
        )
    }
}

/// `z` within +-[`LIMIT`]; NaN stays NaN.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn limited<S: Simd>(z: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe { S::min(S::splat(LIMIT), S::max(S::splat(-LIMIT), z)) }
}

/// sigmoid(z) = 1 / (1 + exp(-z)), within 3e-7 of the value, and 1 - sigmoid(z).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn sigmoid_and_rest<S: Simd>(z: S::V) -> (S::V, S::V) {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), limited::<S>(z)));
        let s = S::div(S::splat(1.0), S::add(S::splat(1.0), e));
        (s, S::mul(s, e))
    }
}

/// sigmoid(z) = 1 / (1 + exp(-z)), within 3e-7 of the value where that is above 1e-18.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(z: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe { sigmoid_and_rest::<S>(z).0 }
}

/// SiLU: z sigmoid(z).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn silu<S: Simd>(z: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe { S::mul(S::max(S::splat(-LIMIT), z), sigmoid::<S>(z)) }
}

/// The derivative of SiLU: s (1 + z (1 - s)) with s = sigmoid(z).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn silu_slope<S: Simd>(z: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let (s, rest) = sigmoid_and_rest::<S>(z);
        S::mul(s, S::fma(limited::<S>(z), rest, S::splat(1.0)))
    }
}

/// One activation function of vectors of channels; `lane` is the first channel of the vector.
trait Function: Copy {
    /// Whether it has a trainable slope a channel.
    const TRAINABLE: bool = false;
    /// The function's value.
    ///
    /// # Safety
    /// As [`Simd`], and slopes in memory can be read at `lane`.
    unsafe fn value<S: Simd>(self, z: S::V, lane: usize) -> S::V;
    /// The gradient `d` of the value times the derivative.
    ///
    /// # Safety
    /// As [`Function::value`].
    unsafe fn back<S: Simd>(self, z: S::V, d: S::V, lane: usize) -> S::V;
}

#[derive(Clone, Copy)]
struct Relu;
#[derive(Clone, Copy)]
struct LeakyRelu(f32);
#[derive(Clone, Copy)]
struct PRelu(*const f32);
#[derive(Clone, Copy)]
struct Silu;
#[derive(Clone, Copy)]
struct Gelu;

/// z, or `slope` z where z is negative.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn leaky<S: Simd>(z: S::V, slope: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe { S::where_positive(z, z, S::mul(slope, z)) }
}

impl Function for Relu {
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V, _: usize) -> S::V {
        // SAFETY: the processor has the instructions of S, by the caller's contract
        unsafe { S::max(S::splat(0.0), z) }
    }
    #[inline(always)]
    unsafe fn back<S: Simd>(self, z: S::V, d: S::V, _: usize) -> S::V {
        // SAFETY: as above
        unsafe { S::where_positive(z, d, S::splat(0.0)) }
    }
}

impl Function for LeakyRelu {
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V, _: usize) -> S::V {
        // SAFETY: the processor has the instructions of S, by the caller's contract
        unsafe { leaky::<S>(z, S::splat(self.0)) }
    }
    #[inline(always)]
    unsafe fn back<S: Simd>(self, z: S::V, d: S::V, _: usize) -> S::V {
        // SAFETY: as above
        unsafe { S::where_positive(z, d, S::mul(S::splat(self.0), d)) }
    }
}

impl Function for PRelu {
    const TRAINABLE: bool = true;
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V, lane: usize) -> S::V {
        // SAFETY: the processor has the instructions of S, and the slopes can be read at `lane`
        unsafe { leaky::<S>(z, S::load(self.0.add(lane))) }
    }
    #[inline(always)]
    unsafe fn back<S: Simd>(self, z: S::V, d: S::V, lane: usize) -> S::V {
        // SAFETY: as above
        unsafe { S::where_positive(z, d, S::mul(S::load(self.0.add(lane)), d)) }
    }
}

impl Function for Silu {
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V, _: usize) -> S::V {
        // SAFETY: the processor has the instructions of S, by the caller's contract
        unsafe { silu::<S>(z) }
    }
    #[inline(always)]
    unsafe fn back<S: Simd>(self, z: S::V, d: S::V, _: usize) -> S::V {
        // SAFETY: as above
        unsafe { S::mul(silu_slope::<S>(z), d) }
    }
}

impl Function for Gelu {
    #[inline(always)]
    unsafe fn value<S: Simd>(self, z: S::V, _: usize) -> S::V {
        // SAFETY: the processor has the instructions of S, by the caller's contract
        unsafe { gelu::<S>(z) }
    }
    #[inline(always)]
    unsafe fn back<S: Simd>(self, z: S::V, d: S::V, _: usize) -> S::V {
        // SAFETY: as above
        unsafe { S::mul(gelu_and_slope::<S>(z).1, d) }
    }
}

/// An activation, with its slopes in memory.
#[derive(Clone, Copy)]
pub struct RowActivation {
    /// The function.
    pub function: Activation,
    /// The trainable slopes `[c]`, c a multiple of 16; the channels that fill the last vector may
    /// have any finite slope. Not read by functions without slopes.
    pub slopes: SharedPtr<f32>,
}

/// Evaluates `$body` with `$f` bound to the [`Function`] of a [`RowActivation`].
macro_rules! with_function {
    ($activation:expr, $f:ident => $body:expr, normalize $mean:ident $factor:ident => $other:expr) => {
        match $activation.function {
            Activation::Relu => {
                let $f = Relu;
                $body
            }
            Activation::LeakyRelu { slope } => {
                let $f = LeakyRelu(slope);
                $body
            }
            Activation::PRelu { .. } => {
                let $f = PRelu($activation.slopes.at(0).cast_const());
                $body
            }
            Activation::Silu => {
                let $f = Silu;
                $body
            }
            Activation::Gelu => {
                let $f = Gelu;
                $body
            }
            Activation::Normalize {
                mean: $mean,
                factor: $factor,
            } => $other,
        }
    };
}

/// `len` values of the activation: whole pixels `[c]`, or pixels of three channels for
/// [`Activation::Normalize`].
///
/// # Safety
/// As [`Simd`]. `z` holds `len` values; `out` has room for as many, and is `z` or does not overlap
/// it; no other thread uses it. `c` is a multiple of 16, `len` one of `c`, and the slopes are `[c]`;
/// with `Normalize`, `len` is a multiple of 3.
#[inline(always)]
pub unsafe fn apply_row<S: Simd>(
    activation: RowActivation,
    z: *const f32,
    c: usize,
    len: usize,
    out: *mut f32,
) {
    // SAFETY: the caller guarantees the memory
    unsafe {
        with_function!(activation, f => apply::<S, _>(f, z, c, len, out), normalize mean factor => {
            for i in 0..len {
                *out.add(i) = (*z.add(i) - mean[i % 3]) * factor;
            }
        });
    }
}

/// [`apply_row`] of one function.
///
/// # Safety
/// As [`apply_row`].
#[inline(always)]
unsafe fn apply<S: Simd, F: Function>(f: F, z: *const f32, c: usize, len: usize, out: *mut f32) {
    // SAFETY: pixels end below `len`, a multiple of `c`, and lanes begin whole vectors of it
    unsafe {
        for pixel in (0..len).step_by(c) {
            for lane in (0..c).step_by(LANES) {
                let at = pixel + lane;
                S::store(out.add(at), f.value::<S>(S::load(z.add(at)), lane));
            }
        }
    }
}

/// The backward pass of an activation on a row.
#[derive(Clone, Copy)]
pub struct BackRow {
    /// The values before the activation.
    pub z: *const f32,
    /// The gradient of the values after it.
    pub d: *const f32,
    /// Channels of a pixel, a multiple of 16 (3 for [`Activation::Normalize`]).
    pub c: usize,
    /// Values of the row, a multiple of `c`.
    pub len: usize,
    /// The gradient of the values before it, written or added to.
    pub out: *mut f32,
    /// Whether to add.
    pub add: bool,
    /// The gradient of the slopes `[c]`, added to. Not used by functions without slopes.
    pub slope_sums: *mut f32,
}

/// Computes a [`BackRow`].
///
/// # Safety
/// As [`Simd`]. The pointers are valid for the sizes that the fields state, the slopes are `[c]`.
/// `out` is `d` or overlaps nothing else, the sums overlap nothing else, and no other thread uses
/// either.
#[inline(always)]
pub unsafe fn back_row<S: Simd>(activation: RowActivation, row: BackRow) {
    // SAFETY: the caller guarantees the memory
    unsafe {
        with_function!(activation, f => back::<S, _>(f, row), normalize _mean factor => {
            for i in 0..row.len {
                let before = if row.add { *row.out.add(i) } else { 0.0 };
                *row.out.add(i) = before + *row.d.add(i) * factor;
            }
        });
    }
}

/// Chains of additions of a slope's gradient, which hide the latency of an addition.
const CHAINS: usize = 4;

/// [`back_row`] of one function.
///
/// # Safety
/// As [`back_row`].
#[inline(always)]
unsafe fn back<S: Simd, F: Function>(f: F, row: BackRow) {
    let BackRow {
        z, d, c, len, out, ..
    } = row;
    // SAFETY: pixels end below `len`, a multiple of `c`, and lanes begin whole vectors of it
    unsafe {
        if !F::TRAINABLE {
            for pixel in (0..len).step_by(c) {
                for lane in (0..c).step_by(LANES) {
                    let at = pixel + lane;
                    let (z, d) = (S::load(z.add(at)), S::load(d.add(at)));
                    put::<S>(out.add(at), f.back::<S>(z, d, lane), row.add);
                }
            }
            return;
        }
        for lane in (0..c).step_by(LANES) {
            let mut sums = [S::splat(0.0); CHAINS];
            let mut at = lane;
            while at < len {
                for sum in &mut sums {
                    if at < len {
                        let (z, d) = (S::load(z.add(at)), S::load(d.add(at)));
                        put::<S>(out.add(at), f.back::<S>(z, d, lane), row.add);
                        *sum = S::fma(d, S::min(S::splat(0.0), z), *sum);
                    }
                    at += c;
                }
            }
            let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
            let to = row.slope_sums.add(lane);
            S::store(to, S::add(S::load(to), sum));
        }
    }
}

/// Stores or adds a vector.
///
/// # Safety
/// As [`Simd`], and 16 values can be written at `to`.
#[inline(always)]
unsafe fn put<S: Simd>(to: *mut f32, value: S::V, add: bool) {
    // SAFETY: the caller guarantees the memory
    unsafe {
        let sum = if add {
            S::add(S::load(to), value)
        } else {
            value
        };
        S::store(to, sum);
    }
}
