//! The latest rows of an image, activated and with their zero padding, in a ring in the scratch of
//! a task. Depends on the row kernels and activations.

use super::super::activation::{RowActivation, apply_row};
use super::super::arena::SharedPtr;
use super::super::rows::pad_row;
use super::super::simd::Simd;
use super::super::tasks::round_up_to_lanes;

/// Rows of one image of an activation, and a ring of the latest ones as a convolution reads them.
#[derive(Clone, Copy)]
pub struct RowRing {
    /// The activation `[N, h, w, c]`.
    pub source: SharedPtr<f32>,
    /// Applied to every value; padding is 0 after it.
    pub activation: Option<RowActivation>,
    /// The image, below N.
    pub image: usize,
    /// Rows of an image.
    pub h: usize,
    /// Columns of an image.
    pub w: usize,
    /// Channels of the buffer.
    pub c: usize,
    /// Pixels of padding on either side of a row.
    pub pad: usize,
    /// Rows of the ring.
    pub slots: usize,
    /// Room for [`RowRing::floats`] values.
    pub ring: SharedPtr<f32>,
}

impl RowRing {
    /// f32 values of one row of the ring.
    fn row_floats(w: usize, c: usize, pad: usize) -> usize {
        round_up_to_lanes((w + 2 * pad) * c)
    }

    /// f32 values of a ring of `slots` rows of `w` pixels of `c` channels, with `pad` pixels on
    /// either side.
    pub fn floats(w: usize, c: usize, pad: usize, slots: usize) -> usize {
        slots * RowRing::row_floats(w, c, pad)
    }

    /// The place of a row `[pad + w + pad, c]` in the ring.
    ///
    /// # Safety
    /// The ring has room for [`RowRing::floats`] values.
    #[inline(always)]
    pub unsafe fn row(&self, row: isize) -> *mut f32 {
        let slot = row.rem_euclid(self.slots as isize) as usize;
        // SAFETY: the slot is one of the ring's
        unsafe {
            self.ring
                .at(slot * RowRing::row_floats(self.w, self.c, self.pad))
        }
    }

    /// Whether the rows are used as they are in memory.
    fn copies_nothing(&self) -> bool {
        self.pad == 0 && self.activation.is_none()
    }

    /// A row `[pad + w + pad, c]` as the convolution reads it.
    ///
    /// # Safety
    /// As [`RowRing::row`]; [`RowRing::load`] was called for the row, and since then for no more
    /// than `slots - 1` others. Without padding, the row is one of the image's.
    #[inline(always)]
    pub unsafe fn get(&self, row: isize) -> *const f32 {
        // SAFETY: by the caller's contract
        unsafe {
            if self.copies_nothing() {
                self.stored(row as usize)
            } else {
                self.row(row).cast_const()
            }
        }
    }

    /// A row `[w, c]` of the image as it is in memory.
    ///
    /// # Safety
    /// The activation holds `[h, w, c]` values for every image up to this one, and `row` is one of
    /// its rows.
    #[inline(always)]
    pub unsafe fn stored(&self, row: usize) -> *const f32 {
        // SAFETY: the caller guarantees that the row is one of the activation's
        unsafe {
            let at = (self.image * self.h + row) * self.w * self.c;
            self.source.at(at).cast_const()
        }
    }

    /// Writes a row of the image into the ring, in place of the one `slots` above; zeros for a row
    /// outside the image.
    ///
    /// # Safety
    /// As [`Simd`] and [`RowRing::row`], and no other thread uses the ring. The activation holds
    /// `[h, w, c]` values for every image up to this one, and no thread writes them. Channels and
    /// slopes are as [`apply_row`] needs them.
    #[inline(always)]
    pub unsafe fn load<S: Simd>(&self, row: isize) {
        if self.copies_nothing() {
            return;
        }
        let (pad, len) = (self.pad * self.c, self.w * self.c);
        // SAFETY: a row inside the image is one of its `h`, and a row of the ring has room for `w`
        // pixels and the padding
        unsafe {
            let to = self.row(row);
            let inside = row >= 0 && row < self.h as isize;
            let source = inside.then(|| self.stored(row as usize));
            let (Some(source), Some(activation)) = (source, self.activation) else {
                return pad_row(source, pad, len, to);
            };
            to.write_bytes(0, pad);
            apply_row::<S>(activation, source, self.c, len, to.add(pad));
            to.add(pad + len).write_bytes(0, pad);
        }
    }
}
