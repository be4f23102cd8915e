//! Correlation of a plane with a kernel: the inner loop of all blurs. Depends on `lanes`. The sum of
//! an output runs over the taps in rows, each product fused with it, so its bits are the same on every
//! machine and for every place of the output. Where every row of a kernel is the same backwards, the two
//! values of a weight are added before their product, which saves half of the products.

use super::lanes::{Lanes, Plain};
#[cfg(target_arch = "x86_64")]
use crate::support::isa::Set;

/// Columns that one pass over the taps may compute beyond the width: planes that are read have so
/// many values more at their end.
pub(super) const BLOCK: usize = 64;
/// Rows that are computed at once. Each value that is loaded then serves two sums. For an odd number
/// of rows one more row is read.
pub(super) const ROWS_AT_ONCE: usize = 2;
/// Registers side by side in a pass.
const ACROSS: usize = 4;

/// The plane that is read, from the first tap of the first output on.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub values: &'a [f32],
    /// Values from a row to the next.
    pub pitch: usize,
}

/// A kernel of `width` taps a row. Taps of weight 0 at the ends of its rows are skipped, which changes
/// no bit: values are finite.
pub(super) struct Taps<'a> {
    weights: &'a [f32],
    width: usize,
    /// For each row that two rows of outputs read (with the row of taps of the same number, and with
    /// the one before it): the first tap that does not weigh 0 in either, and the end.
    used: Vec<(usize, usize)>,
    /// Whether there are several rows of several taps, all of which are the same backwards.
    folded: bool,
}

impl<'a> Taps<'a> {
    /// Rows of this many taps.
    ///
    /// # Panics
    /// The rows do not fill the weights.
    pub fn rows(weights: &'a [f32], width: usize) -> Taps<'a> {
        assert!(weights.len().is_multiple_of(width));
        let span = |row: &[f32]| {
            let first = row.iter().position(|w| *w != 0.0).unwrap_or(width);
            let end = row
                .iter()
                .rposition(|w| *w != 0.0)
                .map_or(0, |last| last + 1);
            (first, end)
        };
        let both = |a: (usize, usize), b: (usize, usize)| (a.0.min(b.0), a.1.max(b.1));
        let spans = weights.chunks_exact(width).map(span);
        let none = std::iter::once((width, 0));
        let used = spans.clone().chain(none.clone()).zip(none.chain(spans));
        let backwards = |row: &[f32]| row.iter().eq(row.iter().rev());
        Taps {
            weights,
            width,
            folded: width % 2 == 1
                && width > 1
                && weights.len() > width
                && weights.chunks_exact(width).all(backwards),
            used: used.map(|(a, b)| both(a, b)).collect(),
        }
    }

    /// A row.
    pub fn row(weights: &'a [f32]) -> Taps<'a> {
        Taps::rows(weights, weights.len())
    }

    /// A column.
    pub fn column(weights: &'a [f32]) -> Taps<'a> {
        Taps::rows(weights, 1)
    }
}

/// The plane that is written.
pub(super) struct Target<'a> {
    pub values: &'a mut [f32],
    /// Values from a row to the next.
    pub pitch: usize,
    /// Columns and rows.
    pub size: (usize, usize),
}

impl<'a> Target<'a> {
    /// A plane without gaps between its rows.
    pub fn packed(values: &'a mut [f32], size: (usize, usize)) -> Target<'a> {
        Target {
            values,
            pitch: size.0,
            size,
        }
    }
}

/// Distance of the rows of a plane of this width: an odd number of cache lines. If it were a power of
/// two, the rows of a column would share a few sets of the cache and evict each other.
pub(super) fn pitch_of(width: usize) -> usize {
    16 * (width.div_ceil(16) | 1)
}

/// Writes to every output the sum of the weights times the values from the output's place on.
pub(super) fn correlate(source: Source, target: Target, taps: &Taps) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m256, __m512};
        #[target_feature(enable = "avx2,fma")]
        fn avx2(source: Source, target: Target, taps: &Taps) {
            // SAFETY: the processor has AVX2 and FMA
            unsafe { all::<__m256>(source, target, taps) }
        }
        #[target_feature(enable = "avx512f")]
        fn avx512(source: Source, target: Target, taps: &Taps) {
            // SAFETY: the processor has AVX-512
            unsafe { all::<__m512>(source, target, taps) }
        }
        match super::lanes::set() {
            // SAFETY: an `Isa` exists only for instruction sets that the processor has
            Set::Avx512 => return unsafe { avx512(source, target, taps) },
            // SAFETY: as above
            Set::Avx2 => return unsafe { avx2(source, target, taps) },
            _ => {}
        }
    }
    // SAFETY: plain code needs no instructions beyond the base set
    unsafe { all::<Plain>(source, target, taps) }
}

/// [`correlate`] for one instruction set.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn all<V: Lanes>(source: Source, mut target: Target, taps: &Taps) {
    let (w, h) = target.size;
    // columns are the outer loop: the rows of one block stay in the nearest cache
    let mut x = 0;
    while x < w {
        let across = (w - x).div_ceil(V::COUNT).min(ACROSS);
        for y in (0..h).step_by(ROWS_AT_ONCE) {
            // SAFETY: the contract of this function
            unsafe {
                match across {
                    1 => block::<V, 1>(source, &mut target, taps, (x, y)),
                    2 => block::<V, 2>(source, &mut target, taps, (x, y)),
                    3 => block::<V, 3>(source, &mut target, taps, (x, y)),
                    _ => block::<V, ACROSS>(source, &mut target, taps, (x, y)),
                }
            }
        }
        x += across * V::COUNT;
    }
}

/// Computes [`ROWS_AT_ONCE`] rows of `N` registers each.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn block<V: Lanes, const N: usize>(
    source: Source,
    target: &mut Target,
    taps: &Taps,
    (x, y): (usize, usize),
) {
    let count = N * V::COUNT;
    let (width, height) = (taps.width, taps.weights.len() / taps.width);
    let from = &source.values[y * source.pitch + x..];
    let last = (height + ROWS_AT_ONCE - 2) * source.pitch;
    assert!(taps.weights.len() == width * height && from.len() >= last + width - 1 + count);
    // SAFETY: every row of taps reads `width - 1 + count` values from its row on, and the last one
    // ends within the source, as just checked; the rest as the contract of this function
    let sums = unsafe {
        let mut sums = [[V::splat(0.0); N]; ROWS_AT_ONCE];
        let row = |ky: usize| from.as_ptr().add(ky * source.pitch);
        let line = |ky: usize| taps.weights.as_ptr().add(ky * width);
        if height == 1 {
            add_rows(&mut sums, [row(0), row(1)], line(0), taps.used[0]);
        } else if taps.folded {
            let [upper, lower] = &mut sums;
            add_folded([&mut *upper], row(0), [line(0)], width, taps.used[0].0);
            for ky in 1..height {
                let lines = [line(ky), line(ky - 1)];
                let both = [&mut *upper, &mut *lower];
                add_folded(both, row(ky), lines, width, taps.used[ky].0);
            }
            let last = [line(height - 1)];
            add_folded([lower], row(height), last, width, taps.used[height].0);
        } else {
            let [upper, lower] = &mut sums;
            add_row([&mut *upper], row(0), [line(0)], taps.used[0]);
            for ky in 1..height {
                let lines = [line(ky), line(ky - 1)];
                add_row([&mut *upper, &mut *lower], row(ky), lines, taps.used[ky]);
            }
            let last = [line(height - 1)];
            add_row([lower], row(height), last, taps.used[height]);
        }
        sums
    };
    let (w, h) = target.size;
    for (sums, y) in sums.iter().zip(y..h) {
        let out = &mut target.values[y * target.pitch + x..][..count.min(w - x)];
        let mut whole = [0.0f32; BLOCK];
        let place = if out.len() == count {
            out.as_mut_ptr()
        } else {
            whole.as_mut_ptr()
        };
        for (n, sum) in sums.iter().enumerate() {
            // SAFETY: both places hold N registers; the rest as the contract of this function
            unsafe { sum.store(place.add(n * V::COUNT)) };
        }
        if out.len() < count {
            out.copy_from_slice(&whole[..out.len()]);
        }
    }
}

/// Adds the taps from `first` to `end` of a row for each of `R` output rows.
///
/// # Safety
/// As [`Lanes`]; `row` points to `N` registers and `end - 1` values more, every line to `end`
/// weights.
#[inline(always)]
unsafe fn add_row<V: Lanes, const N: usize, const R: usize>(
    sums: [&mut [V; N]; R],
    row: *const f32,
    lines: [*const f32; R],
    (first, end): (usize, usize),
) {
    for kx in first..end {
        // SAFETY: the contract of this function. Plain loops, because the closure of `from_fn` would
        // not have the instruction set of the caller
        unsafe {
            let mut values = [V::splat(0.0); N];
            for (n, value) in values.iter_mut().enumerate() {
                *value = V::load(row.add(kx + n * V::COUNT));
            }
            for r in 0..R {
                let weight = V::splat(*lines[r].add(kx));
                for n in 0..N {
                    sums[r][n] = V::add_product(sums[r][n], weight, values[n]);
                }
            }
        }
    }
}

/// Adds a row of taps that is the same backwards, an odd number, for each of `R` output rows; the taps
/// before `first` and their counterparts weigh 0.
///
/// # Safety
/// As [`Lanes`]; `row` points to `N` registers and `width - 1` values more, every line to `width`
/// weights.
#[inline(always)]
unsafe fn add_folded<V: Lanes, const N: usize, const R: usize>(
    mut sums: [&mut [V; N]; R],
    row: *const f32,
    lines: [*const f32; R],
    width: usize,
    first: usize,
) {
    let middle = width / 2;
    for kx in first..middle {
        // SAFETY: the contract of this function
        unsafe {
            let mut values = [V::splat(0.0); N];
            for (n, value) in values.iter_mut().enumerate() {
                let left = V::load(row.add(kx + n * V::COUNT));
                let right = V::load(row.add(width - 1 - kx + n * V::COUNT));
                *value = V::add(left, right);
            }
            for r in 0..R {
                let weight = V::splat(*lines[r].add(kx));
                for n in 0..N {
                    sums[r][n] = V::add_product(sums[r][n], weight, values[n]);
                }
            }
        }
    }
    if first <= middle {
        let sums = sums.each_mut().map(|sums| &mut **sums);
        // SAFETY: the contract of this function
        unsafe { add_row(sums, row, lines, (middle, middle + 1)) };
    }
}

/// Adds the taps from `first` to `end` of the only row for each output row.
///
/// # Safety
/// As [`add_row`], for every row.
#[inline(always)]
unsafe fn add_rows<V: Lanes, const N: usize>(
    sums: &mut [[V; N]; ROWS_AT_ONCE],
    rows: [*const f32; ROWS_AT_ONCE],
    line: *const f32,
    (first, end): (usize, usize),
) {
    for kx in first..end {
        // SAFETY: the contract of this function
        unsafe {
            let weight = V::splat(*line.add(kx));
            for (sums, row) in sums.iter_mut().zip(rows) {
                for (n, sum) in sums.iter_mut().enumerate() {
                    let value = V::load(row.add(kx + n * V::COUNT));
                    *sum = V::add_product(*sum, weight, value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degrade::lanes::FORCED;
    use crate::support::isa::Isa;

    /// Every width of a block and its rest, an odd number of rows, and kernels of all forms, against
    /// a plain loop: the same bits for every instruction set, and nothing beyond the target.
    #[test]
    fn sums_are_those_of_a_plain_loop() {
        let value = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.3;
        for (columns, rows) in [(1, 1), (3, 3), (9, 9), (21, 21), (51, 1), (1, 51), (5, 2)] {
            let folded = columns == 9;
            let mut weights: Vec<f32> = (0..columns * rows).map(|i| value(i + 5) / 9.0).collect();
            if folded {
                for (y, row) in weights.chunks_exact_mut(columns).enumerate() {
                    row[0] *= f32::from(u8::from(y % 4 > 0));
                    (0..4).for_each(|x| row[8 - x] = row[x]);
                }
                weights[18..27].fill(0.0);
            }
            if columns == 21 {
                // a slanted kernel, an empty row, and a hole
                for (i, weight) in weights.iter_mut().enumerate() {
                    let (x, y) = (i % columns, i / columns);
                    if x.abs_diff(y) > 6 || y == 3 || (x, y) == (10, 10) {
                        *weight = 0.0;
                    }
                }
            }
            for (w, h) in [
                (1, 1),
                (15, 2),
                (16, 3),
                (17, 1),
                (40, 5),
                (64, 4),
                (131, 7),
            ] {
                let pitch = pitch_of(w + columns - 1);
                let values: Vec<f32> = (0..pitch * (h + rows + ROWS_AT_ONCE) + BLOCK)
                    .map(value)
                    .collect();
                let mut expected = vec![9.0; (w + 3) * h];
                for (y, out) in expected.chunks_exact_mut(w + 3).enumerate() {
                    for (x, out) in out[..w].iter_mut().enumerate() {
                        let at = |tap: usize| (y + tap / columns) * pitch + x + tap % columns;
                        *out = 0.0;
                        for (tap, weight) in weights.iter().enumerate() {
                            let (left, right) = (tap % columns, columns - 1 - tap % columns);
                            let other = tap + right - left;
                            if !folded || left == right {
                                *out = libm::fmaf(*weight, values[at(tap)], *out);
                            } else if left < right {
                                let both = values[at(tap)] + values[at(other)];
                                *out = libm::fmaf(*weight, both, *out);
                            }
                        }
                    }
                }
                for isa in Isa::available() {
                    FORCED.set(Some(isa.set()));
                    let mut out = vec![9.0; (w + 3) * h];
                    let source = Source {
                        values: &values,
                        pitch,
                    };
                    let target = Target {
                        values: &mut out,
                        pitch: w + 3,
                        size: (w, h),
                    };
                    correlate(source, target, &Taps::rows(&weights, columns));
                    FORCED.set(None);
                    assert!(out == expected, "{isa}: {w}x{h}, {columns}x{rows} taps");
                }
            }
        }
    }
}
