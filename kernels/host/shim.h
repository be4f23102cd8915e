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
int lane_index();
// Every lane gives its words and gets those of all 32 lanes; they are valid until the lane's next
// warp operation.
const u32 (*warp_exchange(const u32 (&own)[6]))[6];
// Addresses of rows of eight halves; the launch fails if one is not 16 aligned bytes of the block's
// shared memory, as a device demands of every lane.
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
u16 to_fp16(float value);
float from_fp16(u16 bits);

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
