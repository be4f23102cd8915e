//! Products of bf16 values with f32 sums, for mixed precision on the CPU: everything in memory
//! stays f32, and the inputs of a product are rounded to the nearest bf16, ties to even, in the
//! scratch of a task. There are kernels for AMX tiles and for AVX512-BF16 over the same layouts.
//! Depends on the instruction sets. Each sum is one fixed chain of additions, so its bits depend on
//! the unit, but neither on the place of a value in its tile nor on the number of threads.
//!
//! A product is C `[m, n]` += A `[m, k]` B `[k, n]`, in tiles of 16 rows, 16 columns and steps of
//! [`STEP`] in k. Rows of A are rows of bf16 values. B is packed: each step of 16 columns is one
//! tile `[STEP / 2][16 columns][2]`, pairs of values that follow each other in k.

#[cfg(target_arch = "x86_64")]
#[path = "x86.rs"]
mod own;
#[cfg(not(target_arch = "x86_64"))]
#[path = "absent.rs"]
mod own;
mod peak;
#[cfg(target_arch = "x86_64")]
mod softmax;
#[cfg(not(target_arch = "x86_64"))]
use own as softmax;
#[cfg(target_arch = "x86_64")]
mod speed;
#[cfg(not(target_arch = "x86_64"))]
use own as speed;
#[cfg(test)]
mod tests;
mod unit;

pub(super) use own::{pair_pixels, round_values, transpose_pixels};
pub use peak::bf16_peak;
pub(super) use softmax::{
    round_pairs, round_rows, rows_as_columns, score_gradients, softmax, softmax_pairs,
    transpose_scaled,
};
pub use unit::{BF16_VARIABLE, Bf16Unit};

use super::simd::LANES;

/// Values of k in one step of a product.
pub const STEP: usize = 32;
/// bf16 values of a tile of B: one step of 16 columns.
pub const TILE: usize = STEP * LANES;
/// bf16 values of half a step of 16 columns of B.
pub const HALF_TILE: usize = TILE / 2;
/// f32 values of a tile of C.
pub const SUMS: usize = LANES * LANES;

/// How the products of dense convolutions and of window attention are computed. Other operations
/// compute in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// In f32.
    #[default]
    F32,
    /// On factors that are rounded to bf16, with f32 sums.
    Bf16(Bf16Unit),
}

impl Products {
    /// The unit for bf16; `None` for f32.
    pub fn unit(self) -> Option<Bf16Unit> {
        match self {
            Products::F32 => None,
            Products::Bf16(unit) => Some(unit),
        }
    }
}

/// f32 values that take as much memory as `values` of bf16, rounded up to whole vectors of f32.
pub fn as_floats(values: usize) -> usize {
    values.div_ceil(2).next_multiple_of(LANES)
}

/// What a product adds to.
#[derive(Clone, Copy)]
pub enum Start {
    /// Zero.
    Zero,
    /// The same row of values, one for each column, in every row of C: a bias.
    Row(*const f32),
    /// What C holds.
    Sums,
}

/// One or two tiles of rows times one or two tiles of columns, summed over segments of k.
#[derive(Clone, Copy)]
pub struct BlockProduct<'a> {
    /// The first row of A in each segment.
    pub a: &'a [*const u16],
    /// bf16 values from one row of A to the next.
    pub a_row: usize,
    /// The packed tiles of the first 16 columns of B in each segment, one after the other.
    pub b: &'a [*const u16],
    /// bf16 values from the tiles of 16 columns to those of the next 16.
    pub b_group: usize,
    /// Steps of a segment.
    pub steps: usize,
    /// What the sums begin with.
    pub start: Start,
    /// The sums.
    pub c: *mut f32,
    /// f32 values from one row of C to the next.
    pub c_row: usize,
    /// f32 values from 16 rows of C to the next 16, and from 16 columns to the next 16.
    pub c_groups: (usize, usize),
}

/// One tile of rows times all tiles of columns, with half a step between them, as heads of 16
/// channels need it. The second half of each row of A is 0, so that the second half of a tile of B
/// can be anything that is finite: it is the first half of the next one, which saves half of the
/// cache.
#[derive(Clone, Copy)]
pub struct HalfStep {
    /// 16 rows of A, [`STEP`] values each.
    pub a: *const u16,
    /// [`HALF_TILE`] values of B for each 16 columns, and as many zeros after the last ones.
    pub b: *const u16,
    /// Tiles of columns, a multiple of 2.
    pub tiles: usize,
    /// What every row of C begins with; 0 without it.
    pub start: Option<*const f32>,
    /// The sums, with 16 columns after 16 columns.
    pub c: *mut f32,
    /// f32 values from one row of C to the next.
    pub c_row: usize,
}

/// Rows of f32 values: scores, or gradients of weights.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The first value of the first row.
    pub values: *mut f32,
    /// f32 values from one row to the next.
    pub stride: usize,
    /// Vectors of a row, a multiple of 4.
    pub vectors: usize,
}

/// The place in a right factor of [`softmax_pairs`] of column `i`: columns of two tiles are
/// interleaved four by four.
pub fn paired_column(i: usize) -> usize {
    i / STEP * STEP + i / 4 % 2 * LANES + i % STEP / 8 * 4 + i % 4
}

/// A unit that is ready for products on the calling thread; dropping it puts the unit back.
pub struct Session {
    unit: Bf16Unit,
    /// The state belongs to one thread.
    thread: std::marker::PhantomData<*const ()>,
}

impl Session {
    /// Prepares the unit on this thread, which has no other session.
    pub fn begin(unit: Bf16Unit) -> Session {
        own::begin(unit);
        Session {
            unit,
            thread: std::marker::PhantomData,
        }
    }

    /// Computes a product of `m` tiles of rows and `n` tiles of columns, 1 or 2 each.
    ///
    /// # Safety
    /// The pointers are valid for the sizes that the fields state: `16 m` rows and `16 n` columns,
    /// and `steps` steps in each of as many segments of `a` as of `b`. No other thread uses C.
    #[inline]
    pub unsafe fn product(&self, p: &BlockProduct<'_>, m: usize, n: usize) {
        debug_assert!(p.a.len() == p.b.len() && (1..=2).contains(&m) && (1..=2).contains(&n));
        // SAFETY: by the caller's contract; a unit exists only on processors that have it, and
        // `begin` prepared it
        unsafe {
            match (m, n) {
                (1, 1) => own::product::<1, 1>(self.unit, p),
                (1, _) => own::product::<1, 2>(self.unit, p),
                (_, 1) => own::product::<2, 1>(self.unit, p),
                _ => own::product::<2, 2>(self.unit, p),
            }
        }
    }
}

impl Session {
    /// Computes a product with half a step.
    ///
    /// # Safety
    /// The pointers are valid for the sizes that the fields state, and no other thread uses C.
    #[inline]
    pub unsafe fn half_step(&self, p: &HalfStep) {
        debug_assert!(p.tiles.is_multiple_of(2));
        // SAFETY: by the caller's contract; a unit exists only on processors that have it, and
        // `begin` prepared it
        unsafe { own::half_step(self.unit, p) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        own::end(self.unit);
    }
}
