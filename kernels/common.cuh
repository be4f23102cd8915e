// The start of every kernel file: the type of activations, index helpers, wrappers of warp
// instructions. The same text is compiled for devices by NVRTC, which has no system headers, and as
// C++ for the host by kernels/host, so that the kernels can be tested without a GPU. Whatever
// differs between the two is here or in mma.cuh, nowhere else.
#pragma once

// Type of activations: 0 f32, 1 bf16, 2 fp16 (IEEE half). A module is compiled for one of them.
#ifndef PRECISION
#error "compile with -DPRECISION=0, 1 or 2"
#endif

#ifdef __CUDACC_RTC__
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
// A kernel: KERNEL(name) { ... }, with its arguments in `arg`. The struct of the arguments and the
// number of threads are those that interface.cuh declares for the name. They stay in constant
// memory, and `__grid_constant__` lets helpers take a reference to them without a copy.
// KERNEL_CROWDED limits it to registers that let `blocks` blocks run on a multiprocessor.
#define DECLARED_KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ name##_arguments arg)
#if __CUDA_ARCH__ >= 900
// Here a kernel may be launched while the one before it still runs (docs/cuda.md). It waits until that
// one is complete and its results are visible, and only then lets the next one start: so whatever came
// before the kernel that it waits for is complete as well. After an ordinary launch there is nothing to
// wait for. scripts/ptx_branches.py checks that no kernel touches memory ahead of this.
#define BOUNDED_KERNEL(name, ...)                                                    \
    static __device__ __forceinline__ void name##_body(const name##_arguments& arg); \
    DECLARED_KERNEL(name, __VA_ARGS__) {                                             \
        asm volatile("griddepcontrol.wait;" ::: "memory");                           \
        asm volatile("griddepcontrol.launch_dependents;" ::: "memory");              \
        name##_body(arg);                                                            \
    }                                                                                \
    static __device__ __forceinline__ void name##_body(const name##_arguments& arg)
#else
#define BOUNDED_KERNEL DECLARED_KERNEL
#endif
#define KERNEL(name) BOUNDED_KERNEL(name, name##_threads)
#define KERNEL_CROWDED(name, blocks) BOUNDED_KERNEL(name, name##_threads, blocks)
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define CONSTANT static __constant__ const
// The block's dynamic shared memory, 16-byte aligned, of the size that the launch states. There is
// no other shared memory.
extern __shared__ __align__(16) unsigned char shared_arena[];
DEVICE unsigned char* shared_memory() { return shared_arena; }
DEVICE void barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
// threadIdx.x, or another number, that the compiler must treat as unknown: it then computes what
// depends on it anew instead of keeping it in registers from one phase to the next.
DEVICE u32 thread_anew() {
    u32 thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}
DEVICE int anew(int value) {
    int same;
    asm volatile("mov.b32 %0, %1;" : "=r"(same) : "r"(value));
    return same;
}
DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float value) { return __float_as_uint(value); }
// One instruction each, with errors of a few units in the last place and subnormal numbers taken as
// zero: for values that are rounded to half precision afterwards.
DEVICE float fast_exp2(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}
DEVICE float fast_reciprocal(float value) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(value));
    return inverse;
}
// The greater and the smaller of two values; NaN if one is NaN.
#if __CUDA_ARCH__ >= 800
DEVICE float greatest_or_nan(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
DEVICE float least_or_nan(float a, float b) {
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
#else
DEVICE float greatest_or_nan(float a, float b) { return a < b || b != b ? b : a; }
DEVICE float least_or_nan(float a, float b) { return a > b || b != b ? b : a; }
#endif
// Clamped to 0 .. 1; the clamp is part of the instruction that computes the value.
DEVICE float saturate(float value) { return __saturatef(value); }
// A product that does not become part of a multiply-add.
DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
#else
#include "host/shim.h"
#endif

// UNROLL: loops that must be unrolled, because their arrays are registers. ROLLED: loops that must
// not be, because that would take too many registers. UNROLL_IF: as a constant says.
#ifdef __CUDACC_RTC__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define PRAGMA_OF(text) _Pragma(#text)
#define UNROLL_IF(constant) PRAGMA_OF(unroll((constant) ? 1024 : 1))
#else
#define UNROLL
#define ROLLED
#define UNROLL_IF(constant)
#endif

// byte / 255 for the integers 0 .. 255, rounded as a division rounds it but in three instructions.
DEVICE float over_255(float byte) {
    float guess = byte * (1.0f / 255);
    return fmaf(fmaf(-255.0f, guess, byte), 1.0f / 255, guess);
}

// 16 bytes, for wide loads and stores.
struct __attribute__((aligned(16))) Wide {
    u32 word[4];
};

// Conversions to and from half precision round to nearest even; every NaN becomes the one NaN that
// the instruction gives. host/shim.h has the host's versions.
DEVICE float from_bf16(u16 bits) { return bits_to_float((u32)bits << 16); }
#ifdef __CUDACC_RTC__
#if PRECISION == 1
DEVICE u16 to_bf16(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif
DEVICE u16 to_fp16(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
DEVICE float from_fp16(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

// An activation as it is stored, and its conversion to f32 and back.
#if PRECISION == 0
typedef float act;
DEVICE float to_float(act value) { return value; }
DEVICE act to_act(float value) { return value; }
#else
struct act {
    u16 bits;
};
#if PRECISION == 1
DEVICE u16 to_half(float value) { return to_bf16(value); }
DEVICE float from_half(u16 bits) { return from_bf16(bits); }
#else
DEVICE u16 to_half(float value) { return to_fp16(value); }
DEVICE float from_half(u16 bits) { return from_fp16(bits); }
#endif
DEVICE float to_float(act value) { return from_half(value.bits); }
DEVICE act to_act(float value) {
    act a;
    a.bits = to_half(value);
    return a;
}
// Two activations in one register, the first in the lower half, as tensor core instructions take
// them. From sm_80 on one instruction rounds both.
#if defined(__CUDACC_RTC__) && PRECISION == 1
DEVICE u32 pack_half(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
#elif defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
DEVICE u32 pack_half(float low, float high) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
#else
DEVICE u32 pack_half(float low, float high) { return (u32)to_half(low) | ((u32)to_half(high) << 16); }
#endif
#endif

// A sum as two f32 whose sum it is: about 46 bits, where f64 is slow or has to be converted.
struct __attribute__((aligned(8))) TwoFloats {
    float high, low;
};

// The constants, argument structs and scalars that are shared with Rust.
#include "interface.cuh"

// Where the pixels of an augmented patch are stored: pixel (y, x) of a patch of `size` rows and
// `width` columns is pixel start + y x down + x x across of the stored patch
// (src/support/augment.rs). Codes other than 0 need square patches (size == width), as in the CPU
// backend; BatchView::check (src/backend/mod.rs) refuses others before a batch is copied to the
// device.
struct Steps {
    int start, down, across;
};
DEVICE Steps augmentation(u32 code, int size, int width) {
    int row = code & VFLIP ? -width : width, column = code & HFLIP ? -1 : 1;
    Steps s;
    s.start = (code & VFLIP ? (size - 1) * width : 0) + (code & HFLIP ? size - 1 : 0);
    s.down = code & TRANSPOSE ? column : row;
    s.across = code & TRANSPOSE ? row : column;
    return s;
}
DEVICE int augmented(u32 code, int y, int x, int size, int width) {
    Steps s = augmentation(code, size, width);
    return s.start + y * s.down + x * s.across;
}

// The sum over a warp; every lane gets the same bits.
DEVICE float warp_sum(float value) {
    for (int mask = 16; mask > 0; mask >>= 1) value += shuffle_xor(value, mask);
    return value;
}

// Adds a value; what the sum loses by rounding goes to the lower part (Knuth's two-sum).
DEVICE void add(TwoFloats& sum, float value) {
    float high = sum.high + value, added = high - sum.high;
    sum.low += (sum.high - (high - added)) + (value - added);
    sum.high = high;
}
DEVICE void add(TwoFloats& sum, TwoFloats value) {
    add(sum, value.high);
    sum.low += value.low;
}
DEVICE void add(double& sum, double value) { sum += value; }
// Adds a x b with what the product loses by rounding.
DEVICE void add_product(TwoFloats& sum, float a, TwoFloats b) {
    float product = rounded_product(a, b.high);
    add(sum, product);
    sum.low += fmaf(a, b.low, fmaf(a, b.high, -product));
}
// The sum over a warp; the bits are those of lane 0, other lanes may have others.
DEVICE TwoFloats warp_sum(TwoFloats value) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        TwoFloats other = {shuffle_xor(value.high, mask), shuffle_xor(value.low, mask)};
        add(value, other);
    }
    return value;
}
DEVICE float to_float(TwoFloats sum) { return sum.high + sum.low; }
DEVICE double to_double(TwoFloats sum) { return (double)sum.high + (double)sum.low; }

// The sum of one value (f64 or TwoFloats) of every thread of a block, in a fixed order; every thread
// gets the same bits. `sums`: shared memory with a value for each thread, free again after the next
// barrier.
template <int THREADS, class Sum>
DEVICE Sum block_sum(Sum* sums, Sum value) {
    sums[threadIdx.x] = value;
    barrier();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < (u32)half) add(sums[threadIdx.x], sums[threadIdx.x + half]);
        barrier();
    }
    return sums[0];
}

// Exact GELU 0.5 z (1 + erf(z / sqrt 2)) and its slope.
DEVICE float gelu(float z) { return 0.5f * z * (1.0f + erff(z * 0.70710678f)); }
DEVICE float gelu_slope(float z) {
    return 0.5f * (1.0f + erff(z * 0.70710678f)) + z * 0.39894228f * expf(-0.5f * z * z);
}

#if PRECISION != 0
// The same for values that are rounded to half precision: the normal distribution as 1 / (1 +
// exp(-L)) with an odd polynomial L. The errors are at most 4e-5 and 1e-4, far less than that rounding;
// beyond the clamp the distribution is 0 or 1 to 1e-8.
//
// z and gelu(z) are in units of eight (z / 8), so that the clamp of its square is part of a
// multiplication. A power of two does not change the rounding.
#define EIGHTHS 8.0f
DEVICE float normal_share(float z, float square) {
    return fast_reciprocal(1.0f + fast_exp2(z * ((32.858613f * square - 54.666506f) * square - 18.407007f)));
}
DEVICE float gelu_half(float z) { return z * normal_share(z, saturate(z * z)); }
DEVICE void gelu_pair(float z, float& value, float& slope) {
    float square = saturate(z * z), share = normal_share(z, square);
    value = z * share;
    float inner = value * ((-113.87928f * square + 113.67580f) * square + 12.758766f);
    slope = (share + inner) - inner * share;
}
#endif
