//! Convolutions, forward and backward. `direct` computes any of them; `depthwise` computes those of
//! single channels faster, and `winograd` dense 3x3 convolutions, with bits that depend on the place
//! of a pixel in its image; `mixed` computes dense convolutions on bf16 factors, if products are in
//! bf16. Depends on the row kernels and activations. The input's activation is applied while rows are
//! copied to the scratch of a task, so that activated values are never stored.

mod depthwise;
mod direct;
mod input;
mod layout;
mod mixed;
mod product;
#[cfg(test)]
mod tests;
mod winograd;

use super::activation::{BackRow, RowActivation, back_row};
use super::arena::SharedPtr;
use super::bf16::{Bf16Unit, Products};
use super::operation::{CpuOperation, MAX_CHANNELS, check_extent};
use super::simd::{LANES, Simd};
use super::tasks::{Context, Task, Workspace, WorkspaceParts};
use crate::plan::{Activation, BufferId, Conv, ConvBack, ParamRange};
use anyhow::{Result, ensure};
use layout::torch_index;

/// Largest distance between the first and the last tap, pixels: more is no use, and the bound keeps
/// workspace sizes inside 64 bits.
const MAX_SPAN: usize = 1 << 10;

/// The unit that computes a convolution on bf16 factors; `None` if it is computed in f32.
fn bf16_unit(c: &Conv, products: Products) -> Option<Bf16Unit> {
    products.unit().filter(|_| mixed::applies(c))
}

/// f32 values of the slopes in a workspace: a slope for each channel of the input buffer, if the
/// activation has trainable slopes.
fn slope_values(c: &Conv) -> usize {
    match c.activation {
        Some(Activation::PRelu { .. }) => c.input_stride,
        _ => 0,
    }
}

/// The activation of the input, with `slopes` from [`pack_channels`].
fn row_activation(c: &Conv, slopes: *mut f32) -> Option<RowActivation> {
    c.activation.map(|function| RowActivation {
        function,
        slopes: SharedPtr::new(slopes),
    })
}

/// Writes the biases `[output_stride]` (if `biases` is given) and the slopes of [`slope_values`],
/// with 0 for channels that fill the last vector.
///
/// # Safety
/// Both have room for the values and overlap nothing else, and no task runs.
unsafe fn pack_channels(ctx: &Context<'_>, c: &Conv, biases: Option<*mut f32>, slopes: *mut f32) {
    let copy = |buffer: BufferId, range: ParamRange, to: *mut f32, count: usize| {
        // SAFETY: the caller guarantees the room, and the parameter table the range
        unsafe {
            let from = ctx.param(buffer, range).view(0, range.len);
            let to = SharedPtr::new(to).slice(0, count);
            let (values, rest) = to.split_at_mut(from.len());
            values.copy_from_slice(from);
            rest.fill(0.0);
        }
    };
    if let Some(biases) = biases {
        copy(c.parameters, c.bias, biases, c.output_stride);
    }
    if let Some(Activation::PRelu { slopes: range }) = c.activation {
        copy(c.slopes, range, slopes, c.input_stride);
    }
}

/// A row of the gradient with respect to the input: from that of the activated input, to where the
/// plan wants it.
#[derive(Clone, Copy)]
struct Finish {
    activation: Option<RowActivation>,
    /// The row of the input, before the activation.
    z: *const f32,
    /// Channels of a pixel.
    c: usize,
    /// Values of the row.
    len: usize,
    /// Where the gradient goes.
    out: *mut f32,
    /// Whether it is added to what is there.
    add: bool,
    /// The gradient of the slopes `[c]`, added to.
    slope_sums: *mut f32,
}

impl Finish {
    /// Whether the gradient of the activated input is stored as it is.
    fn only_stores(&self) -> bool {
        self.activation.is_none() && !self.add
    }

    /// Finishes the row `d`.
    ///
    /// # Safety
    /// As [`Simd`] and [`back_row`].
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, d: *const f32) {
        // SAFETY: all rows hold `len` values, by the caller's contract
        unsafe {
            if let Some(activation) = self.activation {
                let row = BackRow {
                    z: self.z,
                    d,
                    c: self.c,
                    len: self.len,
                    out: self.out,
                    add: self.add,
                    slope_sums: self.slope_sums,
                };
                return back_row::<S>(activation, row);
            }
            let mut i = 0;
            while i + LANES <= self.len {
                let (to, d) = (self.out.add(i), S::load(d.add(i)));
                S::store(to, if self.add { S::add(S::load(to), d) } else { d });
                i += LANES;
            }
            for i in i..self.len {
                let before = if self.add { *self.out.add(i) } else { 0.0 };
                *self.out.add(i) = before + *d.add(i);
            }
        }
    }
}

/// Stores the gradients of one output channel a task: its weights, and its bias.
struct StoreGradients<F> {
    /// Weights of an output channel, and taps of each.
    weights: usize,
    taps: usize,
    sums: SharedPtr<f32>,
    bias_at: usize,
    index: F,
    weight: SharedPtr<f32>,
    bias: SharedPtr<f32>,
    add: bool,
}

impl<F: Fn(usize, usize, usize) -> usize + Sync> Task for StoreGradients<F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, co: usize) {
        // SAFETY: each task writes the gradients of a channel of its own, and the sums hold as many
        // values as a partial
        unsafe {
            let out = self.weight.slice(co * self.weights, self.weights);
            for (ci, out) in out.chunks_exact_mut(self.taps).enumerate() {
                for (tap, out) in out.iter_mut().enumerate() {
                    let value = *self.sums.at((self.index)(co, ci, tap));
                    *out = if self.add { *out + value } else { value };
                }
            }
            let (value, out) = (*self.sums.at(self.bias_at + co), self.bias.at(co));
            *out = if self.add { *out + value } else { value };
        }
    }
}

/// Stores the gradients of weights, biases and slopes from the sums of all partials: the weight of
/// output channel `co`, input `ci` of its group and tap `tap` is at `index(co, ci, tap)`, the biases
/// begin at `bias_at`, and the slopes follow `output_stride` values later.
fn store_gradients(
    ctx: &Context<'_>,
    op: &ConvBack,
    parts: WorkspaceParts,
    bias_at: usize,
    index: impl Fn(usize, usize, usize) -> usize + Sync,
) {
    let c = &op.forward;
    let sums = parts.sums();
    ctx.parallel(
        c.cout,
        &StoreGradients {
            weights: c.weight.len / c.cout,
            taps: c.kernel * c.kernel,
            sums,
            bias_at,
            index,
            weight: ctx.param(op.gradients, c.weight),
            bias: ctx.param(op.gradients, c.bias),
            add: op.accumulates && ctx.scalars.accumulate,
        },
    );
    if let Some(Activation::PRelu { slopes }) = c.activation {
        // SAFETY: the slopes are a part of every partial, and no task runs
        let sums = unsafe { sums.view(bias_at + c.output_stride, c.cin) };
        ctx.store_gradient(op.slope_gradients, slopes, |i| sums[i]);
    }
}

impl CpuOperation for Conv {
    fn check(&self) -> Result<()> {
        let Conv {
            cin,
            cout,
            kernel,
            dilation,
            groups,
            ..
        } = *self;
        let known = |channels: usize| channels > 0 && channels <= MAX_CHANNELS;
        ensure!(
            known(cin) && known(cout),
            "{cin} to {cout} channels: 1 to {MAX_CHANNELS} are supported"
        );
        let image = cin == 3 && self.input_stride == 3;
        ensure!(
            (image || self.input_stride == cin.next_multiple_of(LANES))
                && self.output_stride == cout.next_multiple_of(LANES),
            "{cin} to {cout} channels in buffers of {} and {}: only images of 3 channels and whole \
             vectors of {LANES} are supported",
            self.input_stride,
            self.output_stride
        );
        ensure!(
            kernel % 2 == 1 && kernel <= direct::MAX_KERNEL,
            "{kernel}x{kernel} taps: an odd number up to {} is supported",
            direct::MAX_KERNEL
        );
        ensure!(
            dilation > 0 && dilation <= MAX_SPAN / kernel,
            "{kernel} taps {dilation} pixels apart: at most {MAX_SPAN} pixels are supported"
        );
        ensure!(
            groups > 0 && cin % groups == 0 && cout % groups == 0,
            "{cin} to {cout} channels in {groups} groups"
        );
        let normalizes = matches!(self.activation, Some(Activation::Normalize { .. }));
        ensure!(
            self.activation.is_none() || normalizes == image,
            "an image can be normalized, and other inputs can have another activation"
        );
        let slopes = self.activation.and_then(|a| a.slopes());
        ensure!(
            self.weight.len == torch_index(self, cout, 0, 0, 0)
                && self.bias.len == cout
                && slopes.is_none_or(|slopes| slopes.len == cin),
            "the parameters are not those of {cin} to {cout} channels"
        );
        check_extent(self.extent)
    }

    fn workspace(&self) -> Workspace {
        if depthwise::applies(self) {
            depthwise::workspace(self)
        } else if winograd::applies(self) {
            winograd::workspace(self)
        } else {
            direct::workspace(self)
        }
    }

    fn workspace_for(&self, products: Products) -> Workspace {
        match bf16_unit(self, products) {
            Some(_) => mixed::workspace(self),
            None => CpuOperation::workspace(self),
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        if let Some(unit) = bf16_unit(self, ctx.products) {
            mixed::forward(ctx, self, unit);
        } else if depthwise::applies(self) {
            depthwise::forward(ctx, self);
        } else if winograd::applies(self) {
            winograd::forward(ctx, self);
        } else {
            direct::forward(ctx, self);
        }
    }
}

impl CpuOperation for ConvBack {
    fn check(&self) -> Result<()> {
        ensure!(
            slope_values(&self.forward) == 0 || self.d_input.is_some(),
            "the gradient of slopes is computed together with that of the input only"
        );
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        if depthwise::applies(&self.forward) {
            depthwise::workspace_back(self)
        } else if winograd::applies(&self.forward) {
            winograd::workspace_back(self)
        } else {
            direct::workspace_back(self)
        }
    }

    fn workspace_for(&self, products: Products) -> Workspace {
        match bf16_unit(&self.forward, products) {
            Some(_) => mixed::workspace_back(self),
            None => CpuOperation::workspace(self),
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        if let Some(unit) = bf16_unit(&self.forward, ctx.products) {
            mixed::backward(ctx, self, unit);
        } else if depthwise::applies(&self.forward) {
            depthwise::backward(ctx, self);
        } else if winograd::applies(&self.forward) {
            winograd::backward(ctx, self);
        } else {
            direct::backward(ctx, self);
        }
    }
}
