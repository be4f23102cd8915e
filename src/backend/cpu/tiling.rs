//! The loops that all convolutions in Winograd's form share: rows with zeros outside the image,
//! weights packed for the products, a convolution of one row of tiles, and the transforms of a
//! weight gradient. Depends on the transforms of `winograd`. Tiles are OUT x OUT pixels.

use super::arena::SharedPtr;
use super::simd::{LANES, Simd};
use super::winograd::{
    CHUNK, Chunk, GROUP, IN, Output, POINTS, Points, Span, multiply_and_store, point_stride,
    products, transform_gradient, transform_input, transform_weights,
};

/// Tiles of `OUT` pixels that cover a row of `w`.
pub fn tiles<const OUT: usize>(w: usize) -> usize {
    w.div_ceil(OUT)
}

/// Lanes `0..n` in the groups that are multiplied together: (first lane, whether two vectors).
fn groups(n: usize) -> impl Iterator<Item = (usize, bool)> {
    (0..n)
        .step_by(GROUP)
        .map(move |lane| (lane, lane + GROUP <= n))
}

/// Writes transformed weights `[point][k][lanes of a group]`, one group after the other, for
/// `lanes` lanes; `value(lane, k, tap)` gives the taps.
pub fn pack<const TAPS: usize>(
    out: &mut [f32],
    k: usize,
    lanes: usize,
    value: impl Fn(usize, usize, usize) -> f64,
) {
    for (first, two) in groups(lanes) {
        let width = if two { GROUP } else { LANES };
        let group = &mut out[first * POINTS * k..];
        for (i, lane) in (0..k * width).map(|at| (at / width, at % width)) {
            let transformed =
                transform_weights::<TAPS>(|y, x| value(first + lane, i, y * TAPS + x));
            transformed
                .into_iter()
                .enumerate()
                .for_each(|(point, value)| group[(point * k + i) * width + lane] = value);
        }
    }
}

/// Rows `[w][c]` of one image of an activation.
#[derive(Clone, Copy)]
pub struct ImageRows {
    /// The activation `[N][h][w][c]`.
    pub source: SharedPtr<f32>,
    /// A row of zeros, for rows outside the image.
    pub zeros: *const f32,
    /// The image, below N.
    pub image: usize,
    /// Rows of an image.
    pub h: usize,
    /// Columns of an image.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl ImageRows {
    /// `N` rows from `first` on. Rows before the image, and from `end` on, are zeros.
    ///
    /// # Safety
    /// The activation holds `[h, w, c]` values for every image up to this one, `zeros` has `w * c`
    /// values, and `end` is at most `h`.
    #[inline(always)]
    pub unsafe fn get<const N: usize>(&self, first: isize, end: usize) -> [*const f32; N] {
        std::array::from_fn(|k| {
            let row = first + k as isize;
            if row < 0 || row >= end as isize {
                return self.zeros;
            }
            let at = (self.image * self.h + row as usize) * self.w * self.c;
            // SAFETY: `row` is below `h`, and the caller guarantees that the activation holds the
            // image's rows
            unsafe { self.source.at(at).cast_const() }
        })
    }
}

/// The convolution of one row of tiles.
#[derive(Clone, Copy)]
pub struct TileRow<const OUT: usize> {
    /// Six input rows `[w][c]`; the first lies `before(OUT)` rows above the outputs.
    pub inputs: [*const f32; IN],
    /// Channels of the input rows, a multiple of 16.
    pub c: usize,
    /// Channels that are multiplied, at most `c`: the distance between transformed tiles.
    pub depth: usize,
    /// Pixels of a row.
    pub w: usize,
    /// Room for one chunk: [`convolution_scratch`] values.
    pub scratch: *mut f32,
    /// Weights from [`pack`], for `depth` inputs and `lanes` outputs.
    pub weights: *const f32,
    /// Bias, `[lanes]`.
    pub bias: *const f32,
    /// Output channels, a multiple of 16.
    pub lanes: usize,
    /// Output rows `[w][lanes]`; the lower ones may be missing.
    pub outputs: [Option<*mut f32>; OUT],
    /// Whether to store past the caches.
    pub non_temporal: bool,
}

/// f32 values of [`TileRow::scratch`]: transformed inputs of a chunk, and their products.
pub fn convolution_scratch(depth: usize) -> usize {
    POINTS * point_stride(CHUNK * depth) + products()
}

/// Computes a [`TileRow`].
///
/// # Safety
/// As [`Simd`]. The pointers are valid for the sizes that the fields state; scratch and outputs
/// overlap nothing else and no other thread uses them. With `non_temporal`, every output row begins
/// at a multiple of 64 bytes.
#[inline(always)]
pub unsafe fn convolve_tiles<S: Simd, const OUT: usize>(t: &TileRow<OUT>) {
    let stride = point_stride(CHUNK * t.depth);
    // SAFETY: the scratch holds CHUNK tiles at every point and, after them, their products; groups
    // stay below `lanes`, so weights, bias and outputs hold them; the rest is the caller's contract
    unsafe {
        let m = t.scratch.add(POINTS * stride);
        for first in (0..tiles::<OUT>(t.w)).step_by(CHUNK) {
            let count = CHUNK.min(tiles::<OUT>(t.w) - first);
            let span = Span {
                first,
                count,
                w: t.w,
                c: t.c,
            };
            let points = Points {
                base: t.scratch,
                point_stride: stride,
                tile_stride: t.depth,
            };
            transform_input::<S, OUT>(t.inputs, span, points);
            let chunk = Chunk {
                v: t.scratch,
                k: t.depth,
                count,
                m,
            };
            for (lane, two) in groups(t.lanes) {
                let mut rows = t.outputs;
                for row in rows.iter_mut().flatten() {
                    *row = row.add(lane);
                }
                let out = Output {
                    rows,
                    stride: t.lanes,
                    x: OUT * first,
                    w: t.w,
                    non_temporal: t.non_temporal,
                };
                let (u, bias) = (t.weights.add(lane * POINTS * t.depth), t.bias.add(lane));
                // the depths of Nano networks are constants, so that their loops are unrolled
                match t.depth {
                    12 => multiply_and_store::<S, 12, OUT>(&chunk, u, two, bias, out),
                    16 => multiply_and_store::<S, 16, OUT>(&chunk, u, two, bias, out),
                    _ => multiply_and_store::<S, 0, OUT>(&chunk, u, two, bias, out),
                }
            }
        }
    }
}

/// Inputs and output gradients of a row of tiles, from which a weight gradient is made.
#[derive(Clone, Copy)]
pub struct GradientTiles<const OUT: usize> {
    /// As [`TileRow::inputs`].
    pub inputs: [*const f32; IN],
    /// Channels of the inputs, a multiple of 16.
    pub c: usize,
    /// Gradients of the output rows, `[w][lanes]`.
    pub gradients: [*const f32; OUT],
    /// Channels of the gradients, a multiple of 16.
    pub lanes: usize,
    /// Pixels of a row.
    pub w: usize,
    /// Tiles that are transformed at a time.
    pub span: usize,
    /// Room for [`gradient_scratch`] values.
    pub scratch: *mut f32,
}

/// f32 values of [`GradientTiles::scratch`].
pub fn gradient_scratch(span: usize, c: usize, lanes: usize) -> usize {
    POINTS * (point_stride(span * c) + point_stride(span * lanes))
}

impl<const OUT: usize> GradientTiles<OUT> {
    /// The transformed inputs `[span][c]` and gradients `[span][lanes]` at one point.
    ///
    /// # Safety
    /// The scratch is as large as [`gradient_scratch`] says; `point` is below [`POINTS`].
    #[inline(always)]
    pub unsafe fn at(&self, point: usize) -> (*mut f32, *mut f32) {
        let (v, z) = (
            point_stride(self.span * self.c),
            point_stride(self.span * self.lanes),
        );
        // SAFETY: the transformed inputs come first, then the gradients, each with 36 points
        unsafe {
            (
                self.scratch.add(point * v),
                self.scratch.add(POINTS * v + point * z),
            )
        }
    }

    /// Transforms tiles `first..first + count`, at most `span`.
    ///
    /// # Safety
    /// As [`Simd`]. The pointers are valid for the sizes that the fields state; the scratch
    /// overlaps nothing else and no other thread uses it.
    #[inline(always)]
    pub unsafe fn transform<S: Simd>(&self, first: usize, count: usize) {
        // SAFETY: every point has room for `span` tiles and one vector more, by `point_stride`
        unsafe {
            let (v, z) = self.at(0);
            let span = Span {
                first,
                count,
                w: self.w,
                c: self.c,
            };
            let points = Points {
                base: v,
                point_stride: point_stride(self.span * self.c),
                tile_stride: self.c,
            };
            transform_input::<S, OUT>(self.inputs, span, points);
            let span = Span {
                c: self.lanes,
                ..span
            };
            let points = Points {
                base: z,
                point_stride: point_stride(self.span * self.lanes),
                tile_stride: self.lanes,
            };
            transform_gradient::<S, OUT>(self.gradients, span, points);
        }
    }
}
