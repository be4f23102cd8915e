//! Attention of each pixel to the tokens. Depends on the row products, the exponential and tasks. A
//! first pass computes keys and values from the tokens into the shared part of the workspace. Then
//! some pixels at a time go through three steps that stay in the core's cache: the scores (a row
//! product), the softmax, and the sums of values (a row product).

mod backward;
mod prepare;
#[cfg(test)]
mod tests;

use super::arena::SharedPtr;
use super::elementwise::{check_activation, values_of};
use super::exp::exp;
use super::operation::{CpuOperation, MAX_CHANNELS};
use super::rows::{RowProduct, RowStart, row_product};
use super::simd::{LANES, Registers, Simd};
use super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache};
use crate::plan::TokenAttention;
use anyhow::{Result, ensure};
use prepare::{Layout, prepare};

/// Pixels whose scores are in the core's cache at a time.
const CHUNK: usize = 32;

/// A row product with the stride as a constant for the usual sizes.
///
/// # Safety
/// As [`row_product`].
#[inline(always)]
unsafe fn product<S: Simd>(r: &RowProduct<'_>) {
    // SAFETY: the constant is the stride; the rest is the caller's contract
    unsafe {
        match r.stride {
            16 => row_product::<S, 16>(r),
            64 => row_product::<S, 64>(r),
            _ => row_product::<S, 0>(r),
        }
    }
}

/// The scores of P pixels of N vectors each become the weights of their softmax. All stay in
/// registers; several pixels hide the latency of a pixel's chain of operations.
///
/// # Safety
/// As [`softmax`], for P pixels of N vectors.
#[inline(always)]
unsafe fn softmax_tile<S: Simd, const P: usize, const N: usize>(scores: *mut f32) {
    // SAFETY: the caller guarantees the memory
    unsafe {
        let mut values = [[S::splat(0.0); N]; P];
        let mut shift = [S::splat(0.0); P];
        for (pixel, values) in values.iter_mut().enumerate() {
            for (v, value) in values.iter_mut().enumerate() {
                *value = S::load(scores.add((pixel * N + v) * LANES));
            }
            let mut largest = values[0];
            for &value in &values[1..] {
                largest = S::max(largest, value);
            }
            shift[pixel] = S::splat(S::largest(largest));
        }
        for (values, &shift) in values.iter_mut().zip(&shift) {
            for value in values {
                *value = exp::<S>(S::sub(*value, shift));
            }
        }
        for (pixel, values) in values.iter().enumerate() {
            let mut sum = values[0];
            for &value in &values[1..] {
                sum = S::add(sum, value);
            }
            let inverse = S::splat(1.0 / S::sum(sum));
            for (v, &value) in values.iter().enumerate() {
                S::store(scores.add((pixel * N + v) * LANES), S::mul(value, inverse));
            }
        }
    }
}

/// The scores of a pixel become the weights of its softmax, for any number of vectors.
///
/// # Safety
/// As [`softmax`], for one pixel.
#[inline(always)]
unsafe fn softmax_pixel<S: Simd>(scores: *mut f32, lanes: usize) {
    // SAFETY: the caller guarantees the memory
    unsafe {
        let mut largest = S::load(scores);
        for lane in (LANES..lanes).step_by(LANES) {
            largest = S::max(largest, S::load(scores.add(lane)));
        }
        let shift = S::splat(S::largest(largest));
        let mut sum = S::splat(0.0);
        for lane in (0..lanes).step_by(LANES) {
            let weight = exp::<S>(S::sub(S::load(scores.add(lane)), shift));
            S::store(scores.add(lane), weight);
            sum = S::add(sum, weight);
        }
        let inverse = S::splat(1.0 / S::sum(sum));
        for lane in (0..lanes).step_by(LANES) {
            let at = scores.add(lane);
            S::store(at, S::mul(S::load(at), inverse));
        }
    }
}

/// The scores of some pixels become the weights of their softmax.
///
/// # Safety
/// As [`Simd`]. `scores` points to `lanes` values, a multiple of a vector, for each of `pixels`
/// pixels, and no other thread uses them.
#[inline(always)]
unsafe fn softmax<S: Simd>(scores: *mut f32, pixels: usize, lanes: usize) {
    // SAFETY: every pixel is one of the caller's
    unsafe {
        if lanes != 4 * LANES {
            for pixel in 0..pixels {
                softmax_pixel::<S>(scores.add(pixel * lanes), lanes);
            }
            return;
        }
        let mut pixel = 0;
        if S::REGISTERS == Registers::Many {
            while pixel + 4 <= pixels {
                softmax_tile::<S, 4, 4>(scores.add(pixel * lanes));
                pixel += 4;
            }
        }
        while pixel < pixels {
            softmax_tile::<S, 1, 4>(scores.add(pixel * lanes));
            pixel += 1;
        }
    }
}

/// The buffers from which the weights of a pixel follow.
#[derive(Clone, Copy)]
struct Scores {
    layout: Layout,
    /// The shared part of the workspace, prepared.
    shared: SharedPtr<f32>,
    /// `[N, h, w, D]`
    query: SharedPtr<f32>,
}

impl Scores {
    /// Writes the softmax's weights `[pixels][tokens]` of some pixels from number `first` on.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose pixels these are; `weights` has room for them, and no
    /// other thread uses it.
    #[inline(always)]
    unsafe fn weights<S: Simd>(&self, first: usize, pixels: usize, weights: *mut f32) {
        let layout = &self.layout;
        // SAFETY: the query holds these pixels, and the shared part a key for each token
        unsafe {
            product::<S>(&RowProduct {
                rows: &[self.query.at(first * layout.query_stride)],
                stride: layout.query_stride,
                taps: layout.query,
                weights: self.shared.at(layout.keys_by_channel()),
                lanes: layout.token_lanes,
                start: RowStart::Bias(self.shared.at(layout.score_start())),
                out: weights,
                w: pixels,
                non_temporal: false,
            });
            softmax::<S>(weights, pixels, layout.token_lanes);
        }
    }
}

/// The output of a band of rows.
struct Forward<'a> {
    op: &'a TokenAttention,
    bands: Bands,
    scores: Scores,
    parts: WorkspaceParts,
    /// `[N, h, w, F]`
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Scores { layout, shared, .. } = self.scores;
        let pixels = values_of(self.bands, self.op.extent, 1, task);
        // SAFETY: these pixels of the output are this task's, the scratch has room for the weights
        // of a chunk, and a pixel is whole vectors, so that each begins at a multiple of 64 bytes
        unsafe {
            let weights = self.parts.scratch().at(0);
            for first in pixels.clone().step_by(CHUNK) {
                let count = CHUNK.min(pixels.end - first);
                self.scores.weights::<S>(first, count, weights);
                product::<S>(&RowProduct {
                    rows: &[weights],
                    stride: layout.token_lanes,
                    taps: layout.tokens,
                    weights: shared.at(layout.values()),
                    lanes: layout.stride,
                    start: RowStart::Bias(shared.at(layout.zeros())),
                    out: self.output.at(first * layout.stride),
                    w: count,
                    non_temporal: exceeds_cache(self.op.extent, layout.stride),
                });
            }
            S::fence();
        }
    }
}

impl CpuOperation for TokenAttention {
    fn check(&self) -> Result<()> {
        check_activation(self.extent, self.channels)?;
        check_activation(self.extent, self.query_channels)?;
        let (tokens, channels, query) = (self.tokens(), self.channels, self.query_channels);
        ensure!(
            tokens > 0 && tokens <= MAX_CHANNELS,
            "{tokens} tokens: 1 to {MAX_CHANNELS} are supported"
        );
        let params = &self.params;
        let [lens, expected] = [
            [
                params.tokens.len,
                params.key[0].len,
                params.key[1].len,
                params.value[0].len,
                params.value[1].len,
            ],
            [
                tokens * channels,
                query * channels,
                query,
                channels * channels,
                channels,
            ],
        ];
        ensure!(
            lens == expected,
            "parameters of {lens:?} values for {tokens} tokens, {channels} channels and queries of \
             {query}"
        );
        Ok(())
    }

    fn workspace(&self) -> Workspace {
        let layout = Layout::new(self);
        Workspace {
            shared: layout.forward_floats(),
            scratch: CHUNK * layout.token_lanes,
            ..Workspace::default()
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        let parts = ctx.parts(self.workspace, CpuOperation::workspace(self));
        let scores = prepare(ctx, self, parts.shared(), false);
        let bands = Bands::new(self.extent);
        let task = Forward {
            op: self,
            bands,
            scores,
            parts,
            output: ctx.floats(self.output),
        };
        ctx.parallel(bands.tasks(), &task);
    }
}
