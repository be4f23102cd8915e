//! Colour transform and spatial prediction inside one patch, in bands. Depends on `bands` and
//! `isa`. Promises that `undo` returns the planes that `residuals` was given, bit for bit.
//!
//! The predicted values are green, blue - green and red - green (the differences plus 128, modulo
//! 256), each from its left, upper and upper left neighbour. The first row of a band has no upper
//! neighbour, since the band above is decoded at the same time: that costs some bytes.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::bands::{Bands, Group, LANES, PLANES, each, first_group, row_of_all, row_of_all_mut};
use crate::support::isa::Isa;

/// The median edge detector of LOCO-I (Weinberger, Seroussi, Sapiro 2000): `left + up - corner`,
/// clamped between the smaller and the larger of `left` and `up`. In this form, with wrapping
/// bytes, it needs no wider integer.
#[inline(always)]
fn med(left: u8, up: u8, corner: u8) -> u8 {
    let (low, high) = (left.min(up), left.max(up));
    low.wrapping_add(high)
        .wrapping_sub(corner.max(low).min(high))
}

/// Computes the residuals of planes of green, blue and red. `values` is a buffer of the same size.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub fn residuals(isa: Isa, planes: &[u8], bands: Bands, values: &mut [u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: an `Isa` with AVX2 exists only where the processor has it
        return unsafe { avx2::residuals(planes, bands, values, out) };
    }
    residuals_plain(planes, bands, values, out)
}

/// [`residuals`] without explicit vector instructions; the compiler vectorizes it.
#[inline(always)]
pub fn residuals_plain(planes: &[u8], bands: Bands, values: &mut [u8], out: &mut [u8]) {
    let (plane, stride) = (bands.plane(), bands.stride());
    values[..bands.bytes()].copy_from_slice(&planes[..bands.bytes()]);
    let (green, rest) = values[..bands.bytes()].split_at_mut(plane);
    for other in rest.chunks_exact_mut(plane) {
        for (v, g) in other.iter_mut().zip(&*green) {
            *v = v.wrapping_sub(*g).wrapping_add(128);
        }
    }
    for (values, out) in values
        .chunks_exact(plane)
        .zip(out.chunks_exact_mut(plane))
        .take(PLANES)
    {
        for (out, value) in out[..LANES].iter_mut().zip(values) {
            *out = value.wrapping_sub(128);
        }
        for ((out, value), left) in out[LANES..stride]
            .iter_mut()
            .zip(&values[LANES..])
            .zip(values)
        {
            *out = value.wrapping_sub(*left);
        }
        for r in 1..bands.rows {
            let (above, row) = values[(r - 1) * stride..(r + 1) * stride].split_at(stride);
            let out = &mut out[r * stride..(r + 1) * stride];
            for ((out, value), up) in out[..LANES].iter_mut().zip(row).zip(above) {
                *out = value.wrapping_sub(*up);
            }
            let neighbours = row.iter().zip(&above[LANES..]).zip(above);
            for ((out, value), ((&left, &up), &corner)) in
                out[LANES..].iter_mut().zip(&row[LANES..]).zip(neighbours)
            {
                *out = value.wrapping_sub(med(left, up, corner));
            }
        }
        clear_padding(out, bands);
    }
}

/// Sets the padding to zero, so that it takes no bytes in the record.
pub fn clear_padding(plane: &mut [u8], bands: Bands) {
    for (r, row) in plane.chunks_exact_mut(bands.stride()).enumerate() {
        let lanes = bands.lanes_at(r);
        if lanes < LANES {
            row.chunks_exact_mut(LANES)
                .for_each(|group| group[lanes..].fill(0));
        }
    }
}

/// Converts residuals to planes of green, blue and red, in place. It calls `finished` with every
/// row, in order, as soon as its values are complete and while they are still in the L1 cache.
pub fn undo(
    isa: Isa,
    planes: &mut [u8],
    bands: Bands,
    mut finished: impl FnMut(usize, [&[u8]; PLANES]),
) {
    for row in row_of_all_mut(planes, bands, 0) {
        let mut left: Group = [128; LANES];
        for group in row.chunks_exact_mut(LANES) {
            left = each(|k| group[k].wrapping_add(left[k]));
            group.copy_from_slice(&left);
        }
    }
    // the row below is predicted from the differences of a row, so they are replaced by colours
    // only after that
    for r in 0..bands.rows {
        if r + 1 < bands.rows {
            let (above, rows) = two_rows(planes, bands, r);
            match isa.has_avx2() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` with AVX2 exists only where the processor has it
                true => unsafe { avx2::undo_row(above, rows) },
                _ => undo_row(above, rows),
            }
        }
        let rows = row_of_all_mut(planes, bands, r);
        match isa.has_avx2() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` with AVX2 exists only where the processor has it
            true => unsafe { avx2::add_green(rows) },
            _ => add_green(rows),
        }
        finished(r, row_of_all(planes, bands, r));
    }
}

/// Rows `r` and `r + 1` of all planes.
fn two_rows(planes: &mut [u8], bands: Bands, r: usize) -> ([&[u8]; PLANES], [&mut [u8]; PLANES]) {
    let stride = bands.stride();
    let (green, rest) = planes.split_at_mut(bands.plane());
    let (blue, red) = rest.split_at_mut(bands.plane());
    let [(a, x), (b, y), (c, z)] =
        [green, blue, red].map(|plane| plane[r * stride..][..2 * stride].split_at_mut(stride));
    ([a, b, c], [x, y, z])
}

/// Replaces the differences blue - green and red - green by blue and red.
#[inline(always)]
pub fn add_green([green, blue, red]: [&mut [u8]; PLANES]) {
    for other in [blue, red] {
        for (v, g) in other.iter_mut().zip(&*green) {
            *v = v.wrapping_add(*g).wrapping_sub(128);
        }
    }
}

/// Decodes one row of all bands and planes from the row above it: `rows` hold residuals and receive
/// values.
fn undo_row(above: [&[u8]; PLANES], rows: [&mut [u8]; PLANES]) {
    for (above, row) in above.into_iter().zip(rows) {
        // the first group has no left neighbour; with left = corner = 0 the predictor returns the
        // upper neighbour
        let mut left: Group = [0; LANES];
        let mut corner: Group = [0; LANES];
        for (group, up) in row.chunks_exact_mut(LANES).zip(above.chunks_exact(LANES)) {
            let (residual, up) = (first_group(group), first_group(up));
            left = each(|k| residual[k].wrapping_add(med(left[k], up[k], corner[k])));
            corner = up;
            group.copy_from_slice(&left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bands::{Window, join, split};
    use super::*;
    use proptest::prelude::*;

    /// The definition of [`residuals`], pixel by pixel.
    fn reference(image: &[u8], bands: Bands) -> Vec<u8> {
        let (width, rows) = (bands.width, bands.rows);
        let value = |p: usize, y: usize, x: usize| {
            let at = (y * width + x) * 3;
            let green = image[at + 1];
            match p {
                0 => green,
                1 => image[at + 2].wrapping_sub(green).wrapping_add(128),
                _ => image[at].wrapping_sub(green).wrapping_add(128),
            }
        };
        let mut out = vec![0; bands.bytes()];
        for p in 0..PLANES {
            for y in 0..bands.height {
                for x in 0..width {
                    let (k, r) = (y / rows, y % rows);
                    let guess = match (r, x) {
                        (0, 0) => 128,
                        (0, _) => value(p, y, x - 1),
                        (_, 0) => value(p, y - 1, x),
                        _ => {
                            let (left, up) =
                                (i32::from(value(p, y, x - 1)), i32::from(value(p, y - 1, x)));
                            let corner = i32::from(value(p, y - 1, x - 1));
                            (left + up - corner).clamp(left.min(up), left.max(up)) as u8
                        }
                    };
                    out[p * bands.plane() + (r * width + x) * LANES + k] =
                        value(p, y, x).wrapping_sub(guess);
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
            lq_size in 1usize..50, scale in 1usize..4, smooth in any::<bool>(), seed in any::<u64>(),
        ) {
            let mut rng = crate::support::rng::Rng::new(&[seed]);
            let bands = Bands::new(lq_size, scale);
            let image: Vec<u8> = (0..bands.width * bands.height * 3)
                .map(|i| if smooth { (i / 3 % 50 * 3) as u8 + rng.below(9) as u8 } else { rng.next_u64() as u8 })
                .collect();
            for isa in Isa::available() {
                let mut planes = vec![0; bands.bytes()];
                split(isa, &image, bands, &mut planes);
                let (mut values, mut out) = (vec![1; bands.bytes()], vec![2; bands.bytes()]);
                residuals(isa, &planes, bands, &mut values, &mut out);
                prop_assert_eq!(&out, &reference(&image, bands));
                let mut rows = 0;
                undo(isa, &mut out, bands, |r, _| {
                    assert_eq!(r, rows);
                    rows += 1;
                });
                prop_assert_eq!(rows, bands.rows);
                let whole = Window { x: 0, y: 0, width: bands.width, height: bands.height };
                let mut back = vec![0; image.len()];
                join(isa, &out, bands, whole, &mut back);
                prop_assert_eq!(back, &image[..], "{:?}", isa);
            }
        }
    }
}
