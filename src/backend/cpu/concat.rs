//! Channels of several activations side by side. Depends on `elementwise`. The parts' channels need
//! not fill whole vectors. A vector of the output that reaches into the next part is stored before
//! that part is.

use super::elementwise::{Output, Store, check_activation, values_of};
use super::operation::CpuOperation;
use super::simd::{LANES, Simd};
use super::tasks::{Bands, Context, Task};
use crate::plan::{Concat, ConcatBack};
use anyhow::{Result, ensure};

/// The place of a part in the output's channels.
#[derive(Clone, Copy)]
struct PartChannels {
    /// First channel in the output.
    first: usize,
    /// Channels, without those that fill the last vector.
    count: usize,
}

impl PartChannels {
    /// Channels of the part's buffer.
    fn stride(&self) -> usize {
        self.count.next_multiple_of(LANES)
    }
}

/// The places of all parts, in their order.
fn places(op: &Concat) -> impl Iterator<Item = PartChannels> {
    op.parts.iter().scan(0, |next, &(_, count)| {
        let first = *next;
        *next += count;
        Some(PartChannels { first, count })
    })
}

/// Copies all parts of the rows of a band.
struct Forward<'a> {
    ctx: &'a Context<'a>,
    op: &'a Concat,
    bands: Bands,
    /// `[N, h, w, stride]`
    output: Output,
}

impl Forward<'_> {
    /// Copies a part of one pixel from `from`, the pixel of the part, to value number `pixel` of
    /// the output.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose pixel it is.
    #[inline(always)]
    unsafe fn copy<S: Simd>(&self, from: *const f32, pixel: usize, part: PartChannels) {
        // SAFETY: the part's pixel is whole vectors, and those of the output end inside the pixel:
        // channels that do not fill a vector before its end are copied one by one
        unsafe {
            for lane in (0..part.count).step_by(LANES) {
                let (from, channel) = (from.add(lane), part.first + lane);
                if channel + LANES <= self.op.stride() {
                    self.output.put::<S>(pixel + channel, S::load(from));
                } else {
                    let to = self.output.values.at(pixel + channel);
                    std::ptr::copy_nonoverlapping(from, to, part.count - lane);
                }
            }
        }
    }
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (extent, stride) = (self.op.extent, self.op.stride());
        let pixels = values_of(self.bands, extent, 1, task);
        // SAFETY: these pixels of the output are this task's, and all buffers hold them; a pixel
        // that is streamed has parts of whole vectors (`run`)
        unsafe {
            for row in pixels.step_by(extent.w).map(|x| x..x + extent.w) {
                for (part, &(buffer, _)) in places(self.op).zip(&self.op.parts) {
                    let from = self.ctx.floats(buffer);
                    for x in row.clone() {
                        self.copy::<S>(from.at(x * part.stride()), x * stride, part);
                    }
                }
                let unused = stride - self.op.channels();
                for x in row.filter(|_| unused > 0) {
                    let end = (x + 1) * stride;
                    self.output.values.at(end - unused).write_bytes(0, unused);
                }
            }
            S::fence();
        }
    }
}

impl CpuOperation for Concat {
    fn check(&self) -> Result<()> {
        check_activation(self.extent, self.channels())?;
        ensure!(
            self.parts.iter().all(|&(_, channels)| channels > 0),
            "a part without channels"
        );
        Ok(())
    }

    fn run(&self, ctx: &Context<'_>) {
        let bands = Bands::new(self.extent);
        let mut store = Store::new(self.extent, self.stride(), false);
        if !places(self).all(|part| part.count.is_multiple_of(LANES)) {
            store = Store::Replace;
        }
        let task = Forward {
            ctx,
            op: self,
            bands,
            output: Output {
                values: ctx.floats(self.output),
                store,
            },
        };
        ctx.parallel(bands.tasks(), &task);
    }
}

/// The gradients of all parts in the rows of a band.
struct Backward<'a> {
    ctx: &'a Context<'a>,
    op: &'a ConcatBack,
    bands: Bands,
}

/// The `count` values from `from` on, at most 16, followed by zeros.
///
/// # Safety
/// As [`Simd`], and the values can be read.
#[inline(always)]
unsafe fn load_first<S: Simd>(from: *const f32, count: usize) -> S::V {
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller guarantees that the values can be read, and they fit into a vector
    unsafe {
        std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
        S::load(lanes.as_ptr())
    }
}

/// The gradients of a part in `pixels`, from the output's gradient `d_output`, a pointer to its
/// first value.
///
/// # Safety
/// As [`Task::run`] of the task whose pixels these are. A pixel of the output has `stride` values.
#[inline(always)]
unsafe fn gradient_of_part<S: Simd>(
    d_output: *const f32,
    stride: usize,
    part: PartChannels,
    pixels: std::ops::Range<usize>,
    d_part: Output,
) {
    let last = part.count % LANES;
    let used: [f32; LANES] = std::array::from_fn(|i| if i < last { 1.0 } else { 0.0 });
    // SAFETY: the part's pixel is whole vectors. Those of the output are read inside the pixel:
    // channels that do not fill a vector before its end are read one by one.
    unsafe {
        let used = S::load(used.as_ptr());
        for x in pixels {
            let (from, to) = (d_output.add(x * stride + part.first), x * part.stride());
            for lane in (0..part.count - last).step_by(LANES) {
                d_part.put::<S>(to + lane, S::load(from.add(lane)));
            }
            if last > 0 {
                let lane = part.count - last;
                let value = if part.first + lane + LANES <= stride {
                    // the next part's channels follow
                    S::where_positive(used, S::load(from.add(lane)), S::splat(0.0))
                } else {
                    load_first::<S>(from.add(lane), last)
                };
                d_part.put::<S>(to + lane, value);
            }
        }
    }
}

impl Task for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let op = &self.op.forward;
        let extent = op.extent;
        let pixels = values_of(self.bands, extent, 1, task);
        // SAFETY: these pixels of the gradients are this task's, and all buffers hold them
        unsafe {
            let d_output = self.ctx.floats(self.op.d_output).at(0);
            for row in pixels.step_by(extent.w).map(|x| x..x + extent.w) {
                for (part, d_part) in places(op).zip(&self.op.d_parts) {
                    let Some(d_part) = d_part else { continue };
                    let output = Output {
                        values: self.ctx.floats(d_part.buffer),
                        store: Store::new(extent, part.stride(), d_part.add),
                    };
                    gradient_of_part::<S>(d_output, op.stride(), part, row.clone(), output);
                }
            }
            S::fence();
        }
    }
}

impl CpuOperation for ConcatBack {
    fn check(&self) -> Result<()> {
        ensure!(
            self.d_parts.len() == self.forward.parts.len(),
            "{} gradients of {} parts",
            self.d_parts.len(),
            self.forward.parts.len()
        );
        self.forward.check()
    }

    fn run(&self, ctx: &Context<'_>) {
        let bands = Bands::new(self.forward.extent);
        let task = Backward {
            ctx,
            op: self,
            bands,
        };
        ctx.parallel(bands.tasks(), &task);
    }
}
