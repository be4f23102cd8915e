//! 3x3 convolutions with four times fewer multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast algorithms for
//! convolutional neural networks", 2016). Tiles of 4x4 outputs are made from 6x6 inputs; products happen in 36 transformed
//! points. Built from vectors alone; `conv` decides where it is used. The bits of an output depend on where the tiles begin,
//! so inference in overlapping tiles keeps to the direct form.
//!
//! The polynomials are interpolated at 0, +-sqrt(1/2), +-sqrt(2) and infinity: with a b = 1 the transforms neither shrink nor
//! grow their values much, and f32 errors stay those of the direct form (with the usual +-1 and +-2 they are 2 to 5 times that).

use super::simd::{LANES, Registers, Simd};

/// Outputs of a tile along a side.
pub const OUT: usize = 4;
/// Inputs of a tile along a side.
pub const IN: usize = OUT + 2;
/// Transformed points of a tile.
pub const POINTS: usize = IN * IN;
/// Tiles multiplied at a time: 16 accumulators of a wide machine with two vectors of lanes.
pub const CHUNK: usize = 8;
/// Lanes multiplied at a time.
pub const GROUP: usize = 2 * LANES;

/// The points +-A and +-B.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;

/// Tiles that cover a row of `w` pixels.
pub fn tiles(w: usize) -> usize {
    w.div_ceil(OUT)
}

/// From one point to the next, f32 elements, in a buffer with `len` of them a point: one vector more, so that the points of a
/// tile do not all fall into the same few sets of the cache.
pub fn point_stride(len: usize) -> usize {
    len + LANES
}

/// Interpolation of three taps at the six points, G.
const G: [[f64; 3]; IN] = {
    const A: f64 = std::f64::consts::FRAC_1_SQRT_2;
    const B: f64 = std::f64::consts::SQRT_2;
    [
        [1.0, 0.0, 0.0],
        [-2.0 / 3.0, -A * 2.0 / 3.0, -1.0 / 3.0],
        [-2.0 / 3.0, A * 2.0 / 3.0, -1.0 / 3.0],
        [1.0 / 6.0, B / 6.0, 1.0 / 3.0],
        [1.0 / 6.0, -B / 6.0, 1.0 / 3.0],
        [0.0, 0.0, 1.0],
    ]
};

/// Weights are multiplied by these along each side, which saves multiplications when outputs are formed: see [`output_line`].
const SCALE: [f64; IN] = {
    const A: f64 = std::f64::consts::FRAC_1_SQRT_2;
    const B: f64 = std::f64::consts::SQRT_2;
    [1.0, A, A, B, B, 1.0]
};

/// Weights of one (input, output) channel into the points: G g G^T with [`SCALE`], for `g[ky * 3 + kx]`.
pub fn transform_weights(g: [f32; 9]) -> [f32; POINTS] {
    let rows: [[f64; 3]; IN] =
        std::array::from_fn(|y| std::array::from_fn(|x| SCALE[y] * (0..3).map(|k| G[y][k] * f64::from(g[k * 3 + x])).sum::<f64>()));
    std::array::from_fn(|i| {
        let (y, x) = (i / IN, i % IN);
        (SCALE[x] * (0..3).map(|k| G[x][k] * rows[y][k]).sum::<f64>()) as f32
    })
}

/// Gradients at the points to gradients of the taps, G^T u G.
#[cfg(test)]
fn gather_weights(u: [f32; POINTS]) -> [f32; 9] {
    let rows: [[f64; IN]; 3] =
        std::array::from_fn(|y| std::array::from_fn(|x| (0..IN).map(|k| G[k][y] * f64::from(u[k * IN + x])).sum::<f64>()));
    std::array::from_fn(|i| (0..IN).map(|k| G[k][i % 3] * rows[i / 3][k]).sum::<f64>() as f32)
}

/// B^T applied to six values.
#[inline(always)]
unsafe fn input_line<S: Simd>(d: [S::V; IN]) -> [S::V; IN] {
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

/// A^T applied to six values whose points carry [`SCALE`].
#[inline(always)]
unsafe fn output_line<S: Simd>(m: [S::V; IN]) -> [S::V; OUT] {
    unsafe {
        let (even_a, odd_a) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (even_b, odd_b) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [
            S::fma(S::splat(B), even_a, S::fma(S::splat(A), even_b, m[0])),
            S::add(odd_a, odd_b),
            S::fma(S::splat(A), even_a, S::mul(S::splat(B), even_b)),
            S::fma(S::splat(0.5), odd_a, S::fma(S::splat(2.0), odd_b, m[5])),
        ]
    }
}

/// A applied to four values.
#[inline(always)]
unsafe fn gradient_line<S: Simd>(d: [S::V; OUT]) -> [S::V; IN] {
    unsafe {
        let (even_a, odd_a) = (S::fma(S::splat(0.5), d[2], d[0]), S::fma(S::splat(0.5), d[3], d[1]));
        let (even_b, odd_b) = (S::fma(S::splat(2.0), d[2], d[0]), S::fma(S::splat(2.0), d[3], d[1]));
        [
            d[0],
            S::fma(S::splat(A), odd_a, even_a),
            S::fma(S::splat(-A), odd_a, even_a),
            S::fma(S::splat(B), odd_b, even_b),
            S::fma(S::splat(-B), odd_b, even_b),
            d[3],
        ]
    }
}

/// Tiles side by side in a row of `w` pixels of `c` channels.
#[derive(Clone, Copy)]
pub struct Span {
    /// First tile.
    pub first: usize,
    /// Number of tiles.
    pub count: usize,
    /// Pixels of the row; what lies before and behind counts as zero.
    pub w: usize,
    /// Channels, a multiple of 16.
    pub c: usize,
}

/// Where transformed values go: `base[point * point_stride + tile * tile_stride + channel]`.
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
    #[inline(always)]
    unsafe fn store_row<S: Simd>(&self, y: usize, at: usize, values: [S::V; IN]) {
        unsafe {
            for (x, v) in values.into_iter().enumerate() {
                S::store(self.base.add((y * IN + x) * self.point_stride + at), v);
            }
        }
    }
}

/// B^T of six pixels above each other; columns are counted from the one before the row.
#[inline(always)]
unsafe fn input_column<S: Simd>(rows: [*const f32; IN], s: Span, x: usize, lane: usize) -> [S::V; IN] {
    unsafe {
        if x == 0 || x > s.w {
            return [S::splat(0.0); IN];
        }
        let at = (x - 1) * s.c + lane;
        let [a, b, c, d, e, f] = rows;
        let (a, b, c) = (S::load(a.add(at)), S::load(b.add(at)), S::load(c.add(at)));
        input_line::<S>([a, b, c, S::load(d.add(at)), S::load(e.add(at)), S::load(f.add(at))])
    }
}

/// B^T d B of tiles whose inputs are the six rows `[w][c]`.
///
/// # Safety
/// Rows and points as large as described; and as [`Simd`].
#[inline(always)]
pub unsafe fn transform_input<S: Simd>(rows: [*const f32; IN], s: Span, out: Points) {
    unsafe {
        for lane in (0..s.c).step_by(LANES) {
            let x = OUT * s.first;
            let (mut a, mut b) = (input_column::<S>(rows, s, x, lane), input_column::<S>(rows, s, x + 1, lane));
            for tile in 0..s.count {
                let x = OUT * (s.first + tile);
                let (c, d) = (input_column::<S>(rows, s, x + 2, lane), input_column::<S>(rows, s, x + 3, lane));
                let (e, f) = (input_column::<S>(rows, s, x + 4, lane), input_column::<S>(rows, s, x + 5, lane));
                for y in 0..IN {
                    let values = input_line::<S>([a[y], b[y], c[y], d[y], e[y], f[y]]);
                    out.store_row::<S>(y, tile * out.tile_stride + lane, values);
                }
                (a, b) = (e, f);
            }
        }
    }
}

/// A dy A^T of tiles of four gradient rows `[w][c]`.
///
/// # Safety
/// As [`transform_input`].
#[inline(always)]
pub unsafe fn transform_gradient<S: Simd>(rows: [*const f32; OUT], s: Span, out: Points) {
    unsafe {
        for tile in 0..s.count {
            for lane in (0..s.c).step_by(LANES) {
                let mut columns = [[S::splat(0.0); IN]; OUT];
                for (x, column) in columns.iter_mut().enumerate() {
                    let x = OUT * (s.first + tile) + x;
                    if x < s.w {
                        let at = x * s.c + lane;
                        let [a, b, c, d] = rows;
                        *column = gradient_line::<S>([S::load(a.add(at)), S::load(b.add(at)), S::load(c.add(at)), S::load(d.add(at))]);
                    }
                }
                let [a, b, c, d] = columns;
                for y in 0..IN {
                    let values = gradient_line::<S>([a[y], b[y], c[y], d[y]]);
                    out.store_row::<S>(y, tile * out.tile_stride + lane, values);
                }
            }
        }
    }
}

/// G^T applied to six values.
#[inline(always)]
unsafe fn gather_line<S: Simd>(p: [S::V; IN]) -> [S::V; 3] {
    unsafe {
        let (even_a, odd_a) = (S::add(p[1], p[2]), S::sub(p[1], p[2]));
        let (even_b, odd_b) = (S::add(p[3], p[4]), S::sub(p[3], p[4]));
        let g = |point: usize, tap: usize| S::splat(G[point][tap] as f32);
        [
            S::fma(g(1, 0), even_a, S::fma(g(3, 0), even_b, p[0])),
            S::fma(g(1, 1), odd_a, S::mul(g(3, 1), odd_b)),
            S::fma(g(1, 2), even_a, S::fma(g(3, 2), even_b, p[5])),
        ]
    }
}

/// G^T u G over a vector of lanes: `u[point * from]` to `taps[tap * to]`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn gather_lanes<S: Simd>(u: *const f32, from: usize, taps: *mut f32, to: usize) {
    unsafe {
        let mut columns = [[S::splat(0.0); 3]; IN];
        for (x, column) in columns.iter_mut().enumerate() {
            let at = |y: usize| S::load(u.add((y * IN + x) * from));
            *column = gather_line::<S>([at(0), at(1), at(2), at(3), at(4), at(5)]);
        }
        let [a, b, c, d, e, f] = columns;
        for y in 0..3 {
            for (x, v) in gather_line::<S>([a[y], b[y], c[y], d[y], e[y], f[y]]).into_iter().enumerate() {
                S::store(taps.add((y * 3 + x) * to), v);
            }
        }
    }
}

/// A chunk of transformed input, room to multiply it, and where the products go.
#[derive(Clone, Copy)]
pub struct Chunk {
    /// `[POINTS][CHUNK][k]`, points a [`point_stride`] apart.
    pub v: *const f32,
    /// Input channels.
    pub k: usize,
    /// Tiles that count.
    pub count: usize,
    /// `[POINTS][CHUNK][GROUP]`, likewise.
    pub m: *mut f32,
}

/// f32 elements of [`Chunk::m`].
pub fn products() -> usize {
    POINTS * point_stride(CHUNK * GROUP)
}

#[inline(always)]
unsafe fn multiply_tile<S: Simd, const P: usize, const V: usize, const K: usize>(v: *const f32, k: usize, u: *const f32, m: *mut f32) {
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

/// `m = v u` at all points, for weights `u[point][k][V * 16]`.
#[inline(always)]
unsafe fn multiply<S: Simd, const V: usize, const K: usize>(c: &Chunk, u: *const f32) {
    unsafe {
        let k = if K == 0 { c.k } else { K };
        for point in 0..POINTS {
            let (v, m) = (c.v.add(point * point_stride(CHUNK * k)), c.m.add(point * point_stride(CHUNK * V * LANES)));
            let u = u.add(point * k * V * LANES);
            let at = |p: usize| (v.add(p * k), m.add(p * V * LANES));
            match S::REGISTERS {
                Registers::Many if c.count > CHUNK / 2 => multiply_tile::<S, CHUNK, V, K>(v, k, u, m),
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

/// Where the 4x4 outputs of a chunk go.
#[derive(Clone, Copy)]
pub struct Output {
    /// First pixel of each row, at the lanes of the group; lower ones may be missing.
    pub rows: [Option<*mut f32>; OUT],
    /// f32 values from one pixel to the next.
    pub stride: usize,
    /// First pixel of the chunk.
    pub x: usize,
    /// Pixels in the row.
    pub w: usize,
    /// Whether to store past the caches.
    pub far: bool,
}

/// A^T m A of a chunk plus bias, for vector `n` of `V`.
#[inline(always)]
unsafe fn store_outputs<S: Simd, const V: usize>(c: &Chunk, n: usize, bias: S::V, out: Output) {
    unsafe {
        for tile in 0..c.count {
            let at = |point: usize| S::load(c.m.add(point * point_stride(CHUNK * V * LANES) + (tile * V + n) * LANES));
            let mut columns = [[S::splat(0.0); OUT]; IN];
            for (x, column) in columns.iter_mut().enumerate() {
                *column = output_line::<S>([at(x), at(IN + x), at(2 * IN + x), at(3 * IN + x), at(4 * IN + x), at(5 * IN + x)]);
            }
            let [a, b, c, d, e, f] = columns;
            let x = out.x + OUT * tile;
            for (y, row) in out.rows.iter().enumerate() {
                let Some(row) = row else { continue };
                let values = output_line::<S>([a[y], b[y], c[y], d[y], e[y], f[y]]);
                for (i, value) in values.into_iter().enumerate() {
                    if x + i < out.w {
                        let (to, value) = (row.add((x + i) * out.stride + n * LANES), S::add(value, bias));
                        if out.far { S::stream(to, value) } else { S::store(to, value) }
                    }
                }
            }
        }
    }
}

/// One chunk of tiles: the product with `u[point][k][16 or 32]`, of one or `two` vectors of lanes, transformed back and stored
/// with the bias.
///
/// # Safety
/// All pointers valid for these extents; tiles behind `count` may hold anything; and as [`Simd`].
#[inline(always)]
pub unsafe fn multiply_and_store<S: Simd, const K: usize>(c: &Chunk, u: *const f32, two: bool, bias: *const f32, out: Output) {
    unsafe {
        if two {
            multiply::<S, 2, K>(c, u);
            for n in 0..2 {
                store_outputs::<S, 2>(c, n, S::load(bias.add(n * LANES)), out);
            }
        } else {
            multiply::<S, 1, K>(c, u);
            store_outputs::<S, 1>(c, 0, S::load(bias), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::*;

    fn draw(seed: u64) -> f32 {
        crate::rng::Rng::new(&[seed]).range(-1.0, 1.0) as f32
    }

    #[test]
    fn weights_and_their_gradients_are_transposes_of_each_other() {
        // <transform(g), u> = <g, gather(scaled u)> for all g and u
        let g: [f32; 9] = std::array::from_fn(|i| draw(i as u64));
        let u: [f32; POINTS] = std::array::from_fn(|i| draw(100 + i as u64));
        let scaled: [f32; POINTS] = std::array::from_fn(|i| (SCALE[i / IN] * SCALE[i % IN]) as f32 * u[i]);
        let a: f32 = transform_weights(g).iter().zip(&u).map(|(a, b)| a * b).sum();
        let b: f32 = gather_weights(scaled).iter().zip(&g).map(|(a, b)| a * b).sum();
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }

    #[test]
    fn lanes_are_gathered_as_single_values_are() {
        let u: [f32; POINTS] = std::array::from_fn(|i| draw(i as u64));
        let lanes: Vec<f32> = u.iter().flat_map(|&u| [u; LANES]).collect();
        let mut taps = [0.0; 9 * LANES];
        unsafe { gather_lanes::<Portable>(lanes.as_ptr(), LANES, taps.as_mut_ptr(), LANES) };
        for (lanes, tap) in taps.chunks_exact(LANES).zip(gather_weights(u)) {
            assert!((lanes[5] - tap).abs() < 1e-5, "{} {tap}", lanes[5]);
        }
    }
}
