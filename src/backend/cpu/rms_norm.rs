//! RMSNorm over channels. Depends on `elementwise`. Both directions read their buffers once and
//! write their result once, so they are bound by memory: 4 C bytes a pixel read and as many written
//! forward, 8 C read and 4 C written backward (and 4 C more read where the gradient is added).

#[cfg(test)]
mod tests;

use super::arena::SharedPtr;
use super::elementwise::{
    Output, PerChannel, Store, check_activation, check_per_channel, values_of,
};
use super::operation::CpuOperation;
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts};
use crate::plan::{Destination, RmsNorm, RmsNormBack};
use anyhow::{Result, ensure};

/// Pixels that are normalised together: their roots are the lanes of a vector.
const GROUP: usize = LANES;

/// One value for each pixel of a group.
type GroupValues = [f32; GROUP];

/// Scale or bias.
///
/// # Safety
/// As [`PerChannel::new`].
unsafe fn per_channel(ctx: &Context<'_>, op: &RmsNorm, bias: bool) -> PerChannel {
    let range = if bias { op.bias } else { op.scale };
    // SAFETY: the parameter has a value for each channel (`check`), and no task writes parameters
    unsafe { PerChannel::new(ctx.param(op.parameters, range), op.channels) }
}

/// Sums over the channels of each pixel, from the sums of its vectors' lanes. The order of
/// additions does not depend on the pixel's position in the group.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn over_lanes<S: Simd>(sums: &[S::V; GROUP]) -> S::V {
    let mut values = [0.0; GROUP];
    let (halves, _) = sums.as_chunks::<8>();
    // SAFETY: each half of the sums is written to its half of the values
    unsafe {
        for (half, sums) in halves.iter().enumerate() {
            S::sums(sums, values.as_mut_ptr().add(8 * half));
        }
        S::load(values.as_ptr())
    }
}

impl RmsNorm {
    /// 1 / sqrt(mean + epsilon), from the sum of the squares of each pixel of a group.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn inverse_roots<S: Simd>(&self, squares: &[S::V; GROUP]) -> S::V {
        // SAFETY: the processor has the instructions of S, by the caller's contract
        unsafe {
            let count = S::splat(self.channels as f32);
            let mean = S::div(over_lanes::<S>(squares), count);
            let root = S::sqrt(S::add(mean, S::splat(self.epsilon)));
            S::div(S::splat(1.0), root)
        }
    }
}

/// The normalised pixels of a band of rows of the output.
struct Forward<'a> {
    op: &'a RmsNorm,
    /// Bands of the output's rows.
    bands: Bands,
    scale: PerChannel,
    bias: PerChannel,
    /// `[N, h, w, C]`
    input: SharedPtr<f32>,
    /// `[N, padded h, padded w, C]`
    output: Output,
}

impl Forward<'_> {
    /// Normalises `count` pixels from value `from` of the input on, to value `to` of the output.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose pixels these are; `count` is at most [`GROUP`].
    #[inline(always)]
    unsafe fn group<S: Simd>(&self, from: usize, to: usize, count: usize) {
        let stride = self.op.stride();
        // SAFETY: both buffers hold these pixels, which are whole vectors, and those of the output
        // are this task's
        unsafe {
            let mut squares = [S::splat(0.0); GROUP];
            for (pixel, sum) in squares.iter_mut().enumerate().take(count) {
                for lane in (0..stride).step_by(LANES) {
                    let x = S::load(self.input.at(from + pixel * stride + lane));
                    *sum = S::fma(x, x, *sum);
                }
            }
            let mut inverse: GroupValues = [0.0; GROUP];
            S::store(inverse.as_mut_ptr(), self.op.inverse_roots::<S>(&squares));
            for lane in (0..stride).step_by(LANES) {
                let (scale, bias) = (self.scale.at::<S>(lane), self.bias.at::<S>(lane));
                for (pixel, &inverse) in inverse.iter().enumerate().take(count) {
                    let at = pixel * stride + lane;
                    let x = S::mul(S::load(self.input.at(from + at)), S::splat(inverse));
                    self.output.put::<S>(to + at, S::fma(x, scale, bias));
                }
            }
        }
    }
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let RmsNorm { extent, padded, .. } = *self.op;
        let stride = self.op.stride();
        let (image, start, end) = self.bands.task(task);
        for y in start..end {
            let to = (image * padded.h + y) * padded.w * stride;
            let from = (image * extent.h + y) * extent.w * stride;
            let width = if y < extent.h { extent.w } else { 0 };
            // SAFETY: this row of the output is the task's, and the pixels that are normalised lie
            // inside the image
            unsafe {
                for x in (0..width).step_by(GROUP) {
                    let (at, count) = (x * stride, GROUP.min(width - x));
                    self.group::<S>(from + at, to + at, count);
                }
                for at in (width * stride..padded.w * stride).step_by(LANES) {
                    self.output.put::<S>(to + at, S::splat(0.0));
                }
            }
        }
        // SAFETY: as `Simd`, by the contract of this function
        unsafe { S::fence() }
    }
}

impl CpuOperation for RmsNorm {
    fn check(&self) -> Result<()> {
        check_activation(self.extent, self.channels)?;
        check_activation(self.padded, self.channels)?;
        check_per_channel(self.scale, self.channels)?;
        check_per_channel(self.bias, self.channels)?;
        let (extent, padded) = (self.extent, self.padded);
        ensure!(
            padded.n == extent.n && padded.h >= extent.h && padded.w >= extent.w,
            "{} images of {}x{} pixels padded to {} of {}x{}",
            extent.n,
            extent.h,
            extent.w,
            padded.n,
            padded.h,
            padded.w
        );
        // without it the inverse root of a pixel of zeros is infinite
        ensure!(
            self.epsilon > 0.0,
            "an epsilon of {}: it must be above 0",
            self.epsilon
        );
        Ok(())
    }

    fn run(&self, ctx: &Context<'_>) {
        let bands = Bands::new(self.padded);
        // SAFETY: the parameters are only read while this operation runs
        let (scale, bias) =
            unsafe { (per_channel(ctx, self, false), per_channel(ctx, self, true)) };
        let task = Forward {
            op: self,
            bands,
            scale,
            bias,
            input: ctx.floats(self.input),
            output: Output {
                values: ctx.floats(self.output),
                store: Store::new(self.padded, self.stride(), false),
            },
        };
        ctx.parallel(bands.tasks(), &task);
    }
}

/// The gradients in a band of rows of the input.
struct Backward<'a> {
    op: &'a RmsNorm,
    bands: Bands,
    parts: WorkspaceParts,
    scale: PerChannel,
    /// `[N, h, w, C]`
    input: SharedPtr<f32>,
    /// `[N, padded h, padded w, C]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, C]`
    d_input: Option<Output>,
}

/// What the gradients of a group's pixels need of all channels, each in a lane for a pixel.
struct PixelFactors {
    /// 1 / r with the root r.
    inverse: GroupValues,
    /// The factor of x in its gradient: the sum of `d * scale * x`, divided by C r^3.
    correction: GroupValues,
}

impl Backward<'_> {
    /// The factors of `count` pixels, from value `at` of the input and value `d_at` of the output's
    /// gradient on.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose pixels these are; `count` is at most [`GROUP`].
    #[inline(always)]
    unsafe fn factors<S: Simd>(&self, at: usize, d_at: usize, count: usize) -> PixelFactors {
        let stride = self.op.stride();
        let mut factors = PixelFactors {
            inverse: [0.0; GROUP],
            correction: [0.0; GROUP],
        };
        // SAFETY: both buffers hold these pixels, which are whole vectors
        unsafe {
            let mut squares = [S::splat(0.0); GROUP];
            let mut products = [S::splat(0.0); GROUP];
            for pixel in 0..count {
                let (mut square, mut product) = (S::splat(0.0), S::splat(0.0));
                for lane in (0..stride).step_by(LANES) {
                    let x = S::load(self.input.at(at + pixel * stride + lane));
                    let d = S::load(self.d_output.at(d_at + pixel * stride + lane));
                    square = S::fma(x, x, square);
                    product = S::fma(S::mul(d, self.scale.at::<S>(lane)), x, product);
                }
                (squares[pixel], products[pixel]) = (square, product);
            }
            let inverse = self.op.inverse_roots::<S>(&squares);
            let mean = S::div(
                over_lanes::<S>(&products),
                S::splat(self.op.channels as f32),
            );
            let cube = S::mul(S::mul(inverse, inverse), inverse);
            S::store(factors.inverse.as_mut_ptr(), inverse);
            S::store(factors.correction.as_mut_ptr(), S::mul(mean, cube));
        }
        factors
    }

    /// The gradients of `count` pixels, at values as in [`Backward::factors`]; adds those of scale
    /// and bias to `partial`.
    ///
    /// # Safety
    /// As [`Backward::factors`], and `partial` is the task's.
    #[inline(always)]
    unsafe fn group<S: Simd>(&self, at: usize, d_at: usize, count: usize, partial: SharedPtr<f32>) {
        let stride = self.op.stride();
        // SAFETY: all buffers hold these pixels, which are whole vectors; those of the gradient are
        // this task's, and the partial holds scale and bias
        unsafe {
            let PixelFactors {
                inverse,
                correction,
            } = self.factors::<S>(at, d_at, count);
            for lane in (0..stride).step_by(LANES) {
                let scale = self.scale.at::<S>(lane);
                // two chains of additions each, which hide the latency of one
                let mut sums = [[S::splat(0.0); 2]; 2];
                for pixel in 0..count {
                    let offset = pixel * stride + lane;
                    let x = S::load(self.input.at(at + offset));
                    let d = S::load(self.d_output.at(d_at + offset));
                    let normal = S::mul(x, S::splat(inverse[pixel]));
                    let [d_scale, d_bias] = &mut sums[pixel % 2];
                    *d_scale = S::fma(d, normal, *d_scale);
                    *d_bias = S::add(d, *d_bias);
                    if let Some(d_input) = &self.d_input {
                        let direct = S::mul(S::mul(d, scale), S::splat(inverse[pixel]));
                        let factor = S::splat(-correction[pixel]);
                        d_input.put::<S>(at + offset, S::fma(x, factor, direct));
                    }
                }
                let [even, odd] = sums;
                for (parameter, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                    let to = partial.at(parameter * stride + lane);
                    S::store(to, S::add(S::load(to), S::add(even, odd)));
                }
            }
        }
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let RmsNorm { extent, padded, .. } = *self.op;
        let stride = self.op.stride();
        let (image, start, _) = self.bands.task(task);
        let rows = values_of(self.bands, extent, stride, task).step_by(extent.w * stride);
        // SAFETY: these rows of the input's gradient are this task's, all buffers hold them, and so
        // is the partial, which holds a value of scale and bias for each channel of the buffers
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, 2 * stride);
            for (row, at) in rows.enumerate() {
                let d_at = (image * padded.h + start + row) * padded.w * stride;
                for x in (0..extent.w).step_by(GROUP) {
                    let (offset, count) = (x * stride, GROUP.min(extent.w - x));
                    self.group::<S>(at + offset, d_at + offset, count, partial);
                }
            }
            S::fence();
        }
    }
}

impl CpuOperation for RmsNormBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        Workspace {
            partial: 2 * self.forward.stride(),
            tasks: Bands::new(self.forward.extent).tasks(),
            ..Workspace::default()
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        let op = &self.forward;
        let (parts, stride) = (
            ctx.parts(self.workspace, CpuOperation::workspace(self)),
            op.stride(),
        );
        let output = |d: Destination| Output {
            values: ctx.floats(d.buffer),
            store: Store::new(op.extent, stride, d.add),
        };
        let bands = Bands::new(op.extent);
        let task = Backward {
            op,
            bands,
            parts,
            // SAFETY: the parameters are only read while this operation runs
            scale: unsafe { per_channel(ctx, op, false) },
            input: ctx.floats(op.input),
            d_output: ctx.floats(self.d_output),
            d_input: self.d_input.map(output),
        };
        ctx.parallel(bands.tasks(), &task);
        if ctx.reduce(parts, self.slice) {
            // SAFETY: the tasks have finished, and the sums hold as many values as a partial
            let sums = unsafe { parts.sums().view(0, 2 * stride) };
            ctx.store_gradient(self.gradients, op.scale, |c| sums[c]);
            ctx.store_gradient(self.gradients, op.bias, |c| sums[stride + c]);
        }
    }
}
