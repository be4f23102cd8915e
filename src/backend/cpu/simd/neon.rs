//! The vectors of NEON, four 128-bit registers each. All operations but the fused multiply-add give
//! the bits of the plain version.

use super::{Kernel, LookupTable, Registers, Simd};
use std::arch::aarch64::*;

/// Runs a kernel compiled for NEON.
///
/// # Safety
/// The processor must have NEON.
#[target_feature(enable = "neon")]
pub unsafe fn run<K: Kernel>(kernel: K) {
    kernel.run::<Neon>();
}

/// Four 128-bit registers.
#[derive(Clone, Copy)]
pub struct Neon;

type Quads = [float32x4_t; 4];
type DoublePairs = [float64x2_t; 4];

#[inline(always)]
fn each(a: Quads, f: impl Fn(float32x4_t) -> float32x4_t) -> Quads {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn both(a: Quads, b: Quads, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Quads {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// Sums of the lanes that are four apart; the two halves are added first.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn fold(v: Quads) -> float32x4_t {
    // SAFETY: the caller guarantees that the processor has NEON
    unsafe { vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3])) }
}

/// Sums of the lanes of `a`, then of `b`, that are two apart.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn fold_two(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller guarantees that the processor has NEON
    unsafe {
        let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
        vaddq_f32(
            vreinterpretq_f32_f64(vzip1q_f64(a, b)),
            vreinterpretq_f32_f64(vzip2q_f64(a, b)),
        )
    }
}

// `stream` and `fence` remain the plain defaults: these processors detect by themselves that whole
// cache lines are overwritten.
impl Simd for Neon {
    type V = Quads;
    type D = DoublePairs;
    const REGISTERS: Registers = Registers::Eight;
    const MEMORY_OPERANDS: bool = false;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON, and that 16 values can be read
        // at `p`
        unsafe {
            [
                vld1q_f32(p),
                vld1q_f32(p.add(4)),
                vld1q_f32(p.add(8)),
                vld1q_f32(p.add(12)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Quads) {
        // SAFETY: the caller guarantees that the processor has NEON, and that 16 values can be
        // written at `p`
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
            vst1q_f32(p.add(8), v[2]);
            vst1q_f32(p.add(12), v[3]);
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn fma(a: Quads, b: Quads, c: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add(a: Quads, b: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { both(a, b, |a, b| vaddq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub(a: Quads, b: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { both(a, b, |a, b| vsubq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn mul(a: Quads, b: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { both(a, b, |a, b| vmulq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn div(a: Quads, b: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { both(a, b, |a, b| vdivq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn sqrt(x: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { each(x, |x| vsqrtq_f32(x)) }
    }
    // A comparison and a selection in place of the min and max instructions, which treat NaN and
    // the signs of zeros differently.
    #[inline(always)]
    unsafe fn min(a: Quads, b: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { both(a, b, |a, b| vbslq_f32(vcltq_f32(a, b), a, b)) }
    }
    #[inline(always)]
    unsafe fn max(a: Quads, b: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { both(a, b, |a, b| vbslq_f32(vcgtq_f32(a, b), a, b)) }
    }
    #[inline(always)]
    unsafe fn abs(x: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { each(x, |x| vabsq_f32(x)) }
    }
    #[inline(always)]
    unsafe fn where_positive(z: Quads, a: Quads, b: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe {
            let zero = vdupq_n_f32(0.0);
            [
                vbslq_f32(vcgtq_f32(z[0], zero), a[0], b[0]),
                vbslq_f32(vcgtq_f32(z[1], zero), a[1], b[1]),
                vbslq_f32(vcgtq_f32(z[2], zero), a[2], b[2]),
                vbslq_f32(vcgtq_f32(z[3], zero), a[3], b[3]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn xor_sign(x: Quads, sign: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe {
            let bit = vdupq_n_u32(1 << 31);
            both(x, sign, |x, sign| {
                let sign = vandq_u32(vreinterpretq_u32_f32(sign), bit);
                vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), sign))
            })
        }
    }
    #[inline(always)]
    unsafe fn lookup(table: &LookupTable, at: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON; the 32 bytes read are the
        // first half of a table
        unsafe {
            let table: *const u8 = table.0.as_ptr().cast();
            let table = uint8x16x2_t(vld1q_u8(table), vld1q_u8(table.add(16)));
            // entry n is in the bytes 4n to 4n + 3
            let (first, step) = (vdupq_n_u32(0x0302_0100), vdupq_n_u32(0x0404_0404));
            each(at, |at| {
                let entry = vandq_u32(vreinterpretq_u32_f32(at), vdupq_n_u32(7));
                let bytes = vreinterpretq_u8_u32(vmlaq_u32(first, entry, step));
                vreinterpretq_f32_u8(vqtbl2q_u8(table, bytes))
            })
        }
    }
    #[inline(always)]
    unsafe fn times_power_of_2(x: Quads, at: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe {
            both(x, at, |x, at| {
                let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(at));
                vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(x), exponent))
            })
        }
    }
    #[inline(always)]
    unsafe fn power_of_two(at: Quads) -> Quads {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe {
            each(at, |at| {
                vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(at)))
            })
        }
    }
    #[inline(always)]
    unsafe fn largest(v: Quads) -> f32 {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[2]), vmaxq_f32(v[1], v[3]))) }
    }
    #[inline(always)]
    unsafe fn sum(v: Quads) -> f32 {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe {
            let four = fold(v);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    unsafe fn sums(v: &[Quads; 8], out: *mut f32) {
        // SAFETY: the caller guarantees that the processor has NEON, and that 8 values can be
        // written at `out`
        unsafe {
            let two = |i: usize| fold_two(fold(v[i]), fold(v[i + 1]));
            vst1q_f32(out, vpaddq_f32(two(0), two(2)));
            vst1q_f32(out.add(4), vpaddq_f32(two(4), two(6)));
        }
    }
    #[inline(always)]
    unsafe fn load_doubles(p: *const f64) -> DoublePairs {
        // SAFETY: the caller guarantees that the processor has NEON, and that 8 values can be
        // read at `p`
        unsafe {
            [
                vld1q_f64(p),
                vld1q_f64(p.add(2)),
                vld1q_f64(p.add(4)),
                vld1q_f64(p.add(6)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn widen(p: *const f32) -> DoublePairs {
        // SAFETY: as above
        unsafe {
            let (a, b) = (vld1q_f32(p), vld1q_f32(p.add(4)));
            [
                vcvt_f64_f32(vget_low_f32(a)),
                vcvt_high_f64_f32(a),
                vcvt_f64_f32(vget_low_f32(b)),
                vcvt_high_f64_f32(b),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_doubles(p: *mut f64, v: DoublePairs) {
        // SAFETY: the caller guarantees that the processor has NEON, and that 8 values can be
        // written at `p`
        unsafe {
            for (i, &v) in v.iter().enumerate() {
                vst1q_f64(p.add(2 * i), v);
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_double(x: f64) -> DoublePairs {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe { [vdupq_n_f64(x); 4] }
    }
    #[inline(always)]
    unsafe fn fma_doubles(a: DoublePairs, b: DoublePairs, c: DoublePairs) -> DoublePairs {
        // SAFETY: the caller guarantees that the processor has NEON
        unsafe {
            [
                vfmaq_f64(c[0], a[0], b[0]),
                vfmaq_f64(c[1], a[1], b[1]),
                vfmaq_f64(c[2], a[2], b[2]),
                vfmaq_f64(c[3], a[3], b[3]),
            ]
        }
    }
}
