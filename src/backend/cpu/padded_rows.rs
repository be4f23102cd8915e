//! The latest rows of an image with their zero padding, in a ring in the scratch of a task: the
//! inputs of the direct convolutions. Depends on the row kernels.

use super::arena::SharedPtr;
use super::rows::pad_row;
use super::tasks::round_up_to_lanes;

/// A ring of the `ROWS` latest rows of an image, for convolutions of `ROWS` x `ROWS` taps.
#[derive(Clone, Copy)]
pub struct PaddedRows<const ROWS: usize> {
    /// The activation `[N, h, w, c]`.
    pub source: SharedPtr<f32>,
    /// The image, below N.
    pub image: usize,
    /// Rows of an image.
    pub h: usize,
    /// Columns of an image.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Room for [`PaddedRows::floats`] values.
    pub ring: SharedPtr<f32>,
}

impl<const ROWS: usize> PaddedRows<ROWS> {
    /// Pixels of padding on each side: the reach of the taps.
    const PAD: usize = ROWS / 2;

    /// f32 values of one row of the ring.
    fn row_floats(w: usize, c: usize) -> usize {
        round_up_to_lanes((w + 2 * Self::PAD) * c)
    }

    /// f32 values of the ring for rows of `w` pixels of `c` channels.
    pub fn floats(w: usize, c: usize) -> usize {
        ROWS * Self::row_floats(w, c)
    }

    /// The place of a row `[w + 2 * PAD, c]` in the ring; `row` is at least `-PAD`.
    ///
    /// # Safety
    /// The ring has room for [`PaddedRows::floats`] values.
    #[inline(always)]
    pub unsafe fn row(&self, row: isize) -> *mut f32 {
        let slot = (row + Self::PAD as isize) as usize % ROWS;
        // SAFETY: the slot is below ROWS, and the ring holds as many rows
        unsafe { self.ring.at(slot * Self::row_floats(self.w, self.c)) }
    }

    /// The rows around row `y`, the topmost first.
    ///
    /// # Safety
    /// As [`PaddedRows::row`].
    #[inline(always)]
    pub unsafe fn around(&self, y: usize) -> [*const f32; ROWS] {
        std::array::from_fn(|k| {
            // SAFETY: the topmost row is at least `-PAD`
            unsafe { self.row((y + k) as isize - Self::PAD as isize).cast_const() }
        })
    }

    /// Copies a row of the image into the ring, in place of the one `ROWS` above; zeros for a row
    /// outside the image.
    ///
    /// # Safety
    /// As [`PaddedRows::row`], and no other thread uses the ring. The activation holds `[h, w, c]`
    /// values for every image up to this one, and no thread writes them.
    #[inline(always)]
    pub unsafe fn load(&self, row: isize) {
        let PaddedRows { image, h, w, c, .. } = *self;
        // SAFETY: a row inside the image is one of its `h`, and a row of the ring has room for `w`
        // pixels and the padding
        unsafe {
            let inside = row >= 0 && row < h as isize;
            let source = inside.then(|| {
                self.source
                    .at((image * h + row as usize) * w * c)
                    .cast_const()
            });
            pad_row(source, Self::PAD * c, w * c, self.row(row));
        }
    }
}
