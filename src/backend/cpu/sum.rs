//! Sums of activations: residuals with LayerScale, and the sum of two gradients of one value.
//! Depends on `elementwise`. The gradient of gamma has one partial for each band of rows.

use super::arena::SharedPtr;
use super::elementwise::{
    Output, PerChannel, Store, check_activation, check_per_channel, check_stride, values_of,
};
use super::operation::CpuOperation;
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts};
use crate::plan::{Accumulate, Destination, Extent, ScaledSum, ScaledSumBack};
use anyhow::Result;

/// Adds the rows of a band to those of another buffer.
struct AccumulateTask {
    extent: Extent,
    stride: usize,
    bands: Bands,
    /// `[N, h, w, stride]`
    from: SharedPtr<f32>,
    /// `[N, h, w, stride]`
    into: SharedPtr<f32>,
}

impl Task for AccumulateTask {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let values = values_of(self.bands, self.extent, self.stride, task);
        let whole = values.len() / LANES * LANES;
        // SAFETY: these values of `into` are this task's, and both buffers hold them
        unsafe {
            for at in (values.start..values.start + whole).step_by(LANES) {
                let sum = S::add(S::load(self.into.at(at)), S::load(self.from.at(at)));
                S::store(self.into.at(at), sum);
            }
            for at in values.start + whole..values.end {
                *self.into.at(at) += *self.from.at(at);
            }
        }
    }
}

impl CpuOperation for Accumulate {
    fn check(&self) -> Result<()> {
        check_activation(self.extent, self.stride)
    }

    fn run(&self, ctx: &Context<'_>) {
        let bands = Bands::new(self.extent);
        let task = AccumulateTask {
            extent: self.extent,
            stride: self.stride,
            bands,
            from: ctx.floats(self.from),
            into: ctx.floats(self.into),
        };
        ctx.parallel(bands.tasks(), &task);
    }
}

/// gamma, if the sum has one.
fn gamma(ctx: &Context<'_>, op: &ScaledSum) -> Option<PerChannel> {
    let values = op.gamma.map(|gamma| ctx.param(op.parameters, gamma));
    // SAFETY: gamma has a value for each channel (`check`), and no task writes parameters
    values.map(|values| unsafe { PerChannel::new(values, op.channels) })
}

/// The sum in a band of rows.
struct Forward<'a> {
    op: &'a ScaledSum,
    bands: Bands,
    gamma: Option<PerChannel>,
    /// `[N, h, w, stride]`
    a: SharedPtr<f32>,
    /// `[N, h, w, stride]`
    b: SharedPtr<f32>,
    /// `[N, h, w, stride]`
    output: Output,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let ScaledSum { extent, stride, .. } = *self.op;
        let values = values_of(self.bands, extent, stride, task);
        // SAFETY: these values of the output are this task's, all buffers hold them, and a pixel is
        // whole vectors (`check`), so that each begins at a multiple of 64 bytes
        unsafe {
            for pixel in values.step_by(stride) {
                for lane in (0..stride).step_by(LANES) {
                    let at = pixel + lane;
                    let (a, b) = (S::load(self.a.at(at)), S::load(self.b.at(at)));
                    let sum = match &self.gamma {
                        Some(gamma) => S::fma(gamma.at::<S>(lane), b, a),
                        None => S::add(a, b),
                    };
                    self.output.put::<S>(at, sum);
                }
            }
            S::fence();
        }
    }
}

impl CpuOperation for ScaledSum {
    fn check(&self) -> Result<()> {
        check_activation(self.extent, self.channels)?;
        check_stride(self.channels, self.stride)?;
        self.gamma
            .map_or(Ok(()), |gamma| check_per_channel(gamma, self.channels))
    }

    fn run(&self, ctx: &Context<'_>) {
        let bands = Bands::new(self.extent);
        let task = Forward {
            op: self,
            bands,
            gamma: gamma(ctx, self),
            a: ctx.floats(self.a),
            b: ctx.floats(self.b),
            output: Output {
                values: ctx.floats(self.output),
                store: Store::new(self.extent, self.stride, false),
            },
        };
        ctx.parallel(bands.tasks(), &task);
    }
}

/// The gradients in a band of rows.
struct Backward<'a> {
    op: &'a ScaledSum,
    bands: Bands,
    parts: WorkspaceParts,
    gamma: Option<PerChannel>,
    /// `[N, h, w, stride]`
    b: SharedPtr<f32>,
    /// `[N, h, w, stride]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, stride]`
    d_a: Option<Output>,
    /// `[N, h, w, stride]`
    d_b: Option<Output>,
}

/// Chains of additions of gamma's gradient, which hide the latency of an addition.
const CHAINS: usize = 4;

impl Backward<'_> {
    /// The gradients of a and b at the vector `at`, whose first channel is `lane`; returns the
    /// gradient of the output.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose values these are.
    #[inline(always)]
    unsafe fn inputs<S: Simd>(&self, at: usize, lane: usize) -> S::V {
        // SAFETY: the buffers hold the vector, and the gradients' are this task's
        unsafe {
            let d = S::load(self.d_output.at(at));
            if let Some(d_a) = &self.d_a {
                d_a.put::<S>(at, d);
            }
            if let Some(d_b) = &self.d_b {
                let scaled = match &self.gamma {
                    Some(gamma) => S::mul(gamma.at::<S>(lane), d),
                    None => d,
                };
                d_b.put::<S>(at, scaled);
            }
            d
        }
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let ScaledSum { extent, stride, .. } = *self.op;
        let values = values_of(self.bands, extent, stride, task);
        // SAFETY: these values of the gradients are this task's, all buffers hold them, and a pixel
        // is whole vectors (`check`); the partial is this task's and holds a value for each channel
        // of the buffers
        unsafe {
            if self.gamma.is_none() {
                for at in values.step_by(LANES) {
                    self.inputs::<S>(at, 0);
                }
                return S::fence();
            }
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, stride);
            let row = extent.w * stride;
            for (start, lane) in values
                .step_by(row)
                .flat_map(|start| (0..stride).step_by(LANES).map(move |lane| (start, lane)))
            {
                let mut sums = [S::splat(0.0); CHAINS];
                let (mut at, end) = (start + lane, start + row);
                while at < end {
                    for sum in &mut sums {
                        if at < end {
                            let d = self.inputs::<S>(at, lane);
                            *sum = S::fma(d, S::load(self.b.at(at)), *sum);
                        }
                        at += stride;
                    }
                }
                let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
                let to = partial.at(lane);
                S::store(to, S::add(S::load(to), sum));
            }
            S::fence();
        }
    }
}

impl CpuOperation for ScaledSumBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        match self.forward.gamma {
            Some(_) => Workspace {
                partial: self.forward.stride,
                tasks: Bands::new(self.forward.extent).tasks(),
                ..Workspace::default()
            },
            None => Workspace::default(),
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        let op = &self.forward;
        let parts = ctx.parts(self.workspace, CpuOperation::workspace(self));
        let output = |d: Destination| Output {
            values: ctx.floats(d.buffer),
            store: Store::new(op.extent, op.stride, d.add),
        };
        let bands = Bands::new(op.extent);
        let task = Backward {
            op,
            bands,
            parts,
            gamma: gamma(ctx, op),
            b: ctx.floats(op.b),
            d_output: ctx.floats(self.d_output),
            d_a: self.d_a.map(output),
            d_b: self.d_b.map(output),
        };
        ctx.parallel(bands.tasks(), &task);
        let Some(gamma) = op.gamma else { return };
        if ctx.reduce(parts, self.slice) {
            // SAFETY: the tasks have finished, and the sums hold as many values as a partial
            let sums = unsafe { parts.sums().slice(0, op.stride) };
            let add = self.adds_gamma || ctx.scalars.accumulate;
            ctx.store_or_add_gradient(self.gradients, gamma, add, |c| sums[c]);
        }
    }
}
