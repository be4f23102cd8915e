//! The passes of attention between its products: factors are rounded into packed form, and a
//! softmax and its gradients are computed in f32 and rounded while they are in registers. Depends on
//! vectors of AVX-512 alone; every function requires a processor with AVX512-BF16, which every unit
//! includes. The order of additions in a row depends on the number of its columns alone.

use super::own::transpose;
use super::{HALF_TILE, Rows, STEP};
use crate::backend::cpu::simd::LANES;
use std::arch::x86_64::*;

/// The exponent of a weight relative to the largest of its row is at least this: a smaller one gives
/// the bits of the limit, which is 1e-19 and vanishes in every sum with the largest, 1.
const LIMIT: f32 = -63.0;
/// 2^r by powers of r, for r from 0 to 1: a minimax fit with an error of 2.7e-6 of 2^r, a
/// thousandth of the rounding to bf16 that follows.
#[allow(clippy::excessive_precision)] // the digits of the fit
const POWER_OF_2: [f32; 5] = [
    1.000_002_623,
    6.930_038_333e-1,
    2.414_427_549e-1,
    5.201_146_007e-2,
    1.353_416_778e-2,
];

/// 2^x for x up to 0; a smaller x than [`LIMIT`] is taken as the limit. NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn power_of_2(x: __m512) -> __m512 {
    // in this order NaN stays NaN
    let x = _mm512_max_ps(_mm512_set1_ps(LIMIT), x);
    // rounded down, no exceptions
    let r = _mm512_reduce_ps::<0x09>(x);
    let mut p = _mm512_set1_ps(POWER_OF_2[4]);
    for &c in POWER_OF_2[..4].iter().rev() {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, x)
}

/// 32 values, rounded: those of `low`, then those of `high`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 64 bytes, and all bits are valid
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Rounds rows of 16 values to rows of a left factor, [`STEP`] values each: 16 zeros follow.
///
/// # Safety
/// `from` holds `rows` rows and `to` has room for them; they do not overlap, and the processor has a
/// unit for bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn round_rows(from: *const f32, rows: usize, to: *mut u16) {
    for i in 0..rows {
        // SAFETY: by the caller's contract
        unsafe {
            let values = _mm512_loadu_ps(from.add(i * LANES));
            let row = rounded(values, _mm512_setzero_ps());
            _mm512_storeu_si512(to.add(i * STEP).cast(), row);
        }
    }
}

/// The transpose of rows of [`round_rows`] as a right factor of [`super::HalfStep`], whose columns are
/// the rows. `rows` is a multiple of 16, and half a tile of zeros follows.
///
/// # Safety
/// As [`round_rows`]; `to` has room for half a tile for each 16 rows, and one more.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn rows_as_columns(from: *const u16, rows: usize, to: *mut u16) {
    for i in (0..rows).step_by(LANES) {
        let mut v = [_mm512_setzero_si512(); LANES];
        // SAFETY: by the caller's contract
        unsafe {
            for (j, v) in v.iter_mut().enumerate() {
                *v = _mm512_loadu_si512(from.add((i + j) * STEP).cast());
            }
            for (j, v) in transpose(v)[..LANES / 2].iter().enumerate() {
                _mm512_storeu_si512(to.add(i * LANES + j * STEP).cast(), *v);
            }
        }
    }
    // SAFETY: by the caller's contract
    unsafe { to.add(rows * LANES).write_bytes(0, HALF_TILE) };
}

/// Pairs of rows of 16 values, as a right factor whose sum runs over the rows: `[pair][16][2]`.
/// `rows` is a multiple of 2.
///
/// # Safety
/// As [`round_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn round_pairs(from: *const f32, rows: usize, to: *mut u16) {
    for i in (0..rows).step_by(2) {
        // SAFETY: by the caller's contract
        unsafe {
            let row = |i: usize| _mm512_loadu_ps(from.add(i * LANES));
            let pairs = pair(row(i), row(i + 1));
            _mm512_storeu_si512(to.add(i * LANES).cast(), pairs);
        }
    }
}

/// The rounded values of `a` and `b` in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn pair(a: __m512, b: __m512) -> __m512i {
    let bits = rounded(a, b);
    let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(bits));
    let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(bits));
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}

/// 32 rows of 16 values, each times its factor, as a step of the left factor of their transpose: 16
/// rows of [`STEP`] values, `row` values apart.
///
/// # Safety
/// As [`round_rows`] for 32 rows, and there are as many factors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn transpose_scaled(
    from: *const f32,
    factors: *const f32,
    (to, row): (*mut u16, usize),
) {
    // SAFETY: by the caller's contract
    unsafe {
        let scaled = |i: usize| {
            let values = _mm512_loadu_ps(from.add(i * LANES));
            _mm512_mul_ps(values, _mm512_set1_ps(*factors.add(i)))
        };
        let mut pairs = [_mm512_setzero_si512(); LANES];
        for (i, pairs) in pairs.iter_mut().enumerate() {
            *pairs = pair(scaled(2 * i), scaled(2 * i + 1));
        }
        for (i, values) in transpose(pairs).into_iter().enumerate() {
            _mm512_storeu_si512(to.add(i * row).cast(), values);
        }
    }
}

/// The sums or maxima of the lanes of sixteen vectors, by `of` of two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn across(v: &[__m512; LANES], of: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    let doubles = |v| _mm512_castps_pd(v);
    let mut w = *v;
    for i in 0..8 {
        let (a, b) = (v[2 * i], v[2 * i + 1]);
        w[i] = of(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for i in 0..4 {
        let (a, b) = (doubles(w[2 * i]), doubles(w[2 * i + 1]));
        let halves = [_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b)];
        w[i] = of(_mm512_castpd_ps(halves[0]), _mm512_castpd_ps(halves[1]));
    }
    // four lanes hold a quarter of four rows
    for count in [2, 1] {
        for i in 0..count {
            let (a, b) = (w[2 * i], w[2 * i + 1]);
            let even = _mm512_shuffle_f32x4::<0x88>(a, b);
            w[i] = of(even, _mm512_shuffle_f32x4::<0xdd>(a, b));
        }
    }
    w[0]
}

impl Rows {
    /// The vector number `vector` of a row.
    ///
    /// # Safety
    /// It is one of the rows'.
    #[inline]
    unsafe fn at(&self, row: usize, vector: usize) -> *mut f32 {
        // SAFETY: by the caller's contract
        unsafe { self.values.add(row * self.stride + vector * LANES) }
    }

    /// For each row, not less than its largest value times `factor`, with the opposite sign. It is a
    /// little more, so that no rounding makes its sum with a product positive.
    ///
    /// # Safety
    /// The rows can be read; the processor has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn largest(&self, factor: f32) -> [f32; LANES] {
        const MARGIN: f32 = 1.0 / (1 << 22) as f32;
        // SAFETY: by the caller's contract, and the result is one vector
        unsafe {
            let mut largest = [_mm512_setzero_ps(); LANES];
            for (row, largest) in largest.iter_mut().enumerate() {
                let mut two = [0, 1].map(|i| _mm512_loadu_ps(self.at(row, i)));
                for vector in (2..self.vectors).step_by(2) {
                    for (i, two) in two.iter_mut().enumerate() {
                        *two = _mm512_max_ps(*two, _mm512_loadu_ps(self.at(row, vector + i)));
                    }
                }
                *largest = _mm512_max_ps(two[0], two[1]);
            }
            let largest = across(&largest, |a, b| _mm512_max_ps(a, b));
            let largest = _mm512_mul_ps(largest, _mm512_set1_ps(factor));
            let margin = _mm512_mul_ps(_mm512_abs_ps(largest), _mm512_set1_ps(MARGIN));
            let sum = _mm512_add_ps(largest, margin);
            std::mem::transmute(_mm512_sub_ps(_mm512_setzero_ps(), sum))
        }
    }
}

/// Weights of a softmax of sixteen rows before the division, rounded to a left factor: 2 to the power
/// of the distance of `factor` times a score from the largest of its row. Writes one over the sum of
/// each row's weights to `inverse`.
///
/// # Safety
/// `scores` holds sixteen rows, `weights` has room for as many of `row` values (the first ones of
/// each are written), `inverse` for a value of each. The processor has a unit for bf16, and nothing
/// overlaps.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn softmax(
    scores: Rows,
    factor: f32,
    (weights, row): (*mut u16, usize),
    inverse: *mut f32,
) {
    // SAFETY: by the caller's contract
    unsafe {
        let (largest, factor) = (scores.largest(factor), _mm512_set1_ps(factor));
        let mut sums = [_mm512_setzero_ps(); LANES];
        for (i, sum) in sums.iter_mut().enumerate() {
            let largest = _mm512_set1_ps(largest[i]);
            let mut two = [_mm512_setzero_ps(); 2];
            for vector in (0..scores.vectors).step_by(2) {
                let pair = [0, 1].map(|j| {
                    let score = _mm512_loadu_ps(scores.at(i, vector + j));
                    power_of_2(_mm512_fmadd_ps(score, factor, largest))
                });
                two = [0, 1].map(|j| _mm512_add_ps(two[j], pair[j]));
                let to = weights.add(i * row + vector * LANES);
                _mm512_storeu_si512(to.cast(), rounded(pair[0], pair[1]));
            }
            *sum = _mm512_add_ps(two[0], two[1]);
        }
        let sums = across(&sums, |a, b| _mm512_add_ps(a, b));
        _mm512_storeu_ps(inverse, _mm512_div_ps(_mm512_set1_ps(1.0), sums));
    }
}

/// Stores the rounded values of two rows, of two vectors each, as a row of pairs in two tiles of a
/// right factor, `group` values apart, with columns at [`super::paired_column`]. Returns the two
/// rounded rows.
///
/// # Safety
/// `to` has room in both tiles; the processor has AVX512-BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn store_pairs(values: [[__m512; 2]; 2], (to, group): (*mut u16, usize)) -> [__m512i; 2] {
    let [first, second] = values.map(|row| rounded(row[0], row[1]));
    // SAFETY: by the caller's contract
    unsafe {
        _mm512_storeu_si512(to.cast(), _mm512_unpacklo_epi16(first, second));
        let next = _mm512_unpackhi_epi16(first, second);
        _mm512_storeu_si512(to.add(group).cast(), next);
    }
    [first, second]
}

/// Weights of a softmax of sixteen rows as those of [`softmax`], in place of the scores and rounded to
/// pairs of rows of a right factor, whose sum runs over the rows: a tile for each vector of a row,
/// `group` values apart, with columns at [`super::paired_column`]. Writes one over the sum of each
/// row's weights to `inverse`, and the mean of their gradients, weighted by them, to `dots`.
///
/// # Safety
/// `scores` and `d_weights` hold sixteen rows; `pairs` has room for a tile for each vector, `inverse`
/// and `dots` for a value for each row. The processor has a unit for bf16, and nothing overlaps.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn softmax_pairs(
    (scores, d_weights): (Rows, Rows),
    factor: f32,
    (pairs, group): (*mut u16, usize),
    (inverse, dots): (*mut f32, *mut f32),
) {
    // SAFETY: by the caller's contract
    unsafe {
        let (largest, factor) = (scores.largest(factor), _mm512_set1_ps(factor));
        let (mut sums, mut products) = ([_mm512_setzero_ps(); LANES], [_mm512_setzero_ps(); LANES]);
        for i in (0..LANES).step_by(2) {
            let largest = [0, 1].map(|r| _mm512_set1_ps(largest[i + r]));
            let (mut sum, mut dot) = ([_mm512_setzero_ps(); 2], [_mm512_setzero_ps(); 2]);
            for vector in (0..scores.vectors).step_by(2) {
                let mut weights = [[_mm512_setzero_ps(); 2]; 2];
                for (r, row) in weights.iter_mut().enumerate() {
                    for (j, weight) in row.iter_mut().enumerate() {
                        let at = scores.at(i + r, vector + j);
                        let score = _mm512_loadu_ps(at);
                        *weight = power_of_2(_mm512_fmadd_ps(score, factor, largest[r]));
                        _mm512_storeu_ps(at, *weight);
                        sum[r] = _mm512_add_ps(sum[r], *weight);
                        let d = _mm512_loadu_ps(d_weights.at(i + r, vector + j));
                        dot[r] = _mm512_fmadd_ps(d, *weight, dot[r]);
                    }
                }
                store_pairs(weights, (pairs.add(vector * group + i * LANES), group));
            }
            sums[i..i + 2].copy_from_slice(&sum);
            products[i..i + 2].copy_from_slice(&dot);
        }
        let add = |a, b| _mm512_add_ps(a, b);
        let one_over = _mm512_div_ps(_mm512_set1_ps(1.0), across(&sums, add));
        _mm512_storeu_ps(inverse, one_over);
        _mm512_storeu_ps(dots, _mm512_mul_ps(one_over, across(&products, add)));
    }
}

/// Gradients of scores of sixteen rows times the sum of their row's weights, `weights * (d_weights -
/// dots)`, rounded twice: to a left factor with `row` values from one row to the next, and to pairs
/// of rows as those of [`softmax_pairs`].
///
/// # Safety
/// As [`softmax_pairs`], after it, and `rows` has room for the rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn score_gradients(
    (weights, d_weights): (Rows, Rows),
    dots: *const f32,
    (rows, row): (*mut u16, usize),
    (pairs, group): (*mut u16, usize),
) {
    for i in (0..LANES).step_by(2) {
        // SAFETY: by the caller's contract
        unsafe {
            let dot = [0, 1].map(|r| _mm512_set1_ps(*dots.add(i + r)));
            for vector in (0..weights.vectors).step_by(2) {
                let mut gradients = [[_mm512_setzero_ps(); 2]; 2];
                for (r, gradients) in gradients.iter_mut().enumerate() {
                    for (j, gradient) in gradients.iter_mut().enumerate() {
                        let d = _mm512_loadu_ps(d_weights.at(i + r, vector + j));
                        let weight = _mm512_loadu_ps(weights.at(i + r, vector + j));
                        *gradient = _mm512_mul_ps(weight, _mm512_sub_ps(d, dot[r]));
                    }
                }
                let at = pairs.add(vector * group + i * LANES);
                for (r, values) in store_pairs(gradients, (at, group)).into_iter().enumerate() {
                    let to = rows.add((i + r) * row + vector * LANES);
                    _mm512_storeu_si512(to.cast(), values);
                }
            }
        }
    }
}
