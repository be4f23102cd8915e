//! Products of tiles of 16 x 16 values and the softmax of sixteen rows of them. A matrix of sixteen
//! rows and many columns is a row of tiles, `[tile][row][16]`; one of many rows and sixteen columns
//! is the same in memory, `[row][16]`. So all distances within a tile are constants, and all rows
//! of a product are at hand in the L1 cache. Depends on the vectors alone.

use super::super::simd::{LANES, Registers, Simd};

/// Values of a tile.
pub const TILE: usize = LANES * LANES;
/// Kernels take up to this many tiles at a time: rows of tiles have a multiple of it.
pub const VECTORS: usize = 4;

/// The base-2 logarithm of a score's share of the largest is at least this: a smaller one gives the
/// bits of the limit, which is 1e-19 and vanishes in every sum with the largest, 1.
const LIMIT: f32 = -63.0;
/// Adding it (1.5 x 2^23) rounds to the nearest integer, whose lowest bits are then the lowest bits
/// of the sum.
const MAGIC: f32 = 12_582_912.0;
/// (2^r - 1) / r by powers of r, for |r| up to 1/2: a fit with an error of 1.1e-7 of 2^r.
#[allow(clippy::excessive_precision)] // the digits of the fit
const POWER_OF_2: [f32; 5] = [
    6.931469776e-1,
    2.402224209e-1,
    5.550733744e-2,
    9.671512661e-3,
    1.326472717e-3,
];

/// 2^x for x from [`LIMIT`] to 0, within 2e-7 of the value. A smaller x is taken as the limit.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn power_of_2<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let x = S::max(S::splat(LIMIT), x);
        let at = S::add(x, S::splat(MAGIC));
        let r = S::sub(x, S::sub(at, S::splat(MAGIC)));
        let mut p = S::splat(POWER_OF_2[4]);
        for &c in POWER_OF_2[..4].iter().rev() {
            p = S::fma(p, r, S::splat(c));
        }
        S::times_power_of_2(S::fma(p, r, S::splat(1.0)), at)
    }
}

/// Transposes each of `tiles` tiles; `from` may be `to`.
///
/// # Safety
/// As [`Simd`]. `from` holds the tiles and `to` has room for them. They are the same or do not
/// overlap, and no other thread uses `to`.
#[inline(always)]
pub unsafe fn transpose_tiles<S: Simd>(from: *const f32, to: *mut f32, tiles: usize) {
    for tile in (0..tiles).map(|i| i * TILE) {
        // SAFETY: the caller's contract
        unsafe {
            let mut rows = [S::splat(0.0); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = S::load(from.add(tile + i * LANES));
            }
            for (i, &row) in S::transpose(rows).iter().enumerate() {
                S::store(to.add(tile + i * LANES), row);
            }
        }
    }
}

/// Adds to R rows of V tiles the products of the rows of a tile `a` with V tiles of `b`:
/// `acc[r][v] += sum over i of a[r][i] b[v][i]`, where `a[r][i]` is at `r * ROW + i * COLUMN`.
///
/// # Safety
/// As [`Simd`]. `a` and `b` can be read.
#[inline(always)]
unsafe fn multiply<
    S: Simd,
    const R: usize,
    const V: usize,
    const ROW: usize,
    const COLUMN: usize,
>(
    a: *const f32,
    b: *const f32,
    acc: &mut [[S::V; V]; R],
) {
    // If the compiler knew this number, it would unroll the loop, compute one row after the other,
    // and spill the vectors of `b` between them (in 16 registers, at 0.7 of the speed).
    for i in 0..std::hint::black_box(LANES) {
        // SAFETY: the caller's contract
        unsafe {
            let mut lanes = [S::splat(0.0); V];
            for (v, lanes) in lanes.iter_mut().enumerate() {
                *lanes = S::load(b.add(v * TILE + i * LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*a.add(r * ROW + i * COLUMN));
                for (acc, &lanes) in acc.iter_mut().zip(&lanes) {
                    *acc = S::fma(x, lanes, *acc);
                }
            }
        }
    }
}

/// A matrix of sixteen rows that is computed a few rows of a few tiles at a time.
pub trait TileProduct: Copy {
    /// Computes R rows from `row` on in V tiles from `tile` on.
    ///
    /// # Safety
    /// As [`Simd`], and the memory that the implementing type names.
    unsafe fn part<S: Simd, const R: usize, const V: usize>(self, row: usize, tile: usize);
}

/// Computes `tiles` tiles of a product, a multiple of [`VECTORS`].
///
/// # Safety
/// As [`TileProduct::part`] of all its parts.
#[inline(always)]
pub unsafe fn compute<S: Simd, P: TileProduct>(product: P, tiles: usize) {
    // SAFETY: the number of tiles is a multiple of the step, and so is the number of rows; the
    // caller's contract
    unsafe {
        match S::REGISTERS {
            Registers::Many => compute_parts::<S, P, 4, VECTORS>(product, tiles),
            Registers::Eight => compute_parts::<S, P, 2, 2>(product, tiles),
            Registers::Few => compute_parts::<S, P, 1, 1>(product, tiles),
        }
    }
}

/// [`compute`] in parts of R rows and V tiles.
///
/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn compute_parts<S: Simd, P: TileProduct, const R: usize, const V: usize>(
    product: P,
    tiles: usize,
) {
    for tile in (0..tiles).step_by(V) {
        for row in (0..LANES).step_by(R) {
            // SAFETY: the caller's contract
            unsafe { product.part::<S, R, V>(row, tile) };
        }
    }
}

/// The scores of sixteen queries: `scores[tile] = start + q k[tile]`, and the largest of each query
/// so far in each lane.
#[derive(Clone, Copy)]
pub struct Scores {
    /// `[16 queries][16 channels]`
    pub q: *const f32,
    /// `[tile][channel][16 keys]`
    pub k: *const f32,
    /// What the scores of a key start with: `[key]`.
    pub start: *const f32,
    /// `[tile][query][16 keys]`
    pub scores: *mut f32,
    /// `[query][16]`; written by the parts of the first tile.
    pub largest: *mut f32,
}

impl TileProduct for Scores {
    #[inline(always)]
    unsafe fn part<S: Simd, const R: usize, const V: usize>(self, row: usize, tile: usize) {
        // SAFETY: the caller's contract
        unsafe {
            let mut acc = [[S::splat(0.0); V]; R];
            for acc in &mut acc {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(self.start.add((tile + v) * LANES));
                }
            }
            let (q, k) = (self.q.add(row * LANES), self.k.add(tile * TILE));
            multiply::<S, R, V, LANES, 1>(q, k, &mut acc);
            for (r, acc) in acc.iter().enumerate() {
                let at = (row + r) * LANES;
                let mut largest = acc[0];
                for (v, &score) in acc.iter().enumerate() {
                    largest = S::max(largest, score);
                    S::store(self.scores.add((tile + v) * TILE + at), score);
                }
                if tile > 0 {
                    largest = S::max(largest, S::load(self.largest.add(at)));
                }
                S::store(self.largest.add(at), largest);
            }
        }
    }
}

/// The gradients of the softmax's weights, `d_weights[tile] = d v[tile]`, and the sums of the
/// products of both in each lane.
#[derive(Clone, Copy)]
pub struct WeightGradients {
    /// The output's gradient, `[16 queries][16 channels]`.
    pub d: *const f32,
    /// `[tile][channel][16 keys]`
    pub v: *const f32,
    /// The weights, `[tile][query][16 keys]`.
    pub weights: *const f32,
    /// `[tile][query][16 keys]`
    pub d_weights: *mut f32,
    /// `[query][16]`; written by the parts of the first tile.
    pub dots: *mut f32,
}

impl TileProduct for WeightGradients {
    #[inline(always)]
    unsafe fn part<S: Simd, const R: usize, const V: usize>(self, row: usize, tile: usize) {
        // SAFETY: the caller's contract
        unsafe {
            let mut acc = [[S::splat(0.0); V]; R];
            let (d, v) = (self.d.add(row * LANES), self.v.add(tile * TILE));
            multiply::<S, R, V, LANES, 1>(d, v, &mut acc);
            for (r, acc) in acc.iter().enumerate() {
                let at = (row + r) * LANES;
                let mut dots = S::splat(0.0);
                if tile > 0 {
                    dots = S::load(self.dots.add(at));
                }
                for (v, &d) in acc.iter().enumerate() {
                    let to = (tile + v) * TILE + at;
                    dots = S::fma(d, S::load(self.weights.add(to)), dots);
                    S::store(self.d_weights.add(to), d);
                }
                S::store(self.dots.add(at), dots);
            }
        }
    }
}

/// `out[tile] += transposed(a) b[tile]`.
#[derive(Clone, Copy)]
pub struct AddTransposed {
    /// One tile.
    pub a: *const f32,
    /// The other factors.
    pub b: *const f32,
    /// The sums.
    pub out: *mut f32,
}

impl TileProduct for AddTransposed {
    #[inline(always)]
    unsafe fn part<S: Simd, const R: usize, const V: usize>(self, row: usize, tile: usize) {
        // SAFETY: the caller's contract
        unsafe {
            let out = self.out.add(tile * TILE + row * LANES);
            let mut acc = [[S::splat(0.0); V]; R];
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(out.add(v * TILE + r * LANES));
                }
            }
            multiply::<S, R, V, 1, LANES>(self.a.add(row), self.b.add(tile * TILE), &mut acc);
            for (r, acc) in acc.iter().enumerate() {
                for (v, &acc) in acc.iter().enumerate() {
                    S::store(out.add(v * TILE + r * LANES), acc);
                }
            }
        }
    }
}

/// The sum over all tiles of the products `a[tile] b[tile]`, one tile.
///
/// # Safety
/// As [`Simd`]. `a` and `b` hold `tiles` tiles, `out` has room for one and overlaps neither, and no
/// other thread uses it.
#[inline(always)]
pub unsafe fn sum_products<S: Simd>(a: *const f32, b: *const f32, tiles: usize, out: *mut f32) {
    // SAFETY: the caller's contract
    unsafe {
        match S::REGISTERS {
            Registers::Many => sum_products_of_rows::<S, LANES>(a, b, tiles, out),
            Registers::Eight => sum_products_of_rows::<S, 4>(a, b, tiles, out),
            Registers::Few => sum_products_of_rows::<S, 1>(a, b, tiles, out),
        }
    }
}

/// [`sum_products`], R rows at a time.
///
/// # Safety
/// As [`sum_products`].
#[inline(always)]
unsafe fn sum_products_of_rows<S: Simd, const R: usize>(
    a: *const f32,
    b: *const f32,
    tiles: usize,
    out: *mut f32,
) {
    for row in (0..LANES).step_by(R) {
        // SAFETY: the caller's contract
        unsafe {
            let mut acc = [[S::splat(0.0)]; R];
            for tile in (0..tiles).map(|i| i * TILE) {
                multiply::<S, R, 1, LANES, 1>(a.add(tile + row * LANES), b.add(tile), &mut acc);
            }
            for (r, &[acc]) in acc.iter().enumerate() {
                S::store(out.add((row + r) * LANES), acc);
            }
        }
    }
}

/// Writes the sums of the sixteen rows of a tile to `out[0..16]`.
///
/// # Safety
/// As [`Simd`]. The tile can be read, and `out` has room for a vector that no other thread uses.
#[inline(always)]
pub unsafe fn sum_rows<S: Simd>(tile: *const f32, out: *mut f32) {
    for half in [0, 8] {
        // SAFETY: the caller's contract
        unsafe {
            let mut rows = [S::splat(0.0); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = S::load(tile.add((half + i) * LANES));
            }
            S::sums(&rows, out.add(half));
        }
    }
}

/// The largest value of each of the sixteen rows of a tile.
///
/// # Safety
/// As [`Simd`], and the tile can be read.
#[inline(always)]
unsafe fn largest_of_rows<S: Simd>(tile: *const f32) -> S::V {
    // SAFETY: the caller's contract
    unsafe {
        let mut rows = [S::splat(0.0); LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = S::load(tile.add(i * LANES));
        }
        let mut columns = S::transpose(rows);
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                columns[i] = S::max(columns[i], columns[i + width]);
            }
        }
        columns[0]
    }
}

/// Replaces the scores of sixteen queries by the weights of their softmax before the division: 2 to
/// the power of the distance from the largest. Writes one over the sums of the weights to
/// `inverse[0..16]`. `rows` is `[query][16]`: the largest scores of each lane, and afterwards the
/// sums of each lane.
///
/// # Safety
/// As [`Simd`]. All can be read and written, overlap nothing, and no other thread uses them.
#[inline(always)]
pub unsafe fn softmax<S: Simd>(scores: *mut f32, tiles: usize, rows: *mut f32, inverse: *mut f32) {
    // SAFETY: the caller's contract
    unsafe {
        S::store(inverse, largest_of_rows::<S>(rows));
        for row in 0..LANES {
            let largest = S::splat(*inverse.add(row));
            let mut sum = S::splat(0.0);
            for tile in 0..tiles {
                let at = scores.add(tile * TILE + row * LANES);
                let weight = power_of_2::<S>(S::sub(S::load(at), largest));
                S::store(at, weight);
                sum = S::add(sum, weight);
            }
            S::store(rows.add(row * LANES), sum);
        }
        sum_rows::<S>(rows, inverse);
        S::store(inverse, S::div(S::splat(1.0), S::load(inverse)));
    }
}

/// Replaces the gradients of sixteen queries' weights by those of their scores, times the sums of
/// the weights: `weights * (d_weights - dots)`, with `dots[0..16]` of the queries.
///
/// # Safety
/// As [`Simd`]. All can be read; no other thread uses the gradients, and nothing overlaps them.
#[inline(always)]
pub unsafe fn softmax_back<S: Simd>(
    weights: *const f32,
    d_weights: *mut f32,
    tiles: usize,
    dots: *const f32,
) {
    for row in 0..LANES {
        // SAFETY: the caller's contract
        unsafe {
            let dot = S::splat(*dots.add(row));
            for tile in 0..tiles {
                let at = tile * TILE + row * LANES;
                let d = S::sub(S::load(d_weights.add(at)), dot);
                S::store(d_weights.add(at), S::mul(d, S::load(weights.add(at))));
            }
        }
    }
}

/// Multiplies the sixteen rows of a tile by `factors[0..16]`.
///
/// # Safety
/// As [`Simd`]. The tile and the factors can be read, `to` has room for a tile, and no other thread
/// uses it.
#[inline(always)]
pub unsafe fn scale_rows<S: Simd>(from: *const f32, factors: *const f32, to: *mut f32) {
    for row in 0..LANES {
        // SAFETY: the caller's contract
        unsafe {
            let value = S::load(from.add(row * LANES));
            let scaled = S::mul(value, S::splat(*factors.add(row)));
            S::store(to.add(row * LANES), scaled);
        }
    }
}
