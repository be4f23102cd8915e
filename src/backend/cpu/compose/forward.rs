//! The composition, in f64: each task computes the kernels of a few output channels.

use super::super::arena::SharedPtr;
use super::super::simd::Simd;
use super::super::tasks::{Context, Task, Workspace, WorkspaceParts};
use super::product::{Double, Product, Widened};
use super::{ROWS, Sizes, TAPS, Tensors};
use crate::plan::ComposeConv;

/// f64 values of the parts of a thread's scratch: the rows of `last` as `[2b, ROWS]`, those of
/// `through`, and one kernel as `[9, inputs]`.
fn scratch(s: &Sizes) -> [usize; 3] {
    [2 * s.b * ROWS, ROWS * s.row, TAPS * s.inputs]
}

/// Workspace of the operation: `first` and its bias as f64 `[2a, inputs]`.
pub fn workspace(op: &ComposeConv) -> Workspace {
    let s = Sizes::new(op);
    Workspace {
        shared: 2 * 2 * s.a * s.inputs,
        scratch: 2 * scratch(&s).iter().sum::<usize>(),
        ..Workspace::default()
    }
}

struct Forward {
    s: Sizes,
    parts: WorkspaceParts,
    tensors: Tensors,
    /// `[b, a, 9]`
    weight: SharedPtr<f32>,
    /// `[b]`
    bias: SharedPtr<f32>,
}

/// The sum of the products of a row of `last` and the bias of `middle`, in eight chains.
#[inline(always)]
fn dot(row: &[f32], bias: &[f32]) -> f64 {
    let mut chains = [0f64; 8];
    for (row, bias) in row.chunks(8).zip(bias.chunks(8)) {
        for ((chain, &w), &b) in chains.iter_mut().zip(row).zip(bias) {
            *chain += f64::from(w) * f64::from(b);
        }
    }
    chains.iter().sum()
}

impl Forward {
    /// Writes kernel and bias of output channel `o` from its kernel in the scratch.
    ///
    /// # Safety
    /// As [`Task::run`] of the task of this channel. `kernel` is `[9, inputs]`.
    #[inline(always)]
    unsafe fn store(&self, o: usize, kernel: &[f64]) {
        let Sizes { a, b, inputs, .. } = self.s;
        // SAFETY: kernel and bias of the channel are this task's, and the tensors hold its rows
        unsafe {
            let skip = self.tensors.skip[0].view(o * a, a);
            let weight = self.weight.slice(o * a * TAPS, a * TAPS);
            for (i, (taps, &skip)) in weight.chunks_exact_mut(TAPS).zip(skip).enumerate() {
                for (t, tap) in taps.iter_mut().enumerate() {
                    let centre = if t == TAPS / 2 { f64::from(skip) } else { 0.0 };
                    *tap = (kernel[t * inputs + i] + centre) as f32;
                }
            }
            let last = self.tensors.last[0].view(o * 2 * b, 2 * b);
            let mut bias = dot(last, self.tensors.middle[1].view(0, 2 * b));
            bias += kernel.chunks_exact(inputs).map(|tap| tap[a]).sum::<f64>();
            for of_output in [self.tensors.last[1], self.tensors.skip[1]] {
                bias += f64::from(*of_output.at(o));
            }
            *self.bias.at(o) = bias as f32;
        }
    }
}

impl Task for Forward {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let s = self.s;
        let channels = task * ROWS..((task + 1) * ROWS).min(s.b);
        let [last_len, through_len, kernel_len] = scratch(&s);
        // SAFETY: kernels and biases of these channels are this task's; the pieces of the scratch
        // are those of `scratch`, begin at multiples of 64 bytes and do not overlap, and all rows
        // have at least one vector of 8 values
        unsafe {
            let scratch = SharedPtr::new(self.parts.scratch().at(0).cast::<f64>());
            let last = scratch.slice(0, last_len);
            for (m, rows) in last.chunks_exact_mut(ROWS).enumerate() {
                for (o, value) in (channels.start..).zip(rows) {
                    // rows that are missing in the last task are zeros
                    let within = o < channels.end;
                    *value = match within {
                        true => f64::from(*self.tensors.last[0].at(o * 2 * s.b + m)),
                        false => 0.0,
                    };
                }
            }
            let through = scratch.at(last_len);
            Product::<Widened> {
                a: last.as_ptr(),
                a_steps: [0, ROWS],
                b: self.tensors.middle[0].at(0),
                b_steps: [0, s.row],
                depth: [1, 2 * s.b],
                columns: s.row,
                out: through,
                out_step: s.row,
            }
            .run::<S, ROWS, 1>();
            let kernel = scratch.at(last_len + through_len);
            for (r, o) in channels.enumerate() {
                Product::<Double> {
                    a: through.add(r * s.row),
                    a_steps: [0, TAPS],
                    b: self.parts.shared().at(0).cast(),
                    b_steps: [0, s.inputs],
                    depth: [1, 2 * s.a],
                    columns: s.inputs,
                    out: kernel,
                    out_step: s.inputs,
                }
                .run::<S, TAPS, 1>();
                self.store(o, std::slice::from_raw_parts(kernel, kernel_len));
            }
        }
    }
}

/// Runs the operation.
pub fn forward(ctx: &Context<'_>, op: &ComposeConv) {
    let s = Sizes::new(op);
    let parts = ctx.parts(op.workspace, workspace(op));
    let tensors = Tensors::new(ctx, op, op.parameters);
    // SAFETY: the shared part has room for the values and begins at a multiple of 64 bytes, the
    // tensors hold them, and no task runs yet
    unsafe {
        let shared = SharedPtr::new(parts.shared().at(0).cast::<f64>());
        let first = tensors.first[0].view(0, 2 * s.a * s.a).chunks_exact(s.a);
        let bias = tensors.first[1].view(0, 2 * s.a);
        let rows = shared
            .slice(0, 2 * s.a * s.inputs)
            .chunks_exact_mut(s.inputs);
        for ((row, first), &bias) in rows.zip(first).zip(bias) {
            let values = first.iter().chain([&bias]).map(|&v| f64::from(v));
            row.fill(0.0);
            row.iter_mut()
                .zip(values)
                .for_each(|(to, value)| *to = value);
        }
    }
    let output = ctx.floats(op.output);
    let task = Forward {
        s,
        parts,
        tensors,
        weight: output,
        // SAFETY: the bias follows the weight in the output
        bias: SharedPtr::new(unsafe { output.at(op.weight_len()) }),
    };
    ctx.parallel(Sizes::tasks(s.b), &task);
}
