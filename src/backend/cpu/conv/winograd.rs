//! Dense 3x3 convolutions in Winograd's form F(4x4, 3x3), for training: the same operations and
//! parameters as in the direct form, with four times fewer multiplications. Depends on `tiling` and `winograd`.

use super::super::arena::SharedPtr;
use super::super::rows::{row_outer, row_sum};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{
    Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache, round_up_to_lanes,
};
use super::super::tiling::{
    GradientTiles, ImageRows, TileRow, convolution_scratch, convolve_tiles, gradient_scratch, pack,
    tiles,
};
use super::super::winograd::{IN, POINTS, gather_lanes};
use super::input::RowRing;
use super::layout::weight_index;
use super::{Finish, pack_channels, row_activation, slope_values, store_gradients};
use crate::plan::{Conv, ConvBack};

/// Tiles that a weight gradient transforms at a time: enough to keep sums in registers, few enough
/// to stay in cache.
const OUTER_TILES: usize = 32;

/// Outputs of a tile along a side, pixels.
const OUT: usize = 4;

/// Whether a convolution is computed in this form.
pub fn applies(c: &Conv) -> bool {
    (!c.tile_invariant || c.tile_alignment.is_multiple_of(OUT))
        && (c.kernel, c.dilation, c.groups) == (3, 1, 1)
        && c.input_stride.is_multiple_of(LANES)
}

/// f32 elements of transformed weights.
fn transformed(c: &Conv) -> usize {
    POINTS * c.input_stride * c.output_stride
}

/// The weight of output channel `co`, input channel `ci` and tap `tap`, in f64; 0 for channels that
/// fill the last vector.
fn tap(c: &Conv, weight: &[f32], co: usize, ci: usize, tap: usize) -> f64 {
    let index = weight_index(c, co, ci, tap / 3, tap % 3);
    index.map_or(0.0, |index| f64::from(weight[index]))
}

/// Rows of an input as six rows of tiles read them: those in memory, or activated ones in a ring.
struct InputRows {
    rows: ImageRows,
    ring: RowRing,
    /// The first row that is not in the ring yet.
    next: isize,
}

/// f32 values of [`InputRows::ring`].
fn ring_floats(c: &Conv) -> usize {
    match c.activation {
        Some(_) => RowRing::floats(c.extent.w, c.input_stride, 0, IN),
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
        let h = self.rows.h;
        // SAFETY: rows outside the image are zeros, and the ring holds the last six rows
        unsafe {
            let rows = self.rows.get::<IN>(first, h);
            if self.ring.activation.is_none() {
                return rows;
            }
            let end = first + IN as isize;
            for row in self.next.max(first)..end {
                if row >= 0 && row < h as isize {
                    self.ring.load::<S>(row);
                }
            }
            self.next = end;
            let mut active = rows;
            for (k, row) in active.iter_mut().enumerate() {
                let y = first + k as isize;
                if y >= 0 && y < h as isize {
                    *row = self.ring.row(y).cast_const();
                }
            }
            active
        }
    }
}

/// Places in the shared part of the forward operation.
struct Shared {
    bias: usize,
    slopes: usize,
    zeros: usize,
    len: usize,
}

fn shared(c: &Conv) -> Shared {
    let bias = transformed(c);
    let slopes = bias + c.output_stride;
    let zeros = slopes + slope_values(c);
    Shared {
        bias,
        slopes,
        zeros,
        len: zeros + c.extent.w * c.input_stride,
    }
}

/// Workspace of the forward operation. Shared: weights, biases, slopes and a row of zeros. Scratch:
/// activated rows, transformed inputs and products.
pub fn workspace(c: &Conv) -> Workspace {
    Workspace {
        shared: shared(c).len,
        scratch: round_up_to_lanes(ring_floats(c)) + convolution_scratch(c.input_stride),
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
        let (c, extent) = (self.op, self.op.extent);
        let (w, h, lanes) = (extent.w, extent.h, c.output_stride);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of the output are this task's. Channels of the buffers are
        // multiples of 16 (`check`), so pixels begin at multiples of 64 bytes. The rest is the
        // contract of `Task::run`.
        unsafe {
            let (shared, at) = (self.parts.shared(), shared(c));
            let scratch = self.parts.scratch();
            let (zeros, slopes) = (shared.at(at.zeros), shared.at(at.slopes));
            let mut inputs =
                InputRows::new(c, self.input, zeros, slopes, (image, start), scratch.at(0));
            for y in (start..end).step_by(OUT) {
                let row = |r: usize| self.output.at((image * h + y + r) * w * lanes);
                convolve_tiles::<S, OUT>(&TileRow {
                    inputs: inputs.get::<S>(y as isize - 1),
                    c: c.input_stride,
                    depth: c.input_stride,
                    w,
                    scratch: scratch.at(round_up_to_lanes(ring_floats(c))),
                    weights: shared.at(0),
                    bias: shared.at(at.bias),
                    lanes,
                    outputs: std::array::from_fn(|r| (y + r < end).then(|| row(r))),
                    non_temporal: exceeds_cache(extent, lanes),
                });
            }
            S::fence();
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    let parts = ctx.parts(op.workspace, workspace(op));
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    // yet
    unsafe {
        let weight = ctx.param(op.parameters, op.weight).view(0, op.weight.len);
        let (buffer, at) = (parts.shared(), shared(op));
        let weights = buffer.slice(0, transformed(op));
        pack::<3>(
            weights,
            op.input_stride,
            op.output_stride,
            |lane, ci, at| tap(op, weight, lane, ci, at),
        );
        pack_channels(ctx, op, Some(buffer.at(at.bias)), buffer.at(at.slopes));
        buffer.slice(at.zeros, at.len - at.zeros).fill(0.0);
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

/// Tiles that a weight gradient transforms at a time in rows of `w` pixels.
fn outer_tiles(w: usize) -> usize {
    OUTER_TILES.min(tiles::<OUT>(w))
}

/// f32 elements of a task's partial: gradients of the weights `[tap][input][lane]`, then of the
/// biases `[lane]` and of the slopes.
fn gradients(c: &Conv) -> usize {
    bias_at(c) + c.output_stride + slope_values(c)
}

fn bias_at(c: &Conv) -> usize {
    9 * c.input_stride * c.output_stride
}

/// Places in the shared part of the backward operation.
fn shared_back(c: &Conv) -> Shared {
    let bias = transformed(c);
    let slopes = bias + c.input_stride;
    let zeros = slopes + slope_values(c);
    Shared {
        bias,
        slopes,
        zeros,
        len: zeros + c.extent.w * c.input_stride.max(c.output_stride),
    }
}

/// f32 values of the rows of a gradient before they are finished.
fn unfinished_floats(op: &ConvBack) -> usize {
    let c = &op.forward;
    let direct = c.activation.is_none() && op.d_input.is_none_or(|d| !d.add);
    if direct {
        0
    } else {
        OUT * c.extent.w * c.input_stride
    }
}

/// Places in the scratch of the backward operation: the sums at the points come first.
struct Scratch {
    ring: usize,
    unfinished: usize,
    tiles: usize,
}

fn scratch(op: &ConvBack) -> Scratch {
    let ring = transformed(&op.forward);
    let unfinished = ring + round_up_to_lanes(ring_floats(&op.forward));
    Scratch {
        ring,
        unfinished,
        tiles: unfinished + unfinished_floats(op),
    }
}

/// Workspace of the backward operation. Shared: weights, zeros and slopes. Scratch: sums at the
/// points, activated rows, rows of the gradient, and transformed values.
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    let outer = gradient_scratch(outer_tiles(c.extent.w), c.input_stride, c.output_stride);
    Workspace {
        shared: shared_back(c).len,
        partial: gradients(c),
        tasks: Bands::new(c.extent).tasks(),
        scratch: scratch(op).tiles + outer.max(convolution_scratch(c.output_stride)),
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
        let (c, w, h) = (
            &self.op.forward,
            self.op.forward.extent.w,
            self.op.forward.extent.h,
        );
        let (cin, cout) = (c.input_stride, c.output_stride);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of `d_input` and the partial are this task's. Channels of the
        // buffers are multiples of 16 (`check`), so pixels begin at multiples of 64 bytes. The rest
        // is the contract of `Task::run`.
        unsafe {
            let partial = self.parts.partial(task);
            partial
                .at(bias_at(c))
                .write_bytes(0, gradients(c) - bias_at(c));
            let (sums, places) = (self.parts.scratch().at(0), scratch(self.op));
            sums.write_bytes(0, transformed(c));
            let scratch = sums.add(places.tiles);
            let (shared, at) = (self.parts.shared(), shared_back(c));
            let zeros = shared.at(at.zeros).cast_const();
            let (slopes, ring) = (shared.at(at.slopes), sums.add(places.ring));
            let mut inputs = InputRows::new(c, self.input, zeros, slopes, (image, start), ring);
            let gradients = ImageRows {
                source: self.d_output,
                c: cout,
                ..inputs.rows
            };
            for y in (start..end).step_by(OUT) {
                // the weights' gradient counts rows of this band only
                let own = gradients.get::<OUT>(y as isize, end);
                let both = GradientTiles {
                    inputs: inputs.get::<S>(y as isize - 1),
                    c: cin,
                    gradients: own,
                    lanes: cout,
                    w,
                    span: outer_tiles(w),
                    scratch,
                };
                add_weight_gradient::<S>(&both, sums);
                for d in &own[..OUT.min(end - y)] {
                    row_sum::<S>(*d, cout, w, partial.at(bias_at(c)));
                }
                let Some((d_input, add)) = self.d_input else {
                    continue;
                };
                let finish = |r: usize| Finish {
                    activation: inputs.ring.activation,
                    z: inputs.ring.stored(y + r),
                    c: cin,
                    len: w * cin,
                    out: d_input.at((image * h + y + r) * w * cin),
                    add,
                    slope_sums: partial.at(bias_at(c) + cout),
                };
                let unfinished = sums.add(places.unfinished);
                let direct = unfinished_floats(self.op) == 0;
                let row = |r: usize| {
                    if direct {
                        finish(r).out
                    } else {
                        unfinished.add(r * w * cin)
                    }
                };
                convolve_tiles::<S, OUT>(&TileRow {
                    inputs: gradients.get(y as isize - 1, h),
                    c: cout,
                    depth: cout,
                    w,
                    scratch,
                    weights: shared.at(0),
                    bias: shared.at(at.bias),
                    lanes: cin,
                    outputs: std::array::from_fn(|r| (y + r < end).then(|| row(r))),
                    non_temporal: direct && exceeds_cache(c.extent, cin),
                });
                for r in 0..OUT.min(end - y) {
                    if !direct {
                        finish(r).run::<S>(unfinished.add(r * w * cin));
                    }
                }
            }
            for at in (0..cin * cout).step_by(LANES) {
                gather_lanes::<S, 3>(sums.add(at), cin * cout, partial.at(at), cin * cout);
            }
            S::fence();
        }
    }
}

/// Adds the weight gradient of a row of tiles at the points to `sums`, `[POINTS][cin][cout]`.
///
/// # Safety
/// As [`GradientTiles::transform`]; `sums` has room for its values, and no other thread uses it.
#[inline(always)]
unsafe fn add_weight_gradient<S: Simd>(both: &GradientTiles<OUT>, sums: *mut f32) {
    let GradientTiles {
        c: cin,
        lanes: cout,
        w,
        span,
        ..
    } = *both;
    for first in (0..tiles::<OUT>(w)).step_by(span) {
        let count = span.min(tiles::<OUT>(w) - first);
        // SAFETY: at most `span` tiles are transformed, and points stay below 36
        unsafe {
            both.transform::<S>(first, count);
            for point in 0..POINTS {
                let ((v, z), sums) = (both.at(point), sums.add(point * cin * cout));
                row_outer::<S>(v, cin, cin, z, cout, count, sums);
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &ConvBack) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    // yet
    unsafe {
        let weight = ctx.param(c.parameters, c.weight).view(0, c.weight.len);
        let (buffer, at) = (parts.shared(), shared_back(c));
        // A pixel's gradient comes from the outputs on the opposite side, so the taps are turned by
        // 180 degrees.
        let weights = buffer.slice(0, transformed(c));
        pack::<3>(weights, c.output_stride, c.input_stride, |ci, lane, at| {
            tap(c, weight, lane, ci, 8 - at)
        });
        buffer.slice(at.bias, at.len - at.bias).fill(0.0);
        pack_channels(ctx, c, None, buffer.at(at.slopes));
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
        (tap * c.input_stride + ci) * c.output_stride + co
    });
}
