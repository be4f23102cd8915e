//! One level of SSIM: the mean distance of two planes under a sliding Gaussian window, and its gradient, in one pass over
//! the rows that keeps eleven filtered rows at hand. Depends on nothing; promises the same bits for every vector width,
//! since all arithmetic is per element, multiplications and additions are never fused, and sums have a fixed order.

/// Width of the window.
pub const TAPS: usize = 11;
const HALF: usize = TAPS / 2;
/// Columns handled together: one AVX-512 register, two of AVX2.
const LANES: usize = 16;
const C1: f32 = 1e-4;
const C2: f32 = 9e-4;
/// exp(-x^2 / (2 * 1.5^2)) for x = -5..=0, divided by the sum of all eleven; the other half mirrors it.
const KERNEL: [f32; HALF + 1] = [0.001028380084, 0.007598758135, 0.03600077213, 0.1093606895, 0.2130055377, 0.2660117249];

type Lanes = [f32; LANES];

/// The shape of a plane: `height` rows of `width` floats that begin `stride` floats apart. Both sizes are at least
/// [`TAPS`]. What lies between `width` and `stride` must be finite and does not matter.
#[derive(Clone, Copy, Default)]
pub struct Frame {
    pub height: usize,
    pub width: usize,
    pub stride: usize,
}

impl Frame {
    pub fn new(height: usize, width: usize) -> Frame {
        // room for the last group of columns to read a window's width past its end
        Frame { height, width, stride: width.next_multiple_of(LANES) + LANES }
    }

    /// Floats of one plane.
    pub fn floats(&self) -> usize {
        self.height * self.stride
    }

    /// Rows and columns of windows.
    fn windows(&self) -> (usize, usize) {
        (self.height + 1 - TAPS, self.width + 1 - TAPS)
    }

    /// Width of a row of windows, in whole groups of columns.
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

/// Filtered fields: s, d, s^2, d^2.
const FILTERED: usize = 4;
/// Gradient fields: with respect to the filtered s plus d, s^2, d^2.
const GRADIENTS: usize = 3;

/// The mean over all windows of 1 - similarity, from the planes s = x + y - 1 and d = x - y. Where `GRADIENT`, `gradient`
/// receives the gradient of the mean similarity (not distance) with respect to x, in the same frame.
pub fn distance<const GRADIENT: bool>(frame: &Frame, s: &[f32], d: &[f32], luminance: bool, gradient: &mut [f32], work: &mut [f32]) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has what the function was compiled for.
            return unsafe { distance_avx512::<GRADIENT>(frame, s, d, luminance, gradient, work) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { distance_avx2::<GRADIENT>(frame, s, d, luminance, gradient, work) };
        }
    }
    distance_plain::<GRADIENT>(frame, s, d, luminance, gradient, work)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn distance_avx512<const GRADIENT: bool>(
    frame: &Frame,
    s: &[f32],
    d: &[f32],
    luminance: bool,
    gradient: &mut [f32],
    work: &mut [f32],
) -> f64 {
    distance_plain::<GRADIENT>(frame, s, d, luminance, gradient, work)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn distance_avx2<const GRADIENT: bool>(
    frame: &Frame,
    s: &[f32],
    d: &[f32],
    luminance: bool,
    gradient: &mut [f32],
    work: &mut [f32],
) -> f64 {
    distance_plain::<GRADIENT>(frame, s, d, luminance, gradient, work)
}

// Everything from here on is inlined into the functions above, so that the compiler vectorises it for their features.

#[inline(always)]
fn distance_plain<const GRADIENT: bool>(
    frame: &Frame,
    s: &[f32],
    d: &[f32],
    luminance: bool,
    gradient: &mut [f32],
    work: &mut [f32],
) -> f64 {
    let (rows, columns) = frame.windows();
    let wide = frame.groups_width();
    let (filtered, rest) = work.split_at_mut(FILTERED * TAPS * wide);
    let (slopes, rest) = rest.split_at_mut(GRADIENTS * TAPS * wide);
    let (squares, rest) = rest.split_at_mut(2 * frame.stride);
    let spread = &mut rest[..GRADIENTS * frame.stride];
    slopes.fill(0.0);
    spread.fill(0.0);
    let share = 1.0 / (rows * columns) as f32;
    let mut sums = [0f64; LANES];
    for y in 0..frame.height {
        let (s_row, d_row) = (&s[y * frame.stride..][..frame.stride], &d[y * frame.stride..][..frame.stride]);
        filter_row(s_row, d_row, squares, ring_row(filtered, FILTERED, y, wide), wide);
        if y + 1 < TAPS {
            continue;
        }
        let window = y + 1 - TAPS;
        let slope_row = ring_row(slopes, GRADIENTS, window, wide);
        window_row::<GRADIENT>(filtered, window, wide, columns, luminance, share, slope_row, &mut sums);
        if GRADIENT {
            let at = window * frame.stride;
            let (s_row, d_row) = (&s[at..][..frame.stride], &d[at..][..frame.stride]);
            spread_row(slopes, window, wide, s_row, d_row, spread, &mut gradient[at..][..frame.stride]);
        }
    }
    if GRADIENT {
        for y in rows..frame.height {
            ring_row(slopes, GRADIENTS, y, wide).fill(0.0);
            let at = y * frame.stride;
            let (s_row, d_row) = (&s[at..][..frame.stride], &d[at..][..frame.stride]);
            spread_row(slopes, y, wide, s_row, d_row, spread, &mut gradient[at..][..frame.stride]);
        }
    }
    sums.iter().sum::<f64>() / (rows * columns) as f64
}

/// Row `y` of a ring of eleven rows of `fields` fields, `wide` floats each.
#[inline(always)]
fn ring_row(ring: &mut [f32], fields: usize, y: usize, wide: usize) -> &mut [f32] {
    &mut ring[(y % TAPS) * fields * wide..][..fields * wide]
}

/// The Gaussian over eleven neighbours, from the outer pairs inwards.
#[inline(always)]
fn gaussian(tap: impl Fn(usize) -> Lanes) -> Lanes {
    let mut sum = [0f32; LANES];
    for (t, k) in KERNEL[..HALF].iter().enumerate() {
        let (a, b) = (tap(t), tap(TAPS - 1 - t));
        for j in 0..LANES {
            sum[j] += k * (a[j] + b[j]);
        }
    }
    let middle = tap(HALF);
    for j in 0..LANES {
        sum[j] += KERNEL[HALF] * middle[j];
    }
    sum
}

#[inline(always)]
fn lanes(row: &[f32], at: usize) -> Lanes {
    *row[at..].first_chunk().expect("rows end on whole groups of columns")
}

/// s, d, s^2 and d^2 of one row of pixels, filtered along the row.
#[inline(always)]
fn filter_row(s: &[f32], d: &[f32], squares: &mut [f32], out: &mut [f32], wide: usize) {
    let (s2, d2) = squares.split_at_mut(s.len());
    for (((s2, d2), s), d) in s2.iter_mut().zip(d2.iter_mut()).zip(s).zip(d) {
        (*s2, *d2) = (s * s, d * d);
    }
    for (field, row) in [s, d, s2, d2].into_iter().enumerate() {
        let out = &mut out[field * wide..][..wide];
        for x in (0..wide).step_by(LANES) {
            // one check for the eleven overlapping reads
            let reach: &[f32; LANES + TAPS - 1] = row[x..].first_chunk().expect("the stride covers the last window");
            let sum = gaussian(|t| lanes(reach, t));
            out[x..x + LANES].copy_from_slice(&sum);
        }
    }
}

/// Finishes the filters of one row of windows, adds the distances to `sums` and writes the slopes of its similarities.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn window_row<const GRADIENT: bool>(
    filtered: &[f32],
    first: usize,
    wide: usize,
    columns: usize,
    luminance: bool,
    share: f32,
    slopes: &mut [f32],
    sums: &mut [f64; LANES],
) {
    // rows first..first + TAPS of each field; the kernel is symmetric, but the order of the sum should not depend on where
    // the ring begins
    let rows: [&[f32]; TAPS] = std::array::from_fn(|t| &filtered[((first + t) % TAPS) * FILTERED * wide..][..FILTERED * wide]);
    for x in (0..wide).step_by(LANES) {
        let field = |f: usize| gaussian(|t| lanes(rows[t], f * wide + x));
        let (mean_s, mean_d, mean_s2, mean_d2) = (field(0), field(1), field(2), field(3));
        let mut distance = [0f32; LANES];
        let mut slope = [[0f32; LANES]; GRADIENTS];
        for j in 0..LANES {
            let (a, b) = (mean_s[j], mean_d[j]);
            let var_s = mean_s2[j] - a * a;
            let var_d = mean_d2[j] - b * b;
            let inverse = 1.0 / (var_s + var_d + 2.0 * C2);
            // 1 - cs, at most 1 (cs >= 0); a NaN passes through the comparison
            let raw = 2.0 * var_d * inverse;
            let positive = raw < 1.0;
            let structure = if raw > 1.0 { 1.0 } else { raw };
            let mut slope_s = if positive { raw * inverse * share } else { 0.0 };
            let mut slope_d = if positive { -2.0 * (var_s + 2.0 * C2) * inverse * inverse * share } else { 0.0 };
            if luminance {
                // l = 1 - mean_d^2 / ((sum^2 + mean_d^2) / 2 + C1), sum = the two means added
                let sum = a + 1.0;
                let inverse = 1.0 / (0.5 * (sum * sum + b * b) + C1);
                let dark = b * b * inverse;
                let contrast = (1.0 - structure) * share * inverse;
                distance[j] = dark + structure - dark * structure;
                (slope_s, slope_d) = (slope_s * (1.0 - dark), slope_d * (1.0 - dark));
                slope[0][j] = contrast * (dark * sum + b * (dark - 2.0));
            } else {
                distance[j] = structure;
            }
            // var = mean of squares - square of mean
            slope[0][j] -= 2.0 * (a * slope_s + b * slope_d);
            // twice, for the derivative of the square of a pixel
            slope[1][j] = 2.0 * slope_s;
            slope[2][j] = 2.0 * slope_d;
        }
        let valid = LANES.min(columns - x);
        for (sum, distance) in sums.iter_mut().zip(distance).take(valid) {
            *sum += distance as f64;
        }
        if GRADIENT {
            for (f, slope) in slope.iter_mut().enumerate() {
                slope[valid..].fill(0.0);
                slopes[f * wide + x..][..LANES].copy_from_slice(slope);
            }
        }
    }
}

/// The transposed filter: gathers the slopes of all windows that see row `y` of pixels into that row's gradient.
#[inline(always)]
fn spread_row(slopes: &[f32], y: usize, wide: usize, s: &[f32], d: &[f32], spread: &mut [f32], out: &mut [f32]) {
    let stride = out.len();
    // windows y - 10..=y; those outside the image are zeros in the ring
    let rows: [&[f32]; TAPS] = std::array::from_fn(|t| &slopes[((y + 1 + t) % TAPS) * GRADIENTS * wide..][..GRADIENTS * wide]);
    // each field in the middle of zeros: [10 | wide | ...], all within the stride
    for f in 0..GRADIENTS {
        let row = &mut spread[f * stride..][..stride];
        for x in (0..wide).step_by(LANES) {
            let sum = gaussian(|t| lanes(rows[t], f * wide + x));
            row[TAPS - 1 + x..][..LANES].copy_from_slice(&sum);
        }
    }
    let field = |f: usize, x: usize| {
        let reach: &[f32; LANES + TAPS - 1] = spread[f * stride + x..].first_chunk().expect("whole groups of columns");
        gaussian(|t| lanes(reach, t))
    };
    for x in (0..stride - LANES).step_by(LANES) {
        let (plain, times_s, times_d) = (field(0, x), field(1, x), field(2, x));
        let (s, d) = (lanes(s, x), lanes(d, x));
        let mut sum = [0f32; LANES];
        for j in 0..LANES {
            sum[j] = plain[j] + (s[j] * times_s[j] + d[j] * times_d[j]);
        }
        out[x..x + LANES].copy_from_slice(&sum);
    }
}
