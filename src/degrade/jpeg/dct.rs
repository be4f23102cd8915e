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

/// Eight values, one of each column.
type Line = [i32; SIDE];
/// A block, row by row.
type Block = [Line; SIDE];

#[inline(always)]
fn each(f: impl Fn(usize) -> i32) -> Line {
    let mut line = [0; SIDE];
    for (i, value) in line.iter_mut().enumerate() {
        *value = f(i);
    }
    line
}

#[inline(always)]
fn add(a: Line, b: Line) -> Line {
    each(|i| a[i] + b[i])
}

#[inline(always)]
fn sub(a: Line, b: Line) -> Line {
    each(|i| a[i] - b[i])
}

#[inline(always)]
fn times(a: Line, factor: i32) -> Line {
    each(|i| a[i] * factor)
}

#[inline(always)]
fn descale(a: Line, bits: i32) -> Line {
    each(|i| (a[i] + (1 << (bits - 1))) >> bits)
}

#[inline(always)]
fn transpose(b: &Block) -> Block {
    let mut out = [[0; SIDE]; SIDE];
    for (y, row) in out.iter_mut().enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            *value = b[x][y];
        }
    }
    out
}

/// The odd part of both directions, of the four values of a rotation each.
#[inline(always)]
fn odd(t: [Line; 4]) -> [Line; 4] {
    let [z1, z2] = [add(t[0], t[3]), add(t[1], t[2])];
    let [z3, z4] = [add(t[0], t[2]), add(t[1], t[3])];
    let z5 = times(add(z3, z4), F_1_175);
    let [z1, z2] = [times(z1, -F_0_899), times(z2, -F_2_562)];
    let z3 = add(times(z3, -F_1_961), z5);
    let z4 = add(times(z4, -F_0_390), z5);
    [
        add(times(t[0], F_0_298), add(z1, z3)),
        add(times(t[1], F_2_053), add(z2, z4)),
        add(times(t[2], F_3_072), add(z2, z3)),
        add(times(t[3], F_1_501), add(z1, z4)),
    ]
}

/// One pass of the forward transform along the columns.
#[inline(always)]
fn forward(d: &Block, first: bool) -> Block {
    let t: [Line; 4] = [0, 1, 2, 3].map(|i| add(d[i], d[7 - i]));
    let u: [Line; 4] = [4, 5, 6, 7].map(|i| sub(d[7 - i], d[i]));
    let [t10, t13] = [add(t[0], t[3]), sub(t[0], t[3])];
    let [t11, t12] = [add(t[1], t[2]), sub(t[1], t[2])];
    let bits = if first {
        CONST_BITS - PASS_BITS
    } else {
        CONST_BITS + PASS_BITS
    };
    let whole = |v: Line| match first {
        true => times(v, 1 << PASS_BITS),
        false => descale(v, PASS_BITS),
    };
    let z1 = times(add(t12, t13), F_0_541);
    // u holds the differences 3-4, 2-5, 1-6 and 0-7
    let o = odd(u);
    [
        whole(add(t10, t11)),
        descale(o[3], bits),
        descale(add(z1, times(t13, F_0_765)), bits),
        descale(o[2], bits),
        whole(sub(t10, t11)),
        descale(o[1], bits),
        descale(add(z1, times(t12, -F_1_847)), bits),
        descale(o[0], bits),
    ]
}

/// One pass of the inverse transform along the columns.
#[inline(always)]
fn inverse(c: &Block, bits: i32) -> Block {
    let z1 = times(add(c[2], c[6]), F_0_541);
    let t2 = add(z1, times(c[6], -F_1_847));
    let t3 = add(z1, times(c[2], F_0_765));
    let t0 = times(add(c[0], c[4]), 1 << CONST_BITS);
    let t1 = times(sub(c[0], c[4]), 1 << CONST_BITS);
    let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
    let o = odd([c[7], c[5], c[3], c[1]]);
    let o = [o[3], o[2], o[1], o[0]];
    let mut out = [[0; SIDE]; SIDE];
    for i in 0..4 {
        out[i] = descale(add(even[i], o[i]), bits);
        out[7 - i] = descale(sub(even[i], o[i]), bits);
    }
    out
}

dispatch! {
    /// Transforms, quantises and transforms back all blocks of a component.
    fn code_blocks(plane: &mut [u8], stride: usize, rows: usize, table: &[i32; 64], reciprocals: &[f32; 64]) {
        for top in (0..rows).step_by(SIDE) {
            for left in (0..stride).step_by(SIDE) {
                let mut block = [[0; SIDE]; SIDE];
                for (y, line) in block.iter_mut().enumerate() {
                    let row: &[u8; SIDE] = plane[(top + y) * stride + left..][..SIDE].try_into().expect("of this length");
                    *line = each(|x| i32::from(row[x]) - 128);
                }
                // libjpeg transforms the rows first
                let between = forward(&transpose(&block), true);
                let mut coefficients = forward(&transpose(&between), false);
                for (y, line) in coefficients.iter_mut().enumerate() {
                    for (x, value) in line.iter_mut().enumerate() {
                        let step = table[y * SIDE + x];
                        // exact: the dividend has 16 bits, and half of 1/512 is far above the error
                        let size = (value.abs() + 4 * step) as f32 + 0.5;
                        let level = (size * reciprocals[y * SIDE + x]) as i32;
                        *value = if *value < 0 { -level * step } else { level * step };
                    }
                }
                let between = inverse(&coefficients, CONST_BITS - PASS_BITS);
                let pixels = transpose(&inverse(&transpose(&between), CONST_BITS + PASS_BITS + 3));
                for (y, line) in pixels.iter().enumerate() {
                    let row: &mut [u8; SIDE] = (&mut plane[(top + y) * stride + left..][..SIDE]).try_into().expect("of this length");
                    for (out, value) in row.iter_mut().zip(line) {
                        *out = (*value + 128).clamp(0, 255) as u8;
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
