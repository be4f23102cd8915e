//! The kernels for AMX and AVX512-BF16: products of packed tiles, and the conversions that write
//! the tiles. Every function requires a processor with the unit; the conversions require
//! AVX512-BF16, which every unit includes.

use super::HALF_TILE;
use super::unit::Kind;
use super::{Bf16Unit, BlockProduct, HalfStep, STEP, Start, TILE};
use crate::backend::cpu::simd::LANES;
use std::arch::asm;
use std::arch::x86_64::*;

/// Bytes of a row of a tile register, and of 16 f32 values.
const ROW_BYTES: usize = 64;

/// The configuration of the tile registers: palette 1, all eight with 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfiguration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILES: TileConfiguration = TileConfiguration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Configures the tile registers of this thread.
pub fn begin(unit: Bf16Unit) {
    if unit.0 == Kind::Amx {
        // SAFETY: an AMX unit exists only where the processor has tiles and the system granted
        // them; the configuration is one that every processor with palette 1 accepts
        unsafe {
            asm!(
                "ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
    }
}

/// Releases the tile registers, so that the system need not save them when it switches threads.
pub fn end(unit: Bf16Unit) {
    if unit.0 == Kind::Amx {
        // SAFETY: as in `begin`
        unsafe {
            asm!(
                "tilerelease", options(nostack, nomem),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
    }
}

/// Computes a product of M tiles of rows and N tiles of columns.
///
/// # Safety
/// As [`super::Session::product`]; [`begin`] was called on this thread.
pub unsafe fn product<const M: usize, const N: usize>(unit: Bf16Unit, p: &BlockProduct<'_>) {
    // SAFETY: the unit exists only on processors that have it; the rest is the caller's contract
    unsafe {
        match unit.0 {
            Kind::Amx => product_amx::<M, N>(p),
            Kind::Avx512 => product_avx512::<M, N>(p),
        }
    }
}

/// Loads tile (m, n) of C from `from`, with `row` bytes from row to row.
///
/// # Safety
/// Tiles are configured, and the rows can be read.
#[inline(always)]
unsafe fn load_tile(m: usize, n: usize, from: *const f32, row: usize) {
    macro_rules! load {
        ($tile:tt) => {
            asm!(concat!("tileloadd ", $tile, ", [{p} + {s}*1]"),
                p = in(reg) from, s = in(reg) row, options(nostack, readonly), out($tile) _)
        };
    }
    // SAFETY: the caller guarantees the memory
    unsafe {
        match (m, n) {
            (0, 0) => load!("tmm0"),
            (0, _) => load!("tmm1"),
            (_, 0) => load!("tmm2"),
            _ => load!("tmm3"),
        }
    }
}

/// Stores tile (m, n) of C to `to`, with `row` bytes from row to row.
///
/// # Safety
/// Tiles are configured, and the rows can be written.
#[inline(always)]
unsafe fn store_tile(m: usize, n: usize, to: *mut f32, row: usize) {
    macro_rules! store {
        ($tile:tt) => {
            asm!(concat!("tilestored [{p} + {s}*1], ", $tile),
                p = in(reg) to, s = in(reg) row, options(nostack))
        };
    }
    // SAFETY: the caller guarantees the memory
    unsafe {
        match (m, n) {
            (0, 0) => store!("tmm0"),
            (0, _) => store!("tmm1"),
            (_, 0) => store!("tmm2"),
            _ => store!("tmm3"),
        }
    }
}

/// [`product`] on tile registers: tmm0 to tmm3 hold C, tmm4 and tmm5 A, tmm6 and tmm7 B. The
/// compiler never uses tile registers, so they keep their values from one `asm!` to the next.
///
/// # Safety
/// As [`product`], on a processor with AMX.
unsafe fn product_amx<const M: usize, const N: usize>(p: &BlockProduct<'_>) {
    // SAFETY: by the caller's contract every tile that is loaded or stored is inside A, B or C
    unsafe {
        for (m, n) in (0..M * N).map(|i| (i / N, i % N)) {
            let c = p.c.add(m * p.c_groups.0 + n * p.c_groups.1);
            match p.start {
                Start::Zero => match (m, n) {
                    (0, 0) => asm!("tilezero tmm0", options(nostack, nomem), out("tmm0") _),
                    (0, _) => asm!("tilezero tmm1", options(nostack, nomem), out("tmm1") _),
                    (_, 0) => asm!("tilezero tmm2", options(nostack, nomem), out("tmm2") _),
                    _ => asm!("tilezero tmm3", options(nostack, nomem), out("tmm3") _),
                },
                Start::Row(row) => load_tile(m, n, row.add(n * LANES), 0),
                Start::Sums => load_tile(m, n, c, 4 * p.c_row),
            }
        }
        for (&a, &b) in p.a.iter().zip(p.b) {
            segment_amx::<M, N>(p, a, b);
        }
        for (m, n) in (0..M * N).map(|i| (i / N, i % N)) {
            let c = p.c.add(m * p.c_groups.0 + n * p.c_groups.1);
            store_tile(m, n, c, 4 * p.c_row);
        }
    }
}

/// Adds the products of a segment to the tiles of C.
///
/// # Safety
/// As [`product_amx`]; `a` and `b` are the segment's.
#[inline(always)]
unsafe fn segment_amx<const M: usize, const N: usize>(
    p: &BlockProduct<'_>,
    a: *const u16,
    b: *const u16,
) {
    if p.steps == 0 {
        return;
    }
    let (row, a_group, b_group) = (2 * p.a_row, 2 * LANES * p.a_row, 2 * p.b_group);
    /// A loop over the steps, with these instructions in each.
    macro_rules! steps {
        ($($line:literal),*) => {
            asm!(
                "2:", $($line,)*
                "add {a}, 64", "add {a1}, 64", "add {b}, 1024", "add {b1}, 1024",
                "dec {left}", "jnz 2b",
                a = inout(reg) a => _,
                a1 = inout(reg) a.wrapping_byte_add(a_group) => _,
                b = inout(reg) b => _,
                b1 = inout(reg) b.wrapping_byte_add(b_group) => _,
                row = in(reg) row,
                packed = in(reg) ROW_BYTES,
                left = inout(reg) p.steps => _,
                options(nostack, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            )
        };
    }
    const { assert!(2 * STEP == ROW_BYTES && 2 * TILE == 1024) };
    // SAFETY: the loop loads `steps` tiles of every group of A and B, which the caller guarantees
    unsafe {
        match (M, N) {
            (1, 1) => steps!(
                "tileloadd tmm4, [{a} + {row}*1]",
                "tileloadd tmm6, [{b} + {packed}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6"
            ),
            (1, _) => steps!(
                "tileloadd tmm4, [{a} + {row}*1]",
                "tileloadd tmm6, [{b} + {packed}*1]",
                "tileloadd tmm7, [{b1} + {packed}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7"
            ),
            (_, 1) => steps!(
                "tileloadd tmm4, [{a} + {row}*1]",
                "tileloadd tmm6, [{b} + {packed}*1]",
                "tileloadd tmm5, [{a1} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6"
            ),
            _ => steps!(
                "tileloadd tmm4, [{a} + {row}*1]",
                "tileloadd tmm6, [{b} + {packed}*1]",
                "tileloadd tmm7, [{b1} + {packed}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7"
            ),
        }
    }
}

/// Computes the products of one tile of rows and all tiles of columns, with half a step between them.
///
/// # Safety
/// As [`super::Session::half_step`]; [`begin`] was called on this thread.
pub unsafe fn half_step(unit: Bf16Unit, p: &HalfStep) {
    // SAFETY: the unit exists only on processors that have it; the rest is the caller's contract
    unsafe {
        match unit.0 {
            Kind::Amx => half_step_amx(p),
            Kind::Avx512 => {
                for tile in (0..p.tiles).step_by(2) {
                    let (a, b) = ([p.a], [p.b.add(tile * HALF_TILE)]);
                    product_avx512::<1, 2>(&BlockProduct {
                        a: &a,
                        a_row: STEP,
                        b: &b,
                        b_group: HALF_TILE,
                        steps: 1,
                        start: match p.start {
                            Some(row) => Start::Row(row.add(tile * LANES)),
                            None => Start::Zero,
                        },
                        c: p.c.add(tile * LANES),
                        c_row: p.c_row,
                        c_groups: (0, LANES),
                    });
                }
            }
        }
    }
}

/// [`half_step`] on tile registers, in one loop over pairs of tiles: tmm4 holds A.
///
/// # Safety
/// As [`half_step`], on a processor with AMX.
unsafe fn half_step_amx(p: &HalfStep) {
    /// The loop, with these instructions for the start of two tiles of C.
    macro_rules! tiles {
        ($first:literal, $second:literal, $row:expr) => {
            asm!(
                "xor {none:e}, {none:e}",
                "tileloadd tmm4, [{a} + {packed}*1]",
                "2:", $first, $second,
                "tileloadd tmm5, [{b} + {packed}*1]",
                "tileloadd tmm6, [{b} + {packed}*1 + 512]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tilestored [{c} + {c_row}*1], tmm0",
                "tilestored [{c} + {c_row}*1 + 64], tmm1",
                "add {b}, 1024", "add {c}, 128", "add {row}, 128",
                "dec {left}", "jnz 2b",
                a = in(reg) p.a,
                packed = in(reg) ROW_BYTES,
                b = inout(reg) p.b => _,
                c = inout(reg) p.c => _,
                c_row = in(reg) 4 * p.c_row,
                row = inout(reg) $row => _,
                none = out(reg) _,
                left = inout(reg) p.tiles / 2 => _,
                options(nostack),
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            )
        };
    }
    const { assert!(2 * HALF_TILE == 512 && 4 * LANES == 64) };
    if p.tiles == 0 {
        return;
    }
    // SAFETY: the loop loads and stores the tiles that the caller guarantees, and the row's values
    unsafe {
        match p.start {
            None => tiles!("tilezero tmm0", "tilezero tmm1", p.c),
            Some(row) => tiles!(
                "tileloadd tmm0, [{row} + {none}*1]",
                "tileloadd tmm1, [{row} + {none}*1 + 64]",
                row
            ),
        }
    }
}

/// Rows of C that are summed at a time in vectors: with two tiles of columns, 16 of 32 registers.
const ROWS: usize = 8;

/// [`product`] on vectors.
///
/// # Safety
/// As [`product`], on a processor with AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn product_avx512<const M: usize, const N: usize>(p: &BlockProduct<'_>) {
    // SAFETY: by the caller's contract A, B and C hold 16 M rows and 16 N columns
    unsafe {
        for first in (0..M * LANES).step_by(ROWS) {
            let c =
                p.c.add(first / LANES * p.c_groups.0 + first % LANES * p.c_row);
            let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
            for (r, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    match p.start {
                        Start::Zero => {}
                        Start::Row(row) => *sum = _mm512_loadu_ps(row.add(n * LANES)),
                        Start::Sums => {
                            *sum = _mm512_loadu_ps(c.add(r * p.c_row + n * p.c_groups.1));
                        }
                    }
                }
            }
            for (&a, &b) in p.a.iter().zip(p.b) {
                let (mut a, mut b) = (a.add(first * p.a_row), b);
                for _ in 0..p.steps * (STEP / 2) {
                    let mut columns = [_mm512_setzero_si512(); N];
                    for (n, columns) in columns.iter_mut().enumerate() {
                        *columns = _mm512_loadu_si512(b.add(n * p.b_group).cast());
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let pair = a.add(r * p.a_row).cast::<i32>().read_unaligned();
                        let pair = _mm512_set1_epi32(pair);
                        for (sum, &columns) in sums.iter_mut().zip(&columns) {
                            *sum = _mm512_dpbf16_ps(*sum, halves(pair), halves(columns));
                        }
                    }
                    a = a.add(2);
                    b = b.add(2 * LANES);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(c.add(r * p.c_row + n * p.c_groups.1), sum);
                }
            }
        }
    }
}

/// The same bits as bf16 values.
#[inline(always)]
pub fn halves(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes for which all bits are valid
    unsafe { std::mem::transmute(v) }
}

/// Rounds `count` values to bf16. Subnormal values become 0.
///
/// # Safety
/// `from` holds `count` values, `to` has room for as many and overlaps nothing else; the processor
/// has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn round_values(from: *const f32, count: usize, to: *mut u16) {
    // SAFETY: whole vectors end below `count`, and the last one is masked
    unsafe {
        let mut at = 0;
        while at + 2 * LANES <= count {
            let low = _mm512_loadu_ps(from.add(at));
            let high = _mm512_loadu_ps(from.add(at + LANES));
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.add(at).cast(), rounded);
            at += 2 * LANES;
        }
        while at < count {
            let mask = (0xffff_u32 >> LANES.saturating_sub(count - at)) as __mmask16;
            let values = _mm512_maskz_loadu_ps(mask, from.add(at));
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(values));
            _mm256_mask_storeu_epi16(to.add(at).cast(), mask, rounded);
            at += LANES;
        }
    }
}

/// The pairs of adjacent pixels of 16 channels, as rows of B with k over pixels: pair i holds
/// pixels 2i and 2i + 1, `[count][16][2]`.
///
/// # Safety
/// `from` holds 16 channels at every multiple of `stride` up to pixel `2 count - 1`, `to` has room
/// for the pairs and overlaps nothing else; the processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn pair_pixels(from: *const u16, stride: usize, count: usize, to: *mut u16) {
    // SAFETY: by the caller's contract
    unsafe {
        for i in 0..count {
            let pair = pair(from.add(2 * i * stride), stride);
            _mm512_storeu_si512(to.add(2 * LANES * i).cast(), pair);
        }
    }
}

/// 16 pairs of the values at `from` and `stride` values later.
///
/// # Safety
/// 16 values can be read at both; the processor has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pair(from: *const u16, stride: usize) -> __m512i {
    // SAFETY: by the caller's contract
    unsafe {
        let first = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        let second = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(stride).cast()));
        _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
    }
}

/// 32 pixels of 16 channels, with pixels in the rows: 16 rows of 32 values, `row` values apart.
///
/// # Safety
/// `from` holds 16 channels at every multiple of `stride` up to pixel 31, `to` has room for the
/// rows and overlaps nothing else; the processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn transpose_pixels(from: *const u16, stride: usize, to: *mut u16, row: usize) {
    // SAFETY: by the caller's contract
    unsafe {
        let mut v = [_mm512_setzero_si512(); LANES];
        for (i, v) in v.iter_mut().enumerate() {
            *v = pair(from.add(2 * i * stride), stride);
        }
        for (i, v) in transpose(v).into_iter().enumerate() {
            _mm512_storeu_si512(to.add(i * row).cast(), v);
        }
    }
}

/// The transpose of 16 rows of 16 pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub fn transpose(mut v: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut w = v;
    for i in (0..LANES).step_by(2) {
        w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for i in (0..LANES).step_by(4) {
        v[i] = _mm512_unpacklo_epi64(w[i], w[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(w[i], w[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(w[i + 1], w[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(w[i + 1], w[i + 3]);
    }
    // quarter q of v[4 r + j] now holds rows 4 r to 4 r + 3 of column 4 q + j
    for j in 0..4 {
        let even = _mm512_shuffle_i32x4::<0x88>(v[j], v[4 + j]);
        let odd = _mm512_shuffle_i32x4::<0xdd>(v[j], v[4 + j]);
        let even_below = _mm512_shuffle_i32x4::<0x88>(v[8 + j], v[12 + j]);
        let odd_below = _mm512_shuffle_i32x4::<0xdd>(v[8 + j], v[12 + j]);
        w[j] = _mm512_shuffle_i32x4::<0x88>(even, even_below);
        w[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd, odd_below);
        w[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even, even_below);
        w[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_below);
    }
    w
}
