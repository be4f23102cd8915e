//! Dense convolutions on bf16 factors with f32 sums. Rows are activated in f32, rounded once and
//! kept in the scratch of a task; a row of the output is the product of overlapping stretches of
//! its rounded input rows with packed weights. Depends on the bf16 kernels and activations. The
//! bits of an output do not depend on where the pixel is.

mod backward;
mod forward;
mod rows;
#[cfg(test)]
mod tests;
mod weights;

pub use backward::{backward, workspace_back};
pub use forward::{forward, workspace};

use super::super::arena::SharedPtr;
use super::super::bf16::{BlockProduct, STEP, Session, Start, TILE};
use super::super::simd::{LANES, Simd};
use super::direct::MAX_KERNEL;
use crate::plan::Conv;

/// Fewest channels on either side: with fewer, most of a tile would be padding.
const LEAST_CHANNELS: usize = 16;

/// Whether the convolution is one that is computed here where products are bf16.
pub fn applies(c: &Conv) -> bool {
    c.groups == 1 && c.dilation == 1 && c.cin >= LEAST_CHANNELS && c.cout >= LEAST_CHANNELS
}

/// Pixels from the middle tap to the outermost one.
fn reach(c: &Conv) -> usize {
    c.kernel / 2
}

/// Steps of 32 pixels of a row.
fn pixel_steps(w: usize) -> usize {
    w.div_ceil(STEP)
}

/// Rows that are computed together, so that packed weights, or sums, are used several times once
/// they are in the nearest cache: eight steps of 32 pixels.
fn rows_together(w: usize) -> usize {
    (8 / pixel_steps(w)).max(1)
}

/// Most rows of [`rows_together`].
const MAX_ROWS: usize = 8;

/// A dense product from one activation's channels to the other's, for rows of pixels.
#[derive(Clone, Copy)]
struct RowProduct {
    kernel: usize,
    /// Channels of the buffer that is read, and of the one that is written.
    from: usize,
    to: usize,
    /// Pixels of a row.
    w: usize,
}

impl RowProduct {
    /// From input to output.
    fn forward(c: &Conv) -> RowProduct {
        RowProduct {
            kernel: c.kernel,
            from: c.input_stride,
            to: c.output_stride,
            w: c.extent.w,
        }
    }

    /// From the gradient of the output to that of the input.
    fn backward(c: &Conv) -> RowProduct {
        RowProduct {
            from: c.output_stride,
            to: c.input_stride,
            ..RowProduct::forward(c)
        }
    }

    /// Steps in a row of taps, whose channels are adjacent in memory.
    fn steps(&self) -> usize {
        (self.kernel * self.from).div_ceil(STEP)
    }

    /// bf16 values of the packed weights of 16 output channels.
    fn group(&self) -> usize {
        self.kernel * self.steps() * TILE
    }

    /// bf16 values of the packed weights.
    fn packed(&self) -> usize {
        self.to / LANES * self.group()
    }

    /// f32 values of [`Output::narrow`].
    fn narrow(&self) -> usize {
        if self.w < LANES {
            rows_together(self.w) * LANES * self.to
        } else {
            0
        }
    }

    /// Computes the rows of `outputs`. `inputs(r, ky)` is the rounded row that row r of the output
    /// reads with tap row ky.
    ///
    /// # Safety
    /// As [`Simd`]. The rows are as [`rows::RoundedRows`] makes them, `weights` are packed for this product,
    /// the bias (if not zero) holds `to` values, and no other thread uses the outputs.
    #[inline(always)]
    unsafe fn run<S: Simd>(
        &self,
        session: &Session,
        inputs: impl Fn(usize, usize) -> *const u16,
        (weights, bias): (*const u16, Start),
        outputs: &Output,
        ahead: &mut Ahead,
    ) {
        let groups = self.to / LANES;
        let (mut a, mut b) = (
            [std::ptr::null(); MAX_KERNEL],
            [std::ptr::null(); MAX_KERNEL],
        );
        // SAFETY: groups of channels lie inside the weights and the rows
        unsafe {
            for group in (0..groups).step_by(2) {
                for (ky, b) in b[..self.kernel].iter_mut().enumerate() {
                    *b = weights.add(group * self.group() + ky * self.steps() * TILE);
                }
                let start = match bias {
                    Start::Row(bias) => Start::Row(bias.add(group * LANES)),
                    other => other,
                };
                for row in 0..outputs.rows {
                    for (ky, a) in a[..self.kernel].iter_mut().enumerate() {
                        *a = inputs(row, ky);
                    }
                    let out = outputs.row(self, row).add(group * LANES);
                    let factors = (&a[..self.kernel], &b[..self.kernel]);
                    let n = (groups - group).min(2);
                    self.row::<S>(session, factors, start, (out, n), ahead);
                }
            }
            if self.w < LANES {
                for row in 0..outputs.rows {
                    let to = outputs.first.add(row * outputs.stride);
                    let from = outputs.row(self, row);
                    std::ptr::copy_nonoverlapping(from, to, self.w * self.to);
                }
            }
        }
    }

    /// Computes `n` tiles of channels of a row, from the input rows at pixel 0 and the weights of
    /// these channels.
    ///
    /// # Safety
    /// As [`RowProduct::run`].
    #[inline(always)]
    unsafe fn row<S: Simd>(
        &self,
        session: &Session,
        (rows, weights): (&[*const u16], &[*const u16]),
        start: Start,
        (out, n): (*mut f32, usize),
        ahead: &mut Ahead,
    ) {
        let mut a = [std::ptr::null(); MAX_KERNEL];
        let mut pixel = 0;
        while pixel < self.w {
            let two = self.w >= 2 * LANES && self.w - pixel > LANES;
            let m = if two { 2 } else { 1 };
            // the last block computes some pixels again, which have the same bits
            let at = pixel.min(self.w.saturating_sub(m * LANES));
            // SAFETY: a block ends at the last pixel of the row, or in the room for narrow rows
            unsafe {
                for (a, row) in a.iter_mut().zip(rows) {
                    *a = row.add(at * self.from);
                }
                let block = BlockProduct {
                    a: &a[..rows.len()],
                    a_row: self.from,
                    b: weights,
                    b_group: self.group(),
                    steps: self.steps(),
                    start,
                    c: out.add(at * self.to),
                    c_row: self.to,
                    c_groups: (LANES * self.to, LANES),
                };
                session.product(&block, m, n);
                ahead.fetch::<S>();
            }
            pixel = at + m * LANES;
        }
    }
}

/// Rows of activations that are rounded or written after the products that run now. They are fetched
/// from memory between these products, which leave the memory idle.
struct Ahead {
    /// (next value, cache lines left) of two activations that are read and one that is written: a
    /// store, too, waits for its line.
    rows: [(*const f32, usize); 3],
    /// Cache lines that one call fetches.
    lines: usize,
}

impl Ahead {
    /// The rows `first..first + count` of the activations that are read, and `written`, (first value,
    /// number of values) of the one that is written, fetched in `calls` calls.
    ///
    /// # Safety
    /// The rows are those of the images.
    #[inline(always)]
    unsafe fn new(
        activations: &[&rows::RoundedRows],
        (first, count): (usize, usize),
        written: (*const f32, usize),
        calls: usize,
    ) -> Ahead {
        let mut rows = [(written.0, written.1 / LANES); 3];
        rows[1..].fill((std::ptr::null(), 0));
        for (row, a) in rows[1..].iter_mut().zip(activations) {
            let lines = count * a.w * a.c / LANES;
            if lines > 0 {
                // SAFETY: by the caller's contract
                *row = (unsafe { a.stored(first) }, lines);
            }
        }
        let most = rows.iter().map(|row| row.1).max().unwrap_or(0);
        Ahead {
            rows,
            lines: most.div_ceil(calls.max(1)),
        }
    }

    /// Fetches nothing.
    fn nothing() -> Ahead {
        Ahead {
            rows: [(std::ptr::null(), 0); 3],
            lines: 0,
        }
    }

    /// Fetches the next lines.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&mut self) {
        for (at, left) in &mut self.rows {
            let count = self.lines.min(*left);
            for line in 0..count {
                // SAFETY: the processor has the instructions of S, and a prefetch takes any address
                unsafe { S::prefetch(at.wrapping_add(line * LANES)) };
            }
            *at = at.wrapping_add(count * LANES);
            *left -= count;
        }
    }
}

/// Rows that a [`RowProduct`] writes.
struct Output {
    /// The first row `[w][channels]`.
    first: *mut f32,
    /// f32 values from row to row.
    stride: usize,
    /// Number of rows.
    rows: usize,
    /// Room for as many rows of 16 pixels, if rows are narrower than a block; otherwise not used.
    narrow: *mut f32,
}

impl Output {
    /// Where a row is computed.
    ///
    /// # Safety
    /// The row is below the number of rows.
    #[inline(always)]
    unsafe fn row(&self, product: &RowProduct, row: usize) -> *mut f32 {
        // SAFETY: by the caller's contract
        unsafe {
            if product.w < LANES {
                self.narrow.add(row * LANES * product.to)
            } else {
                self.first.add(row * self.stride)
            }
        }
    }
}

/// The bias of a product without one.
const NO_BIAS: Start = Start::Zero;

/// A pointer to bf16 values in a part of a workspace.
fn halves(floats: *mut f32) -> SharedPtr<u16> {
    SharedPtr::new(floats.cast())
}
