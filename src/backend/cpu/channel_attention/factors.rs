//! The factors of an image: two small products, with a GELU between them and a sigmoid after them, and
//! their gradients. Everything is f64, because the products and the sums over pixels can be small
//! differences of large values.

use super::super::arena::SharedPtr;
use super::super::simd::Simd;
use super::super::tasks::{Task, WorkspaceParts};
use super::{ImageValues, Layout};
use crate::plan::ChannelAttention;

/// Computes the values of an image from the sums of its bands; without the gradients in the forward
/// pass.
pub struct FactorTask<'a> {
    /// The forward operation.
    pub op: &'a ChannelAttention,
    /// Where the sums and the values of images are.
    pub layout: Layout,
    /// The shared part of the workspace.
    pub shared: SharedPtr<f32>,
    /// `[hidden, C]`
    pub down: SharedPtr<f32>,
    /// `[C, hidden]`
    pub up: SharedPtr<f32>,
    /// The means `[N, C]`, if they are given and not computed from the sums.
    pub means: Option<SharedPtr<f64>>,
    /// The backward pass's workspace: a partial for each image.
    pub parts: Option<WorkspaceParts>,
}

/// Sum of the products of two rows in f64.
fn dot(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

/// f32 values as f64.
fn wide(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().map(|&v| f64::from(v))
}

/// The exact GELU and its derivative.
fn gelu_and_slope(z: f64) -> (f64, f64) {
    let cdf = 0.5 * (1.0 + libm::erf(z * std::f64::consts::FRAC_1_SQRT_2));
    let density = (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt();
    (z * cdf, cdf + z * density)
}

/// The derivative of the sigmoid. Where the sigmoid is nearly 1, `1 - sigmoid` would have few of its bits.
fn sigmoid_slope(u: f64) -> f64 {
    let e = (-u.abs()).exp();
    e / ((1.0 + e) * (1.0 + e))
}

impl FactorTask<'_> {
    /// The sum of channel `c` over the bands of an image, in their order; that of the products with
    /// the output's gradient if `products` is set.
    ///
    /// # Safety
    /// The sums were taken, and no thread writes them.
    unsafe fn total(&self, image: usize, c: usize, products: bool) -> f64 {
        let Layout {
            stride,
            bands,
            images,
            ..
        } = self.layout;
        let per_image = bands.tasks() / images;
        let at = if products { stride + c } else { c };
        let bands = image * per_image..(image + 1) * per_image;
        // SAFETY: the sums hold two values for each channel
        bands
            .map(|band| unsafe { *self.layout.sums(self.shared, band).at(at) })
            .sum()
    }

    /// Mean, hidden values and factors of an image.
    ///
    /// # Safety
    /// As [`Task::run`] for the image's task.
    #[inline(always)]
    unsafe fn forward(&self, image: usize, values: &ImageValues) {
        let (channels, count) = (self.op.channels, self.op.hidden());
        let Layout { stride, hidden, .. } = self.layout;
        let pixels = (self.op.extent.h * self.op.extent.w) as f64;
        // SAFETY: the values are the task's, and have a value for each channel of the buffers and
        // `hidden` between the products; parameters are not written
        unsafe {
            let mean = values.mean.slice(0, stride);
            match self.means {
                Some(given) => mean.copy_from_slice(given.view(image * stride, stride)),
                None => {
                    for (c, mean) in mean.iter_mut().enumerate() {
                        *mean = self.total(image, c, false) / pixels;
                    }
                }
            }
            let (z, slope) = (
                values.hidden.slice(0, hidden),
                values.slope.slice(0, hidden),
            );
            z.fill(0.0);
            for (j, z) in z.iter_mut().enumerate().take(count) {
                let row = self.down.view(j * channels, channels);
                (*z, slope[j]) = gelu_and_slope(dot(wide(row), mean.iter().copied()));
            }
            let factor = values.factor.slice(0, stride);
            factor.fill(0.0);
            for (c, factor) in factor.iter_mut().enumerate().take(channels) {
                let row = self.up.view(c * count, count);
                let u = dot(wide(row), z.iter().copied());
                *factor = (1.0 / (1.0 + (-u).exp())) as f32;
            }
        }
    }

    /// The gradients that an image gives to the weights, at `partial`: of `down`, then of `up`; and
    /// those of its means.
    ///
    /// # Safety
    /// As [`FactorTask::forward`], which has run, and `partial` is the image's.
    unsafe fn backward(&self, image: usize, values: &ImageValues, partial: SharedPtr<f32>) {
        let (channels, count) = (self.op.channels, self.op.hidden());
        let Layout { stride, hidden, .. } = self.layout;
        let pixels = (self.op.extent.h * self.op.extent.w) as f64;
        // SAFETY: as in `forward`; a partial has a value for each weight
        unsafe {
            let mean = values.mean.view(0, stride);
            let (h, slope) = (values.hidden.view(0, hidden), values.slope.view(0, hidden));
            let (d_down, d_up) = partial
                .slice(0, 2 * count * channels)
                .split_at_mut(count * channels);
            // the gradient of the gelu's result, until all channels have been added
            let d_z = values.d_hidden.slice(0, hidden);
            d_z.fill(0.0);
            for c in 0..channels {
                let row = self.up.view(c * count, count);
                let d_u =
                    self.total(image, c, true) * sigmoid_slope(dot(wide(row), h.iter().copied()));
                let d_row = &mut d_up[c * count..][..count];
                for j in 0..count {
                    d_row[j] = (d_u * h[j]) as f32;
                    d_z[j] += d_u * f64::from(row[j]);
                }
            }
            let slopes = d_z.iter_mut().zip(slope);
            slopes.for_each(|(d, s)| *d *= s);
            for j in 0..count {
                let d_row = &mut d_down[j * channels..][..channels];
                for (d, mean) in d_row.iter_mut().zip(mean) {
                    *d = (d_z[j] * mean) as f32;
                }
            }
            let d_mean = values.d_mean.slice(0, stride);
            d_mean.fill(0.0);
            for (c, d_mean) in d_mean.iter_mut().enumerate().take(channels) {
                let column = (0..count).map(|j| f64::from(*self.down.at(j * channels + c)));
                *d_mean = (dot(column, d_z.iter().copied()) / pixels) as f32;
            }
        }
    }
}

impl Task for FactorTask<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, image: usize) {
        // SAFETY: the task is the image's, and the bands' sums were taken
        unsafe {
            let values = self.layout.image(self.shared, image);
            self.forward(image, &values);
            if let Some(parts) = self.parts {
                self.backward(image, &values, parts.partial(image));
            }
        }
    }
}
