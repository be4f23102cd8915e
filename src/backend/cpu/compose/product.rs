//! Products of small matrices in register tiles, in f32 or f64, on rows of the second factor.
//! Depends on the vectors alone. Each value is one chain of multiply-adds in the order of the sum,
//! so its bits do not depend on its place in a tile.

use super::super::simd::{LANES, Registers, Simd};

/// How a product computes: the types of its factors, and the vectors.
pub trait Arithmetic {
    /// Elements of the first factor and of the product.
    type Value: Copy;
    /// Elements of the second factor.
    type Factor: Copy;
    /// Lanes of a vector.
    const LANES: usize;
    /// The vector.
    type Vector<S: Simd>: Copy;
    /// `x` in every lane.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn splat<S: Simd>(x: Self::Value) -> Self::Vector<S>;
    /// All lanes 0.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn zero<S: Simd>() -> Self::Vector<S>;
    /// Loads a vector of the second factor.
    ///
    /// # Safety
    /// As [`Simd`], and a vector can be read at `p`.
    unsafe fn load<S: Simd>(p: *const Self::Factor) -> Self::Vector<S>;
    /// a * b + c.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn fma<S: Simd>(
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// Stores a vector of the product.
    ///
    /// # Safety
    /// As [`Simd`], and a vector can be written at `p`.
    unsafe fn store<S: Simd>(p: *mut Self::Value, v: Self::Vector<S>);
}

/// All in f32.
pub struct Single;

impl Arithmetic for Single {
    type Value = f32;
    type Factor = f32;
    const LANES: usize = LANES;
    type Vector<S: Simd> = S::V;
    #[inline(always)]
    unsafe fn splat<S: Simd>(x: f32) -> S::V {
        // SAFETY: the caller guarantees that the processor has the instructions of S
        unsafe { S::splat(x) }
    }
    #[inline(always)]
    unsafe fn zero<S: Simd>() -> S::V {
        // SAFETY: as above
        unsafe { S::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: as above, and a vector can be read at `p`
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn fma<S: Simd>(a: S::V, b: S::V, c: S::V) -> S::V {
        // SAFETY: the caller guarantees that the processor has the instructions of S
        unsafe { S::fma(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f32, v: S::V) {
        // SAFETY: as above, and a vector can be written at `p`
        unsafe { S::store(p, v) }
    }
}

/// All in f64.
pub struct Double;

impl Arithmetic for Double {
    type Value = f64;
    type Factor = f64;
    const LANES: usize = LANES / 2;
    type Vector<S: Simd> = S::D;
    #[inline(always)]
    unsafe fn splat<S: Simd>(x: f64) -> S::D {
        // SAFETY: the caller guarantees that the processor has the instructions of S
        unsafe { S::splat_double(x) }
    }
    #[inline(always)]
    unsafe fn zero<S: Simd>() -> S::D {
        // SAFETY: as above
        unsafe { S::splat_double(0.0) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f64) -> S::D {
        // SAFETY: as above, and a vector can be read at `p`
        unsafe { S::load_doubles(p) }
    }
    #[inline(always)]
    unsafe fn fma<S: Simd>(a: S::D, b: S::D, c: S::D) -> S::D {
        // SAFETY: the caller guarantees that the processor has the instructions of S
        unsafe { S::fma_doubles(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f64, v: S::D) {
        // SAFETY: as above, and a vector can be written at `p`
        unsafe { S::store_doubles(p, v) }
    }
}

/// In f64, with a second factor in f32.
pub struct Widened;

impl Arithmetic for Widened {
    type Value = f64;
    type Factor = f32;
    const LANES: usize = LANES / 2;
    type Vector<S: Simd> = S::D;
    #[inline(always)]
    unsafe fn splat<S: Simd>(x: f64) -> S::D {
        // SAFETY: the caller guarantees that the processor has the instructions of S
        unsafe { S::splat_double(x) }
    }
    #[inline(always)]
    unsafe fn zero<S: Simd>() -> S::D {
        // SAFETY: as above
        unsafe { S::splat_double(0.0) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::D {
        // SAFETY: as above, and a vector can be read at `p`
        unsafe { S::widen(p) }
    }
    #[inline(always)]
    unsafe fn fma<S: Simd>(a: S::D, b: S::D, c: S::D) -> S::D {
        // SAFETY: the caller guarantees that the processor has the instructions of S
        unsafe { S::fma_doubles(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f64, v: S::D) {
        // SAFETY: as above, and a vector can be written at `p`
        unsafe { S::store_doubles(p, v) }
    }
}

/// The product `out[r][n] = sum over j, k of a[r][j, k] * b[j, k][n]`, with one or two levels of
/// the sum.
pub struct Product<M: Arithmetic> {
    /// Element `r * STEP + j * a_steps[0] + k * a_steps[1]` is `a[r][j, k]`.
    pub a: *const M::Value,
    /// See `a`.
    pub a_steps: [usize; 2],
    /// Element `j * b_steps[0] + k * b_steps[1] + n` is `b[j, k][n]`.
    pub b: *const M::Factor,
    /// See `b`.
    pub b_steps: [usize; 2],
    /// Numbers of j and k.
    pub depth: [usize; 2],
    /// Number of n, at least one vector.
    pub columns: usize,
    /// Element `r * out_step + n` is `out[r][n]`.
    pub out: *mut M::Value,
    /// See `out`.
    pub out_step: usize,
}

impl<M: Arithmetic> Product<M> {
    /// Computes the product for `ROWS` rows, 8 or 9, that are `STEP` elements apart in the first
    /// factor.
    ///
    /// # Safety
    /// As [`Simd`]. The factors can be read, and nothing writes them meanwhile; the product can be
    /// written, and no other thread uses it.
    #[inline(always)]
    pub unsafe fn run<S: Simd, const ROWS: usize, const STEP: usize>(&self) {
        // SAFETY: the rows below are `ROWS` rows; the rest is the contract of this function
        unsafe {
            match S::REGISTERS {
                Registers::Many => self.rows::<S, ROWS, 3, STEP>(0),
                Registers::Eight if ROWS == 9 && S::MEMORY_OPERANDS => {
                    for row in [0, 3, 6] {
                        self.rows::<S, 3, 2, STEP>(row);
                    }
                }
                Registers::Eight if ROWS == 9 => {
                    for row in [0, 3, 6] {
                        self.rows::<S, 3, 1, STEP>(row);
                    }
                }
                Registers::Eight => {
                    for row in [0, 4] {
                        self.rows::<S, 4, 1, STEP>(row);
                    }
                }
                Registers::Few => {
                    for row in 0..ROWS {
                        self.rows::<S, 1, 1, STEP>(row);
                    }
                }
            }
        }
    }

    /// The product for R rows from `row` on, V vectors at a time.
    ///
    /// # Safety
    /// As [`Product::run`] of these rows.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize, const V: usize, const STEP: usize>(&self, row: usize) {
        let (mut n, end) = (0, self.columns);
        // SAFETY: all vectors are inside the columns
        unsafe {
            while n + V * M::LANES <= end {
                self.tile::<S, R, V, STEP>(row, n);
                n += V * M::LANES;
            }
            while n + M::LANES <= end {
                self.tile::<S, R, 1, STEP>(row, n);
                n += M::LANES;
            }
            if n < end {
                // the last vector computes some columns again
                self.tile::<S, R, 1, STEP>(row, end - M::LANES);
            }
        }
    }

    /// The product for R rows from `row` on and V vectors from column `n` on.
    ///
    /// # Safety
    /// As [`Product::run`] of these rows and columns.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const V: usize, const STEP: usize>(
        &self,
        row: usize,
        n: usize,
    ) {
        // SAFETY: the caller guarantees that all elements of the two factors and of the product
        // that the sums name are in memory
        unsafe {
            let mut sums = [[M::zero::<S>(); V]; R];
            for j in 0..self.depth[0] {
                let mut a = self.a.add(row * STEP + j * self.a_steps[0]);
                let mut b = self.b.add(n + j * self.b_steps[0]);
                for _ in 0..self.depth[1] {
                    let mut vectors = [M::zero::<S>(); V];
                    for (v, vector) in vectors.iter_mut().enumerate() {
                        *vector = M::load::<S>(b.add(v * M::LANES));
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = M::splat::<S>(*a.add(r * STEP));
                        for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                            *sum = M::fma::<S>(x, vector, *sum);
                        }
                    }
                    a = a.wrapping_add(self.a_steps[1]);
                    b = b.wrapping_add(self.b_steps[1]);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    let to = self.out.add((row + r) * self.out_step + n + v * M::LANES);
                    M::store::<S>(to, sum);
                }
            }
        }
    }
}

/// Rows of each factor of a tile of [`dots`].
pub const DOT_ROWS: usize = 4;

/// The 16 scalar products of four rows `a` and four rows `b` of `len` values: `out[i * 4 + j]` is
/// that of `a[i]` and `b[j]`.
///
/// # Safety
/// As [`Simd`]. The rows can be read, and nothing writes them meanwhile.
#[inline(always)]
pub unsafe fn dots<S: Simd>(
    a: [*const f32; DOT_ROWS],
    b: [*const f32; DOT_ROWS],
    len: usize,
) -> [f32; DOT_ROWS * DOT_ROWS] {
    let mut out = [0.0; DOT_ROWS * DOT_ROWS];
    // SAFETY: vectors end below `len`, and the sums are 16 values
    unsafe {
        let mut sums = [S::splat(0.0); DOT_ROWS * DOT_ROWS];
        let mut n = 0;
        while n + LANES <= len {
            let x: [S::V; DOT_ROWS] = [0, 1, 2, 3].map(|i| S::load(a[i].add(n)));
            for j in 0..DOT_ROWS {
                let y = S::load(b[j].add(n));
                for i in 0..DOT_ROWS {
                    sums[i * DOT_ROWS + j] = S::fma(x[i], y, sums[i * DOT_ROWS + j]);
                }
            }
            n += LANES;
        }
        let (first, second) = sums.split_at(DOT_ROWS * DOT_ROWS / 2);
        for (half, sums) in [first, second].into_iter().enumerate() {
            let sums: &[S::V; 8] = sums.try_into().unwrap_or_else(|_| unreachable!());
            S::sums(sums, out.as_mut_ptr().add(8 * half));
        }
        for n in n..len {
            for (k, out) in out.iter_mut().enumerate() {
                *out += *a[k / DOT_ROWS].add(n) * *b[k % DOT_ROWS].add(n);
            }
        }
    }
    out
}
