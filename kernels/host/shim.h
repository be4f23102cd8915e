// A GPU made of fibers: enough of CUDA's execution model to run the kernels as C++ on a machine
// without one. Blocks run one after another; the threads of a block are fibers that switch at
// barriers and warp operations. Lanes and blocks can run in several orders: a kernel whose result
// depends on the order has a race. Depends on the C++ library alone.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

struct Dim3 {
    u32 x, y, z;
};
// Of the running fiber; the scheduler sets them.
extern Dim3 threadIdx, blockIdx, blockDim, gridDim;

#define DEVICE static inline __attribute__((unused))
// always inlined: the builds for several types share one library, whose linker would merge members
// of equal names
#define DEVICE_MEMBER inline __attribute__((always_inline))
#define CONSTANT static const

unsigned char* shared_memory();
// The barrier at the place that PARAGON_FIBERS_SKIP names (file:line) does nothing, so that a test
// can show that its absence is noticed.
void barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE());
void warp_barrier();
DEVICE u32 thread_anew() { return threadIdx.x; }
DEVICE int anew(int value) { return value; }
float shuffle_xor(float value, int mask);
float shuffle(float value, int lane);
DEVICE int lane_index() { return static_cast<int>(threadIdx.x % 32); }
// What a warp operation makes of the words that its 32 lanes give: four words for each of them.
typedef void (*Together)(const u32 (&given)[32][6], u32 (&made)[32][4]);
// Every lane gives its words and gets its four of what `together` makes of the words of all lanes,
// which is called once for the warp. They are valid until the lane's next warp operation.
const u32 (&warp_exchange(const u32 (&own)[6], Together together))[4];
// Addresses of rows of eight halves; the launch fails if one is not 16 aligned bytes of the block's
// shared memory, as a device demands of every lane. Valid until the lane's next warp operation.
const void* const* warp_exchange_rows(const void* own);
// Ends the launch with a message if a rule of the device does not hold.
void require(bool holds, const char* rule);

DEVICE float bits_to_float(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
DEVICE u32 float_to_bits(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
DEVICE float fast_exp2(float value) { return exp2f(value); }
DEVICE float fast_reciprocal(float value) { return 1.0f / value; }
DEVICE float greatest_or_nan(float a, float b) { return a < b || b != b ? b : a; }
DEVICE float least_or_nan(float a, float b) { return a > b || b != b ? b : a; }
DEVICE float saturate(float value) { return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f; }
// products are not contracted on the host
DEVICE float rounded_product(float a, float b) { return a * b; }
DEVICE u16 to_bf16(float value) {
    u32 bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
DEVICE u16 to_fp16(float value) {
    u32 bits = float_to_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);  // rounds to 65536 or more
    if (magnitude < 0x38800000u) {
        // subnormal: whole multiples of 2^-24, rounded to nearest even by the addition of 0.5
        float rounded = bits_to_float(magnitude) + 0.5f;
        return static_cast<u16>(sign | (float_to_bits(rounded) - 0x3f000000u));
    }
    u32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
    return static_cast<u16>(sign | rounded >> 13);
}
// Without branches, so that the compiler can convert several values at once.
DEVICE float from_fp16(u16 bits) {
    u32 sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu, moved = magnitude << 13;
    // a subnormal number as the fraction of 2^-14, which is then subtracted
    u32 subnormal = float_to_bits(bits_to_float(moved + 0x38800000u) - 0x1p-14f);
    u32 normal = moved + (magnitude < 0x7c00u ? 0x38000000u : 0x70000000u);
    return bits_to_float(sign | (magnitude < 0x400u ? subnormal : normal));
}

// Kernels register themselves by name, with a function that gets the bytes of their arguments.
typedef void (*Entry)(const void* arguments);
struct Registered {
    Registered(int precision, const char* name, u32 threads, u32 argument_bytes, Entry entry);
};
#define KERNEL(name)                                                                                            \
    static void name(const name##_arguments& arg);                                                              \
    static void name##_entry(const void* arguments) { name(*static_cast<const name##_arguments*>(arguments)); } \
    static Registered name##_registered(PRECISION, #name, name##_threads, sizeof(name##_arguments), name##_entry); \
    static void name(const name##_arguments& arg)
#define KERNEL_CROWDED(name, blocks) KERNEL(name)
