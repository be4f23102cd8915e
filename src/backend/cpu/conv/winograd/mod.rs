//! Dense 3x3 convolutions in Winograd's form F(4x4, 3x3), for training and for networks whose tiles
//! begin at whole blocks of pixels: the same operations and parameters as in the direct form, with
//! four times fewer multiplications. Tiles are computed in groups, so that the weights of a
//! transformed point are read once for a group. Depends on the transforms and products of
//! `winograd`, and on the row kernels.

mod backward;
mod forward;

pub use backward::{backward, workspace_back};
pub use forward::{forward, workspace};

use super::super::arena::SharedPtr;
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Context, Task, round_up_to_lanes};
use super::super::tiling::{ImageRows, tiles};
use super::super::winograd::{
    BlockValues, CHUNK, IN, Lanes, Output, POINTS, Points, Span, multiply_blocks, pack_lanes,
    store_tiles, transform_input,
};
use super::input::RowRing;
use super::layout::weight_index;
use super::{row_activation, slope_values};
use crate::plan::Conv;

/// Outputs of a tile along a side, pixels.
const OUT: usize = 4;
/// Pixels of a block along a row.
const BLOCK_PIXELS: usize = CHUNK * OUT;
/// Blocks of a group: enough that reading the weights of a point, or the sums at a point, costs
/// little, and few enough that the group's transformed values stay in the second cache.
const GROUP_BLOCKS: usize = 4;
/// Input channels whose weights a task packs.
const PACK_DEPTH: usize = 16;

/// Whether a convolution is computed in this form.
pub fn applies(c: &Conv) -> bool {
    (!c.tile_invariant || c.tile_alignment.is_multiple_of(OUT))
        && (c.kernel, c.dilation, c.groups) == (3, 1, 1)
        && c.input_stride.is_multiple_of(LANES)
}

/// Whether a group has blocks of one row of tiles only. This keeps the bits of the weight gradients
/// of 16 channels, which earlier versions computed row by row.
fn rows_apart(c: &Conv) -> bool {
    (c.cin, c.cout) == (LANES, LANES)
}

/// The channels that a product is from and to: (channels, channels of the buffer).
#[derive(Clone, Copy)]
struct Direction {
    from: (usize, usize),
    to: (usize, usize),
    /// From output to input channels, with the taps turned by 180 degrees: a pixel's gradient comes
    /// from the outputs on the opposite side.
    backward: bool,
}

impl Direction {
    fn forward(c: &Conv) -> Direction {
        Direction {
            from: (c.cin, c.input_stride),
            to: (c.cout, c.output_stride),
            backward: false,
        }
    }

    fn backward(c: &Conv) -> Direction {
        Direction {
            from: (c.cout, c.output_stride),
            to: (c.cin, c.input_stride),
            backward: true,
        }
    }

    /// f32 values of the transformed weights.
    fn weights(&self) -> usize {
        POINTS * self.from.0 * self.to.1
    }

    /// f32 values of the scratch of [`convolve`].
    fn scratch(&self) -> usize {
        BlockValues::floats(GROUP_BLOCKS, self.from.1)
            + BlockValues::floats(GROUP_BLOCKS, self.to.1)
    }
}

/// Transforms the weights of one vector of lanes for [`PACK_DEPTH`] input channels a task.
struct Pack<'a> {
    op: &'a Conv,
    direction: Direction,
    weight: SharedPtr<f32>,
    out: SharedPtr<f32>,
}

impl Pack<'_> {
    fn run(self, ctx: &Context<'_>) {
        let Direction { from, to, .. } = self.direction;
        let tasks = to.1 / LANES * from.0.div_ceil(PACK_DEPTH);
        ctx.parallel(tasks, &self);
    }
}

impl Task for Pack<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (c, Direction { from, to, backward }) = (self.op, self.direction);
        let steps = from.0.div_ceil(PACK_DEPTH);
        let (vector, first) = (task / steps, task % steps * PACK_DEPTH);
        let lane = vector * LANES;
        let part =
            Lanes::parts(to.1).find(|p| (p.first..p.first + p.vectors * LANES).contains(&lane));
        let Some(part) = part else { return };
        let n = (lane - part.first) / LANES;
        let range = first..(first + PACK_DEPTH).min(from.0);
        // SAFETY: each task has lanes and depths of its own, and `weight` is the parameter
        unsafe {
            let weight = self.weight.view(0, c.weight.len);
            pack_lanes::<S>(
                self.out.at(0),
                part,
                n,
                (from.0, to.1),
                range,
                |to, from, tap| {
                    let index = if backward {
                        weight_index(c, from, to, 2 - tap / 3, 2 - tap % 3)
                    } else {
                        weight_index(c, to, from, tap / 3, tap % 3)
                    };
                    index.map_or(0.0, |index| f64::from(weight[index]))
                },
            );
        }
    }
}

/// Neighbouring tiles in a row.
#[derive(Clone, Copy)]
struct Block {
    /// First row of the tiles' outputs.
    y: usize,
    /// First tile of the row of tiles.
    first: usize,
    /// Tiles, at most [`CHUNK`].
    count: usize,
}

/// The blocks of a band of rows, in groups.
#[derive(Clone, Copy)]
struct Tiles {
    start: usize,
    end: usize,
    w: usize,
    rows_apart: bool,
}

impl Tiles {
    fn blocks_of_row(&self) -> usize {
        tiles::<OUT>(self.w).div_ceil(CHUNK)
    }

    fn block(&self, i: usize) -> Block {
        let (row, at) = (i / self.blocks_of_row(), i % self.blocks_of_row());
        Block {
            y: self.start + OUT * row,
            first: at * CHUNK,
            count: CHUNK.min(tiles::<OUT>(self.w) - at * CHUNK),
        }
    }

    /// The group of blocks after the first `done` ones; `None` after the last.
    fn group(&self, done: usize) -> Option<Group> {
        let row = self.blocks_of_row();
        let total = (self.end - self.start).div_ceil(OUT) * row;
        let left = if self.rows_apart {
            row - done % row
        } else {
            total - done.min(total)
        };
        let blocks = std::array::from_fn(|i| self.block((done + i).min(total - 1)));
        (done < total).then(|| Group {
            blocks,
            counts: blocks.map(|block| block.count),
            len: left.min(GROUP_BLOCKS),
        })
    }
}

/// Blocks that are multiplied together.
struct Group {
    blocks: [Block; GROUP_BLOCKS],
    /// The tiles in use of each.
    counts: [usize; GROUP_BLOCKS],
    /// Blocks in use.
    len: usize,
}

impl Group {
    fn counts(&self) -> &[usize] {
        &self.counts[..self.len]
    }

    fn blocks(&self) -> impl Iterator<Item = (usize, Block)> {
        self.blocks.into_iter().take(self.len).enumerate()
    }
}

/// Rows of an input as rows of tiles read them: those in memory, or activated ones in a ring.
struct InputRows {
    rows: ImageRows,
    ring: RowRing,
    /// The first row that is not in the ring yet.
    next: isize,
}

/// f32 values of [`InputRows::ring`].
fn ring_floats(c: &Conv) -> usize {
    match c.activation {
        Some(_) => round_up_to_lanes(RowRing::floats(c.extent.w, c.input_stride, 0, IN)),
        None => 0,
    }
}

impl InputRows {
    /// Rows of `c`'s input from row `start` on, with a ring in `scratch`.
    fn new(
        c: &Conv,
        source: SharedPtr<f32>,
        zeros: *const f32,
        slopes: *mut f32,
        (image, start): (usize, usize),
        scratch: *mut f32,
    ) -> InputRows {
        let (h, w) = (c.extent.h, c.extent.w);
        InputRows {
            rows: ImageRows {
                source,
                zeros,
                image,
                h,
                w,
                c: c.input_stride,
            },
            ring: RowRing {
                source,
                activation: row_activation(c, slopes),
                image,
                h,
                w,
                c: c.input_stride,
                pad: 0,
                slots: IN,
                ring: SharedPtr::new(scratch),
            },
            next: start as isize - 1,
        }
    }

    /// The six rows from `first` on, zeros outside the image. `first` is never less than before.
    ///
    /// # Safety
    /// As [`RowRing::load`] and [`ImageRows::get`].
    #[inline(always)]
    unsafe fn get<S: Simd>(&mut self, first: isize) -> [*const f32; IN] {
        let h = self.rows.h as isize;
        // SAFETY: rows outside the image are zeros, and the ring holds the last six rows
        unsafe {
            let mut rows = self.rows.get::<IN>(first, self.rows.h);
            if self.ring.activation.is_none() {
                return rows;
            }
            let end = first + IN as isize;
            for row in self.next.max(first)..end {
                if row >= 0 && row < h {
                    self.ring.load::<S>(row);
                }
            }
            self.next = end;
            for (row, y) in rows.iter_mut().zip(first..) {
                if y >= 0 && y < h {
                    *row = self.ring.row(y).cast_const();
                }
            }
            rows
        }
    }
}

/// Transforms the tiles of a block of six input rows.
///
/// # Safety
/// As [`transform_input`]; `v` has room for the block.
#[inline(always)]
unsafe fn transform_block<S: Simd>(
    rows: [*const f32; IN],
    w: usize,
    b: Block,
    v: &BlockValues,
    at: usize,
) {
    let span = Span {
        first: b.first,
        count: b.count,
        w,
        c: v.stride,
    };
    // SAFETY: by the caller's contract
    unsafe { transform_input::<S, OUT>(rows, span, points(v, at)) }
}

/// The points of a block.
///
/// # Safety
/// `v` has room for the block.
#[inline(always)]
unsafe fn points(v: &BlockValues, block: usize) -> Points {
    Points {
        // SAFETY: by the caller's contract
        base: unsafe { v.at(block, 0) },
        point_stride: v.point_stride(),
        tile_stride: v.stride,
    }
}

/// The convolution of a group of blocks.
#[derive(Clone, Copy)]
struct Convolution {
    /// Room for the transformed inputs of a group.
    v: BlockValues,
    /// Room for their products.
    m: BlockValues,
    /// Channels of `v` that are multiplied.
    depth: usize,
    weights: *const f32,
    /// `[lanes of m]`
    bias: *const f32,
}

impl Convolution {
    /// With a scratch of [`Direction::scratch`] values.
    fn new(
        direction: Direction,
        scratch: *mut f32,
        (weights, bias): (*const f32, *const f32),
    ) -> Convolution {
        let Direction { from, to, .. } = direction;
        let values = BlockValues::floats(GROUP_BLOCKS, from.1);
        Convolution {
            v: BlockValues {
                base: scratch,
                stride: from.1,
            },
            m: BlockValues {
                base: scratch.wrapping_add(values),
                stride: to.1,
            },
            depth: from.0,
            weights,
            bias,
        }
    }

    /// Multiplies the transformed inputs of a group.
    ///
    /// # Safety
    /// As [`multiply_blocks`].
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, counts: &[usize]) {
        // SAFETY: by the caller's contract
        unsafe { multiply_blocks::<S>(&self.v, counts, self.depth, self.weights, &self.m) }
    }

    /// Transforms the products of block number `at` of the group into outputs.
    ///
    /// # Safety
    /// As [`store_tiles`], for all lanes.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, at: usize, block: Block, out: Output<OUT>) {
        // SAFETY: lanes begin whole vectors of the products and outputs
        unsafe {
            let points = points(&self.m, at);
            for lane in (0..self.m.stride).step_by(LANES) {
                let mut out = out;
                for row in out.rows.iter_mut().flatten() {
                    *row = row.add(lane);
                }
                let points = Points {
                    base: points.base.add(lane),
                    ..points
                };
                store_tiles::<S, OUT>(points, block.count, S::load(self.bias.add(lane)), out);
            }
        }
    }
}

/// Places in the shared part of an operation: the weights come first.
struct Shared {
    bias: usize,
    slopes: usize,
    zeros: usize,
    len: usize,
}

impl Shared {
    /// For a product in a direction; rows of zeros have the channels of the wider buffer.
    fn new(c: &Conv, direction: Direction) -> Shared {
        let bias = direction.weights();
        let slopes = bias + direction.to.1;
        let zeros = slopes + slope_values(c);
        Shared {
            bias,
            slopes,
            zeros,
            len: zeros + c.extent.w * c.input_stride.max(c.output_stride),
        }
    }
}
