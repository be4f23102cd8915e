//! Convolutions with fewer multiplications: Winograd's F(4x4, 3x3) and F(2x2, 5x5) (Lavin and Gray,
//! "Fast algorithms for convolutional neural networks", 2016), four and 2.8 times fewer. Tiles of
//! OUT x OUT outputs are made from 6x6 inputs; products happen in 36 transformed points, the same
//! for both. Built from vectors alone; the operations decide where they are used. The bits of an
//! output depend on where the tiles begin, so inference in overlapping tiles keeps to the direct
//! form.
//!
//! The polynomials are interpolated at 0, +-sqrt(1/2), +-sqrt(2) and infinity: with a b = 1 the
//! transforms neither shrink nor grow their values much, and f32 errors stay those of the direct
//! form (with the usual +-1 and +-2 they are 2 to 5 times that).

use super::simd::{LANES, Registers, Simd};

/// Inputs of a tile along a side: OUT outputs and the reach of 7 - OUT taps.
pub const IN: usize = 6;
/// Transformed points of a tile.
pub const POINTS: usize = IN * IN;
/// Tiles multiplied at a time: 16 accumulators of a wide machine with two vectors of lanes.
pub const CHUNK: usize = 8;
/// Lanes multiplied at a time.
pub const GROUP: usize = 2 * LANES;

/// The points +-A and +-B.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;

/// Pixels by which a tile's inputs begin before its outputs: those of the taps left of the middle
/// one.
pub const fn before(out: usize) -> usize {
    (IN - out) / 2
}

/// From one point to the next, f32 elements, in a buffer with `len` of them a point: one vector
/// more, so that the points of a tile do not all fall into the same few sets of the cache.
pub fn point_stride(len: usize) -> usize {
    len + LANES
}

/// Interpolation at the six points, G: tap `tap` of `taps` at point `point`, the power of the point
/// over the product of its distances to the other finite ones.
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

/// Weights are multiplied by these along each side, which saves multiplications when outputs are
/// formed: see [`output_line`].
const SCALE: [f64; IN] = {
    const A: f64 = std::f64::consts::FRAC_1_SQRT_2;
    const B: f64 = std::f64::consts::SQRT_2;
    [1.0, A, A, B, B, 1.0]
};

/// Weights of one (input, output) channel into the points: G g G^T with [`SCALE`], for taps `g(y,
/// x)`.
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
    // SAFETY: the caller says that the processor has the vectors of S
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

// No closures over vectors in here: one that is not inlined would lose the instructions it is
// compiled for.

/// A^T applied to six values whose points carry [`SCALE`].
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn output_line<S: Simd, const OUT: usize>(m: [S::V; IN]) -> [S::V; OUT] {
    // SAFETY: the caller says that the processor has the vectors of S
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
    // SAFETY: the caller says that the processor has the vectors of S
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
    /// Six vectors to row `y` of the points, `at` values from each point's first.
    ///
    /// # Safety
    /// As [`Simd`]; every point has room for a vector there, nobody else's.
    #[inline(always)]
    unsafe fn store_row<S: Simd>(&self, y: usize, at: usize, values: [S::V; IN]) {
        // SAFETY: the caller says that each of the 36 points has room for a vector at `at`
        unsafe {
            for (x, v) in values.into_iter().enumerate() {
                S::store(self.base.add((y * IN + x) * self.point_stride + at), v);
            }
        }
    }
}

/// B^T of six pixels above each other; columns are counted from `before` the row.
///
/// # Safety
/// As [`transform_input`]; `lane` is a whole vector of the channels.
#[inline(always)]
unsafe fn input_column<S: Simd>(
    rows: [*const f32; IN],
    s: Span,
    before: usize,
    x: usize,
    lane: usize,
) -> [S::V; IN] {
    // SAFETY: columns outside the row are not read, and the caller says that the rows hold those
    // inside
    unsafe {
        if x < before || x >= s.w + before {
            return [S::splat(0.0); IN];
        }
        let at = (x - before) * s.c + lane;
        let [a, b, c, d, e, f] = rows;
        let (a, b, c) = (S::load(a.add(at)), S::load(b.add(at)), S::load(c.add(at)));
        input_line::<S>([
            a,
            b,
            c,
            S::load(d.add(at)),
            S::load(e.add(at)),
            S::load(f.add(at)),
        ])
    }
}

/// B^T d B of tiles whose inputs are the six rows `[w][c]`.
///
/// # Safety
/// Rows hold `[w][c]`; every point has room for `count` tiles `tile_stride` apart and a vector
/// more, apart from the rows and nobody else's; and as [`Simd`].
#[inline(always)]
pub unsafe fn transform_input<S: Simd, const OUT: usize>(
    rows: [*const f32; IN],
    s: Span,
    out: Points,
) {
    // SAFETY: `lane` is a whole vector of the channels, and tiles stay below `count`: the caller
    // says that the points hold them
    unsafe {
        for lane in (0..s.c).step_by(LANES) {
            let x = OUT * s.first;
            // neighbours share six less OUT columns
            let mut a = input_column::<S>(rows, s, before(OUT), x, lane);
            let mut b = input_column::<S>(rows, s, before(OUT), x + 1, lane);
            let (mut c, mut d) = (a, b);
            if OUT == 2 {
                c = input_column::<S>(rows, s, before(OUT), x + 2, lane);
                d = input_column::<S>(rows, s, before(OUT), x + 3, lane);
            }
            for tile in 0..s.count {
                let x = OUT * (s.first + tile);
                if OUT == 4 {
                    c = input_column::<S>(rows, s, before(OUT), x + 2, lane);
                    d = input_column::<S>(rows, s, before(OUT), x + 3, lane);
                }
                let e = input_column::<S>(rows, s, before(OUT), x + 4, lane);
                let f = input_column::<S>(rows, s, before(OUT), x + 5, lane);
                for y in 0..IN {
                    let values = input_line::<S>([a[y], b[y], c[y], d[y], e[y], f[y]]);
                    out.store_row::<S>(y, tile * out.tile_stride + lane, values);
                }
                (a, b, c, d) = if OUT == 2 { (c, d, e, f) } else { (e, f, c, d) };
            }
        }
    }
}

/// A dy A^T of tiles of two or four gradient rows `[w][c]`.
///
/// # Safety
/// As [`transform_input`].
#[inline(always)]
pub unsafe fn transform_gradient<S: Simd, const OUT: usize>(
    rows: [*const f32; OUT],
    s: Span,
    out: Points,
) {
    // SAFETY: pixels behind the row are not read, `lane` is a whole vector of the channels, and
    // tiles stay below `count`
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
    // SAFETY: the caller says that the processor has the vectors of S
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

/// G^T u G over a vector of lanes: `u[point * from]` to `taps[tap * to]`, TAPS x TAPS of them.
///
/// # Safety
/// A vector can be read at each of the 36 points and written, apart from them, at each of the taps;
/// and as [`Simd`].
#[inline(always)]
pub unsafe fn gather_lanes<S: Simd, const TAPS: usize>(
    u: *const f32,
    from: usize,
    taps: *mut f32,
    to: usize,
) {
    // SAFETY: points stay below 36 and taps below TAPS x TAPS: the caller says that there is a
    // vector at each
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

/// Products of P tiles at one point with V vectors of lanes; K is their depth where that is known
/// when compiling, or 0.
///
/// # Safety
/// As [`Simd`]; `v` holds `[P][k]`, `u` holds `[k][V * 16]`, and `m` has room for `[P][V * 16]`,
/// apart from them and nobody else's.
#[inline(always)]
unsafe fn multiply_tile<S: Simd, const P: usize, const V: usize, const K: usize>(
    v: *const f32,
    k: usize,
    u: *const f32,
    m: *mut f32,
) {
    // SAFETY: depths stay below `k`, tiles below P and vectors below V, as the caller says the
    // pointers allow
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
///
/// # Safety
/// As [`multiply_and_store`].
#[inline(always)]
unsafe fn multiply<S: Simd, const V: usize, const K: usize>(c: &Chunk, u: *const f32) {
    // SAFETY: the chunk holds CHUNK tiles at every point, whether they count or not, and no step
    // from a tile that counts goes past the last: `count` is at most CHUNK, which every step
    // divides
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

/// Where the outputs of a chunk go.
#[derive(Clone, Copy)]
pub struct Output<const OUT: usize> {
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
///
/// # Safety
/// As [`multiply_and_store`].
#[inline(always)]
unsafe fn store_outputs<S: Simd, const V: usize, const OUT: usize>(
    c: &Chunk,
    n: usize,
    bias: S::V,
    out: Output<OUT>,
) {
    // SAFETY: products are read of tiles that count, and nothing is written to pixels behind the
    // row or to a row that is missing
    unsafe {
        for tile in 0..c.count {
            let at = |point: usize| {
                S::load(c.m.add(point * point_stride(CHUNK * V * LANES) + (tile * V + n) * LANES))
            };
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
                        let (to, value) = (
                            row.add((x + i) * out.stride + n * LANES),
                            S::add(value, bias),
                        );
                        if out.far {
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

/// One chunk of tiles: the product with `u[point][k][16 or 32]`, of one or `two` vectors of lanes,
/// transformed back and stored with the bias.
///
/// # Safety
/// The chunk holds CHUNK tiles of input at every point and has room for their products; those
/// behind `count`, at most CHUNK, may hold anything. `u` and `bias` hold their lanes, K is the
/// depth or 0, and every row that is there has room for `w` pixels, `stride` apart, away from the
/// rest and nobody else's, with `far` at multiples of 64; and as [`Simd`].
#[inline(always)]
pub unsafe fn multiply_and_store<S: Simd, const K: usize, const OUT: usize>(
    c: &Chunk,
    u: *const f32,
    two: bool,
    bias: *const f32,
    out: Output<OUT>,
) {
    // SAFETY: the caller says so of all pointers; one or two vectors of bias are there, as of
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

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::*;

    fn draw(seed: u64) -> f32 {
        crate::support::rng::Rng::new(&[seed]).range(-1.0, 1.0) as f32
    }

    fn draw_points() -> [f32; POINTS] {
        std::array::from_fn(|i| draw(100 + i as u64))
    }

    /// Gradients at the points to gradients of the taps, G^T u G, plainly.
    fn gather_weights(u: [f32; POINTS], taps: usize) -> Vec<f32> {
        let g = |point: usize, tap: usize| interpolation(point, tap, taps);
        let value = |y: usize, x: usize| {
            (0..POINTS)
                .map(|i| g(i / IN, y) * f64::from(u[i]) * g(i % IN, x))
                .sum::<f64>() as f32
        };
        (0..taps * taps)
            .map(|i| value(i / taps, i % taps))
            .collect()
    }

    fn check_weights<const TAPS: usize>() {
        // <transform(g), u> = <g, gather(scaled u)> for all g and u
        let g: Vec<f32> = (0..TAPS * TAPS).map(|i| draw(i as u64)).collect();
        let u = draw_points();
        let scaled: [f32; POINTS] =
            std::array::from_fn(|i| (SCALE[i / IN] * SCALE[i % IN]) as f32 * u[i]);
        let transformed = transform_weights::<TAPS>(|y, x| f64::from(g[y * TAPS + x]));
        let a: f32 = transformed.iter().zip(&u).map(|(a, b)| a * b).sum();
        let b: f32 = gather_weights(scaled, TAPS)
            .iter()
            .zip(&g)
            .map(|(a, b)| a * b)
            .sum();
        assert!((a - b).abs() < 1e-5, "{a} {b}");
        let lanes: Vec<f32> = u.iter().flat_map(|&u| [u; LANES]).collect();
        let mut taps = vec![0.0; TAPS * TAPS * LANES];
        // SAFETY: there is a vector for each of the points and of the taps, and plain code runs
        // everywhere
        unsafe { gather_lanes::<Portable, TAPS>(lanes.as_ptr(), LANES, taps.as_mut_ptr(), LANES) };
        for (lanes, tap) in taps.chunks_exact(LANES).zip(gather_weights(u, TAPS)) {
            assert!((lanes[5] - tap).abs() < 1e-5, "{} {tap}", lanes[5]);
        }
    }

    #[test]
    fn weights_and_their_gradients_are_transposes_of_each_other() {
        check_weights::<3>();
        check_weights::<5>();
    }

    /// A row of tiles of one vector of lanes against the sum written out.
    fn check_row<const OUT: usize, const TAPS: usize>() {
        let (w, rows) = (11usize, 6);
        let pixels: Vec<f32> = (0..rows * w)
            .flat_map(|i| [draw(1000 + i as u64); LANES])
            .collect();
        let g: Vec<f32> = (0..TAPS * TAPS).map(|i| draw(i as u64)).collect();
        let transformed = transform_weights::<TAPS>(|y, x| f64::from(g[y * TAPS + x]));
        let tiles = w.div_ceil(OUT);
        let mut v = vec![0.0; POINTS * point_stride(CHUNK * LANES)];
        let mut m = vec![0.0; POINTS * point_stride(CHUNK * LANES)];
        let mut out = vec![0.0; OUT * w * LANES];
        // SAFETY: rows of `w` pixels, points and products of CHUNK tiles and the outputs are as
        // large as described, since a row of eleven has at most six tiles; plain code runs
        // everywhere
        unsafe {
            let source: [*const f32; IN] =
                std::array::from_fn(|k| pixels[k * w * LANES..].as_ptr());
            let points = Points {
                base: v.as_mut_ptr(),
                point_stride: point_stride(CHUNK * LANES),
                tile_stride: LANES,
            };
            transform_input::<Portable, OUT>(
                source,
                Span {
                    first: 0,
                    count: tiles,
                    w,
                    c: LANES,
                },
                points,
            );
            for (i, m) in m.iter_mut().enumerate() {
                *m = v[i] * transformed[i / point_stride(CHUNK * LANES)];
            }
            let chunk = Chunk {
                v: v.as_ptr(),
                k: LANES,
                count: tiles,
                m: m.as_mut_ptr(),
            };
            let rows = std::array::from_fn(|y| Some(out[y * w * LANES..].as_mut_ptr()));
            store_outputs::<Portable, 1, OUT>(
                &chunk,
                0,
                [0.0; LANES],
                Output {
                    rows,
                    stride: LANES,
                    x: 0,
                    w,
                    far: false,
                },
            );
        }
        for (y, x) in (0..OUT * w).map(|i| (i / w, i % w)) {
            let reach = (0..TAPS * TAPS)
                .map(|t| (y + t / TAPS, (x + t % TAPS).wrapping_sub(TAPS / 2), g[t]));
            let expected: f32 = reach
                .filter(|&(_, x, _)| x < w)
                .map(|(y, x, g)| g * pixels[(y * w + x) * LANES])
                .sum();
            let got = out[(y * w + x) * LANES + 3];
            assert!(
                (got - expected).abs() < 1e-5,
                "{got} {expected} at {y}, {x}"
            );
        }
    }

    #[test]
    fn rows_of_tiles_are_correlations() {
        check_row::<4, 3>();
        check_row::<2, 5>();
    }
}
