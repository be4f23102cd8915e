//! Turns the u8 patches of a batch into the layout and the element type that another trainer takes,
//! with flips and turns applied. Depends on the augmentation codes and on `isa`. Promises the same
//! bits with every instruction set: `x / 255` in f32, rounded once more (to nearest, ties to even)
//! for the 16-bit types.

#[cfg(target_arch = "x86_64")]
mod avx2;

use crate::support::augment::{HFLIP, TRANSPOSE, VFLIP};
use crate::support::isa::Isa;

/// Order of the values of a batch in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelLayout {
    /// `[N, height, width, 3]`, as shards store it.
    Nhwc,
    /// `[N, 3, height, width]`, as PyTorch takes it.
    Nchw,
}

/// Type of the values of a batch. All but u8 are scaled to `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// The stored value, 0 to 255.
    U8,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl ElementType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            ElementType::U8 => 1,
            ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::F32 => 4,
        }
    }
}

/// What the loader's threads turn their batches into, see
/// [`LoaderConfig::conversion`](super::LoaderConfig::conversion).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// Order of the values.
    pub layout: PixelLayout,
    /// Type of the values.
    pub element: ElementType,
}

/// Source columns that are transposed at a time: as many as a SIMD register of x86 has bytes.
const BLOCK: usize = 16;

/// Writes a row of u8 values as the element type.
type WriteRow = unsafe fn(&[u8], &mut [u8]);

/// The loops over one row or plane, for one instruction set.
#[derive(Clone, Copy)]
struct RowKernels {
    /// Splits `[width, 3]` into three rows of `width`, one after another.
    split: unsafe fn(&[u8], &mut [u8]),
    /// Copies a row in reverse order.
    reverse: unsafe fn(&[u8], &mut [u8]),
    /// Copies some columns of a square plane into rows: plane, side, first column, rows.
    transpose: unsafe fn(&[u8], usize, usize, &mut [u8]),
    write: WriteRow,
}

impl RowKernels {
    fn new(element: ElementType, isa: Isa) -> RowKernels {
        #[cfg(target_arch = "x86_64")]
        if isa.has_avx2() {
            return RowKernels {
                split: avx2::split,
                reverse: avx2::reverse,
                transpose: avx2::transpose,
                write: match element {
                    ElementType::U8 => copy,
                    ElementType::F32 => avx2::write_f32,
                    ElementType::F16 => avx2::write_f16,
                    ElementType::Bf16 => avx2::write_bf16,
                },
            };
        }
        let _ = isa;
        RowKernels {
            split,
            reverse,
            transpose,
            write: match element {
                ElementType::U8 => copy,
                ElementType::F32 => write_f32,
                ElementType::F16 => write_f16,
                ElementType::Bf16 => write_bf16,
            },
        }
    }
}

/// Converts patches; every loader thread has one.
pub(super) struct Converter {
    conversion: Conversion,
    lq_side: usize,
    scale: usize,
    kernels: RowKernels,
    /// The three planes of a patch that is transposed.
    planes: Vec<u8>,
    /// [`BLOCK`] rows of one plane, or three rows of single colours.
    rows: Vec<u8>,
    /// One row that is reversed, or in NHWC one row of pixels.
    row: Vec<u8>,
}

impl Converter {
    /// A converter of pairs with LQ patches of `lq_side` pixels.
    pub fn new(conversion: Conversion, lq_side: usize, scale: usize, isa: Isa) -> Converter {
        let largest_side = lq_side * scale;
        let planes = match conversion.layout {
            PixelLayout::Nchw => 3 * largest_side * largest_side,
            PixelLayout::Nhwc => 0,
        };
        Converter {
            conversion,
            lq_side,
            scale,
            kernels: RowKernels::new(conversion.element, isa),
            planes: vec![0; planes],
            rows: vec![0; BLOCK * largest_side],
            row: vec![0; 3 * largest_side],
        }
    }

    /// Converts pair number `i` of a batch with augmentation `code` into the two parts of the slot.
    pub fn convert_pair(
        &mut self,
        i: usize,
        code: u8,
        (lq, hr): (&[u8], &[u8]),
        (lq_out, hr_out): (&mut [u8], &mut [u8]),
    ) {
        let bytes = self.conversion.element.bytes();
        let sides = [self.lq_side, self.lq_side * self.scale];
        for ((patch, out), side) in [(lq, lq_out), (hr, hr_out)].into_iter().zip(sides) {
            let length = patch.len() * bytes;
            self.convert(code, side, patch, &mut out[i * length..][..length]);
        }
    }

    /// Bytes that a converter allocates.
    pub fn bytes(conversion: Conversion, largest_side: u64) -> u64 {
        let planes = match conversion.layout {
            PixelLayout::Nchw => 3 * largest_side * largest_side,
            PixelLayout::Nhwc => 0,
        };
        planes + (BLOCK as u64 + 3) * largest_side
    }

    /// Converts one square patch `[side, side, 3]` with augmentation `code`; `out` is as long as
    /// the patch in the element type.
    fn convert(&mut self, code: u8, side: usize, patch: &[u8], out: &mut [u8]) {
        match (self.conversion.layout, code & TRANSPOSE != 0) {
            (PixelLayout::Nhwc, _) => self.interleaved(code, side, patch, out),
            (PixelLayout::Nchw, false) => self.planar(code, side, patch, out),
            (PixelLayout::Nchw, true) => self.planar_transposed(code, side, patch, out),
        }
        #[cfg(target_arch = "x86_64")]
        avx2::publish();
    }

    fn planar(&mut self, code: u8, side: usize, patch: &[u8], out: &mut [u8]) {
        let row_bytes = side * self.conversion.element.bytes();
        let rows = &mut self.rows[..3 * side];
        for y in 0..side {
            let source = if code & VFLIP != 0 { side - 1 - y } else { y };
            // SAFETY: the processor has the instruction set that the kernels were chosen for
            unsafe { (self.kernels.split)(&patch[source * side * 3..][..side * 3], rows) };
            for (channel, values) in rows.chunks_exact(side).enumerate() {
                let out = &mut out[(channel * side + y) * row_bytes..][..row_bytes];
                self.kernels
                    .emit(code & HFLIP != 0, values, &mut self.row, out);
            }
        }
    }

    fn planar_transposed(&mut self, code: u8, side: usize, patch: &[u8], out: &mut [u8]) {
        let row_bytes = side * self.conversion.element.bytes();
        let planes = &mut self.planes[..3 * side * side];
        // SAFETY: the processor has the instruction set that the kernels were chosen for
        unsafe { (self.kernels.split)(patch, planes) };
        for (channel, plane) in planes.chunks_exact(side * side).enumerate() {
            for first in (0..side).step_by(BLOCK) {
                let rows = &mut self.rows[..BLOCK.min(side - first) * side];
                // SAFETY: as above
                unsafe { (self.kernels.transpose)(plane, side, first, rows) };
                for (column, values) in (first..).zip(rows.chunks_exact(side)) {
                    // The flips come before the transposition: a mirrored column is a row from
                    // below, and a mirrored row is a column from the right.
                    let y = if code & HFLIP != 0 {
                        side - 1 - column
                    } else {
                        column
                    };
                    let out = &mut out[(channel * side + y) * row_bytes..][..row_bytes];
                    self.kernels
                        .emit(code & VFLIP != 0, values, &mut self.row, out);
                }
            }
        }
    }

    fn interleaved(&mut self, code: u8, side: usize, patch: &[u8], out: &mut [u8]) {
        let row_bytes = 3 * side * self.conversion.element.bytes();
        let row = &mut self.row[..3 * side];
        for (y, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            if code & (HFLIP | TRANSPOSE) == 0 {
                let source = if code & VFLIP != 0 { side - 1 - y } else { y };
                let stored = &patch[source * 3 * side..][..3 * side];
                // SAFETY: the processor has the instruction set that the kernel was chosen for
                unsafe { (self.kernels.write)(stored, out) };
                continue;
            }
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                let (r, c) = crate::support::augment::source(code, y, x, side);
                pixel.copy_from_slice(&patch[(r * side + c) * 3..][..3]);
            }
            // SAFETY: the processor has the instruction set that the kernel was chosen for
            unsafe { (self.kernels.write)(row, out) };
        }
    }
}

impl RowKernels {
    /// Writes a row, reversed or not; `spare` holds at least one row.
    fn emit(&self, reversed: bool, values: &[u8], spare: &mut [u8], out: &mut [u8]) {
        // SAFETY: the processor has the instruction set that the kernels were chosen for
        unsafe {
            if reversed {
                let spare = &mut spare[..values.len()];
                (self.reverse)(values, spare);
                (self.write)(spare, out);
            } else {
                (self.write)(values, out);
            }
        }
    }
}

#[inline(always)]
fn split(pixels: &[u8], out: &mut [u8]) {
    let count = pixels.len() / 3;
    let (red, rest) = out[..3 * count].split_at_mut(count);
    let (green, blue) = rest.split_at_mut(count);
    let out = red.iter_mut().zip(green).zip(blue);
    for (((red, green), blue), pixel) in out.zip(pixels.chunks_exact(3)) {
        (*red, *green, *blue) = (pixel[0], pixel[1], pixel[2]);
    }
}

#[inline(always)]
fn reverse(values: &[u8], out: &mut [u8]) {
    for (out, value) in out.iter_mut().zip(values.iter().rev()) {
        *out = *value;
    }
}

/// Writes columns `first ..` of a plane of `side` x `side` as rows of `side` values; `rows` has at
/// most [`BLOCK`] of them.
fn transpose(plane: &[u8], side: usize, first: usize, rows: &mut [u8]) {
    transpose_from(0, plane, side, first, rows);
}

/// The part of [`transpose`] from line `from` of the plane on.
#[inline(always)]
fn transpose_from(from: usize, plane: &[u8], side: usize, first: usize, rows: &mut [u8]) {
    for (column, row) in (first..).zip(rows.chunks_exact_mut(side)) {
        for (y, value) in row.iter_mut().enumerate().skip(from) {
            *value = plane[y * side + column];
        }
    }
}

fn copy(values: &[u8], out: &mut [u8]) {
    out.copy_from_slice(values);
}

/// `x / 255` as two products, because a division takes five times as long. [`UPPER`] has 16
/// significant bits, so `x * UPPER` is exact, and the sum is the rounded quotient: a test compares
/// all 256 values.
const UPPER: f32 = f32::from_bits((1.0f32 / 255.0).to_bits() & 0xffff_ff00);
/// The rest of 1/255.
const LOWER: f32 = (1.0 / 255.0 - UPPER as f64) as f32;

#[inline(always)]
fn unit(value: u8) -> f32 {
    let x = f32::from(value);
    x * UPPER + x * LOWER
}

/// Difference of the exponent biases of f32 and f16, 127 - 15, at the place of the exponent.
const F16_BIAS: u32 = 112 << 23;

/// An f32 of `x / 255` as f16. Every value but 0 is a normal f16, because 1/255 is above 2^-14.
#[inline(always)]
fn to_f16(value: f32) -> u16 {
    /// Difference of the exponent biases, 127 - 15, at the place of the exponent.
    const BIAS: u32 = 112 << 23;
    let bits = value.to_bits();
    let rounded = bits
        .wrapping_sub(BIAS)
        .wrapping_add(0xfff + (bits >> 13 & 1))
        >> 13;
    if bits == 0 { 0 } else { rounded as u16 }
}

/// A finite f32 as bf16.
#[inline(always)]
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[inline(always)]
fn write_f32(values: &[u8], out: &mut [u8]) {
    for (out, &value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *out = unit(value).to_ne_bytes();
    }
}

#[inline(always)]
fn write_f16(values: &[u8], out: &mut [u8]) {
    for (out, &value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *out = to_f16(unit(value)).to_ne_bytes();
    }
}

#[inline(always)]
fn write_bf16(values: &[u8], out: &mut [u8]) {
    for (out, &value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *out = to_bf16(unit(value)).to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::augment::source;
    use crate::support::rng::Rng;

    /// Rounds a number in `[0, 1]` to `bits` significant bits, ties to even, by its definition.
    fn rounded(value: f32, bits: i32) -> f64 {
        if value == 0.0 {
            return 0.0;
        }
        let value = f64::from(value);
        let unit = 2f64.powi(value.log2().floor() as i32 + 1 - bits);
        (value / unit).round_ties_even() * unit
    }

    /// The value of a f16 that is normal or 0.
    fn f16_value(bits: u16) -> f64 {
        if bits == 0 {
            return 0.0;
        }
        let exponent = i32::from(bits >> 10) - 15;
        (1.0 + f64::from(bits & 0x3ff) / 1024.0) * 2f64.powi(exponent)
    }

    #[test]
    fn every_value_is_the_rounded_quotient() {
        for value in 0..=255u8 {
            let expected = f32::from(value) / 255.0;
            assert_eq!(unit(value).to_bits(), expected.to_bits(), "{value}");
            assert_eq!(
                f16_value(to_f16(expected)),
                rounded(expected, 11),
                "{value}"
            );
            let bf16 = f32::from_bits(u32::from(to_bf16(expected)) << 16);
            assert_eq!(f64::from(bf16), rounded(expected, 8), "{value}");
        }
        assert_eq!((to_f16(1.0), to_bf16(1.0)), (0x3c00, 0x3f80));
    }

    /// One value after another, by the definition of the augmentation.
    fn plain(conversion: Conversion, code: u8, side: usize, patch: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut push = |y, x, channel| {
            let (row, column) = source(code, y, x, side);
            let value = patch[(row * side + column) * 3 + channel];
            let scaled = f32::from(value) / 255.0;
            match conversion.element {
                ElementType::U8 => out.push(value),
                ElementType::F32 => out.extend(scaled.to_ne_bytes()),
                ElementType::F16 => out.extend(to_f16(scaled).to_ne_bytes()),
                ElementType::Bf16 => out.extend(to_bf16(scaled).to_ne_bytes()),
            }
        };
        match conversion.layout {
            PixelLayout::Nhwc => {
                for i in 0..side * side * 3 {
                    push(i / 3 / side, i / 3 % side, i % 3);
                }
            }
            PixelLayout::Nchw => {
                for i in 0..side * side * 3 {
                    push(i / side % side, i % side, i / side / side);
                }
            }
        }
        out
    }

    #[test]
    fn all_layouts_types_and_augmentations_match_the_plain_loop() {
        let mut rng = Rng::new(&[7]);
        // below, at and between the widths of the blocks and of the SIMD steps
        for side in [1, 5, 8, 9, 16, 17, 24, 40] {
            let patch: Vec<u8> = (0..side * side * 3).map(|_| rng.next_u64() as u8).collect();
            for isa in Isa::available() {
                for element in [
                    ElementType::U8,
                    ElementType::F32,
                    ElementType::F16,
                    ElementType::Bf16,
                ] {
                    for layout in [PixelLayout::Nhwc, PixelLayout::Nchw] {
                        let conversion = Conversion { layout, element };
                        // larger than the patch, as the converter of a pair is for the LQ
                        let mut converter = Converter::new(conversion, side + 3, 1, isa);
                        for code in 0..8 {
                            let mut out = vec![0xaa; patch.len() * element.bytes()];
                            converter.convert(code, side, &patch, &mut out);
                            let expected = plain(conversion, code, side, &patch);
                            assert!(
                                out == expected,
                                "side {side}, {isa}, {conversion:?}, code {code}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_converter_takes_the_bytes_it_says() {
        for layout in [PixelLayout::Nhwc, PixelLayout::Nchw] {
            let conversion = Conversion {
                layout,
                element: ElementType::F32,
            };
            let converter = Converter::new(conversion, 11, 3, Isa::detect());
            let bytes = converter.planes.len() + converter.rows.len() + converter.row.len();
            assert_eq!(bytes as u64, Converter::bytes(conversion, 33));
        }
    }
}
