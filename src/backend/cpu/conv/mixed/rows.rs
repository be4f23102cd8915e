//! The latest rows of an image, activated, rounded to bf16 and with their zero padding, in the
//! scratch of a task; and the same rows as the factors of the gradient of the weights, which sums
//! over pixels. Depends on the activations and the conversions to bf16.

use super::super::super::activation::{RowActivation, apply_row};
use super::super::super::arena::SharedPtr;
use super::super::super::bf16::{STEP, pair_pixels, round_values, transpose_pixels};
use super::super::super::simd::{LANES, Simd};
use super::pixel_steps;

/// f32 values that are activated at a time: few enough for the nearest cache.
const ACTIVATED: usize = 1024;

/// The rounded rows of one image of an activation.
#[derive(Clone, Copy)]
pub struct RoundedRows {
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
    /// Channels of the buffer, a multiple of 16.
    pub c: usize,
    /// Pixels of padding on the left of a row; on the right there are at least as many.
    pub pad: usize,
    /// Rows of the ring.
    pub slots: usize,
    /// Room for `slots` times [`row_values`] values.
    pub ring: SharedPtr<u16>,
    /// Room for [`activated_floats`] values.
    pub activated: SharedPtr<f32>,
}

/// Pixels of a rounded row: the padded row in whole steps, and one pixel for what the last step
/// reads past it.
fn row_pixels(w: usize, pad: usize) -> usize {
    pixel_steps(w) * STEP + 2 * pad + 1
}

/// bf16 values of a rounded row of `w` pixels of `c` channels.
pub fn row_values(w: usize, c: usize, pad: usize) -> usize {
    (row_pixels(w, pad) * c).next_multiple_of(STEP)
}

/// f32 values of the room in which rows of `c` channels are activated.
pub fn activated_floats(c: usize) -> usize {
    ACTIVATED.max(c)
}

impl RoundedRows {
    /// A row of the ring; pixel `pad` is the image's first.
    ///
    /// # Safety
    /// The ring has room for its slots.
    #[inline(always)]
    pub unsafe fn row(&self, row: isize) -> *mut u16 {
        let slot = row.rem_euclid(self.slots as isize) as usize;
        // SAFETY: the slot is one of the ring's
        unsafe { self.ring.at(slot * row_values(self.w, self.c, self.pad)) }
    }

    /// A row `[w, c]` of the image as it is in memory.
    ///
    /// # Safety
    /// The activation holds `[h, w, c]` values for every image up to this one, and `row` is one of
    /// its rows.
    #[inline(always)]
    pub unsafe fn stored(&self, row: usize) -> *const f32 {
        // SAFETY: by the caller's contract
        unsafe {
            let at = (self.image * self.h + row) * self.w * self.c;
            self.source.at(at).cast_const()
        }
    }

    /// Writes a row of the image into the ring, in place of the one `slots` above; zeros for a row
    /// outside the image.
    ///
    /// # Safety
    /// As [`Simd`] and [`RoundedRows::row`]; the processor has a unit for bf16, and no other thread
    /// uses the ring or the room for activated values. The activation holds `[h, w, c]` values for
    /// every image up to this one, and no thread writes them; the slopes are `[c]`.
    #[inline(always)]
    pub unsafe fn load<S: Simd>(&self, row: isize) {
        let (pad, len) = (self.pad * self.c, self.w * self.c);
        let all = row_values(self.w, self.c, self.pad);
        // SAFETY: a row inside the image is one of its `h`, and a row of the ring has room for `w`
        // pixels and the padding
        unsafe {
            let to = self.row(row);
            if row < 0 || row >= self.h as isize {
                return to.write_bytes(0, all);
            }
            to.write_bytes(0, pad);
            let from = self.stored(row as usize);
            match self.activation {
                None => round_values(from, len, to.add(pad)),
                Some(activation) => {
                    let room = self.activated.at(0);
                    let chunk = (ACTIVATED / self.c).max(1) * self.c;
                    for at in (0..len).step_by(chunk) {
                        let count = chunk.min(len - at);
                        apply_row::<S>(activation, from.add(at), self.c, count, room);
                        round_values(room, count, to.add(pad + at));
                    }
                }
            }
            to.add(pad + len).write_bytes(0, all - pad - len);
        }
    }
}

/// The layout of a row as pairs of adjacent pixels, for the right factor of the gradient:
/// `[parity][16 channels][pair][16][2]`. A tap reads every other pixel from its own on, so taps of
/// odd number read pairs that begin at odd pixels.
#[derive(Clone, Copy)]
pub struct PairedRow {
    /// Pairs of a row.
    pairs: usize,
    /// Groups of 16 channels.
    groups: usize,
    /// 1 for pairs from even pixels alone, 2 for both.
    parities: usize,
}

impl PairedRow {
    /// For rows of `w` pixels of `c` channels, which are read by `kernel` taps.
    pub fn new(w: usize, c: usize, kernel: usize) -> PairedRow {
        PairedRow {
            pairs: pixel_steps(w) * STEP / 2 + kernel / 2,
            groups: c / LANES,
            parities: if kernel > 1 { 2 } else { 1 },
        }
    }

    /// bf16 values from 16 channels to the next 16.
    pub fn group(&self) -> usize {
        self.pairs * 2 * LANES
    }

    /// bf16 values of a row.
    pub fn values(&self) -> usize {
        self.parities * self.groups * self.group()
    }

    /// Where tap `kx` begins for group number `group`.
    pub fn tap(&self, kx: usize, group: usize) -> usize {
        (kx % 2 * self.groups + group) * self.group() + kx / 2 * 2 * LANES
    }

    /// Writes a row from a rounded one.
    ///
    /// # Safety
    /// `row` is rounded for the same pixels and channels, with `kernel / 2` pixels of padding; `to`
    /// has room for [`PairedRow::values`]; the processor has a unit for bf16.
    pub unsafe fn write(&self, row: *const u16, to: *mut u16) {
        let c = self.groups * LANES;
        for (parity, group) in
            (0..self.parities * self.groups).map(|i| (i / self.groups, i % self.groups))
        {
            // SAFETY: the last pair of odd parity ends at the last pixel of `row_pixels`
            unsafe {
                let from = row.add(parity * c + group * LANES);
                let to = to.add((parity * self.groups + group) * self.group());
                pair_pixels(from, c, self.pairs, to);
            }
        }
    }
}

/// bf16 values of a row with pixels in the rows, `[c][pixels in whole steps]`: the left factor of
/// the gradient.
pub fn transposed_values(w: usize, c: usize) -> usize {
    pixel_steps(w) * STEP * c
}

/// Writes a transposed row from a rounded one.
///
/// # Safety
/// `row` is the first pixel of a rounded row of `w` pixels of `c` channels, `to` has room for
/// [`transposed_values`], and the processor has a unit for bf16.
pub unsafe fn transpose_row(row: *const u16, w: usize, c: usize, to: *mut u16) {
    let stride = pixel_steps(w) * STEP;
    for (step, group) in (0..pixel_steps(w)).flat_map(|s| (0..c / LANES).map(move |g| (s, g))) {
        // SAFETY: a rounded row holds whole steps of pixels
        unsafe {
            let from = row.add(step * STEP * c + group * LANES);
            let to = to.add(group * LANES * stride + step * STEP);
            transpose_pixels(from, c, to, stride);
        }
    }
}
