// Kernels that test the fibers themselves (tests/it/kernels_fibers.rs): those that break a rule of the
// device must be reported, and the twins of instructions have exact results.
#include "../mma.cuh"

struct Arguments {
    unsigned char* data;
};
#define TRIAL(name)                            \
    typedef Arguments name##_arguments;        \
    static const u32 name##_threads = 64;      \
    KERNEL(name)

TRIAL(a_lane_ends_before_an_operation) {
    if (threadIdx.x != 37) shuffle(1.0f, 0);
}
TRIAL(lanes_at_different_operations) {
    if (threadIdx.x % 32 < 16)
        shuffle(1.0f, 0);
    else
        warp_barrier();
}
TRIAL(products_of_different_depths) {
    float d[4] = {};
    u32 halves[4] = {};
    if (threadIdx.x % 32 < 16)
        mma_16x8x8(d, 0, 0, 0, d);
    else
        mma_16x8x16(d, halves, {0, 0}, d);
}
TRIAL(a_warp_ends_before_a_barrier) {
    if (threadIdx.x < 32) barrier();
}
TRIAL(a_row_outside_shared_memory) {
    u32 r[4];
    load_matrices(r, shared_memory() + 16 * threadIdx.x);
}
TRIAL(lanes_without_rows_have_other_addresses) {
    u32 r[2];
    load_two_matrices(r, shared_memory() + 16 * (threadIdx.x % 32));
}
// One word after an array on the stack, and after shared memory. Other lanes run before it is read.
static __attribute__((noinline)) u32 word_after(const u32* words, u32 count) { return words[count]; }
TRIAL(after_an_array) {
    u32 words[4] = {1, 2, 3, 4};
    barrier();
    arg.data[64 + threadIdx.x] = (unsigned char)word_after(words, arg.data[0]);
}
TRIAL(after_shared_memory) {
    barrier();
    arg.data[64 + threadIdx.x] = (unsigned char)word_after((const u32*)shared_memory(), arg.data[0]);
}
DEVICE float deeper(const float* caller, int levels) {
    float values[1024];
    for (int i = 0; i < 1024; i++) values[i] = caller[i] + 1.0f;
    barrier();
    return levels == 0 ? values[0] : deeper(values, levels - 1) + values[levels];
}
TRIAL(more_stack_than_there_is) {
    float values[1024] = {};
    arg.data[64 + threadIdx.x] = (unsigned char)deeper(values, 255);
}

// [warps] of: a and b of every lane, six words, then c, four f32. The products take the place of c.
TRIAL(products) {
    u32* words = (u32*)arg.data + threadIdx.x / 32 * 320;
    u32 lane = threadIdx.x % 32, a[4], b[2];
    float c[4], d[4];
    memcpy(a, words + 6 * lane, sizeof a);
    memcpy(b, words + 6 * lane + 4, sizeof b);
    memcpy(c, words + 192 + 4 * lane, sizeof c);
    mma_16x8x16(d, a, b, c);
    memcpy(words + 192 + 4 * lane, d, sizeof d);
}
// Every half as f32, and this as a half again: 65536 words, then as many halves.
TRIAL(every_half) {
    for (u32 i = threadIdx.x; i < 65536; i += 64) {
        float value = from_half((u16)i);
        u16 half = to_half(value);
        memcpy(arg.data + 4 * i, &value, sizeof value);
        memcpy(arg.data + 4 * 65536 + 2 * i, &half, sizeof half);
    }
}
