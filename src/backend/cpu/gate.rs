//! Products of activations that act as gates: SPAN's attention and Stream's clamped product.
//! Depends on `elementwise` and the sigmoid of `activation`.

use super::activation::sigmoid;
use super::arena::SharedPtr;
use super::elementwise::{Output, Store, check_activation, values_of};
use super::operation::CpuOperation;
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Task};
use crate::plan::{Destination, Gate, GateBack, GateKind};
use anyhow::{Result, ensure};

/// `sigmoid(a) - 0.5` is computed by [`CENTRED`] for |a| up to this.
const CENTRED_LIMIT: f32 = 2.0;
/// `(sigmoid(a) - 0.5) / a` by powers of a^2 for |a| up to [`CENTRED_LIMIT`]: a fit at Chebyshev
/// points with an error of 5e-9 of the value. Subtracting 0.5 from the sigmoid of a small `a` would
/// lose its bits.
#[allow(clippy::excessive_precision)] // the digits of the fit
const CENTRED: [f32; 8] = [
    2.499999989e-1,
    -2.083329836e-2,
    2.083146766e-3,
    -2.104285419e-4,
    2.095840835e-5,
    -1.931759047e-6,
    1.390776161e-7,
    -5.376100065e-9,
];

/// `sigmoid(a) - 0.5`, within 3e-7 of the value, and its derivative.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn centred_sigmoid<S: Simd>(a: S::V) -> (S::V, S::V) {
    // SAFETY: the processor has the instructions of S, by the caller's contract
    unsafe {
        let size = S::abs(a);
        let rest = sigmoid::<S>(S::sub(S::splat(0.0), size));
        let square = S::mul(a, a);
        let mut p = S::splat(CENTRED[7]);
        for &c in CENTRED[..7].iter().rev() {
            p = S::fma(p, square, S::splat(c));
        }
        let value = S::where_positive(
            S::sub(size, S::splat(CENTRED_LIMIT)),
            S::sub(S::splat(0.5), rest),
            S::mul(p, size),
        );
        let slope = S::sub(rest, S::mul(rest, rest));
        (S::xor_sign(value, a), slope)
    }
}

/// The gate of a band of rows.
struct Forward<'a> {
    op: &'a Gate,
    bands: Bands,
    /// `[N, h, w, C]`, or `[N, h, w, 2C]` for [`GateKind::Halves`]
    a: SharedPtr<f32>,
    /// `[N, h, w, C]`; not read for [`GateKind::Halves`]
    b: SharedPtr<f32>,
    /// `[N, h, w, C]`
    output: Output,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let stride = self.op.stride();
        let values = values_of(self.bands, self.op.extent, stride, task);
        // SAFETY: these values of the output are this task's, all buffers hold them, and a pixel is
        // whole vectors, so that each begins at a multiple of 64 bytes; `check` made sure that
        // there is a b for the attention, and of whole vectors in each half
        unsafe {
            match self.op.kind {
                GateKind::Attention => {
                    for at in values.step_by(LANES) {
                        let (a, b) = (S::load(self.a.at(at)), S::load(self.b.at(at)));
                        let (attention, _) = centred_sigmoid::<S>(a);
                        self.output.put::<S>(at, S::mul(S::add(a, b), attention));
                    }
                }
                GateKind::Halves { limit } => {
                    for pixel in values.step_by(stride) {
                        for at in (pixel..pixel + stride).step_by(LANES) {
                            let first = self.a.at(pixel + at).cast_const();
                            let product = S::mul(S::load(first), S::load(first.add(stride)));
                            // in this order NaN stays NaN
                            let bounded = S::max(S::splat(-limit), product);
                            self.output.put::<S>(at, S::min(S::splat(limit), bounded));
                        }
                    }
                }
            }
            S::fence();
        }
    }
}

impl CpuOperation for Gate {
    fn check(&self) -> Result<()> {
        check_activation(self.extent, self.channels)?;
        match self.kind {
            GateKind::Attention => ensure!(self.b.is_some(), "an attention without its input"),
            GateKind::Halves { .. } => {
                check_activation(self.extent, 2 * self.channels)?;
                ensure!(
                    self.channels.is_multiple_of(LANES) && self.b.is_none(),
                    "{} channels: multiples of {LANES} are supported, and no second input",
                    self.channels
                );
            }
        }
        Ok(())
    }

    fn run(&self, ctx: &Context<'_>) {
        let bands = Bands::new(self.extent);
        let task = Forward {
            op: self,
            bands,
            a: ctx.floats(self.a),
            b: ctx.floats(self.b.unwrap_or(self.a)),
            output: Output {
                values: ctx.floats(self.output),
                store: Store::new(self.extent, self.stride(), false),
            },
        };
        ctx.parallel(bands.tasks(), &task);
    }
}

/// The gradients in a band of rows.
struct Backward<'a> {
    op: &'a Gate,
    bands: Bands,
    /// As in [`Forward`].
    a: SharedPtr<f32>,
    /// As in [`Forward`].
    b: SharedPtr<f32>,
    /// `[N, h, w, C]`
    d_output: SharedPtr<f32>,
    /// The shape of a.
    d_a: Output,
    /// The shape of b.
    d_b: Option<Output>,
}

impl Backward<'_> {
    /// The gradients of the clamped product of the two halves of the pixel that is at `pixel` in
    /// the output.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose pixel it is.
    #[inline(always)]
    unsafe fn halves<S: Simd>(&self, pixel: usize, limit: f32) {
        let stride = self.op.stride();
        // SAFETY: the pixel's gradients are this task's, all buffers hold it, and each half is
        // whole vectors
        unsafe {
            for at in (pixel..pixel + stride).step_by(LANES) {
                let (first, second) = (pixel + at, pixel + at + stride);
                let (x, y) = (S::load(self.a.at(first)), S::load(self.a.at(second)));
                // as in PyTorch, the gradient of the clamp is 1 at the limit
                let excess = S::sub(S::abs(S::mul(x, y)), S::splat(limit));
                let zero = S::splat(0.0);
                let d = S::where_positive(excess, zero, S::load(self.d_output.at(at)));
                self.d_a.put::<S>(first, S::mul(d, y));
                self.d_a.put::<S>(second, S::mul(d, x));
            }
        }
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let stride = self.op.stride();
        let values = values_of(self.bands, self.op.extent, stride, task);
        // SAFETY: these values of the gradients are this task's, all buffers hold them, and a pixel
        // is whole vectors, so that each begins at a multiple of 64 bytes
        unsafe {
            match self.op.kind {
                GateKind::Attention => {
                    for at in values.step_by(LANES) {
                        let (a, b) = (S::load(self.a.at(at)), S::load(self.b.at(at)));
                        let d = S::load(self.d_output.at(at));
                        let (attention, slope) = centred_sigmoid::<S>(a);
                        let d_a = S::fma(S::add(a, b), slope, attention);
                        self.d_a.put::<S>(at, S::mul(d, d_a));
                        if let Some(d_b) = &self.d_b {
                            d_b.put::<S>(at, S::mul(d, attention));
                        }
                    }
                }
                GateKind::Halves { limit } => {
                    for pixel in values.step_by(stride) {
                        self.halves::<S>(pixel, limit);
                    }
                }
            }
            S::fence();
        }
    }
}

impl CpuOperation for GateBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn run(&self, ctx: &Context<'_>) {
        let op = &self.forward;
        let bands = Bands::new(op.extent);
        let output = |d: Destination, stride: usize| Output {
            values: ctx.floats(d.buffer),
            store: Store::new(op.extent, stride, d.add),
        };
        let a_stride = match op.kind {
            GateKind::Attention => op.stride(),
            GateKind::Halves { .. } => 2 * op.stride(),
        };
        let task = Backward {
            op,
            bands,
            a: ctx.floats(op.a),
            b: ctx.floats(op.b.unwrap_or(op.a)),
            d_output: ctx.floats(self.d_output),
            d_a: output(self.d_a, a_stride),
            d_b: self.d_b.map(|d_b| output(d_b, op.stride())),
        };
        ctx.parallel(bands.tasks(), &task);
    }
}
