//! Activations as operations of their own. Depends on the functions in `activation`. The gradient
//! of trainable slopes has one partial for each band of rows.

use super::activation::{BackRow, RowActivation, apply_row, back_row};
use super::arena::SharedPtr;
use super::elementwise::{check_activation, check_per_channel, check_stride, values_of};
use super::operation::CpuOperation;
use super::simd::Simd;
use super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts};
use crate::plan::{Activate, ActivateBack, Activation};
use anyhow::{Result, ensure};

/// Values of the slopes with those that fill the last vector; 0 without trainable slopes.
fn padded_slopes(op: &Activate) -> usize {
    op.activation.slopes().map_or(0, |_| op.stride)
}

/// The function, with its slopes in the shared part of the workspace: 0 in the channels that fill
/// the last vector.
fn row_activation(ctx: &Context<'_>, op: &Activate, parts: WorkspaceParts) -> RowActivation {
    if let Some(slopes) = op.activation.slopes() {
        // SAFETY: the shared part has room for the slopes, and no task runs yet
        unsafe {
            let padded = parts.shared().slice(0, padded_slopes(op));
            padded.fill(0.0);
            let values = ctx.param(op.parameters, slopes).view(0, slopes.len);
            padded[..slopes.len].copy_from_slice(values);
        }
    }
    RowActivation {
        function: op.activation,
        slopes: parts.shared(),
    }
}

/// The activation of a band of rows.
struct Forward<'a> {
    op: &'a Activate,
    bands: Bands,
    activation: RowActivation,
    /// `[N, h, w, stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, stride]`
    output: SharedPtr<f32>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Activate { extent, stride, .. } = *self.op;
        let values = values_of(self.bands, extent, stride, task);
        // SAFETY: these values of the output are this task's, both buffers hold them, and pixels
        // and slopes are whole vectors (`check`)
        unsafe {
            let (z, out) = (self.input.at(values.start), self.output.at(values.start));
            apply_row::<S>(self.activation, z, stride, values.len(), out);
        }
    }
}

impl CpuOperation for Activate {
    fn check(&self) -> Result<()> {
        check_activation(self.extent, self.channels)?;
        check_stride(self.channels, self.stride)?;
        let normalizes = matches!(self.activation, Activation::Normalize { .. });
        ensure!(!normalizes, "only a convolution normalizes its input");
        let slopes = self.activation.slopes();
        slopes.map_or(Ok(()), |slopes| check_per_channel(slopes, self.channels))
    }

    fn workspace(&self) -> Workspace {
        Workspace {
            shared: padded_slopes(self),
            ..Workspace::default()
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        let parts = ctx.parts(self.workspace, CpuOperation::workspace(self));
        let bands = Bands::new(self.extent);
        let task = Forward {
            op: self,
            bands,
            activation: row_activation(ctx, self, parts),
            input: ctx.floats(self.input),
            output: ctx.floats(self.output),
        };
        ctx.parallel(bands.tasks(), &task);
    }
}

/// The gradients in a band of rows.
struct Backward<'a> {
    op: &'a ActivateBack,
    bands: Bands,
    parts: WorkspaceParts,
    activation: RowActivation,
    /// `[N, h, w, stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, stride]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, stride]`
    d_input: SharedPtr<f32>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Activate { extent, stride, .. } = self.op.forward;
        let slopes = padded_slopes(&self.op.forward);
        let row = extent.w * stride;
        // SAFETY: these values of the input's gradient are this task's, all buffers hold them, and
        // pixels and slopes are whole vectors (`check`); the partial is this task's, and holds the
        // slopes' sums
        unsafe {
            let slope_sums = self.parts.partial(task).at(0);
            if slopes > 0 {
                slope_sums.write_bytes(0, slopes);
            }
            for start in values_of(self.bands, extent, stride, task).step_by(row) {
                let row = BackRow {
                    z: self.input.at(start),
                    d: self.d_output.at(start),
                    c: stride,
                    len: row,
                    out: self.d_input.at(start),
                    add: self.op.d_input.add,
                    slope_sums,
                };
                back_row::<S>(self.activation, row);
            }
        }
    }
}

impl CpuOperation for ActivateBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        let op = &self.forward;
        match op.activation.slopes() {
            Some(_) => Workspace {
                shared: padded_slopes(op),
                partial: padded_slopes(op),
                tasks: Bands::new(op.extent).tasks(),
                ..Workspace::default()
            },
            None => Workspace::default(),
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        let op = &self.forward;
        let parts = ctx.parts(self.workspace, CpuOperation::workspace(self));
        let bands = Bands::new(op.extent);
        let task = Backward {
            op: self,
            bands,
            parts,
            activation: row_activation(ctx, op, parts),
            input: ctx.floats(op.input),
            d_output: ctx.floats(self.d_output),
            d_input: ctx.floats(self.d_input.buffer),
        };
        ctx.parallel(bands.tasks(), &task);
        let Some(slopes) = op.activation.slopes() else {
            return;
        };
        if ctx.reduce(parts, self.slice) {
            // SAFETY: the tasks have finished, and the sums hold as many values as a partial
            let sums = unsafe { parts.sums().slice(0, op.stride) };
            ctx.store_gradient(self.gradients, slopes, |c| sums[c]);
        }
    }
}
