//! The Nano block in one pass forward and one backward: 1x1, depthwise 3x3, GELU, 1x1, LayerScale,
//! residual. Rows travel through small rings that stay in cache; only the block's input is ever
//! read from memory. Depends on the row kernels and GELU.

use super::arena::Shared;
use super::gelu::{gelu, gelu_and_slope};
use super::rows::{
    RowProduct, Start, row_depthwise, row_depthwise_outer, row_outer, row_product, row_sum,
};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, exceeds_cache, whole};
use crate::plan::{NanoBlock, NanoBlockBack, Slice};

/// Features F of a Nano block and its hidden channels E = 2F: known when compiling, which the inner
/// loops use.
const F: usize = 16;
const E: usize = 2 * F;
/// Pixels of a row taken through all steps at a time: what lies between the steps stays in the
/// first cache.
const SPAN: usize = 64;

/// Pieces of a row of `w` pixels: (first pixel, number of pixels).
fn spans(w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..w).step_by(SPAN).map(move |x| (x, SPAN.min(w - x)))
}

/// Where packed weights lie in the shared part, f32 elements; E = 2F.
struct Packed {
    /// `[ci][e]`
    conv1: usize,
    conv1_bias: usize,
    /// `[ky][kx][e]`
    dw: usize,
    dw_bias: usize,
    /// Forward: `[e][f]` times gamma. Backward: `[f][e]` times gamma.
    conv2: usize,
    /// Times gamma.
    conv2_bias: usize,
    /// Backward only: depthwise taps turned by 180 degrees.
    dw_flipped: usize,
    /// Backward only: `[e][f]`, then F zeros.
    conv1_transposed: usize,
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

fn pack(ctx: &Context<'_>, op: &NanoBlock, parts: Parts, backward: bool) {
    let (f, e, p) = (F, E, packed(F));
    // SAFETY: the ranges lie inside the parameters, the packed weights inside the workspace, and no
    // task runs yet
    unsafe {
        let get =
            |range: crate::plan::ParamRange| &*ctx.param(op.parameters, range).slice(0, range.len);
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

/// Rows of hidden values in flight: a ring of three padded rows, in the scratch of the task that
/// made it, and the first convolution that fills it from an image of the input, with packed weights
/// of the workspace.
struct Hidden<'a> {
    op: &'a NanoBlock,
    shared: Shared<f32>,
    ring: Shared<f32>,
    input: Shared<f32>,
    image: usize,
}

impl Hidden<'_> {
    /// A padded row of the ring.
    ///
    /// # Safety
    /// The ring holds three padded rows; `row` is at least -3.
    #[inline(always)]
    unsafe fn row(&self, row: isize) -> *mut f32 {
        let len = whole((self.op.extent.w + 2) * E);
        // SAFETY: the remainder is below 3, and the ring holds as many rows
        unsafe { self.ring.at((row + 3) as usize % 3 * len) }
    }

    /// The three rows around a row, from the neighbour before pixel `x` on.
    ///
    /// # Safety
    /// As [`Hidden::row`] for the three; `x` is a pixel of the row.
    #[inline(always)]
    unsafe fn rows(&self, centre: isize, x: usize) -> [*const f32; 3] {
        // SAFETY: pixel `x` of a padded row is the neighbour before that of the image
        unsafe {
            std::array::from_fn(|k| self.row(centre - 1 + k as isize).add(x * E).cast_const())
        }
    }

    /// conv1 of one row of the input; rows outside the image are the zero padding of the
    /// depthwise step.
    ///
    /// # Safety
    /// As [`Simd`] and [`Hidden::row`]; input and weights are as described, and the ring is nobody
    /// else's.
    #[inline(always)]
    unsafe fn fill<S: Simd>(&self, row: isize) {
        let (f, e, w, h) = (F, E, self.op.extent.w, self.op.extent.h);
        let p = packed(f);
        // SAFETY: a row of the ring holds `w + 2` pixels of E values, an image of the input `h`
        // rows of `w` pixels of F, and the shared part the weights
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
            row_product::<S, F>(&RowProduct {
                rows: &[input],
                stride: f,
                taps: f,
                weights: self.shared.at(p.conv1),
                lanes: e,
                start: Start::Bias(self.shared.at(p.conv1_bias)),
                out: out.add(e),
                w,
                far: false,
            });
        }
    }
}

/// Workspace of the forward operation.
pub fn workspace(op: &NanoBlock) -> Workspace {
    assert_eq!(op.features, F, "Nano blocks have {F} features");
    let (e, w) = (E, op.extent.w);
    Workspace {
        shared: packed(F).len,
        scratch: 3 * whole((w + 2) * e) + SPAN * e,
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a NanoBlock,
    parts: Parts,
    bands: Bands,
    input: Shared<f32>,
    output: Shared<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (f, e, w, h) = (F, E, self.op.extent.w, self.op.extent.h);
        let (image, start, end) = self.bands.task(task);
        let far = exceeds_cache(self.op.extent, F);
        let (p, shared) = (packed(f), self.parts.shared());
        // SAFETY: the output's rows `start..end` are this task's, and pixels are F = 16 values, so
        // that they begin at multiples of 64; the rest is `Task::run`'s contract
        unsafe {
            let ring = self.parts.scratch();
            let hidden = Hidden {
                op: self.op,
                shared,
                ring,
                input: self.input,
                image,
            };
            let active = ring.at(3 * whole((w + 2) * e));
            for row in start as isize - 2..end as isize {
                hidden.fill::<S>(row + 1);
                if row < start as isize {
                    continue; // the ring is filling
                }
                let y = row as usize;
                for (x, n) in spans(w) {
                    let around = hidden.rows(y as isize, x);
                    row_depthwise::<S>(
                        around,
                        shared.at(p.dw),
                        Some(shared.at(p.dw_bias)),
                        e,
                        n,
                        active,
                    );
                    let at = ((image * h + y) * w + x) * f;
                    let ahead = self.input.at(at).cast_const();
                    for i in (0..n * e).step_by(LANES) {
                        S::prefetch(ahead.wrapping_add(2 * w * f + i / 2));
                        S::store(active.add(i), gelu::<S>(S::load(active.add(i))));
                    }
                    row_product::<S, E>(&RowProduct {
                        rows: &[active.cast_const()],
                        stride: e,
                        taps: e,
                        weights: shared.at(p.conv2),
                        lanes: f,
                        start: Start::RowPlusBias(self.input.at(at), shared.at(p.conv2_bias)),
                        out: self.output.at(at),
                        w: n,
                        far,
                    });
                }
            }
            S::fence();
        }
    }
}

/// Runs a block.
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

/// Where the sums of a backward task lie in its partial, f32 elements.
struct Sums {
    /// d conv1 `[ci][e]`
    conv1: usize,
    conv1_bias: usize,
    /// `[ky][kx][e]`
    dw: usize,
    dw_bias: usize,
    /// Sum of d output x gelu(z), `[f][e]`: times gamma it is d conv2, against conv2 it is d gamma.
    product: usize,
    /// Sum of d output, `[f]`.
    d_output: usize,
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
    let (f, e, w) = (F, E, block.extent.w);
    Workspace {
        shared: packed(f).len,
        partial: sums(f).len,
        tasks: Bands::new(block.extent).tasks(),
        scratch: 6 * whole((w + 2) * e) + SPAN * e,
    }
}

struct Backward<'a> {
    op: &'a NanoBlock,
    parts: Parts,
    bands: Bands,
    input: Shared<f32>,
    d_output: Shared<f32>,
    d_input: Shared<f32>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (f, e, w, h) = (F, E, self.op.extent.w, self.op.extent.h);
        let (image, start, end) = self.bands.task(task);
        let far = exceeds_cache(self.op.extent, F);
        let (p, s, shared) = (packed(f), sums(f), self.parts.shared());
        let len = whole((w + 2) * e);
        // SAFETY: rows `start..end` of `d_input` and the partial are this task's, and pixels are F
        // = 16 values, so that they begin at multiples of 64; the rest is `Task::run`'s contract
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, s.len);
            let scratch = self.parts.scratch();
            let hidden = Hidden {
                op: self.op,
                shared,
                ring: scratch,
                input: self.input,
                image,
            };
            let dz_ring = Shared::new(scratch.at(3 * len));
            let dz_row = |row: isize| dz_ring.at((row + 3) as usize % 3 * len);
            // gelu(z), then d hidden, of some pixels of a row
            let span = scratch.at(6 * len);
            for t in start as isize - 3..=end as isize {
                hidden.fill::<S>(t + 1);
                if t < start as isize - 1 {
                    continue; // the ring is filling
                }
                let dz = dz_row(t);
                if t < 0 || t >= h as isize {
                    dz.write_bytes(0, (w + 2) * e);
                } else {
                    dz.write_bytes(0, e);
                    dz.add((w + 1) * e).write_bytes(0, e);
                    for (x, n) in spans(w) {
                        let (dz, around) = (dz.add((x + 1) * e), hidden.rows(t, x));
                        let at = ((image * h + t as usize) * w + x) * f;
                        let (d_out, x_row) = (
                            self.d_output.at(at).cast_const(),
                            self.input.at(at).cast_const(),
                        );
                        row_depthwise::<S>(
                            around,
                            shared.at(p.dw),
                            Some(shared.at(p.dw_bias)),
                            e,
                            n,
                            span,
                        );
                        row_product::<S, F>(&RowProduct {
                            rows: &[d_out],
                            stride: f,
                            taps: f,
                            weights: shared.at(p.conv2),
                            lanes: e,
                            start: Start::Bias(ZEROS.as_ptr()),
                            out: dz,
                            w: n,
                            far: false,
                        });
                        for i in (0..n * e).step_by(LANES) {
                            let (value, slope) = gelu_and_slope::<S>(S::load(span.add(i)));
                            S::prefetch(d_out.wrapping_add(w * f + i / 2));
                            S::prefetch(x_row.wrapping_add(2 * w * f + i / 2));
                            S::store(span.add(i), value);
                            S::store(dz.add(i), S::mul(S::load(dz.add(i)), slope));
                        }
                        if t >= start as isize && t < end as isize {
                            row_outer::<S>(d_out, f, f, span, e, n, partial.at(s.product));
                            row_sum::<S>(d_out, f, n, partial.at(s.d_output));
                            row_depthwise_outer::<S>(around, dz, e, n, partial.at(s.dw));
                            row_sum::<S>(dz, e, n, partial.at(s.dw_bias));
                        }
                    }
                }
                let r = t - 1;
                if r < start as isize || r >= end as isize {
                    continue;
                }
                for (x, n) in spans(w) {
                    let around =
                        std::array::from_fn(|k| dz_row(r - 1 + k as isize).add(x * e).cast_const());
                    row_depthwise::<S>(around, shared.at(p.dw_flipped), None, e, n, span);
                    let at = ((image * h + r as usize) * w + x) * f;
                    row_outer::<S>(self.input.at(at), f, f, span, e, n, partial.at(s.conv1));
                    row_sum::<S>(span, e, n, partial.at(s.conv1_bias));
                    row_product::<S, E>(&RowProduct {
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
                        far,
                    });
                }
            }
            S::fence();
        }
    }
}

/// Zeros to start a product from.
static ZEROS: [f32; E] = [0.0; E];

/// Runs the gradients of a block.
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
    let (f, e, s, params) = (F, E, sums(F), &block.params);
    // SAFETY: the tasks are done, the sums hold as many values as a partial, and the ranges lie
    // inside the parameters
    let (sum, gamma, w2, b2) = unsafe {
        let get = |range: crate::plan::ParamRange| {
            &*ctx.param(block.parameters, range).slice(0, range.len)
        };
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
    // d gamma = sum of d output x (conv2(gelu(z)) + bias): the sums above already hold every
    // product it needs
    ctx.store_gradient(op.gradients, params.gamma, |c| {
        let products: f64 = (0..e)
            .map(|k| f64::from(w2[c * e + k]) * f64::from(sum[s.product + c * e + k]))
            .sum();
        (products + f64::from(b2[c]) * f64::from(sum[s.d_output + c])) as f32
    });
}
