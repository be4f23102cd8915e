// What the second stage of the sums over pixels is told: the jobs of one launch of reduce_sums, whose blocks stand one job after another in its
// grid. src/backend/cuda/reduce.rs writes them.
#pragma once
#include "common.cuh"

// A gradient, added to that of the micro-batches before.
DEVICE void store_gradient(float* to, float value, const DeviceScalars* scalars) { *to = scalars->accumulate ? *to + value : value; }
