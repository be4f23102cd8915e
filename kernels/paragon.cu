// All kernels of a module, for one type of activations. A family's own definitions are in its
// namespace; kernels are `extern "C"` and keep their names.
#include "common.cuh"
#include "features.cuh"
#include "mma.cuh"
#include "pixel_terms.cuh"
#include "plain.cuh"
#include "sums.cuh"

namespace conv_family {
#include "conv.cu"
#include "conv_rgb.cu"
}  // namespace conv_family
namespace nano_family {
#include "nano_block.cu"
}  // namespace nano_family
namespace reconstruct_family {
#include "reconstruct.cu"
}  // namespace reconstruct_family
namespace loss_family {
#include "loss.cu"
#include "structural.cu"
}  // namespace loss_family
namespace plain_family {
#include "plain_conv.cu"
#include "matrix_conv.cu"
#include "matrix_pointwise.cu"
#include "plain_values.cu"
#include "plain_compose.cu"
#include "plain_norm.cu"
#include "plain_attention.cu"
#include "matrix_attention.cu"
#include "stream_block.cu"
}  // namespace plain_family
#include "optimizer.cu"
#include "reduce.cu"
#include "unpack.cu"
