//! From bytes to floats: rows of u8 patches through their augmentation codes, and the unpacking of
//! a staged batch made of them. Depends on the plan's index map.

use super::arena::SharedPtr;
use super::simd::Simd;
use super::tasks::{Bands, Context, Task};
use crate::plan::{BatchLayout, Extent, Unpack};
use crate::support::augment;

/// One row of an augmented patch, without moving it: where it starts and how far one pixel is from
/// the next, in pixels.
#[inline(always)]
fn row_walk(code: u8, y: usize, h: usize, w: usize) -> (isize, isize) {
    // only square patches can be turned (see `BatchView::check`), but a host may write any code
    // into a batch
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

/// Pixels of a row that are read at a time.
const RUN: usize = 128;
/// Room for them.
type Room = [[u8; 3]; RUN];

/// The bytes of pixels `start..start + count` of a walk through a patch: where they lie when the
/// walk goes forward, else gathered in `room`. (No closure per run: one that is not inlined would
/// lose the vectors it is compiled for.)
///
/// # Safety
/// The pixels must lie inside the patch; `count` is at most [`RUN`].
#[inline(always)]
unsafe fn run_of(
    patch: *const u8,
    (first, step): (isize, isize),
    start: usize,
    count: usize,
    room: &mut Room,
) -> *const u8 {
    let at = |x: usize| (first + step * (start + x) as isize) * 3;
    // SAFETY: the caller says that the pixels lie inside the patch; where the walk goes forward
    // they lie one behind the other
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

/// Row `y` of an augmented patch of `h` x `w` pixels, RGB in 0..=1 `[w, 3]`.
///
/// # Safety
/// `patch` must point to the stored `[h, w, 3]` bytes, which nobody writes meanwhile, `y` be below
/// `h`, and `out` a row long.
#[inline(always)]
pub unsafe fn read_row(
    patch: *const u8,
    code: u8,
    y: usize,
    (h, w): (usize, usize),
    out: &mut [f32],
) {
    let (walk, mut room) = (row_walk(code, y, h, w), [[0; 3]; RUN]);
    for (i, out) in out.chunks_mut(3 * RUN).enumerate() {
        // SAFETY: a row of a patch, turned only if that is square, lies inside it; the bytes are
        // used before `room` changes again
        let bytes = unsafe {
            std::slice::from_raw_parts(
                run_of(patch, walk, i * RUN, out.len() / 3, &mut room),
                out.len(),
            )
        };
        out.iter_mut()
            .zip(bytes)
            .for_each(|(out, &b)| *out = f32::from(b) / 255.0);
    }
}

/// `row[i] -= pixel` for row `y` of an augmented patch, in units of 1/255.
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
    let (walk, mut room) = (row_walk(code, y, h, w), [[0; 3]; RUN]);
    for (i, row) in row.chunks_mut(3 * RUN).enumerate() {
        // SAFETY: a row of a patch, turned only if that is square, lies inside it; the bytes are
        // used before `room` changes again
        let bytes = unsafe {
            std::slice::from_raw_parts(
                run_of(patch, walk, i * RUN, row.len() / 3, &mut room),
                row.len(),
            )
        };
        row.iter_mut()
            .zip(bytes)
            .for_each(|(value, &b)| *value -= f32::from(b));
    }
}

struct UnpackTask {
    batch: BatchLayout,
    bytes: SharedPtr<u8>,
    output: SharedPtr<f32>,
    bands: Bands,
}

impl Task for UnpackTask {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (h, w) = self.batch.lq;
        let (image, start, end) = self.bands.task(task);
        // SAFETY: the batch holds patch and code of every image, by its layout; rows `start..end`
        // of the output are this task's
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

/// Runs the unpacking.
pub fn unpack(ctx: &Context<'_>, op: &Unpack) {
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
