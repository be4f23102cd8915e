//! Correlation of a plane with a kernel: the inner loop of all blurs. Depends on `lanes`. The sum of
//! an output runs over the taps in rows, each product fused with it, so its bits are the same on every
//! machine and for every place of the output. Where every row of a kernel is the same backwards, the two
//! values of a weight are added before their product, which saves half of the products.
//!
//! Up to three rows of outputs are summed at once, as many as registers hold: a value that is loaded then
//! serves three sums, which matters because a load that crosses a cache line counts twice. All taps are in
//! one list, so that one loop runs over them.

use super::lanes::{Lanes, Plain};
#[cfg(target_arch = "x86_64")]
use crate::support::isa::Set;
use std::ops::Range;

/// Columns that one pass over the taps may compute beyond the width: planes that are read have so
/// many values more at their end.
pub(super) const BLOCK: usize = 64;
/// Rows that are computed at once at least. For an image of one row, one more row is read.
pub(super) const ROWS_AT_ONCE: usize = 2;
/// Rows that are computed at once at most.
const MOST_ROWS: usize = 3;
/// Registers side by side in a pass: with three rows of sums, their weights and the values there are as
/// many registers as AVX2 has.
const ACROSS: usize = 4;
/// The same where two values are added before their product, which takes one register more.
const ACROSS_FOLDED: usize = 3;

/// A tap for up to [`MOST_ROWS`] rows of outputs.
struct Tap {
    /// Values from the place of the first output to that of the tap.
    at: u32,
    /// The same for the value that is added to it, where rows are folded.
    other: u32,
    /// Its weights for the first row of outputs, for the next one, and so on.
    weights: [f32; MOST_ROWS],
}

/// A kernel. Taps of weight 0 are left out, which changes no bit: values are finite.
pub(super) struct Taps {
    /// The taps by the row of the source that they read.
    list: Vec<Tap>,
    /// For each row of the source, the number of its first tap; then the number of taps.
    starts: Vec<usize>,
    /// Rows of the kernel.
    height: usize,
    /// Values from a row of the source to the next.
    pitch: usize,
    /// Whether there are several rows of several taps, all of which are the same backwards.
    folded: bool,
}

impl Taps {
    /// Rows of this many taps, for a plane whose rows are `pitch` values apart.
    ///
    /// # Panics
    /// The rows do not fill the weights.
    pub fn rows(weights: &[f32], width: usize, pitch: usize) -> Taps {
        assert!(weights.len().is_multiple_of(width));
        let height = weights.len() / width;
        let backwards = |row: &[f32]| row.iter().eq(row.iter().rev());
        let folded =
            width % 2 == 1 && width > 1 && height > 1 && weights.chunks_exact(width).all(backwards);
        let columns = if folded { width / 2 + 1 } else { width };
        let (mut list, mut starts) = (Vec::new(), vec![0]);
        for y in 0..height + MOST_ROWS - 1 {
            for x in 0..columns {
                // the tap in the middle takes its value twice: both steps are exact
                let share = if folded && x == width / 2 { 0.5 } else { 1.0 };
                let weights: [f32; MOST_ROWS] = std::array::from_fn(|output| {
                    let row = y.checked_sub(output).filter(|row| *row < height);
                    row.map_or(0.0, |row| share * weights[row * width + x])
                });
                if weights.iter().any(|weight| *weight != 0.0) {
                    let place = |x: usize| (y * pitch + x) as u32;
                    list.push(Tap {
                        at: place(x),
                        other: place(if folded { width - 1 - x } else { x }),
                        weights,
                    });
                }
            }
            starts.push(list.len());
        }
        Taps {
            list,
            starts,
            height,
            pitch,
            folded,
        }
    }

    /// A row.
    pub fn row(weights: &[f32], pitch: usize) -> Taps {
        Taps::rows(weights, weights.len(), pitch)
    }

    /// A column.
    pub fn column(weights: &[f32], pitch: usize) -> Taps {
        Taps::rows(weights, 1, pitch)
    }

    /// The taps that read these rows of the source.
    #[inline(always)]
    fn reading(&self, rows: Range<usize>) -> &[Tap] {
        &self.list[self.starts[rows.start]..self.starts[rows.end.max(rows.start)]]
    }

    /// Most values from the place of an output to one that is read for it or for the `rows - 1` outputs
    /// below it.
    fn reach(&self, rows: usize) -> usize {
        // a row of taps serves each row of outputs for itself
        let (read, below) = match self.height {
            1 => (1, rows - 1),
            height => (height + rows - 1, 0),
        };
        let places = self
            .reading(0..read)
            .iter()
            .map(|tap| tap.at.max(tap.other));
        places.max().map_or(0, |most| most as usize) + below * self.pitch
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

/// Writes to every output the sum of the weights times the values from the output's place on. The first
/// output's place is the first value of `source`, which should begin at a cache line.
pub(super) fn correlate(source: &[f32], target: Target, taps: &Taps) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m256, __m512};
        #[target_feature(enable = "avx2,fma")]
        fn avx2(source: &[f32], target: Target, taps: &Taps) {
            // SAFETY: the processor has AVX2 and FMA
            unsafe { all::<__m256>(source, target, taps) }
        }
        #[target_feature(enable = "avx512f")]
        fn avx512(source: &[f32], target: Target, taps: &Taps) {
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
unsafe fn all<V: Lanes>(source: &[f32], mut target: Target, taps: &Taps) {
    let (w, h) = target.size;
    let several = taps.height > 1;
    let most = if taps.folded { ACROSS_FOLDED } else { ACROSS };
    let reach = [ROWS_AT_ONCE, MOST_ROWS].map(|rows| taps.reach(rows));
    // columns are the outer loop: the rows of one block stay in the nearest cache
    let mut x = 0;
    while x < w {
        let across = (w - x).div_ceil(V::COUNT).min(most);
        let mut y = 0;
        while y < h {
            // four rows are twice two, so that none is computed for nothing
            let tall = several && h - y >= MOST_ROWS && h - y != 4;
            let target = &mut target;
            // SAFETY: the contract of this function
            unsafe {
                match (across, tall) {
                    (1, false) => {
                        block::<V, 1, ROWS_AT_ONCE>(source, reach[0], target, taps, (x, y))
                    }
                    (2, false) => {
                        block::<V, 2, ROWS_AT_ONCE>(source, reach[0], target, taps, (x, y))
                    }
                    (3, false) => {
                        block::<V, 3, ROWS_AT_ONCE>(source, reach[0], target, taps, (x, y))
                    }
                    (_, false) => {
                        block::<V, 4, ROWS_AT_ONCE>(source, reach[0], target, taps, (x, y))
                    }
                    (1, true) => block::<V, 1, MOST_ROWS>(source, reach[1], target, taps, (x, y)),
                    (2, true) => block::<V, 2, MOST_ROWS>(source, reach[1], target, taps, (x, y)),
                    (3, true) => block::<V, 3, MOST_ROWS>(source, reach[1], target, taps, (x, y)),
                    (_, true) => block::<V, 4, MOST_ROWS>(source, reach[1], target, taps, (x, y)),
                }
            }
            y += if tall { MOST_ROWS } else { ROWS_AT_ONCE };
        }
        x += across * V::COUNT;
    }
}

/// Computes `R` rows of `N` registers each.
///
/// # Safety
/// As [`Lanes`]; `reach` is [`Taps::reach`] of `R` rows, and taps are not folded for `N` beyond
/// [`ACROSS_FOLDED`].
#[inline(always)]
unsafe fn block<V: Lanes, const N: usize, const R: usize>(
    source: &[f32],
    reach: usize,
    target: &mut Target,
    taps: &Taps,
    (x, y): (usize, usize),
) {
    let count = N * V::COUNT;
    let from = &source[y * taps.pitch + x..];
    assert!(from.len() >= reach + count);
    let from = from.as_ptr();
    // SAFETY: these rows read `reach + count` values at most, as just checked; the rest as the contract
    // of this function
    let sums = unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        if R == ROWS_AT_ONCE && taps.height == 1 {
            add_rows(&mut sums, from, taps);
        } else if N <= ACROSS_FOLDED && taps.folded {
            add_all::<V, N, R, true>(&mut sums, from, taps);
        } else {
            add_all::<V, N, R, false>(&mut sums, from, taps);
        }
        sums
    };
    let (w, h) = target.size;
    for (sums, y) in sums.iter().zip(y..h) {
        let out = &mut target.values[y * target.pitch + x..][..count.min(w - x)];
        if out.len() == count {
            for (n, sum) in sums.iter().enumerate() {
                // SAFETY: `out` holds N registers; the rest as the contract of this function
                unsafe { sum.store(out.as_mut_ptr().add(n * V::COUNT)) };
            }
        } else {
            let mut whole = [0.0f32; BLOCK];
            for (n, sum) in sums.iter().enumerate() {
                // SAFETY: the array holds N registers; the rest as the contract of this function
                unsafe { sum.store(whole.as_mut_ptr().add(n * V::COUNT)) };
            }
            out.copy_from_slice(&whole[..out.len()]);
        }
    }
}

/// Adds all taps of a kernel of several rows for `R` rows of outputs, two or three. The first and the
/// last rows of the source serve some of them.
///
/// # Safety
/// As [`add`], for all taps of the rows.
#[inline(always)]
unsafe fn add_all<V: Lanes, const N: usize, const R: usize, const FOLDED: bool>(
    sums: &mut [[V; N]; R],
    from: *const f32,
    taps: &Taps,
) {
    let height = taps.height;
    // SAFETY: the contract of this function
    unsafe {
        add::<V, N, R, 0, 1, FOLDED>(sums, from, taps.reading(0..1));
        if R == 2 {
            add::<V, N, R, 0, 2, FOLDED>(sums, from, taps.reading(1..height));
            add::<V, N, R, 1, 2, FOLDED>(sums, from, taps.reading(height..height + 1));
        } else {
            add::<V, N, R, 0, 2, FOLDED>(sums, from, taps.reading(1..2));
            add::<V, N, R, 0, R, FOLDED>(sums, from, taps.reading(2..height));
            add::<V, N, R, 1, R, FOLDED>(sums, from, taps.reading(height..height + 1));
            add::<V, N, R, 2, R, FOLDED>(sums, from, taps.reading(height + 1..height + 2));
        }
    }
}

/// Adds taps for the rows of outputs from `FIRST` to `END`.
///
/// # Safety
/// As [`Lanes`]; `from` points to `N` registers from every place of the taps on.
#[allow(clippy::needless_range_loop)] // bounds that are constants keep the sums in registers
#[inline(always)]
unsafe fn add<
    V: Lanes,
    const N: usize,
    const R: usize,
    const FIRST: usize,
    const END: usize,
    const FOLDED: bool,
>(
    sums: &mut [[V; N]; R],
    from: *const f32,
    taps: &[Tap],
) {
    for tap in taps {
        // SAFETY: the contract of this function. Plain loops, because the closure of `from_fn` would
        // not have the instruction set of the caller
        unsafe {
            let mut weights = [V::splat(0.0); R];
            for r in FIRST..END {
                weights[r] = V::splat(tap.weights[r]);
            }
            for n in 0..N {
                let mut value = V::load(from.add(tap.at as usize + n * V::COUNT));
                if FOLDED {
                    let other = V::load(from.add(tap.other as usize + n * V::COUNT));
                    value = V::add(value, other);
                }
                for r in FIRST..END {
                    sums[r][n] = V::add_product(sums[r][n], weights[r], value);
                }
            }
        }
    }
}

/// Adds all taps of a kernel of one row.
///
/// # Safety
/// As [`add`], for `R` rows.
#[inline(always)]
unsafe fn add_rows<V: Lanes, const N: usize, const R: usize>(
    sums: &mut [[V; N]; R],
    from: *const f32,
    taps: &Taps,
) {
    for tap in taps.reading(0..1) {
        // SAFETY: the contract of this function
        unsafe {
            let weight = V::splat(tap.weights[0]);
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = from.add(r * taps.pitch);
                for (n, sum) in sums.iter_mut().enumerate() {
                    let value = V::load(row.add(tap.at as usize + n * V::COUNT));
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
        for (columns, rows) in [
            (1, 1),
            (3, 3),
            (9, 9),
            (21, 21),
            (51, 1),
            (1, 51),
            (5, 2),
            (7, 3),
            (3, 2),
        ] {
            let folded = columns == 9 || rows == 2 && columns == 3;
            let mut weights: Vec<f32> = (0..columns * rows).map(|i| value(i + 5) / 9.0).collect();
            if folded {
                for (y, row) in weights.chunks_exact_mut(columns).enumerate() {
                    row[0] *= f32::from(u8::from(y % 4 > 0));
                    (0..columns / 2).for_each(|x| row[columns - 1 - x] = row[x]);
                }
            }
            if columns == 9 {
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
                (20, 6),
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
                    let target = Target {
                        values: &mut out,
                        pitch: w + 3,
                        size: (w, h),
                    };
                    correlate(&values, target, &Taps::rows(&weights, columns, pitch));
                    FORCED.set(None);
                    assert!(out == expected, "{isa}: {w}x{h}, {columns}x{rows} taps");
                }
            }
        }
    }
}
