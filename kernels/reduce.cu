// The second stage of every sum over pixels: the partial sums of blocks are added in a fixed order
// as two f32 (TwoFloats), and the totals become gradients, metrics, or the input of a later launch.
// One launch takes the jobs of many operations, since each is small.
#include "sums.cuh"

// A thread's share of the partial sums of one sum, in order. Eight loads are issued before the
// first value is added; the last ones past the end are zeros, which change nothing.
DEVICE TwoFloats share_sum(const SumJob& job, int group, int i) {
    int count = job.count, blocks = job.blocks, each = (blocks + SUM_GROUPS - 1) / SUM_GROUPS;
    int b = group * each, end = b + each < blocks ? b + each : blocks;
    const float* from = job.partials + i;
    TwoFloats sum = {0, 0};
    for (; b < end; b += 8) {
        float values[8];
        UNROLL
        for (int k = 0; k < 8; k++) values[k] = b + k < end ? from[(long long)(b + k) * count] : 0.0f;
        UNROLL
        for (int k = 0; k < 8; k++) add(sum, values[k]);
    }
    return sum;
}

// Grid: for each job one block for every SUM_LANES sums, or one block for a loss. The order of a
// sum is the same on any device. Shared memory: 8 bytes a thread. Least traffic: 4 bytes a partial sum.
KERNEL(reduce_sums) {
    int at = 0, first = 0;
    while ((int)blockIdx.x >= arg.jobs[at].end) first = arg.jobs[at++].end;
    const SumJob& job = arg.jobs[at];
    TwoFloats* shared = (TwoFloats*)shared_memory();
    if (job.kind == LOSS_TO_TOTAL || job.kind == LOSS_TO_METRICS || job.kind == LOSS_ADDED) {
        loss_family::finish_loss(job, (double*)shared_memory(), arg.scalars);
        return;
    }
    int chunk = (int)blockIdx.x - first, lane = threadIdx.x % SUM_LANES, group = threadIdx.x / SUM_LANES;
    int i = chunk * SUM_LANES + lane;
    bool within = i < job.count, own = within && group == 0;
    shared[threadIdx.x] = within ? share_sum(job, group, i) : TwoFloats{0, 0};
    barrier();
    TwoFloats total = {0, 0};
    if (own) {
        UNROLL
        for (int g = 0; g < SUM_GROUPS; g++) add(total, shared[g * SUM_LANES + lane]);
        // at the end, so that equal slices have exactly a multiple of the sum
        if (job.before) add(total, job.before[i]);
    }
    if (job.kind == TO_NANO_BLOCK) {
        nano_family::finish_nano_block(job, chunk, own, total, shared, arg.scalars);
    } else if (own && job.kind == TO_GRADIENTS) {
        store_gradient(job.gradients + i, to_float(total), arg.scalars);
    } else if (own && job.kind == TO_VALUES) {
        job.gradients[i] = to_float(total);
    } else if (own && job.kind == TO_ADDED) {
        job.gradients[i] += to_float(total);
    } else if (own) {
        job.totals[i] = total;
    }
}
