//! Predicts the LQ patch from its HR patch, in bands. Most LQ images were made from their HR by a
//! known filter, so the difference from the filter's result takes far fewer bytes than the LQ.
//! Depends on `bands` and `isa`. Promises integer arithmetic with the same result on every machine;
//! a bad prediction only makes the record larger.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::bands::{Bands, LANES, PLANES, first_group};
use crate::support::isa::Isa;

/// HR rows and columns that the half-size filter looks at beyond a pixel's own two.
const REACH: usize = 3;

/// How the LQ is predicted from the HR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LqPredictor {
    /// The mean of the `scale x scale` HR pixels of each LQ pixel: close to any filter. At scale 1
    /// the prediction is the HR itself.
    Mean,
    /// Bicubic downscaling by 2 (Keys' cubic with a = -0.5, antialiased, along x first, rounded to
    /// bytes in between, as Pillow and `dataset::degrade` do it). For scale 2 only.
    Half,
}

/// Buffers of [`add`].
pub struct LqBuffers {
    /// One HR row, its even columns before its odd columns.
    apart: Vec<u8>,
    /// One plane filtered along x: HR rows of LQ width.
    narrow: Vec<u8>,
    /// Rows of `narrow` that belong to the neighbouring bands.
    halo: Vec<u8>,
    /// One predicted row.
    predicted: Vec<u8>,
}

impl LqBuffers {
    /// Allocates for HR patches in these bands.
    pub fn new(hr: Bands) -> Self {
        let [apart, narrow, halo, predicted] = Self::sizes(hr);
        LqBuffers {
            apart: vec![0; apart],
            narrow: vec![0; narrow],
            halo: vec![0; halo],
            predicted: vec![0; predicted],
        }
    }

    /// Memory of the buffers, in bytes.
    pub fn bytes(hr: Bands) -> usize {
        Self::sizes(hr).iter().sum()
    }

    fn sizes(hr: Bands) -> [usize; 4] {
        let row = hr.stride() / 2;
        [
            hr.stride() + 2 * REACH * LANES,
            hr.rows * row,
            2 * REACH * row,
            row,
        ]
    }
}

/// Adds the prediction to planes of LQ residuals (modulo 256). `hr_planes` are green, blue and red;
/// their padding must repeat the last row.
pub fn add(
    isa: Isa,
    predictor: LqPredictor,
    (hr_planes, hr): (&[u8], Bands),
    (lq_planes, lq): (&mut [u8], Bands),
    buffers: &mut LqBuffers,
) {
    let planes = hr_planes
        .chunks_exact(hr.plane())
        .zip(lq_planes.chunks_exact_mut(lq.plane()));
    for (hr_plane, lq_plane) in planes.take(PLANES) {
        match predictor {
            LqPredictor::Mean => add_mean(hr_plane, hr, lq_plane, lq),
            LqPredictor::Half => add_half(isa, (hr_plane, hr), (lq_plane, lq), buffers),
        }
    }
}

/// Adds the rounded means of one plane.
fn add_mean(hr_plane: &[u8], hr: Bands, lq_plane: &mut [u8], lq: Bands) {
    let scale = hr.width / lq.width;
    if scale == 1 {
        // the mean of one pixel; the LQ is as large as the HR here, and divisions would be slow
        for (out, v) in lq_plane.iter_mut().zip(hr_plane) {
            *out = out.wrapping_add(*v);
        }
        return;
    }
    let area = (scale * scale) as u32;
    let rows = hr_plane
        .chunks_exact(scale * hr.stride())
        .zip(lq_plane.chunks_exact_mut(lq.stride()));
    for (block, out) in rows {
        for (x, out) in out.chunks_exact_mut(LANES).enumerate() {
            let mut sum = [area / 2; LANES];
            for row in block.chunks_exact(hr.stride()) {
                for group in row[x * scale * LANES..(x + 1) * scale * LANES].chunks_exact(LANES) {
                    for (s, &v) in sum.iter_mut().zip(group) {
                        *s += u32::from(v);
                    }
                }
            }
            for (out, s) in out.iter_mut().zip(sum) {
                *out = out.wrapping_add((s / area) as u8);
            }
        }
    }
}

/// Absolute weights (of 256) of the filter along one side, from the middle outwards; the last two
/// are subtracted. They are Keys' cubic (a = -0.5) stretched by two.
#[cfg(target_arch = "x86_64")]
pub const WEIGHTS: [u8; 4] = [111, 29, 9, 3];

/// The filter at one place: weights 111, 29, -9, -3 on both sides. They are split into
/// 4 x (28, 7, -2, -1) + (-1, 1, -1, 1), so that all sums fit 16 bits.
#[inline(always)]
fn half(a: [u8; 8]) -> u8 {
    let pair = |i: usize| i16::from(a[3 - i]) + i16::from(a[4 + i]);
    let (p0, p1, p2, p3) = (pair(0), pair(1), pair(2), pair(3));
    let main = 7 * (4 * p0 + p1) - 2 * p2 - p3;
    let rest = p1 - p0 - p2 + p3;
    ((main + ((rest + 128) >> 2)) >> 6).clamp(0, 255) as u8
}

/// Adds the half-size image of one plane.
fn add_half(
    isa: Isa,
    (hr_plane, hr): (&[u8], Bands),
    (lq_plane, lq): (&mut [u8], Bands),
    buffers: &mut LqBuffers,
) {
    let LqBuffers {
        apart,
        narrow,
        halo,
        predicted,
    } = buffers;
    let stride = lq.stride();
    let (even, odd) = apart.split_at_mut((hr.width / 2 + REACH) * LANES);
    for (line, out) in hr_plane
        .chunks_exact(hr.stride())
        .zip(narrow.chunks_exact_mut(stride))
    {
        // with even and odd columns apart, the eight columns of all pixels are eight shifted rows
        let source = |column: usize| {
            &line[column.saturating_sub(REACH).min(hr.width - 1) * LANES..][..LANES]
        };
        for (i, (even, odd)) in even
            .chunks_exact_mut(LANES)
            .zip(odd.chunks_exact_mut(LANES))
            .enumerate()
        {
            even.copy_from_slice(source(2 * i));
            odd.copy_from_slice(source(2 * i + 1));
        }
        let side = |j: usize| {
            if j.is_multiple_of(2) {
                &even[j / 2 * LANES..]
            } else {
                &odd[j / 2 * LANES..]
            }
        };
        shrink(isa, std::array::from_fn(side), out);
    }
    fill_halo(
        narrow,
        Bands {
            width: lq.width,
            ..hr
        },
        halo,
    );
    // r counts from REACH rows above the band
    let row = |r: usize| -> &[u8] {
        let (part, r) = match r.checked_sub(REACH) {
            None => (&*halo, r),
            Some(r) if r < hr.rows => (&*narrow, r),
            Some(r) => (&*halo, r - hr.rows + REACH),
        };
        &part[r * stride..(r + 1) * stride]
    };
    for (y, out) in lq_plane.chunks_exact_mut(stride).enumerate() {
        shrink(isa, std::array::from_fn(|i| row(2 * y + i)), predicted);
        for (out, p) in out.iter_mut().zip(&*predicted) {
            *out = out.wrapping_add(*p);
        }
    }
}

/// Applies [`half`] to each byte of eight rows.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn shrink(isa: Isa, rows: [&[u8]; 8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: an `Isa` with AVX2 exists only where the processor has it
        return unsafe { avx2::shrink(rows, out) };
    }
    shrink_plain(rows, out)
}

/// [`shrink`] without vector instructions.
#[inline(always)]
pub fn shrink_plain(rows: [&[u8]; 8], out: &mut [u8]) {
    let rows = rows.map(|row| &row[..out.len()]);
    for (i, out) in out.iter_mut().enumerate() {
        *out = half(std::array::from_fn(|j| rows[j][i]));
    }
}

/// Fills `halo` with the rows above and below every band, which belong to the neighbouring bands.
/// Beyond the patch its first and last row are repeated.
fn fill_halo(plane: &[u8], bands: Bands, halo: &mut [u8]) {
    let (stride, rows, height) = (bands.stride(), bands.rows, bands.height);
    for (i, out) in halo.chunks_exact_mut(stride).enumerate() {
        let r = if i < REACH {
            i as isize - REACH as isize
        } else {
            (rows + i - REACH) as isize
        };
        let from: [usize; LANES] = std::array::from_fn(|k| {
            let y = ((k * rows) as isize + r).clamp(0, height as isize - 1) as usize;
            (y % rows) * stride + y / rows
        });
        // if the patch fills all bands, a halo row is a row of the plane shifted by one band
        let whole = rows >= REACH && rows * LANES == height;
        let source = if i < REACH {
            from[1]
        } else {
            from[0].wrapping_sub(1)
        };
        for (x, out) in out.chunks_exact_mut(LANES).enumerate() {
            if whole {
                let group = first_group(&plane[source / LANES * LANES + x * LANES..]);
                if i < REACH {
                    out[1..].copy_from_slice(&group[..LANES - 1]);
                    out[0] = plane[from[0] + x * LANES];
                } else {
                    out[..LANES - 1].copy_from_slice(&group[1..]);
                    out[LANES - 1] = plane[from[LANES - 1] + x * LANES];
                }
            } else {
                for (out, from) in out.iter_mut().zip(from) {
                    *out = plane[from + x * LANES];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bands::{Window, join, split};
    use super::*;
    use proptest::prelude::*;

    fn noise(n: usize, seed: u64) -> Vec<u8> {
        let mut rng = crate::support::rng::Rng::new(&[seed]);
        (0..n).map(|_| rng.next_u64() as u8).collect()
    }

    fn predicted(predictor: LqPredictor, image: &[u8], lq_size: usize, scale: usize) -> Vec<u8> {
        let mut all = Isa::available()
            .into_iter()
            .map(|isa| predicted_with(isa, predictor, image, lq_size, scale));
        let first = all.next().unwrap();
        assert!(
            all.all(|other| other == first),
            "the instruction sets differ"
        );
        first
    }

    fn predicted_with(
        isa: Isa,
        predictor: LqPredictor,
        image: &[u8],
        lq_size: usize,
        scale: usize,
    ) -> Vec<u8> {
        let (lq, hr) = (Bands::new(lq_size, 1), Bands::new(lq_size, scale));
        let mut planes = vec![0; hr.bytes()];
        split(isa, image, hr, &mut planes);
        // the padding in a decoder comes from `repeat_last_row`, not from `split`
        planes
            .chunks_exact_mut(hr.plane())
            .for_each(|plane| super::super::predict::clear_padding(plane, hr));
        super::super::bands::repeat_last_row(&mut planes, hr);
        let mut out = vec![0; lq.bytes()];
        let buffers = &mut LqBuffers::new(hr);
        add(isa, predictor, (&planes, hr), (&mut out, lq), buffers);
        let mut image = vec![0; lq_size * lq_size * 3];
        let whole = Window {
            x: 0,
            y: 0,
            width: lq_size,
            height: lq_size,
        };
        join(isa, &out, lq, whole, &mut image);
        image
    }

    /// The half-size filter straight from its definition, on an image in row order.
    fn reference(image: &[u8], size: usize) -> Vec<u8> {
        let weigh = |values: [u8; 8]| {
            let weights = [-3, -9, 29, 111, 111, 29, -9, -3];
            let sum: i32 = values
                .iter()
                .zip(weights)
                .map(|(&v, w)| i32::from(v) * w)
                .sum();
            ((sum + 128) >> 8).clamp(0, 255) as u8
        };
        let clamped = |i: usize, j: usize| (2 * i + j).saturating_sub(3).min(size - 1);
        let half = size / 2;
        let narrow: Vec<u8> = (0..size * half * 3)
            .map(|i| {
                let (y, x, c) = (i / (half * 3), i / 3 % half, i % 3);
                weigh(std::array::from_fn(|j| {
                    image[(y * size + clamped(x, j)) * 3 + c]
                }))
            })
            .collect();
        (0..half * half * 3)
            .map(|i| {
                weigh(std::array::from_fn(|j| {
                    narrow[clamped(i / (half * 3), j) * half * 3 + i % (half * 3)]
                }))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn half_follows_its_definition(lq_size in 1usize..70, seed in any::<u64>()) {
            let image = noise(lq_size * lq_size * 12, seed);
            prop_assert_eq!(predicted(LqPredictor::Half, &image, lq_size, 2), reference(&image, 2 * lq_size));
        }

        #[test]
        fn mean_follows_its_definition(lq_size in 1usize..40, scale in 1usize..5, seed in any::<u64>()) {
            let size = lq_size * scale;
            let image = noise(size * size * 3, seed);
            let out = predicted(LqPredictor::Mean, &image, lq_size, scale);
            for (i, &v) in out.iter().enumerate() {
                let (y, x, c) = (i / (lq_size * 3), i / 3 % lq_size, i % 3);
                let sum: usize = (0..scale * scale)
                    .map(|j| usize::from(image[((y * scale + j / scale) * size + x * scale + j % scale) * 3 + c]))
                    .sum();
                prop_assert_eq!(usize::from(v), (sum + scale * scale / 2) / (scale * scale));
            }
        }
    }

    #[test]
    fn half_is_our_own_bicubic_away_from_the_border() {
        let size = 96;
        let image = noise(size * size * 3, 4);
        let hr = image::RgbImage::from_raw(size as u32, size as u32, image.clone()).unwrap();
        let made =
            crate::dataset::degrade::downscale(&hr, 2, crate::dataset::degrade::Filter::Bicubic)
                .unwrap()
                .into_raw();
        let ours = predicted(LqPredictor::Half, &image, size / 2, 2);
        let half = size / 2;
        let differing = (0..half * half * 3)
            .filter(|i| {
                (2..half - 2).contains(&(i / (half * 3))) && (2..half - 2).contains(&(i / 3 % half))
            })
            .filter(|&i| made[i] != ours[i])
            .count();
        assert!(
            differing * 100 < made.len(),
            "{differing} of {} values differ",
            made.len()
        );
    }
}
