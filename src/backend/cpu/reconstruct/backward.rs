//! The backward operation: gradients of the folded convolution over a band of LQ rows, corrected
//! for border pixels, and unfolded into those of the two convolutions.

use super::super::arena::SharedPtr;
use super::super::base;
use super::super::border::shape;
use super::super::folded_conv::{FoldedGradients, TAPS, unfold_gradients};
use super::super::rows::{row_outer, row_sum};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache};
use super::super::tiling::{
    GradientTiles, ImageRows, TileRow, convolution_scratch, convolve_tiles, gradient_scratch, pack,
    tiles,
};
use super::super::winograd::{POINTS, gather_lanes};
use super::OUT;
use super::pack::{Packed, Parameters, pack_parameters, padded_lanes};
use crate::plan::{Reconstruct, ReconstructBack};

/// Tiles that a weight gradient transforms at a time.
const OUTER_TILES: usize = 16;
/// Rows of the output's gradient that are kept: six for the inputs of a tile, and the next two.
const GRADIENT_ROWS: usize = 8;

/// The place of each sum in the partial of a task, f32 elements. None contains the gain yet.
pub(super) struct Sums {
    /// Gradient of the folded kernel, `[5 x 5][lane][ci]`.
    pub(super) kernel: usize,
    /// Gradient of the folded bias, `[lane]`.
    pub(super) bias: usize,
    /// The border's correction of the gradient of `up`, in the order of `Convolutions`.
    pub(super) up: usize,
    /// The same of the bias of `up`.
    pub(super) up_bias: usize,
    /// The same of `conv_out`.
    pub(super) out: usize,
    /// Elements of all sums.
    pub(super) len: usize,
}

pub(super) fn sums(op: &Reconstruct) -> Sums {
    let s = shape(op);
    let kernel = 0;
    let bias = s.kernel();
    let up = bias + padded_lanes(op);
    let up_bias = up + s.up_weights();
    let out = up_bias + s.features * s.scale * s.scale;
    Sums {
        kernel,
        bias,
        up,
        up_bias,
        out,
        len: out + s.out_weights(),
    }
}

/// Tiles that a weight gradient transforms at a time in rows of `w` pixels.
fn outer_tiles(w: usize) -> usize {
    OUTER_TILES.min(tiles::<OUT>(w))
}

/// Lanes from one tile to the next in the transformed gradient. If all lanes fit into one vector,
/// tiles are packed tightly: what a store writes after a tile's lanes, the next tile overwrites.
fn depth(op: &Reconstruct) -> usize {
    if padded_lanes(op) == LANES {
        shape(op).lanes()
    } else {
        padded_lanes(op)
    }
}

/// Workspace of the backward operation. Shared: packed parameters. Partial: [`Sums`]. Scratch: sums
/// at the points, rows of the output's gradient, and transformed values.
pub fn workspace_back(op: &ReconstructBack) -> Workspace {
    let op = &op.forward;
    let (f, w, lanes) = (op.features, op.extent.w, padded_lanes(op));
    let outer = gradient_scratch(outer_tiles(w), f, lanes);
    Workspace {
        shared: Packed::new(op, true).len,
        partial: sums(op).len,
        tasks: Bands::new(op.extent).tasks(),
        scratch: POINTS * shape(op).lanes() * f
            + GRADIENT_ROWS * w * lanes
            + outer.max(convolution_scratch(depth(op))),
    }
}

pub(super) struct Backward<'a> {
    pub(super) op: &'a Reconstruct,
    pub(super) parts: WorkspaceParts,
    pub(super) bands: Bands,
    pub(super) parameters: Parameters<'a>,
    /// `[N, h, w, F]`
    pub(super) features: SharedPtr<f32>,
    /// `[N, H, W, 3]`
    pub(super) d_output: SharedPtr<f32>,
    /// `[N, h, w, F]`
    pub(super) d_features: SharedPtr<f32>,
}

/// The band of LQ rows of one task, and its memory.
pub(super) struct Band {
    pub(super) image: usize,
    /// First row.
    pub(super) start: usize,
    /// The row after the last one.
    pub(super) end: usize,
    /// The task's partial, laid out as [`Sums`].
    pub(super) partial: SharedPtr<f32>,
    /// Sums of the weight gradient at the points, `[POINTS][lane][F]`.
    pub(super) points: *mut f32,
    /// Ring of [`GRADIENT_ROWS`] rows `[w][padded lanes]` of the output's gradient.
    pub(super) gradients: *mut f32,
    /// f32 values of one row of the ring.
    pub(super) gradient_row: usize,
    /// Room for transformed values.
    pub(super) room: *mut f32,
}

impl Band {
    /// The place of an LQ row, at least -2, in the ring of gradients.
    ///
    /// # Safety
    /// The ring holds its rows.
    #[inline(always)]
    unsafe fn gradient(&self, row: isize) -> *mut f32 {
        // SAFETY: the remainder is below the number of rows
        unsafe {
            let slot = (row + 2) as usize % GRADIENT_ROWS;
            self.gradients.add(slot * self.gradient_row)
        }
    }
}

impl Backward<'_> {
    /// Loads an LQ row of the output's gradient, `[w][padded lanes]`, from the HR rows that it
    /// became; zeros for a row outside the image.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose band this is.
    #[inline(always)]
    unsafe fn load(&self, band: &Band, row: isize) {
        let Reconstruct { extent, scale, .. } = *self.op;
        let (w, lanes, n) = (extent.w, padded_lanes(self.op), 3 * scale);
        // SAFETY: the output's gradient holds the HR rows of every LQ row of the image. For the
        // supported scales (2, 3, 4, 8) the `scale` pieces of 3 `scale` values fit into the lanes
        // of a pixel.
        unsafe {
            let to = band.gradient(row);
            if row < 0 || row >= extent.h as isize {
                to.write_bytes(0, w * lanes);
                return;
            }
            for dy in 0..scale {
                let from = self
                    .d_output
                    .at((band.image * extent.h * scale + row as usize * scale + dy) * w * n)
                    .cast_const();
                match scale {
                    2 => spread::<6>(from, w, to.add(dy * n), lanes),
                    3 => spread::<9>(from, w, to.add(dy * n), lanes),
                    4 => spread::<12>(from, w, to.add(dy * n), lanes),
                    _ => spread::<24>(from, w, to.add(dy * n), lanes),
                }
            }
            for lane in scale * n..lanes {
                for x in 0..w {
                    *to.add(x * lanes + lane) = 0.0;
                }
            }
        }
    }

    /// Adds the gradients of folded bias and kernel (at the points) from LQ rows `y..y + OUT` of
    /// the band.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose band this is; rows up to `y + OUT + 1` are loaded.
    #[inline(always)]
    unsafe fn weight_gradient<S: Simd>(&self, band: &Band, y: usize) {
        let (extent, f) = (self.op.extent, self.op.features);
        let (count, lanes, w) = (shape(self.op).lanes(), padded_lanes(self.op), extent.w);
        let (p, s) = (Packed::new(self.op, true), sums(self.op));
        // SAFETY: the features hold the image's rows, the ring the gradient's, and the room is as
        // large as `workspace_back` says; `count` is at most the padded lanes
        unsafe {
            let zeros = self.parts.shared().at(p.zeros).cast_const();
            let own = OUT.min(band.end - y);
            for r in 0..own {
                let row = band.gradient((y + r) as isize);
                row_sum::<S>(row, lanes, w, band.partial.at(s.bias));
            }
            let inputs = ImageRows {
                source: self.features,
                zeros,
                image: band.image,
                h: extent.h,
                w,
                c: f,
            };
            let span = outer_tiles(w);
            let both = GradientTiles::<OUT> {
                inputs: inputs.get(y as isize - 2, extent.h),
                c: f,
                // the weights' gradient counts rows of this band only
                gradients: std::array::from_fn(|r| {
                    if r < own {
                        band.gradient((y + r) as isize).cast_const()
                    } else {
                        zeros
                    }
                }),
                lanes,
                w,
                span,
                scratch: band.room,
            };
            for first in (0..tiles::<OUT>(w)).step_by(span) {
                let tiles = span.min(tiles::<OUT>(w) - first);
                both.transform::<S>(first, tiles);
                for point in 0..POINTS {
                    let ((v, z), sums) = (both.at(point), band.points.add(point * count * f));
                    row_outer::<S>(z, lanes, count, v, f, tiles, sums);
                }
            }
        }
    }

    /// Writes the gradient of the features in LQ rows `y..y + OUT` of the band, as if no pixel lay
    /// outside the image.
    ///
    /// # Safety
    /// As [`Backward::weight_gradient`].
    #[inline(always)]
    unsafe fn feature_gradient<S: Simd>(&self, band: &Band, y: usize) {
        let (extent, f) = (self.op.extent, self.op.features);
        let (p, w, h) = (Packed::new(self.op, true), extent.w, extent.h);
        // SAFETY: the rows of `d_features` are this task's; `backward` packed weights and zeros;
        // the ring and the room are as large as `workspace_back` says
        unsafe {
            let shared = self.parts.shared();
            let row = |r: usize| self.d_features.at((band.image * h + y + r) * w * f);
            convolve_tiles::<S, OUT>(&TileRow {
                inputs: std::array::from_fn(|k| band.gradient((y + k) as isize - 2).cast_const()),
                c: padded_lanes(self.op),
                depth: depth(self.op),
                w,
                scratch: band.room,
                weights: shared.at(p.weights),
                bias: shared.at(p.bias),
                lanes: f,
                outputs: std::array::from_fn(|r| (y + r < band.end).then(|| row(r))),
                non_temporal: exceeds_cache(extent, f),
            });
        }
    }
}

/// `to[x * stride + i] = from[x * N + i]` for `w` pixels.
///
/// # Safety
/// `from` holds `w * N` values. `to` has room for N values from each multiple of `stride` on; it
/// does not overlap `from`, and no other thread uses it.
#[inline(always)]
unsafe fn spread<const N: usize>(from: *const f32, w: usize, to: *mut f32, stride: usize) {
    for x in 0..w {
        // SAFETY: `x` is below `w`, and the caller guarantees N values to read and to write
        unsafe {
            to.add(x * stride)
                .cast::<[f32; N]>()
                .write_unaligned(from.add(x * N).cast::<[f32; N]>().read_unaligned())
        };
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (f, w) = (self.op.features, self.op.extent.w);
        let (count, lanes, s) = (shape(self.op).lanes(), padded_lanes(self.op), sums(self.op));
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of `d_features` and the partial are this task's, and the pieces
        // of the scratch follow each other as in `workspace_back`. The rest is the contract of
        // `Task::run`.
        unsafe {
            let points = self.parts.scratch().at(0);
            let gradients = points.add(POINTS * count * f);
            let band = Band {
                image,
                start,
                end,
                partial: self.parts.partial(task),
                points,
                gradients,
                gradient_row: w * lanes,
                room: gradients.add(GRADIENT_ROWS * w * lanes),
            };
            band.partial.at(0).write_bytes(0, s.len);
            points.write_bytes(0, POINTS * count * f);
            (start as isize - 2..start as isize + 2).for_each(|row| self.load(&band, row));
            for y in (start..end).step_by(OUT) {
                let row = y as isize;
                (row + 2..row + 4).for_each(|row| self.load(&band, row));
                self.weight_gradient::<S>(&band, y);
                self.feature_gradient::<S>(&band, y);
            }
            for at in (0..count * f).step_by(LANES) {
                let to = band.partial.at(s.kernel + at);
                gather_lanes::<S, TAPS>(points.add(at), count * f, to, count * f);
            }
            S::fence();
            self.subtract_border::<S>(&band);
        }
    }
}

/// Packs parameters and the turned folded kernel, whose convolution gives the features' gradient.
fn pack_backward<'a>(ctx: &Context<'_>, op: &Reconstruct, parts: WorkspaceParts) -> Parameters<'a> {
    let (p, s, f) = (Packed::new(op, true), shape(op), op.features);
    pack_parameters(ctx, op, parts, &p, |kernel, _, gain| {
        // SAFETY: `pack_parameters` does not use these pieces of the workspace, and no task runs
        // yet
        let (zeros, weights) = unsafe {
            (
                parts.shared().slice(p.bias, f),
                parts.shared().slice(p.weights, p.zeros - p.weights),
            )
        };
        zeros.fill(0.0);
        // A pixel's gradient comes from the outputs on the opposite side, so the taps are turned by
        // 180 degrees.
        pack::<TAPS>(weights, depth(op), f, |ci, lane, tap| {
            match lane < s.lanes() {
                true => gain * kernel[(lane * TAPS * TAPS + TAPS * TAPS - 1 - tap) * f + ci],
                false => 0.0,
            }
        });
    })
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &ReconstructBack) {
    let reconstruct = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let bands = Bands::new(reconstruct.extent);
    let task = Backward {
        op: reconstruct,
        parts,
        bands,
        parameters: pack_backward(ctx, reconstruct, parts),
        features: ctx.floats(reconstruct.features_in),
        d_output: ctx.floats(op.d_output),
        d_features: ctx.floats(op.d_features),
    };
    ctx.parallel(bands.tasks(), &task);
    if let Some(d_input) = op.d_input {
        base::backward_batch(
            ctx.floats(op.d_output),
            reconstruct.extent,
            reconstruct.scale,
            reconstruct.alpha,
            ctx.floats(d_input),
        );
    }
    if ctx.reduce(parts, op.slice) {
        store_gradients(ctx, op, parts, &task.parameters);
    }
}

/// Unfolds the sums of all tasks and stores the gradients of the parameters.
fn store_gradients(
    ctx: &Context<'_>,
    op: &ReconstructBack,
    parts: WorkspaceParts,
    parameters: &Parameters<'_>,
) {
    let reconstruct = &op.forward;
    let (s, f, at) = (shape(reconstruct), reconstruct.features, sums(reconstruct));
    // SAFETY: the tasks have finished, the sums hold as many values as a partial, and nothing else
    // uses them
    let sum = unsafe { parts.sums().slice(0, at.len) };
    let (folded, border) = sum.split_at_mut(at.up);
    let (up, rest) = border.split_at_mut(s.up_weights());
    let (up_bias, out) = rest.split_at_mut(f * s.scale * s.scale);
    let (kernel, bias) = (&folded[..at.bias], &folded[at.bias..][..s.lanes()]);
    let Parameters { gain, convolutions } = *parameters;
    let gradients = FoldedGradients { kernel, bias };
    unfold_gradients(s, convolutions, gradients, up, up_bias, out);
    let d_sum = |o: usize| {
        bias.iter()
            .skip(o)
            .step_by(3)
            .map(|&b| f64::from(b))
            .sum::<f64>()
    };
    ctx.store_gradient(op.gradients, reconstruct.up_weight, |i| {
        gain * up[s.up_of_torch(i)]
    });
    ctx.store_gradient(op.gradients, reconstruct.up_bias, |i| {
        gain * up_bias[s.bias_of_torch(i)]
    });
    ctx.store_gradient(op.gradients, reconstruct.weight, |i| {
        gain * out[s.out_of_torch(i)]
    });
    ctx.store_gradient(op.gradients, reconstruct.bias, |o| gain * d_sum(o) as f32);
    // The detail is linear in `conv_out`, so the gain's gradient is a sum over the gradient of
    // `conv_out`.
    ctx.store_gradient(op.gradients, reconstruct.gain, |_| {
        let products: f64 = convolutions
            .out
            .iter()
            .zip(&*out)
            .map(|(&w, &d)| f64::from(w) * f64::from(d))
            .sum();
        let biases: f64 = convolutions
            .out_bias
            .iter()
            .enumerate()
            .map(|(o, &b)| f64::from(b) * d_sum(o))
            .sum();
        (products + biases) as f32
    });
}
