//! Channel attention. Depends on `elementwise`. A first pass over all pixels sums each
//! channel, a task for each image then computes its factors, and a second pass applies them. The
//! sums are f64 and are added in the order of the bands, so the bits do not depend on threads. Both
//! passes are bound by memory: 12 C bytes a pixel move forward (8 C read, 4 C written), and 16 C
//! backward (12 C read, 4 C written; 4 C more are read where the gradient is added). Where the means
//! are given, the first pass is left out; [`ChannelMeans`] computes the same bits from rows.

mod factors;
mod means;
#[cfg(test)]
mod tests;

use super::arena::SharedPtr;
use super::elementwise::{Output, Store, check_activation, values_of};
use super::operation::{CpuOperation, MAX_CHANNELS};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, round_up_to_lanes};
use crate::plan::{ChannelAttention, ChannelAttentionBack};
use anyhow::{Result, ensure};
use factors::FactorTask;
pub use means::ChannelMeans;

/// The shared part of the workspace: the sums of each band, then the values of each image.
#[derive(Clone, Copy)]
struct Layout {
    /// Channels of the buffers.
    stride: usize,
    /// Values between the products, in whole vectors.
    hidden: usize,
    bands: Bands,
    images: usize,
}

impl Layout {
    fn new(op: &ChannelAttention) -> Layout {
        Layout {
            stride: op.stride(),
            hidden: round_up_to_lanes(op.hidden()),
            bands: Bands::new(op.extent),
            images: op.extent.n,
        }
    }

    /// f32 elements of the sums of a band: two f64 for each channel.
    fn band_floats(&self) -> usize {
        4 * self.stride
    }

    /// f32 elements of [`ImageValues`].
    fn image_floats(&self) -> usize {
        4 * self.stride + 6 * self.hidden
    }

    /// f32 elements of the whole shared part.
    fn floats(&self) -> usize {
        self.bands.tasks() * self.band_floats() + self.images * self.image_floats()
    }

    /// The f64 sums of x in a band, one for each channel, then those of `d_output * x`.
    ///
    /// # Safety
    /// `shared` has this layout, and `band` is one of the bands.
    #[inline(always)]
    unsafe fn sums(&self, shared: SharedPtr<f32>, band: usize) -> SharedPtr<f64> {
        // SAFETY: the sums lie inside the shared part. They are aligned, since that begins at a
        // multiple of 64 bytes, and the sums of a band are a multiple of 64 bytes
        SharedPtr::new(unsafe { shared.at(band * self.band_floats()) }.cast())
    }

    /// The values of an image.
    ///
    /// # Safety
    /// `shared` has this layout, and `image` is one of the images.
    #[inline(always)]
    unsafe fn image(&self, shared: SharedPtr<f32>, image: usize) -> ImageValues {
        let (stride, hidden) = (self.stride, self.hidden);
        let start = self.bands.tasks() * self.band_floats() + image * self.image_floats();
        // SAFETY: these parts follow each other inside the shared part, and those of f64 are aligned
        // as the sums of a band are
        unsafe {
            let after_factors = start + 4 * stride;
            ImageValues {
                mean: SharedPtr::new(shared.at(start).cast()),
                factor: SharedPtr::new(shared.at(start + 2 * stride)),
                d_mean: SharedPtr::new(shared.at(start + 3 * stride)),
                hidden: SharedPtr::new(shared.at(after_factors).cast()),
                slope: SharedPtr::new(shared.at(after_factors + 2 * hidden).cast()),
                d_hidden: SharedPtr::new(shared.at(after_factors + 4 * hidden).cast()),
            }
        }
    }
}

/// What is computed for an image. Values of the channels that fill the last vector are 0.
#[derive(Clone, Copy)]
struct ImageValues {
    /// Mean of each channel.
    mean: SharedPtr<f64>,
    /// Factor of each channel.
    factor: SharedPtr<f32>,
    /// Gradient of each channel's mean, divided by the number of pixels.
    d_mean: SharedPtr<f32>,
    /// gelu of `down * mean`.
    hidden: SharedPtr<f64>,
    /// The derivative of that gelu.
    slope: SharedPtr<f64>,
    /// Gradient of `down * mean`.
    d_hidden: SharedPtr<f64>,
}

/// Takes the sums over the pixels of a band.
struct SumTask<'a> {
    op: &'a ChannelAttention,
    layout: Layout,
    shared: SharedPtr<f32>,
    /// `[N, h, w, C]`
    input: SharedPtr<f32>,
    /// `[N, h, w, C]`, if the sums of its products with the input are wanted as well.
    d_output: Option<SharedPtr<f32>>,
}

/// Pixels of which a channel is summed in f32 before the sum is added in f64. The products of the
/// backward pass are summed in f64 from the start, because the gradients of the weights are small
/// differences of their sums.
const GROUP: usize = 64;

/// Sums V vectors of channels over some pixels and adds the result to the f64 values at `sums`.
///
/// # Safety
/// As [`Simd`]. `x` points to the first of these channels in `pixels` pixels of `stride` values
/// each, and `sums` to the same channel in [`Layout::sums`], which no other thread uses.
#[inline(always)]
unsafe fn add_group<S: Simd, const V: usize>(
    x: *const f32,
    (pixels, stride): (usize, usize),
    sums: SharedPtr<f64>,
) {
    // SAFETY: the caller guarantees the memory
    unsafe {
        let mut group = [S::splat(0.0); V];
        for pixel in 0..pixels {
            for (v, sum) in group.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(x.add(pixel * stride + v * LANES)));
            }
        }
        for (v, sum) in group.into_iter().enumerate() {
            add_wide::<S>(sums.at(v * LANES), sum);
        }
    }
}

/// Sums the products of V vectors of channels over some pixels in f64 and adds the result to the
/// values at `sums`.
///
/// # Safety
/// As [`add_group`], and `d` has the pixels of `x`.
#[inline(always)]
unsafe fn add_products<S: Simd, const V: usize>(
    x: *const f32,
    d: *const f32,
    (pixels, stride): (usize, usize),
    sums: SharedPtr<f64>,
) {
    const HALF: usize = LANES / 2;
    // SAFETY: the caller guarantees the memory
    unsafe {
        let mut total = [[S::splat_double(0.0); 2]; V];
        for (v, halves) in total.iter_mut().enumerate() {
            for (half, sum) in halves.iter_mut().enumerate() {
                *sum = S::load_doubles(sums.at(v * LANES + half * HALF));
            }
        }
        for pixel in 0..pixels {
            for (v, halves) in total.iter_mut().enumerate() {
                for (half, sum) in halves.iter_mut().enumerate() {
                    let at = pixel * stride + v * LANES + half * HALF;
                    *sum = S::fma_doubles(S::widen(x.add(at)), S::widen(d.add(at)), *sum);
                }
            }
        }
        for (v, halves) in total.into_iter().enumerate() {
            for (half, sum) in halves.into_iter().enumerate() {
                S::store_doubles(sums.at(v * LANES + half * HALF), sum);
            }
        }
    }
}

/// Adds the lanes of a vector to the f64 values at `to`.
///
/// # Safety
/// As [`Simd`]. 16 values can be read and written at `to`.
#[inline(always)]
unsafe fn add_wide<S: Simd>(to: *mut f64, v: S::V) {
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller guarantees the memory, and `lanes` is a vector
    unsafe {
        S::store(lanes.as_mut_ptr(), v);
        for half in [0, LANES / 2] {
            let sum = S::load_doubles(to.add(half));
            let value = S::widen(lanes.as_ptr().add(half));
            S::store_doubles(
                to.add(half),
                S::fma_doubles(value, S::splat_double(1.0), sum),
            );
        }
    }
}

impl Task for SumTask<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let stride = self.layout.stride;
        let values = values_of(self.layout.bands, self.op.extent, stride, task);
        // SAFETY: all buffers hold these values; the sums are this task's
        unsafe {
            let sums = self.layout.sums(self.shared, task);
            let both = if self.d_output.is_some() { 2 } else { 1 };
            sums.at(0).write_bytes(0, both * stride);
            for start in values.clone().step_by(GROUP * stride) {
                let shape = (GROUP.min((values.end - start) / stride), stride);
                let x = |lane: usize| self.input.at(start + lane).cast_const();
                let to = |lane: usize| SharedPtr::new(sums.at(lane));
                let mut lane = 0;
                while lane + 4 * LANES <= stride {
                    add_group::<S, 4>(x(lane), shape, to(lane));
                    lane += 4 * LANES;
                }
                for lane in (lane..stride).step_by(LANES) {
                    add_group::<S, 1>(x(lane), shape, to(lane));
                }
                let Some(d_output) = self.d_output else {
                    continue;
                };
                let d = |lane: usize| d_output.at(start + lane).cast_const();
                let mut lane = 0;
                while lane + 2 * LANES <= stride {
                    add_products::<S, 2>(x(lane), d(lane), shape, to(stride + lane));
                    lane += 2 * LANES;
                }
                if lane < stride {
                    add_products::<S, 1>(x(lane), d(lane), shape, to(stride + lane));
                }
            }
        }
    }
}

/// Multiplies the pixels of a band by the factors of their image, and adds
/// [`ImageValues::d_mean`] in the backward pass.
struct ApplyTask<'a> {
    op: &'a ChannelAttention,
    layout: Layout,
    shared: SharedPtr<f32>,
    /// `[N, h, w, C]`
    from: SharedPtr<f32>,
    /// `[N, h, w, C]`
    to: Output,
    /// Whether [`ImageValues::d_mean`] is added.
    with_mean: bool,
}

impl Task for ApplyTask<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let stride = self.layout.stride;
        let values = values_of(self.layout.bands, self.op.extent, stride, task);
        let (image, ..) = self.layout.bands.task(task);
        // SAFETY: these values of the result are this task's, all buffers hold them, and a pixel is
        // whole vectors, so that each begins at a multiple of 64 bytes; no task writes the values
        // of images
        unsafe {
            let ImageValues { factor, d_mean, .. } = self.layout.image(self.shared, image);
            for pixel in values.step_by(stride) {
                for lane in (0..stride).step_by(LANES) {
                    let factor = S::load(factor.at(lane));
                    let value = S::load(self.from.at(pixel + lane));
                    let result = match self.with_mean {
                        true => S::fma(value, factor, S::load(d_mean.at(lane))),
                        false => S::mul(value, factor),
                    };
                    self.to.put::<S>(pixel + lane, result);
                }
            }
            S::fence();
        }
    }
}

/// What the backward pass adds to the computation of the images' values.
#[derive(Clone, Copy)]
struct BackwardBuffers {
    /// `[N, h, w, C]`
    d_output: SharedPtr<f32>,
    /// A partial for each image.
    parts: WorkspaceParts,
}

/// Computes the values of all images, with those of the backward pass if its buffers are given.
fn compute_images(
    ctx: &Context<'_>,
    op: &ChannelAttention,
    shared: SharedPtr<f32>,
    back: Option<BackwardBuffers>,
) {
    let layout = Layout::new(op);
    // the backward pass needs the sums of products too, and is never given the means
    let means = op.means.filter(|_| back.is_none());
    if means.is_none() {
        let sums = SumTask {
            op,
            layout,
            shared,
            input: ctx.floats(op.input),
            d_output: back.map(|back| back.d_output),
        };
        ctx.parallel(layout.bands.tasks(), &sums);
    }
    let factors = FactorTask {
        op,
        layout,
        shared,
        down: ctx.param(op.parameters, op.down),
        up: ctx.param(op.parameters, op.up),
        means: means.map(|means| ctx.pointer(means)),
        parts: back.map(|back| back.parts),
    };
    ctx.parallel(layout.images, &factors);
}

impl CpuOperation for ChannelAttention {
    fn check(&self) -> Result<()> {
        check_activation(self.extent, self.channels)?;
        let (hidden, channels) = (self.hidden(), self.channels);
        ensure!(
            hidden > 0 && hidden <= MAX_CHANNELS,
            "{hidden} values between the products: 1 to {MAX_CHANNELS} are supported"
        );
        ensure!(
            self.down.len == hidden * channels && self.up.len == self.down.len,
            "weights of {} and {} values for {channels} channels",
            self.down.len,
            self.up.len
        );
        Ok(())
    }

    fn workspace(&self) -> Workspace {
        Workspace {
            shared: Layout::new(self).floats(),
            ..Workspace::default()
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        let parts = ctx.parts(self.workspace, CpuOperation::workspace(self));
        compute_images(ctx, self, parts.shared(), None);
        let layout = Layout::new(self);
        let apply = ApplyTask {
            op: self,
            layout,
            shared: parts.shared(),
            from: ctx.floats(self.input),
            to: Output {
                values: ctx.floats(self.output),
                store: Store::new(self.extent, self.stride(), false),
            },
            with_mean: false,
        };
        ctx.parallel(layout.bands.tasks(), &apply);
    }
}

impl CpuOperation for ChannelAttentionBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        let op = &self.forward;
        Workspace {
            shared: Layout::new(op).floats(),
            partial: op.down.len + op.up.len,
            tasks: op.extent.n,
            ..Workspace::default()
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        let op = &self.forward;
        let parts = ctx.parts(self.workspace, CpuOperation::workspace(self));
        let d_output = ctx.floats(self.d_output);
        let back = BackwardBuffers { d_output, parts };
        compute_images(ctx, op, parts.shared(), Some(back));
        if let Some(d_input) = self.d_input {
            let layout = Layout::new(op);
            let apply = ApplyTask {
                op,
                layout,
                shared: parts.shared(),
                from: d_output,
                to: Output {
                    values: ctx.floats(d_input.buffer),
                    store: Store::new(op.extent, op.stride(), d_input.add),
                },
                with_mean: true,
            };
            ctx.parallel(layout.bands.tasks(), &apply);
        }
        if ctx.reduce(parts, self.slice) {
            // SAFETY: the tasks have finished, and the sums hold as many values as a partial
            let sums = unsafe { parts.sums().view(0, op.down.len + op.up.len) };
            let (down, up) = sums.split_at(op.down.len);
            ctx.store_gradient(self.gradients, op.down, |i| down[i]);
            ctx.store_gradient(self.gradients, op.up, |i| up[i]);
        }
    }
}
