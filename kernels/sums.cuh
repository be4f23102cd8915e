// Helpers of the second stage of the sums over pixels; src/backend/cuda/reduce.rs makes its jobs.
// Depends on common.cuh.
#pragma once
#include "common.cuh"

// Stores a gradient, or adds it to that of the micro-batches before.
DEVICE void store_gradient(float* to, float value, const DeviceScalars* scalars) { *to = scalars->accumulate ? *to + value : value; }
