//! PSNR and SSIM of two 8-bit images as the super-resolution literature reports them: without a
//! border, on RGB or on luma, in double precision. Depends on nothing else in the crate. Promises
//! the same value for every number of threads, and memory for a few rows only.

use anyhow::{Result, ensure};
use image::RgbImage;

/// Side of the SSIM window in pixels, and the standard deviation of its Gaussian (Wang et al.,
/// "Image quality assessment: from error visibility to structural similarity", 2004).
pub const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const PEAK: f64 = 255.0;

/// The channels that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red, green and blue, with equal weights.
    Rgb,
    /// Luma of BT.601 in its video range (16 to 235), not rounded.
    Y,
}

impl Channels {
    /// Number of planes that are compared.
    fn planes(self) -> usize {
        match self {
            Channels::Rgb => 3,
            Channels::Y => 1,
        }
    }

    /// Writes one plane of a row of RGB bytes to `out`, on the scale 0 to 255.
    fn row(self, plane: usize, rgb: &[u8], out: &mut [f64]) {
        for (value, p) in out.iter_mut().zip(rgb.chunks_exact(3)) {
            *value = match self {
                Channels::Rgb => f64::from(p[plane]),
                Channels::Y => {
                    16.0 + (65.481 * f64::from(p[0])
                        + 128.553 * f64::from(p[1])
                        + 24.966 * f64::from(p[2]))
                        / 255.0
                }
            };
        }
    }
}

/// Two images of equal size, read row by row without their border.
struct PixelPair<'a> {
    /// The images `[height, width, 3]`, border included.
    a: &'a [u8],
    b: &'a [u8],
    /// Bytes of a row, border included.
    stride: usize,
    /// Width of the border in pixels.
    crop: usize,
    /// Pixels of a row without the border.
    width: usize,
    /// Rows without the border.
    height: usize,
}

impl<'a> PixelPair<'a> {
    fn new(a: &'a RgbImage, b: &'a RgbImage, crop: u32) -> Result<Self> {
        let ((w, h), (bw, bh)) = (a.dimensions(), b.dimensions());
        ensure!(
            (w, h) == (bw, bh),
            "cannot compare an image of {w}x{h} pixels with one of {bw}x{bh}"
        );
        let cut = crop.saturating_mul(2);
        ensure!(
            w > cut && h > cut,
            "nothing of {w}x{h} pixels is left when {crop} are cut from each side"
        );
        let (width, height) = ((w - cut) as usize, (h - cut) as usize);
        Ok(PixelPair {
            a: a.as_raw(),
            b: b.as_raw(),
            stride: w as usize * 3,
            crop: crop as usize,
            width,
            height,
        })
    }

    /// Row `y` of both images without the border, as RGB bytes; `y` is less than `height`.
    fn rows(&self, y: usize) -> (&'a [u8], &'a [u8]) {
        let start = (y + self.crop) * self.stride + self.crop * 3;
        (
            &self.a[start..][..self.width * 3],
            &self.b[start..][..self.width * 3],
        )
    }
}

/// Peak signal-to-noise ratio in dB (peak 255, one mean squared error over all compared values),
/// after cutting `crop` pixels from each side. Equal images give infinity.
///
/// # Errors
/// When the sizes differ or the crop leaves nothing.
pub fn psnr(a: &RgbImage, b: &RgbImage, crop: u32, channels: Channels) -> Result<f64> {
    let pair = PixelPair::new(a, b, crop)?;
    let (mut x, mut y) = (vec![0.0; pair.width], vec![0.0; pair.width]);
    let mut total = 0.0;
    for row in 0..pair.height {
        let (ra, rb) = pair.rows(row);
        for plane in 0..channels.planes() {
            channels.row(plane, ra, &mut x);
            channels.row(plane, rb, &mut y);
            total += x
                .iter()
                .zip(&y)
                .map(|(p, q)| (p - q) * (p - q))
                .sum::<f64>();
        }
    }
    let mse = total / (pair.width * pair.height * channels.planes()) as f64;
    Ok(if mse == 0.0 {
        f64::INFINITY
    } else {
        10.0 * (PEAK * PEAK / mse).log10()
    })
}

/// Mean structural similarity (Wang et al., 2004) after cutting `crop` pixels from each side: an
/// 11x11 Gaussian window (sigma 1.5) at every position inside the image, K1 = 0.01, K2 = 0.03, mean
/// over channels.
///
/// # Errors
/// When the sizes differ or the crop leaves less than one window.
pub fn ssim(a: &RgbImage, b: &RgbImage, crop: u32, channels: Channels) -> Result<f64> {
    let pair = PixelPair::new(a, b, crop)?;
    let (width, height) = (pair.width, pair.height);
    ensure!(
        width >= WINDOW && height >= WINDOW,
        "SSIM needs {WINDOW}x{WINDOW} pixels; {width}x{height} are left after cutting {crop}"
    );
    let total: f64 = (0..channels.planes())
        .map(|plane| ssim_plane(&pair, plane, channels))
        .sum();
    Ok(total / channels.planes() as f64)
}

/// Most bytes that [`psnr`] or [`ssim`] allocate for images of `width` pixels.
pub fn scratch_bytes(width: u32) -> u64 {
    // two rows, their products, the filtered rows of a window, their sums
    let rows = 2 + SUMS + WINDOW * SUMS + SUMS;
    u64::from(width) * (rows * size_of::<f64>()) as u64
}

/// The window's weights along one axis; their sum is 1.
fn gaussian() -> [f64; WINDOW] {
    let mut weights = [0.0; WINDOW];
    for (i, w) in weights.iter_mut().enumerate() {
        let d = i as f64 - (WINDOW / 2) as f64;
        *w = (-d * d / (2.0 * SIGMA * SIGMA)).exp();
    }
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

/// Number of windowed sums: x, y, x^2, y^2, xy.
const SUMS: usize = 5;

/// Mean SSIM of one plane, which has at least one window. The window is separable: each row is
/// filtered along x once, and kept until the last window that covers it has been summed along y.
fn ssim_plane(pair: &PixelPair, plane: usize, channels: Channels) -> f64 {
    let weights = gaussian();
    let (c1, c2) = ((0.01 * PEAK).powi(2), (0.03 * PEAK).powi(2));
    let valid = pair.width - WINDOW + 1;
    let (mut x, mut y) = (vec![0.0; pair.width], vec![0.0; pair.width]);
    let mut products: [Vec<f64>; SUMS] = std::array::from_fn(|_| vec![0.0; pair.width]);
    let mut kept: Vec<[Vec<f64>; SUMS]> = (0..WINDOW)
        .map(|_| std::array::from_fn(|_| vec![0.0; valid]))
        .collect();
    let mut sums: [Vec<f64>; SUMS] = std::array::from_fn(|_| vec![0.0; valid]);
    let mut total = 0.0;
    for row in 0..pair.height {
        let (ra, rb) = pair.rows(row);
        channels.row(plane, ra, &mut x);
        channels.row(plane, rb, &mut y);
        for i in 0..pair.width {
            let (p, q) = (x[i], y[i]);
            for (values, value) in products.iter_mut().zip([p, q, p * p, q * q, p * q]) {
                values[i] = value;
            }
        }
        for (filtered, values) in kept[row % WINDOW].iter_mut().zip(&products) {
            filtered.fill(0.0);
            for (k, w) in weights.iter().enumerate() {
                filtered
                    .iter_mut()
                    .zip(&values[k..])
                    .for_each(|(f, v)| *f += w * v);
            }
        }
        if row + 1 < WINDOW {
            continue;
        }
        for (s, sum) in sums.iter_mut().enumerate() {
            sum.fill(0.0);
            for (k, w) in weights.iter().enumerate() {
                let filtered = &kept[(row + 1 + k) % WINDOW][s]; // the oldest row first
                sum.iter_mut().zip(filtered).for_each(|(t, f)| *t += w * f);
            }
        }
        let [mx, my, xx, yy, xy] = &sums;
        for i in 0..valid {
            let (m, n) = (mx[i], my[i]);
            let (vx, vy, cov) = (xx[i] - m * m, yy[i] - n * n, xy[i] - m * n);
            total +=
                (2.0 * m * n + c1) * (2.0 * cov + c2) / ((m * m + n * n + c1) * (vx + vy + c2));
        }
    }
    total / (valid * (pair.height - WINDOW + 1)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::rng::Rng;
    use image::Rgb;

    fn noisy(seed: u64, width: u32, height: u32) -> (RgbImage, RgbImage) {
        let mut rng = Rng::new(&[seed]);
        let a = RgbImage::from_fn(width, height, |x, y| {
            Rgb([0, 1, 2].map(|c| ((x * 7 + y * 3 + c * 40) % 200 + 20) as u8))
        });
        let mut b = a.clone();
        b.iter_mut()
            .for_each(|v| *v = v.wrapping_add_signed(rng.below(31) as i8 - 15));
        (a, b)
    }

    /// The definition, computed for each window by itself.
    fn ssim_reference(a: &RgbImage, b: &RgbImage, crop: u32, channels: Channels) -> f64 {
        let g = gaussian();
        let value = |image: &RgbImage, x: u32, y: u32, plane: usize| {
            let mut out = [0.0];
            channels.row(plane, &image.get_pixel(x, y).0, &mut out);
            out[0]
        };
        let (w, h) = a.dimensions();
        let n = WINDOW as u32;
        let (mut total, mut count) = (0.0, 0.0);
        for plane in 0..channels.planes() {
            for y0 in crop..=h - crop - n {
                for x0 in crop..=w - crop - n {
                    let window = |f: &dyn Fn(f64, f64) -> f64| {
                        let mut sum = 0.0;
                        for j in 0..n {
                            for i in 0..n {
                                let (p, q) = (
                                    value(a, x0 + i, y0 + j, plane),
                                    value(b, x0 + i, y0 + j, plane),
                                );
                                sum += g[i as usize] * g[j as usize] * f(p, q);
                            }
                        }
                        sum
                    };
                    let (m, k) = (window(&|p, _| p), window(&|_, q| q));
                    let vx = window(&|p, _| (p - m) * (p - m));
                    let vy = window(&|_, q| (q - k) * (q - k));
                    let cov = window(&|p, q| (p - m) * (q - k));
                    let (c1, c2) = (6.5025, 58.5225);
                    total += (2.0 * m * k + c1) * (2.0 * cov + c2)
                        / ((m * m + k * k + c1) * (vx + vy + c2));
                    count += 1.0;
                }
            }
        }
        total / count
    }

    #[test]
    fn separable_ssim_equals_the_plain_definition() {
        for (seed, crop) in [(1, 0), (2, 2)] {
            let (a, b) = noisy(seed, 23, 19);
            for channels in [Channels::Rgb, Channels::Y] {
                let (fast, slow) = (
                    ssim(&a, &b, crop, channels).unwrap(),
                    ssim_reference(&a, &b, crop, channels),
                );
                assert!(
                    (fast - slow).abs() < 1e-10,
                    "{channels:?}: {fast} against {slow}"
                );
            }
        }
    }

    #[test]
    fn psnr_of_a_known_difference() {
        let a = RgbImage::from_pixel(8, 8, Rgb([100, 100, 100]));
        let b = RgbImage::from_pixel(8, 8, Rgb([110, 100, 100]));
        let rgb = psnr(&a, &b, 0, Channels::Rgb).unwrap();
        assert!((rgb - 10.0 * (65025.0f64 / (100.0 / 3.0)).log10()).abs() < 1e-12);
        let y = psnr(&a, &b, 3, Channels::Y).unwrap();
        assert!(
            (y - 10.0 * (65025.0f64 / (2.567_882_352_941_176_6f64).powi(2)).log10()).abs() < 1e-9
        );
    }

    #[test]
    fn equal_images_have_an_infinite_psnr() {
        let (a, _) = noisy(3, 16, 16);
        assert_eq!(psnr(&a, &a, 2, Channels::Rgb).unwrap(), f64::INFINITY);
        assert!((ssim(&a, &a, 2, Channels::Y).unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn only_the_border_is_cut() {
        let (a, _) = noisy(4, 20, 20);
        let mut b = a.clone();
        b.put_pixel(1, 10, Rgb([0, 0, 0]));
        assert_eq!(psnr(&a, &b, 2, Channels::Rgb).unwrap(), f64::INFINITY);
        assert!(psnr(&a, &b, 1, Channels::Rgb).unwrap().is_finite());
    }

    #[test]
    fn rejects_other_sizes_and_too_much_cropping() {
        let (a, _) = noisy(5, 20, 20);
        let other = RgbImage::new(20, 21);
        let text = psnr(&a, &other, 0, Channels::Rgb).unwrap_err().to_string();
        assert!(text.contains("20x20") && text.contains("20x21"), "{text}");
        assert!(psnr(&a, &a, 10, Channels::Rgb).is_err());
        assert!(psnr(&a, &a, u32::MAX, Channels::Rgb).is_err());
        assert!(
            ssim(&a, &a, 5, Channels::Rgb)
                .unwrap_err()
                .to_string()
                .contains("11x11")
        );
    }
}
