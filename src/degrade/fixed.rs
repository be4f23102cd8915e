//! A Gaussian over rows and columns in whole numbers of 16 bits: processors add two products of them
//! in the time of one product of f32, and whole numbers give the same bits in any order. Depends on
//! `lanes`, and on `correlate` for the distance of rows. The result differs from that of exact
//! arithmetic by at most [`ERROR`].

use super::blur::mirror_ends;
use super::canvas::reflect;
use super::correlate::{BLOCK, pitch_of};
use super::lanes::{Plain16, Products, dispatch};
use super::table::ROWS;
#[cfg(target_arch = "x86_64")]
use crate::support::isa::Set;

/// A value of 1. Values are clamped to -2 to 2, so a step before may overshoot. It is a multiple of
/// 255: values of 8 bits are exact.
const ONE: f32 = 255.0 * 64.0;
/// Most that a result is off, for values from 0 to 1.
#[cfg(test)]
pub(super) const ERROR: f32 = 1e-4;
/// Registers side by side in a pass.
const ACROSS: usize = 4;

/// The weights of a row, in pairs as the processor takes them.
pub(super) struct FixedRow {
    /// Weights 0 and 1, 2 and 3, and so on, the first of a pair in the lower half.
    even: Vec<i32>,
    /// Nothing and weight 0, 1 and 2, and so on: for a sum that begins in the middle of a pair.
    odd: Vec<i32>,
    taps: usize,
    /// Binary logarithm of the sum of all weights.
    shift: u32,
}

impl FixedRow {
    /// From an odd number of weights that are not negative and add up to 1.
    ///
    /// # Panics
    /// The number is even.
    pub fn new(weights: &[f64]) -> FixedRow {
        assert!(weights.len() % 2 == 1, "an even number of weights");
        let widest = weights.iter().copied().fold(0.0, f64::max);
        // weights must fit 16 bits, and sums of values up to 2 must fit 32 bits
        let shift = if widest < 0.49 { 16 } else { 15 };
        let whole = |x: f64| libm::round(x * f64::from(1u32 << shift)) as i32;
        // The running sums are rounded, not the weights: then the weights add up to exactly 1, and
        // their errors cancel where the image changes slowly.
        let mut sum = 0.0;
        let mut last = 0;
        let rounded = weights.iter().map(|w| {
            sum += w;
            let before = std::mem::replace(&mut last, whole(sum.min(1.0)));
            last - before
        });
        let mut list: Vec<i32> = std::iter::once(0).chain(rounded).collect();
        list.push(0);
        let pairs = |list: &[i32]| {
            let pairs = list.chunks_exact(2);
            pairs.map(|w| pair(w[0], w[1])).collect()
        };
        FixedRow {
            even: pairs(&list[1..]),
            odd: pairs(&list),
            taps: weights.len(),
            shift,
        }
    }

    /// A sum times this is a value.
    pub fn unit(&self) -> f32 {
        1.0 / (ONE * (1u32 << self.shift) as f32)
    }

    /// Pixels that it reaches to each side.
    fn radius(&self) -> usize {
        self.taps / 2
    }
}

/// Two values in the halves of a register's lane.
#[inline(always)]
fn pair(low: i32, high: i32) -> i32 {
    (low & 0xffff) | (high << 16)
}

/// A plane whose rows are filtered, in pairs of rows, with mirrored rows above and below.
pub(super) struct FixedRows<'a> {
    /// Size of the plane.
    pub size: (usize, usize),
    /// Scratch for a row with borders.
    pub lines: &'a mut [[f32; ROWS]],
    /// Scratch for half a plane.
    pub filtered: &'a mut [f32],
    /// Scratch for a plane with borders.
    pub padded: &'a mut [f32],
}

impl FixedRows<'_> {
    /// Filters the rows of `plane`, with mirrored ends.
    pub fn fill(&mut self, plane: &[f32], row: &FixedRow) {
        let (w, h) = self.size;
        let radius = row.radius();
        let line: &mut [i16] = bytemuck::cast_slice_mut(self.lines.as_flattened_mut());
        let filtered = &mut bytemuck::cast_slice_mut(self.filtered)[..w * h];
        let half = w.div_ceil(2);
        let sums = &mut bytemuck::cast_slice_mut(self.padded)[..2 * half];
        for (from, to) in plane.chunks_exact(w).zip(filtered.chunks_exact_mut(w)) {
            to_whole(from, &mut line[radius..radius + w]);
            mirror_whole(&mut line[..w + 2 * radius], radius);
            let pass = Pass {
                pairs: bytemuck::cast_slice(line),
                from_row: 0,
                from_tap: 1,
            };
            run(pass, (half, 2), row, sums);
            let (even, odd) = sums.split_at(half);
            narrow(even, odd, row.shift, to);
        }
        let pairs = bytemuck::cast_slice_mut(self.padded);
        pair_rows(filtered, self.size, radius, pairs);
    }

    /// Filters the columns, after the rows; a sum times [`FixedRow::unit`] is a value.
    pub fn filter(&self, row: &FixedRow, sums: &mut [i32]) {
        let pitch = pitch_of(self.size.0);
        let pass = Pass {
            pairs: bytemuck::cast_slice(self.padded),
            from_row: pitch,
            from_tap: pitch,
        };
        run(pass, self.size, row, sums);
    }
}

dispatch! {
    /// Turns values into whole numbers.
    fn to_whole(values: &[f32], out: &mut [i16]) {
        for (out, value) in out.iter_mut().zip(values) {
            // adding 1.5 * 2^23 leaves the rounded number in the low bits
            *out = (value.clamp(-2.0, 2.0) * ONE + 12_582_912.0).to_bits() as i16;
        }
    }
}

dispatch! {
    /// [`mirror_ends`] of whole numbers.
    fn mirror_whole(line: &mut [i16], radius: usize) {
        mirror_ends(line, radius);
    }
}

dispatch! {
    /// Divides the sums of even and of odd places by the sum of the weights.
    fn narrow(even: &[i32], odd: &[i32], shift: u32, out: &mut [i16]) {
        let half = 1 << (shift - 1);
        let divided = |sum: i32| sum.wrapping_add(half) >> shift;
        let (pairs, rest) = out.as_chunks_mut::<2>();
        for ((even, odd), out) in even.iter().zip(odd).zip(pairs) {
            *out = bytemuck::cast(pair(divided(*even), divided(*odd)));
        }
        if let ([last], Some(even)) = (rest, even.last()) {
            *last = divided(*even) as i16;
        }
    }
}

/// Writes pairs of each even row and the next, of a plane with `radius` mirrored rows above and below.
fn pair_rows(filtered: &[i16], (w, h): (usize, usize), radius: usize, pairs: &mut [i32]) {
    let row = |y: usize| &filtered[w * reflect(y as isize - radius as isize, h)..][..w];
    let count = (h + 2 * radius).div_ceil(2);
    for (y, out) in pairs.chunks_exact_mut(pitch_of(w)).take(count).enumerate() {
        interleave(row(2 * y), row(2 * y + 1), out);
    }
}

dispatch! {
    /// Pairs of two rows.
    fn interleave(first: &[i16], second: &[i16], out: &mut [i32]) {
        for ((a, b), out) in first.iter().zip(second).zip(out) {
            *out = pair(i32::from(*a), i32::from(*b));
        }
    }
}

/// What a pass reads: pairs of neighbours in a row, or rows of pairs of rows. A pair serves two outputs:
/// the one of its first half's place and the next one, which are in two rows of the target.
#[derive(Clone, Copy)]
struct Pass<'a> {
    pairs: &'a [i32],
    /// Pairs from the first tap of two rows of the target to that of the next two.
    from_row: usize,
    /// Pairs from a tap to the next.
    from_tap: usize,
}

/// Runs a pass with the instruction set of the processor. `size` is that of the target, `sums`, which
/// has no gaps.
fn run(pass: Pass, size: (usize, usize), row: &FixedRow, sums: &mut [i32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m256i, __m512i};
        #[target_feature(enable = "avx2")]
        fn avx2(pass: Pass, size: (usize, usize), row: &FixedRow, sums: &mut [i32]) {
            // SAFETY: the processor has AVX2
            unsafe { all::<__m256i>(pass, size, row, sums) }
        }
        #[target_feature(enable = "avx512f,avx512bw")]
        fn avx512(pass: Pass, size: (usize, usize), row: &FixedRow, sums: &mut [i32]) {
            // SAFETY: the processor has AVX-512 with instructions for 16-bit numbers
            unsafe { all::<__m512i>(pass, size, row, sums) }
        }
        match super::lanes::set() {
            // SAFETY: an `Isa` exists only for instruction sets that the processor has
            Set::Avx512 => return unsafe { avx512(pass, size, row, sums) },
            // SAFETY: as above
            Set::Avx2 => return unsafe { avx2(pass, size, row, sums) },
            _ => {}
        }
    }
    // SAFETY: plain code needs no instructions beyond the base set
    unsafe { all::<Plain16>(pass, size, row, sums) }
}

/// [`run`] for one instruction set.
///
/// # Safety
/// As [`Products`].
#[inline(always)]
unsafe fn all<V: Products>(pass: Pass, (w, h): (usize, usize), row: &FixedRow, sums: &mut [i32]) {
    // columns are the outer loop: the rows of one block stay in the nearest cache
    let mut x = 0;
    while x < w {
        let across = (w - x).div_ceil(V::COUNT).min(ACROSS);
        for y in (0..h).step_by(2) {
            // SAFETY: the contract of this function
            unsafe {
                match across {
                    1 => block::<V, 1>(pass, (w, h), row, (x, y), sums),
                    2 => block::<V, 2>(pass, (w, h), row, (x, y), sums),
                    3 => block::<V, 3>(pass, (w, h), row, (x, y), sums),
                    _ => block::<V, ACROSS>(pass, (w, h), row, (x, y), sums),
                }
            }
        }
        x += across * V::COUNT;
    }
}

/// Computes two rows of the target, `N` registers each.
///
/// # Safety
/// As [`Products`].
#[inline(always)]
unsafe fn block<V: Products, const N: usize>(
    pass: Pass,
    (w, h): (usize, usize),
    row: &FixedRow,
    (x, y): (usize, usize),
    out: &mut [i32],
) {
    let count = N * V::COUNT;
    let taps = row.even.len();
    let from = &pass.pairs[y / 2 * pass.from_row + x..];
    assert!(
        row.odd.len() == taps
            && y.is_multiple_of(2)
            && from.len() >= (taps - 1) * pass.from_tap + count
    );
    // SAFETY: the contract of this function
    let mut sums = [[unsafe { V::splat(0) }; N]; 2];
    for (k, (even, odd)) in row.even.iter().zip(&row.odd).enumerate() {
        // SAFETY: the last tap's registers end within `from`, as just checked; the rest as the
        // contract of this function
        unsafe {
            let weights = [V::splat(*even), V::splat(*odd)];
            for n in 0..N {
                let pairs = V::load(from.as_ptr().add(k * pass.from_tap + n * V::COUNT));
                for (sums, weight) in sums.iter_mut().zip(weights) {
                    sums[n] = V::add_products(sums[n], weight, pairs);
                }
            }
        }
    }
    for (sums, y) in sums.iter().zip(y..h) {
        let out = &mut out[y * w + x..][..count.min(w - x)];
        if out.len() == count {
            for (n, sum) in sums.iter().enumerate() {
                // SAFETY: `out` holds N registers; the rest as the contract of this function
                unsafe { sum.store(out.as_mut_ptr().add(n * V::COUNT)) };
            }
        } else {
            let mut whole = [0i32; BLOCK];
            for (n, sum) in sums.iter().enumerate() {
                // SAFETY: the array holds N registers; the rest as the contract of this function
                unsafe { sum.store(whole.as_mut_ptr().add(n * V::COUNT)) };
            }
            out.copy_from_slice(&whole[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degrade::lanes::FORCED;
    use crate::support::isa::Isa;

    /// What [`FixedRows`] computes, in f64.
    fn plain(plane: &[f32], (w, h): (usize, usize), weights: &[f64]) -> Vec<f64> {
        let radius = (weights.len() / 2) as isize;
        let at = |x: isize, y: isize| f64::from(plane[reflect(y, h) * w + reflect(x, w)]);
        let tap = |i: usize| i as isize - radius;
        (0..w * h)
            .map(|i| {
                let (x, y) = ((i % w) as isize, (i / w) as isize);
                let row = |y| -> f64 {
                    let taps = weights.iter().enumerate();
                    taps.map(|(i, weight)| weight * at(x + tap(i), y)).sum()
                };
                let taps = weights.iter().enumerate();
                taps.map(|(i, weight)| weight * row(y + tap(i))).sum()
            })
            .collect()
    }

    fn fixed(plane: &[f32], size: (usize, usize), weights: &[f64]) -> Vec<f32> {
        let row = FixedRow::new(weights);
        let (w, h) = (size.0 + weights.len() + BLOCK, size.1 + weights.len() + 2);
        let mut sums = vec![9; plane.len()];
        let mut rows = FixedRows {
            size,
            lines: &mut vec![[f32::NAN; ROWS]; (2 * pitch_of(w)).div_ceil(ROWS)],
            filtered: &mut vec![f32::NAN; plane.len()],
            padded: &mut vec![f32::NAN; pitch_of(w) * h + BLOCK],
        };
        rows.fill(plane, &row);
        rows.filter(&row, &mut sums);
        sums.iter().map(|sum| *sum as f32 * row.unit()).collect()
    }

    fn gaussian(taps: usize) -> Vec<f64> {
        let sigma = 0.3 * ((taps as f64 - 1.0) * 0.5 - 1.0) + 0.8;
        let middle = (taps / 2) as f64;
        let weight = |i: usize| (-0.5 * ((i as f64 - middle) / sigma).powi(2)).exp();
        let weights: Vec<f64> = (0..taps).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    /// Every rest of a block, odd and even rows, planes smaller than the kernel, noise of 8 bits and
    /// values of a mask: as close as promised, and the same bits for every instruction set.
    #[test]
    fn sums_are_those_of_exact_arithmetic() {
        let noise = |i: usize| (i * 7919 % 1009 * 31 % 256) as f32 / 255.0;
        let mask = |i: usize| f32::from(u8::from(i * 7919 % 1009 < 400));
        for taps in [3, 5, 11, 21, 51] {
            let weights = gaussian(taps);
            for size in [(1, 1), (2, 3), (15, 2), (33, 5), (64, 4), (131, 7)] {
                for value in [&noise as &dyn Fn(usize) -> f32, &mask] {
                    let plane: Vec<f32> = (0..size.0 * size.1).map(value).collect();
                    let expected = plain(&plane, size, &weights);
                    let mut first = None;
                    for isa in Isa::available() {
                        FORCED.set(Some(isa.set()));
                        let out = fixed(&plane, size, &weights);
                        FORCED.set(None);
                        let worst = out.iter().zip(&expected).map(|(a, b)| f64::from(*a) - b);
                        let worst = worst.map(f64::abs).fold(0.0, f64::max);
                        assert!(
                            worst < f64::from(ERROR),
                            "{isa}, {taps} taps, {size:?}: {worst:e}"
                        );
                        let first = first.get_or_insert_with(|| out.clone());
                        assert!(&out == first, "{isa}, {taps} taps, {size:?}");
                    }
                }
            }
        }
    }

    /// A flat image keeps its values, at both ends of what is not clamped as well: nothing overflows.
    #[test]
    fn flat_images_stay_as_they_are() {
        for taps in [3, 5, 7, 51] {
            for value in [-2.0, -1.0, 0.0, 17.0 / 255.0, 1.0, 2.0] {
                let out = fixed(&[value; 40 * 9], (40, 9), &gaussian(taps));
                assert!(
                    out.iter().all(|v| (v - value).abs() < 1e-6),
                    "{taps} taps, {value}"
                );
            }
        }
    }
}
