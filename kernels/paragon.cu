// All kernels of a module, for one type of activations.
#include "conv.cu"
#include "conv_rgb.cu"
#include "loss.cu"
#include "optimizer.cu"
#include "reduce.cu"
#include "structural.cu"
#include "unpack.cu"
