//! Pixel shuffle with the input enlarged by nearest neighbour. Plain loops over the channels of a
//! pixel, compiled for each scale. Depends on `pixels` for the target.

use super::arena::SharedPtr;
use super::operation::{CpuOperation, check_extent};
use super::pixels::subtract_row;
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Task};
use crate::plan::{BatchLayout, Shuffle, ShuffleBack};
use anyhow::{Result, ensure};

/// The scales that there are loops for.
const SCALES: [usize; 5] = [1, 2, 3, 4, 8];

/// Calls a function that is generic over the scale.
macro_rules! with_scale {
    ($scale:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $scale {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            3 => $function::<3>($($argument),*),
            4 => $function::<4>($($argument),*),
            _ => $function::<8>($($argument),*),
        }
    };
}

/// Enlarges a row of RGB pixels by nearest neighbour: `out[x * SCALE + i] = row[x]`.
#[inline(always)]
fn enlarge<const SCALE: usize>(row: &[f32], out: &mut [f32]) {
    let (pixels, outs) = (row.as_chunks::<3>().0, out.as_chunks_mut::<3>().0);
    for (pixel, outs) in pixels.iter().zip(outs.chunks_exact_mut(SCALE)) {
        outs.fill(*pixel);
    }
}

/// Adds to HR row `dy` of the LQ row `input`, `[w, stride]`, the values of the network.
#[inline(always)]
fn add_network<const SCALE: usize>(input: &[f32], stride: usize, dy: usize, out: &mut [f32]) {
    let outs = out.as_chunks_mut::<3>().0.chunks_exact_mut(SCALE);
    for (pixel, outs) in input.chunks_exact(stride).zip(outs) {
        let channels: [&[f32]; 3] =
            std::array::from_fn(|c| &pixel[(c * SCALE + dy) * SCALE..][..SCALE]);
        for (dx, out) in outs.iter_mut().enumerate() {
            for (out, channel) in out.iter_mut().zip(channels) {
                *out += channel[dx];
            }
        }
    }
}

/// The HR rows of a band of LQ rows.
struct Forward<'a> {
    op: &'a Shuffle,
    bands: Bands,
    /// `[N, h, w, input_stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, 3]`
    base: Option<SharedPtr<f32>>,
    /// `[N, H, W, 3]`
    output: SharedPtr<f32>,
    /// The batch and its bytes, if its HR patches are subtracted.
    target: Option<(BatchLayout, SharedPtr<u8>)>,
}

impl Forward<'_> {
    /// Writes HR row `row` of an image, from LQ pixel number `pixels` of all images on.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose row it is.
    #[inline(always)]
    unsafe fn row(&self, image: usize, row: usize, pixels: usize, out: &mut [f32]) {
        let Shuffle {
            extent,
            scale,
            input_stride: stride,
            ..
        } = *self.op;
        // SAFETY: input and base hold the row of LQ pixels, and nothing writes them; the batch
        // holds patch and code of every image by its layout, and `out` is a row long
        unsafe {
            match self.base {
                Some(base) => {
                    let base = base.view(pixels * 3, extent.w * 3);
                    with_scale!(scale, enlarge(base, out));
                }
                None => out.fill(0.0),
            }
            if let Some((batch, bytes)) = self.target {
                // The base came from integers, so in their unit its difference to the target is
                // exact, and small if the base is good: then few bits are lost in the sum.
                for value in out.iter_mut().filter(|_| self.base.is_some()) {
                    *value = (*value * 255.0).round_ties_even();
                }
                let (patch, code) = (
                    bytes.at(batch.hr_of(image)),
                    *bytes.at(batch.augment_of(image)),
                );
                subtract_row(patch, code, row, (extent.h * scale, extent.w * scale), out);
                out.iter_mut().for_each(|value| *value /= 255.0);
            }
            let input = self.input.view(pixels * stride, extent.w * stride);
            with_scale!(scale, add_network(input, stride, row % scale, out));
        }
    }
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Shuffle { extent, scale, .. } = *self.op;
        let (image, start, end) = self.bands.task(task);
        let wide = extent.w * scale * 3;
        for row in start * scale..end * scale {
            let pixels = (image * extent.h + row / scale) * extent.w;
            // SAFETY: HR rows `start * scale..end * scale` of the output are this task's
            unsafe {
                let at = (image * extent.h * scale + row) * wide;
                self.row(image, row, pixels, self.output.slice(at, wide));
            }
        }
    }
}

impl CpuOperation for Shuffle {
    fn check(&self) -> Result<()> {
        let Shuffle {
            extent,
            scale,
            input_stride,
            ..
        } = *self;
        ensure!(
            SCALES.contains(&scale),
            "scale {scale}: the scales {SCALES:?} are supported"
        );
        let channels = 3 * scale * scale;
        ensure!(
            input_stride == channels.next_multiple_of(LANES),
            "{channels} channels in a buffer of {input_stride}: {} are supported",
            channels.next_multiple_of(LANES)
        );
        check_extent(extent)?;
        check_extent(extent.scaled(scale))
    }

    fn run(&self, ctx: &Context<'_>) {
        let bands = Bands::new(self.extent);
        let task = Forward {
            op: self,
            bands,
            input: ctx.floats(self.input),
            base: self.base.map(|base| ctx.floats(base)),
            output: ctx.floats(self.output),
            target: self.target.map(|batch| (batch, ctx.pointer(batch.buffer))),
        };
        ctx.parallel(bands.tasks(), &task);
    }
}

/// The gradient of the network's values in one LQ row, `[w, stride]`, from the HR rows' gradients
/// `d_output`, `[SCALE, w * SCALE, 3]`. Adds them if `add` is set.
#[inline(always)]
fn network_gradient<const SCALE: usize>(
    d_output: &[f32],
    stride: usize,
    add: bool,
    d_input: &mut [f32],
) {
    let rows = d_output.chunks_exact(d_output.len() / SCALE);
    if !add {
        d_input.fill(0.0);
    }
    for (dy, row) in rows.enumerate() {
        let outs = row.as_chunks::<3>().0.chunks_exact(SCALE);
        for (pixel, outs) in d_input.chunks_exact_mut(stride).zip(outs) {
            for c in 0..3 {
                let channels = &mut pixel[(c * SCALE + dy) * SCALE..][..SCALE];
                for (channel, out) in channels.iter_mut().zip(outs) {
                    *channel += out[c];
                }
            }
        }
    }
}

/// The gradient of the base in one LQ row, `[w, 3]`: the sums over the HR pixels of each LQ pixel
/// in `d_output`, `[SCALE, w * SCALE, 3]`.
#[inline(always)]
fn base_gradient<const SCALE: usize>(d_output: &[f32], d_base: &mut [f32]) {
    d_base.fill(0.0);
    for row in d_output.chunks_exact(d_output.len() / SCALE) {
        let outs = row.as_chunks::<3>().0.chunks_exact(SCALE);
        for (pixel, outs) in d_base.as_chunks_mut::<3>().0.iter_mut().zip(outs) {
            for (c, value) in pixel.iter_mut().enumerate() {
                *value += outs.iter().map(|out| out[c]).sum::<f32>();
            }
        }
    }
}

/// The gradients of a band of LQ rows.
struct Backward<'a> {
    op: &'a ShuffleBack,
    bands: Bands,
    /// `[N, H, W, 3]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, input_stride]`
    d_input: SharedPtr<f32>,
    /// `[N, h, w, 3]`
    d_base: Option<SharedPtr<f32>>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Shuffle {
            extent,
            scale,
            input_stride: stride,
            ..
        } = self.op.forward;
        let (image, start, end) = self.bands.task(task);
        for y in start..end {
            let (pixels, w) = ((image * extent.h + y) * extent.w, extent.w);
            let values = 3 * scale * scale;
            // SAFETY: rows `start..end` of the gradients are this task's, and the output's gradient
            // holds the HR rows of each, one after the other
            unsafe {
                let d_output = self.d_output.view(pixels * values, w * values);
                let d_input = self.d_input.slice(pixels * stride, w * stride);
                let add = self.op.d_input.add;
                with_scale!(scale, network_gradient(d_output, stride, add, d_input));
                if let Some(d_base) = self.d_base {
                    let d_base = d_base.slice(pixels * 3, w * 3);
                    with_scale!(scale, base_gradient(d_output, d_base));
                }
            }
        }
    }
}

impl CpuOperation for ShuffleBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn run(&self, ctx: &Context<'_>) {
        let bands = Bands::new(self.forward.extent);
        let task = Backward {
            op: self,
            bands,
            d_output: ctx.floats(self.d_output),
            d_input: ctx.floats(self.d_input.buffer),
            d_base: self.d_base.map(|d_base| ctx.floats(d_base)),
        };
        ctx.parallel(bands.tasks(), &task);
    }
}
