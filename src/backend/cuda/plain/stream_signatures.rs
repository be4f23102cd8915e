//! The arguments of the block of Stream on tensor cores (kernels/stream_block.cu), as
//! `super::signatures` has those of the plain kernels.

use super::super::arguments::{Act, Arguments, CStruct, CType, Field, Gradient, Kernel};
use super::super::arguments::{Parameter, c_structs, c_type};
use super::super::constants::BLOCK_THREADS;
use super::super::signatures::DeviceScalars;

c_type!(StreamDepthwise, "StreamDepthwise");

c_structs! {
    /// The parameters of a depthwise convolution.
    struct StreamDepthwise {
        /// `[channels][3][3]`
        weight: *const Parameter,
        /// `[channels]`
        bias: *const Parameter,
    }
    kernels {}

    struct StreamBlockPackArguments {
        /// Of 32 channels.
        near: StreamDepthwise,
        /// Of 32 channels.
        far: StreamDepthwise,
        /// Of 128 channels.
        gate: StreamDepthwise,
        /// `[32][64]`
        fuse: *const Parameter,
        fuse_bias: *const Parameter,
        /// `[128][32]`
        proj: *const Parameter,
        proj_bias: *const Parameter,
        /// `[32][64]`
        out: *const Parameter,
        out_bias: *const Parameter,
        /// `[32]`
        gamma: *const Parameter,
        /// STREAM_WEIGHTS bytes; for the backward pass STREAM_TURNED_WEIGHTS more.
        packed: *mut Act,
        /// 1: for the backward pass.
        back: i32,
        reserved: i32,
    }
    kernels {
        /// Half precision only.
        STREAM_BLOCK_PACK = stream_block_pack [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct StreamBlockArguments {
        /// `[images][h][w][32]`
        input: *const Act,
        /// The same shape; backward only, as everything but `output`.
        d_output: *const Act,
        /// What the packing kernel made of the parameters.
        packed: *const Act,
        /// `[images][h][w][32]`; forward only.
        output: *mut Act,
        /// `[images][h][w][64]`
        both: *mut Act,
        /// `[images][h][w][32]`
        t: *mut Act,
        /// `[images][h][w][128]`
        p: *mut Act,
        /// `[images][h][w][64]`
        m: *mut Act,
        /// `[images][h][w][128]`: the gradient of gate's results.
        d_gate: *mut Act,
        images: i32,
        h: i32,
        w: i32,
        /// The largest magnitude of a product.
        limit: f32,
    }
    kernels {
        /// Half precision only.
        STREAM_BLOCK = stream_block [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        STREAM_BLOCK_BACK = stream_block_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct StreamBlockProjBackArguments {
        /// As in StreamBlockArguments, of the backward pass.
        packed: *const Act,
        /// `[images][h][w][128]`: the gradient of gate's results.
        d_gate: *const Act,
        /// `[images][h][w][128]`
        d_p: *mut Act,
        /// `[images][h][w][32]`
        d_t: *mut Act,
        images: i32,
        h: i32,
        w: i32,
        reserved: i32,
    }
    kernels {
        /// Half precision only.
        STREAM_BLOCK_PROJ_BACK = stream_block_proj_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct StreamBlockInputBackArguments {
        /// As in StreamBlockArguments, of the backward pass.
        packed: *const Act,
        /// `[images][h][w][32]`
        d_t: *const Act,
        /// `[images][h][w][32]`
        d_output: *const Act,
        /// `[images][h][w][64]`
        d_both: *mut Act,
        /// `[images][h][w][32]`
        d_input: *mut Act,
        images: i32,
        h: i32,
        w: i32,
        reserved: i32,
    }
    kernels {
        /// Half precision only.
        STREAM_BLOCK_INPUT_BACK = stream_block_input_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct StreamBlockGradientsArguments {
        /// `[32][64]`, then `[32]`: the sums for the gradients of out's weights and biases, as if gamma
        /// were 1.
        sums: *const Gradient,
        /// `[32][64]`, out's.
        weight: *const Parameter,
        bias: *const Parameter,
        gamma: *const Parameter,
        /// Of the weights, then of the biases.
        d_out: *mut Gradient,
        d_gamma: *mut Gradient,
        scalars: *const DeviceScalars,
    }
    kernels {
        /// Half precision only.
        STREAM_BLOCK_GRADIENTS = stream_block_gradients [BLOCK_THREADS, BLOCK_THREADS];
    }
}
