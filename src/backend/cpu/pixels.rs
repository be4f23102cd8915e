//! Conversion of bytes to floats: reads rows of u8 patches through their augmentation codes, and
//! unpacks a staged batch. Depends on the index map of `support::augment`.

use super::arena::SharedPtr;
use super::operation::{CpuOperation, check_extent};
use super::simd::Simd;
use super::tasks::{Bands, Context, Task};
use crate::plan::{BatchLayout, Extent, Unpack};
use crate::support::augment;
use anyhow::Result;

/// Row `y` of an augmented patch as (index of its first pixel, step to the next) in the stored
/// patch, both in pixels.
#[inline(always)]
fn row_in_patch(code: u8, y: usize, h: usize, w: usize) -> (isize, isize) {
    // `BatchView::check` allows codes for square patches only, but the host may also write the
    // batch as a buffer, with any code
    if code == 0 || h != w {
        return ((y * w) as isize, 1);
    }
    let at = |x: usize| {
        let (row, column) = augment::source(code, y, x, h);
        (row * w + column) as isize
    };
    let first = at(0);
    (first, if w > 1 { at(1) - first } else { 1 })
}

/// Pixels of a row that are gathered at a time.
const RUN: usize = 128;
/// Room for the pixels of a run.
type Room = [[u8; 3]; RUN];

/// The bytes of pixels `start..start + count` of a row (see [`row_in_patch`]): a pointer into the
/// patch if the step is 1, else into `room`, where they are gathered. (A function and no closure
/// that is called for each run: a closure that is not inlined would be compiled without the
/// caller's instruction set.)
///
/// # Safety
/// The pixels lie inside the patch, and `count` is at most [`RUN`].
#[inline(always)]
unsafe fn run_of(
    patch: *const u8,
    (first, step): (isize, isize),
    start: usize,
    count: usize,
    room: &mut Room,
) -> *const u8 {
    let at = |x: usize| (first + step * (start + x) as isize) * 3;
    // SAFETY: the caller guarantees that the pixels lie inside the patch; with a step of 1 they are
    // contiguous
    unsafe {
        if step == 1 {
            return patch.offset(at(0));
        }
        for (x, pixel) in room.iter_mut().enumerate().take(count) {
            *pixel = *patch.offset(at(x)).cast::<[u8; 3]>();
        }
    }
    room.as_ptr().cast()
}

/// Writes row `y` of an augmented patch of `h` x `w` pixels to `out`, RGB in 0..=1 `[w, 3]`.
///
/// # Safety
/// `patch` points to the stored `[h, w, 3]` bytes, which no thread writes meanwhile. `y` is below
/// `h`, and `out` has `w * 3` values.
#[inline(always)]
pub unsafe fn read_row(
    patch: *const u8,
    code: u8,
    y: usize,
    (h, w): (usize, usize),
    out: &mut [f32],
) {
    let (row_at, mut room) = (row_in_patch(code, y, h, w), [[0; 3]; RUN]);
    for (i, out) in out.chunks_mut(3 * RUN).enumerate() {
        // SAFETY: a row lies inside its patch, since only square patches are transposed; the bytes
        // are used before `room` changes again
        let bytes = unsafe {
            std::slice::from_raw_parts(
                run_of(patch, row_at, i * RUN, out.len() / 3, &mut room),
                out.len(),
            )
        };
        out.iter_mut()
            .zip(bytes)
            .for_each(|(out, &b)| *out = f32::from(b) / 255.0);
    }
}

/// Subtracts row `y` of an augmented patch, in units of 1/255, from `row` `[w, 3]`.
///
/// # Safety
/// As [`read_row`].
#[inline(always)]
pub unsafe fn subtract_row(
    patch: *const u8,
    code: u8,
    y: usize,
    (h, w): (usize, usize),
    row: &mut [f32],
) {
    let (row_at, mut room) = (row_in_patch(code, y, h, w), [[0; 3]; RUN]);
    for (i, row) in row.chunks_mut(3 * RUN).enumerate() {
        // SAFETY: a row lies inside its patch, since only square patches are transposed; the bytes
        // are used before `room` changes again
        let bytes = unsafe {
            std::slice::from_raw_parts(
                run_of(patch, row_at, i * RUN, row.len() / 3, &mut room),
                row.len(),
            )
        };
        row.iter_mut()
            .zip(bytes)
            .for_each(|(value, &b)| *value -= f32::from(b));
    }
}

/// Unpacks a band of rows of one LQ patch.
struct UnpackTask {
    batch: BatchLayout,
    /// The staged batch.
    bytes: SharedPtr<u8>,
    /// `[N, h, w, 3]`
    output: SharedPtr<f32>,
    bands: Bands,
}

impl Task for UnpackTask {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (h, w) = self.batch.lq;
        let (image, start, end) = self.bands.task(task);
        // SAFETY: the batch holds patch and code of every image by its layout, and rows
        // `start..end` of the output are this task's
        unsafe {
            let code = *self.bytes.at(self.batch.augment_of(image));
            for y in start..end {
                let patch = self.bytes.at(self.batch.lq_of(image));
                read_row(
                    patch,
                    code,
                    y,
                    (h, w),
                    self.output.slice((image * h + y) * w * 3, w * 3),
                );
            }
        }
    }
}

/// Unpacks the LQ patches of the staged batch, augmented, into `[N, h, w, 3]` f32 in 0..=1.
fn unpack(ctx: &Context<'_>, op: &Unpack) {
    let extent = Extent {
        n: op.batch.count,
        h: op.batch.lq.0,
        w: op.batch.lq.1,
    };
    let bands = Bands::new(extent);
    let task = UnpackTask {
        batch: op.batch,
        bytes: ctx.pointer(op.batch.buffer),
        output: ctx.floats(op.output),
        bands,
    };
    ctx.parallel(bands.tasks(), &task);
}

impl CpuOperation for Unpack {
    fn check(&self) -> Result<()> {
        check_extent(self.batch.extent())
    }

    fn run(&self, ctx: &Context<'_>) {
        unpack(ctx, self);
    }
}
