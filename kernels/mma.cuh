// Tensor core instructions as functions: one instruction each on a device, and on the host a plain
// loop over the lanes of a warp. PTX ISA, "Matrix fragments for mma.m16n8k16", defines the
// fragments. All 32 lanes of a warp must call them together, so the instructions are volatile: the
// compiler must not move one into a branch that only some lanes take.
#pragma once
#include "common.cuh"

#if PRECISION != 0

// d[16][8] = c[16][8] + a[16][16] x b[16][8], half precision in, f32 out. With group = lane / 4 and
// t = lane % 4 a lane holds
//   a[0] = A[group][2t, 2t+1]          a[1] = A[group+8][2t, 2t+1]
//   a[2] = A[group][2t+8, 2t+9]        a[3] = A[group+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][group]          b[1] = B[2t+8, 2t+9][group]
//   d[0], d[1] = D[group][2t, 2t+1]    d[2], d[3] = D[group+8][2t, 2t+1]
// with the value of the lower index in the lower half of a register. mma_16x8x8 is its left half:
// a[0], a[1] and b[0].
#ifdef __CUDACC_RTC__
#if PRECISION == 1
#define MMA_HALVES ".f32.bf16.bf16.f32"
#else
#define MMA_HALVES ".f32.f16.f16.f32"
#endif
DEVICE void mma_16x8x8(float (&d)[4], u32 a0, u32 a1, u32 b, const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col" MMA_HALVES " {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
DEVICE void mma_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4]) {
#if PRECISION == 1 || __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col" MMA_HALVES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    mma_16x8x8(d, a[0], a[1], b[0], c);
    mma_16x8x8(d, a[2], a[3], b[1], d);
#endif
}
#else
// The products of a warp. A sum runs over k in order; the eight columns of a row are computed at once.
template <int DEPTH>
DEVICE void mma_products(const u32 (&given)[32][6], u32 (&made)[32][4]) {
    typedef float Row __attribute__((vector_size(32)));
    float halves[2][32][6];
    Row right[DEPTH];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 6; i++) {
            halves[0][lane][i] = from_half((u16)given[lane][i]);
            halves[1][lane][i] = from_half((u16)(given[lane][i] >> 16));
        }
    for (int k = 0; k < DEPTH; k++)
        for (int column = 0; column < 8; column++) right[k][column] = halves[k % 2][column * 4 + k % 8 / 2][4 + k / 8];
    for (int row = 0; row < 16; row++) {
        Row sums = {};
        for (int k = 0; k < DEPTH; k++) sums += halves[k % 2][row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2] * right[k];
        for (int column = 0; column < 8; column++) made[row % 8 * 4 + column / 2][row / 8 * 2 + column % 2] = float_to_bits(sums[column]);
    }
}
template <int DEPTH>
DEVICE void mma_twin(float (&d)[4], const u32 (&own)[6], const float (&c)[4]) {
    const u32(&products)[4] = warp_exchange(own, mma_products<DEPTH>);
    for (int i = 0; i < 4; i++) d[i] = c[i] + bits_to_float(products[i]);
}
DEVICE void mma_16x8x8(float (&d)[4], u32 a0, u32 a1, u32 b, const float (&c)[4]) {
    u32 own[6] = {a0, a1, 0, 0, b, 0};
    mma_twin<8>(d, own, c);
}
DEVICE void mma_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4]) {
    u32 own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    mma_twin<16>(d, own, c);
}
#endif
// d += a x b
DEVICE void mma_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_16x8x16(d, a, b, d); }

// Loads four 8 x 8 matrices of half precision from shared memory: lane i gives the address of row i
// % 8 of matrix i / 8 (16 bytes, aligned). r[m] then holds elements 2t, 2t+1 of row `group` of
// matrix m, or of its transpose.
#ifdef __CUDACC_RTC__
DEVICE void load_matrices(u32 (&r)[4], const void* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
// The same for two matrices. Only the rows of lanes 0 .. 15 are read, but sm_75 wants a valid address
// from every lane: lane i gives that of lane i % 16.
DEVICE void load_two_matrices(u32 (&r)[2], const void* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
#else
DEVICE void load_matrices(u32 (&r)[4], const void* row) {
    const void* const* rows = warp_exchange_rows(row);
    for (int m = 0; m < 4; m++) {
        const u16* from = (const u16*)rows[m * 8 + lane_index() / 4] + 2 * (lane_index() % 4);
        r[m] = (u32)from[0] | (u32)from[1] << 16;
    }
}
DEVICE void load_two_matrices(u32 (&r)[2], const void* row) {
    const void* const* rows = warp_exchange_rows(row);
    require(row == rows[lane_index() % 16], "a lane gives ldmatrix.x2 another address than lane i % 16");
    for (int m = 0; m < 2; m++) {
        const u16* from = (const u16*)rows[m * 8 + lane_index() / 4] + 2 * (lane_index() % 4);
        r[m] = (u32)from[0] | (u32)from[1] << 16;
    }
}
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row) {
    const void* const* rows = warp_exchange_rows(row);
    int column = lane_index() / 4, t = lane_index() % 4;
    for (int m = 0; m < 4; m++) {
        u16 low = ((const u16*)rows[m * 8 + 2 * t])[column], high = ((const u16*)rows[m * 8 + 2 * t + 1])[column];
        r[m] = (u32)low | (u32)high << 16;
    }
}
#endif

// Transposes an 8 x 8 matrix of half precision in registers: a lane gives elements 2t, 2t+1 of row
// `group` and gets those of column `group`.
#ifdef __CUDACC_RTC__
DEVICE u32 transpose(u32 own) {
    u32 turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(own));
    return turned;
}
#else
DEVICE void transposed(const u32 (&given)[32][6], u32 (&made)[32][4]) {
    for (int lane = 0; lane < 32; lane++) {
        int column = lane / 4, t = lane % 4, high = column % 2 * 16;
        u32 first = given[2 * t * 4 + column / 2][0] >> high, second = given[(2 * t + 1) * 4 + column / 2][0] >> high;
        made[lane][0] = (first & 0xffffu) | second << 16;
    }
}
DEVICE u32 transpose(u32 value) {
    u32 own[6] = {value, 0, 0, 0, 0, 0};
    return warp_exchange(own, transposed)[0];
}
#endif

#endif
