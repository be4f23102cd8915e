//! The arguments of the plain kernels, as `super::super::signatures` has those of the others.

use super::super::arguments::{Act, Arguments, CStruct, CType, Code, Field, Gradient, Kernel};
use super::super::arguments::{Parameter, Partial, Total, c_structs, c_type};
use super::super::constants::BLOCK_THREADS;
use super::super::signatures::DeviceScalars;

c_type!(View, "View");
c_type!(Place, "Place");
c_type!(ChannelFunction, "ChannelFunction");
c_type!(ComposeWeights, "ComposeWeights");
c_type!(ComposeGradients, "ComposeGradients");
c_type!(WindowSizes, "WindowSizes");

c_structs! {
    /// Channels of a buffer that a kernel reads.
    struct View {
        /// Activations, or null.
        values: *const Act,
        /// f32, where `values` is null.
        floats: *const f32,
        /// Channels of a pixel.
        stride: i32,
        /// The first channel.
        first: i32,
    }
    kernels {}

    /// Channels of a buffer that a kernel writes.
    struct Place {
        /// Activations, or null.
        values: *mut Act,
        /// f32, where `values` is null.
        floats: *mut f32,
        /// Channels of a pixel.
        stride: i32,
        /// The first channel.
        first: i32,
        /// 1: added to what is there.
        add: i32,
        reserved: i32,
    }
    kernels {}

    /// A function of single values.
    struct ChannelFunction {
        /// `[channels]` of PReLU, or null.
        slopes: *const Parameter,
        /// FUNCTION_NONE ... FUNCTION_NORMALIZE.
        kind: i32,
        /// Channels, without those that fill the last group.
        channels: i32,
        /// LeakyReLU's slope.
        slope: f32,
        /// FUNCTION_NORMALIZE: (z - mean) x factor.
        mean: [f32; 3],
        factor: f32,
        reserved: i32,
    }
    kernels {}

    struct PlainConvArguments {
        input: View,
        output: Place,
        /// The convolution's input before `back`.
        z: View,
        /// Applied to the input.
        function: ChannelFunction,
        /// Whose derivative at z the gradient is multiplied with; FUNCTION_NONE for none.
        back: ChannelFunction,
        /// `[groups x outputs][inputs][kernel][kernel]`; transposed `[groups x inputs][outputs]...`
        weight: *const Parameter,
        /// `[groups x outputs]`, or null.
        bias: *const Parameter,
        /// A factor of weights and biases, or null.
        gain: *const Parameter,
        /// `[blocks of pixels][groups x outputs]`: the gradient of back's slopes; or null.
        slope_partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        /// Inputs of a group.
        inputs: i32,
        /// Outputs of a group.
        outputs: i32,
        groups: i32,
        /// Taps along each side.
        kernel: i32,
        /// Pixels from tap to tap.
        dilation: i32,
        /// 1: the gradient of the input, whose inputs are the convolution's outputs.
        transposed: i32,
        /// log2 of the inputs that are in shared memory at a time.
        chunk_bits: i32,
        /// Eights of outputs of a block: 1, 2, 4 or 8.
        octets: i32,
        /// Blocks for the outputs of a group.
        slabs: i32,
        /// Outputs of all groups, and the channels after them that are filled with zeros.
        filled: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_CONV = plain_conv [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainConvWeightsArguments {
        input: View,
        d_output: View,
        /// Applied to the input.
        function: ChannelFunction,
        /// `[splits][weights, biases]`
        partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        /// Inputs of a group.
        inputs: i32,
        /// Outputs of a group.
        outputs: i32,
        groups: i32,
        kernel: i32,
        dilation: i32,
        /// Fours of outputs of a block: 1, 2, 4, 8 or 16.
        quads: i32,
        /// Blocks for the outputs of a group.
        output_tiles: i32,
        /// Inputs of a block: 16 or, for 1x1, a multiple of it.
        tile_inputs: i32,
        /// Blocks for the inputs of a group.
        input_tiles: i32,
        /// Blocks for the taps.
        chunks: i32,
        /// Blocks that share the pixels.
        splits: i32,
    }
    kernels {
        PLAIN_CONV_WEIGHTS = plain_conv_weights [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainDepthwiseArguments {
        input: View,
        output: Place,
        /// As in PlainConvArguments.
        z: View,
        /// As in PlainConvArguments.
        function: ChannelFunction,
        /// As in PlainConvArguments.
        back: ChannelFunction,
        /// `[channels][kernel][kernel]`
        weight: *const Parameter,
        /// `[channels]`, or null.
        bias: *const Parameter,
        images: i32,
        h: i32,
        w: i32,
        channels: i32,
        kernel: i32,
        dilation: i32,
        /// 1: the gradient of the input.
        transposed: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_DEPTHWISE = plain_depthwise [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainDepthwiseWeightsArguments {
        input: View,
        d_output: View,
        /// Applied to the input.
        function: ChannelFunction,
        /// `[splits][weights, biases]`
        partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        channels: i32,
        kernel: i32,
        dilation: i32,
        /// Channels of a block, an even number.
        group: i32,
        /// Blocks that share the strips of pixels.
        splits: i32,
    }
    kernels {
        PLAIN_DEPTHWISE_WEIGHTS = plain_depthwise_weights [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainActivateArguments {
        /// `[pixels][stride]`
        input: *const Act,
        /// `[pixels][stride]`
        output: *mut Act,
        function: ChannelFunction,
        pixels: i32,
        stride: i32,
    }
    kernels {
        PLAIN_ACTIVATE = plain_activate [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainActivateBackArguments {
        /// `[pixels][stride]`, before the function.
        input: *const Act,
        /// `[pixels][stride]`
        d_output: *const Act,
        /// `[pixels][stride]`
        d_input: *mut Act,
        /// `[blocks][channels]`: the gradient of the slopes; or null.
        partials: *mut Partial,
        function: ChannelFunction,
        pixels: i32,
        stride: i32,
        /// 1: added to what is there.
        add: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_ACTIVATE_BACK = plain_activate_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainGateArguments {
        /// `[pixels][stride]`, without b `[pixels][2 x stride]`.
        a: *const Act,
        /// `[pixels][stride]`, or null.
        b: *const Act,
        /// `[pixels][stride]`
        output: *mut Act,
        pixels: i32,
        stride: i32,
        /// Without b: the largest magnitude.
        limit: f32,
        reserved: i32,
    }
    kernels {
        PLAIN_GATE = plain_gate [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainGateBackArguments {
        /// As in PlainGateArguments.
        a: *const Act,
        /// As in PlainGateArguments.
        b: *const Act,
        /// `[pixels][stride]`
        d_output: *const Act,
        /// In the shape of a.
        d_a: *mut Act,
        /// `[pixels][stride]`, or null.
        d_b: *mut Act,
        pixels: i32,
        stride: i32,
        limit: f32,
        /// 1: added to what is there.
        add_a: i32,
        /// 1: added to what is there.
        add_b: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_GATE_BACK = plain_gate_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainCopyArguments {
        from: *const Act,
        to: *mut Act,
        pixels: i32,
        /// Channels that are copied.
        count: i32,
        /// Channels that are written: those after the copied ones with zeros.
        filled: i32,
        from_stride: i32,
        from_first: i32,
        to_stride: i32,
        to_first: i32,
        /// 1: added to what is there.
        add: i32,
    }
    kernels {
        PLAIN_COPY = plain_copy [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainSumArguments {
        /// `[pixels][stride]`
        a: *const Act,
        /// `[pixels][stride]`
        b: *const Act,
        /// `[channels]`, or null for 1.
        gamma: *const Parameter,
        /// `[pixels][stride]`; may be a.
        output: *mut Act,
        pixels: i32,
        stride: i32,
        channels: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_SUM = plain_sum [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainSumBackArguments {
        /// `[pixels][stride]`; read with `partials` alone.
        b: *const Act,
        /// `[pixels][stride]`
        d_output: *const Act,
        /// `[channels]`, or null for 1.
        gamma: *const Parameter,
        /// `[pixels][stride]`, or null.
        d_a: *mut Act,
        /// `[pixels][stride]`, or null.
        d_b: *mut Act,
        /// `[blocks][channels]`: the gradient of gamma; or null.
        partials: *mut Partial,
        pixels: i32,
        stride: i32,
        channels: i32,
        /// 1: added to what is there.
        add_a: i32,
        /// 1: added to what is there.
        add_b: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_SUM_BACK = plain_sum_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainShuffleArguments {
        /// `[images][h][w][stride]`
        input: *const Act,
        /// `[images][h][w][3]`, or null.
        base: *const f32,
        /// `[images][h x scale][w x scale][3]`
        output: *mut f32,
        /// HR patches of a staged batch, or null.
        target: *const u8,
        /// `[images]`, or null.
        codes: *const Code,
        images: i32,
        h: i32,
        w: i32,
        scale: i32,
        stride: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_SHUFFLE = plain_shuffle [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainShuffleBackArguments {
        /// `[images][h x scale][w x scale][3]`
        d_output: *const f32,
        /// `[images][h][w][stride]`
        d_input: *mut Act,
        /// `[images][h][w][3]`, or null.
        d_base: *mut f32,
        images: i32,
        h: i32,
        w: i32,
        scale: i32,
        stride: i32,
        /// 1: added to what is there.
        add: i32,
    }
    kernels {
        PLAIN_SHUFFLE_BACK = plain_shuffle_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    /// The eight tensors of a Conv3XC from a to b channels.
    struct ComposeWeights {
        /// `[b][a]`
        skip: *const Parameter,
        /// `[b]`
        skip_bias: *const Parameter,
        /// `[2a][a]`
        first: *const Parameter,
        /// `[2a]`
        first_bias: *const Parameter,
        /// `[2b][2a][9]`
        middle: *const Parameter,
        /// `[2b]`
        middle_bias: *const Parameter,
        /// `[b][2b]`
        last: *const Parameter,
        /// `[b]`
        last_bias: *const Parameter,
    }
    kernels {}

    /// Their gradients.
    struct ComposeGradients {
        skip: *mut Gradient,
        skip_bias: *mut Gradient,
        first: *mut Gradient,
        first_bias: *mut Gradient,
        middle: *mut Gradient,
        middle_bias: *mut Gradient,
        last: *mut Gradient,
        last_bias: *mut Gradient,
    }
    kernels {}

    struct ComposeTwoArguments {
        weights: ComposeWeights,
        /// `[b][2a][9]`: last after middle.
        two: *mut f32,
        /// `[b][a][9]` and `[b]`, the gradient of the composed convolution; or null.
        d_composed: *const f32,
        /// `[b][2a][9]`: the gradient of `two`; with d_composed alone.
        d_two: *mut f32,
        cin: i32,
        cout: i32,
    }
    kernels {
        COMPOSE_TWO = compose_two [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ComposeConvArguments {
        weights: ComposeWeights,
        /// As compose_two made it.
        two: *const f32,
        /// `[b][a][9]`, then `[b]`.
        output: *mut f32,
        cin: i32,
        cout: i32,
    }
    kernels {
        COMPOSE_CONV = compose_conv [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ComposeConvBackArguments {
        weights: ComposeWeights,
        gradients: ComposeGradients,
        /// As compose_two made it.
        two: *const f32,
        /// As compose_two made it.
        d_two: *const f32,
        /// `[b][a][9]` and `[b]`
        d_composed: *const f32,
        scalars: *const DeviceScalars,
        cin: i32,
        cout: i32,
    }
    kernels {
        COMPOSE_CONV_BACK = compose_conv_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainRmsNormArguments {
        /// `[images][h][w][stride]`
        input: *const Act,
        /// `[images][padded_h][padded_w][stride]`
        output: *mut Act,
        /// `[channels]`
        scale: *const Parameter,
        /// `[channels]`
        bias: *const Parameter,
        images: i32,
        h: i32,
        w: i32,
        padded_h: i32,
        padded_w: i32,
        channels: i32,
        stride: i32,
        epsilon: f32,
    }
    kernels {
        PLAIN_RMS_NORM = plain_rms_norm [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainRmsNormBackArguments {
        /// `[images][h][w][stride]`
        input: *const Act,
        /// `[images][padded_h][padded_w][stride]`
        d_output: *const Act,
        /// `[images][h][w][stride]`, or null.
        d_input: *mut Act,
        /// `[channels]`
        scale: *const Parameter,
        /// `[blocks][2][channels]`
        partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        padded_h: i32,
        padded_w: i32,
        channels: i32,
        stride: i32,
        epsilon: f32,
        /// 1: added to what is there.
        add: i32,
        /// Lanes that share a pixel, a power of two up to 32.
        lanes: i32,
    }
    kernels {
        PLAIN_RMS_NORM_BACK = plain_rms_norm_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainChannelSumsArguments {
        /// `[images][pixels][stride]`
        input: *const Act,
        /// `[images][pixels][stride]`, or null.
        d_output: *const Act,
        /// `[images][blocks][2][stride]`
        partials: *mut Partial,
        /// Of an image.
        pixels: i32,
        stride: i32,
    }
    kernels {
        PLAIN_CHANNEL_SUMS = plain_channel_sums [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainChannelFactorsArguments {
        /// As plain_channel_sums made them.
        sums: *const Partial,
        /// `[hidden][channels]`
        down: *const Parameter,
        /// `[channels][hidden]`
        up: *const Parameter,
        /// `[images][stride]`
        factors: *mut f32,
        /// `[images][stride]`; with partials alone.
        d_means: *mut f32,
        /// `[images][down, up]`: the gradients of the weights; or null.
        partials: *mut Partial,
        /// Of an image.
        pixels: i32,
        stride: i32,
        channels: i32,
        hidden: i32,
        /// Of plain_channel_sums for an image.
        blocks: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_CHANNEL_FACTORS = plain_channel_factors [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainChannelScaleArguments {
        /// `[images][pixels][stride]`
        input: *const Act,
        /// `[images][stride]`
        factors: *const f32,
        /// `[images][stride]`, or null.
        d_means: *const f32,
        /// `[images][pixels][stride]`
        output: *mut Act,
        /// Of an image.
        pixels: i32,
        stride: i32,
        /// 1: added to what is there.
        add: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_CHANNEL_SCALE = plain_channel_scale [BLOCK_THREADS, BLOCK_THREADS];
    }

    /// The windows of an attention; a head has 16 channels.
    struct WindowSizes {
        /// Rows of an image.
        h: i32,
        /// Columns of an image.
        w: i32,
        /// Rows with padding, a multiple of `window`.
        padded_h: i32,
        /// Columns with padding, a multiple of `window`.
        padded_w: i32,
        heads: i32,
        /// Pixels along a side.
        window: i32,
        /// Rows and columns by which windows are shifted, below `window`.
        shift: i32,
        /// log2(e) / the root of 16.
        factor: f32,
    }
    kernels {}

    struct PlainWindowAttentionArguments {
        /// `[images][padded_h][padded_w][3 x channels]`
        qkv: *const Act,
        /// `[images][h][w][channels]`
        output: *mut Act,
        sizes: WindowSizes,
    }
    kernels {
        PLAIN_WINDOW_ATTENTION = plain_window_attention [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        MATRIX_WINDOW_ATTENTION = matrix_window_attention [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainWindowAttentionBackArguments {
        /// `[images][padded_h][padded_w][3 x channels]`
        qkv: *const Act,
        /// `[images][h][w][channels]`
        d_output: *const Act,
        /// `[images][padded_h][padded_w][3 x channels]`
        d_qkv: *mut Act,
        /// `[images][padded_h][padded_w][heads][2]`
        statistics: *mut f32,
        sizes: WindowSizes,
    }
    kernels {
        PLAIN_WINDOW_ATTENTION_QUERIES = plain_window_attention_queries [BLOCK_THREADS, BLOCK_THREADS];
        PLAIN_WINDOW_ATTENTION_KEYS = plain_window_attention_keys [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        MATRIX_WINDOW_ATTENTION_QUERIES = matrix_window_attention_queries [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only.
        MATRIX_WINDOW_ATTENTION_KEYS = matrix_window_attention_keys [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainTokenKeysArguments {
        /// `[tokens][channels]`
        dictionary: *const Parameter,
        /// `[16][channels]`
        key_weight: *const Parameter,
        /// `[16]`
        key_bias: *const Parameter,
        /// `[channels][channels]`
        value_weight: *const Parameter,
        /// `[channels]`
        value_bias: *const Parameter,
        /// `[tokens][16]`, then `[tokens][channels]`; with `centre` both again, of the centred
        /// tokens.
        keys: *mut f32,
        tokens: i32,
        channels: i32,
        centre: i32,
        reserved: i32,
    }
    kernels {
        PLAIN_TOKEN_KEYS = plain_token_keys [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainTokenAttentionArguments {
        /// As plain_token_keys made them.
        keys: *const f32,
        /// `[pixels][16]`
        query: *const Act,
        /// `[pixels][stride]`
        output: *mut Act,
        pixels: i32,
        tokens: i32,
        channels: i32,
        stride: i32,
        /// log2(e) / the root of 16.
        factor: f32,
        reserved: i32,
    }
    kernels {
        PLAIN_TOKEN_ATTENTION = plain_token_attention [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainTokenAttentionBackArguments {
        /// As plain_token_keys made them.
        keys: *const f32,
        /// `[pixels][16]`
        query: *const Act,
        /// `[pixels][stride]`
        d_output: *const Act,
        /// `[pixels][16]`
        d_query: *mut Act,
        /// `[pixels][tokens]`: the weights of the softmax.
        weights: *mut f32,
        /// `[pixels][tokens]`: the gradients of the scores.
        d_scores: *mut f32,
        pixels: i32,
        tokens: i32,
        channels: i32,
        stride: i32,
        /// log2(e) / the root of 16.
        factor: f32,
        reserved: i32,
    }
    kernels {
        PLAIN_TOKEN_ATTENTION_BACK = plain_token_attention_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PlainTokenGradientsArguments {
        /// `[tokens][16]`
        d_keys: *const Total,
        /// `[channels][tokens]`
        d_values: *const Total,
        /// `[tokens][channels]`
        dictionary: *const Parameter,
        /// `[16][channels]`
        key_weight: *const Parameter,
        /// `[channels][channels]`
        value_weight: *const Parameter,
        d_dictionary: *mut Gradient,
        d_key_weight: *mut Gradient,
        d_key_bias: *mut Gradient,
        d_value_weight: *mut Gradient,
        d_value_bias: *mut Gradient,
        scalars: *const DeviceScalars,
        tokens: i32,
        channels: i32,
        /// 1 / the root of 16.
        factor: f32,
        reserved: i32,
    }
    kernels {
        PLAIN_TOKEN_GRADIENTS = plain_token_gradients [BLOCK_THREADS, BLOCK_THREADS];
    }
}
