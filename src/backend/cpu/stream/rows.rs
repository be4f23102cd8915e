//! The inner loops of the Stream block that the other operations do not need: depthwise 3x3 taps at
//! any dilation, the gate, and their gradients. Rows are runs of pixels of [`GROUP`] channels. Each
//! output value is one chain of multiply-adds in a fixed order, so its bits do not depend on its
//! position in a row.

use super::super::simd::{LANES, Registers, Simd};
use super::{GROUP, HIDDEN, REACH};

/// Largest absolute value of the gate's product.
pub const CLAMP: f32 = 65504.0;

/// A loop over the pixels of a row that runs a few pixels at a time.
trait PixelTile {
    /// Computes pixels `pixel..pixel + P`.
    ///
    /// # Safety
    /// As [`Simd`], and as the function that makes the tile; the pixels lie inside the row.
    unsafe fn run<S: Simd, const P: usize>(&self, pixel: usize);
}

/// Runs a tile over all `n` pixels of a row.
///
/// # Safety
/// As [`PixelTile::run`] for each pixel of the row.
#[inline(always)]
unsafe fn for_pixels<S: Simd>(n: usize, tile: impl PixelTile) {
    // SAFETY: no tile ends after pixel `n`; the rest is the caller's contract
    unsafe {
        let mut pixel = 0;
        while S::REGISTERS == Registers::Many && pixel + 8 <= n {
            tile.run::<S, 8>(pixel);
            pixel += 8;
        }
        while S::REGISTERS != Registers::Few && pixel + 4 <= n {
            tile.run::<S, 4>(pixel);
            pixel += 4;
        }
        while pixel < n {
            tile.run::<S, 1>(pixel);
            pixel += 1;
        }
    }
}

/// Three rows of a depthwise convolution and its taps: what one group of channels reads.
#[derive(Clone, Copy)]
pub struct Taps {
    /// The rows above, at and below the output, `[n + 2 * D][GROUP]` for a dilation of D; each
    /// begins D pixels left of the output.
    pub rows: [*const f32; 3],
    /// `[ky][kx][GROUP]`.
    pub weights: *const f32,
}

impl Taps {
    /// Adds the nine products of P pixels from `pixel` on to `sums`, for the vector of channels
    /// from `lane` on. It takes one tap after the other for all pixels: their sums are independent,
    /// which hides the latency of the additions.
    ///
    /// # Safety
    /// As [`Simd`]. The rows hold `pixel + P + 2 * D` pixels, and the vector lies inside the group.
    #[inline(always)]
    unsafe fn add<S: Simd, const P: usize, const D: usize>(
        &self,
        pixel: usize,
        lane: usize,
        sums: &mut [S::V; P],
    ) {
        // SAFETY: a value is read at pixels below `pixel + P + 2 * D`; the rest is the caller's
        // contract
        unsafe {
            for (ky, row) in self.rows.iter().enumerate() {
                for kx in 0..3 {
                    let weight = S::load(self.weights.add((ky * 3 + kx) * GROUP + lane));
                    let row = row.add((pixel + kx * D) * GROUP + lane);
                    for (p, sum) in sums.iter_mut().enumerate() {
                        *sum = S::fma(S::load(row.add(p * GROUP)), weight, *sum);
                    }
                }
            }
        }
    }
}

/// See [`row_taps`].
struct TapsRow<const D: usize> {
    taps: Taps,
    bias: *const f32,
    out: *mut f32,
}

impl<const D: usize> PixelTile for TapsRow<D> {
    #[inline(always)]
    unsafe fn run<S: Simd, const P: usize>(&self, pixel: usize) {
        // SAFETY: the contract of `row_taps`
        unsafe {
            for lane in [0, LANES] {
                let mut sums = [S::load(self.bias.add(lane)); P];
                self.taps.add::<S, P, D>(pixel, lane, &mut sums);
                for (p, &sum) in sums.iter().enumerate() {
                    S::store(self.out.add((pixel + p) * GROUP + lane), sum);
                }
            }
        }
    }
}

/// One row of a depthwise 3x3 convolution of dilation D for a group of channels: `out[p][c] =
/// bias[c] + sum of rows[ky][p + D * kx][c] * weights[ky][kx][c]`.
///
/// # Safety
/// As [`Simd`]. The rows hold `[n + 2 * D, GROUP]` values, the weights `[9, GROUP]`, `bias`
/// `[GROUP]`. `out` has room for `[n, GROUP]`, overlaps none of them, and no other thread uses it.
#[inline(always)]
pub unsafe fn row_taps<S: Simd, const D: usize>(
    taps: Taps,
    bias: *const f32,
    n: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's contract is that of every tile
    unsafe { for_pixels::<S>(n, TapsRow::<D> { taps, bias, out }) }
}

/// The gate's depthwise convolution for one group: 16 channels of a, then the same 16 of b.
#[derive(Clone, Copy)]
pub struct Gate {
    /// The rows and taps of the group.
    pub taps: Taps,
    /// `[GROUP]`
    pub bias: *const f32,
    /// The group's vector in the first of the pixels `[n][HIDDEN]` of m. The backward pass finds
    /// the gradient of m there.
    pub m: *mut f32,
}

impl Gate {
    /// The convolution at P pixels, for the vector of channels from `lane` on.
    ///
    /// # Safety
    /// As [`row_gate`]; the pixels lie inside the row.
    #[inline(always)]
    unsafe fn half<S: Simd, const P: usize>(&self, pixel: usize, lane: usize) -> [S::V; P] {
        // SAFETY: the caller's contract
        unsafe {
            let mut sums = [S::load(self.bias.add(lane)); P];
            self.taps.add::<S, P, 1>(pixel, lane, &mut sums);
            sums
        }
    }
}

/// The value within ±[`CLAMP`]; NaN stays NaN.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn clamp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller guarantees the instructions; both return the second value for NaN
    unsafe { S::min(S::splat(CLAMP), S::max(S::splat(-CLAMP), x)) }
}

impl PixelTile for Gate {
    #[inline(always)]
    unsafe fn run<S: Simd, const P: usize>(&self, pixel: usize) {
        // SAFETY: the contract of `row_gate`
        unsafe {
            let a = self.half::<S, P>(pixel, 0);
            let b = self.half::<S, P>(pixel, LANES);
            for p in 0..P {
                let m = clamp::<S>(S::mul(a[p], b[p]));
                S::store(self.m.add((pixel + p) * HIDDEN), m);
            }
        }
    }
}

/// One row of m for one group.
///
/// # Safety
/// As [`Simd`]. The rows of the taps hold `[n + 2, GROUP]` values, weights and bias as stated; `m`
/// has room for a vector in each of n pixels, overlaps none of them, and no other thread uses it.
#[inline(always)]
pub unsafe fn row_gate<S: Simd>(gate: Gate, n: usize) {
    // SAFETY: the caller's contract is that of every tile
    unsafe { for_pixels::<S>(n, gate) }
}

/// See [`row_gate_back`].
struct GateBack {
    gate: Gate,
    d_gate: *mut f32,
}

impl PixelTile for GateBack {
    #[inline(always)]
    unsafe fn run<S: Simd, const P: usize>(&self, pixel: usize) {
        // SAFETY: the contract of `row_gate_back`
        unsafe {
            let a = self.gate.half::<S, P>(pixel, 0);
            let b = self.gate.half::<S, P>(pixel, LANES);
            for p in 0..P {
                let at = self.gate.m.add((pixel + p) * HIDDEN);
                let product = S::mul(a[p], b[p]);
                let m = clamp::<S>(product);
                // 1 where the product is its own clamped value, and 0 elsewhere: the smallest
                // difference beyond the bound is 2^-8
                let beyond = S::abs(S::sub(product, m));
                let inside = S::fma(beyond, S::splat(-1024.0), S::splat(1.0));
                let dm = S::mul(S::load(at), S::max(inside, S::splat(0.0)));
                S::store(at, m);
                let to = self.d_gate.add((pixel + p) * GROUP);
                S::store(to, S::mul(dm, b[p]));
                S::store(to.add(LANES), S::mul(dm, a[p]));
            }
        }
    }
}

/// The backward pass of one row of one group. `gate.m` holds the gradient of m, which m replaces;
/// the gradient of a and b is written to `d_gate`, `[n][GROUP]`. The gradient of a product beyond
/// the clamp is 0.
///
/// # Safety
/// As [`row_gate`]; `d_gate` has room for `[n, GROUP]` values, overlaps nothing else, and no other
/// thread uses it.
#[inline(always)]
pub unsafe fn row_gate_back<S: Simd>(gate: Gate, n: usize, d_gate: *mut f32) {
    // SAFETY: the caller's contract is that of every tile
    unsafe { for_pixels::<S>(n, GateBack { gate, d_gate }) }
}

/// The gradient of the block's input, through both depthwise convolutions.
#[derive(Clone, Copy)]
pub struct InputGradient {
    /// Rows of the gradient of dw1's output, and dw1's taps turned by 180 degrees.
    pub dw1: Taps,
    /// Rows of the gradient of dw3's output, and dw3's taps turned by 180 degrees.
    pub dw3: Taps,
    /// Start values `[n][GROUP]`: the gradient of the block's output, which the residual passes on.
    /// `None`: zeros.
    pub d_output: Option<*const f32>,
    /// `[n][GROUP]`
    pub out: *mut f32,
    /// Whether to store past the caches; `out` must then be a multiple of 64 bytes.
    pub non_temporal: bool,
}

impl PixelTile for InputGradient {
    #[inline(always)]
    unsafe fn run<S: Simd, const P: usize>(&self, pixel: usize) {
        // SAFETY: the contract of `row_input_gradient`
        unsafe {
            for lane in [0, LANES] {
                let mut sums = [S::splat(0.0); P];
                if let Some(start) = self.d_output {
                    for (p, sum) in sums.iter_mut().enumerate() {
                        *sum = S::load(start.add((pixel + p) * GROUP + lane));
                    }
                }
                self.dw1.add::<S, P, 1>(pixel, lane, &mut sums);
                self.dw3.add::<S, P, REACH>(pixel, lane, &mut sums);
                for (p, &sum) in sums.iter().enumerate() {
                    let to = self.out.add((pixel + p) * GROUP + lane);
                    if self.non_temporal {
                        S::stream(to, sum)
                    } else {
                        S::store(to, sum)
                    }
                }
            }
        }
    }
}

/// One row of an [`InputGradient`].
///
/// # Safety
/// As [`Simd`]. The rows of dw1's taps hold `n + 2` pixels and those of dw3's `n + 6`; the other
/// pointers are valid for the shapes that the fields state. `out` overlaps none of them, and no
/// other thread uses it.
#[inline(always)]
pub unsafe fn row_input_gradient<S: Simd>(gradient: InputGradient, n: usize) {
    // SAFETY: the caller's contract is that of every tile
    unsafe { for_pixels::<S>(n, gradient) }
}

/// The gradients of the taps of R rows while a row is summed, for one vector of channels.
struct TapSums<S: Simd, const R: usize> {
    sums: [[S::V; 3]; R],
    /// The gradient of the output two pixels left of the value's own, and one pixel left.
    before: S::V,
    here: S::V,
}

impl<S: Simd, const R: usize> TapSums<S, R> {
    /// Adds the products of the values at pixel `x` of the rows with three gradients: `next`, that
    /// of the output whose leftmost tap the value is, and the two of the calls before.
    ///
    /// # Safety
    /// As [`Simd`]; the rows hold `[x + 1, GROUP]` values.
    #[inline(always)]
    unsafe fn add(&mut self, rows: [*const f32; R], x: usize, next: S::V) {
        // SAFETY: the caller's contract
        unsafe {
            for (row, sums) in rows.iter().zip(&mut self.sums) {
                let value = S::load(row.add(x * GROUP));
                sums[0] = S::fma(value, next, sums[0]);
                sums[1] = S::fma(value, self.here, sums[1]);
                sums[2] = S::fma(value, self.before, sums[2]);
            }
            (self.before, self.here) = (self.here, next);
        }
    }

    /// [`row_taps_outer`] for R of the three rows and one vector of channels.
    ///
    /// # Safety
    /// As [`row_taps_outer`]; all pointers are those of the vector, and `sum` is that of the first
    /// row.
    #[inline(always)]
    unsafe fn add_row<const D: usize>(
        rows: [*const f32; R],
        y: *const f32,
        n: usize,
        sum: *mut f32,
    ) {
        // SAFETY: `y` is read at pixels below n, and the rows at pixels below `n + 2 * D`; the rest
        // is the caller's contract
        unsafe {
            let zero = S::splat(0.0);
            let mut acc = TapSums::<S, R> {
                sums: [[zero; 3]; R],
                before: zero,
                here: zero,
            };
            for first in 0..D.min(n) {
                (acc.before, acc.here) = (zero, zero);
                let mut x = first;
                while x < n {
                    acc.add(rows, x, S::load(y.add(x * GROUP)));
                    x += D;
                }
                acc.add(rows, x, zero);
                acc.add(rows, x + D, zero);
            }
            for (k, &acc) in acc.sums.as_flattened().iter().enumerate() {
                let at = sum.add(k * GROUP);
                S::store(at, S::add(S::load(at), acc));
            }
        }
    }
}

/// Adds one row's part of the weight gradient of a depthwise convolution of dilation D: `sum[ky]
/// [kx][c] += sum over p of rows[ky][p + D * kx][c] * y[p][c]`. It takes every D-th pixel in turn,
/// so that each value is loaded once for the three gradients it is multiplied with.
///
/// # Safety
/// As [`Simd`]. The rows hold `[n + 2 * D, GROUP]` values and `y` `[n, GROUP]`. `sum` holds `[9,
/// GROUP]`, overlaps none of them, and no other thread uses it.
#[inline(always)]
pub unsafe fn row_taps_outer<S: Simd, const D: usize>(
    rows: [*const f32; 3],
    y: *const f32,
    n: usize,
    sum: *mut f32,
) {
    // SAFETY: the vector of `lane` lies inside the group; the rest is the caller's contract
    unsafe {
        for lane in [0, LANES] {
            let (rows, y, sum) = (rows.map(|row| row.add(lane)), y.add(lane), sum.add(lane));
            if S::REGISTERS == Registers::Many {
                TapSums::<S, 3>::add_row::<D>(rows, y, n, sum);
                continue;
            }
            // nine sums would leave no register for the gradients
            for (ky, &row) in rows.iter().enumerate() {
                TapSums::<S, 1>::add_row::<D>([row], y, n, sum.add(ky * 3 * GROUP));
            }
        }
    }
}

/// Adds a row of `len` values, a multiple of 16, to another.
///
/// # Safety
/// As [`Simd`]. Both rows hold the values and do not overlap; no other thread uses `to`.
#[inline(always)]
pub unsafe fn add_row<S: Simd>(from: *const f32, len: usize, to: *mut f32) {
    for i in (0..len).step_by(LANES) {
        // SAFETY: the caller's contract
        unsafe { S::store(to.add(i), S::add(S::load(to.add(i)), S::load(from.add(i)))) }
    }
}

/// Prefetches part number `part` of `parts` of `len` values from `from` on, which may be any
/// address; a few at a time, so that the processor's requests to memory never wait for each other.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn prefetch<S: Simd>(from: *const f32, len: usize, part: usize, parts: usize) {
    for i in (len * part / parts..len * (part + 1) / parts).step_by(LANES) {
        // SAFETY: the caller's contract
        unsafe { S::prefetch(from.wrapping_add(i)) }
    }
}
