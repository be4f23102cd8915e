//! The Nano block in one pass forward and one backward: 1x1 convolution, depthwise 3x3, GELU, 1x1
//! convolution, LayerScale, residual. The rows between the steps stay in small rings that fit into
//! the caches; only the block's input is read from memory. Depends on the row kernels and GELU.

use super::arena::SharedPtr;
use super::gelu::{gelu, gelu_and_slope};
use super::rows::{
    RowProduct, Start, row_depthwise, row_depthwise_outer, row_outer, row_product, row_sum,
};
use super::simd::{LANES, Simd};
use super::tasks::{
    Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache, round_up_to_lanes,
};
use crate::plan::{NanoBlock, NanoBlockBack, ParamRange, Slice};

/// Features F of a Nano block, a constant so that the inner loops are compiled for it.
pub const FEATURES: usize = 16;
/// Hidden channels E of a Nano block.
const HIDDEN: usize = 2 * FEATURES;
/// Pixels of a row that go through all steps at a time, so that the values between the steps stay in
/// the first-level cache.
const SPAN: usize = 64;

/// The pieces of a row of `w` pixels: (first pixel, number of pixels).
fn spans(w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..w).step_by(SPAN).map(move |x| (x, SPAN.min(w - x)))
}

/// The place of each packed weight in the shared part, f32 elements; F features, E = 2F hidden
/// channels.
struct Packed {
    /// `[ci][e]`
    conv1: usize,
    /// `[e]`
    conv1_bias: usize,
    /// `[ky][kx][e]`
    dw: usize,
    /// `[e]`
    dw_bias: usize,
    /// Times gamma. Forward: `[e][f]`. Backward: `[f][e]`.
    conv2: usize,
    /// Times gamma, `[f]`.
    conv2_bias: usize,
    /// Backward only: the depthwise taps turned by 180 degrees, `[ky][kx][e]`.
    dw_flipped: usize,
    /// Backward only: `[e][f]`, then F zeros.
    conv1_transposed: usize,
    /// Elements of all weights.
    len: usize,
}

fn packed(f: usize) -> Packed {
    let e = 2 * f;
    let mut at = 0;
    let mut take = |len: usize| {
        at += len;
        at - len
    };
    let (conv1, conv1_bias, dw, dw_bias) = (take(f * e), take(e), take(9 * e), take(e));
    let (conv2, conv2_bias, dw_flipped, conv1_transposed) =
        (take(e * f), take(f), take(9 * e), take(e * f + f));
    Packed {
        conv1,
        conv1_bias,
        dw,
        dw_bias,
        conv2,
        conv2_bias,
        dw_flipped,
        conv1_transposed,
        len: at,
    }
}

/// Packs the weights for the forward or the backward operation.
fn pack(ctx: &Context<'_>, op: &NanoBlock, parts: WorkspaceParts, backward: bool) {
    let (f, e, p) = (FEATURES, HIDDEN, packed(FEATURES));
    // SAFETY: the ranges lie inside the parameters and the packed weights inside the workspace, and
    // no task runs yet
    unsafe {
        let get = |range: ParamRange| &*ctx.param(op.parameters, range).slice(0, range.len);
        let (w1, w2, dw) = (
            get(op.params.conv1_weight),
            get(op.params.conv2_weight),
            get(op.params.dw_weight),
        );
        let (gamma, b2) = (get(op.params.gamma), get(op.params.conv2_bias));
        let out = parts.shared().slice(0, p.len);
        out.fill(0.0);
        for k in 0..e {
            for c in 0..f {
                out[p.conv1 + c * e + k] = w1[k * f + c];
                out[p.conv1_transposed + k * f + c] = w1[k * f + c];
                let at = if backward { c * e + k } else { k * f + c };
                out[p.conv2 + at] = gamma[c] * w2[c * e + k];
            }
            for tap in 0..9 {
                out[p.dw + tap * e + k] = dw[k * 9 + tap];
                out[p.dw_flipped + tap * e + k] = dw[k * 9 + 8 - tap];
            }
        }
        for c in 0..f {
            out[p.conv2_bias + c] = gamma[c] * b2[c];
        }
        out[p.conv1_bias..][..e].copy_from_slice(get(op.params.conv1_bias));
        out[p.dw_bias..][..e].copy_from_slice(get(op.params.dw_bias));
    }
}

/// A ring of the three latest padded rows `[w + 2, E]` after `conv1`, in the scratch of a task.
struct HiddenRows<'a> {
    op: &'a NanoBlock,
    /// The packed weights.
    shared: SharedPtr<f32>,
    ring: SharedPtr<f32>,
    /// `[N, h, w, F]`
    input: SharedPtr<f32>,
    /// The image, below N.
    image: usize,
}

impl HiddenRows<'_> {
    /// The place of a row, at least -3, in the ring.
    ///
    /// # Safety
    /// The ring holds three padded rows.
    #[inline(always)]
    unsafe fn row(&self, row: isize) -> *mut f32 {
        let len = round_up_to_lanes((self.op.extent.w + 2) * HIDDEN);
        // SAFETY: the remainder is below 3, and the ring holds as many rows
        unsafe { self.ring.at((row + 3) as usize % 3 * len) }
    }

    /// The three rows around row `centre`, each from the left neighbour of pixel `x` on.
    ///
    /// # Safety
    /// As [`HiddenRows::row`] for all three; `x` is a pixel of the row.
    #[inline(always)]
    unsafe fn rows(&self, centre: isize, x: usize) -> [*const f32; 3] {
        // SAFETY: pixel `x` of a padded row is the left neighbour of pixel `x` of the image
        unsafe {
            std::array::from_fn(|k| {
                self.row(centre - 1 + k as isize)
                    .add(x * HIDDEN)
                    .cast_const()
            })
        }
    }

    /// Computes conv1 of one row of the input into the ring. A row outside the image becomes zeros:
    /// the padding of the depthwise convolution.
    ///
    /// # Safety
    /// As [`Simd`] and [`HiddenRows::row`]. The fields point to arrays of the shapes they state, and
    /// no other thread uses the ring.
    #[inline(always)]
    unsafe fn fill<S: Simd>(&self, row: isize) {
        let (f, e, w, h) = (FEATURES, HIDDEN, self.op.extent.w, self.op.extent.h);
        let p = packed(f);
        // SAFETY: a row of the ring has room for `w + 2` pixels of E values, an image of the input
        // holds `h` rows of `w` pixels of F values, and `pack` wrote the weights
        unsafe {
            let out = self.row(row);
            if row < 0 || row >= h as isize {
                out.write_bytes(0, (w + 2) * e);
                return;
            }
            out.write_bytes(0, e);
            out.add((w + 1) * e).write_bytes(0, e);
            let input = self
                .input
                .at((self.image * h + row as usize) * w * f)
                .cast_const();
            row_product::<S, FEATURES>(&RowProduct {
                rows: &[input],
                stride: f,
                taps: f,
                weights: self.shared.at(p.conv1),
                lanes: e,
                start: Start::Bias(self.shared.at(p.conv1_bias)),
                out: out.add(e),
                w,
                non_temporal: false,
            });
        }
    }
}

/// Workspace of the forward operation.
pub fn workspace(op: &NanoBlock) -> Workspace {
    let (e, w) = (HIDDEN, op.extent.w);
    Workspace {
        shared: packed(FEATURES).len,
        scratch: 3 * round_up_to_lanes((w + 2) * e) + SPAN * e,
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a NanoBlock,
    parts: WorkspaceParts,
    bands: Bands,
    input: SharedPtr<f32>,
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (f, e, w, h) = (FEATURES, HIDDEN, self.op.extent.w, self.op.extent.h);
        let (image, start, end) = self.bands.task(task);
        let non_temporal = exceeds_cache(self.op.extent, FEATURES);
        let (p, shared) = (packed(f), self.parts.shared());
        // SAFETY: rows `start..end` of the output are this task's. A pixel is F = 16 values, so
        // pixels begin at multiples of 64 bytes. The rest is the contract of `Task::run`.
        unsafe {
            let ring = self.parts.scratch();
            let hidden = HiddenRows {
                op: self.op,
                shared,
                ring,
                input: self.input,
                image,
            };
            let active = ring.at(3 * round_up_to_lanes((w + 2) * e));
            for row in start as isize - 2..end as isize {
                hidden.fill::<S>(row + 1);
                if row < start as isize {
                    continue; // the first output row needs three rows in the ring
                }
                let y = row as usize;
                for (x, n) in spans(w) {
                    let around = hidden.rows(y as isize, x);
                    let (dw, bias) = (shared.at(p.dw), Some(shared.at(p.dw_bias).cast_const()));
                    row_depthwise::<S>(around, dw, bias, e, n, active);
                    let at = ((image * h + y) * w + x) * f;
                    let ahead = self.input.at(at).cast_const();
                    for i in (0..n * e).step_by(LANES) {
                        S::prefetch(ahead.wrapping_add(2 * w * f + i / 2));
                        S::store(active.add(i), gelu::<S>(S::load(active.add(i))));
                    }
                    row_product::<S, HIDDEN>(&RowProduct {
                        rows: &[active.cast_const()],
                        stride: e,
                        taps: e,
                        weights: shared.at(p.conv2),
                        lanes: f,
                        start: Start::RowPlusBias(self.input.at(at), shared.at(p.conv2_bias)),
                        out: self.output.at(at),
                        w: n,
                        non_temporal,
                    });
                }
            }
            S::fence();
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &NanoBlock) {
    let parts = ctx.parts(op.workspace, workspace(op));
    pack(ctx, op, parts, false);
    let bands = Bands::new(op.extent);
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

/// The place of each sum in the partial of a backward task, f32 elements.
struct Sums {
    /// Gradient of conv1, `[ci][e]`.
    conv1: usize,
    /// `[e]`
    conv1_bias: usize,
    /// Gradient of the depthwise weights, `[ky][kx][e]`.
    dw: usize,
    /// `[e]`
    dw_bias: usize,
    /// Sum of d output x gelu(z), `[f][e]`. Its product with gamma is the gradient of conv2; its
    /// product with conv2 is the gradient of gamma.
    product: usize,
    /// Sum of d output, `[f]`.
    d_output: usize,
    /// Elements of all sums.
    len: usize,
}

fn sums(f: usize) -> Sums {
    let e = 2 * f;
    let (conv1, conv1_bias) = (0, f * e);
    let dw = conv1_bias + e;
    let dw_bias = dw + 9 * e;
    let product = dw_bias + e;
    let d_output = product + e * f;
    Sums {
        conv1,
        conv1_bias,
        dw,
        dw_bias,
        product,
        d_output,
        len: d_output + f,
    }
}

/// Workspace of the backward operation.
pub fn workspace_back(op: &NanoBlockBack) -> Workspace {
    let block = &op.forward;
    let (f, e, w) = (FEATURES, HIDDEN, block.extent.w);
    Workspace {
        shared: packed(f).len,
        partial: sums(f).len,
        tasks: Bands::new(block.extent).tasks(),
        scratch: 6 * round_up_to_lanes((w + 2) * e) + SPAN * e,
    }
}

struct Backward<'a> {
    op: &'a NanoBlock,
    parts: WorkspaceParts,
    bands: Bands,
    /// This and the gradients: `[N, h, w, F]`.
    input: SharedPtr<f32>,
    d_output: SharedPtr<f32>,
    d_input: SharedPtr<f32>,
}

/// The band of rows of one backward task, and its memory.
struct Band<'a> {
    image: usize,
    /// First row.
    start: usize,
    /// The row after the last one.
    end: usize,
    hidden: HiddenRows<'a>,
    /// A ring of three padded rows `[w + 2, E]` of the gradient with respect to z, the input of
    /// GELU.
    dz: SharedPtr<f32>,
    /// Room for a piece of a row, `[SPAN, E]`.
    span: *mut f32,
    /// The task's partial, laid out as [`Sums`].
    partial: SharedPtr<f32>,
}

impl Band<'_> {
    /// The place of a row, at least -3, in the ring of gradients.
    ///
    /// # Safety
    /// The ring holds three padded rows.
    #[inline(always)]
    unsafe fn dz_row(&self, row: isize) -> *mut f32 {
        let len = round_up_to_lanes((self.hidden.op.extent.w + 2) * HIDDEN);
        // SAFETY: the remainder is below 3, and the ring holds as many rows
        unsafe { self.dz.at((row + 3) as usize % 3 * len) }
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (image, start, end) = self.bands.task(task);
        let len = round_up_to_lanes((self.op.extent.w + 2) * HIDDEN);
        // SAFETY: rows `start..end` of `d_input` and the partial are this task's, and the pieces of
        // the scratch follow each other as in `workspace_back`. The rest is the contract of
        // `Task::run`.
        unsafe {
            let ring = self.parts.scratch();
            let band = Band {
                image,
                start,
                end,
                hidden: HiddenRows {
                    op: self.op,
                    shared: self.parts.shared(),
                    ring,
                    input: self.input,
                    image,
                },
                dz: SharedPtr::new(ring.at(3 * len)),
                span: ring.at(6 * len),
                partial: self.parts.partial(task),
            };
            band.partial.at(0).write_bytes(0, sums(FEATURES).len);
            for row in start as isize - 3..=end as isize {
                band.hidden.fill::<S>(row + 1);
                if row < start as isize - 1 {
                    continue; // the first row of dz needs three hidden rows in the ring
                }
                self.fill_dz::<S>(&band, row);
                // the gradient of the input needs dz on both sides of its row
                if row > start as isize {
                    self.input_gradient::<S>(&band, (row - 1) as usize);
                }
            }
            S::fence();
        }
    }
}

impl Backward<'_> {
    /// Computes a row of dz into the ring; zeros for a row outside the image. For a row of the band,
    /// also adds the gradients of conv2 and of the depthwise convolution to the partial.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose band this is; the hidden rows around `row` are in the
    /// ring.
    #[inline(always)]
    unsafe fn fill_dz<S: Simd>(&self, band: &Band<'_>, row: isize) {
        let (f, e, w, h) = (FEATURES, HIDDEN, self.op.extent.w, self.op.extent.h);
        let (p, s, shared) = (packed(f), sums(f), self.parts.shared());
        // SAFETY: a row of the ring has room for `w + 2` pixels, `span` for a piece of a row, and
        // `backward` packed the weights; the rest is the caller's contract
        unsafe {
            let (dz, span, partial) = (band.dz_row(row), band.span, band.partial);
            if row < 0 || row >= h as isize {
                dz.write_bytes(0, (w + 2) * e);
                return;
            }
            dz.write_bytes(0, e);
            dz.add((w + 1) * e).write_bytes(0, e);
            for (x, n) in spans(w) {
                let (dz, around) = (dz.add((x + 1) * e), band.hidden.rows(row, x));
                let at = ((band.image * h + row as usize) * w + x) * f;
                let (d_out, x_row) = (
                    self.d_output.at(at).cast_const(),
                    self.input.at(at).cast_const(),
                );
                let (dw, bias) = (shared.at(p.dw), Some(shared.at(p.dw_bias).cast_const()));
                row_depthwise::<S>(around, dw, bias, e, n, span);
                row_product::<S, FEATURES>(&RowProduct {
                    rows: &[d_out],
                    stride: f,
                    taps: f,
                    weights: shared.at(p.conv2),
                    lanes: e,
                    start: Start::Bias(ZEROS.as_ptr()),
                    out: dz,
                    w: n,
                    non_temporal: false,
                });
                for i in (0..n * e).step_by(LANES) {
                    let (value, slope) = gelu_and_slope::<S>(S::load(span.add(i)));
                    S::prefetch(d_out.wrapping_add(w * f + i / 2));
                    S::prefetch(x_row.wrapping_add(2 * w * f + i / 2));
                    S::store(span.add(i), value);
                    S::store(dz.add(i), S::mul(S::load(dz.add(i)), slope));
                }
                if row >= band.start as isize && row < band.end as isize {
                    row_outer::<S>(d_out, f, f, span, e, n, partial.at(s.product));
                    row_sum::<S>(d_out, f, n, partial.at(s.d_output));
                    row_depthwise_outer::<S>(around, dz, e, n, partial.at(s.dw));
                    row_sum::<S>(dz, e, n, partial.at(s.dw_bias));
                }
            }
        }
    }

    /// Writes row `y` of the gradient with respect to the input, and adds the gradient of conv1 to
    /// the partial.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose row this is; the rows of dz around `y` are in the ring.
    #[inline(always)]
    unsafe fn input_gradient<S: Simd>(&self, band: &Band<'_>, y: usize) {
        let (f, e, w, h) = (FEATURES, HIDDEN, self.op.extent.w, self.op.extent.h);
        let non_temporal = exceeds_cache(self.op.extent, FEATURES);
        let (p, s, shared) = (packed(f), sums(f), self.parts.shared());
        // SAFETY: `span` has room for a piece of a row, and `backward` packed the weights. A pixel
        // is F = 16 values, so pixels begin at multiples of 64 bytes. The rest is the caller's
        // contract.
        unsafe {
            let (span, partial) = (band.span, band.partial);
            for (x, n) in spans(w) {
                let around: [*const f32; 3] = std::array::from_fn(|k| {
                    let row = y as isize - 1 + k as isize;
                    band.dz_row(row).add(x * e).cast_const()
                });
                row_depthwise::<S>(around, shared.at(p.dw_flipped), None, e, n, span);
                let at = ((band.image * h + y) * w + x) * f;
                row_outer::<S>(self.input.at(at), f, f, span, e, n, partial.at(s.conv1));
                row_sum::<S>(span, e, n, partial.at(s.conv1_bias));
                row_product::<S, HIDDEN>(&RowProduct {
                    rows: &[span.cast_const()],
                    stride: e,
                    taps: e,
                    weights: shared.at(p.conv1_transposed),
                    lanes: f,
                    start: Start::RowPlusBias(
                        self.d_output.at(at),
                        shared.at(p.conv1_transposed + e * f),
                    ),
                    out: self.d_input.at(at),
                    w: n,
                    non_temporal,
                });
            }
        }
    }
}

/// The start values of a product without bias.
static ZEROS: [f32; HIDDEN] = [0.0; HIDDEN];

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &NanoBlockBack) {
    let block = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    pack(ctx, block, parts, true);
    let bands = Bands::new(block.extent);
    let task = Backward {
        op: block,
        parts,
        bands,
        input: ctx.floats(block.input),
        d_output: ctx.floats(op.d_output),
        d_input: ctx.floats(op.d_input),
    };
    ctx.parallel(bands.tasks(), &task);
    if !ctx.reduce(parts, Slice::whole(block.extent.n)) {
        return;
    }
    let (f, e, s, params) = (FEATURES, HIDDEN, sums(FEATURES), &block.params);
    // SAFETY: the tasks have finished, the sums hold as many values as a partial, and the ranges
    // lie inside the parameters
    let (sum, gamma, w2, b2) = unsafe {
        let get = |range: ParamRange| &*ctx.param(block.parameters, range).slice(0, range.len);
        (
            &*parts.sums().slice(0, s.len),
            get(params.gamma),
            get(params.conv2_weight),
            get(params.conv2_bias),
        )
    };
    ctx.store_gradient(op.gradients, params.conv1_weight, |i| {
        sum[s.conv1 + i % f * e + i / f]
    });
    ctx.store_gradient(op.gradients, params.conv1_bias, |i| sum[s.conv1_bias + i]);
    ctx.store_gradient(op.gradients, params.dw_weight, |i| {
        sum[s.dw + i % 9 * e + i / 9]
    });
    ctx.store_gradient(op.gradients, params.dw_bias, |i| sum[s.dw_bias + i]);
    ctx.store_gradient(op.gradients, params.conv2_weight, |i| {
        gamma[i / e] * sum[s.product + i]
    });
    ctx.store_gradient(op.gradients, params.conv2_bias, |i| {
        gamma[i] * sum[s.d_output + i]
    });
    // d gamma = sum of d output x (conv2(gelu(z)) + bias). The sums contain every product of it.
    ctx.store_gradient(op.gradients, params.gamma, |c| {
        let products: f64 = (0..e)
            .map(|k| f64::from(w2[c * e + k]) * f64::from(sum[s.product + c * e + k]))
            .sum();
        (products + f64::from(b2[c]) * f64::from(sum[s.d_output + c])) as f32
    });
}
