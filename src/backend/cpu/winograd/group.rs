//! Products of a group of transformed tiles with many channels, which are adjacent at each point: so
//! they are multiplied in steps that fill the registers. Depends on the vectors and on `blocks`.

use super::super::simd::{LANES, Registers, Simd};
use super::blocks::{Lanes, multiply_tile};
use super::{POINTS, point_stride};

/// Transformed values of a group of tiles, `[POINTS][tiles][stride]`, with a [`point_stride`] from
/// one point to the next.
#[derive(Clone, Copy)]
pub struct TileValues {
    /// First value.
    pub base: *mut f32,
    /// Room for that many tiles.
    pub tiles: usize,
    /// Values of a tile at a point, a multiple of 16.
    pub stride: usize,
}

/// Tiles that are multiplied together by `lanes` lanes: a multiple of all steps, so many that
/// reading the weights of a point costs little, and so few that the transformed values stay in the
/// second cache.
pub fn group_tiles(lanes: usize) -> usize {
    match lanes / LANES {
        1 | 3 => 32,
        2 => 36,
        _ => 24,
    }
}

impl TileValues {
    /// f32 values for a group of `tiles` tiles.
    pub fn floats(tiles: usize, stride: usize) -> usize {
        POINTS * point_stride(tiles * stride)
    }

    /// f32 values from one point to the next.
    #[inline(always)]
    pub fn point_stride(&self) -> usize {
        point_stride(self.tiles * self.stride)
    }

    /// The values of a tile at a point.
    ///
    /// # Safety
    /// There is room for the tile.
    #[inline(always)]
    pub unsafe fn at(&self, point: usize, tile: usize) -> *mut f32 {
        // SAFETY: the caller guarantees that the tile, at 36 points, is in memory
        unsafe {
            self.base
                .add(point * self.point_stride() + tile * self.stride)
        }
    }
}

/// Multiplies the first `count` tiles of a group with weights from [`super::pack_lanes`] at a point:
/// `m = v u`. Products of tiles from `count` on may have any value.
///
/// # Safety
/// As [`Simd`]. `v` and `m` have room for the same number of tiles, at least `count`, a multiple of
/// what [`group_tiles`] gives; `depth` is at most the stride of `v`, and `u` has weights for `depth`
/// and all lanes of `m`. `m` overlaps nothing else, and no other thread uses it.
#[inline(always)]
pub unsafe fn multiply_tiles<S: Simd>(
    v: &TileValues,
    count: usize,
    depth: usize,
    u: *const f32,
    m: &TileValues,
    point: usize,
) {
    // SAFETY: every step divides the tiles that there is room for, so none goes past the last;
    // parts stay below the lanes
    unsafe {
        for part in Lanes::parts(m.stride) {
            let step = Step {
                from: (v.at(point, 0).cast_const(), v.stride),
                depth,
                u: (
                    u.add(part.weights(point, depth, m.stride)),
                    part.vectors * LANES,
                ),
                to: (m.at(point, 0).add(part.first), m.stride),
                count,
            };
            match (S::REGISTERS, part.vectors) {
                (Registers::Many, 1) => step.run::<S, 16, 8, 1>(),
                (Registers::Many, 2) => step.run::<S, 12, 6, 2>(),
                (Registers::Many, 3) => step.run::<S, 8, 4, 3>(),
                (Registers::Many, _) => step.run::<S, 6, 3, 4>(),
                (registers, vectors) => {
                    for n in 0..vectors {
                        let step = Step {
                            u: (step.u.0.add(n * LANES), step.u.1),
                            to: (step.to.0.add(n * LANES), step.to.1),
                            ..step
                        };
                        if registers == Registers::Eight {
                            step.run::<S, 4, 2, 1>();
                        } else {
                            step.run::<S, 1, 1, 1>();
                        }
                    }
                }
            }
        }
    }
}

/// The products of a group with a part of the lanes at one point; see [`multiply_tile`].
#[derive(Clone, Copy)]
struct Step {
    from: (*const f32, usize),
    depth: usize,
    u: (*const f32, usize),
    to: (*mut f32, usize),
    count: usize,
}

impl Step {
    /// P tiles at a time, the last ones HALF at a time, with V vectors.
    ///
    /// # Safety
    /// As [`multiply_tile`]; there is room for `count` tiles, rounded up to a multiple of P.
    #[inline(always)]
    unsafe fn run<S: Simd, const P: usize, const HALF: usize, const V: usize>(self) {
        // SAFETY: the caller's contract
        unsafe {
            for tile in (0..self.count).step_by(P) {
                let from = (self.from.0.add(tile * self.from.1), self.from.1);
                let to = (self.to.0.add(tile * self.to.1), self.to.1);
                if self.count - tile > HALF {
                    multiply_tile::<S, P, V>(from, self.depth, self.u, to);
                } else {
                    multiply_tile::<S, HALF, V>(from, self.depth, self.u, to);
                }
            }
        }
    }
}
