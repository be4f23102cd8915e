//! Dense 3x3 convolutions in Winograd's form F(4x4, 3x3), for training: the same operations and
//! parameters as in the direct form, with four times fewer multiplications. Tiles are computed in
//! groups of a few blocks, so that the weights of a transformed point are read once for a group.
//! Depends on the transforms and products of `winograd`, and on the row kernels.

use super::super::arena::SharedPtr;
use super::super::rows::row_sum;
use super::super::simd::{LANES, Simd};
use super::super::tasks::{
    Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache, round_up_to_lanes,
};
use super::super::tiling::{ImageRows, tiles};
use super::super::winograd::{
    BlockValues, CHUNK, IN, Lanes, Output, POINTS, Points, Span, gather_lanes, multiply_blocks,
    outer_blocks, pack_lanes, store_tiles, transform_gradient, transform_input,
};
use super::input::RowRing;
use super::layout::weight_index;
use super::{Finish, pack_channels, row_activation, slope_values, store_gradients};
use crate::plan::{Conv, ConvBack};

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

/// Workspace of the forward operation. Shared: weights, biases, slopes and a row of zeros. Scratch:
/// activated rows, transformed inputs and products.
pub fn workspace(c: &Conv) -> Workspace {
    let direction = Direction::forward(c);
    Workspace {
        shared: Shared::new(c, direction).len,
        scratch: ring_floats(c) + direction.scratch(),
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Conv,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, input_stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, output_stride]`
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = self.op;
        let (w, h, lanes) = (c.extent.w, c.extent.h, c.output_stride);
        let direction = Direction::forward(c);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of the output are this task's. Channels of the buffers are
        // multiples of 16 (`check`), so pixels begin at multiples of 64 bytes. The rest is the
        // contract of `Task::run`.
        unsafe {
            let (shared, at) = (self.parts.shared(), Shared::new(c, direction));
            let ring = self.parts.scratch().at(0);
            let (zeros, slopes) = (shared.at(at.zeros), shared.at(at.slopes));
            let mut inputs = InputRows::new(c, self.input, zeros, slopes, (image, start), ring);
            let scratch = ring.add(ring_floats(c));
            let packed = (shared.at(0).cast_const(), shared.at(at.bias).cast_const());
            let convolution = Convolution::new(direction, scratch, packed);
            let tiles = Tiles {
                start,
                end,
                w,
                rows_apart: false,
            };
            let mut done = 0;
            while let Some(group) = tiles.group(done) {
                for (at, block) in group.blocks() {
                    let rows = inputs.get::<S>(block.y as isize - 1);
                    transform_block::<S>(rows, w, block, &convolution.v, at);
                }
                convolution.multiply::<S>(group.counts());
                for (at, block) in group.blocks() {
                    let row = |r: usize| self.output.at((image * h + block.y + r) * w * lanes);
                    let out = Output {
                        rows: std::array::from_fn(|r| (block.y + r < end).then(|| row(r))),
                        stride: lanes,
                        x: OUT * block.first,
                        w,
                        non_temporal: exceeds_cache(c.extent, lanes),
                    };
                    convolution.store::<S>(at, block, out);
                }
                done += group.len;
            }
            S::fence();
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    let parts = ctx.parts(op.workspace, workspace(op));
    let direction = Direction::forward(op);
    let (shared, at) = (parts.shared(), Shared::new(op, direction));
    Pack {
        op,
        direction,
        weight: ctx.param(op.parameters, op.weight),
        out: shared,
    }
    .run(ctx);
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    unsafe {
        pack_channels(ctx, op, Some(shared.at(at.bias)), shared.at(at.slopes));
        shared.slice(at.zeros, at.len - at.zeros).fill(0.0);
    }
    let mut bands = Bands::new(op.extent);
    if op.tile_invariant {
        bands = bands.aligned(OUT);
    }
    ctx.parallel(
        bands.tasks(),
        &Forward {
            op,
            parts,
            bands,
            input: ctx.floats(op.input),
            output: ctx.floats(op.output),
        },
    );
}

/// f32 values of the weight gradients at the points.
fn sums_floats(c: &Conv) -> usize {
    POINTS * c.cin * c.output_stride
}

/// f32 elements of a task's partial: gradients of the weights `[tap][input][lane]`, then of the
/// biases `[lane]` and of the slopes.
fn gradients(c: &Conv) -> usize {
    bias_at(c) + c.output_stride + slope_values(c)
}

fn bias_at(c: &Conv) -> usize {
    9 * c.cin * c.output_stride
}

/// f32 values of a block of a gradient before it is finished.
fn unfinished_floats(op: &ConvBack) -> usize {
    let c = &op.forward;
    let only_stores = c.activation.is_none() && op.d_input.is_none_or(|d| !d.add);
    if only_stores {
        0
    } else {
        OUT * BLOCK_PIXELS * c.input_stride
    }
}

/// Workspace of the backward operation. Shared: weights, zeros and slopes. Scratch: activated rows,
/// transformed values or products of inputs and of gradients, and then either the sums at the points
/// or a block of the gradient.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    let direction = Direction::backward(c);
    Workspace {
        shared: Shared::new(c, direction).len,
        partial: gradients(c),
        tasks: Bands::new(c.extent).tasks(),
        scratch: ring_floats(c) + direction.scratch() + sums_floats(c).max(unfinished_floats(op)),
    }
}

struct Backward<'a> {
    op: &'a ConvBack,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, input_stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, output_stride]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, input_stride]`, if asked for, and whether to add.
    d_input: Option<(SharedPtr<f32>, bool)>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = &self.op.forward;
        let (image, start, end) = self.bands.task(task);
        let direction = Direction::backward(c);
        // SAFETY: rows `start..end` of `d_input` and the partial are this task's. Channels of the
        // buffers are multiples of 16 (`check`), so pixels begin at multiples of 64 bytes. The rest
        // is the contract of `Task::run`.
        unsafe {
            let partial = self.parts.partial(task).at(0);
            partial
                .add(bias_at(c))
                .write_bytes(0, gradients(c) - bias_at(c));
            let (shared, at) = (self.parts.shared(), Shared::new(c, direction));
            let (zeros, slopes) = (shared.at(at.zeros), shared.at(at.slopes));
            let ring = self.parts.scratch().at(0);
            let inputs = InputRows::new(c, self.input, zeros, slopes, (image, start), ring);
            let band = BandOfGradients {
                task: self,
                gradients: ImageRows {
                    source: self.d_output,
                    c: c.output_stride,
                    ..inputs.rows
                },
                inputs,
                tiles: Tiles {
                    start,
                    end,
                    w: c.extent.w,
                    rows_apart: rows_apart(c),
                },
                values: ring.add(ring_floats(c)),
                rest: ring.add(ring_floats(c) + direction.scratch()),
                partial,
            };
            let band = band.weights::<S>();
            if let Some(d_input) = self.d_input {
                band.inputs::<S>(d_input, (shared.at(0), shared.at(at.bias)));
            }
            S::fence();
        }
    }
}

/// The gradients of a band of rows: first those of the weights, then that of the input, so that the
/// sums of the former need not share the cache with the weights of the latter.
struct BandOfGradients<'a> {
    task: &'a Backward<'a>,
    inputs: InputRows,
    gradients: ImageRows,
    tiles: Tiles,
    /// Room for transformed inputs and gradients of a group.
    values: *mut f32,
    /// Room for the sums at the points, and for an unfinished block.
    rest: *mut f32,
    partial: *mut f32,
}

impl BandOfGradients<'_> {
    /// Computes the gradients of weights and biases.
    ///
    /// # Safety
    /// As [`Task::run`] of the task that has made `self`.
    #[inline(always)]
    unsafe fn weights<S: Simd>(mut self) -> Self {
        let c = &self.task.op.forward;
        let (w, end, lanes) = (c.extent.w, self.tiles.end, c.output_stride);
        let v = BlockValues {
            base: self.values,
            stride: c.input_stride,
        };
        // SAFETY: the scratch has room for the values of a group, for the sums, and for a partial;
        // the rest is the caller's contract
        unsafe {
            let z = BlockValues {
                base: self
                    .values
                    .add(BlockValues::floats(GROUP_BLOCKS, c.input_stride)),
                stride: lanes,
            };
            let (sums, partial, mut done) = (self.rest, self.partial, 0);
            while let Some(group) = self.tiles.group(done) {
                for (at, block) in group.blocks() {
                    let rows = self.inputs.get::<S>(block.y as isize - 1);
                    transform_block::<S>(rows, w, block, &v, at);
                    // the weights' gradient counts rows of this band only
                    let own = self.gradients.get::<OUT>(block.y as isize, end);
                    let span = Span {
                        first: block.first,
                        count: block.count,
                        w,
                        c: lanes,
                    };
                    transform_gradient::<S, OUT>(own, span, points(&z, at));
                    if block.first == 0 {
                        for d in &own[..OUT.min(end - block.y)] {
                            row_sum::<S>(*d, lanes, w, partial.add(bias_at(c)));
                        }
                    }
                }
                outer_blocks::<S>(&v, &z, group.counts(), c.cin, sums, done > 0);
                done += group.len;
            }
            let values = c.cin * lanes;
            for at in (0..values).step_by(LANES) {
                gather_lanes::<S, 3>(sums.add(at), values, partial.add(at), values);
            }
        }
        self
    }

    /// Computes the gradient of the input.
    ///
    /// # Safety
    /// As [`BandOfGradients::weights`].
    #[inline(always)]
    unsafe fn inputs<S: Simd>(
        &self,
        (d_input, add): (SharedPtr<f32>, bool),
        (weights, bias): (*const f32, *const f32),
    ) {
        let op = self.task.op;
        let c = &op.forward;
        let (w, h, end, cin) = (c.extent.w, c.extent.h, self.tiles.end, c.input_stride);
        let packed = Direction::backward(c);
        let convolution = Convolution::new(packed, self.values, (weights, bias));
        let only_stores = unfinished_floats(op) == 0;
        let mut done = 0;
        // SAFETY: rows below `end` are this task's; an unfinished block has room for its pixels
        unsafe {
            let row = |y: usize| d_input.at((self.inputs.rows.image * h + y) * w * cin);
            let unfinished = |r: usize| self.rest.add(r * BLOCK_PIXELS * cin);
            while let Some(group) = self.tiles.group(done) {
                for (at, block) in group.blocks() {
                    let rows = self.gradients.get(block.y as isize - 1, h);
                    transform_block::<S>(rows, w, block, &convolution.v, at);
                }
                convolution.multiply::<S>(group.counts());
                for (at, block) in group.blocks() {
                    let (y, x) = (block.y, OUT * block.first);
                    let place = |r: usize| {
                        if only_stores {
                            row(y + r)
                        } else {
                            unfinished(r)
                        }
                    };
                    let out = Output {
                        rows: std::array::from_fn(|r| (y + r < end).then(|| place(r))),
                        stride: cin,
                        x: if only_stores { x } else { 0 },
                        w: if only_stores { w } else { BLOCK_PIXELS },
                        non_temporal: only_stores && exceeds_cache(c.extent, cin),
                    };
                    convolution.store::<S>(at, block, out);
                    let rows = if only_stores { 0 } else { OUT.min(end - y) };
                    for r in 0..rows {
                        let finish = Finish {
                            activation: self.inputs.ring.activation,
                            z: self.inputs.ring.stored(y + r).add(x * cin),
                            c: cin,
                            len: BLOCK_PIXELS.min(w - x) * cin,
                            out: row(y + r).add(x * cin),
                            add,
                            slope_sums: self.partial.add(bias_at(c) + c.output_stride),
                        };
                        finish.run::<S>(unfinished(r));
                    }
                }
                done += group.len;
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let direction = Direction::backward(c);
    let (shared, at) = (parts.shared(), Shared::new(c, direction));
    if op.d_input.is_some() {
        Pack {
            op: c,
            direction,
            weight: ctx.param(c.parameters, c.weight),
            out: shared,
        }
        .run(ctx);
    }
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    unsafe {
        shared.slice(at.bias, at.len - at.bias).fill(0.0);
        pack_channels(ctx, c, None, shared.at(at.slopes));
    }
    let bands = Bands::new(c.extent);
    let task = Backward {
        op,
        parts,
        bands,
        input: ctx.floats(c.input),
        d_output: ctx.floats(op.d_output),
        d_input: op.d_input.map(|d| (ctx.floats(d.buffer), d.add)),
    };
    ctx.parallel(bands.tasks(), &task);
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    store_gradients(ctx, op, parts, bias_at(c), |co, ci, tap| {
        (tap * c.cin + ci) * c.output_stride + co
    });
}
