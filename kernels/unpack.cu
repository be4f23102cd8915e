// u8 patches of a staged batch -> f32 RGB in [0, 1], through the index map of each patch's
// augmentation.
#include "common.cuh"

// One thread a pixel. Grid: ceil(images x h x w / 256). Least traffic a pixel: 3 bytes read, 12
// written.
KERNEL(unpack) {
    const int h = arg.h, w = arg.w;
    int pixel = blockIdx.x * 256 + threadIdx.x;
    if (pixel >= arg.images * h * w) return;
    int image = pixel / (h * w), y = pixel / w % h, x = pixel % w;
    const u8* from = arg.lq + ((long long)image * h * w + augmented(arg.codes[image], y, x, h, w)) * 3;
    for (int c = 0; c < 3; c++) arg.output[(long long)pixel * 3 + c] = (float)from[c] / 255.0f;
}
