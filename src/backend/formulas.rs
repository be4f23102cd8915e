//! Constants of the published formulas that every backend computes: the base upsampler's filters
//! and the losses. They have one definition here, so that the CPU code and the CUDA kernels (which
//! get them through a generated header) cannot disagree. Depends on nothing.

/// Sharpening taps of Magic Kernel Sharp 2021 (symmetric, over 32); applied at LQ size along rows
/// and columns.
pub(crate) const SHARP_TAPS: [f32; 7] = [
    -1.0 / 32.0,
    0.0,
    9.0 / 32.0,
    16.0 / 32.0,
    9.0 / 32.0,
    0.0,
    -1.0 / 32.0,
];

/// Blur taps of Magic Kernel Sharp 2021 (symmetric, over 16); applied at HR size after
/// nearest-neighbour upsampling.
pub(crate) const BLUR_TAPS: [f32; 5] = [1.0 / 16.0, 4.0 / 16.0, 6.0 / 16.0, 4.0 / 16.0, 1.0 / 16.0];

/// Charbonnier's epsilon, under the root: sqrt(d^2 + epsilon).
pub(crate) const CHARBONNIER_EPSILON: f32 = 1e-12;

/// Luma weights of BT.601 for R, G, B.
pub(crate) const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Width in pixels of the SSIM window.
pub(crate) const SSIM_WINDOW: usize = 11;

/// The SSIM window: exp(-x^2 / (2 * 1.5^2)) for x = -5..=0, divided by the sum of all eleven; the
/// other half mirrors it.
pub(crate) const GAUSSIAN: [f32; SSIM_WINDOW / 2 + 1] = [
    0.0010283801,
    0.007598758,
    0.036000773,
    0.10936069,
    0.21300554,
    0.26601171,
];

/// SSIM's C1 = (0.01)^2 for values in [0, 1].
pub(crate) const SSIM_C1: f32 = 1e-4;

/// SSIM's C2 = (0.03)^2 for values in [0, 1].
pub(crate) const SSIM_C2: f32 = 9e-4;

/// MS-SSIM's exponents of the five levels, finest first (Wang, Simoncelli, Bovik 2003).
pub(crate) const MS_SSIM_EXPONENTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
