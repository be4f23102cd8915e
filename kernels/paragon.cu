// All kernels of a module, for one type of activations.
#include "conv.cu"
#include "conv_rgb.cu"
#include "head.cu"
#include "loss.cu"
#include "nano_block.cu"
#include "optimizer.cu"
#include "reduce.cu"
#include "unpack.cu"
