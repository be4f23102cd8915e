//! Products of small f32 matrices in the scratch of a task, as attention needs them: the factors
//! are rounded into packed form, and the sums are f32. Depends on the kernels of this module.

use super::own::{pair_pixels, round_values, transpose_pixels};
use super::{BlockProduct, LANES, STEP, Session, Start, TILE};

/// An f32 matrix in memory, or its transpose.
#[derive(Clone, Copy)]
pub struct Matrix {
    /// The values `[rows][columns]`.
    pub values: *const f32,
    /// f32 values from one row to the next.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Whether the transpose is meant, which has as many rows as this one has columns.
    pub transposed: bool,
}

impl Matrix {
    /// Rows and columns of the matrix that is meant.
    fn size(&self) -> (usize, usize) {
        if self.transposed {
            (self.columns, self.rows)
        } else {
            (self.rows, self.columns)
        }
    }

    /// Rounds the matrix as it is in memory to `out` `[rows][columns]`, with rows and columns
    /// rounded up to whole steps and zeros there. Returns the values of a row.
    ///
    /// # Safety
    /// As [`Matrix::pack_rows`], and `out` has room.
    unsafe fn round(&self, out: *mut u16) -> usize {
        let stride = self.columns.next_multiple_of(STEP);
        // SAFETY: by the caller's contract
        unsafe {
            for row in 0..self.rows.next_multiple_of(STEP) {
                let to = out.add(row * stride);
                let used = if row < self.rows { self.columns } else { 0 };
                if used > 0 {
                    round_values(self.values.add(row * self.stride), used, to);
                }
                to.add(used).write_bytes(0, stride - used);
            }
        }
        stride
    }

    /// Packs the matrix as the left factor of a product: rows of [`packed_rows`].
    ///
    /// # Safety
    /// The values can be read, `out` has room for [`packed_rows`] values and `scratch` for as many;
    /// they overlap nothing else, and the processor has a unit for bf16.
    pub unsafe fn pack_rows(&self, out: *mut u16, scratch: *mut u16) {
        // SAFETY: by the caller's contract; rows and columns are rounded up to whole steps
        unsafe {
            if !self.transposed {
                self.round(out);
                return;
            }
            let stride = self.round(scratch);
            let row = self.rows.next_multiple_of(STEP);
            for (from, to) in (0..row).step_by(STEP).flat_map(|from| {
                let groups = (0..stride).step_by(LANES);
                groups.map(move |to| (from, to))
            }) {
                let pixels = scratch.add(from * stride + to);
                transpose_pixels(pixels, stride, out.add(to * row + from), row);
            }
        }
    }

    /// Packs the matrix as the right factor of a product: tiles of [`packed_columns`].
    ///
    /// # Safety
    /// As [`Matrix::pack_rows`], with [`packed_columns`] values.
    pub unsafe fn pack_columns(&self, out: *mut u16, scratch: *mut u16) {
        let steps = self.size().0.div_ceil(STEP);
        // SAFETY: by the caller's contract; rows and columns are rounded up to whole steps
        unsafe {
            let stride = self.round(scratch);
            for group in 0..self.size().1.next_multiple_of(STEP) / LANES {
                let to = out.add(group * steps * TILE);
                if !self.transposed {
                    let from = scratch.add(group * LANES);
                    pair_pixels(from, stride, steps * STEP / 2, to);
                    continue;
                }
                for step in 0..steps {
                    // a tile is the transpose of 16 rows of pairs
                    let from = scratch.add(group * LANES * stride + step * STEP);
                    super::own::transpose_pairs(from, stride, to.add(step * TILE));
                }
            }
        }
    }
}

/// bf16 values of a packed left factor of `m` rows and `k` columns, and of the scratch to pack it.
pub fn packed_rows(m: usize, k: usize) -> usize {
    m.next_multiple_of(STEP) * k.next_multiple_of(STEP)
}

/// bf16 values of a packed right factor of `k` rows and `n` columns, and of the scratch to pack it.
pub fn packed_columns(k: usize, n: usize) -> usize {
    packed_rows(k, n)
}

/// Computes C `[m, n]` from packed factors with `k` in between. C has room for `m` and `n` rounded
/// up to 16, `c_row` values from row to row; what is beyond `m` and `n` is 0 with [`Start::Zero`].
///
/// # Safety
/// The factors are packed for `m`, `k` and `n`; C has room, and no other thread uses it; with
/// [`Start::Row`], the row holds `n` rounded up to 16 values.
pub unsafe fn multiply(
    session: &Session,
    (m, k, n): (usize, usize, usize),
    (a, b): (*const u16, *const u16),
    start: Start,
    (c, c_row): (*mut f32, usize),
) {
    let (a_row, steps) = (k.next_multiple_of(STEP), k.div_ceil(STEP));
    let (rows, columns) = (m.div_ceil(LANES), n.div_ceil(LANES));
    for (row, column) in (0..rows)
        .step_by(2)
        .flat_map(|row| (0..columns).step_by(2).map(move |column| (row, column)))
    {
        // SAFETY: rows and columns are below those of the packed factors and of C
        unsafe {
            let product = BlockProduct {
                a: &[a.add(row * LANES * a_row)],
                a_row,
                b: &[b.add(column * steps * TILE)],
                b_group: steps * TILE,
                steps,
                start: match start {
                    Start::Row(values) => Start::Row(values.add(column * LANES)),
                    other => other,
                },
                c: c.add(row * LANES * c_row + column * LANES),
                c_row,
                c_groups: (LANES * c_row, LANES),
            };
            session.product(&product, (rows - row).min(2), (columns - column).min(2));
        }
    }
}
