//! The products of transformed tiles with transformed weights, and the transform of the products
//! into outputs.

use super::super::simd::{LANES, Registers, Simd};
use super::{GROUP, IN, POINTS, Points, output_line, point_stride};

/// Tiles multiplied at a time: 16 accumulators, if there are 32 registers and a tile has two
/// vectors of lanes.
pub const CHUNK: usize = 8;

/// A chunk of transformed tiles, and the room for their products.
#[derive(Clone, Copy)]
pub struct Chunk {
    /// `[POINTS][CHUNK][k]`, with [`point_stride`] values from one point to the next.
    pub v: *const f32,
    /// Input channels.
    pub k: usize,
    /// Tiles in use, at most [`CHUNK`].
    pub count: usize,
    /// `[POINTS][CHUNK][GROUP]`, with [`point_stride`] values from one point to the next.
    pub m: *mut f32,
}

/// f32 elements of [`Chunk::m`].
pub fn products() -> usize {
    POINTS * point_stride(CHUNK * GROUP)
}

/// The products of P tiles at one point with V vectors of lanes; K is `k` as a constant, or 0 for
/// any `k`.
///
/// # Safety
/// As [`Simd`]; `v` holds `[P][k]` values and `u` holds `[k][V * 16]`. `m` has room for
/// `[P][V * 16]`, overlaps neither, and no other thread uses it.
#[inline(always)]
unsafe fn multiply_tile<S: Simd, const P: usize, const V: usize, const K: usize>(
    v: *const f32,
    k: usize,
    u: *const f32,
    m: *mut f32,
) {
    // SAFETY: depths stay below `k`, tiles below P and vectors below V, for which the caller
    // guarantees the memory
    unsafe {
        let depth = if K == 0 { k } else { K };
        let mut acc = [[S::splat(0.0); V]; P];
        let mut weights = u;
        for i in 0..depth {
            let mut w = [S::splat(0.0); V];
            for (n, w) in w.iter_mut().enumerate() {
                *w = S::load(weights.add(n * LANES));
            }
            for (p, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*v.add(p * depth + i));
                for (acc, &w) in acc.iter_mut().zip(&w) {
                    *acc = S::fma(x, w, *acc);
                }
            }
            weights = weights.add(V * LANES);
        }
        for (p, acc) in acc.iter().enumerate() {
            for (n, &acc) in acc.iter().enumerate() {
                S::store(m.add((p * V + n) * LANES), acc);
            }
        }
    }
}

/// Multiplies a chunk at all points: `m = v u` for weights `u[point][k][V * 16]`.
///
/// # Safety
/// As [`multiply_and_store`].
#[inline(always)]
unsafe fn multiply<S: Simd, const V: usize, const K: usize>(c: &Chunk, u: *const f32) {
    // SAFETY: the chunk has room for CHUNK tiles at every point, in use or not. Every step width
    // divides CHUNK and `count` is at most CHUNK, so no step goes past the last tile.
    unsafe {
        let k = if K == 0 { c.k } else { K };
        for point in 0..POINTS {
            let (v, m) = (
                c.v.add(point * point_stride(CHUNK * k)),
                c.m.add(point * point_stride(CHUNK * V * LANES)),
            );
            let u = u.add(point * k * V * LANES);
            let at = |p: usize| (v.add(p * k), m.add(p * V * LANES));
            match S::REGISTERS {
                Registers::Many if c.count > CHUNK / 2 => {
                    multiply_tile::<S, CHUNK, V, K>(v, k, u, m)
                }
                Registers::Many => multiply_tile::<S, { CHUNK / 2 }, V, K>(v, k, u, m),
                Registers::Eight if V == 1 => {
                    for (v, m) in (0..c.count).step_by(4).map(at) {
                        multiply_tile::<S, 4, V, K>(v, k, u, m);
                    }
                }
                Registers::Eight => {
                    for (v, m) in (0..c.count).step_by(2).map(at) {
                        multiply_tile::<S, 2, V, K>(v, k, u, m);
                    }
                }
                Registers::Few => {
                    for (v, m) in (0..c.count).map(at) {
                        multiply_tile::<S, 1, V, K>(v, k, u, m);
                    }
                }
            }
        }
    }
}

/// The output rows of a chunk.
#[derive(Clone, Copy)]
pub struct Output<const OUT: usize> {
    /// First pixel of each row, at the first lane of the group; the lower rows may be missing.
    pub rows: [Option<*mut f32>; OUT],
    /// f32 values from one pixel to the next.
    pub stride: usize,
    /// Column of the chunk's first pixel.
    pub x: usize,
    /// Pixels of a row.
    pub w: usize,
    /// Whether to store past the caches.
    pub non_temporal: bool,
}

/// Computes and stores the outputs of a chunk, A^T m A plus bias, for vector `n` of the `V` vectors
/// of lanes.
///
/// # Safety
/// As [`multiply_and_store`].
#[inline(always)]
pub(super) unsafe fn store_outputs<S: Simd, const V: usize, const OUT: usize>(
    c: &Chunk,
    n: usize,
    bias: S::V,
    mut out: Output<OUT>,
) {
    // SAFETY: vector `n` lies inside the products and the outputs, by the caller's contract
    unsafe {
        for row in out.rows.iter_mut().flatten() {
            *row = row.add(n * LANES);
        }
        let m = Points {
            base: c.m.add(n * LANES),
            point_stride: point_stride(CHUNK * V * LANES),
            tile_stride: V * LANES,
        };
        store_tiles::<S, OUT>(m, c.count, bias, out);
    }
}

/// Computes and stores the outputs of `count` tiles, A^T m A plus bias, for one vector of lanes.
///
/// # Safety
/// As [`Simd`]. A vector can be read at every point of the tiles. Every row of `out` that is not
/// missing has room for `w` pixels, `stride` values apart; it does not overlap the products, and no
/// other thread uses it. With `non_temporal`, pixels begin at multiples of 64 bytes.
#[inline(always)]
pub unsafe fn store_tiles<S: Simd, const OUT: usize>(
    m: Points,
    count: usize,
    bias: S::V,
    out: Output<OUT>,
) {
    // SAFETY: only products of the tiles in use are read, and nothing is written to pixels after
    // the end of a row or to a missing row
    unsafe {
        for tile in 0..count {
            let at =
                |point: usize| S::load(m.base.add(point * m.point_stride + tile * m.tile_stride));
            let mut columns = [[S::splat(0.0); OUT]; IN];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = output_line::<S, OUT>([
                    at(x),
                    at(IN + x),
                    at(2 * IN + x),
                    at(3 * IN + x),
                    at(4 * IN + x),
                    at(5 * IN + x),
                ]);
            }
            let [a, b, c, d, e, f] = columns;
            let x = out.x + OUT * tile;
            for (y, row) in out.rows.iter().enumerate() {
                let Some(row) = row else { continue };
                let values = output_line::<S, OUT>([a[y], b[y], c[y], d[y], e[y], f[y]]);
                for (i, value) in values.into_iter().enumerate() {
                    if x + i < out.w {
                        let (to, value) = (row.add((x + i) * out.stride), S::add(value, bias));
                        if out.non_temporal {
                            S::stream(to, value)
                        } else {
                            S::store(to, value)
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies one chunk of tiles with `u[point][k][16 or 32]`, one or `two` vectors of lanes,
/// transforms the products into outputs, and stores them with the bias added. K is `k` as a
/// constant, or 0 for any `k`.
///
/// # Safety
/// As [`Simd`]. The chunk has room for CHUNK tiles of input at every point and for their products;
/// tiles from `count` (at most CHUNK) on may hold any values. `u` and `bias` hold the lanes. Every
/// row that is not missing has room for `w` pixels, `stride` values apart. The rows and the
/// products overlap nothing else, and no other thread uses them. With `non_temporal`, pixels begin
/// at multiples of 64 bytes.
#[inline(always)]
pub unsafe fn multiply_and_store<S: Simd, const K: usize, const OUT: usize>(
    c: &Chunk,
    u: *const f32,
    two: bool,
    bias: *const f32,
    out: Output<OUT>,
) {
    // SAFETY: the caller's contract covers all pointers; the bias has as many vectors as the
    // weights
    unsafe {
        if two {
            multiply::<S, 2, K>(c, u);
            for n in 0..2 {
                store_outputs::<S, 2, OUT>(c, n, S::load(bias.add(n * LANES)), out);
            }
        } else {
            multiply::<S, 1, K>(c, u);
            store_outputs::<S, 1, OUT>(c, 0, S::load(bias), out);
        }
    }
}
