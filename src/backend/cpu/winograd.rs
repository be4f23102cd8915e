//! Convolutions with fewer multiplications: Winograd's F(4x4, 3x3) and F(2x2, 5x5) (Lavin and Gray,
//! "Fast algorithms for convolutional neural networks", 2016) need four and 2.8 times fewer. A tile
//! of OUT x OUT outputs is computed from 6x6 inputs, with products at 36 transformed points in both
//! forms. Depends on the vectors alone. The bits of an output depend on where the tiles begin, so
//! inference uses these forms only if the overlapping parts of an image that it cuts (also called
//! tiles) begin at whole tiles.
//!
//! The polynomials are interpolated at 0, +-a, +-b and infinity, with a = sqrt(1/2) and b =
//! sqrt(2). As a b = 1, the transforms change the size of their values little, and the f32 errors
//! equal those of the direct form (with the usual points +-1 and +-2 they are 2 to 5 times larger).

mod blocks;
mod group;
mod multiply;
#[cfg(test)]
mod tests;

pub use blocks::{BlockValues, Lanes, multiply_blocks, outer_blocks, pack_lanes};
pub use group::{TileValues, group_tiles, multiply_tiles};
pub use multiply::{CHUNK, Chunk, Output, multiply_and_store, products, store_tiles};

use super::simd::{LANES, Simd};

/// Inputs of a tile along a side: OUT outputs under 7 - OUT taps.
pub const IN: usize = 6;
/// Transformed points of a tile.
pub const POINTS: usize = IN * IN;
/// Lanes multiplied at a time.
pub const GROUP: usize = 2 * LANES;

/// The points +-A and +-B.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;

/// Pixels from the first input of a tile to its first output: the taps left of the middle one.
pub const fn before(out: usize) -> usize {
    (IN - out) / 2
}

/// f32 values from one point to the next in a buffer with `len` values a point: one vector more, so
/// that the points of a tile do not all map to the same few sets of the cache.
pub fn point_stride(len: usize) -> usize {
    len + LANES
}

/// The matrix G, for tap `tap` of `taps` at the point number `point`: the point to the power of
/// `tap`, divided by the product of its distances to the other finite points.
const fn interpolation(point: usize, tap: usize, taps: usize) -> f64 {
    const A: f64 = std::f64::consts::FRAC_1_SQRT_2;
    const B: f64 = std::f64::consts::SQRT_2;
    let (at, mut value) = match point {
        0 => (0.0, 1.0),
        1 => (A, -2.0 / 3.0),
        2 => (-A, -2.0 / 3.0),
        3 => (B, 1.0 / 6.0),
        4 => (-B, 1.0 / 6.0),
        _ => return if tap + 1 == taps { 1.0 } else { 0.0 },
    };
    let mut i = 0;
    while i < tap {
        value *= at;
        i += 1;
    }
    value
}

/// Factors on the transformed weights along each side, which save multiplications in
/// [`output_line`].
const SCALE: [f64; IN] = {
    const A: f64 = std::f64::consts::FRAC_1_SQRT_2;
    const B: f64 = std::f64::consts::SQRT_2;
    [1.0, A, A, B, B, 1.0]
};

/// Transforms the weights of one pair of input and output channel: G g G^T times [`SCALE`] along
/// both sides, for taps `g(y, x)`.
pub fn transform_weights<const TAPS: usize>(g: impl Fn(usize, usize) -> f64) -> [f32; POINTS] {
    let rows: [[f64; TAPS]; IN] = std::array::from_fn(|y| {
        std::array::from_fn(|x| {
            SCALE[y]
                * (0..TAPS)
                    .map(|k| interpolation(y, k, TAPS) * g(k, x))
                    .sum::<f64>()
        })
    });
    std::array::from_fn(|i| {
        let (y, x) = (i / IN, i % IN);
        (SCALE[x]
            * (0..TAPS)
                .map(|k| interpolation(x, k, TAPS) * rows[y][k])
                .sum::<f64>()) as f32
    })
}

/// B^T applied to six values.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn input_line<S: Simd>(d: [S::V; IN]) -> [S::V; IN] {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let less = |x: S::V, times: f32, from: S::V| S::fma(S::splat(-times), x, from);
        let (even_a, odd_a) = (less(d[2], 2.0, d[4]), less(d[1], 2.0, d[3]));
        let (even_b, odd_b) = (less(d[2], 0.5, d[4]), less(d[1], 0.5, d[3]));
        [
            S::add(less(d[2], 2.5, d[4]), d[0]),
            S::fma(S::splat(A), odd_a, even_a),
            S::fma(S::splat(-A), odd_a, even_a),
            S::fma(S::splat(B), odd_b, even_b),
            S::fma(S::splat(-B), odd_b, even_b),
            S::add(less(d[3], 2.5, d[5]), d[1]),
        ]
    }
}

// This file uses no closures over vectors: one that is not inlined would be compiled without the
// instruction set of its caller.

/// A^T applied to six values that contain the factors [`SCALE`].
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn output_line<S: Simd, const OUT: usize>(m: [S::V; IN]) -> [S::V; OUT] {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let (even_a, odd_a) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (even_b, odd_b) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        let mut out = [S::splat(0.0); OUT];
        out[0] = S::fma(S::splat(B), even_a, S::fma(S::splat(A), even_b, m[0]));
        out[1] = S::add(odd_a, odd_b);
        if OUT == 2 {
            out[1] = S::add(out[1], m[5]);
        } else {
            out[2] = S::fma(S::splat(A), even_a, S::mul(S::splat(B), even_b));
            out[3] = S::fma(S::splat(0.5), odd_a, S::fma(S::splat(2.0), odd_b, m[5]));
        }
        out
    }
}

/// A applied to two or four values.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn gradient_line<S: Simd, const OUT: usize>(d: [S::V; OUT]) -> [S::V; IN] {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let (mut even_a, mut odd_a, mut even_b, mut odd_b) = (d[0], d[1], d[0], d[1]);
        if OUT == 4 {
            (even_a, odd_a) = (
                S::fma(S::splat(0.5), d[2], even_a),
                S::fma(S::splat(0.5), d[3], odd_a),
            );
            (even_b, odd_b) = (
                S::fma(S::splat(2.0), d[2], even_b),
                S::fma(S::splat(2.0), d[3], odd_b),
            );
        }
        [
            d[0],
            S::fma(S::splat(A), odd_a, even_a),
            S::fma(S::splat(-A), odd_a, even_a),
            S::fma(S::splat(B), odd_b, even_b),
            S::fma(S::splat(-B), odd_b, even_b),
            d[OUT - 1],
        ]
    }
}

/// Neighbouring tiles in a row of `w` pixels of `c` channels.
#[derive(Clone, Copy)]
pub struct Span {
    /// First tile.
    pub first: usize,
    /// Number of tiles.
    pub count: usize,
    /// Pixels of the row; pixels outside it count as zero.
    pub w: usize,
    /// Channels, a multiple of 16.
    pub c: usize,
}

/// The place of transformed values: `base[point * point_stride + tile * tile_stride + channel]`.
#[derive(Clone, Copy)]
pub struct Points {
    /// First value.
    pub base: *mut f32,
    /// See above.
    pub point_stride: usize,
    /// See above.
    pub tile_stride: usize,
}

impl Points {
    /// Stores six vectors to row `y` of the points, `at` values after the first of each point.
    ///
    /// # Safety
    /// As [`Simd`]; every point has room for a vector there, and no other thread uses it.
    #[inline(always)]
    unsafe fn store_row<S: Simd>(&self, y: usize, at: usize, values: [S::V; IN]) {
        // SAFETY: the caller guarantees that each of the 36 points has room for a vector at `at`
        unsafe {
            for (x, v) in values.into_iter().enumerate() {
                S::store(self.base.add((y * IN + x) * self.point_stride + at), v);
            }
        }
    }
}

/// What is done to a value of the input while it is read.
#[derive(Clone, Copy)]
pub enum Slopes {
    /// Nothing.
    Linear,
    /// Negative values are multiplied by this.
    All(f32),
    /// Negative values are multiplied by that of their channel.
    Channels(*const f32),
}

/// The vector at `p`; with LEAKY, its negative values are multiplied by `slope`.
///
/// # Safety
/// As [`Simd`], and the vector can be read.
#[inline(always)]
unsafe fn load<S: Simd, const LEAKY: bool>(p: *const f32, slope: S::V) -> S::V {
    // SAFETY: the caller's contract
    unsafe {
        let value = S::load(p);
        if LEAKY {
            S::where_positive(value, value, S::mul(slope, value))
        } else {
            value
        }
    }
}

/// B^T of the six pixels of one column. Column `x` counts from `before` pixels left of the row.
///
/// # Safety
/// As [`transform_input`]; `lane` is a whole vector of the channels.
#[inline(always)]
unsafe fn input_column<S: Simd, const LEAKY: bool>(
    rows: [*const f32; IN],
    s: Span,
    before: usize,
    x: usize,
    (lane, slope): (usize, S::V),
) -> [S::V; IN] {
    // SAFETY: columns outside the row are not read, and the caller guarantees that the rows hold
    // those inside
    unsafe {
        if x < before || x >= s.w + before {
            return [S::splat(0.0); IN];
        }
        let at = (x - before) * s.c + lane;
        let [a, b, c, d, e, f] = rows;
        input_line::<S>([
            load::<S, LEAKY>(a.wrapping_add(at), slope),
            load::<S, LEAKY>(b.wrapping_add(at), slope),
            load::<S, LEAKY>(c.wrapping_add(at), slope),
            load::<S, LEAKY>(d.wrapping_add(at), slope),
            load::<S, LEAKY>(e.wrapping_add(at), slope),
            load::<S, LEAKY>(f.wrapping_add(at), slope),
        ])
    }
}

/// Transforms tiles of the six input rows `[w][c]`: B^T d B.
///
/// # Safety
/// As [`Simd`]. The rows hold `[w][c]` values. Every point has room for `count` tiles,
/// `tile_stride` values apart, and one vector more; it does not overlap the rows, and no other
/// thread uses it.
#[inline(always)]
pub unsafe fn transform_input<S: Simd, const OUT: usize>(
    rows: [*const f32; IN],
    s: Span,
    out: Points,
) {
    // SAFETY: the caller's contract
    unsafe { transform::<S, OUT, false>(rows, s, Slopes::Linear, out) }
}

/// As [`transform_input`], for inputs whose negative values are multiplied by slopes first.
///
/// # Safety
/// As [`transform_input`]; slopes of channels are `[c]`.
#[inline(always)]
pub unsafe fn transform_activated<S: Simd, const OUT: usize>(
    rows: [*const f32; IN],
    s: Span,
    slopes: Slopes,
    out: Points,
) {
    // SAFETY: the caller's contract
    unsafe {
        match slopes {
            Slopes::Linear => transform::<S, OUT, false>(rows, s, slopes, out),
            _ => transform::<S, OUT, true>(rows, s, slopes, out),
        }
    }
}

/// See [`transform_activated`]; LEAKY: whether there are slopes.
///
/// # Safety
/// As [`transform_activated`].
#[inline(always)]
unsafe fn transform<S: Simd, const OUT: usize, const LEAKY: bool>(
    rows: [*const f32; IN],
    s: Span,
    slopes: Slopes,
    out: Points,
) {
    // SAFETY: `lane` begins a whole vector of the channels and tiles stay below `count`, for which
    // the caller guarantees room at the points
    unsafe {
        for lane in (0..s.c).step_by(LANES) {
            let slope = match slopes {
                Slopes::Linear => S::splat(1.0),
                Slopes::All(slope) => S::splat(slope),
                Slopes::Channels(slopes) => S::load(slopes.add(lane)),
            };
            let lane_and_slope = (lane, slope);
            let x = OUT * s.first;
            // neighbouring tiles share six minus OUT columns
            let mut a = input_column::<S, LEAKY>(rows, s, before(OUT), x, lane_and_slope);
            let mut b = input_column::<S, LEAKY>(rows, s, before(OUT), x + 1, lane_and_slope);
            let (mut c, mut d) = (a, b);
            if OUT == 2 {
                c = input_column::<S, LEAKY>(rows, s, before(OUT), x + 2, lane_and_slope);
                d = input_column::<S, LEAKY>(rows, s, before(OUT), x + 3, lane_and_slope);
            }
            for tile in 0..s.count {
                let x = OUT * (s.first + tile);
                if OUT == 4 {
                    c = input_column::<S, LEAKY>(rows, s, before(OUT), x + 2, lane_and_slope);
                    d = input_column::<S, LEAKY>(rows, s, before(OUT), x + 3, lane_and_slope);
                }
                let e = input_column::<S, LEAKY>(rows, s, before(OUT), x + 4, lane_and_slope);
                let f = input_column::<S, LEAKY>(rows, s, before(OUT), x + 5, lane_and_slope);
                for y in 0..IN {
                    let values = input_line::<S>([a[y], b[y], c[y], d[y], e[y], f[y]]);
                    out.store_row::<S>(y, tile * out.tile_stride + lane, values);
                }
                (a, b, c, d) = if OUT == 2 { (c, d, e, f) } else { (e, f, c, d) };
            }
        }
    }
}

/// Transforms tiles of two or four rows `[w][c]` of an output's gradient: A dy A^T.
///
/// # Safety
/// As [`transform_input`].
#[inline(always)]
pub unsafe fn transform_gradient<S: Simd, const OUT: usize>(
    rows: [*const f32; OUT],
    s: Span,
    out: Points,
) {
    // SAFETY: pixels after the end of a row are not read, `lane` begins a whole vector of the
    // channels, and tiles stay below `count`
    unsafe {
        for tile in 0..s.count {
            for lane in (0..s.c).step_by(LANES) {
                let mut columns = [[S::splat(0.0); IN]; OUT];
                for (x, column) in columns.iter_mut().enumerate() {
                    let x = OUT * (s.first + tile) + x;
                    if x < s.w {
                        let at = x * s.c + lane;
                        let mut values = [S::splat(0.0); OUT];
                        for (value, row) in values.iter_mut().zip(rows) {
                            *value = S::load(row.add(at));
                        }
                        *column = gradient_line::<S, OUT>(values);
                    }
                }
                for y in 0..IN {
                    let mut values = [S::splat(0.0); OUT];
                    for (value, column) in values.iter_mut().zip(&columns) {
                        *value = column[y];
                    }
                    let values = gradient_line::<S, OUT>(values);
                    out.store_row::<S>(y, tile * out.tile_stride + lane, values);
                }
            }
        }
    }
}

/// G^T applied to six values.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn gather_line<S: Simd, const TAPS: usize>(p: [S::V; IN]) -> [S::V; TAPS] {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let (even_a, odd_a) = (S::add(p[1], p[2]), S::sub(p[1], p[2]));
        let (even_b, odd_b) = (S::add(p[3], p[4]), S::sub(p[3], p[4]));
        let mut out = [S::splat(0.0); TAPS];
        for (tap, out) in out.iter_mut().enumerate() {
            let (a, b) = (
                S::splat(interpolation(1, tap, TAPS) as f32),
                S::splat(interpolation(3, tap, TAPS) as f32),
            );
            if tap % 2 == 1 {
                *out = S::fma(a, odd_a, S::mul(b, odd_b));
                continue;
            }
            *out = S::fma(a, even_a, S::mul(b, even_b));
            if tap == 0 {
                *out = S::add(*out, p[0]);
            } else if tap + 1 == TAPS {
                *out = S::add(*out, p[5]);
            }
        }
        out
    }
}

/// Transforms gradients at the points into gradients of the TAPS x TAPS taps, G^T u G, for one
/// vector of lanes: reads `u[point * from]` and writes `taps[tap * to]`.
///
/// # Safety
/// As [`Simd`]. A vector can be read at each of the 36 points, and written at each of the taps. The
/// two do not overlap, and no other thread uses the taps.
#[inline(always)]
pub unsafe fn gather_lanes<S: Simd, const TAPS: usize>(
    u: *const f32,
    from: usize,
    taps: *mut f32,
    to: usize,
) {
    // SAFETY: points stay below 36 and taps below TAPS x TAPS, and the caller guarantees a vector
    // at each
    unsafe {
        let mut columns = [[S::splat(0.0); TAPS]; IN];
        for (x, column) in columns.iter_mut().enumerate() {
            let at = |y: usize| S::load(u.add((y * IN + x) * from));
            *column = gather_line::<S, TAPS>([at(0), at(1), at(2), at(3), at(4), at(5)]);
        }
        let [a, b, c, d, e, f] = columns;
        for y in 0..TAPS {
            for (x, v) in gather_line::<S, TAPS>([a[y], b[y], c[y], d[y], e[y], f[y]])
                .into_iter()
                .enumerate()
            {
                S::store(taps.add((y * TAPS + x) * to), v);
            }
        }
    }
}
