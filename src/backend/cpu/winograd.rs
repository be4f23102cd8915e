//! 3x3 convolutions with 2.25 times fewer multiplications: Winograd's F(2x2, 3x3) (Lavin and Gray, "Fast algorithms for
//! convolutional neural networks", 2016). Pairs of rows are cut into tiles of 2x2 outputs from 4x4 inputs; products happen
//! in 16 transformed points. Built from vectors alone; `conv` decides where it is used. The bits of an output depend on
//! where the tiles begin, so inference in overlapping tiles keeps to the direct form.

use super::simd::{LANES, Simd};

/// Transformed points of a tile.
pub const POINTS: usize = 16;
/// Tiles multiplied at a time: 16 accumulators of a wide machine with two vectors of lanes.
pub const CHUNK: usize = 8;
/// Lanes multiplied at a time.
pub const GROUP: usize = 2 * LANES;

/// Tiles that cover a row of `w` pixels.
pub fn tiles(w: usize) -> usize {
    w.div_ceil(2)
}

/// Pixels of a padded input row: one before, and enough behind for the last tile.
pub fn padded(w: usize) -> usize {
    2 * tiles(w) + 2
}

/// Copies a row `[w][c]` behind one zero pixel and fills up with zeros to [`padded`]; a missing row becomes zeros.
///
/// # Safety
/// `out` holds `[padded(w)][c]`, the row `[w][c]`.
#[inline(always)]
pub unsafe fn pad_row(row: Option<*const f32>, c: usize, w: usize, out: *mut f32) {
    unsafe {
        match row {
            Some(row) => {
                out.write_bytes(0, c);
                std::ptr::copy_nonoverlapping(row, out.add(c), w * c);
                out.add((w + 1) * c).write_bytes(0, (padded(w) - w - 1) * c);
            }
            None => out.write_bytes(0, padded(w) * c),
        }
    }
}

/// Weights of one (input, output) channel into the 16 points: G g G^T, for `g[ky * 3 + kx]`.
pub fn transform_weights(g: [f32; 9]) -> [f32; POINTS] {
    let line = |a: f32, b: f32, c: f32| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
    let columns: [[f32; 4]; 3] = std::array::from_fn(|x| line(g[x], g[3 + x], g[6 + x]));
    let mut out = [0.0; POINTS];
    for y in 0..4 {
        out[4 * y..4 * y + 4].copy_from_slice(&line(columns[0][y], columns[1][y], columns[2][y]));
    }
    out
}

/// The transpose of [`transform_weights`], G^T u G: gradients at the points to gradients of the taps.
pub fn gather_weights(u: [f32; POINTS]) -> [f32; 9] {
    let line = |a: f32, b: f32, c: f32, d: f32| [a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) + d];
    let rows: [[f32; 3]; 4] = std::array::from_fn(|y| line(u[4 * y], u[4 * y + 1], u[4 * y + 2], u[4 * y + 3]));
    let mut out = [0.0; 9];
    for x in 0..3 {
        for (y, v) in line(rows[0][x], rows[1][x], rows[2][x], rows[3][x]).into_iter().enumerate() {
            out[y * 3 + x] = v;
        }
    }
    out
}

/// B^T applied to four values.
#[inline(always)]
unsafe fn input_line<S: Simd>(d: [S::V; 4]) -> [S::V; 4] {
    unsafe { [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[1], d[3])] }
}

/// B^T d B for `count` tiles from `first` on: four padded rows `[..][c]` to `out[point * point_stride + tile * stride + channel]`.
///
/// # Safety
/// Rows of [`padded`] pixels; `out` as large as the strides say; `c` a multiple of 16; and as [`Simd`].
#[inline(always)]
pub unsafe fn transform_input<S: Simd>(
    rows: [*const f32; 4],
    c: usize,
    first: usize,
    count: usize,
    out: *mut f32,
    (point_stride, stride): (usize, usize),
) {
    unsafe {
        for lane in (0..c).step_by(LANES) {
            let column = |x: usize| {
                let at = x * c + lane;
                input_line::<S>([S::load(rows[0].add(at)), S::load(rows[1].add(at)), S::load(rows[2].add(at)), S::load(rows[3].add(at))])
            };
            let (mut a, mut b) = (column(2 * first), column(2 * first + 1));
            for tile in 0..count {
                let x = 2 * (first + tile);
                let (e, f) = (column(x + 2), column(x + 3));
                let to = out.add(tile * stride + lane);
                for y in 0..4 {
                    let points = input_line::<S>([a[y], b[y], e[y], f[y]]);
                    for (k, &v) in points.iter().enumerate() {
                        S::store(to.add((4 * y + k) * point_stride), v);
                    }
                }
                (a, b) = (e, f);
            }
        }
    }
}

/// A dy A^T for `count` tiles from `first` on of two gradient rows `[w][c]` (the second may be missing), to
/// `out[point * point_stride + tile * stride + lane]`. Pixels behind `w` count as zero.
///
/// # Safety
/// As [`transform_input`].
#[inline(always)]
pub unsafe fn transform_gradient<S: Simd>(
    rows: [Option<*const f32>; 2],
    c: usize,
    w: usize,
    (first, count): (usize, usize),
    out: *mut f32,
    (point_stride, stride): (usize, usize),
) {
    unsafe {
        for tile in 0..count {
            let pixel = 2 * (first + tile);
            for lane in (0..c).step_by(LANES) {
                let get = |y: usize, x: usize| match rows[y] {
                    Some(row) if pixel + x < w => S::load(row.add((pixel + x) * c + lane)),
                    _ => S::splat(0.0),
                };
                // A: [1 0; 1 1; 1 -1; 0 -1]
                let line = |p: S::V, q: S::V| [p, S::add(p, q), S::sub(p, q), S::sub(S::splat(0.0), q)];
                let (left, right) = (line(get(0, 0), get(1, 0)), line(get(0, 1), get(1, 1)));
                let to = out.add(tile * stride + lane);
                for y in 0..4 {
                    for (k, v) in line(left[y], right[y]).into_iter().enumerate() {
                        S::store(to.add((4 * y + k) * point_stride), v);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_tile<S: Simd, const P: usize, const V: usize, const K: usize>(
    v: *const f32,
    k: usize,
    u: *const f32,
    lanes: usize,
    m: *mut f32,
) {
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
            weights = weights.add(lanes);
        }
        for (p, acc) in acc.iter().enumerate() {
            for (n, &acc) in acc.iter().enumerate() {
                S::store(m.add(p * V * LANES + n * LANES), acc);
            }
        }
    }
}

/// The products of one chunk at all points: `v[point][CHUNK][k]` with `u[point][k][lanes]`, lanes `lane..lane + V * 16`, to
/// `m[point][CHUNK][V * 16]`.
#[inline(always)]
unsafe fn multiply<S: Simd, const V: usize, const K: usize>(v: *const f32, k: usize, u: *const f32, lanes: usize, m: *mut f32) {
    unsafe {
        for point in 0..POINTS {
            let (v, u, m) = (v.add(point * CHUNK * k), u.add(point * k * lanes), m.add(point * CHUNK * V * LANES));
            if S::WIDE {
                multiply_tile::<S, CHUNK, V, K>(v, k, u, lanes, m);
            } else {
                // sixteen narrow registers: half the tiles at a time, or a quarter with two vectors
                let step = CHUNK / (2 * V);
                for p in (0..CHUNK).step_by(step) {
                    match step {
                        4 => multiply_tile::<S, 4, V, K>(v.add(p * k), k, u, lanes, m.add(p * V * LANES)),
                        _ => multiply_tile::<S, 2, V, K>(v.add(p * k), k, u, lanes, m.add(p * V * LANES)),
                    }
                }
            }
        }
    }
}

/// Where the 2x2 outputs of a chunk go.
#[derive(Clone, Copy)]
pub struct Output {
    /// First pixel of the upper and lower row, at the lanes of the group; the lower one may be missing.
    pub rows: [Option<*mut f32>; 2],
    /// f32 values from one pixel to the next.
    pub stride: usize,
    /// First pixel of the chunk, and pixels in the row.
    pub x: usize,
    /// See `x`.
    pub w: usize,
}

/// A^T m A of a chunk plus bias, for one vector of lanes at `m[point][tile][n * 16..]`.
#[inline(always)]
unsafe fn store_outputs<S: Simd, const V: usize>(m: *const f32, n: usize, count: usize, bias: S::V, out: Output) {
    unsafe {
        // A^T: [1 1 1 0; 0 1 -1 -1]
        let line = |a: S::V, b: S::V, c: S::V, d: S::V| (S::add(S::add(a, b), c), S::sub(S::sub(b, c), d));
        for tile in 0..count {
            let at = |point: usize| S::load(m.add((point * CHUNK + tile) * V * LANES + n * LANES));
            let columns: [(S::V, S::V); 4] = std::array::from_fn(|x| line(at(x), at(4 + x), at(8 + x), at(12 + x)));
            let upper = line(columns[0].0, columns[1].0, columns[2].0, columns[3].0);
            let lower = line(columns[0].1, columns[1].1, columns[2].1, columns[3].1);
            let x = out.x + 2 * tile;
            for (row, (left, right)) in out.rows.iter().zip([upper, lower]) {
                let Some(row) = row else { continue };
                S::store(row.add(x * out.stride + n * LANES), S::add(left, bias));
                if x + 1 < out.w {
                    S::store(row.add((x + 1) * out.stride + n * LANES), S::add(right, bias));
                }
            }
        }
    }
}

/// One chunk of tiles: the product of `v[point][CHUNK][k]` with `u[point][k][lanes]`, of one or `two` vectors of lanes from
/// where `u` points, transformed back and stored with the bias. `m` is room for `[POINTS][CHUNK][GROUP]`.
///
/// # Safety
/// All pointers valid for these extents; tiles behind `count` may hold anything; and as [`Simd`].
#[inline(always)]
pub unsafe fn multiply_and_store<S: Simd, const K: usize>(c: &Chunk, u: *const f32, two: bool, bias: *const f32, out: Output) {
    unsafe {
        if two {
            multiply::<S, 2, K>(c.v, c.k, u, c.lanes, c.m);
            for n in 0..2 {
                store_outputs::<S, 2>(c.m, n, c.count, S::load(bias.add(n * LANES)), out);
            }
        } else {
            multiply::<S, 1, K>(c.v, c.k, u, c.lanes, c.m);
            store_outputs::<S, 1>(c.m, 0, c.count, S::load(bias), out);
        }
    }
}

/// A chunk of transformed input, and room to multiply it.
#[derive(Clone, Copy)]
pub struct Chunk {
    /// `[POINTS][CHUNK][k]`
    pub v: *const f32,
    /// Input channels.
    pub k: usize,
    /// Output channels: from one row of transformed weights to the next.
    pub lanes: usize,
    /// Tiles that count.
    pub count: usize,
    /// `[POINTS][CHUNK][GROUP]`
    pub m: *mut f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_their_gradients_are_transposes_of_each_other() {
        // <transform(g), u> = <g, gather(u)> for all g and u
        let draw = |seed: u64| crate::rng::Rng::new(&[seed]).range(-1.0, 1.0) as f32;
        let g: [f32; 9] = std::array::from_fn(|i| draw(i as u64));
        let u: [f32; POINTS] = std::array::from_fn(|i| draw(100 + i as u64));
        let a: f32 = transform_weights(g).iter().zip(&u).map(|(a, b)| a * b).sum();
        let b: f32 = gather_weights(u).iter().zip(&g).map(|(a, b)| a * b).sum();
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}
