//! The layout that the codec works in: a patch as planes of sixteen rows side by side. Depends on nothing. Promises that
//! `join(split(image))` is the image, and that every machine computes the same.
//!
//! A patch is cut into [`LANES`] bands of `rows` rows. Byte `k` of group `(r, x)` of a plane belongs to row
//! `k * rows + r`, column `x`: neighbours of all bands lie next to each other, so one vector operation works on sixteen
//! pixels even where each pixel needs its left neighbour decoded first. Rows beyond the patch are padding.

/// Rows side by side: the bytes of one SSE or NEON register.
pub const LANES: usize = 16;
/// Planes of a patch, in the order green, blue, red.
pub const PLANES: usize = 3;

/// Sixteen bytes, one of each band.
pub type Lane = [u8; LANES];

/// How a patch lies in bands.
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
    /// Bands of an LQ patch, and of an HR patch (`scale` > 1) so that band k of the HR shows what band k of the LQ shows.
    pub fn new(lq_size: usize, scale: usize) -> Self {
        Bands { width: lq_size * scale, height: lq_size * scale, rows: lq_size.div_ceil(LANES) * scale }
    }

    /// Bytes of a row of all bands.
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

    /// Bands of which row `r` lies in the patch, always the first ones.
    pub fn lanes_at(&self, r: usize) -> usize {
        (self.height.saturating_sub(r)).div_ceil(self.rows).min(LANES)
    }
}

/// One value of each band.
#[inline(always)]
pub fn each(f: impl FnMut(usize) -> u8) -> Lane {
    std::array::from_fn(f)
}

/// The bytes of one group as an array.
#[inline(always)]
pub fn lane(group: &[u8]) -> Lane {
    let mut out = [0; LANES];
    out.copy_from_slice(&group[..LANES]);
    out
}

/// Rows of RGB to planes of green, blue and red. Padding repeats the last row.
pub fn split(image: &[u8], bands: Bands, planes: &mut [u8]) {
    let (plane, stride) = (bands.plane(), bands.stride());
    let (green, rest) = planes[..bands.bytes()].split_at_mut(plane);
    let (blue, red) = rest.split_at_mut(plane);
    for r in 0..bands.rows {
        let span = r * stride..(r + 1) * stride;
        let (green, blue, red) = (&mut green[span.clone()], &mut blue[span.clone()], &mut red[span]);
        for k in 0..LANES {
            let y = (k * bands.rows + r).min(bands.height - 1);
            let row = &image[y * bands.width * 3..][..bands.width * 3];
            let groups = green.chunks_exact_mut(LANES).zip(blue.chunks_exact_mut(LANES)).zip(red.chunks_exact_mut(LANES));
            for (pixel, ((g, b), r)) in row.chunks_exact(3).zip(groups) {
                r[k] = pixel[0];
                g[k] = pixel[1];
                b[k] = pixel[2];
            }
        }
    }
}

/// Fills the padding with the last row, as [`split`] does.
pub fn repeat_last_row(planes: &mut [u8], bands: Bands) {
    let stride = bands.stride();
    let (last_row, last_lane) = ((bands.height - 1) % bands.rows, (bands.height - 1) / bands.rows);
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

/// Planes of green, blue and red back to rows of RGB.
pub fn join(planes: &[u8], bands: Bands, image: &mut [u8]) {
    let (plane, stride) = (bands.plane(), bands.stride());
    let (green, rest) = planes[..bands.bytes()].split_at(plane);
    let (blue, red) = rest.split_at(plane);
    let blocks = bands.width / LANES;
    for r in 0..bands.rows {
        let span = r * stride..(r + 1) * stride;
        let (green, blue, red) = (&green[span.clone()], &blue[span.clone()], &red[span]);
        let lanes = bands.lanes_at(r);
        for block in 0..blocks {
            let at = block * LANES * LANES;
            let turned = [red, green, blue].map(|p| transpose(&p[at..at + LANES * LANES]));
            let [reds, greens, blues] = &turned;
            for (k, ((red, green), blue)) in reds.iter().zip(greens).zip(blues).enumerate().take(lanes) {
                let out = ((k * bands.rows + r) * bands.width + block * LANES) * 3;
                pack(red, green, blue, &mut image[out..out + LANES * 3]);
            }
        }
        for x in blocks * LANES..bands.width {
            for k in 0..lanes {
                let out = ((k * bands.rows + r) * bands.width + x) * 3;
                for (c, plane) in [red, green, blue].iter().enumerate() {
                    image[out + c] = plane[x * LANES + k];
                }
            }
        }
    }
}

/// Three runs of sixteen values to sixteen pixels.
#[inline(always)]
fn pack(red: &Lane, green: &Lane, blue: &Lane, out: &mut [u8]) {
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        pixel[0] = red[i];
        pixel[1] = green[i];
        pixel[2] = blue[i];
    }
}

/// Sixteen groups of sixteen bytes, rows and columns swapped: four times "deal the two halves into each other" brings
/// every byte to its place. The compiler makes one shuffle of each line.
#[inline(always)]
fn transpose(groups: &[u8]) -> [Lane; LANES] {
    let mut a: [Lane; LANES] = std::array::from_fn(|i| lane(&groups[i * LANES..]));
    for _ in 0..4 {
        let before = a;
        for i in 0..LANES / 2 {
            let (low, high) = (before[i], before[i + LANES / 2]);
            a[2 * i] = each(|k| if k % 2 == 0 { low[k / 2] } else { high[k / 2] });
            a[2 * i + 1] = each(|k| if k % 2 == 0 { low[8 + k / 2] } else { high[8 + k / 2] });
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn transposing_swaps_rows_and_columns() {
        let bytes: Vec<u8> = (0..=255).collect();
        let turned = transpose(&bytes);
        for (i, lane) in turned.iter().enumerate() {
            for (k, &byte) in lane.iter().enumerate() {
                assert_eq!(usize::from(byte), k * LANES + i);
            }
        }
    }

    proptest! {
        #[test]
        fn images_come_back(lq_size in 1usize..40, scale in 1usize..5, seed in any::<u64>()) {
            let mut rng = crate::rng::Rng::new(&[seed]);
            let bands = Bands::new(lq_size, scale);
            prop_assert!(bands.rows * LANES >= bands.height);
            let image: Vec<u8> = (0..bands.width * bands.height * 3).map(|_| rng.next_u64() as u8).collect();
            let mut planes = vec![7; bands.bytes()];
            split(&image, bands, &mut planes);
            for (i, pixel) in image.chunks_exact(3).enumerate() {
                let (y, x) = (i / bands.width, i % bands.width);
                let at = (y % bands.rows * bands.width + x) * LANES + y / bands.rows;
                for (c, p) in [2, 0, 1].into_iter().enumerate() {
                    prop_assert_eq!(planes[p * bands.plane() + at], pixel[c]);
                }
            }
            let mut back = vec![0; image.len()];
            join(&planes, bands, &mut back);
            prop_assert_eq!(back, image);
        }
    }
}
