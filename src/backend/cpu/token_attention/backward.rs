//! The gradients of token attention. The weights of the softmax are computed again; the gradients of
//! keys and values have a partial for each band of rows, and the last slice carries their sums back
//! to the parameters.

use super::super::arena::SharedPtr;
use super::super::elementwise::values_of;
use super::super::operation::CpuOperation;
use super::super::rows::{RowProduct, RowStart, row_outer};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache};
use super::prepare::{Layout, prepare};
use super::{CHUNK, Scores, product};
use crate::plan::{Extent, ParamRange, TokenAttention, TokenAttentionBack};
use anyhow::Result;

impl Layout {
    /// Elements of a partial: the gradients of the keys `[D][T]` times sqrt(D), then those of the
    /// values `[T][F]`. Rows are whole vectors.
    fn partial(&self) -> usize {
        self.query * self.token_lanes + self.tokens * self.stride
    }

    /// Elements of the parameters' gradients.
    fn gradient_floats(&self) -> usize {
        (self.query + self.channels + self.tokens) * self.channels + self.query + self.channels
    }
}

/// The gradients that a band of rows gives.
struct Backward {
    extent: Extent,
    bands: Bands,
    scores: Scores,
    parts: WorkspaceParts,
    /// `[N, h, w, F]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, D]`
    d_query: SharedPtr<f32>,
}

/// The gradients of scores from the weights of the softmax and the gradients of these:
/// `weight * (d - sum of all weight * d)`, in place of d.
///
/// # Safety
/// As [`Simd`]. `pixels` times `lanes` values, a multiple of a vector, can be read at `weights` and
/// read and written at `d`; no other thread uses them.
#[inline(always)]
unsafe fn softmax_back<S: Simd>(weights: *const f32, d: *mut f32, pixels: usize, lanes: usize) {
    // SAFETY: the caller guarantees the memory
    unsafe {
        for pixel in 0..pixels {
            let (weights, d) = (weights.add(pixel * lanes), d.add(pixel * lanes));
            let mut sum = S::splat(0.0);
            for lane in (0..lanes).step_by(LANES) {
                sum = S::fma(S::load(weights.add(lane)), S::load(d.add(lane)), sum);
            }
            let mean = S::splat(S::sum(sum));
            for lane in (0..lanes).step_by(LANES) {
                let to = d.add(lane);
                let centred = S::sub(S::load(to), mean);
                S::store(to, S::mul(S::load(weights.add(lane)), centred));
            }
        }
    }
}

impl Backward {
    /// The gradients of `count` pixels from number `first` on.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose pixels these are; `count` is at most [`CHUNK`], the
    /// scratch is the thread's, and the partial the task's.
    #[inline(always)]
    unsafe fn chunk<S: Simd>(
        &self,
        first: usize,
        count: usize,
        scratch: SharedPtr<f32>,
        partial: SharedPtr<f32>,
    ) {
        let Scores {
            layout,
            shared,
            query,
        } = self.scores;
        let (lanes, tokens) = (layout.token_lanes, layout.tokens);
        // SAFETY: all buffers hold these pixels, those of the query's gradient are this task's, and
        // the scratch has room for the weights of a chunk and their gradients
        unsafe {
            let (weights, d_scores) = (scratch.at(0), scratch.at(CHUNK * lanes));
            let d_output = self.d_output.at(first * layout.stride);
            let zeros = RowStart::Bias(shared.at(layout.zeros()));
            self.scores.weights::<S>(first, count, weights);
            product::<S>(&RowProduct {
                rows: &[d_output],
                stride: layout.stride,
                taps: layout.channels,
                weights: shared.at(layout.values_by_channel()),
                lanes,
                start: zeros,
                out: d_scores,
                w: count,
                non_temporal: false,
            });
            softmax_back::<S>(weights, d_scores, count, lanes);
            product::<S>(&RowProduct {
                rows: &[d_scores],
                stride: lanes,
                taps: tokens,
                weights: shared.at(layout.keys_by_token()),
                lanes: layout.query_stride,
                start: zeros,
                out: self.d_query.at(first * layout.query_stride),
                w: count,
                non_temporal: exceeds_cache(self.extent, layout.query_stride),
            });
            let query = query.at(first * layout.query_stride);
            let (d_keys, d_values) = (partial.at(0), partial.at(layout.query * lanes));
            row_outer::<S>(
                query,
                layout.query_stride,
                layout.query,
                d_scores,
                lanes,
                count,
                d_keys,
            );
            row_outer::<S>(
                weights,
                lanes,
                tokens,
                d_output,
                layout.stride,
                count,
                d_values,
            );
        }
    }
}

impl Task for Backward {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let pixels = values_of(self.bands, self.extent, 1, task);
        let partial = self.parts.partial(task);
        // SAFETY: these pixels and the partial are this task's, and the scratch is its thread's
        unsafe {
            partial.at(0).write_bytes(0, self.scores.layout.partial());
            for first in pixels.clone().step_by(CHUNK) {
                let count = CHUNK.min(pixels.end - first);
                self.chunk::<S>(first, count, self.parts.scratch(), partial);
            }
            S::fence();
        }
    }
}

/// Computes the gradients of the parameters that one row of a weight or one token has, from those of
/// keys and values. They follow each other in the workspace as weight of keys, weight of values,
/// tokens, bias of keys, bias of values, in the parameters' order.
pub struct GradientTask {
    layout: Layout,
    /// Sums of all partials.
    sums: SharedPtr<f32>,
    /// `[T, F]`
    tokens: SharedPtr<f32>,
    /// `[D, F]`
    key: SharedPtr<f32>,
    /// `[F, F]`
    value: SharedPtr<f32>,
    /// The gradients.
    to: SharedPtr<f32>,
}

/// Rows `[count][len]` with a factor each.
#[derive(Clone, Copy)]
struct ScaledRows {
    rows: *const f32,
    count: usize,
    /// The first row's factor; the others follow in steps of `step` values.
    factors: *const f32,
    step: usize,
    /// What all factors are multiplied by.
    scale: f32,
}

impl ScaledRows {
    /// Adds the sum of the scaled rows in V vectors from value `lane` on to `out`.
    ///
    /// # Safety
    /// As [`ScaledRows::add_to`], and the rows hold these values.
    #[inline(always)]
    unsafe fn add_vectors<S: Simd, const V: usize>(&self, len: usize, lane: usize, out: *mut f32) {
        // SAFETY: the caller guarantees the memory
        unsafe {
            let mut acc = [S::splat(0.0); V];
            for i in 0..self.count {
                let factor = S::splat(self.scale * *self.factors.add(i * self.step));
                for (v, acc) in acc.iter_mut().enumerate() {
                    let row = self.rows.add(i * len + lane + v * LANES);
                    *acc = S::fma(factor, S::load(row), *acc);
                }
            }
            for (v, &acc) in acc.iter().enumerate() {
                let to = out.add(lane + v * LANES);
                S::store(to, S::add(S::load(to), acc));
            }
        }
    }

    /// Adds the sum of the scaled rows to `out`.
    ///
    /// # Safety
    /// As [`Simd`]. Rows of `len` values and factors can be read, and `out` has room for a row that
    /// no other thread uses.
    #[inline(always)]
    unsafe fn add_to<S: Simd>(&self, len: usize, out: *mut f32) {
        // SAFETY: no vector ends after the row; the rest is the caller's contract
        unsafe {
            let mut lane = 0;
            while lane + 4 * LANES <= len {
                self.add_vectors::<S, 4>(len, lane, out);
                lane += 4 * LANES;
            }
            while lane + LANES <= len {
                self.add_vectors::<S, 1>(len, lane, out);
                lane += LANES;
            }
            for i in lane..len {
                let mut sum = 0.0;
                for row in 0..self.count {
                    let factor = self.scale * *self.factors.add(row * self.step);
                    sum += factor * *self.rows.add(row * len + i);
                }
                *out.add(i) += sum;
            }
        }
    }

    /// The sum of the scaled factors.
    ///
    /// # Safety
    /// The factors can be read.
    unsafe fn sum_of_factors(&self) -> f32 {
        // SAFETY: the caller guarantees it
        let factors = (0..self.count).map(|i| unsafe { *self.factors.add(i * self.step) });
        (factors.map(f64::from).sum::<f64>() * f64::from(self.scale)) as f32
    }
}

impl Task for GradientTask {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, row: usize) {
        let layout = &self.layout;
        let (len, lanes, tokens) = (layout.channels, layout.token_lanes, layout.tokens);
        // SAFETY: the sums are a partial with its layout, the parameters have the shapes that
        // `check` saw, and the row's gradient and its bias's are this task's
        unsafe {
            let (d_keys, d_values) = (self.sums.at(0), self.sums.at(layout.query * lanes));
            let out = self.to.at(row * len);
            out.write_bytes(0, len);
            let all_tokens = ScaledRows {
                rows: self.tokens.at(0),
                count: tokens,
                factors: d_keys,
                step: 1,
                scale: layout.scale(),
            };
            let biases = (layout.query + layout.channels + tokens) * len;
            if row < layout.query {
                let rows = ScaledRows {
                    factors: d_keys.add(row * lanes),
                    ..all_tokens
                };
                rows.add_to::<S>(len, out);
                *self.to.at(biases + row) = rows.sum_of_factors();
            } else if row < layout.query + layout.channels {
                let rows = ScaledRows {
                    factors: d_values.add(row - layout.query),
                    step: layout.stride,
                    scale: 1.0,
                    ..all_tokens
                };
                rows.add_to::<S>(len, out);
                *self.to.at(biases + row) = rows.sum_of_factors();
            } else {
                let token = row - layout.query - layout.channels;
                let of_keys = ScaledRows {
                    rows: self.key.at(0),
                    count: layout.query,
                    factors: d_keys.add(token),
                    step: lanes,
                    scale: layout.scale(),
                };
                let of_values = ScaledRows {
                    rows: self.value.at(0),
                    count: layout.channels,
                    factors: d_values.add(token * layout.stride),
                    step: 1,
                    scale: 1.0,
                };
                of_keys.add_to::<S>(len, out);
                of_values.add_to::<S>(len, out);
            }
        }
    }
}

/// Stores the gradients of all parameters, from the sums of the partials.
fn store_gradients(ctx: &Context<'_>, back: &TokenAttentionBack, parts: WorkspaceParts) {
    let op = &back.forward;
    let (layout, params) = (Layout::new(op), &op.params);
    // SAFETY: the gradients follow the other parts of the shared part
    let to = SharedPtr::new(unsafe { parts.shared().at(layout.gradients()) });
    let task = GradientTask {
        layout,
        sums: parts.sums(),
        tokens: ctx.param(op.parameters, params.tokens),
        key: ctx.param(op.parameters, params.key[0]),
        value: ctx.param(op.parameters, params.value[0]),
        to,
    };
    ctx.parallel(layout.query + layout.channels + layout.tokens, &task);
    // SAFETY: the tasks have finished, and the shared part holds all gradients
    let mut rest = unsafe { to.view(0, layout.gradient_floats()) };
    let order: [ParamRange; 5] = [
        params.key[0],
        params.value[0],
        params.tokens,
        params.key[1],
        params.value[1],
    ];
    for range in order {
        let (values, after) = rest.split_at(range.len);
        ctx.store_gradient(back.gradients, range, |i| values[i]);
        rest = after;
    }
}

impl CpuOperation for TokenAttentionBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        let layout = Layout::new(&self.forward);
        Workspace {
            shared: layout.gradients() + layout.gradient_floats(),
            partial: layout.partial(),
            tasks: Bands::new(self.forward.extent).tasks(),
            scratch: 2 * CHUNK * layout.token_lanes,
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        let op: &TokenAttention = &self.forward;
        let parts = ctx.parts(self.workspace, CpuOperation::workspace(self));
        let scores = prepare(ctx, op, parts.shared(), true);
        let bands = Bands::new(op.extent);
        let task = Backward {
            extent: op.extent,
            bands,
            scores,
            parts,
            d_output: ctx.floats(self.d_output),
            d_query: ctx.floats(self.d_query),
        };
        ctx.parallel(bands.tasks(), &task);
        if ctx.reduce(parts, self.slice) {
            store_gradients(ctx, self, parts);
        }
    }
}
