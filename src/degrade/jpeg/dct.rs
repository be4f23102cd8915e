//! The accurate integer DCT of libjpeg (Loeffler, Ligtenberg and Moschytz, 1989, with 13 bits of
//! fraction) and its quantisation. Eight columns are computed side by side.

use super::super::lanes::dispatch;
use super::SIDE;

/// Bits of fraction of the constants, and of the values between the two passes.
const CONST_BITS: i32 = 13;
const PASS_BITS: i32 = 2;

const F_0_298: i32 = 2446;
const F_0_390: i32 = 3196;
const F_0_541: i32 = 4433;
const F_0_765: i32 = 6270;
const F_0_899: i32 = 7373;
const F_1_175: i32 = 9633;
const F_1_501: i32 = 12299;
const F_1_847: i32 = 15137;
const F_1_961: i32 = 16069;
const F_2_053: i32 = 16819;
const F_2_562: i32 = 20995;
const F_3_072: i32 = 25172;

/// Blocks that are computed at once, each in one lane of every vector.
const BLOCKS: usize = 16;
/// One row or column of a block.
type Line = [i32; SIDE];
/// All blocks: for each coefficient, in rows, the values of the blocks.
type Group = [[i32; BLOCKS]; SIDE * SIDE];

#[inline(always)]
fn descale(value: i32, bits: i32) -> i32 {
    (value + (1 << (bits - 1))) >> bits
}

/// The odd part of both directions, of the four values of a rotation each.
#[inline(always)]
fn odd(t: [i32; 4]) -> [i32; 4] {
    let [z1, z2] = [t[0] + t[3], t[1] + t[2]];
    let [z3, z4] = [t[0] + t[2], t[1] + t[3]];
    let z5 = (z3 + z4) * F_1_175;
    let [z1, z2] = [z1 * -F_0_899, z2 * -F_2_562];
    let z3 = z3 * -F_1_961 + z5;
    let z4 = z4 * -F_0_390 + z5;
    [
        t[0] * F_0_298 + z1 + z3,
        t[1] * F_2_053 + z2 + z4,
        t[2] * F_3_072 + z2 + z3,
        t[3] * F_1_501 + z1 + z4,
    ]
}

/// The forward transform of a line.
#[inline(always)]
fn forward(d: Line, first: bool) -> Line {
    let t: [i32; 4] = [d[0] + d[7], d[1] + d[6], d[2] + d[5], d[3] + d[4]];
    let u: [i32; 4] = [d[3] - d[4], d[2] - d[5], d[1] - d[6], d[0] - d[7]];
    let [t10, t13] = [t[0] + t[3], t[0] - t[3]];
    let [t11, t12] = [t[1] + t[2], t[1] - t[2]];
    let bits = if first {
        CONST_BITS - PASS_BITS
    } else {
        CONST_BITS + PASS_BITS
    };
    let whole = |v: i32| match first {
        true => v * (1 << PASS_BITS),
        false => descale(v, PASS_BITS),
    };
    let z1 = (t12 + t13) * F_0_541;
    let o = odd(u);
    [
        whole(t10 + t11),
        descale(o[3], bits),
        descale(z1 + t13 * F_0_765, bits),
        descale(o[2], bits),
        whole(t10 - t11),
        descale(o[1], bits),
        descale(z1 + t12 * -F_1_847, bits),
        descale(o[0], bits),
    ]
}

/// The inverse transform of a line.
#[inline(always)]
fn inverse(c: Line, bits: i32) -> Line {
    let z1 = (c[2] + c[6]) * F_0_541;
    let t2 = z1 + c[6] * -F_1_847;
    let t3 = z1 + c[2] * F_0_765;
    let t0 = (c[0] + c[4]) * (1 << CONST_BITS);
    let t1 = (c[0] - c[4]) * (1 << CONST_BITS);
    let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
    let o = odd([c[7], c[5], c[3], c[1]]);
    let mut out = [0; SIDE];
    for i in 0..4 {
        out[i] = descale(even[i] + o[3 - i], bits);
        out[7 - i] = descale(even[i] - o[3 - i], bits);
    }
    out
}

/// Transforms the rows (`STEP` 1) or the columns (`STEP` 8) of all blocks.
#[inline(always)]
fn pass<const STEP: usize>(group: &mut Group, transform: impl Fn(Line) -> Line) {
    for line in 0..SIDE {
        let first = line * (SIDE / STEP);
        let mut lines = [[0; BLOCKS]; SIDE];
        for (k, values) in lines.iter_mut().enumerate() {
            *values = group[first + k * STEP];
        }
        let mut out = [[0; BLOCKS]; SIDE];
        for block in 0..BLOCKS {
            let mut values = [0; SIDE];
            for k in 0..SIDE {
                values[k] = lines[k][block];
            }
            let values = transform(values);
            for k in 0..SIDE {
                out[k][block] = values[k];
            }
        }
        for (k, values) in out.iter().enumerate() {
            group[first + k * STEP] = *values;
        }
    }
}

dispatch! {
    /// Transforms, quantises and transforms back all blocks of a component.
    fn code_blocks(plane: &mut [u8], stride: usize, rows: usize, table: &[i32; 64], reciprocals: &[f32; 64]) {
        let across = stride / SIDE;
        let count = across * (rows / SIDE);
        for start in (0..count).step_by(BLOCKS) {
            let blocks = BLOCKS.min(count - start);
            let corner = |i: usize| (start + i) / across * SIDE * stride + (start + i) % across * SIDE;
            let mut group: Group = [[0; BLOCKS]; SIDE * SIDE];
            for i in 0..blocks {
                for (y, lines) in group.chunks_exact_mut(SIDE).enumerate() {
                    let row: &[u8; SIDE] = plane[corner(i) + y * stride..][..SIDE].try_into().expect("of this length");
                    for (line, value) in lines.iter_mut().zip(row) {
                        line[i] = i32::from(*value) - 128;
                    }
                }
            }
            // libjpeg transforms the rows first, and on the way back the columns
            pass::<1>(&mut group, |line| forward(line, true));
            pass::<SIDE>(&mut group, |line| forward(line, false));
            for ((values, &step), &reciprocal) in group.iter_mut().zip(table).zip(reciprocals) {
                for value in values {
                    // exact: the dividend has 16 bits, and half of 1/512 is far above the error
                    let size = (value.abs() + 4 * step) as f32 + 0.5;
                    // SAFETY: finite, positive and far below 2^31: the quotient of 16 bits
                    let level = unsafe { (size * reciprocal).to_int_unchecked::<i32>() };
                    *value = if *value < 0 { -level * step } else { level * step };
                }
            }
            pass::<SIDE>(&mut group, |line| inverse(line, CONST_BITS - PASS_BITS));
            pass::<1>(&mut group, |line| inverse(line, CONST_BITS + PASS_BITS + 3));
            for i in 0..blocks {
                for (y, lines) in group.chunks_exact(SIDE).enumerate() {
                    let row: &mut [u8; SIDE] = (&mut plane[corner(i) + y * stride..][..SIDE]).try_into().expect("of this length");
                    for (out, line) in row.iter_mut().zip(lines) {
                        *out = (line[i] + 128).clamp(0, 255) as u8;
                    }
                }
            }
        }
    }
}

/// Codes a component with the steps of a table. Coefficients are 8 times as large as those of the
/// standard, and so are the divisors.
pub(super) fn code(plane: &mut [u8], stride: usize, rows: usize, table: &[i32; 64]) {
    let reciprocals = table.map(|step| 1.0 / (8 * step) as f32);
    code_blocks(plane, stride, rows, table, &reciprocals);
}

#[cfg(test)]
mod tests {
    /// The quantisation divides exactly, for every dividend and divisor.
    #[test]
    fn reciprocals_divide_exactly() {
        for step in 1..=255 {
            let reciprocal = 1.0 / (8 * step) as f32;
            for value in 0..=16_384 {
                let level = (((value + 4 * step) as f32 + 0.5) * reciprocal) as i32;
                assert_eq!(level, (value + 4 * step) / (8 * step), "{value} / {step}");
            }
        }
    }
}
