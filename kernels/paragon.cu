// All kernels of a module, for one type of activations.
#include "loss.cu"
#include "optimizer.cu"
#include "reduce.cu"
#include "unpack.cu"
