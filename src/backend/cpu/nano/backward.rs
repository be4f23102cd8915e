//! The backward operation of a Nano block. It recomputes the hidden rows from the block's input.

use super::super::arena::SharedPtr;
use super::super::gelu::gelu_and_slope;
use super::super::rows::{
    RowProduct, RowStart, row_depthwise, row_depthwise_outer, row_outer, row_product, row_sum,
};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{
    Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache, round_up_to_lanes,
};
use super::pack::{pack, packed};
use super::{FEATURES, HIDDEN, HiddenRows, SPAN, spans};
use crate::plan::{NanoBlock, NanoBlockBack, ParamRange, Slice};

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
    /// Computes a row of dz into the ring; zeros for a row outside the image. For a row of the
    /// band, also adds the gradients of conv2 and of the depthwise convolution to the partial.
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
                    start: RowStart::Bias(ZEROS.as_ptr()),
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
                    start: RowStart::RowPlusBias(
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
