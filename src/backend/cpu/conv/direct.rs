//! Convolutions of any odd kernel, dilation and groups in the direct form, forward and backward:
//! products of padded rows with packed weights. Depends on the row kernels and activations. The bits
//! of an output do not depend on where the pixel is.

use super::super::arena::SharedPtr;
use super::super::rows::{row_outer_strided, row_sum, row_to_rgb};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, round_up_to_lanes};
use super::input::RowRing;
use super::layout::{Blocks, chunks, weight_index};
use super::product::{Product, row_product};
use super::{Finish, pack_channels, row_activation, slope_values, store_gradients};
use crate::plan::{Conv, ConvBack};

/// Largest kernel, so that pointers to the rows of taps fit on the stack.
pub const MAX_KERNEL: usize = 31;

/// Pixels from the middle tap to the outermost one.
fn reach(c: &Conv) -> usize {
    c.dilation * (c.kernel / 2)
}

/// Blocks of the forward product, and those of the gradient with respect to the input.
fn blocks(c: &Conv) -> [Blocks; 2] {
    let (input, output) = ((c.cin, c.input_stride), (c.cout, c.output_stride));
    [
        Blocks::new(c.groups, input, output),
        Blocks::new(c.groups, output, input),
    ]
}

/// f32 values of the packed weights of a product.
fn packed(c: &Conv, blocks: &Blocks) -> usize {
    blocks.count * block_values(c, blocks)
}

fn block_values(c: &Conv, blocks: &Blocks) -> usize {
    c.kernel * c.kernel * blocks.depth * blocks.lanes
}

/// Whether the gradient with respect to the input is that of an RGB image, for which there is a
/// kernel with the channels of the output in the lanes.
fn rgb(c: &Conv) -> bool {
    c.input_stride == 3 && (c.kernel, c.dilation, c.groups) == (3, 1, 1)
}

/// Packs the weights of one row of taps of one block a task.
struct Pack<'a> {
    op: &'a Conv,
    blocks: Blocks,
    weight: SharedPtr<f32>,
    out: SharedPtr<f32>,
    /// Whether the product is from output channels to input channels, with the taps turned by 180
    /// degrees: a pixel's gradient comes from the outputs on the opposite side.
    backward: bool,
}

impl Pack<'_> {
    fn run(self, ctx: &Context<'_>) {
        ctx.parallel(self.blocks.count * self.op.kernel, &self);
    }
}

impl Task for Pack<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (c, blocks, k) = (self.op, self.blocks, self.op.kernel);
        let (block, ky) = (task / k, task % k);
        let first = blocks.first(block);
        for (chunk, width) in chunks(blocks.lanes / LANES) {
            let row = k * blocks.depth * width * LANES;
            let at =
                block * block_values(c, &blocks) + chunk * LANES * k * k * blocks.depth + ky * row;
            // SAFETY: each task has a row of taps of its own in every chunk of its block, and
            // `weight` is the parameter
            let (out, weight) =
                unsafe { (self.out.slice(at, row), self.weight.view(0, c.weight.len)) };
            let mut out = out.iter_mut();
            for kx in 0..k {
                for from in first..first + blocks.depth {
                    let to = block * blocks.lanes + chunk * LANES;
                    for (to, out) in (to..to + width * LANES).zip(&mut out) {
                        let index = if self.backward {
                            weight_index(c, from, to, k - 1 - ky, k - 1 - kx)
                        } else {
                            weight_index(c, to, from, ky, kx)
                        };
                        *out = index.map_or(0.0, |index| weight[index]);
                    }
                }
            }
        }
    }
}

/// Packs the weights of the gradient with respect to an RGB image, `[tap][3][output channel]`.
///
/// # Safety
/// The pieces have the sizes of the parameter and of the packed weights, and no task runs.
unsafe fn pack_rgb(c: &Conv, weight: SharedPtr<f32>, out: SharedPtr<f32>) {
    // SAFETY: by the caller's contract
    let (weight, out) = unsafe {
        (
            weight.view(0, c.weight.len),
            out.slice(0, 27 * c.output_stride),
        )
    };
    for (i, out) in out.iter_mut().enumerate() {
        let (co, ci, tap) = (
            i % c.output_stride,
            i / c.output_stride % 3,
            8 - i / c.output_stride / 3,
        );
        let index = weight_index(c, co, ci, tap / 3, tap % 3);
        *out = index.map_or(0.0, |index| weight[index]);
    }
}

/// One output row of the product: `blocks` of the rows that `ring` holds around row `y`.
///
/// # Safety
/// As [`row_product`]; the ring holds the rows within [`reach`] of `y`, `weights` are packed for
/// the blocks and `bias` is `[lanes of all blocks]`, and `out` has room for a row of `out_stride`
/// values a pixel.
#[inline(always)]
unsafe fn convolve_row<S: Simd>(
    c: &Conv,
    blocks: &Blocks,
    ring: &RowRing,
    y: usize,
    (weights, bias): (*const f32, *const f32),
    (out, out_stride): (*mut f32, usize),
) {
    let (k, d) = (c.kernel, c.dilation);
    let mut rows = [std::ptr::null(); MAX_KERNEL];
    // SAFETY: rows within `reach` of `y` are in the ring; the blocks' channels lie inside the
    // pixels of rows and outputs
    unsafe {
        for (ky, row) in rows[..k].iter_mut().enumerate() {
            *row = ring.get((y + ky * d) as isize - reach(c) as isize);
        }
        let adjacent = d == 1 && blocks.depth == ring.c;
        for block in 0..blocks.count {
            let first = blocks.first(block);
            let mut block_rows = rows;
            for row in &mut block_rows[..k] {
                *row = row.add(first);
            }
            let lane = block * blocks.lanes;
            let product = Product {
                rows: &block_rows[..k],
                stride: ring.c,
                segments: if adjacent { 1 } else { k },
                step: d * ring.c,
                depth: if adjacent { k * ring.c } else { blocks.depth },
                weights: weights.add(block * block_values(c, blocks)),
                lanes: blocks.lanes,
                bias: bias.add(lane),
                out: out.add(lane),
                out_stride,
                w: c.extent.w,
                non_temporal: false,
            };
            match ring.c {
                3 => row_product::<S, 3>(&product),
                _ => row_product::<S, 0>(&product),
            }
        }
    }
}

/// The rows of an input or gradient that tasks convolve.
fn ring(
    c: &Conv,
    source: SharedPtr<f32>,
    channels: usize,
    image: usize,
    ring: SharedPtr<f32>,
) -> RowRing {
    RowRing {
        source,
        activation: None,
        image,
        h: c.extent.h,
        w: c.extent.w,
        c: channels,
        pad: reach(c),
        slots: 2 * reach(c) + 1,
        ring,
    }
}

fn ring_floats(c: &Conv, channels: usize) -> usize {
    RowRing::floats(c.extent.w, channels, reach(c), 2 * reach(c) + 1)
}

/// Workspace of the forward operation. Shared: weights, biases and slopes. Scratch: the ring of
/// input rows.
pub fn workspace(c: &Conv) -> Workspace {
    let [forward, _] = blocks(c);
    Workspace {
        shared: round_up_to_lanes(packed(c, &forward)) + c.output_stride + slope_values(c),
        scratch: ring_floats(c, c.input_stride),
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Conv,
    parts: WorkspaceParts,
    bands: Bands,
    blocks: Blocks,
    /// `[N, h, w, input_stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, output_stride]`
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = self.op;
        let (w, h, reach) = (c.extent.w, c.extent.h, reach(c) as isize);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of the output are this task's, the scratch holds the ring, and
        // `output_stride` is a multiple of 16 (`check`). The rest is the contract of `Task::run`.
        unsafe {
            let shared = self.parts.shared();
            let bias = shared.at(round_up_to_lanes(packed(c, &self.blocks)));
            let inputs = RowRing {
                activation: row_activation(c, bias.add(c.output_stride)),
                ..ring(c, self.input, c.input_stride, image, self.parts.scratch())
            };
            for y in start as isize - 2 * reach..end as isize {
                inputs.load::<S>(y + reach);
                if y < start as isize {
                    continue; // the first output row needs all rows around it
                }
                let y = y as usize;
                let out = self.output.at((image * h + y) * w * c.output_stride);
                let weights = shared.at(0).cast_const();
                let to = (out, c.output_stride);
                convolve_row::<S>(c, &self.blocks, &inputs, y, (weights, bias), to);
            }
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    let parts = ctx.parts(op.workspace, workspace(op));
    let [blocks, _] = blocks(op);
    let shared = parts.shared();
    Pack {
        op,
        blocks,
        weight: ctx.param(op.parameters, op.weight),
        out: shared,
        backward: false,
    }
    .run(ctx);
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    unsafe {
        let at = round_up_to_lanes(packed(op, &blocks));
        pack_channels(
            ctx,
            op,
            Some(shared.at(at)),
            shared.at(at + op.output_stride),
        );
    }
    let bands = Bands::new(op.extent);
    ctx.parallel(
        bands.tasks(),
        &Forward {
            op,
            parts,
            bands,
            blocks,
            input: ctx.floats(op.input),
            output: ctx.floats(op.output),
        },
    );
}

/// f32 values of the shared part of the backward operation before the slopes: weights and zeros.
fn shared_back(c: &Conv) -> [usize; 2] {
    let [_, back] = blocks(c);
    let weights = if rgb(c) {
        27 * c.output_stride
    } else {
        packed(c, &back)
    };
    [
        round_up_to_lanes(weights),
        c.input_stride.next_multiple_of(LANES),
    ]
}

/// Workspace of the backward operation. Shared: weights, zeros and slopes. Partials: gradients of
/// the packed weights, the biases and the slopes. Scratch: rings of inputs and gradients, and a row
/// of the gradient.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    let [forward, _] = blocks(c);
    let [weights, zeros] = shared_back(c);
    Workspace {
        shared: weights + zeros + slope_values(c),
        partial: packed(c, &forward) + c.output_stride + slope_values(c),
        tasks: Bands::new(c.extent).tasks(),
        scratch: ring_floats(c, c.input_stride)
            + ring_floats(c, c.output_stride)
            + c.extent.w * zeros,
    }
}

struct Backward<'a> {
    op: &'a Conv,
    parts: WorkspaceParts,
    bands: Bands,
    forward: Blocks,
    back: Blocks,
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
        let c = self.op;
        let (w, h, reach) = (c.extent.w, c.extent.h, reach(c) as isize);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: the partial is this task's, the scratch holds both rings and a row, and channels
        // are as `check` allows. The rest is the contract of `Task::run`.
        unsafe {
            let partial = self.parts.partial(task);
            partial
                .at(0)
                .write_bytes(0, workspace_partial(c, &self.forward));
            let [weights, zeros] = shared_back(c);
            let activation = row_activation(c, self.parts.shared().at(weights + zeros));
            let scratch = self.parts.scratch();
            let inputs = RowRing {
                activation,
                ..ring(c, self.input, c.input_stride, image, scratch)
            };
            let scratch = SharedPtr::new(scratch.at(ring_floats(c, c.input_stride)));
            let gradients = ring(c, self.d_output, c.output_stride, image, scratch);
            let row = scratch.at(ring_floats(c, c.output_stride));
            for y in start as isize - 2 * reach..end as isize {
                inputs.load::<S>(y + reach);
                gradients.load::<S>(y + reach);
                if y < start as isize {
                    continue; // the first row needs all rows around it
                }
                let y = y as usize;
                self.add_weight_gradient::<S>(&inputs, &gradients, y, partial.at(0));
                let Some((d_input, add)) = self.d_input else {
                    continue;
                };
                let finish = Finish {
                    activation,
                    z: inputs.stored(y),
                    c: c.input_stride,
                    len: w * c.input_stride,
                    out: d_input.at((image * h + y) * w * c.input_stride),
                    add,
                    slope_sums: partial.at(packed(c, &self.forward) + c.output_stride),
                };
                let direct =
                    finish.only_stores() && (rgb(c) || c.input_stride.is_multiple_of(LANES));
                let d = if direct { finish.out } else { row };
                self.input_gradient::<S>(&gradients, y, d);
                if !direct {
                    finish.run::<S>(d);
                }
            }
        }
    }
}

/// f32 values of a partial.
fn workspace_partial(c: &Conv, forward: &Blocks) -> usize {
    packed(c, forward) + c.output_stride + slope_values(c)
}

impl Backward<'_> {
    /// Adds the gradients of weights and bias of row `y` to a partial.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose row and partial it is; the rings hold the rows within
    /// [`reach`] of `y`.
    #[inline(always)]
    unsafe fn add_weight_gradient<S: Simd>(
        &self,
        inputs: &RowRing,
        gradients: &RowRing,
        y: usize,
        partial: *mut f32,
    ) {
        let (c, blocks) = (self.op, &self.forward);
        let (k, d, w) = (c.kernel, c.dilation, c.extent.w);
        let adjacent = d == 1 && blocks.depth == c.input_stride;
        let (segments, depth) = if adjacent {
            (1, k * blocks.depth)
        } else {
            (k, blocks.depth)
        };
        // SAFETY: the blocks' channels lie inside the pixels of inputs and gradients
        unsafe {
            let gradient = gradients.get(y as isize).add(reach(c) * c.output_stride);
            for block in 0..blocks.count {
                let sums = partial.add(block * block_values(c, blocks));
                let gradient = gradient.add(block * blocks.lanes);
                for ky in 0..k {
                    let x = inputs.get((y + ky * d) as isize - reach(c) as isize);
                    for segment in 0..segments {
                        row_outer_strided::<S>(
                            x.add(blocks.first(block) + segment * d * c.input_stride),
                            (c.input_stride, depth),
                            gradient,
                            (c.output_stride, blocks.lanes),
                            w,
                            sums.add((ky * segments + segment) * depth * blocks.lanes),
                        );
                    }
                }
            }
            row_sum::<S>(gradient, c.output_stride, w, partial.add(packed(c, blocks)));
        }
    }

    /// Row `y` of the gradient with respect to the (activated) input.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose row `y` is; `out` has room for the row.
    #[inline(always)]
    unsafe fn input_gradient<S: Simd>(&self, gradients: &RowRing, y: usize, out: *mut f32) {
        let c = self.op;
        // SAFETY: `backward` packed the weights and the zeros, and the ring holds the rows within
        // `reach` of `y`
        unsafe {
            let shared = self.parts.shared();
            if rgb(c) {
                let rows = std::array::from_fn(|ky| gradients.get((y + ky) as isize - 1));
                row_to_rgb::<S>(
                    rows,
                    shared.at(0),
                    [0.0; 3],
                    c.output_stride,
                    c.extent.w,
                    out,
                );
                return;
            }
            let [weights, zeros] = shared_back(c);
            let packed = (shared.at(0).cast_const(), shared.at(weights).cast_const());
            convolve_row::<S>(c, &self.back, gradients, y, packed, (out, zeros));
            if zeros != c.input_stride {
                // RGB: three of the lanes
                for i in 0..c.extent.w * 3 {
                    *out.add(i) = *out.add(i / 3 * zeros + i % 3);
                }
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let [forward, back] = blocks(c);
    let [weights, zeros] = shared_back(c);
    let (weight, shared) = (ctx.param(c.parameters, c.weight), parts.shared());
    if op.d_input.is_some() && !rgb(c) {
        Pack {
            op: c,
            blocks: back,
            weight,
            out: shared,
            backward: true,
        }
        .run(ctx);
    }
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    unsafe {
        if rgb(c) {
            pack_rgb(c, weight, shared);
        }
        shared.at(weights).write_bytes(0, zeros);
        pack_channels(ctx, c, None, shared.at(weights + zeros));
    }
    let bands = Bands::new(c.extent);
    let task = Backward {
        op: c,
        parts,
        bands,
        forward,
        back,
        input: ctx.floats(c.input),
        d_output: ctx.floats(op.d_output),
        d_input: op.d_input.map(|d| (ctx.floats(d.buffer), d.add)),
    };
    ctx.parallel(bands.tasks(), &task);
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    let (k, inputs, outputs) = (c.kernel, c.cin / c.groups, c.cout / c.groups);
    store_gradients(ctx, op, parts, packed(c, &forward), |co, ci, tap| {
        let block = co / forward.lanes;
        let from = ci + co / outputs * inputs - forward.first(block);
        block * block_values(c, &forward)
            + (tap * forward.depth + from) * forward.lanes
            + co % forward.lanes
    });
    debug_assert!(k * k * inputs * c.cout == c.weight.len);
}
