//! The layout that the codec works in: planes in which sixteen rows of a patch are interleaved.
//! Depends on `isa` alone. Promises that `join` returns the image that `split` was given, with
//! every instruction set.
//!
//! A patch is cut into [`LANES`] bands of `rows` rows each. Byte `k` of group `(r, x)` of a plane
//! belongs to row `k * rows + r`, column `x`. One group holds one pixel of every band, so one
//! vector operation decodes sixteen pixels at a time, although each pixel depends on its left
//! neighbour. Rows beyond the patch are padding.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use crate::support::isa::Isa;

/// Number of bands: the bytes of one SSE or NEON register.
pub const LANES: usize = 16;
/// Planes of a patch, in the order green, blue, red.
pub const PLANES: usize = 3;

/// One byte of each band.
pub type Group = [u8; LANES];

/// The part of a patch that is decoded, in pixels; it must lie inside the patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Left edge.
    pub x: usize,
    /// Top edge.
    pub y: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Window {
    /// Bytes of its pixels.
    pub fn bytes(&self) -> usize {
        self.width * self.height * 3
    }
}

/// The layout of one patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    /// Columns.
    pub width: usize,
    /// Rows of the patch.
    pub height: usize,
    /// Rows of a band; `rows * LANES` is at least `height`.
    pub rows: usize,
}

impl Bands {
    /// The layout of an LQ patch (`scale` 1) or of its HR patch. Band k of both shows the same part
    /// of the image.
    pub fn new(lq_size: usize, scale: usize) -> Self {
        Bands {
            width: lq_size * scale,
            height: lq_size * scale,
            rows: lq_size.div_ceil(LANES) * scale,
        }
    }

    /// Bytes of one row of all bands in a plane.
    pub fn stride(&self) -> usize {
        self.width * LANES
    }

    /// Bytes of one plane.
    pub fn plane(&self) -> usize {
        self.rows * self.stride()
    }

    /// Bytes of all planes.
    pub fn bytes(&self) -> usize {
        PLANES * self.plane()
    }

    /// Number of bands whose row `r` lies inside the patch; they are the first ones.
    pub fn lanes_at(&self, r: usize) -> usize {
        (self.height.saturating_sub(r))
            .div_ceil(self.rows)
            .min(LANES)
    }
}

/// Computes one byte for each band.
#[inline(always)]
pub fn each(f: impl FnMut(usize) -> u8) -> Group {
    std::array::from_fn(f)
}

/// The first group of a row.
#[inline(always)]
pub fn first_group(group: &[u8]) -> Group {
    let mut out = [0; LANES];
    out.copy_from_slice(&group[..LANES]);
    out
}

/// Converts an image (`[height, width, 3]`, u8 RGB) to planes of green, blue and red. The padding
/// repeats the last row.
pub fn split(isa: Isa, image: &[u8], bands: Bands, planes: &mut [u8]) {
    for r in 0..bands.rows {
        let rows = row_of_all_mut(planes, bands, r);
        let source = |k: usize| (k * bands.rows + r).min(bands.height - 1) * bands.width * 3;
        match isa.has_avx2() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` with AVX2 exists only where the processor has it
            true if bands.width >= avx2::COLUMNS => unsafe {
                avx2::split_row(image, bands.width, source, rows)
            },
            _ => split_row(image, bands.width, source, rows),
        }
    }
}

/// Converts one row of all bands, without vector instructions. `source(k)` is the offset in the
/// image of the row of band `k`.
fn split_row(
    image: &[u8],
    width: usize,
    source: impl Fn(usize) -> usize,
    [green, blue, red]: [&mut [u8]; PLANES],
) {
    for k in 0..LANES {
        let row = &image[source(k)..][..width * 3];
        let groups = green
            .chunks_exact_mut(LANES)
            .zip(blue.chunks_exact_mut(LANES))
            .zip(red.chunks_exact_mut(LANES));
        for (pixel, ((g, b), r)) in row.chunks_exact(3).zip(groups) {
            r[k] = pixel[0];
            g[k] = pixel[1];
            b[k] = pixel[2];
        }
    }
}

/// Row `r` of all bands in every plane.
pub fn row_of_all(planes: &[u8], bands: Bands, r: usize) -> [&[u8]; PLANES] {
    std::array::from_fn(|p| &planes[p * bands.plane() + r * bands.stride()..][..bands.stride()])
}

/// See [`row_of_all`].
pub fn row_of_all_mut(planes: &mut [u8], bands: Bands, r: usize) -> [&mut [u8]; PLANES] {
    let (green, rest) = planes.split_at_mut(bands.plane());
    let (blue, red) = rest.split_at_mut(bands.plane());
    [green, blue, red].map(|plane| &mut plane[r * bands.stride()..][..bands.stride()])
}

/// Fills the padding with the last row, as [`split`] does.
pub fn repeat_last_row(planes: &mut [u8], bands: Bands) {
    let stride = bands.stride();
    let (last_row, last_lane) = (
        (bands.height - 1) % bands.rows,
        (bands.height - 1) / bands.rows,
    );
    for plane in planes[..bands.bytes()].chunks_exact_mut(bands.plane()) {
        for r in 0..bands.rows {
            let lanes = bands.lanes_at(r);
            if lanes == LANES {
                continue;
            }
            for x in 0..bands.width {
                let value = plane[last_row * stride + x * LANES + last_lane];
                plane[r * stride + x * LANES + lanes..r * stride + (x + 1) * LANES].fill(value);
            }
        }
    }
}

/// Converts the window of planes of green, blue and red to an image (`[height, width, 3]`, u8 RGB).
pub fn join(isa: Isa, planes: &[u8], bands: Bands, window: Window, image: &mut [u8]) {
    for r in 0..bands.rows {
        join_row(isa, row_of_all(planes, bands, r), bands, r, window, image);
    }
}

/// Converts row `r` of all bands: writes those rows of the image that lie inside the window.
pub fn join_row(
    isa: Isa,
    rows: [&[u8]; PLANES],
    bands: Bands,
    r: usize,
    window: Window,
    image: &mut [u8],
) {
    let rows = rows.map(|row| &row[window.x * LANES..(window.x + window.width) * LANES]);
    let target = |k: usize| {
        let y = (k * bands.rows + r).wrapping_sub(window.y);
        (y < window.height).then(|| y * window.width * 3)
    };
    match isa.has_avx2() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` with AVX2 exists only where the processor has it
        true if window.width >= avx2::COLUMNS => unsafe { avx2::join_row(rows, target, image) },
        _ => join_row_plain(rows, target, image),
    }
}

/// [`join_row`] without vector instructions. `target(k)` is the offset in the image of the row of
/// band `k`, if that row lies inside the window.
fn join_row_plain(
    [green, blue, red]: [&[u8]; PLANES],
    target: impl Fn(usize) -> Option<usize>,
    image: &mut [u8],
) {
    for (k, target) in (0..LANES).filter_map(|k| Some((k, target(k)?))) {
        let out = &mut image[target..][..green.len() / LANES * 3];
        let groups = green
            .chunks_exact(LANES)
            .zip(blue.chunks_exact(LANES))
            .zip(red.chunks_exact(LANES));
        for (pixel, ((g, b), r)) in out.chunks_exact_mut(3).zip(groups) {
            pixel.copy_from_slice(&[r[k], g[k], b[k]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn images_come_back(lq_size in 1usize..70, scale in 1usize..4, seed in any::<u64>()) {
            let mut rng = crate::support::rng::Rng::new(&[seed]);
            let bands = Bands::new(lq_size, scale);
            prop_assert!(bands.rows * LANES >= bands.height);
            let image: Vec<u8> = (0..bands.width * bands.height * 3).map(|_| rng.next_u64() as u8).collect();
            let whole = Window { x: 0, y: 0, width: bands.width, height: bands.height };
            let at = |rng: &mut crate::support::rng::Rng, most: usize| rng.below(most as u64) as usize;
            let (x, y) = (at(&mut rng, bands.width), at(&mut rng, bands.height));
            let part = Window { x, y, width: 1 + at(&mut rng, bands.width - x), height: 1 + at(&mut rng, bands.height - y) };
            let mut planes = vec![7; bands.bytes()];
            for isa in Isa::available() {
                planes.fill(7);
                split(isa, &image, bands, &mut planes);
                let mut back = vec![0; image.len()];
                join(isa, &planes, bands, whole, &mut back);
                prop_assert!(back == image, "{:?}", isa);
                let mut crop = vec![0; part.width * part.height * 3];
                join(isa, &planes, bands, part, &mut crop);
                let rows = image.chunks_exact(bands.width * 3).skip(y).take(part.height);
                let wanted: Vec<u8> = rows.flat_map(|row| &row[x * 3..(x + part.width) * 3]).copied().collect();
                prop_assert!(crop == wanted, "{:?} {:?}", isa, part);
            }
            for (i, pixel) in image.chunks_exact(3).enumerate() {
                let (y, x) = (i / bands.width, i % bands.width);
                let at = (y % bands.rows * bands.width + x) * LANES + y / bands.rows;
                for (c, p) in [2, 0, 1].into_iter().enumerate() {
                    prop_assert_eq!(planes[p * bands.plane() + at], pixel[c]);
                }
            }
        }
    }
}
