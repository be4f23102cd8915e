//! One level of SSIM: the mean distance of two planes under a sliding Gaussian window, and its
//! gradient, in one pass over the rows that keeps the eleven latest filtered rows. Depends on
//! nothing. It gives the same bits for every vector width, since all arithmetic is per element,
//! multiplications and additions are never fused, and sums have a fixed order. Every function is
//! inlined into its caller, so that the compiler vectorises it for the caller's instruction set.

use crate::backend::formulas::{GAUSSIAN as KERNEL, SSIM_C1 as C1, SSIM_C2 as C2, SSIM_WINDOW};

/// Width and height of the window, pixels.
pub const TAPS: usize = SSIM_WINDOW;
/// Taps before the middle one.
const HALF: usize = TAPS / 2;
/// Columns computed together: one AVX-512 register, or two of AVX2.
const LANES: usize = 16;
/// Number of filtered fields: s, d, s^2, d^2.
const FILTERED: usize = 4;
/// Number of gradient fields: with respect to the filtered s and d together, s^2, and d^2.
const GRADIENTS: usize = 3;

/// A value for each of the columns computed together.
type Lanes = [f32; LANES];

/// The shape of a plane: `height` rows of `width` floats that begin `stride` floats apart. Height
/// and width are at least [`TAPS`]. The floats between `width` and `stride` must be finite; their
/// values have no effect.
#[derive(Clone, Copy, Default)]
pub struct Frame {
    /// Rows.
    pub height: usize,
    /// Floats of a row.
    pub width: usize,
    /// Floats from one row to the next.
    pub stride: usize,
}

impl Frame {
    /// A frame of the given size.
    pub fn new(height: usize, width: usize) -> Frame {
        // the last group of columns reads a window's width past its end
        Frame {
            height,
            width,
            stride: width.next_multiple_of(LANES) + LANES,
        }
    }

    /// Floats of one plane.
    pub fn floats(&self) -> usize {
        self.height * self.stride
    }

    /// (rows, columns) of windows that lie inside the plane.
    fn windows(&self) -> (usize, usize) {
        (self.height + 1 - TAPS, self.width + 1 - TAPS)
    }

    /// Columns of windows, rounded up to whole groups.
    fn groups_width(&self) -> usize {
        self.windows().1.next_multiple_of(LANES)
    }

    /// Floats of work space that [`distance`] needs.
    pub fn work_floats(&self) -> usize {
        if self.height < TAPS || self.width < TAPS {
            return 0; // the frame of an unused level
        }
        (FILTERED + GRADIENTS) * TAPS * self.groups_width() + (2 + GRADIENTS) * self.stride
    }
}

/// The mean over all windows of 1 - similarity, from the planes s = x + y - 1 and d = x - y. With
/// `GRADIENT`, writes the gradient of the mean similarity (not distance) with respect to x to
/// `gradient`, in the same frame. `work` has [`Frame::work_floats`] values.
#[inline(always)]
pub fn distance<const GRADIENT: bool>(
    frame: &Frame,
    s: &[f32],
    d: &[f32],
    luminance: bool,
    gradient: &mut [f32],
    work: &mut [f32],
) -> f64 {
    let (rows, columns) = frame.windows();
    let (wide, stride) = (frame.groups_width(), frame.stride);
    let (filtered, rest) = work.split_at_mut(FILTERED * TAPS * wide);
    let (slopes, rest) = rest.split_at_mut(GRADIENTS * TAPS * wide);
    let (squares, rest) = rest.split_at_mut(2 * stride);
    let spread = &mut rest[..GRADIENTS * stride];
    slopes.fill(0.0);
    spread.fill(0.0);
    let share = 1.0 / (rows * columns) as f32;
    let mut sums = [0f64; LANES];
    for y in 0..frame.height + TAPS - 1 {
        if y < frame.height {
            let out = &mut filtered[(y % TAPS) * FILTERED * wide..][..FILTERED * wide];
            filter_row(
                &s[y * stride..][..stride],
                &d[y * stride..][..stride],
                squares,
                out,
                wide,
            );
        }
        let Some(window) = (y + 1).checked_sub(TAPS) else {
            continue;
        };
        let slope_row = &mut slopes[(window % TAPS) * GRADIENTS * wide..][..GRADIENTS * wide];
        if window < rows {
            window_row::<GRADIENT>(
                filtered, window, wide, columns, luminance, share, slope_row, &mut sums,
            );
        } else if GRADIENT {
            slope_row.fill(0.0);
        }
        if GRADIENT {
            // no later window contains this row of pixels
            let at = window * stride;
            let out = &mut gradient[at..][..stride];
            spread_row(
                slopes,
                window,
                wide,
                &s[at..][..stride],
                &d[at..][..stride],
                spread,
                out,
            );
        }
    }
    sums.iter().sum::<f64>() / (rows * columns) as f64
}

/// The values of one group of columns, from index `at` on.
#[inline(always)]
fn lanes(row: &[f32], at: usize) -> Lanes {
    *row[at..]
        .first_chunk()
        .expect("rows end on whole groups of columns")
}

/// Adds `k` times the sum of two taps at the same distance from the middle one.
#[inline(always)]
fn add_pair(sum: &mut Lanes, k: f32, a: Lanes, b: Lanes) {
    for j in 0..LANES {
        sum[j] += k * (a[j] + b[j]);
    }
}

/// Adds the middle tap.
#[inline(always)]
fn add_middle(sum: &mut Lanes, middle: Lanes) {
    for j in 0..LANES {
        sum[j] += KERNEL[HALF] * middle[j];
    }
}

/// The Gaussian along a row: columns `x..x + LANES` of the result, from `row[x..]`.
#[inline(always)]
fn along(row: &[f32], x: usize) -> Lanes {
    // one bounds check for the eleven overlapping reads
    let reach: &[f32; LANES + TAPS - 1] = row[x..]
        .first_chunk()
        .expect("rows reach a window past the last group");
    let mut sum = [0f32; LANES];
    for (t, k) in KERNEL[..HALF].iter().enumerate() {
        add_pair(&mut sum, *k, lanes(reach, t), lanes(reach, TAPS - 1 - t));
    }
    add_middle(&mut sum, lanes(reach, HALF));
    sum
}

/// The Gaussian across eleven rows, at floats `x..x + LANES` of each.
#[inline(always)]
fn across(rows: &[&[f32]; TAPS], x: usize) -> Lanes {
    let mut sum = [0f32; LANES];
    for (t, k) in KERNEL[..HALF].iter().enumerate() {
        add_pair(
            &mut sum,
            *k,
            lanes(rows[t], x),
            lanes(rows[TAPS - 1 - t], x),
        );
    }
    add_middle(&mut sum, lanes(rows[HALF], x));
    sum
}

/// Eleven rows of a ring of rows of `row` floats, from row `first` on; row i is in slot i % 11.
#[inline(always)]
fn unroll(ring: &[f32], first: usize, row: usize) -> [&[f32]; TAPS] {
    let mut rows: [&[f32]; TAPS] = [&[]; TAPS];
    for (t, slot) in rows.iter_mut().enumerate() {
        *slot = &ring[((first + t) % TAPS) * row..][..row];
    }
    rows
}

/// Writes s, d, s^2 and d^2 of one row of pixels, filtered along the row.
#[inline(always)]
fn filter_row(s: &[f32], d: &[f32], squares: &mut [f32], out: &mut [f32], wide: usize) {
    let (s2, d2) = squares.split_at_mut(s.len());
    for (square, v) in s2.iter_mut().zip(s) {
        *square = v * v;
    }
    for (square, v) in d2.iter_mut().zip(d) {
        *square = v * v;
    }
    for (field, row) in [s, d, s2, d2].into_iter().enumerate() {
        let out = &mut out[field * wide..][..wide];
        for x in (0..wide).step_by(LANES) {
            out[x..x + LANES].copy_from_slice(&along(row, x));
        }
    }
}

/// Clears the columns from `valid` on, which are no windows.
#[inline(always)]
fn clear_from(valid: usize, distance: &mut Lanes, slope: &mut [Lanes; GRADIENTS]) {
    if valid < LANES {
        distance[valid..].fill(0.0);
        slope.iter_mut().for_each(|field| field[valid..].fill(0.0));
    }
}

/// Finishes the filters of one row of windows, adds their distances to `sums`, and writes the
/// derivatives of their similarities with respect to the filtered fields to `slopes`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn window_row<const GRADIENT: bool>(
    filtered: &[f32],
    window: usize,
    wide: usize,
    columns: usize,
    luminance: bool,
    share: f32,
    slopes: &mut [f32],
    sums: &mut [f64; LANES],
) {
    let rows = unroll(filtered, window, FILTERED * wide);
    for x in (0..wide).step_by(LANES) {
        let (mean_s, mean_d) = (across(&rows, x), across(&rows, wide + x));
        let (mean_s2, mean_d2) = (across(&rows, 2 * wide + x), across(&rows, 3 * wide + x));
        let mut distance = [0f32; LANES];
        let mut slope = [[0f32; LANES]; GRADIENTS];
        for j in 0..LANES {
            let (a, b) = (mean_s[j], mean_d[j]);
            let var_s = mean_s2[j] - a * a;
            let var_d = mean_d2[j] - b * b;
            let inverse = 1.0 / (var_s + var_d + 2.0 * C2);
            // 1 - cs, at most 1 because cs >= 0; a NaN passes through the comparison
            let raw = 2.0 * var_d * inverse;
            let structure = if raw > 1.0 { 1.0 } else { raw };
            let open = if raw < 1.0 { inverse * share } else { 0.0 };
            let mut slope_s = raw * open;
            let mut slope_d = -2.0 * (var_s + 2.0 * C2) * inverse * open;
            if luminance {
                // l = 1 - mean_d^2 / ((sum^2 + mean_d^2) / 2 + C1), where `sum` is the sum of the
                // two means
                let sum = a + 1.0;
                let inverse = 1.0 / (0.5 * (sum * sum + b * b) + C1);
                let dark = b * b * inverse;
                let contrast = (1.0 - structure) * share * inverse;
                distance[j] = dark + structure - dark * structure;
                slope_s *= 1.0 - dark;
                slope_d *= 1.0 - dark;
                slope[0][j] = contrast * (dark * sum + b * (dark - 2.0));
            } else {
                distance[j] = structure;
            }
            // a variance is the mean of squares less the square of the mean
            slope[0][j] -= 2.0 * (a * slope_s + b * slope_d);
            // the factor 2 is the derivative of the square of a pixel
            slope[1][j] = 2.0 * slope_s;
            slope[2][j] = 2.0 * slope_d;
        }
        clear_from(LANES.min(columns - x), &mut distance, &mut slope);
        for j in 0..LANES {
            sums[j] += f64::from(distance[j]);
        }
        if GRADIENT {
            for (f, slope) in slope.iter().enumerate() {
                slopes[f * wide + x..][..LANES].copy_from_slice(slope);
            }
        }
    }
}

/// The transposed filter: sums the slopes of all windows that contain row `y` of pixels into the
/// gradient of that row.
#[inline(always)]
fn spread_row(
    slopes: &[f32],
    y: usize,
    wide: usize,
    s: &[f32],
    d: &[f32],
    spread: &mut [f32],
    out: &mut [f32],
) {
    let stride = out.len();
    // windows y - 10..=y; the ring holds zeros for those outside the image
    let rows = unroll(slopes, y + 1, GRADIENTS * wide);
    // each field between zeros: 10 zeros, `wide` values, zeros up to the stride
    for f in 0..GRADIENTS {
        let row = &mut spread[f * stride..][..stride];
        for x in (0..wide).step_by(LANES) {
            row[TAPS - 1 + x..][..LANES].copy_from_slice(&across(&rows, f * wide + x));
        }
    }
    let (plain, rest) = spread.split_at(stride);
    let (times_s, times_d) = rest.split_at(stride);
    for x in (0..stride - LANES).step_by(LANES) {
        let (plain, times_s, times_d) = (along(plain, x), along(times_s, x), along(times_d, x));
        let (s, d) = (lanes(s, x), lanes(d, x));
        let mut sum = [0f32; LANES];
        for j in 0..LANES {
            sum[j] = plain[j] + (s[j] * times_s[j] + d[j] * times_d[j]);
        }
        out[x..x + LANES].copy_from_slice(&sum);
    }
}
