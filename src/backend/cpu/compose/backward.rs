//! The chain rule of the composition. With `d` for the gradient of the composed kernel:
//!
//! ```text
//! d_through[o, k, t] = sum over i of d[o, i, t] first[k, i]
//! d_last[o, m] = sum over k, t of d_through[o, k, t] middle[m, k, t]
//! d_middle[m, k, t] = sum over o of last[o, m] d_through[o, k, t]
//! d_first[k, i] = sum over o, t of through[o, k, t] d[o, i, t]
//! ```
//!
//! The gradient of the bias is one more input channel of `d`, the same in every tap. The tasks of
//! the first pass compute `through` again (which is faster than to keep it since the forward pass),
//! `d_through` and `d_last` for a few output channels each; those of the second pass compute a few
//! rows of `d_middle` or `d_first`.

use super::super::arena::SharedPtr;
use super::super::simd::Simd;
use super::super::tasks::{Context, Task, Workspace, WorkspaceParts, round_up_to_lanes};
use super::product::{DOT_ROWS, Product, Single, dots};
use super::{ROWS, Sizes, TAPS, Tensors};
use crate::plan::{ComposeConv, ComposeConvBack};

/// Where each piece begins in the shared part of the workspace.
struct Shared {
    /// `first` and its bias, `[a + 1, inner]`.
    first: usize,
    /// `[b, 2a, 9]`; the rows of the last task are complete.
    through: usize,
    /// `[b, 2a, 9]`
    d_through: usize,
    /// The gradient of the composed kernel and bias, `[b, 9, inputs]`.
    d_kernel: usize,
    /// Values of all pieces.
    len: usize,
}

impl Shared {
    fn new(s: &Sizes) -> Shared {
        let first = 0;
        let through = first + (s.a + 1) * s.inner;
        let d_through = through + round_up_to_lanes(s.b.next_multiple_of(ROWS) * s.row);
        // the rows beyond the last one of `first` that are read in the second pass end in here
        let d_kernel = d_through + round_up_to_lanes(s.b * s.row);
        Shared {
            first,
            through,
            d_through,
            d_kernel,
            len: d_kernel + s.b * TAPS * s.inputs,
        }
    }
}

/// Where each piece begins in a thread's scratch, and its size.
struct Scratch {
    /// Rows of `last`, `[2b, ROWS]`, or columns, `[b, ROWS]`.
    last: usize,
    /// One output channel's gradient of kernel and bias, `[a + 1, 9]`.
    d_kernel: usize,
    /// A product: `[9, inner]`, or ROWS rows of `d_middle` or `d_first`.
    product: usize,
    /// Values of all pieces.
    len: usize,
}

impl Scratch {
    fn new(s: &Sizes) -> Scratch {
        let last = 0;
        let d_kernel = last + 2 * s.b * ROWS;
        let product = d_kernel + round_up_to_lanes((s.a + 1) * TAPS);
        let rows = ROWS * s.row.max(s.inputs);
        Scratch {
            last,
            d_kernel,
            product,
            len: product + rows.max(TAPS * s.inner),
        }
    }
}

/// Workspace of the operation.
pub fn workspace(op: &ComposeConv) -> Workspace {
    let s = Sizes::new(op);
    Workspace {
        shared: Shared::new(&s).len,
        scratch: Scratch::new(&s).len,
        ..Workspace::default()
    }
}

/// What both passes need.
#[derive(Clone, Copy)]
struct Backward {
    s: Sizes,
    parts: WorkspaceParts,
    tensors: Tensors,
    /// The gradients of the tensors.
    gradients: Tensors,
    /// Whether they are added to.
    accumulate: bool,
    /// `[b, a, 9]`
    d_weight: SharedPtr<f32>,
    /// `[b]`
    d_bias: SharedPtr<f32>,
}

impl Backward {
    /// Stores gradients of a tensor from element `at` on.
    ///
    /// # Safety
    /// The tensor has these elements, and no other task uses them.
    #[inline(always)]
    unsafe fn put(
        &self,
        tensor: SharedPtr<f32>,
        at: usize,
        values: impl ExactSizeIterator<Item = f32>,
    ) {
        // SAFETY: the caller guarantees that the elements are this task's
        let out = unsafe { tensor.slice(at, values.len()) };
        match self.accumulate {
            true => out
                .iter_mut()
                .zip(values)
                .for_each(|(out, value)| *out += value),
            false => out
                .iter_mut()
                .zip(values)
                .for_each(|(out, value)| *out = value),
        }
    }
}

/// The first pass over a few output channels.
struct FirstPass(Backward);

impl FirstPass {
    /// Packs the rows of `last` into the scratch, and computes those of `through`.
    ///
    /// # Safety
    /// As [`Task::run`] of the task of these channels.
    #[inline(always)]
    unsafe fn through<S: Simd>(&self, channels: std::ops::Range<usize>, scratch: SharedPtr<f32>) {
        let Backward {
            s, parts, tensors, ..
        } = self.0;
        // SAFETY: the pieces are those of `Scratch` and `Shared`, and the tensors hold the rows
        unsafe {
            let last = scratch.slice(Scratch::new(&s).last, 2 * s.b * ROWS);
            for (m, rows) in last.chunks_exact_mut(ROWS).enumerate() {
                for (o, value) in (channels.start..).zip(rows) {
                    // rows that are missing in the last task are zeros
                    let within = o < channels.end;
                    *value = match within {
                        true => *tensors.last[0].at(o * 2 * s.b + m),
                        false => 0.0,
                    };
                }
            }
            let through = Shared::new(&s).through + channels.start * s.row;
            Product::<Single> {
                a: last.as_ptr(),
                a_steps: [0, ROWS],
                b: tensors.middle[0].at(0),
                b_steps: [0, s.row],
                depth: [1, 2 * s.b],
                columns: s.row,
                out: parts.shared().at(through),
                out_step: s.row,
            }
            .run::<S, ROWS, 1>();
        }
    }

    /// Computes `d_through` of output channel `o`, its gradient of the kernel with the channels
    /// adjacent, and its gradients of `skip`.
    ///
    /// # Safety
    /// As [`Task::run`] of the task of this channel.
    #[inline(always)]
    unsafe fn d_through<S: Simd>(&self, o: usize, scratch: SharedPtr<f32>) {
        let Backward {
            s,
            parts,
            gradients,
            ..
        } = self.0;
        let (at, shared) = (Scratch::new(&s), Shared::new(&s));
        // SAFETY: the pieces are those of `Scratch` and `Shared`, and the channel's are this task's
        unsafe {
            let d_kernel = scratch.slice(at.d_kernel, (s.a + 1) * TAPS);
            let (d_weight, d_bias) = d_kernel.split_at_mut(s.a * TAPS);
            d_weight.copy_from_slice(self.0.d_weight.view(o * s.a * TAPS, s.a * TAPS));
            let of_bias = *self.0.d_bias.at(o);
            d_bias.fill(of_bias);
            let product = scratch.at(at.product);
            Product::<Single> {
                a: d_kernel.as_ptr(),
                a_steps: [0, TAPS],
                b: parts.shared().at(shared.first),
                b_steps: [0, s.inner],
                depth: [1, s.a + 1],
                columns: s.inner,
                out: product,
                out_step: s.inner,
            }
            .run::<S, TAPS, 1>();
            let product = std::slice::from_raw_parts(product, TAPS * s.inner);
            let d_through = parts.shared().slice(shared.d_through + o * s.row, s.row);
            for (k, taps) in d_through.as_chunks_mut::<TAPS>().0.iter_mut().enumerate() {
                for (t, tap) in taps.iter_mut().enumerate() {
                    *tap = product[t * s.inner + k];
                }
            }
            let by_tap = shared.d_kernel + o * TAPS * s.inputs;
            let by_tap = parts.shared().slice(by_tap, TAPS * s.inputs);
            for (t, row) in by_tap.chunks_exact_mut(s.inputs).enumerate() {
                let (channels, unused) = row.split_at_mut(s.a + 1);
                for (value, taps) in channels.iter_mut().zip(d_kernel.as_chunks::<TAPS>().0) {
                    *value = taps[t];
                }
                unused.fill(0.0);
            }
            let centre = d_kernel[..s.a * TAPS].iter().skip(TAPS / 2).step_by(TAPS);
            self.0.put(gradients.skip[0], o * s.a, centre.copied());
            for bias in [gradients.skip[1], gradients.last[1]] {
                self.0.put(bias, o, [of_bias].into_iter());
            }
        }
    }

    /// Computes `d_last` of these channels, for [`DOT_ROWS`] times as many inputs at a time.
    ///
    /// # Safety
    /// As [`Task::run`] of the task of these channels, whose `d_through` it has computed.
    #[inline(always)]
    unsafe fn d_last<S: Simd>(&self, channels: std::ops::Range<usize>) {
        let Backward {
            s,
            parts,
            tensors,
            gradients,
            ..
        } = self.0;
        let d_through = Shared::new(&s).d_through;
        // SAFETY: row numbers are limited to those that the tensors have, and gradients of these
        // channels are this task's
        unsafe {
            for m in (0..2 * s.b).step_by(DOT_ROWS) {
                let count = DOT_ROWS.min(2 * s.b - m);
                let of_middle: [usize; DOT_ROWS] = std::array::from_fn(|j| m + j.min(count - 1));
                let middle = of_middle.map(|m| tensors.middle[0].at(m * s.row).cast_const());
                for o in channels.clone().step_by(DOT_ROWS) {
                    let rows: [usize; DOT_ROWS] =
                        std::array::from_fn(|i| (o + i).min(channels.end - 1));
                    let rows = rows.map(|o| {
                        let at = d_through + o * s.row;
                        parts.shared().at(at).cast_const()
                    });
                    let sums = dots::<S>(rows, middle, s.row);
                    for (o, sums) in (o..channels.end).zip(sums.as_chunks::<DOT_ROWS>().0) {
                        let d_bias = *self.0.d_bias.at(o);
                        let bias = tensors.middle[1].view(m, count);
                        let values = sums.iter().zip(bias).map(|(sum, b)| sum + d_bias * b);
                        self.0.put(gradients.last[0], o * 2 * s.b + m, values);
                    }
                }
            }
        }
    }
}

impl Task for FirstPass {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let s = self.0.s;
        let channels = task * ROWS..((task + 1) * ROWS).min(s.b);
        // SAFETY: all that belongs to these channels is this task's
        unsafe {
            let scratch = self.0.parts.scratch();
            self.through::<S>(channels.clone(), scratch);
            for o in channels.clone() {
                self.d_through::<S>(o, scratch);
            }
            self.d_last::<S>(channels);
        }
    }
}

/// The second pass: tasks for rows of `d_middle`, then tasks for rows of `d_first`.
struct SecondPass(Backward);

impl SecondPass {
    /// Computes these rows of `d_middle`, and of the gradient of its bias.
    ///
    /// # Safety
    /// As [`Task::run`] of the task of these rows.
    #[inline(always)]
    unsafe fn d_middle<S: Simd>(&self, rows: std::ops::Range<usize>) {
        let Backward {
            s,
            parts,
            tensors,
            gradients,
            ..
        } = self.0;
        let (at, shared) = (Scratch::new(&s), Shared::new(&s));
        // SAFETY: the pieces are those of `Scratch` and `Shared`, the tensors hold the rows, and
        // their gradients are this task's
        unsafe {
            let scratch = parts.scratch();
            let last = scratch.slice(at.last, s.b * ROWS);
            let mut d_bias = [0f32; ROWS];
            for (o, values) in last.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
                values.fill(0.0);
                let row = tensors.last[0].view(o * 2 * s.b + rows.start, rows.len());
                values[..rows.len()].copy_from_slice(row);
                let of_output = *self.0.d_bias.at(o);
                for (sum, value) in d_bias.iter_mut().zip(values) {
                    *sum += *value * of_output;
                }
            }
            let product = scratch.at(at.product);
            Product::<Single> {
                a: last.as_ptr(),
                a_steps: [0, ROWS],
                b: parts.shared().at(shared.d_through),
                b_steps: [0, s.row],
                depth: [1, s.b],
                columns: s.row,
                out: product,
                out_step: s.row,
            }
            .run::<S, ROWS, 1>();
            let values = std::slice::from_raw_parts(product, rows.len() * s.row);
            self.0.put(
                gradients.middle[0],
                rows.start * s.row,
                values.iter().copied(),
            );
            let d_bias = d_bias[..rows.len()].iter().copied();
            self.0.put(gradients.middle[1], rows.start, d_bias);
        }
    }

    /// Computes these rows of `d_first`, and of the gradient of its bias.
    ///
    /// # Safety
    /// As [`Task::run`] of the task of these rows.
    #[inline(always)]
    unsafe fn d_first<S: Simd>(&self, rows: std::ops::Range<usize>) {
        let Backward {
            s,
            parts,
            gradients,
            ..
        } = self.0;
        let (at, shared) = (Scratch::new(&s), Shared::new(&s));
        // SAFETY: the pieces are those of `Scratch` and `Shared`, and the gradients of these rows
        // are this task's. Rows that are missing in the last task are read from what follows in
        // the workspace, and not used.
        unsafe {
            let product = parts.scratch().at(at.product);
            Product::<Single> {
                a: parts.shared().at(shared.through + rows.start * TAPS),
                a_steps: [s.row, 1],
                b: parts.shared().at(shared.d_kernel),
                b_steps: [TAPS * s.inputs, s.inputs],
                depth: [s.b, TAPS],
                columns: s.inputs,
                out: product,
                out_step: s.inputs,
            }
            .run::<S, ROWS, TAPS>();
            let product = std::slice::from_raw_parts(product, rows.len() * s.inputs);
            for (k, row) in rows.zip(product.chunks_exact(s.inputs)) {
                self.0
                    .put(gradients.first[0], k * s.a, row[..s.a].iter().copied());
                self.0.put(gradients.first[1], k, [row[s.a]].into_iter());
            }
        }
    }
}

impl Task for SecondPass {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let s = self.0.s;
        let of_middle = Sizes::tasks(2 * s.b);
        let rows = |task: usize, count: usize| task * ROWS..((task + 1) * ROWS).min(count);
        // SAFETY: each task has rows of its own, and the first pass has finished
        unsafe {
            if task < of_middle {
                self.d_middle::<S>(rows(task, 2 * s.b));
            } else {
                self.d_first::<S>(rows(task - of_middle, 2 * s.a));
            }
        }
    }
}

/// Runs the operation.
pub fn backward(ctx: &Context<'_>, op: &ComposeConvBack) {
    let s = Sizes::new(&op.forward);
    let parts = ctx.parts(op.workspace, workspace(&op.forward));
    let tensors = Tensors::new(ctx, &op.forward, op.forward.parameters);
    // SAFETY: the shared part has room for the values, the tensors hold them, and no task runs yet
    unsafe {
        let first = tensors.first[0].view(0, 2 * s.a * s.a);
        let bias = tensors.first[1].view(0, 2 * s.a);
        let rows = parts
            .shared()
            .slice(Shared::new(&s).first, (s.a + 1) * s.inner);
        rows.fill(0.0);
        for (i, row) in rows.chunks_exact_mut(s.inner).enumerate() {
            for (k, (value, &bias)) in row.iter_mut().zip(bias).enumerate() {
                *value = if i < s.a { first[k * s.a + i] } else { bias };
            }
        }
    }
    let d_output = ctx.floats(op.d_output);
    let task = Backward {
        s,
        parts,
        tensors,
        gradients: Tensors::new(ctx, &op.forward, op.gradients),
        accumulate: ctx.scalars.accumulate,
        d_weight: d_output,
        // SAFETY: the gradient of the bias follows that of the weight
        d_bias: SharedPtr::new(unsafe { d_output.at(op.forward.weight_len()) }),
    };
    ctx.parallel(Sizes::tasks(s.b), &FirstPass(task));
    let tasks = Sizes::tasks(2 * s.b) + Sizes::tasks(2 * s.a);
    ctx.parallel(tasks, &SecondPass(task));
}
