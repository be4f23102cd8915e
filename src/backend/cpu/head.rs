//! The last step at HR and its gradients: `base(x) + gain * conv_out(u)`. The base is computed band by band and never stored.
//! Depends on the row kernels and the base.

use super::arena::Shared;
use super::base::{self, Unit};
use super::pixels::subtract_row;
use super::rows::{RowProduct, Start, pad_row, row_outer, row_product, row_sum, row_to_rgb};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, whole};
use crate::plan::{Head, HeadBack};
use std::ops::Range;

/// f32 elements that a [`BaseBand`] works in.
pub(super) fn base_scratch(op: &Head) -> usize {
    let (rows, w, wide) = (Bands::new(op.extent).rows(), op.extent.w, op.extent.w * op.scale);
    whole(wide * 3) + 2 * whole(base::prepared(rows, w)) + whole(base::scratch(rows, w)) + whole(base::line(w, op.scale))
}

/// The base of a band of LQ rows, row by row at HR; less the target, where one is to be subtracted.
pub(super) struct BaseBand<'a> {
    op: &'a Head,
    image: usize,
    /// HR row of the band's first.
    first: usize,
    plain: &'a mut [f32],
    added: &'a mut [f32],
    line: &'a mut [f32],
    sharpening: &'a mut [f32],
    bytes: Shared<u8>,
}

impl<'a> BaseBand<'a> {
    /// Prepares the band's rows of `input` in `scratch`, of [`base_scratch`] elements.
    ///
    /// # Safety
    /// The buffers must be those of the running plan, and the scratch nobody else's.
    #[inline(always)]
    pub unsafe fn new(
        op: &'a Head,
        input: Shared<f32>,
        bytes: Shared<u8>,
        image: usize,
        rows: Range<usize>,
        scratch: Shared<f32>,
    ) -> BaseBand<'a> {
        let Head { extent, scale, alpha, .. } = *op;
        let mut at = 0;
        let mut take = |len: usize| {
            at += whole(len);
            // SAFETY: inside the scratch; the pieces do not overlap
            unsafe { scratch.slice(at - whole(len), len) }
        };
        let prepared = base::prepared(rows.len(), extent.w);
        let (sharpening, plain, added) = (take(extent.w * scale * 3), take(prepared), take(prepared));
        let (work, line) = (take(base::scratch(rows.len(), extent.w)), take(base::line(extent.w, scale)));
        // SAFETY: a whole image inside its buffer
        let lq = unsafe { input.slice(image * extent.h * extent.w * 3, extent.h * extent.w * 3) };
        let unit = if op.target.is_some() { Unit::Level } else { Unit::One };
        base::prepare(lq, extent, (alpha, unit), rows.clone(), work, plain, added);
        if op.target.is_none() {
            plain.iter_mut().zip(&*added).for_each(|(p, &a)| *p += a);
        }
        BaseBand { op, image, first: rows.start * scale, plain, added, line, sharpening, bytes }
    }

    /// HR row `y` of the picture, `[W][3]`.
    ///
    /// # Safety
    /// As [`BaseBand::new`].
    #[inline(always)]
    pub unsafe fn row(&mut self, y: usize, out: &mut [f32]) {
        let Head { extent, scale, .. } = *self.op;
        base::upsample(self.plain, extent.w, scale, y - self.first, self.line, out);
        if let Some(batch) = self.op.target {
            // SAFETY: the patch lies in the staged batch
            unsafe {
                let (patch, code) = (self.bytes.at(batch.hr_of(self.image)), *self.bytes.at(batch.augment_of(self.image)));
                subtract_row(patch, code, y, (extent.h * scale, extent.w * scale), out);
            }
            // the exact part has done its work: what is left is small, and f32 keeps it well
            base::upsample(self.added, extent.w, scale, y - self.first, self.line, self.sharpening);
            out.iter_mut().zip(&*self.sharpening).for_each(|(b, &s)| *b = (*b + s) / 255.0);
        }
    }
}

/// Workspace of the forward operation.
pub fn workspace(op: &Head) -> Workspace {
    let wide = op.extent.w * op.scale;
    Workspace {
        shared: 27 * op.features,
        scratch: 3 * whole((wide + 2) * op.features) + 2 * whole(wide * 3) + base_scratch(op),
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Head,
    parts: Parts,
    bands: Bands,
    bias: [f32; 3],
    gain: f32,
    input: Shared<f32>,
    features: Shared<f32>,
    output: Shared<f32>,
    /// The staged batch, where a target is subtracted.
    bytes: Shared<u8>,
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Head { extent, scale, features: f, .. } = *self.op;
        let (hh, ww) = (extent.h * scale, extent.w * scale);
        let (image, start, end) = self.bands.task(task);
        let ring = whole((ww + 2) * f);
        unsafe {
            let scratch = self.parts.scratch();
            let slot = |row: isize| scratch.at((row + 1) as usize % 3 * ring);
            let row_len = whole(ww * 3);
            let (detail, base_row) = (scratch.slice(3 * ring, ww * 3), scratch.slice(3 * ring + row_len, ww * 3));
            let room = Shared::new(scratch.at(3 * ring + 2 * row_len));
            let mut base = BaseBand::new(self.op, self.input, self.bytes, image, start..end, room);
            let load = |row: isize| {
                let inside = row >= 0 && row < hh as isize;
                let source = inside.then(|| self.features.at((image * hh + row as usize) * ww * f).cast_const());
                pad_row(source, f, ww * f, slot(row));
            };
            let (first, last) = (start * scale, end * scale);
            load(first as isize - 1);
            load(first as isize);
            for y in first..last {
                let row = y as isize;
                load(row + 1);
                let around = [slot(row - 1).cast_const(), slot(row).cast_const(), slot(row + 1).cast_const()];
                row_to_rgb::<S>(around, self.parts.shared().at(0), self.bias, f, ww, detail.as_mut_ptr());
                base.row(y, base_row);
                let out = self.output.slice((image * hh + y) * ww * 3, ww * 3);
                for ((out, &b), &d) in out.iter_mut().zip(&*base_row).zip(&*detail) {
                    *out = b + self.gain * d;
                }
            }
        }
    }
}

/// Runs the head.
pub fn forward(ctx: &Context<'_>, op: &Head) {
    let parts = ctx.parts(op.workspace, workspace(op));
    let f = op.features;
    // SAFETY: parameters and workspace are live; nothing else runs yet
    let (bias, gain) = unsafe {
        let weight = ctx.param(op.parameters, op.weight).slice(0, op.weight.len);
        let pack = parts.shared().slice(0, 27 * f);
        for (i, out) in pack.iter_mut().enumerate() {
            let (c, o, tap) = (i % f, i / f % 3, i / f / 3);
            *out = weight[(o * f + c) * 9 + tap];
        }
        let bias = ctx.param(op.parameters, op.bias);
        (std::array::from_fn(|o| *bias.at(o)), *ctx.param(op.parameters, op.gain).at(0))
    };
    let bands = Bands::new(op.extent);
    let task = Forward {
        op,
        parts,
        bands,
        bias,
        gain,
        input: ctx.floats(op.input),
        features: ctx.floats(op.features_in),
        output: ctx.floats(op.output),
        bytes: op.target.map_or(Shared::new(std::ptr::null_mut()), |batch| ctx.pointer(batch.buffer)),
    };
    ctx.parallel(bands.tasks(), &task);
}

/// Lanes over which column sums of interleaved RGB are formed: a multiple of both 3 and the vector.
const RGB_LANES: usize = 3 * LANES;

/// Workspace of the backward operation.
pub fn workspace_back(op: &HeadBack) -> Workspace {
    let head = &op.forward;
    let wide = head.extent.w * head.scale;
    Workspace {
        shared: 27 * head.features + head.features,
        partial: 27 * head.features + RGB_LANES,
        tasks: Bands::new(head.extent).tasks(),
        scratch: 3 * whole((wide + 2) * 3),
    }
}

struct Backward<'a> {
    op: &'a Head,
    parts: Parts,
    bands: Bands,
    features: Shared<f32>,
    d_output: Shared<f32>,
    d_features: Shared<f32>,
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Head { extent, scale, features: f, .. } = *self.op;
        let (hh, ww) = (extent.h * scale, extent.w * scale);
        let (image, start, end) = self.bands.task(task);
        unsafe {
            let partial = self.parts.partial(task);
            partial.at(0).write_bytes(0, 27 * f + RGB_LANES);
            let ring_len = whole((ww + 2) * 3);
            let ring = self.parts.scratch();
            let slot = |row: isize| ring.at((row + 1) as usize % 3 * ring_len);
            let load = |row: isize| {
                let inside = row >= 0 && row < hh as isize;
                let source = inside.then(|| self.d_output.at((image * hh + row as usize) * ww * 3).cast_const());
                pad_row(source, 3, ww * 3, slot(row));
            };
            let (first, last) = (start * scale, end * scale);
            load(first as isize - 1);
            load(first as isize);
            for y in first..last {
                let row = y as isize;
                load(row + 1);
                let around = [slot(row - 1).cast_const(), slot(row).cast_const(), slot(row + 1).cast_const()];
                let at = (image * hh + y) * ww * f;
                let u = self.features.at(at).cast_const();
                for (k, &d) in around.iter().enumerate() {
                    row_outer::<S>(d, 3, 9, u, f, ww, partial.at(k * 9 * f));
                }
                let d_row = around[1].add(3);
                row_sum::<S>(d_row, RGB_LANES, ww / LANES, partial.at(27 * f));
                for i in ww / LANES * RGB_LANES..ww * 3 {
                    *partial.at(27 * f + i % 3) += *d_row.add(i);
                }
                row_product::<S, 3>(&RowProduct {
                    rows: &around,
                    stride: 3,
                    taps: 9,
                    weights: self.parts.shared().at(0),
                    lanes: f,
                    start: Start::Bias(self.parts.shared().at(27 * f)),
                    out: self.d_features.at(at),
                    w: ww,
                    far: false,
                });
            }
        }
    }
}

/// Runs the head's gradients.
pub fn backward(ctx: &Context<'_>, op: &HeadBack) {
    let head = &op.forward;
    let f = head.features;
    let parts = ctx.parts(op.workspace, workspace_back(op));
    // SAFETY: parameters and workspace are live; nothing else runs yet
    let (weight, bias, gain) = unsafe {
        let get = |range: crate::plan::ParamRange| &*ctx.param(head.parameters, range).slice(0, range.len);
        let (weight, bias, gain) = (get(head.weight), get(head.bias), get(head.gain)[0]);
        let pack = parts.shared().slice(0, 28 * f);
        pack.fill(0.0);
        for (i, out) in pack[..27 * f].iter_mut().enumerate() {
            let (c, o, tap) = (i % f, i / f % 3, i / f / 3);
            *out = gain * weight[(o * f + c) * 9 + 8 - tap];
        }
        (weight, bias, gain)
    };
    let bands = Bands::new(head.extent);
    let task = Backward {
        op: head,
        parts,
        bands,
        features: ctx.floats(head.features_in),
        d_output: ctx.floats(op.d_output),
        d_features: ctx.floats(op.d_features),
    };
    ctx.parallel(bands.tasks(), &task);
    if let Some(d_input) = op.d_input {
        base::backward_batch(ctx.floats(op.d_output), head.extent, head.scale, head.alpha, ctx.floats(d_input));
    }
    if !ctx.reduce(parts, op.slice) {
        return;
    }
    // SAFETY: the sums are complete
    let sums = unsafe { &*parts.sums().slice(0, 27 * f + RGB_LANES) };
    // d output against features: [ky][kx][o][c], with taps counted from the output's side, so turned by 180 degrees
    let product = |i: usize| {
        let (tap, c, o) = (i % 9, i / 9 % f, i / 9 / f);
        sums[((8 - tap) * 3 + o) * f + c]
    };
    let d_sum = |o: usize| -> f32 { (o..RGB_LANES).step_by(3).map(|i| f64::from(sums[27 * f + i])).sum::<f64>() as f32 };
    ctx.store_gradient(op.gradients, head.weight, |i| gain * product(i));
    ctx.store_gradient(op.gradients, head.bias, |o| gain * d_sum(o));
    // d gain = sum of d output x conv_out(u), and the products above hold every term of it
    ctx.store_gradient(op.gradients, head.gain, |_| {
        let products: f64 = weight.iter().enumerate().map(|(i, &w)| f64::from(w) * f64::from(product(i))).sum();
        let biases: f64 = bias.iter().enumerate().map(|(o, &b)| f64::from(b) * f64::from(d_sum(o))).sum();
        (products + biases) as f32
    });
}
