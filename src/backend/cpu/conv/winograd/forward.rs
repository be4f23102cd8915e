//! The forward pass of convolutions in Winograd's form. Depends on the parent module and the kernels.

use super::super::super::arena::SharedPtr;
use super::super::super::simd::Simd;
use super::super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache};
use super::super::super::winograd::Output;
use super::super::pack_channels;
use super::{
    Convolution, Direction, InputRows, OUT, Pack, Shared, Tiles, ring_floats, transform_block,
};
use crate::plan::Conv;

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
