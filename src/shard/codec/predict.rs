//! Colour transform and spatial prediction of a whole patch, turned so that sixteen rows are worked on at once. Depends on
//! nothing. Promises that `inverse(forward(image))` is the image, bit for bit, and that every machine computes the same.
//!
//! A patch of h rows is cut into [`LANES`] bands of ceil(h / LANES) rows. Byte `k` of group `(r, x)` of a plane belongs to
//! row `k * rows + r`, column `x`: neighbours of all bands lie next to each other, so one vector operation predicts
//! sixteen pixels, though each pixel needs its left neighbour decoded first. The price is that the first row of a band
//! cannot look up.

/// Rows predicted side by side: the bytes of one SSE or NEON register.
pub const LANES: usize = 16;
/// Planes: green, blue - green, red - green (the differences shifted to lie around 128, modulo 256).
pub const PLANES: usize = 3;

type Lane = [u8; LANES];

/// Rows of one band of a patch `height` pixels high.
pub fn band_rows(height: usize) -> usize {
    height.div_ceil(LANES)
}

/// Bytes of one plane of residuals of a patch.
pub fn plane_bytes(width: usize, height: usize) -> usize {
    band_rows(height) * width * LANES
}

/// The median edge detector of LOCO-I (Weinberger, Seroussi, Sapiro 2000): `left + up - corner`, held between the smaller
/// and the larger of `left` and `up`. Written with wrapping bytes, it needs no wider integer.
#[inline(always)]
fn med(left: u8, up: u8, corner: u8) -> u8 {
    let (low, high) = (left.min(up), left.max(up));
    low.wrapping_add(high).wrapping_sub(corner.max(low).min(high))
}

#[inline(always)]
fn each(f: impl FnMut(usize) -> u8) -> Lane {
    std::array::from_fn(f)
}

/// Residuals of an RGB patch (`width x height x 3` bytes): `residuals` receives [`PLANES`] planes, `values` is room of the
/// same size.
pub fn forward(image: &[u8], width: usize, height: usize, values: &mut [u8], residuals: &mut [u8]) {
    let rows = band_rows(height);
    let plane = plane_bytes(width, height);
    for r in 0..rows {
        for k in 0..LANES {
            // rows beyond the patch repeat the last one; their residuals are set to zero below
            let y = (k * rows + r).min(height - 1);
            let row = &image[y * width * 3..][..width * 3];
            let (green, rest) = values[..plane * PLANES].split_at_mut(plane);
            let (blue, red) = rest.split_at_mut(plane);
            let span = r * width * LANES..(r + 1) * width * LANES;
            let groups = green[span.clone()]
                .chunks_exact_mut(LANES)
                .zip(blue[span.clone()].chunks_exact_mut(LANES))
                .zip(red[span].chunks_exact_mut(LANES));
            for (pixel, ((g, b), r)) in row.chunks_exact(3).zip(groups) {
                g[k] = pixel[1];
                b[k] = pixel[2].wrapping_sub(pixel[1]).wrapping_add(128);
                r[k] = pixel[0].wrapping_sub(pixel[1]).wrapping_add(128);
            }
        }
    }
    let stride = width * LANES;
    for (values, residuals) in values.chunks_exact(plane).zip(residuals.chunks_exact_mut(plane)).take(PLANES) {
        for (i, out) in residuals[..LANES].iter_mut().enumerate() {
            *out = values[i].wrapping_sub(128);
        }
        for i in LANES..stride {
            residuals[i] = values[i].wrapping_sub(values[i - LANES]);
        }
        for r in 1..rows {
            let (above, row) = values[(r - 1) * stride..(r + 1) * stride].split_at(stride);
            let out = &mut residuals[r * stride..(r + 1) * stride];
            for i in 0..LANES {
                out[i] = row[i].wrapping_sub(above[i]);
            }
            let neighbours = row.iter().zip(&above[LANES..]).zip(above);
            for ((out, value), ((&left, &up), &corner)) in out[LANES..].iter_mut().zip(&row[LANES..]).zip(neighbours) {
                *out = value.wrapping_sub(med(left, up, corner));
            }
        }
        if rows * LANES != height {
            for r in 0..rows {
                for k in (0..LANES).filter(|k| k * rows + r >= height) {
                    for x in 0..width {
                        residuals[r * stride + x * LANES + k] = 0;
                    }
                }
            }
        }
    }
}

/// The patch (`width x height x 3` bytes) that `residuals` describe; they are replaced by the values of the planes.
pub fn inverse(residuals: &mut [u8], width: usize, height: usize, image: &mut [u8]) {
    let rows = band_rows(height);
    let plane = plane_bytes(width, height);
    let stride = width * LANES;
    for plane in residuals[..plane * PLANES].chunks_exact_mut(plane) {
        let mut left: Lane = [128; LANES];
        for group in plane[..stride].chunks_exact_mut(LANES) {
            left = each(|k| group[k].wrapping_add(left[k]));
            group.copy_from_slice(&left);
        }
        for r in 1..rows {
            let (above, row) = plane[(r - 1) * stride..(r + 1) * stride].split_at_mut(stride);
            undo_row(above, row);
        }
    }
    interleave(&residuals[..plane * PLANES], width, height, image);
}

/// One row of bands below another: `row` holds residuals and receives values.
#[inline(always)]
fn undo_row(above: &[u8], row: &mut [u8]) {
    // the first group has nothing to its left; with left = corner the predictor returns what is above
    let mut left: Lane = [0; LANES];
    let mut corner: Lane = [0; LANES];
    for (group, up) in row.chunks_exact_mut(LANES).zip(above.chunks_exact(LANES)) {
        let low = each(|k| left[k].min(up[k]));
        let high = each(|k| left[k].max(up[k]));
        let sum = each(|k| low[k].wrapping_add(high[k]).wrapping_add(group[k]));
        let held = each(|k| corner[k].max(low[k]).min(high[k]));
        left = each(|k| sum[k].wrapping_sub(held[k]));
        corner.copy_from_slice(up);
        group.copy_from_slice(&left);
    }
}

/// Planes of values back to rows of RGB.
fn interleave(values: &[u8], width: usize, height: usize, image: &mut [u8]) {
    let rows = band_rows(height);
    let plane = plane_bytes(width, height);
    let stride = width * LANES;
    let (green, rest) = values.split_at(plane);
    let (blue, red) = rest.split_at(plane);
    for r in 0..rows {
        let span = r * stride..(r + 1) * stride;
        let (green, blue, red) = (&green[span.clone()], &blue[span.clone()], &red[span]);
        for k in (0..LANES).filter(|k| k * rows + r < height) {
            let y = k * rows + r;
            let out = &mut image[y * width * 3..][..width * 3];
            let groups = green.chunks_exact(LANES).zip(blue.chunks_exact(LANES)).zip(red.chunks_exact(LANES));
            for (pixel, ((g, b), r)) in out.chunks_exact_mut(3).zip(groups) {
                let base = g[k].wrapping_sub(128);
                pixel[0] = r[k].wrapping_add(base);
                pixel[1] = g[k];
                pixel[2] = b[k].wrapping_add(base);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, pixel by pixel: what [`forward`] must give.
    fn reference(image: &[u8], width: usize, height: usize) -> Vec<u8> {
        let rows = band_rows(height);
        let plane = plane_bytes(width, height);
        let value = |p: usize, y: usize, x: usize| {
            let at = (y * width + x) * 3;
            let green = image[at + 1];
            match p {
                0 => green,
                1 => image[at + 2].wrapping_sub(green).wrapping_add(128),
                _ => image[at].wrapping_sub(green).wrapping_add(128),
            }
        };
        let mut out = vec![0; plane * PLANES];
        for p in 0..PLANES {
            for y in 0..height {
                for x in 0..width {
                    let (k, r) = (y / rows, y % rows);
                    let guess = match (r, x) {
                        (0, 0) => 128,
                        (0, _) => value(p, y, x - 1),
                        (_, 0) => value(p, y - 1, x),
                        _ => {
                            let (left, up) = (i32::from(value(p, y, x - 1)), i32::from(value(p, y - 1, x)));
                            let corner = i32::from(value(p, y - 1, x - 1));
                            (left + up - corner).clamp(left.min(up), left.max(up)) as u8
                        }
                    };
                    out[p * plane + (r * width + x) * LANES + k] = value(p, y, x).wrapping_sub(guess);
                }
            }
        }
        out
    }

    #[test]
    fn byte_predictor_equals_the_definition_for_all_neighbours() {
        for left in (0..=255).step_by(5) {
            for up in (0..=255).step_by(3) {
                for corner in 0..=255i32 {
                    let expected = (left + up - corner).clamp(left.min(up), left.max(up)) as u8;
                    assert_eq!(med(left as u8, up as u8, corner as u8), expected);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn residuals_follow_the_definition_and_come_back(
            width in 1usize..50,
            height in 1usize..50,
            smooth in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let mut rng = crate::rng::Rng::new(&[seed]);
            let image: Vec<u8> = (0..width * height * 3)
                .map(|i| if smooth { (i / 3 % width * 3 + i / 3 / width) as u8 + rng.below(9) as u8 } else { rng.next_u64() as u8 })
                .collect();
            let bytes = plane_bytes(width, height) * PLANES;
            let (mut values, mut residuals) = (vec![1; bytes], vec![2; bytes]);
            forward(&image, width, height, &mut values, &mut residuals);
            prop_assert_eq!(&residuals, &reference(&image, width, height));
            let mut back = vec![0; image.len()];
            inverse(&mut residuals, width, height, &mut back);
            prop_assert_eq!(back, image);
        }
    }
}
