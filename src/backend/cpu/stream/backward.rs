//! The backward operation of a Stream block. It recomputes everything up to m from the block's
//! input, a row ahead of the gradients that need it.
//!
//! A task computes the gradients behind dw1 and dw3 for the rows of its band alone. Their part of
//! the input's gradient in the three rows above and below the band goes to the task's border in the
//! workspace, and is added to the neighbours' rows after all tasks: recomputing the gradients for
//! six more rows would take a fifth of the time of a band of 32.

use super::super::arena::SharedPtr;
use super::super::rows::{RowProduct, RowStart, row_outer, row_product, row_sum};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache};
use super::pack::{Packed, SQUARE, TAPS, pack};
use super::rows::{
    Gate, InputGradient, Taps, add_row, row_gate_back, row_input_gradient, row_taps, row_taps_outer,
};
use super::{FEATURES, GROUP, GROUPS, HIDDEN, PIECE, Projected, REACH, Ring, Strip, pieces, place};
use crate::plan::{ParamRange, StreamBlock, StreamBlockBack};

/// The rings of the recomputed rows. The gradient with respect to p is computed two rows after p;
/// it needs x three rows above, and t and both depthwise convolutions in its own row.
type Rows = Projected<{ 2 * REACH + 3 }, 3>;

/// Columns on each side of a strip for which the gradients behind dw1 and dw3, those behind the
/// gate, and p are computed.
const REACH_DW: usize = REACH;
const REACH_GATE: usize = REACH_DW + 1;
const REACH_P: usize = REACH_GATE + 1;
/// Columns of x on each side of a strip.
const MARGIN: usize = REACH_P + REACH;

/// The place of each sum in the partial of a backward task, f32 elements.
struct Sums;

impl Sums {
    /// Gradients of the taps `[ky][kx][f]` of dw1, then of dw3.
    const DW: usize = 0;
    /// Gradients of their biases, `[2][f]`.
    const DW_BIAS: usize = Self::DW + 2 * TAPS;
    /// Gradient of fuse, `[input][output]`.
    const FUSE: usize = Self::DW_BIAS + 2 * FEATURES;
    /// `[f]`
    const FUSE_BIAS: usize = Self::FUSE + 2 * SQUARE;
    /// Gradient of proj, `[group][f][GROUP]`.
    const PROJ: usize = Self::FUSE_BIAS + FEATURES;
    /// `[group][GROUP]`
    const PROJ_BIAS: usize = Self::PROJ + GROUPS * SQUARE;
    /// Gradient of the gate's taps, `[group][ky][kx][GROUP]`.
    const GATE: usize = Self::PROJ_BIAS + GROUPS * GROUP;
    /// `[group][GROUP]`
    const GATE_BIAS: usize = Self::GATE + GROUPS * TAPS;
    /// Sum of d output x m, `[f][e]`. Its product with gamma is the gradient of out; its product
    /// with out is the gradient of gamma.
    const PRODUCT: usize = Self::GATE_BIAS + GROUPS * GROUP;
    /// Sum of d output, `[f]`.
    const D_OUTPUT: usize = Self::PRODUCT + FEATURES * HIDDEN;
    /// Elements of all sums.
    const LEN: usize = Self::D_OUTPUT + FEATURES;
}

/// f32 values of a task's border `[2 * REACH][w][F]`: the rows above the band, then those below;
/// none where a band is a whole image.
fn border(op: &StreamBlock) -> usize {
    if op.extent.h > Bands::new(op.extent).rows() {
        2 * REACH * op.extent.w * FEATURES
    } else {
        0
    }
}

/// The place of the first task's border in the shared part.
const BORDERS: usize = Packed::BACKWARD.next_multiple_of(LANES);

/// Workspace of the backward operation.
pub fn workspace(op: &StreamBlockBack) -> Workspace {
    let block = &op.forward;
    let columns = Strip::row_columns(block.extent.w, MARGIN);
    let tasks = Bands::new(block.extent).tasks();
    Workspace {
        shared: BORDERS + tasks * border(block),
        partial: Sums::LEN,
        tasks,
        scratch: Rows::floats(columns)
            + Ring::<3, GROUPS>::floats(columns)
            + Ring::<{ 2 * REACH + 1 }, 2>::floats(columns)
            + Ring::<1, 1>::floats(columns)
            + PIECE * (HIDDEN + GROUPS * GROUP + FEATURES),
    }
}

struct Backward<'a> {
    op: &'a StreamBlock,
    parts: WorkspaceParts,
    bands: Bands,
    /// This and the gradients: `[N, h, w, F]`.
    input: SharedPtr<f32>,
    d_output: SharedPtr<f32>,
    d_input: SharedPtr<f32>,
}

/// One strip of the band of a backward task, and its memory.
struct StripOfBand<'a> {
    task: &'a Backward<'a>,
    /// First row.
    start: usize,
    /// The row after the last one.
    end: usize,
    rows: Rows,
    /// Gradient with respect to the output of `gate`.
    d_gate: Ring<3, GROUPS>,
    /// Gradient with respect to the output of dw1, then of dw3.
    d_dw: Ring<{ 2 * REACH + 1 }, 2>,
    /// A row of zeros, for the rows of `d_dw` outside the band.
    zeros: Ring<1, 1>,
    /// A piece of dm, then of m, `[PIECE, E]`.
    m: *mut f32,
    /// A piece of the gradient with respect to p, `[group][PIECE][GROUP]`.
    d_p: *mut f32,
    /// A piece of the gradient with respect to t, `[PIECE, F]`.
    d_t: *mut f32,
    /// The task's partial, laid out as [`Sums`].
    partial: SharedPtr<f32>,
    /// The task's border.
    border: *mut f32,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (w, h) = (self.op.extent.w, self.op.extent.h);
        let (image, start, end) = self.bands.task(task);
        let columns = Strip::row_columns(w, MARGIN);
        // SAFETY: rows `start..end` of `d_input`, the partial and the border are this task's, and
        // the scratch has room for the pieces by `workspace`. The rest is the contract of
        // `Task::run`.
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, Sums::LEN);
            let shared = self.parts.shared();
            let border = shared.at(BORDERS + task * border(self.op));
            for strip in Strip::all(w, MARGIN) {
                let mut scratch = self.parts.scratch().at(0);
                let rows = Rows {
                    weights: shared,
                    input: self.input,
                    image,
                    h,
                    strip,
                    reach: REACH_P,
                    x: Ring::take(&mut scratch, columns),
                    u: Ring::take(&mut scratch, columns),
                    t: Ring::take(&mut scratch, columns),
                    p: Ring::take(&mut scratch, columns),
                };
                let part = StripOfBand {
                    task: self,
                    start,
                    end,
                    rows,
                    d_gate: Ring::take(&mut scratch, columns),
                    d_dw: Ring::take(&mut scratch, columns),
                    zeros: Ring::take(&mut scratch, columns),
                    m: scratch,
                    d_p: scratch.add(PIECE * HIDDEN),
                    d_t: scratch.add(PIECE * (HIDDEN + GROUPS * GROUP)),
                    partial,
                    border,
                };
                part.run::<S>();
            }
            S::fence();
        }
    }
}

impl StripOfBand<'_> {
    /// Runs all steps over the rows of the strip.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose strip this is.
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let (start, end, reach) = (self.start as isize, self.end as isize, REACH as isize);
        // SAFETY: each step finds the rows that it needs in the rings: `gate` those of p beside its
        // own, the gradient of p those of the gate's gradient beside its own, and the gradient of
        // the input REACH rows of `d_dw` on each side. The rest is the caller's contract.
        unsafe {
            self.zeros
                .row(0, 0)
                .write_bytes(0, self.zeros.columns * GROUP);
            for row in start - 2 - reach..start - 2 + reach {
                self.rows.load(row);
            }
            for row in start - 2..end + 2 + 2 * reach {
                if row < end + 2 {
                    self.rows.fill::<S>(row);
                }
                if row >= start && row < end + 2 {
                    self.gate_gradient::<S>(row - 1);
                }
                if row >= start + 2 && row < end + 2 {
                    self.projected_gradient::<S>(row - 2);
                }
                let row = row - 2 - reach;
                if row >= start - reach && row >= 0 && row < self.rows.h as isize {
                    self.input_gradient::<S>(row as usize);
                }
            }
        }
    }

    /// The columns of a piece that are the strip's own: (number of columns before them, number).
    #[inline(always)]
    fn own(&self, (c, n): (usize, usize)) -> (usize, usize) {
        let strip = self.rows.strip;
        let (from, to) = (c.max(strip.start), (c + n).min(strip.end));
        (from - c, to.saturating_sub(from))
    }

    /// Computes a row of the gradient with respect to the gate's output; zeros for a row outside
    /// the image. For a row of the band, also adds the gradients of `out` and `gate` to the
    /// partial.
    ///
    /// # Safety
    /// As [`StripOfBand::run`]; the rows of p around `row` are in the ring.
    #[inline(always)]
    unsafe fn gate_gradient<S: Simd>(&self, row: isize) {
        let Rows {
            strip, h, weights, ..
        } = self.rows;
        let (columns, partial) = (strip.columns(REACH_GATE), self.partial);
        // SAFETY: rows have room for the reach and one column more, the pieces for PIECE pixels,
        // and `backward` packed the weights; the rest is the caller's contract
        unsafe {
            if row < 0 || row >= h as isize {
                self.d_gate.clear(row, strip, columns, 1);
                return;
            }
            let in_band = row >= self.start as isize && row < self.end as isize;
            for (c, n) in pieces(columns) {
                let (before, own) = self.own((c, n));
                let at = ((self.rows.image * h + row as usize) * strip.w + c) * FEATURES;
                let d_out = self.task.d_output.at(at).cast_const();
                row_product::<S, FEATURES>(&RowProduct {
                    rows: &[d_out],
                    stride: FEATURES,
                    taps: FEATURES,
                    weights: weights.at(Packed::OUT),
                    lanes: HIDDEN,
                    start: RowStart::Bias(weights.at(Packed::ZEROS)),
                    out: self.m,
                    w: n,
                    non_temporal: false,
                });
                for group in 0..GROUPS {
                    let around = self.rows.p.around(row, 1, group, strip.at(c, 1));
                    let d_gate = self.d_gate.row(row, group).add(strip.at(c, 0));
                    let taps = Taps {
                        rows: around,
                        weights: weights.at(Packed::GATE + group * TAPS),
                    };
                    let gate = Gate {
                        taps,
                        bias: weights.at(Packed::GATE_BIAS + group * GROUP),
                        m: self.m.add(group * LANES),
                    };
                    row_gate_back::<S>(gate, n, d_gate);
                    if in_band && own > 0 {
                        let around = around.map(|row| row.add(before * GROUP));
                        let d_gate = d_gate.add(before * GROUP);
                        let sum = partial.at(Sums::GATE + group * TAPS);
                        row_taps_outer::<S, 1>(around, d_gate, own, sum);
                        let sum = partial.at(Sums::GATE_BIAS + group * GROUP);
                        row_sum::<S>(d_gate, GROUP, own, sum);
                    }
                }
                if in_band && own > 0 {
                    let d_out = d_out.add(before * FEATURES);
                    let (m, sum) = (self.m.add(before * HIDDEN), partial.at(Sums::PRODUCT));
                    row_outer::<S>(d_out, FEATURES, FEATURES, m, HIDDEN, own, sum);
                    row_sum::<S>(d_out, FEATURES, own, partial.at(Sums::D_OUTPUT));
                }
            }
            self.d_gate.pad(row, strip, columns, 1);
        }
    }

    /// Computes a row of the gradients with respect to the outputs of dw1 and dw3, and adds the
    /// gradients of `proj`, `fuse`, dw1 and dw3 to the partial.
    ///
    /// # Safety
    /// As [`StripOfBand::run`]; `row` is a row of the band, and the rows of the gate's gradient
    /// around it are in the ring.
    #[inline(always)]
    unsafe fn projected_gradient<S: Simd>(&self, row: isize) {
        let Rows { strip, weights, .. } = self.rows;
        let columns = strip.columns(REACH_DW);
        // SAFETY: as in `gate_gradient`
        unsafe {
            for (c, n) in pieces(columns) {
                self.d_p_piece::<S>(row, (c, n));
                let groups: [*const f32; GROUPS] =
                    std::array::from_fn(|g| self.d_p.add(g * PIECE * GROUP).cast_const());
                let product = RowProduct {
                    rows: &groups,
                    stride: GROUP,
                    taps: GROUP,
                    weights: weights.at(Packed::PROJ_TRANSPOSED),
                    lanes: FEATURES,
                    start: RowStart::Bias(weights.at(Packed::ZEROS)),
                    out: self.d_t,
                    w: n,
                    non_temporal: false,
                };
                row_product::<S, GROUP>(&product);
                for half in [0, 1] {
                    row_product::<S, FEATURES>(&RowProduct {
                        rows: &[self.d_t.cast_const()],
                        stride: FEATURES,
                        taps: FEATURES,
                        weights: weights.at(Packed::FUSE_TRANSPOSED + half * SQUARE),
                        out: self.d_dw.row(row, half).add(strip.at(c, 0)),
                        ..product
                    });
                }
                self.add_first_layers::<S>(row, (c, n));
            }
            self.d_dw.pad(row, strip, columns, REACH);
        }
    }

    /// Computes a piece of the gradient with respect to p, and adds the gradient of `proj` to the
    /// partial.
    ///
    /// # Safety
    /// As [`StripOfBand::projected_gradient`].
    #[inline(always)]
    unsafe fn d_p_piece<S: Simd>(&self, row: isize, (c, n): (usize, usize)) {
        let Rows { strip, weights, .. } = self.rows;
        let (before, own) = self.own((c, n));
        // SAFETY: as in `gate_gradient`
        unsafe {
            let t = self.rows.t.row(row, 0).add(strip.at(c + before, 0));
            for group in 0..GROUPS {
                let taps = Taps {
                    rows: self.d_gate.around(row, 1, group, strip.at(c, 1)),
                    weights: weights.at(Packed::GATE_FLIPPED + group * TAPS),
                };
                let d_p = self.d_p.add(group * PIECE * GROUP);
                row_taps::<S, 1>(taps, weights.at(Packed::ZEROS), n, d_p);
                if own > 0 {
                    let d_p = d_p.add(before * GROUP);
                    let sum = self.partial.at(Sums::PROJ + group * SQUARE);
                    row_outer::<S>(t, FEATURES, FEATURES, d_p, GROUP, own, sum);
                    let sum = self.partial.at(Sums::PROJ_BIAS + group * GROUP);
                    row_sum::<S>(d_p, GROUP, own, sum);
                }
            }
        }
    }

    /// Adds a piece's gradients of `fuse`, dw1 and dw3 to the partial.
    ///
    /// # Safety
    /// As [`StripOfBand::projected_gradient`]; the piece of dt and its row of `d_dw` are computed.
    #[inline(always)]
    unsafe fn add_first_layers<S: Simd>(&self, row: isize, (c, n): (usize, usize)) {
        let (strip, partial) = (self.rows.strip, self.partial);
        let (before, own) = self.own((c, n));
        if own == 0 {
            return;
        }
        // SAFETY: as in `gate_gradient`
        unsafe {
            let at = strip.at(c + before, 0);
            let d_t = self.d_t.add(before * FEATURES);
            row_sum::<S>(d_t, FEATURES, own, partial.at(Sums::FUSE_BIAS));
            for half in [0, 1] {
                let u = self.rows.u.row(row, half).add(at);
                let sum = partial.at(Sums::FUSE + half * SQUARE);
                row_outer::<S>(u, GROUP, GROUP, d_t, FEATURES, own, sum);
                let d_dw = self.d_dw.row(row, half).add(at);
                let distance = [1, REACH][half];
                let x = self.rows.x;
                let x = x.around(row, distance as isize, 0, strip.at(c + before, distance));
                let sum = partial.at(Sums::DW + half * TAPS);
                if half == 0 {
                    row_taps_outer::<S, 1>(x, d_dw, own, sum);
                } else {
                    row_taps_outer::<S, REACH>(x, d_dw, own, sum);
                }
                let sum = partial.at(Sums::DW_BIAS + half * FEATURES);
                row_sum::<S>(d_dw, GROUP, own, sum);
            }
        }
    }

    /// Writes row `y` of the gradient with respect to the input, or the band's part of it to the
    /// border if the row is another band's.
    ///
    /// # Safety
    /// As [`StripOfBand::run`]; `y` is a row of the image at most REACH rows from the band, and the
    /// rows of `d_dw` around it that are the band's are in the ring.
    #[inline(always)]
    unsafe fn input_gradient<S: Simd>(&self, y: usize) {
        let Rows {
            strip, h, weights, ..
        } = self.rows;
        // SAFETY: as in `gate_gradient`; a pixel is F = 32 values, so pixels begin at multiples of
        // 64 bytes
        unsafe {
            for (c, n) in pieces((strip.start, strip.end)) {
                let taps = |half: usize, distance: usize| Taps {
                    rows: [0, distance, 2 * distance].map(|d| {
                        let row = (y + d) as isize - distance as isize;
                        let in_band = row >= self.start as isize && row < self.end as isize;
                        let row = if in_band {
                            self.d_dw.row(row, half)
                        } else {
                            self.zeros.row(0, 0)
                        };
                        row.add(strip.at(c, distance)).cast_const()
                    }),
                    weights: weights.at(Packed::DW_FLIPPED + half * TAPS),
                };
                let at = ((self.rows.image * h + y) * strip.w + c) * FEATURES;
                let in_band = y >= self.start && y < self.end;
                let (d_output, out) = if in_band {
                    let d_output = self.task.d_output.at(at).cast_const();
                    (Some(d_output), self.task.d_input.at(at))
                } else {
                    let row = if y < self.start {
                        y + REACH - self.start
                    } else {
                        y + REACH - self.end
                    };
                    let at = (row * strip.w + c) * FEATURES;
                    (None, self.border.add(at))
                };
                let gradient = InputGradient {
                    dw1: taps(0, 1),
                    dw3: taps(1, REACH),
                    d_output,
                    out,
                    non_temporal: in_band && exceeds_cache(self.task.op.extent, FEATURES),
                };
                row_input_gradient::<S>(gradient, n);
            }
        }
    }
}

/// Adds the borders of the neighbours to the rows of a band.
struct AddBorders<'a>(&'a Backward<'a>);

impl Task for AddBorders<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Backward {
            op, parts, bands, ..
        } = *self.0;
        let (len, h, shared) = (op.extent.w * FEATURES, op.extent.h, parts.shared());
        let (image, start, end) = bands.task(task);
        // SAFETY: rows `start..end` of `d_input` are this task's. A band above or below has written
        // the rows of its border that are in the image, and those within REACH of it are this
        // band's: all bands but an image's last have more rows. The rest is the contract of
        // `Task::run`.
        unsafe {
            let border_row = |task: usize, row: usize| {
                let border = BORDERS + task * border(op);
                shared.at(border + row * len).cast_const()
            };
            if start > 0 {
                for y in start..end.min(start + REACH) {
                    let to = self.0.d_input.at((image * h + y) * len);
                    add_row::<S>(border_row(task - 1, REACH + y - start), len, to);
                }
            }
            if end < h {
                for y in end - REACH..end {
                    let to = self.0.d_input.at((image * h + y) * len);
                    add_row::<S>(border_row(task + 1, y + REACH - end), len, to);
                }
            }
        }
    }
}

/// Runs the backward operation.
pub fn backward(ctx: &Context<'_>, op: &StreamBlockBack) {
    let block = &op.forward;
    let parts = ctx.parts(op.workspace, workspace(op));
    pack(ctx, block, parts, true);
    let bands = Bands::new(block.extent);
    let task = Backward {
        op: block,
        parts,
        bands,
        input: ctx.floats(block.input),
        d_output: ctx.floats(op.d_output),
        d_input: ctx.floats(op.d_input),
    };
    ctx.parallel(bands.tasks(), &task);
    if border(block) > 0 {
        ctx.parallel(bands.tasks(), &AddBorders(&task));
    }
    if ctx.reduce(parts, op.slice) {
        store_gradients(ctx, op, parts);
    }
}

/// Stores the gradients of all parameters from the sums over the micro-batch.
fn store_gradients(ctx: &Context<'_>, op: &StreamBlockBack, parts: WorkspaceParts) {
    let (block, params) = (&op.forward, &op.forward.params);
    // SAFETY: the tasks have finished, and the sums hold as many values as a partial
    let sum = unsafe { parts.sums().view(0, Sums::LEN) };
    let get = |range: ParamRange| -> &[f32] {
        // SAFETY: the ranges lie inside the parameters, which nothing writes now
        unsafe { ctx.param(block.parameters, range).view(0, range.len) }
    };
    let store = |range: ParamRange, value: &dyn Fn(usize) -> f32| {
        ctx.store_gradient(op.gradients, range, value);
    };
    for (i, [weight, bias]) in [params.dw1, params.dw3].into_iter().enumerate() {
        store(weight, &|k| {
            sum[Sums::DW + i * TAPS + k % 9 * GROUP + k / 9]
        });
        store(bias, &|f| sum[Sums::DW_BIAS + i * FEATURES + f]);
    }
    store(params.fuse[0], &|i| {
        let (output, input) = (i / (2 * FEATURES), i % (2 * FEATURES));
        sum[Sums::FUSE + input * FEATURES + output]
    });
    store(params.fuse[1], &|f| sum[Sums::FUSE_BIAS + f]);
    store(params.proj[0], &|i| {
        let (place, f) = (place(i / FEATURES), i % FEATURES);
        sum[Sums::PROJ + place / GROUP * SQUARE + f * GROUP + place % GROUP]
    });
    store(params.proj[1], &|i| sum[Sums::PROJ_BIAS + place(i)]);
    store(params.gate[0], &|i| {
        let (place, tap) = (place(i / 9), i % 9);
        sum[Sums::GATE + place / GROUP * TAPS + tap * GROUP + place % GROUP]
    });
    store(params.gate[1], &|i| sum[Sums::GATE_BIAS + place(i)]);
    let (gamma, weight, bias) = (get(params.gamma), get(params.out[0]), get(params.out[1]));
    store(params.out[0], &|i| {
        gamma[i / HIDDEN] * sum[Sums::PRODUCT + i]
    });
    store(params.out[1], &|f| gamma[f] * sum[Sums::D_OUTPUT + f]);
    // d gamma = sum of d output x (out(m) + bias). The sums contain every product of it.
    store(params.gamma, &|f| {
        let products: f64 = (f * HIDDEN..(f + 1) * HIDDEN)
            .map(|k| f64::from(weight[k]) * f64::from(sum[Sums::PRODUCT + k]))
            .sum();
        (products + f64::from(bias[f]) * f64::from(sum[Sums::D_OUTPUT + f])) as f32
    });
}
