//! The arguments of the convolutions on tensor cores (kernels/matrix_conv.cu and
//! kernels/matrix_pointwise.cu), as `super::signatures` has those of the plain kernels.

use super::super::arguments::{Act, Arguments, CStruct, CType, Field, Kernel};
use super::super::arguments::{Parameter, Partial, c_structs, c_type};
use super::super::constants::BLOCK_THREADS;
use super::signatures::{ChannelFunction, Place, View};

c_type!(PixelNorm, "PixelNorm");

c_structs! {
    /// RMSNorm ahead of a 1x1 convolution, as in PlainRmsNormArguments.
    struct PixelNorm {
        scale: *const Parameter,
        bias: *const Parameter,
        /// `[images][h][w][inputs]` of the convolution: the normalised values, for the backward pass;
        /// or null.
        output: *mut Act,
        /// Rows and columns of an image that is normalised.
        h: i32,
        w: i32,
        epsilon: f32,
        reserved: i32,
    }
    kernels {}

    struct MatrixConvPackArguments {
        /// `[outputs][inputs][kernel][kernel]`; transposed `[inputs][outputs]...`
        weight: *const Parameter,
        /// A factor of the weights, or null.
        gain: *const Parameter,
        /// In the order that matrix_conv.cu or matrix_pointwise.cu states.
        packed: *mut Act,
        inputs: i32,
        outputs: i32,
        /// 1: the taps from the last.
        transposed: i32,
        /// 3x3: blocks for the outputs, and how many outputs each has.
        slabs: i32,
        slab_outputs: i32,
        reserved: i32,
    }
    kernels {
        /// Half precision only.
        MATRIX_CONV_PACK = matrix_conv_pack [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        MATRIX_POINTWISE_PACK = matrix_pointwise_pack [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct MatrixConvArguments {
        input: View,
        output: Place,
        /// As in PlainConvArguments.
        z: View,
        /// As in PlainConvArguments.
        function: ChannelFunction,
        /// As in PlainConvArguments.
        back: ChannelFunction,
        /// matrix_pointwise_norm alone reads it; `input` is then the input of the norm.
        norm: PixelNorm,
        /// What the packing kernel made of the weights, and their gain.
        packed: *const Act,
        /// `[outputs]`, or null.
        bias: *const Parameter,
        /// A factor of the biases, or null.
        gain: *const Parameter,
        /// `[blocks of pixels][outputs]`: the gradient of back's slopes; or null.
        slope_partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        inputs: i32,
        outputs: i32,
        /// Outputs, and the channels after them that are filled with zeros.
        filled: i32,
        /// 3x3: blocks for the outputs.
        slabs: i32,
        /// 1x1: the first output of the launch, in groups of 32.
        first: i32,
    }
    kernels {
        /// Half precision only.
        MATRIX_CONV = matrix_conv [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        MATRIX_CONV_NARROW = matrix_conv_narrow [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        MATRIX_POINTWISE = matrix_pointwise [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        MATRIX_POINTWISE_NORM = matrix_pointwise_norm [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        MATRIX_POINTWISE_DEEP = matrix_pointwise_deep [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct MatrixConvWeightsArguments {
        input: View,
        d_output: View,
        /// Applied to the input.
        function: ChannelFunction,
        /// `[splits][weights, biases]`
        partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        inputs: i32,
        outputs: i32,
        /// Blocks for the inputs, 32 each.
        input_tiles: i32,
        /// Blocks that share the pixels.
        splits: i32,
        reserved: i32,
    }
    kernels {
        /// Half precision only.
        MATRIX_CONV_WEIGHTS = matrix_conv_weights [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct MatrixPointwiseWeightsArguments {
        input: View,
        d_output: View,
        /// Applied to the input.
        function: ChannelFunction,
        /// `[splits][weights, biases]`
        partials: *mut Partial,
        pixels: i32,
        inputs: i32,
        outputs: i32,
        /// 32s of inputs, and 64s of outputs, of a block.
        part_inputs: i32,
        part_outputs: i32,
        /// Blocks for the inputs.
        input_parts: i32,
        /// Pixels that a block has in shared memory, a multiple of 16.
        tile: i32,
        /// Blocks that share the pixels.
        splits: i32,
    }
    kernels {
        /// Half precision only.
        MATRIX_POINTWISE_WEIGHTS = matrix_pointwise_weights [BLOCK_THREADS, BLOCK_THREADS];
    }
}
