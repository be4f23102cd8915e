//! The backward pass: gradients of weights, bias, slopes and input. The gradient of the weights
//! sums over pixels, 32 a step, with output channels in the rows of a tile and input channels in
//! its columns. Depends on the rounded rows and the row products.

use super::super::super::arena::SharedPtr;
use super::super::super::bf16::{Bf16Unit, BlockProduct, STEP, SUMS, Session, Start, as_floats};
use super::super::super::rows::row_sum;
use super::super::super::simd::{LANES, Simd};
use super::super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts};
use super::super::{Finish, pack_channels, row_activation, slope_values, store_gradients};
use super::rows::{
    PairedRow, RoundedRows, activated_floats, row_values, transpose_row, transposed_values,
};
use super::weights::Pack;
use super::{
    Ahead, MAX_ROWS, NO_BIAS, Output, RowProduct, halves, pixel_steps, reach, rows_together,
};
use crate::plan::{Conv, ConvBack};

/// Where the pieces of a task's scratch begin, f32 values.
#[derive(Clone, Copy)]
struct Scratch {
    /// Slots of the rings of gradients and of paired inputs.
    slots: usize,
    paired: PairedRow,
    /// One rounded row of the input.
    input: usize,
    /// The ring of paired rows of the input.
    pairs: usize,
    /// The ring of rounded rows of the gradient.
    gradients: usize,
    /// The transposed rows of the gradient that are used together.
    transposed: usize,
    /// Room to activate.
    activated: usize,
    /// Rows of the gradient of the activated input.
    rows: usize,
    /// Narrow rows.
    narrow: usize,
    all: usize,
}

impl Scratch {
    fn new(c: &Conv) -> Scratch {
        let (w, together) = (c.extent.w, rows_together(c.extent.w));
        let slots = together + 2 * reach(c);
        let paired = PairedRow::new(w, c.input_stride, c.kernel);
        let mut end = 0;
        let mut piece = |floats: usize| {
            let at = end;
            end += floats.next_multiple_of(LANES);
            at
        };
        Scratch {
            slots,
            paired,
            input: piece(as_floats(row_values(w, c.input_stride, reach(c)))),
            pairs: piece(as_floats(slots * paired.values())),
            gradients: piece(as_floats(slots * row_values(w, c.output_stride, reach(c)))),
            transposed: piece(as_floats(together * transposed_values(w, c.output_stride))),
            activated: piece(activated_floats(c.input_stride)),
            rows: piece(together * w * c.input_stride),
            narrow: piece(RowProduct::backward(c).narrow()),
            all: piece(0),
        }
    }
}

/// f32 values of the gradient of the weights in a partial: tiles
/// `[tap][16 output channels][16 input channels][16][16]`.
fn weight_sums(c: &Conv) -> usize {
    c.kernel * c.kernel * c.output_stride * c.input_stride
}

/// Workspace of the backward operation. Shared: weights and slopes. Partials: gradients of weights,
/// biases and slopes. Scratch: see [`Scratch`].
pub fn workspace_back(op: &ConvBack) -> Workspace {
    let c = &op.forward;
    Workspace {
        shared: as_floats(RowProduct::backward(c).packed()) + slope_values(c),
        partial: weight_sums(c) + c.output_stride + slope_values(c),
        tasks: Bands::new(c.extent).tasks(),
        scratch: Scratch::new(c).all,
    }
}

struct Backward<'a> {
    op: &'a Conv,
    unit: Bf16Unit,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, input_stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, output_stride]`
    d_output: SharedPtr<f32>,
    /// `[N, h, w, input_stride]`, if asked for, and whether to add.
    d_input: Option<(SharedPtr<f32>, bool)>,
}

/// The rows of a task in its scratch.
struct Rings {
    scratch: Scratch,
    /// One row of the input at a time, on its way to the paired rows.
    inputs: RoundedRows,
    gradients: RoundedRows,
    pairs: SharedPtr<u16>,
    transposed: SharedPtr<u16>,
}

impl Rings {
    /// The paired row of a row of the input.
    ///
    /// # Safety
    /// The scratch holds the ring.
    #[inline(always)]
    unsafe fn paired(&self, row: isize) -> *mut u16 {
        let slot = row.rem_euclid(self.scratch.slots as isize) as usize;
        // SAFETY: the slot is one of the ring's
        unsafe { self.pairs.at(slot * self.scratch.paired.values()) }
    }

    /// Loads a row of input and gradient.
    ///
    /// # Safety
    /// As [`RoundedRows::load`] of both.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, row: isize) {
        // SAFETY: by the caller's contract
        unsafe {
            self.gradients.load::<S>(row);
            self.inputs.load::<S>(row);
            let to = self.paired(row);
            self.scratch
                .paired
                .write(self.inputs.row(row).cast_const(), to);
        }
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = self.op;
        let (w, reach) = (c.extent.w, reach(c) as isize);
        let (_, start, end) = self.bands.task(task);
        let session = Session::begin(self.unit);
        // SAFETY: the partial is this task's, the scratch holds all pieces, and channels are as
        // `check` allows. The rest is the contract of `Task::run`.
        unsafe {
            let rings = self.rings(task);
            let partial = self.parts.partial(task).at(0);
            let bias = partial.add(weight_sums(c));
            bias.write_bytes(0, c.output_stride + slope_values(c));
            let mut loaded = start as isize - reach;
            for y in (start..end).step_by(rows_together(w)) {
                let rows = rows_together(w).min(end - y);
                while loaded < (y + rows) as isize + reach {
                    rings.load::<S>(loaded);
                    loaded += 1;
                }
                for r in 0..rows {
                    let row = rings.gradients.row((y + r) as isize);
                    let row = row.add(reach as usize * c.output_stride);
                    let to = rings
                        .transposed
                        .at(r * transposed_values(w, c.output_stride));
                    transpose_row(row.cast_const(), w, c.output_stride, to);
                    row_sum::<S>(rings.gradients.stored(y + r), c.output_stride, w, bias);
                }
                let next = loaded as usize;
                let count = rows_together(w).min(c.extent.h.saturating_sub(next));
                let ahead = &mut self.ahead(&rings, (y, rows), (next, count));
                let begins = y == start;
                self.add_weight_gradient::<S>(&session, &rings, (y, rows), begins, partial, ahead);
                self.input_gradient::<S>(&session, &rings, (y, rows), bias.add(c.output_stride));
            }
            if start == end {
                // a band without rows
                partial.write_bytes(0, weight_sums(c));
            }
        }
    }
}

impl Backward<'_> {
    /// The rows of a task.
    ///
    /// # Safety
    /// As [`Task::run`].
    unsafe fn rings(&self, task: usize) -> Rings {
        let c = self.op;
        let scratch = Scratch::new(c);
        // SAFETY: the scratch holds all pieces, and the shared part holds the slopes
        unsafe {
            let at = |piece: usize| self.parts.scratch().at(piece);
            let slopes = self
                .parts
                .shared()
                .at(as_floats(RowProduct::backward(c).packed()));
            let gradients = RoundedRows {
                source: self.d_output,
                activation: None,
                image: self.bands.task(task).0,
                h: c.extent.h,
                w: c.extent.w,
                c: c.output_stride,
                pad: reach(c),
                slots: scratch.slots,
                ring: halves(at(scratch.gradients)),
                activated: SharedPtr::new(at(scratch.activated)),
            };
            Rings {
                scratch,
                inputs: RoundedRows {
                    source: self.input,
                    activation: row_activation(c, slopes),
                    c: c.input_stride,
                    slots: 1,
                    ring: halves(at(scratch.input)),
                    ..gradients
                },
                gradients,
                pairs: halves(at(scratch.pairs)),
                transposed: halves(at(scratch.transposed)),
            }
        }
    }

    /// The next rows of input and gradient from `first` on, and rows `y..y + rows` of the input's
    /// gradient, which are written next; all fetched between the products of
    /// [`Backward::add_weight_gradient`].
    ///
    /// # Safety
    /// The rows are those of the image.
    #[inline(always)]
    unsafe fn ahead(
        &self,
        rings: &Rings,
        (y, rows): (usize, usize),
        (first, count): (usize, usize),
    ) -> Ahead {
        let c = self.op;
        let row = c.extent.w * c.input_stride;
        let pairs = |channels: usize| (channels / LANES).div_ceil(2);
        let calls = c.kernel * c.kernel * pairs(c.input_stride) * pairs(c.output_stride);
        // SAFETY: by the caller's contract
        unsafe {
            let written = self.d_input.map_or((std::ptr::null(), 0), |(d, _)| {
                let first = d.at((rings.inputs.image * c.extent.h + y) * row);
                (first.cast_const(), rows * row)
            });
            let read = [&rings.inputs, &rings.gradients];
            Ahead::new(&read, (first, count), written, calls)
        }
    }

    /// Adds the gradient of the weights in rows `y..y + rows` to a partial, or begins it.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose rows and partial they are; the rings hold the rows within
    /// [`reach`], and the transposed rows.
    #[inline(always)]
    unsafe fn add_weight_gradient<S: Simd>(
        &self,
        session: &Session,
        rings: &Rings,
        (y, rows): (usize, usize),
        begins: bool,
        partial: *mut f32,
        ahead: &mut Ahead,
    ) {
        let (c, k, w) = (self.op, self.op.kernel, self.op.extent.w);
        let (outputs, inputs) = (c.output_stride / LANES, c.input_stride / LANES);
        let start = if begins { Start::Zero } else { Start::Sums };
        let row = pixel_steps(w) * STEP;
        let (mut a, mut b) = ([std::ptr::null(); MAX_ROWS], [std::ptr::null(); MAX_ROWS]);
        // SAFETY: groups of channels and taps lie inside the rows and the partial
        unsafe {
            for (output, input) in (0..outputs)
                .step_by(2)
                .flat_map(|o| (0..inputs).step_by(2).map(move |i| (o, i)))
            {
                for (r, a) in a[..rows].iter_mut().enumerate() {
                    let at = r * transposed_values(w, c.output_stride) + output * LANES * row;
                    *a = rings.transposed.at(at).cast_const();
                }
                // taps of one parity read the same pairs
                for (ky, kx) in (0..k).flat_map(|ky| {
                    let taps = (0..k).step_by(2).chain((1..k).step_by(2));
                    taps.map(move |kx| (ky, kx))
                }) {
                    for (r, b) in b[..rows].iter_mut().enumerate() {
                        let paired = rings.paired((y + r + ky) as isize - reach(c) as isize);
                        *b = paired.add(rings.scratch.paired.tap(kx, input)).cast_const();
                    }
                    let tile = ((ky * k + kx) * outputs + output) * inputs + input;
                    let block = BlockProduct {
                        a: &a[..rows],
                        a_row: row,
                        b: &b[..rows],
                        b_group: rings.scratch.paired.group(),
                        steps: pixel_steps(w),
                        start,
                        c: partial.add(tile * SUMS),
                        c_row: LANES,
                        c_groups: (inputs * SUMS, SUMS),
                    };
                    session.product(&block, (outputs - output).min(2), (inputs - input).min(2));
                    ahead.fetch::<S>();
                }
            }
        }
    }

    /// The gradient of the input in rows `y..y + rows`, if it is asked for.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose rows they are; the ring holds the gradients within
    /// [`reach`] of the rows, and the slopes' sums have room for their values.
    #[inline(always)]
    unsafe fn input_gradient<S: Simd>(
        &self,
        session: &Session,
        rings: &Rings,
        (y, rows): (usize, usize),
        slope_sums: *mut f32,
    ) {
        let c = self.op;
        let Some((d_input, add)) = self.d_input else {
            return;
        };
        let product = RowProduct::backward(c);
        let len = c.extent.w * c.input_stride;
        // SAFETY: the rows are this task's; `backward` packed the weights
        unsafe {
            let scratch = self.parts.scratch();
            let first = (rings.inputs.image * c.extent.h + y) * len;
            let finish = |r: usize| Finish {
                activation: rings.inputs.activation,
                z: rings.inputs.stored(y + r),
                c: c.input_stride,
                len,
                out: d_input.at(first + r * len),
                add,
                slope_sums,
            };
            let direct = finish(0).only_stores();
            let outputs = Output {
                first: if direct {
                    d_input.at(first)
                } else {
                    scratch.at(rings.scratch.rows)
                },
                stride: len,
                rows,
                narrow: scratch.at(rings.scratch.narrow),
            };
            let gradient = |r: usize, ky: usize| {
                let row = (y + r + ky) as isize - reach(c) as isize;
                rings.gradients.row(row).cast_const()
            };
            let weights = halves(self.parts.shared().at(0)).at(0).cast_const();
            let factors = (weights, NO_BIAS);
            product.run::<S>(session, gradient, factors, &outputs, &mut Ahead::nothing());
            if !direct {
                for r in 0..rows {
                    finish(r).run::<S>(scratch.at(rings.scratch.rows + r * len));
                }
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &ConvBack, unit: Bf16Unit) {
    let c = &op.forward;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    let (product, shared) = (RowProduct::backward(c), parts.shared());
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    unsafe {
        if op.d_input.is_some() {
            Pack {
                op: c,
                product,
                weight: ctx.param(c.parameters, c.weight),
                out: halves(shared.at(0)),
                backward: true,
            }
            .run(ctx);
        }
        pack_channels(ctx, c, None, shared.at(as_floats(product.packed())));
    }
    let bands = Bands::new(c.extent);
    let task = Backward {
        op: c,
        unit,
        parts,
        bands,
        input: ctx.floats(c.input),
        d_output: ctx.floats(op.d_output),
        d_input: op.d_input.map(|d| (ctx.floats(d.buffer), d.add)),
    };
    ctx.parallel(bands.tasks(), &task);
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    let (outputs, inputs) = (c.output_stride / LANES, c.input_stride / LANES);
    store_gradients(ctx, op, parts, weight_sums(c), |co, ci, tap| {
        let tile = (tap * outputs + co / LANES) * inputs + ci / LANES;
        tile * SUMS + co % LANES * LANES + ci % LANES
    });
}
