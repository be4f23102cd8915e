//! The last step at HR and its gradients: `base(x) + gain * conv_out(u)`. The base is computed band by band and never stored.
//! Depends on the row kernels and the base.

use super::arena::Shared;
use super::base::{self, Unit};
use super::pixels::subtract_row;
use super::rows::{RowProduct, Start, pad_row, row_outer, row_product, row_sum, row_to_rgb};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Parts, Task, Workspace, whole};
use crate::plan::{Head, HeadBack};

/// Pieces of a thread's scratch, f32 elements: the ring of padded feature rows, three HR rows, the prepared LQ rows and what it takes to
/// make and use them.
struct Layout {
    ring: usize,
    row: usize,
    prepared: usize,
    scratch: usize,
    line: usize,
}

fn layout(op: &Head) -> Layout {
    let (rows, w, wide) = (Bands::new(op.extent).rows(), op.extent.w, op.extent.w * op.scale);
    Layout {
        ring: whole((wide + 2) * op.features),
        row: whole(wide * 3),
        prepared: whole(base::prepared(rows, w)),
        scratch: whole(base::scratch(rows, w)),
        line: whole(base::line(w, op.scale)),
    }
}

/// Workspace of the forward operation.
pub fn workspace(op: &Head) -> Workspace {
    let l = layout(op);
    Workspace { shared: 27 * op.features, scratch: 3 * l.ring + 3 * l.row + 2 * l.prepared + l.scratch + l.line, ..Workspace::default() }
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
        let Head { extent, scale, features: f, alpha, .. } = *self.op;
        let (hh, ww) = (extent.h * scale, extent.w * scale);
        let (image, start, end) = self.bands.task(task);
        let l = layout(self.op);
        unsafe {
            let scratch = self.parts.scratch();
            let slot = |row: isize| scratch.at((row + 1) as usize % 3 * l.ring);
            let mut at = 3 * l.ring;
            let mut take = |len: usize, used: usize| {
                at += len;
                scratch.slice(at - len, used)
            };
            let [detail, base, sharpening] = [take(l.row, ww * 3), take(l.row, ww * 3), take(l.row, ww * 3)];
            let prepared = base::prepared(end - start, extent.w);
            let [plain, added] = [take(l.prepared, prepared), take(l.prepared, prepared)];
            let (base_scratch, line) = (take(l.scratch, base::scratch(end - start, extent.w)), take(l.line, base::line(extent.w, scale)));
            let lq = self.input.slice(image * extent.h * extent.w * 3, extent.h * extent.w * 3);
            let unit = if self.op.target.is_some() { Unit::Level } else { Unit::One };
            base::prepare(lq, extent, (alpha, unit), start..end, base_scratch, plain, added);
            if self.op.target.is_none() {
                plain.iter_mut().zip(&*added).for_each(|(p, &a)| *p += a);
            }
            let load = |row: isize| {
                let inside = row >= 0 && row < hh as isize;
                let source = inside.then(|| self.features.at((image * hh + row as usize) * ww * f).cast_const());
                pad_row(source, f, ww, slot(row));
            };
            let (first, last) = (start * scale, end * scale);
            load(first as isize - 1);
            load(first as isize);
            for y in first..last {
                let row = y as isize;
                load(row + 1);
                let around = [slot(row - 1).cast_const(), slot(row).cast_const(), slot(row + 1).cast_const()];
                row_to_rgb::<S>(around, self.parts.shared().at(0), self.bias, f, ww, detail.as_mut_ptr());
                base::upsample(plain, extent.w, scale, y - first, line, base);
                if let Some(batch) = self.op.target {
                    let (patch, code) = (self.bytes.at(batch.hr_of(image)), *self.bytes.at(batch.augment_of(image)));
                    subtract_row(patch, code, y, (hh, ww), base);
                    // the exact part has done its work: what is left is small, and f32 keeps it well
                    base::upsample(added, extent.w, scale, y - first, line, sharpening);
                    base.iter_mut().zip(&*sharpening).for_each(|(b, &s)| *b = (*b + s) / 255.0);
                }
                let out = self.output.slice((image * hh + y) * ww * 3, ww * 3);
                for ((out, &b), &d) in out.iter_mut().zip(&*base).zip(&*detail) {
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
                pad_row(source, 3, ww, slot(row));
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
        let (lq, hr) = (head.extent.h * head.extent.w * 3, head.extent.h * head.extent.w * 3 * head.scale * head.scale);
        for image in 0..head.extent.n {
            // SAFETY: whole images inside their buffers
            let (d_out, d_in) = unsafe { (&*ctx.floats(op.d_output).slice(image * hr, hr), ctx.floats(d_input).slice(image * lq, lq)) };
            base::backward(d_out, head.extent, head.scale, head.alpha, d_in);
        }
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
