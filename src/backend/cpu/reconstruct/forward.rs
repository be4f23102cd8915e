//! The forward operation: the folded convolution of a band of LQ rows, the base added at HR, and
//! the contribution of border pixels subtracted.

use super::super::arena::SharedPtr;
use super::super::base::{BaseBand, base_scratch};
use super::super::border::{BorderPixels, MAX_FEATURES, shape};
use super::super::folded_conv::TAPS;
use super::super::padded_rows::PaddedRows;
use super::super::rows::{RowProduct, RowStart, row_product};
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Bands, Context, Task, Workspace, WorkspaceParts, round_up_to_lanes};
use super::super::tiling::{ImageRows, TileRow, convolution_scratch, convolve_tiles, pack};
use super::pack::{Packed, Parameters, pack_parameters, padded_lanes};
use super::{OUT, bands, winograd};
use crate::plan::Reconstruct;

/// Workspace of the forward operation.
pub fn workspace(op: &Reconstruct) -> Workspace {
    let Reconstruct {
        extent,
        features: f,
        scale,
        ..
    } = *op;
    let rows = if winograd(op) {
        convolution_scratch(f)
    } else {
        PaddedRows::<TAPS>::floats(extent.w, f)
    };
    Workspace {
        shared: Packed::new(op, false).len,
        scratch: OUT * extent.w * padded_lanes(op)
            + round_up_to_lanes(extent.w * scale * 3)
            + base_scratch(op)
            + rows,
        ..Workspace::default()
    }
}

struct Forward<'a> {
    op: &'a Reconstruct,
    parts: WorkspaceParts,
    bands: Bands,
    parameters: Parameters<'a>,
    /// `[N, h, w, 3]`
    input: SharedPtr<f32>,
    /// `[N, h, w, F]`
    features: SharedPtr<f32>,
    /// `[N, H, W, 3]`
    output: SharedPtr<f32>,
    /// The staged batch; null without a target.
    bytes: SharedPtr<u8>,
}

impl Forward<'_> {
    /// The folded convolution of up to two LQ rows from `y` on, `[row][w][lane]`, in Winograd's
    /// form.
    ///
    /// # Safety
    /// As [`Task::run`] of a task whose rows end at `end`. `scratch` has room for
    /// [`convolution_scratch`] values, `detail` for the rows.
    #[inline(always)]
    unsafe fn tiled<S: Simd>(
        &self,
        image: usize,
        y: usize,
        end: usize,
        scratch: *mut f32,
        detail: *mut f32,
    ) {
        let Reconstruct {
            extent,
            features: f,
            ..
        } = *self.op;
        let (p, lanes, w) = (Packed::new(self.op, false), padded_lanes(self.op), extent.w);
        // SAFETY: the features hold the image's rows, `forward` packed weights, bias and a row of
        // zeros, and features and padded lanes are multiples of 16; the rest is the caller's
        // contract
        unsafe {
            let shared = self.parts.shared();
            let source = ImageRows {
                source: self.features,
                zeros: shared.at(p.zeros),
                image,
                h: extent.h,
                w,
                c: f,
            };
            let row = |r: usize| detail.add(r * w * lanes);
            convolve_tiles::<S, OUT>(&TileRow {
                inputs: source.get(y as isize - 2, extent.h),
                c: f,
                depth: f,
                w,
                scratch,
                weights: shared.at(p.weights),
                bias: shared.at(p.bias),
                lanes,
                outputs: std::array::from_fn(|r| (y + r < end).then(|| row(r))),
                non_temporal: false,
            });
        }
    }

    /// The folded convolution of one LQ row, `[w][lane]`, in the direct form: its bits do not
    /// depend on where a tile of the image begins.
    ///
    /// # Safety
    /// As [`Task::run`]. `rows` are the padded rows around the LQ row, and `detail` has room for
    /// one row.
    #[inline(always)]
    unsafe fn without_winograd<S: Simd>(&self, rows: &[*const f32; TAPS], detail: *mut f32) {
        let Reconstruct {
            extent,
            features: f,
            ..
        } = *self.op;
        let p = Packed::new(self.op, false);
        // SAFETY: a padded row holds `w + 4` pixels, lanes are whole vectors, and `forward` packed
        // weights and bias for them; the rest is the caller's contract
        unsafe {
            let product = RowProduct {
                rows,
                stride: f,
                taps: TAPS * f,
                weights: self.parts.shared().at(p.weights),
                lanes: padded_lanes(self.op),
                start: RowStart::Bias(self.parts.shared().at(p.bias)),
                out: detail,
                w: extent.w,
                non_temporal: false,
            };
            match f {
                16 => row_product::<S, 16>(&product),
                _ => row_product::<S, 0>(&product),
            }
        }
    }

    /// Writes HR row `row` of an image: the base plus `detail`, `[w][lane]` from the lanes of that
    /// row on.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose row this is; `base_row` is a row long.
    #[inline(always)]
    unsafe fn add_base(
        &self,
        image: usize,
        row: usize,
        detail: &[f32],
        base: &mut BaseBand<'_>,
        base_row: &mut [f32],
    ) {
        let Reconstruct { extent, scale, .. } = *self.op;
        let (wide, lanes) = (extent.w * scale * 3, padded_lanes(self.op));
        // SAFETY: the row is this task's and lies inside the output
        let out = unsafe {
            base.row(row, base_row);
            self.output
                .slice((image * extent.h * scale + row) * wide, wide)
        };
        match scale {
            2 => add_detail::<6>(base_row, detail, lanes, out),
            3 => add_detail::<9>(base_row, detail, lanes, out),
            4 => add_detail::<12>(base_row, detail, lanes, out),
            _ => add_detail::<24>(base_row, detail, lanes, out),
        }
    }

    /// Subtracts the contribution of border pixels, which zero padding excludes, from HR rows
    /// `first..end`.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose rows these are.
    #[inline(always)]
    unsafe fn subtract_border<S: Simd>(&self, image: usize, first: usize, end: usize) {
        let Reconstruct {
            extent,
            features: f,
            scale,
            ..
        } = *self.op;
        let c = self.parameters.convolutions;
        let border = BorderPixels {
            op: self.op,
            convolutions: c,
            features: self.features,
            image,
        };
        for at in border.pixels(first as isize - 1, end as isize) {
            let mut u = [0.0; MAX_FEATURES];
            // SAFETY: rows `first..end` are this task's and `seen_by` gives pixels of the image.
            // Features are multiples of 16 up to MAX_FEATURES, so `u` has room for them, and
            // `conv_out` has 27 times as many weights.
            unsafe {
                border.features::<S>(at, u.as_mut_ptr());
                for (tap, row, column) in border
                    .seen_by(at)
                    .filter(|&(_, row, _)| row >= first && row < end)
                {
                    let out = self
                        .output
                        .at(((image * extent.h * scale + row) * extent.w * scale + column) * 3);
                    for o in 0..3 {
                        let mut sum = S::splat(0.0);
                        for lane in (0..f).step_by(LANES) {
                            let weight = S::load(c.out.as_ptr().add((tap * 3 + o) * f + lane));
                            sum = S::fma(weight, S::load(u.as_ptr().add(lane)), sum);
                        }
                        *out.add(o) -= self.parameters.gain * S::sum(sum);
                    }
                }
            }
        }
    }
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let Reconstruct {
            extent,
            features: f,
            scale,
            ..
        } = *self.op;
        let (w, lanes, wide) = (extent.w, padded_lanes(self.op), extent.w * scale * 3);
        let (image, start, end) = self.bands.task(task);
        // SAFETY: HR rows `start * scale..end * scale` of the output are this task's, and the
        // pieces of the scratch follow each other as in `workspace`. The rest is the contract of
        // `Task::run`.
        unsafe {
            let scratch = self.parts.scratch();
            let detail = scratch.at(0);
            let base_row = scratch.slice(OUT * w * lanes, wide);
            let base_room = OUT * w * lanes + round_up_to_lanes(wide);
            let mut base = BaseBand::new(
                self.op,
                self.input,
                self.bytes,
                image,
                start..end,
                SharedPtr::new(scratch.at(base_room)),
            );
            let room = scratch.at(base_room + base_scratch(self.op));
            let inputs = PaddedRows::<TAPS> {
                source: self.features,
                image,
                h: extent.h,
                w,
                c: f,
                ring: SharedPtr::new(room),
            };
            let direct = !winograd(self.op);
            if direct {
                (start as isize - 2..start as isize + 2).for_each(|row| inputs.load(row));
            }
            for y in (start..end).step_by(OUT) {
                let rows = OUT.min(end - y);
                if direct {
                    for r in 0..rows {
                        inputs.load((y + r) as isize + 2);
                        let around = inputs.around(y + r);
                        self.without_winograd::<S>(&around, detail.add(r * w * lanes));
                    }
                } else {
                    self.tiled::<S>(image, y, end, room, detail);
                }
                for (r, dy) in (0..rows).flat_map(|r| (0..scale).map(move |dy| (r, dy))) {
                    let detail = std::slice::from_raw_parts(
                        detail.add(r * w * lanes + dy * 3 * scale),
                        w * lanes - dy * 3 * scale,
                    );
                    self.add_base(image, (y + r) * scale + dy, detail, &mut base, base_row);
                }
            }
            self.subtract_border::<S>(image, start * scale, end * scale);
        }
    }
}

/// One HR row: `out[x][i] = base[x][i] + detail[x * stride + i]` for the N values of an LQ pixel in
/// that row.
#[inline(always)]
fn add_detail<const N: usize>(base: &[f32], detail: &[f32], stride: usize, out: &mut [f32]) {
    for ((out, base), detail) in out
        .chunks_exact_mut(N)
        .zip(base.chunks_exact(N))
        .zip(detail.chunks(stride))
    {
        for i in 0..N {
            out[i] = base[i] + detail[i];
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &Reconstruct) {
    let parts = ctx.parts(op.workspace, workspace(op));
    let (p, s, lanes, f) = (
        Packed::new(op, false),
        shape(op),
        padded_lanes(op),
        op.features,
    );
    let parameters = pack_parameters(ctx, op, parts, &p, |kernel, bias, gain| {
        // SAFETY: `pack_parameters` does not use these pieces of the workspace, and no task runs
        // yet
        let (biases, weights) = unsafe {
            (
                parts.shared().slice(p.bias, lanes),
                parts.shared().slice(p.weights, p.zeros - p.weights),
            )
        };
        biases.fill(0.0);
        biases
            .iter_mut()
            .zip(bias)
            .for_each(|(to, &b)| *to = (gain * b) as f32);
        let value = |lane: usize, tap: usize, ci: usize| match lane < s.lanes() {
            true => gain * kernel[(lane * TAPS * TAPS + tap) * f + ci],
            false => 0.0,
        };
        if !winograd(op) {
            for (i, to) in weights.iter_mut().enumerate() {
                *to = value(i % lanes, i / lanes / f, i / lanes % f) as f32;
            }
        } else {
            pack::<TAPS>(weights, f, lanes, |lane, ci, tap| value(lane, tap, ci));
        }
    });
    let bands = bands(op);
    let task = Forward {
        op,
        parts,
        bands,
        parameters,
        input: ctx.floats(op.input),
        features: ctx.floats(op.features_in),
        output: ctx.floats(op.output),
        bytes: op
            .target
            .map_or(SharedPtr::new(std::ptr::null_mut()), |batch| {
                ctx.pointer(batch.buffer)
            }),
    };
    ctx.parallel(bands.tasks(), &task);
}
