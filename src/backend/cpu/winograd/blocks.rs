//! Products of transformed tiles with many channels: several blocks of tiles are multiplied at one
//! point before the next, so that the weights of a point are read once from the outer caches for all
//! of them. Depends on the vectors and transforms.

use super::super::simd::{LANES, Registers, Simd};
use super::{CHUNK, IN, POINTS, SCALE, interpolation, point_stride};

/// Transformed values of blocks of [`CHUNK`] tiles, `[block][POINTS][CHUNK][stride]`, with a
/// [`point_stride`] from one point to the next.
#[derive(Clone, Copy)]
pub struct BlockValues {
    /// First value.
    pub base: *mut f32,
    /// Values of a tile at a point, a multiple of 16.
    pub stride: usize,
}

impl BlockValues {
    /// f32 values of `blocks` blocks.
    pub fn floats(blocks: usize, stride: usize) -> usize {
        blocks * POINTS * point_stride(CHUNK * stride)
    }

    /// f32 values from one point of a block to the next.
    #[inline(always)]
    pub fn point_stride(&self) -> usize {
        point_stride(CHUNK * self.stride)
    }

    /// The tiles `[CHUNK][stride]` of a block at a point.
    ///
    /// # Safety
    /// There is room for the block.
    #[inline(always)]
    pub unsafe fn at(&self, block: usize, point: usize) -> *mut f32 {
        // SAFETY: the caller guarantees that the block, which has 36 points, is in memory
        unsafe {
            self.base
                .add((block * POINTS + point) * self.point_stride())
        }
    }
}

/// A part of the lanes that is multiplied at once.
#[derive(Clone, Copy)]
pub struct Lanes {
    /// First lane.
    pub first: usize,
    /// Vectors, at most [`Lanes::MOST`].
    pub vectors: usize,
}

impl Lanes {
    /// Most vectors of a part.
    pub const MOST: usize = 4;

    /// The parts of `lanes` lanes: as many of four vectors as possible, but none of one vector
    /// beside others.
    pub fn parts(lanes: usize) -> impl Iterator<Item = Lanes> {
        let vectors = lanes / LANES;
        let mut done = 0;
        std::iter::from_fn(move || {
            let width = match vectors - done {
                0 => return None,
                5 => 3,
                left => left.min(Self::MOST),
            };
            done += width;
            Some(Lanes {
                first: (done - width) * LANES,
                vectors: width,
            })
        })
    }

    /// The place of the part's weights at a point, in those of all `lanes` lanes for a depth.
    pub fn weights(&self, point: usize, depth: usize, lanes: usize) -> usize {
        (point * lanes + self.first) * depth
    }
}

/// Writes the transformed weights of vector `n` of a part of `lanes` lanes for the depths of `range`;
/// `value(lane, k, tap)` gives the taps of a 3x3 convolution. The weights of all lanes are, for each
/// point and then for each part, `[k][lanes of the part]`.
///
/// # Safety
/// As [`Simd`]. `out` has room for the weights of all lanes, for `depth` values of k; no other
/// thread uses these.
#[expect(
    clippy::needless_range_loop,
    reason = "points, taps and lanes are indices of several arrays at once"
)]
#[inline(always)]
pub unsafe fn pack_lanes<S: Simd>(
    out: *mut f32,
    part: Lanes,
    n: usize,
    (depth, lanes): (usize, usize),
    range: std::ops::Range<usize>,
    value: impl Fn(usize, usize, usize) -> f64,
) {
    const TAPS: usize = 3;
    let width = part.vectors * LANES;
    for k in range {
        // as `transform_weights`, for all lanes of the vector
        let mut taps = [[0.0; LANES]; TAPS * TAPS];
        for lane in 0..LANES {
            for (tap, taps) in taps.iter_mut().enumerate() {
                taps[lane] = value(part.first + n * LANES + lane, k, tap);
            }
        }
        for y in 0..IN {
            let mut rows = [[0.0; LANES]; TAPS];
            for (x, row) in rows.iter_mut().enumerate() {
                for lane in 0..LANES {
                    let sum: f64 = (0..TAPS)
                        .map(|k| interpolation(y, k, TAPS) * taps[k * TAPS + x][lane])
                        .sum();
                    row[lane] = SCALE[y] * sum;
                }
            }
            for x in 0..IN {
                let at = part.weights(y * IN + x, depth, lanes) + k * width + n * LANES;
                for lane in 0..LANES {
                    let sum: f64 = (0..TAPS)
                        .map(|k| interpolation(x, k, TAPS) * rows[k][lane])
                        .sum();
                    // SAFETY: the caller guarantees the room
                    unsafe { *out.add(at + lane) = (SCALE[x] * sum) as f32 };
                }
            }
        }
    }
}

/// Products of P tiles with V vectors of lanes at one point: from `[P]` tiles of `depth` values,
/// `from.1` apart, with weights `u.1` apart, to V vectors of each tile, `to.1` apart.
///
/// # Safety
/// As [`Simd`], and the pointers are valid for these sizes; `to` overlaps nothing else, and no other
/// thread uses it.
#[inline(always)]
pub unsafe fn multiply_tile<S: Simd, const P: usize, const V: usize>(
    from: (*const f32, usize),
    depth: usize,
    u: (*const f32, usize),
    to: (*mut f32, usize),
) {
    // SAFETY: depths stay below `depth`, tiles below P and vectors below V, for which the caller
    // guarantees the memory
    unsafe {
        let mut acc = [[S::splat(0.0); V]; P];
        let mut weights = u.0;
        for i in 0..depth {
            let mut w = [S::splat(0.0); V];
            for (n, w) in w.iter_mut().enumerate() {
                *w = S::load(weights.add(n * LANES));
            }
            for (p, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*from.0.add(p * from.1 + i));
                for (acc, &w) in acc.iter_mut().zip(&w) {
                    *acc = S::fma(x, w, *acc);
                }
            }
            weights = weights.add(u.1);
        }
        for (p, acc) in acc.iter().enumerate() {
            for (n, &acc) in acc.iter().enumerate() {
                S::store(to.0.add(p * to.1 + n * LANES), acc);
            }
        }
    }
}

/// Multiplies blocks of tiles with weights from [`pack_lanes`] at all points: `m = v u`. `counts`
/// has the tiles in use of each block; products of tiles that are not may have any value.
///
/// # Safety
/// As [`Simd`]. `v` and `m` have room for the blocks, `depth` is at most the stride of `v`, and `u`
/// has weights for `depth` and all lanes of `m`. `m` overlaps nothing else, and no other thread uses
/// it.
#[inline(always)]
pub unsafe fn multiply_blocks<S: Simd>(
    v: &BlockValues,
    counts: &[usize],
    depth: usize,
    u: *const f32,
    m: &BlockValues,
) {
    // SAFETY: a block has room for CHUNK tiles, in use or not, and every step width divides CHUNK;
    // parts stay below the lanes
    unsafe {
        for point in 0..POINTS {
            for part in Lanes::parts(m.stride) {
                let u = (
                    u.add(part.weights(point, depth, m.stride)),
                    part.vectors * LANES,
                );
                for (block, &count) in counts.iter().enumerate() {
                    let from = (v.at(block, point).cast_const(), v.stride);
                    let to = (m.at(block, point).add(part.first), m.stride);
                    match part.vectors {
                        1 => multiply_block::<S, 1>(from, depth, u, to, count),
                        2 => multiply_block::<S, 2>(from, depth, u, to, count),
                        3 => multiply_block::<S, 3>(from, depth, u, to, count),
                        _ => multiply_block::<S, 4>(from, depth, u, to, count),
                    }
                }
            }
        }
    }
}

/// The products of a block's first `count` tiles with V vectors of lanes at one point; see
/// [`multiply_tile`].
///
/// # Safety
/// As [`multiply_tile`] for CHUNK tiles.
#[inline(always)]
unsafe fn multiply_block<S: Simd, const V: usize>(
    from: (*const f32, usize),
    depth: usize,
    u: (*const f32, usize),
    to: (*mut f32, usize),
    count: usize,
) {
    // SAFETY: every step width divides CHUNK, and `count` is at most CHUNK; vectors stay below V
    unsafe {
        if S::REGISTERS == Registers::Many {
            if V == Lanes::MOST && count > CHUNK / 2 {
                let half = CHUNK / 2;
                multiply_tile::<S, { CHUNK / 2 }, V>(from, depth, u, to);
                let (from_half, to_half) = (from.0.add(half * from.1), to.0.add(half * to.1));
                multiply_tile::<S, { CHUNK / 2 }, V>(
                    (from_half, from.1),
                    depth,
                    u,
                    (to_half, to.1),
                );
            } else if count > CHUNK / 2 {
                multiply_tile::<S, CHUNK, V>(from, depth, u, to);
            } else {
                multiply_tile::<S, { CHUNK / 2 }, V>(from, depth, u, to);
            }
            return;
        }
        for n in 0..V {
            let u = (u.0.add(n * LANES), u.1);
            let step = if S::REGISTERS == Registers::Eight {
                4
            } else {
                1
            };
            for tile in (0..count).step_by(step) {
                let from = (from.0.add(tile * from.1), from.1);
                let to = (to.0.add(tile * to.1 + n * LANES), to.1);
                if S::REGISTERS == Registers::Eight {
                    multiply_tile::<S, 4, 1>(from, depth, u, to);
                } else {
                    multiply_tile::<S, 1, 1>(from, depth, u, to);
                }
            }
        }
    }
}

/// J inputs and V vectors of lanes of [`outer_blocks`].
#[derive(Clone, Copy)]
struct OuterTile<'a> {
    v: &'a BlockValues,
    z: &'a BlockValues,
    counts: &'a [usize],
    point: usize,
    /// First lane.
    lane: usize,
    sums: *mut f32,
    add: bool,
}

impl OuterTile<'_> {
    /// The sums of inputs `j..j + J` and V vectors of lanes.
    ///
    /// # Safety
    /// As [`outer_blocks`]; these inputs and lanes are among all.
    #[inline(always)]
    unsafe fn run<S: Simd, const J: usize, const V: usize>(&self, j: usize) {
        // SAFETY: tiles stay below the count of their block; inputs and lanes are in every tile by
        // the caller's contract
        unsafe {
            let mut acc = [[S::splat(0.0); V]; J];
            for (block, &count) in self.counts.iter().enumerate() {
                let mut x = self.v.at(block, self.point).add(j).cast_const();
                let mut y = self.z.at(block, self.point).add(self.lane).cast_const();
                for _ in 0..count {
                    let mut g = [S::splat(0.0); V];
                    for (n, g) in g.iter_mut().enumerate() {
                        *g = S::load(y.add(n * LANES));
                    }
                    for (j, acc) in acc.iter_mut().enumerate() {
                        let x = S::splat(*x.add(j));
                        for (acc, &g) in acc.iter_mut().zip(&g) {
                            *acc = S::fma(x, g, *acc);
                        }
                    }
                    x = x.add(self.v.stride);
                    y = y.add(self.z.stride);
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                for (n, &acc) in acc.iter().enumerate() {
                    let at = self
                        .sums
                        .add((j + i) * self.z.stride + self.lane + n * LANES);
                    let before = if self.add { S::load(at) } else { S::splat(0.0) };
                    S::store(at, S::add(before, acc));
                }
            }
        }
    }

    /// All inputs below `depth`, J at a time, for V vectors of lanes.
    ///
    /// # Safety
    /// As [`outer_blocks`]; these lanes are among all.
    #[inline(always)]
    unsafe fn inputs<S: Simd, const J: usize, const V: usize>(&self, depth: usize) {
        // SAFETY: no step goes past `depth`
        unsafe {
            let mut j = 0;
            while j + J <= depth {
                self.run::<S, J, V>(j);
                j += J;
            }
            while J > 4 && j + 4 <= depth {
                self.run::<S, 4, V>(j);
                j += 4;
            }
            while j < depth {
                self.run::<S, 1, V>(j);
                j += 1;
            }
        }
    }
}

/// The weight gradient of blocks of tiles at all points: `sums[point][j][lane]`, for `depth` inputs
/// j and all lanes of `z`, is the sum over the tiles in use of `v[j] z[lane]`, added to what is there
/// or (without `add`) in its place. The sum over the tiles is computed first.
///
/// # Safety
/// As [`Simd`]. `v` and `z` hold the blocks, and `depth` is at most the stride of `v`. `sums` has
/// room for `[POINTS][depth][lanes]`, overlaps nothing else, and no other thread uses it.
#[inline(always)]
pub unsafe fn outer_blocks<S: Simd>(
    v: &BlockValues,
    z: &BlockValues,
    counts: &[usize],
    depth: usize,
    sums: *mut f32,
    add: bool,
) {
    // SAFETY: parts stay below the lanes, and the caller guarantees the rest
    unsafe {
        for point in 0..POINTS {
            for part in Lanes::parts(z.stride) {
                let tile = OuterTile {
                    v,
                    z,
                    counts,
                    point,
                    lane: part.first,
                    sums: sums.add(point * depth * z.stride),
                    add,
                };
                match (S::REGISTERS, part.vectors) {
                    (Registers::Many, 4) => {
                        tile.inputs::<S, 8, 2>(depth);
                        let lane = tile.lane + 2 * LANES;
                        OuterTile { lane, ..tile }.inputs::<S, 8, 2>(depth);
                    }
                    (Registers::Many, 1) => tile.inputs::<S, 16, 1>(depth),
                    (Registers::Many, 2) => tile.inputs::<S, 8, 2>(depth),
                    (Registers::Many, _) => tile.inputs::<S, 8, 3>(depth),
                    (registers, vectors) => {
                        for n in 0..vectors {
                            let lane = tile.lane + n * LANES;
                            let tile = OuterTile { lane, ..tile };
                            if registers == Registers::Eight {
                                tile.inputs::<S, 4, 1>(depth);
                            } else {
                                tile.inputs::<S, 1, 1>(depth);
                            }
                        }
                    }
                }
            }
        }
    }
}
