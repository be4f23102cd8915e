//! Attention within windows: one task computes one window of one image, head by head, in the
//! scratch of its thread. All matrices there are tiles of 16 x 16 values (`tiles`), since a head
//! has 16 channels; sixteen queries at a time have their scores with all keys in the scratch.
//! `mixed` has the same on bf16
//! factors. Depends on tasks and vectors. A result does not depend on the position of its window, so tiles
//! of an image that begin at multiples of the window have the bits of the whole image.

mod backward;
mod forward;
mod mixed;
mod tiles;

#[cfg(test)]
mod tests;

use super::arena::SharedPtr;
use super::bf16::Products;
use super::elementwise::check_activation;
use super::operation::{CpuOperation, check_extent};
use super::simd::{LANES, Simd};
use super::tasks::{Context, Workspace};
use crate::plan::{WindowAttention, WindowAttentionBack};
use anyhow::{Result, ensure};
use tiles::{TILE, VECTORS, transpose_tiles};

/// Channels of a head: one vector.
const HEAD: usize = LANES;
/// Most pixels along a side of a window.
const MAX_WINDOW: usize = 32;
/// Most keys of a window.
const MAX_KEYS: usize = MAX_WINDOW * MAX_WINDOW;
/// Keys of padding have this score, far below any other.
const NO_SCORE: f32 = -1e30;

/// The pixels of a window. They are its keys, in this order: first those inside the image, row by
/// row, which are also its queries; then those of the padding.
struct WindowPixels {
    /// Each key's pixel in the padded images.
    padded: [usize; MAX_KEYS],
    /// Each query's pixel in the images.
    inside: [usize; MAX_KEYS],
    /// Number of keys.
    keys: usize,
    /// Number of queries.
    queries: usize,
}

impl WindowPixels {
    /// The pixels of window number `task`: windows are counted row by row, image by image.
    fn new(op: &WindowAttention, task: usize) -> WindowPixels {
        let (h, w) = (op.padded.h, op.padded.w);
        let (rows, columns) = (h / op.window, w / op.window);
        let (image, window) = (task / (rows * columns), task % (rows * columns));
        let first = [window / columns, window % columns].map(|i| i * op.window + op.shift);
        let mut pixels = WindowPixels {
            padded: [0; MAX_KEYS],
            inside: [0; MAX_KEYS],
            keys: 0,
            queries: 0,
        };
        for inside in [true, false] {
            for y in (0..op.window).map(|y| rolled(first[0] + y, h)) {
                for x in (0..op.window).map(|x| rolled(first[1] + x, w)) {
                    if inside == (y < op.extent.h && x < op.extent.w) {
                        pixels.padded[pixels.keys] = (image * h + y) * w + x;
                        if inside {
                            let row = image * op.extent.h + y;
                            pixels.inside[pixels.keys] = row * op.extent.w + x;
                        }
                        pixels.keys += 1;
                    }
                }
            }
            if inside {
                pixels.queries = pixels.keys;
            }
        }
        pixels
    }

    /// Number of windows of an operation.
    fn windows(op: &WindowAttention) -> usize {
        op.padded.pixels() / (op.window * op.window)
    }

    /// Tiles of sixteen keys, with the padding that the kernels need.
    fn tiles(&self) -> usize {
        tiles_of(self.keys)
    }

    /// Each key's pixel in the padded images.
    fn key_pixels(&self) -> &[usize] {
        &self.padded[..self.keys]
    }

    /// Each query's pixel in the padded images.
    fn query_pixels(&self) -> &[usize] {
        &self.padded[..self.queries]
    }

    /// Each query's pixel in the images.
    fn inside_pixels(&self) -> &[usize] {
        &self.inside[..self.queries]
    }
}

/// `at` modulo `size`, for `at` below twice the size.
fn rolled(at: usize, size: usize) -> usize {
    if at < size { at } else { at - size }
}

/// Tiles of sixteen keys that `keys` keys take, with padding.
fn tiles_of(keys: usize) -> usize {
    keys.div_ceil(LANES).next_multiple_of(VECTORS)
}

/// The pixels of block number `block` of sixteen.
fn chunk(pixels: &[usize], block: usize) -> &[usize] {
    let at = |block: usize| pixels.len().min(block * LANES);
    &pixels[at(block)..at(block + 1)]
}

/// Tiles that the keys of a window of an operation take.
fn key_tiles(op: &WindowAttention) -> usize {
    tiles_of(op.window * op.window)
}

/// A part of the scratch: `tiles` tiles, which `*scratch` then points past.
///
/// # Safety
/// The scratch has room for them.
unsafe fn take(scratch: &mut *mut f32, tiles: usize) -> *mut f32 {
    let start = *scratch;
    // SAFETY: the caller's contract
    *scratch = unsafe { start.add(tiles * TILE) };
    start
}

/// Copies a head's vectors of these pixels times `factor` to `to`, followed by zeros up to whole
/// tiles, `tiles` in all. `from` is the head's first channel in the first pixel, and a pixel has
/// `stride` channels.
///
/// # Safety
/// As [`Simd`]. The buffer holds the pixels, and nothing writes it. `to` has room for the tiles,
/// and no other thread uses it.
#[inline(always)]
unsafe fn gather<S: Simd>(
    from: *const f32,
    stride: usize,
    pixels: &[usize],
    factor: f32,
    to: *mut f32,
    tiles: usize,
) {
    // SAFETY: there are at most as many pixels as rows of the tiles; the caller's contract
    unsafe {
        let factor = S::splat(factor);
        for (i, &pixel) in pixels.iter().enumerate() {
            let value = S::load(from.add(pixel * stride));
            S::store(to.add(i * LANES), S::mul(value, factor));
        }
        let end = pixels.len() * LANES;
        to.add(end).write_bytes(0, tiles * TILE - end);
    }
}

/// Writes for each key of the tiles what its scores start with: 0, or [`NO_SCORE`] for padding.
///
/// # Safety
/// `to` has room for the 16 keys of each tile, and no other thread uses it.
unsafe fn start_scores(to: *mut f32, keys: usize, tiles: usize) {
    for i in 0..tiles * LANES {
        // SAFETY: the caller's contract
        unsafe { *to.add(i) = if i < keys { 0.0 } else { NO_SCORE } };
    }
}

/// A buffer of q, k and v, or of their gradients: `[N, padded h, padded w, 3C]`.
#[derive(Clone, Copy)]
struct Qkv {
    values: SharedPtr<f32>,
    channels: usize,
}

impl Qkv {
    /// Channels of a pixel.
    fn stride(&self) -> usize {
        3 * self.channels
    }

    /// The channel at which `part` (0: q, 1: k, 2: v) of a head starts.
    fn channel(&self, part: usize, head: usize) -> usize {
        part * self.channels + head * HEAD
    }

    /// [`gather`] of a part of a head.
    ///
    /// # Safety
    /// As [`gather`].
    #[inline(always)]
    unsafe fn gather<S: Simd>(
        &self,
        (part, head): (usize, usize),
        pixels: &[usize],
        factor: f32,
        to: *mut f32,
        tiles: usize,
    ) {
        // SAFETY: the caller's contract
        unsafe {
            let from = self.values.at(self.channel(part, head));
            gather::<S>(from, self.stride(), pixels, factor, to, tiles);
        }
    }

    /// Prefetches all parts of a head. The pixels of a window are far apart in memory, so the
    /// processor does not foresee these reads.
    ///
    /// # Safety
    /// As [`Simd`], and the buffer holds the head and the pixels.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, head: usize, pixels: &[usize]) {
        for pixel in pixels {
            for part in 0..3 {
                // SAFETY: the caller's contract
                unsafe {
                    let at = pixel * self.stride() + self.channel(part, head);
                    S::prefetch(self.values.at(at));
                }
            }
        }
    }

    /// [`Qkv::gather`] of the transposed tiles: `[tile][channel][16 keys]`.
    ///
    /// # Safety
    /// As [`gather`].
    #[inline(always)]
    unsafe fn gather_transposed<S: Simd>(
        &self,
        of: (usize, usize),
        pixels: &[usize],
        to: *mut f32,
        tiles: usize,
    ) {
        // SAFETY: the caller's contract
        unsafe {
            self.gather::<S>(of, pixels, 1.0, to, tiles);
            transpose_tiles::<S>(to, to, tiles);
        }
    }
}

impl CpuOperation for WindowAttention {
    fn check(&self) -> Result<()> {
        let (extent, padded, window) = (self.extent, self.padded, self.window);
        ensure!(
            self.channels.is_multiple_of(LANES) && self.heads * HEAD == self.channels,
            "{} heads of {} channels: only heads of {HEAD} channels are supported",
            self.heads,
            self.channels
        );
        ensure!(
            (2..=MAX_WINDOW).contains(&window),
            "windows of {window}x{window} pixels: 2 to {MAX_WINDOW} are supported"
        );
        ensure!(
            self.shift < window,
            "windows of {window} pixels shifted by {}: less than a window is supported",
            self.shift
        );
        check_activation(padded, 3 * self.channels)?;
        check_extent(extent)?;
        let fits = |from: usize, to: usize| {
            to.is_multiple_of(window) && (from..from + window).contains(&to)
        };
        ensure!(
            extent.n == padded.n && fits(extent.h, padded.h) && fits(extent.w, padded.w),
            "{} images of {}x{} pixels padded to {} of {}x{}: windows of {window} pixels need the \
             next multiple",
            extent.n,
            extent.h,
            extent.w,
            padded.n,
            padded.h,
            padded.w
        );
        Ok(())
    }

    fn workspace(&self) -> Workspace {
        forward::workspace(self)
    }

    fn workspace_for(&self, products: Products) -> Workspace {
        match products {
            Products::F32 => CpuOperation::workspace(self),
            Products::Bf16(_) => mixed::workspace(self),
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        match ctx.products {
            Products::F32 => forward::forward(ctx, self),
            Products::Bf16(unit) => mixed::forward(ctx, self, unit),
        }
    }
}

impl CpuOperation for WindowAttentionBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self) -> Workspace {
        backward::workspace(self)
    }

    fn workspace_for(&self, products: Products) -> Workspace {
        match products {
            Products::F32 => CpuOperation::workspace(self),
            Products::Bf16(_) => mixed::workspace_back(self),
        }
    }

    fn run(&self, ctx: &Context<'_>) {
        match ctx.products {
            Products::F32 => backward::backward(ctx, self),
            Products::Bf16(unit) => mixed::backward(ctx, self, unit),
        }
    }
}
