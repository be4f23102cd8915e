// What the second stage of the sums over pixels is told: the jobs of one launch of reduce_sums, whose blocks stand one job after another in its
// grid. src/backend/cuda/reduce.rs writes them.
#pragma once
#include "common.cuh"

// Jobs of a launch at most.
#define SUM_JOBS 12
// Neighbouring sums that a block adds; eight groups of as many threads take an eighth of the partial sums each.
#define SUM_LANES 32
#define SUM_GROUPS 8

// What becomes of the totals.
enum SumKind {
    TO_TOTALS,      // f64, for a later launch
    TO_GRADIENTS,   // gradients of as many parameters, one after another
    TO_NANO_BLOCK,  // see nano_block.cu
    LOSS_TO_TOTAL,  // see loss.cu
    LOSS_TO_METRICS
};

// All of 8 bytes, as launches pass them.
struct SumJob {
    const void* partials;     // f32 [blocks][count]; f64 [blocks] of the loss
    const double* before;     // totals of the slices before, added to; or null
    void* to;                 // f64 totals or metrics, f32 gradients
    const float* parameters;  // TO_NANO_BLOCK: those that the gradients are of
    u64 kind, count, blocks;
    u64 end;  // of its blocks in the grid
};
struct SumJobs {
    SumJob job[SUM_JOBS];
};

// A gradient, added to that of the micro-batches before.
DEVICE void store_gradient(float* to, float value, const Scalars* scalars) { *to = scalars->accumulate ? *to + value : value; }
