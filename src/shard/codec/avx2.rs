//! The codec's inner loops for AVX2. Each computes the same as the plain function that its comment
//! names. They may be called only if the processor has AVX2. The only other unsafe operations are
//! loads and stores through slices whose length was checked.

use super::bands::{Bands, LANES, PLANES};
use super::{lq, predict};
use std::arch::x86_64::*;

/// Columns that are converted at once; narrower patches use the plain functions.
pub const COLUMNS: usize = 32;
/// Bytes of that many RGB pixels.
const PIXELS: usize = COLUMNS * 3;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8]) -> __m128i {
    let bytes = &bytes[..16];
    // SAFETY: sixteen bytes are there
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(bytes: &mut [u8], v: __m128i) {
    let bytes = &mut bytes[..16];
    // SAFETY: sixteen bytes are there
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_wide(bytes: &[u8]) -> __m256i {
    let bytes = &bytes[..32];
    // SAFETY: thirty-two bytes are there
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_wide(bytes: &mut [u8], v: __m256i) {
    let bytes = &mut bytes[..32];
    // SAFETY: thirty-two bytes are there
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), v) }
}

/// Loads sixteen bytes into the low half and sixteen into the high half.
#[inline]
#[target_feature(enable = "avx2")]
fn load_two(low: &[u8], high: &[u8]) -> __m256i {
    _mm256_set_m128i(load(high), load(low))
}

/// Transposes, in each half, a matrix of 16 x 16 bytes. Interleaving the two halves of the list
/// four times brings every byte to its place.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(mut a: [__m256i; LANES]) -> [__m256i; LANES] {
    for _ in 0..4 {
        let last = a;
        for i in 0..LANES / 2 {
            a[2 * i] = _mm256_unpacklo_epi8(last[i], last[i + LANES / 2]);
            a[2 * i + 1] = _mm256_unpackhi_epi8(last[i], last[i + LANES / 2]);
        }
    }
    a
}

/// Converts 32 groups of a plane to 32 columns of each band.
#[inline]
#[target_feature(enable = "avx2")]
fn to_columns(groups: &[u8]) -> [__m256i; LANES] {
    let groups = &groups[..COLUMNS * LANES];
    let mut a = [_mm256_setzero_si256(); LANES];
    for (i, v) in a.iter_mut().enumerate() {
        *v = load_two(&groups[i * LANES..], &groups[(i + LANES) * LANES..]);
    }
    transpose(a)
}

/// Value of a shuffle mask that writes a zero.
const NO_BYTE: u8 = 128;

/// Shuffle mask from channels to pixels: for each byte of vector `o` of the three that hold sixteen
/// pixels, the pixel of channel `c` that it takes.
const fn dealing(o: usize, c: usize) -> [u8; 16] {
    let mut mask = [NO_BYTE; 16];
    let mut i = 0;
    while i < 16 {
        if (o * 16 + i) % 3 == c {
            mask[i] = ((o * 16 + i) / 3) as u8;
        }
        i += 1;
    }
    mask
}

/// Shuffle mask from pixels to channels: for each pixel of channel `c`, the byte of vector `o` that
/// it takes.
const fn gathering(o: usize, c: usize) -> [u8; 16] {
    let mut mask = [NO_BYTE; 16];
    let mut i = 0;
    while i < 16 {
        if (3 * i + c) / 16 == o {
            mask[i] = ((3 * i + c) % 16) as u8;
        }
        i += 1;
    }
    mask
}

const fn masks(gather: bool) -> [[[u8; 16]; 3]; 3] {
    let mut all = [[[0; 16]; 3]; 3];
    let mut i = 0;
    while i < 9 {
        all[i / 3][i % 3] = if gather {
            gathering(i / 3, i % 3)
        } else {
            dealing(i / 3, i % 3)
        };
        i += 1;
    }
    all
}

/// [`dealing`] by vector, then channel.
static DEALING: [[[u8; 16]; 3]; 3] = masks(false);
/// [`gathering`] by vector, then channel.
static GATHERING: [[[u8; 16]; 3]; 3] = masks(true);

#[inline]
#[target_feature(enable = "avx2")]
fn shuffled(v: __m256i, mask: &[u8; 16]) -> __m256i {
    _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(load(mask)))
}

/// `bands::join_row_plain` for at least [`COLUMNS`] columns.
#[target_feature(enable = "avx2")]
pub fn join_row(rows: [&[u8]; PLANES], target: impl Fn(usize) -> Option<usize>, image: &mut [u8]) {
    let width = rows[0].len() / LANES;
    for x in blocks(width) {
        let [green, blue, red] = rows.map(|row| &row[x * LANES..]);
        let (red, green, blue) = (to_columns(red), to_columns(green), to_columns(blue));
        for k in 0..LANES {
            let Some(at) = target(k) else { continue };
            let out = &mut image[at + x * 3..][..PIXELS];
            // the low halves hold the three vectors of the left sixteen pixels, the high halves
            // those of the right ones
            let mut v = [_mm256_setzero_si256(); 3];
            for (v, masks) in v.iter_mut().zip(&DEALING) {
                let (r, g, b) = (
                    shuffled(red[k], &masks[0]),
                    shuffled(green[k], &masks[1]),
                    shuffled(blue[k], &masks[2]),
                );
                *v = _mm256_or_si256(_mm256_or_si256(r, g), b);
            }
            store_wide(out, _mm256_permute2x128_si256::<0x20>(v[0], v[1]));
            store_wide(
                &mut out[32..],
                _mm256_permute2x128_si256::<0x30>(v[2], v[0]),
            );
            store_wide(
                &mut out[64..],
                _mm256_permute2x128_si256::<0x31>(v[1], v[2]),
            );
        }
    }
}

/// `bands::split_row` for at least [`COLUMNS`] columns.
#[target_feature(enable = "avx2")]
pub fn split_row(
    image: &[u8],
    width: usize,
    source: impl Fn(usize) -> usize,
    [green, blue, red]: [&mut [u8]; PLANES],
) {
    for x in blocks(width) {
        let mut columns = [[_mm256_setzero_si256(); LANES]; 3];
        for k in 0..LANES {
            let from = &image[source(k) + x * 3..][..PIXELS];
            for (c, columns) in columns.iter_mut().enumerate() {
                for (o, masks) in GATHERING.iter().enumerate() {
                    let v = shuffled(load_two(&from[o * 16..], &from[48 + o * 16..]), &masks[c]);
                    columns[k] = _mm256_or_si256(columns[k], v);
                }
            }
        }
        for (columns, out) in columns
            .into_iter()
            .zip([&mut *red, &mut *green, &mut *blue])
        {
            let out = &mut out[x * LANES..][..COLUMNS * LANES];
            for (i, v) in transpose(columns).into_iter().enumerate() {
                store(&mut out[i * LANES..], _mm256_castsi256_si128(v));
                store(
                    &mut out[(i + LANES) * LANES..],
                    _mm256_extracti128_si256::<1>(v),
                );
            }
        }
    }
}

/// First columns of the blocks of [`COLUMNS`]; the last block may overlap the one before it.
fn blocks(width: usize) -> impl Iterator<Item = usize> {
    (0..width.div_ceil(COLUMNS)).map(move |i| (i * COLUMNS).min(width - COLUMNS))
}

/// `predict::undo_row`.
#[target_feature(enable = "avx2")]
pub fn undo_row(above: [&[u8]; PLANES], rows: [&mut [u8]; PLANES]) {
    let mut left = [_mm_setzero_si128(); PLANES];
    let mut corner = [_mm_setzero_si128(); PLANES];
    let groups = rows[0].len() / LANES;
    let above = above.map(|row| &row[..groups * LANES]);
    let [a, b, c] = rows;
    let rows = [
        &mut a[..groups * LANES],
        &mut b[..groups * LANES],
        &mut c[..groups * LANES],
    ];
    // a pixel waits for its left neighbour, but the planes are independent: three dependency chains
    // at once hide the latency
    for x in 0..groups {
        for p in 0..PLANES {
            let up = load(&above[p][x * LANES..]);
            let residual = load(&rows[p][x * LANES..]);
            let (low, high) = (_mm_min_epu8(left[p], up), _mm_max_epu8(left[p], up));
            let sum = _mm_add_epi8(_mm_add_epi8(low, high), residual);
            left[p] = _mm_sub_epi8(sum, _mm_min_epu8(_mm_max_epu8(corner[p], low), high));
            corner[p] = up;
            store(&mut rows[p][x * LANES..], left[p]);
        }
    }
}

/// `predict::residuals_plain`, compiled for AVX2.
#[target_feature(enable = "avx2")]
pub fn residuals(planes: &[u8], bands: Bands, values: &mut [u8], out: &mut [u8]) {
    predict::residuals_plain(planes, bands, values, out);
}

/// `predict::add_green`, compiled for AVX2.
#[target_feature(enable = "avx2")]
pub fn add_green(rows: [&mut [u8]; PLANES]) {
    predict::add_green(rows);
}

/// `lq::shrink_plain`. Pixels are signed bytes here and weights unsigned ones, so that the sum of
/// two products fits 16 bits. Only the last sum can overflow; it is saturated, and the result would
/// be clamped anyway.
#[target_feature(enable = "avx2")]
pub fn shrink(rows: [&[u8]; 8], out: &mut [u8]) {
    let vectors = out.len() / 32;
    let rows = rows.map(|row| &row[..out.len()]);
    let sign = _mm256_set1_epi8(-128);
    let weights = lq::WEIGHTS.map(|w| _mm256_set1_epi8(w as i8));
    let half = _mm256_set1_epi16(128);
    for i in 0..vectors {
        let head = i * 32;
        let term = |j: usize| {
            let a = _mm256_xor_si256(load_wide(&rows[3 - j][head..]), sign);
            let b = _mm256_xor_si256(load_wide(&rows[4 + j][head..]), sign);
            [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)]
                .map(|v| _mm256_maddubs_epi16(weights[j], v))
        };
        let (near, next, far, last) = (term(0), term(1), term(2), term(3));
        let sum = |h: usize| {
            let small = _mm256_sub_epi16(
                _mm256_add_epi16(half, next[h]),
                _mm256_add_epi16(far[h], last[h]),
            );
            _mm256_srai_epi16::<8>(_mm256_adds_epi16(near[h], small))
        };
        store_wide(
            &mut out[head..],
            _mm256_xor_si256(_mm256_packs_epi16(sum(0), sum(1)), sign),
        );
    }
    let done = vectors * 32;
    lq::shrink_plain(rows.map(|row| &row[done..]), &mut out[done..]);
}

/// `encode::cost_plain`.
#[target_feature(enable = "avx2")]
pub fn cost(residuals: &[u8]) -> u64 {
    let (vectors, rest) = residuals.as_chunks::<32>();
    let mut sum = _mm256_setzero_si256();
    for v in vectors {
        sum = _mm256_add_epi64(
            sum,
            _mm256_sad_epu8(_mm256_abs_epi8(load_wide(v)), _mm256_setzero_si256()),
        );
    }
    let halves = _mm_add_epi64(
        _mm256_castsi256_si128(sum),
        _mm256_extracti128_si256::<1>(sum),
    );
    let both = [_mm_cvtsi128_si64(halves), _mm_extract_epi64::<1>(halves)];
    both.iter().sum::<i64>() as u64 + super::encode::cost_plain(rest)
}
