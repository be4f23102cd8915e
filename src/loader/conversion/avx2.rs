//! The loops of `conversion` for AVX2. `split`, `transpose` and the writing of values are written by
//! hand: the compiler finds no shuffles for three interleaved colours, and no stream stores.

use std::arch::x86_64::*;

/// Pixels of one step of [`split`].
const STEP: usize = 16;

/// Indexes that gather the values of `channel` from the 16 bytes of part `part` of 48: those
/// of other parts give 0.
const fn gather(channel: usize, part: usize) -> [u8; STEP] {
    let mut indexes = [0x80; STEP];
    let mut i = 0;
    while i < STEP {
        let at = 3 * i + channel;
        if at / STEP == part {
            indexes[i] = (at % STEP) as u8;
        }
        i += 1;
    }
    indexes
}

const GATHER: [[[u8; STEP]; 3]; 3] = [
    [gather(0, 0), gather(0, 1), gather(0, 2)],
    [gather(1, 0), gather(1, 1), gather(1, 2)],
    [gather(2, 0), gather(2, 1), gather(2, 2)],
];

#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8; STEP]) -> __m128i {
    // SAFETY: 16 bytes are read
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
pub fn split(pixels: &[u8], out: &mut [u8]) {
    let count = pixels.len() / 3;
    let whole = count / STEP * STEP;
    let (parts, _) = pixels[..3 * whole].as_chunks::<STEP>();
    for (channel, gather) in GATHER.iter().enumerate() {
        let masks = [load(&gather[0]), load(&gather[1]), load(&gather[2])];
        let (steps, rest) = out[channel * count..][..count].as_chunks_mut::<STEP>();
        for (out, parts) in steps.iter_mut().zip(parts.chunks_exact(3)) {
            let gathered = [0, 1, 2].map(|k| _mm_shuffle_epi8(load(&parts[k]), masks[k]));
            let all = _mm_or_si128(_mm_or_si128(gathered[0], gathered[1]), gathered[2]);
            store(out, all);
        }
        for (out, pixel) in rest.iter_mut().zip(pixels[3 * whole..].chunks_exact(3)) {
            *out = pixel[channel];
        }
    }
}

#[target_feature(enable = "avx2")]
pub fn reverse(values: &[u8], out: &mut [u8]) {
    super::reverse(values, out);
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(bytes: &mut [u8; STEP], value: __m128i) {
    // SAFETY: 16 bytes are written
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) };
}

/// Blocks of 16 x 16 bytes: interleaving the upper half of the lines with the lower half moves
/// the highest bit of the line's number to the lowest of the column's, so four times transpose.
#[target_feature(enable = "avx2")]
pub fn transpose(plane: &[u8], side: usize, first: usize, rows: &mut [u8]) {
    let whole = if rows.len() == STEP * side {
        side / STEP * STEP
    } else {
        0
    };
    for y in (0..whole).step_by(STEP) {
        let mut block = [_mm_setzero_si128(); STEP];
        for (line, value) in plane[y * side..].chunks(side).zip(&mut block) {
            if let Some(bytes) = line[first..].first_chunk() {
                *value = load(bytes);
            }
        }
        for _ in 0..STEP.ilog2() {
            let lines = block;
            for i in 0..STEP / 2 {
                block[2 * i] = _mm_unpacklo_epi8(lines[i], lines[i + STEP / 2]);
                block[2 * i + 1] = _mm_unpackhi_epi8(lines[i], lines[i + STEP / 2]);
            }
        }
        for (row, value) in rows.chunks_exact_mut(side).zip(block) {
            if let Some(bytes) = row[y..].first_chunk_mut() {
                store(bytes, value);
            }
        }
    }
    super::transpose_from(whole, plane, side, first, rows);
}

/// Bytes that a stream store must be aligned to.
const LINE: usize = 32;

/// Whether `out` can be written with stream stores. They write whole cache lines without reading
/// them first, which halves the traffic: a batch is larger than the caches.
fn can_stream(out: &[u8]) -> bool {
    out.as_ptr().addr().is_multiple_of(LINE)
}

/// `x / 255` of 8 values, as [`super::unit`].
#[target_feature(enable = "avx2")]
#[inline]
fn units(bytes: __m128i) -> __m256 {
    let x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    let upper = _mm256_mul_ps(x, _mm256_set1_ps(super::UPPER));
    _mm256_add_ps(upper, _mm256_mul_ps(x, _mm256_set1_ps(super::LOWER)))
}

#[target_feature(enable = "avx2")]
pub fn write_f32(values: &[u8], out: &mut [u8]) {
    if !can_stream(out) {
        return super::write_f32(values, out);
    }
    let (steps, rest) = values.as_chunks::<STEP>();
    let (out_steps, out_rest) = out.as_chunks_mut::<{ 4 * STEP }>();
    for (out, bytes) in out_steps.iter_mut().zip(steps) {
        let bytes = load(bytes);
        let out = out.as_mut_ptr().cast::<f32>();
        // SAFETY: 64 bytes are written; `can_stream` has checked the alignment
        unsafe {
            _mm256_stream_ps(out, units(bytes));
            _mm256_stream_ps(out.add(8), units(_mm_srli_si128(bytes, 8)));
        }
    }
    super::write_f32(rest, out_rest);
}

/// Writes 16-bit values; `narrow` gives those of 8 values as 32-bit integers.
#[target_feature(enable = "avx2")]
#[inline]
fn write_16(values: &[[u8; STEP]], out: &mut [u8], narrow: impl Fn(__m256) -> __m256i) {
    let (out_steps, _) = out.as_chunks_mut::<{ 2 * STEP }>();
    for (out, bytes) in out_steps.iter_mut().zip(values) {
        let bytes = load(bytes);
        let (low, high) = (units(bytes), units(_mm_srli_si128(bytes, 8)));
        // packing works within 128-bit halves, so the middle two quarters change places
        let packed = _mm256_packus_epi32(narrow(low), narrow(high));
        let ordered = _mm256_permute4x64_epi64(packed, 0b11_01_10_00);
        // SAFETY: 32 bytes are written; the callers have checked the alignment
        unsafe { _mm256_stream_si256(out.as_mut_ptr().cast(), ordered) };
    }
}

/// Adds half of the last place that stays after a shift by `SHIFT`, less a bit if that place is
/// even, and shifts: rounding to nearest, ties to even.
#[target_feature(enable = "avx2")]
#[inline]
fn rounded_shift<const SHIFT: i32>(bits: __m256i, parity: __m256i) -> __m256i {
    let odd = _mm256_and_si256(_mm256_srli_epi32(parity, SHIFT), _mm256_set1_epi32(1));
    let half = _mm256_add_epi32(odd, _mm256_set1_epi32((1 << (SHIFT - 1)) - 1));
    _mm256_srli_epi32(_mm256_add_epi32(bits, half), SHIFT)
}

#[target_feature(enable = "avx2")]
pub fn write_f16(values: &[u8], out: &mut [u8]) {
    if !can_stream(out) {
        return super::write_f16(values, out);
    }
    let (steps, rest) = values.as_chunks::<STEP>();
    let (steps_out, rest_out) = out.split_at_mut(2 * STEP * steps.len());
    write_16(steps, steps_out, |value| {
        let bits = _mm256_castps_si256(value);
        let rebiased = _mm256_sub_epi32(bits, _mm256_set1_epi32(super::F16_BIAS as i32));
        let zero = _mm256_cmpeq_epi32(bits, _mm256_setzero_si256());
        _mm256_andnot_si256(zero, rounded_shift::<13>(rebiased, bits))
    });
    super::write_f16(rest, rest_out);
}

#[target_feature(enable = "avx2")]
pub fn write_bf16(values: &[u8], out: &mut [u8]) {
    if !can_stream(out) {
        return super::write_bf16(values, out);
    }
    let (steps, rest) = values.as_chunks::<STEP>();
    let (steps_out, rest_out) = out.split_at_mut(2 * STEP * steps.len());
    write_16(steps, steps_out, |value| {
        let bits = _mm256_castps_si256(value);
        rounded_shift::<16>(bits, bits)
    });
    super::write_bf16(rest, rest_out);
}

/// Makes stream stores visible to other threads, which locks and channels do not.
pub fn publish() {
    // SAFETY: every x86-64 processor has SSE
    unsafe { _mm_sfence() };
}
