//! The Stream block in one pass forward and one backward. The rows between the steps stay in small
//! rings in the thread's scratch; only the block's input is read from memory, and the backward pass
//! recomputes the rest. A task works on a band of rows, one strip of columns after the other, so
//! that the rings fit into the second-level cache for images of any width. Depends on the row
//! kernels.

mod backward;
mod forward;
mod pack;
mod rows;
#[cfg(test)]
mod tests;

use super::arena::SharedPtr;
use super::operation::{CpuOperation, check_extent};
use super::rows::{RowProduct, RowStart, row_product};
use super::simd::{LANES, Simd};
use super::tasks::{Context, Workspace};
use crate::plan::{StreamBlock, StreamBlockBack};
use anyhow::{Result, ensure};
use pack::{Packed, TAPS};
use rows::{Taps, prefetch, row_taps};

/// Features F of a Stream block, a constant so that the inner loops are compiled for it.
const FEATURES: usize = 32;
/// Hidden channels E of a Stream block: those of m.
const HIDDEN: usize = 2 * FEATURES;
/// Channels of a group. The rows of a ring hold their channels in groups, each group's pixels
/// adjacent: with all 2E = 128 channels adjacent, the vectors that a depthwise convolution reads
/// would share an eighth of the first-level cache's sets.
const GROUP: usize = 2 * LANES;
/// Groups of the 2E channels of `proj` and `gate`.
const GROUPS: usize = 2 * HIDDEN / GROUP;
/// Pixels of a row that go through all steps at a time, so that the values between the steps stay
/// in the first-level cache.
const PIECE: usize = 64;
/// Most columns of a strip.
const STRIP: usize = 128;
/// Rows and columns that the two depthwise convolutions on x reach to each side.
const REACH: usize = 3;

/// The channel of `proj` and `gate` at a place of the groups: a group is 16 channels of a, then the
/// same 16 of b.
fn channel(place: usize) -> usize {
    let (group, lane) = (place / GROUP, place % GROUP);
    lane / LANES * HIDDEN + group * LANES + lane % LANES
}

/// The place in the groups of a channel of `proj` and `gate`: the inverse of [`channel`].
fn place(channel: usize) -> usize {
    let (half, c) = (channel / HIDDEN, channel % HIDDEN);
    c / LANES * GROUP + half * LANES + c % LANES
}

/// Columns `start..end` of an image of `w` columns, with which the rows of rings are indexed.
#[derive(Clone, Copy)]
struct Strip {
    start: usize,
    end: usize,
    w: usize,
    /// Columns that every row has on each side of the strip.
    margin: usize,
}

impl Strip {
    /// The strips of an image, as equal as possible.
    fn all(w: usize, margin: usize) -> impl Iterator<Item = Strip> {
        let width = w.div_ceil(w.div_ceil(STRIP));
        (0..w).step_by(width).map(move |start| Strip {
            start,
            end: (start + width).min(w),
            w,
            margin,
        })
    }

    /// Columns of a row of a ring, for any strip of an image.
    fn row_columns(w: usize, margin: usize) -> usize {
        w.min(STRIP) + 2 * margin
    }

    /// The columns of the image from `reach` columns before the strip to `reach` columns after it.
    #[inline(always)]
    fn columns(&self, reach: usize) -> (usize, usize) {
        (
            self.start.saturating_sub(reach),
            (self.end + reach).min(self.w),
        )
    }

    /// The place in a row of column `column - left` of the image.
    #[inline(always)]
    fn at(&self, column: usize, left: usize) -> usize {
        (column + self.margin - self.start - left) * GROUP
    }
}

/// The pieces of the columns `start..end`: (first column, number of columns).
fn pieces((start, end): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    (start..end)
        .step_by(PIECE)
        .map(move |x| (x, PIECE.min(end - x)))
}

/// A ring of the latest rows of a strip, `[slot][group][column][GROUP]`.
#[derive(Clone, Copy)]
struct Ring<const SLOTS: usize, const WIDTH: usize> {
    start: *mut f32,
    /// Columns of a row.
    columns: usize,
}

impl<const SLOTS: usize, const WIDTH: usize> Ring<SLOTS, WIDTH> {
    /// f32 values of a ring with that many columns.
    const fn floats(columns: usize) -> usize {
        SLOTS * WIDTH * columns * GROUP
    }

    /// The ring at `*scratch`, which moves to what follows it.
    ///
    /// # Safety
    /// The scratch has room for [`Ring::floats`] values.
    #[inline(always)]
    unsafe fn take(scratch: &mut *mut f32, columns: usize) -> Self {
        let start = *scratch;
        // SAFETY: the caller guarantees the room
        *scratch = unsafe { start.add(Self::floats(columns)) };
        Ring { start, columns }
    }

    /// A group's part of a row, which is at least -2 * SLOTS.
    ///
    /// # Safety
    /// `group` is below WIDTH.
    #[inline(always)]
    unsafe fn row(&self, row: isize, group: usize) -> *mut f32 {
        let slot = (row + 2 * SLOTS as isize) as usize % SLOTS;
        // SAFETY: the slot is below SLOTS and the group below WIDTH
        unsafe {
            self.start
                .add((slot * WIDTH + group) * self.columns * GROUP)
        }
    }

    /// A group's part of the rows above, at and below `row`, `distance` rows apart, from `at` on.
    ///
    /// # Safety
    /// As [`Ring::row`] for all three; `at` is inside a row.
    #[inline(always)]
    unsafe fn around(
        &self,
        row: isize,
        distance: isize,
        group: usize,
        at: usize,
    ) -> [*const f32; 3] {
        [-distance, 0, distance].map(|d| {
            // SAFETY: the caller's contract
            unsafe { self.row(row + d, group).add(at).cast_const() }
        })
    }

    /// Writes zeros to the columns `columns` and `pad` more on each side, in all groups of a row.
    ///
    /// # Safety
    /// As [`Ring::row`]; the columns lie inside the row, and no other thread uses the ring.
    #[inline(always)]
    unsafe fn clear(&self, row: isize, strip: Strip, columns: (usize, usize), pad: usize) {
        for group in 0..WIDTH {
            // SAFETY: the caller's contract
            unsafe {
                let len = (columns.1 - columns.0 + 2 * pad) * GROUP;
                let start = self.row(row, group).add(strip.at(columns.0, pad));
                start.write_bytes(0, len);
            }
        }
    }

    /// Writes zeros to the `pad` columns on each side of the columns `columns`, in all groups of a
    /// row.
    ///
    /// # Safety
    /// As [`Ring::clear`].
    #[inline(always)]
    unsafe fn pad(&self, row: isize, strip: Strip, columns: (usize, usize), pad: usize) {
        for group in 0..WIDTH {
            // SAFETY: the caller's contract
            unsafe {
                let row = self.row(row, group);
                row.add(strip.at(columns.0, pad))
                    .write_bytes(0, pad * GROUP);
                row.add(strip.at(columns.1, 0)).write_bytes(0, pad * GROUP);
            }
        }
    }
}

/// The rows of x and what the block computes from them up to `proj`, for one strip of a band. X
/// slots hold rows of x, and U slots rows of the depthwise convolutions and of `fuse`.
struct Projected<const X: usize, const U: usize> {
    /// The packed weights.
    weights: SharedPtr<f32>,
    /// `[N, h, w, F]`
    input: SharedPtr<f32>,
    /// The image, below N.
    image: usize,
    /// Rows of an image.
    h: usize,
    strip: Strip,
    /// Columns that are computed on each side of the strip.
    reach: usize,
    /// Padded rows of x.
    x: Ring<X, 1>,
    /// dw1's output, then dw3's.
    u: Ring<U, 2>,
    /// Output of `fuse`.
    t: Ring<U, 1>,
    /// Output of `proj`; zeros outside the image, which are the padding of `gate`.
    p: Ring<3, GROUPS>,
}

impl<const X: usize, const U: usize> Projected<X, U> {
    /// f32 values of all rings with that many columns.
    const fn floats(columns: usize) -> usize {
        (X + 2 * U + U + 3 * GROUPS) * columns * GROUP
    }

    /// Copies a row of x into its ring, with zeros for everything outside the image.
    ///
    /// # Safety
    /// As [`Simd`]. The fields point to arrays of the shapes they state; no thread writes the
    /// input, and no other thread uses the rings.
    #[inline(always)]
    unsafe fn load(&self, row: isize) {
        let Strip { w, margin, .. } = self.strip;
        // SAFETY: the columns are those of the image that a row of the ring has room for
        unsafe {
            let out = self.x.row(row, 0);
            if row < 0 || row >= self.h as isize {
                out.write_bytes(0, self.x.columns * GROUP);
                return;
            }
            let (from, to) = self.strip.columns(margin);
            let before = self.strip.at(from, 0);
            let len = (to - from) * GROUP;
            let source = (self.image * self.h + row as usize) * w + from;
            let source = self.input.at(source * FEATURES);
            out.write_bytes(0, before);
            std::ptr::copy_nonoverlapping(source, out.add(before), len);
            let end = before + len;
            out.add(end).write_bytes(0, self.x.columns * GROUP - end);
        }
    }

    /// Computes one row up to `proj`; the rows of x around it, but for the last, are in the ring.
    ///
    /// # Safety
    /// As [`Projected::load`].
    #[inline(always)]
    unsafe fn fill<S: Simd>(&self, row: isize) {
        let (strip, columns) = (self.strip, self.strip.columns(self.reach));
        // SAFETY: `pack` wrote the weights, and rows have room for the reach and one column more
        unsafe {
            self.load(row + REACH as isize);
            if row < 0 || row >= self.h as isize {
                self.p.clear(row, strip, columns, 1);
                return;
            }
            for (c, n) in pieces(columns) {
                let at = strip.at(c, 0);
                let u = [0, 1].map(|i| self.u.row(row, i).add(at));
                let taps = |distance: usize, number: usize| Taps {
                    rows: self
                        .x
                        .around(row, distance as isize, 0, strip.at(c, distance)),
                    weights: self.weights.at(Packed::DW + number * TAPS),
                };
                let bias = self.weights.at(Packed::DW_BIAS);
                row_taps::<S, 1>(taps(1, 0), bias, n, u[0]);
                row_taps::<S, REACH>(taps(REACH, 1), bias.add(FEATURES), n, u[1]);
                let t = self.t.row(row, 0).add(at);
                row_product::<S, GROUP>(&RowProduct {
                    rows: &u.map(|u| u.cast_const()),
                    stride: GROUP,
                    taps: GROUP,
                    weights: self.weights.at(Packed::FUSE),
                    lanes: FEATURES,
                    start: RowStart::Bias(self.weights.at(Packed::FUSE_BIAS)),
                    out: t,
                    w: n,
                    non_temporal: false,
                });
                let pixel = (self.image * self.h + row as usize) * strip.w + c;
                let ahead = self.input.at(pixel * FEATURES).cast_const();
                let ahead = ahead.wrapping_add((REACH + 1) * strip.w * FEATURES);
                for group in 0..GROUPS {
                    prefetch::<S>(ahead, n * FEATURES, group, GROUPS);
                    let weights = self.weights.at(Packed::PROJ + group * FEATURES * GROUP);
                    let bias = self.weights.at(Packed::PROJ_BIAS + group * GROUP);
                    row_product::<S, GROUP>(&RowProduct {
                        rows: &[t.cast_const()],
                        stride: GROUP,
                        taps: FEATURES,
                        weights,
                        lanes: GROUP,
                        start: RowStart::Bias(bias),
                        out: self.p.row(row, group).add(at),
                        w: n,
                        non_temporal: false,
                    });
                }
            }
            self.p.pad(row, strip, columns, 1);
        }
    }
}

impl CpuOperation for StreamBlock {
    fn check(&self) -> Result<()> {
        ensure!(
            self.features == FEATURES,
            "{} features: only blocks of {FEATURES} are supported",
            self.features
        );
        check_extent(self.extent)
    }

    fn workspace(&self) -> Workspace {
        forward::workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        forward::forward(ctx, self);
    }
}

impl CpuOperation for StreamBlockBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        backward::workspace(self)
    }

    fn run(&self, ctx: &Context<'_>) {
        backward::backward(ctx, self);
    }
}
