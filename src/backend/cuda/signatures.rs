//! Every kernel's arguments, declared once for Rust and C: the header that `super::interface`
//! generates has the same structs, and the kernels take them by value. Shapes are in brackets,
//! slowest axis first; `h` and `w` are LQ sizes unless it says otherwise. Depends on the argument
//! types and the shared constants.

use super::arguments::{Act, Arguments, CStruct, CType, Code, Element, Field, Folded};
use super::arguments::{Gradient, Kernel, Parameter, Partial, Total, c_structs, c_type, element};
use super::constants::{BLOCK_THREADS, SUM_JOBS};

c_type!(DeviceScalars, "DeviceScalars");
c_type!(SumJob, "SumJob");
element!(DeviceScalars, "DeviceScalars");

c_structs! {
    /// The numbers of one iteration that change from step to step. They lie in device memory, so
    /// that a captured graph stays valid.
    struct DeviceScalars {
        /// Learning rate / bias correction of the first moment.
        step_size: f32,
        /// Square root of the bias correction of the second moment.
        root_correction: f32,
        /// 1 - learning rate x weight decay (AdamW).
        keep: f32,
        /// Weight of the old average.
        ema_decay: f32,
        /// 1 - ema_decay, formed in f64.
        ema_rest: f32,
        /// Largest gradient norm; infinity for none.
        clip: f32,
        /// fp16: every gradient carries this factor until the optimizer divides by it; 1 otherwise.
        loss_scale: f32,
        /// 1 / micro-batches of an iteration.
        micro_scale: f32,
        /// 1: gradients and loss add to those of the micro-batches before.
        accumulate: u32,
        reserved: [u32; 7],
    }
    kernels {}

    struct SetScalarsArguments {
        out: *mut DeviceScalars,
        values: DeviceScalars,
    }
    kernels {
        /// Puts the numbers of a step where the other kernels read them.
        SET_SCALARS = set_scalars [32, 32];
    }

    struct UnpackArguments {
        /// `[images][h][w][3]` of a staged batch.
        lq: *const u8,
        /// `[images]`
        codes: *const Code,
        /// `[images][h][w][3]`, in 0..=1.
        output: *mut f32,
        images: i32,
        h: i32,
        w: i32,
    }
    kernels {
        UNPACK = unpack [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ConvArguments {
        /// `[images][h][w][16]`, 16-byte aligned, as are all activations.
        input: *const Act,
        /// `[16][16][3][3]`
        weight: *const Parameter,
        /// `[16]`
        bias: *const Parameter,
        /// `[images][h][w][16]`
        output: *mut Act,
        images: i32,
        h: i32,
        w: i32,
    }
    kernels {
        CONV = conv [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ConvDataArguments {
        /// `[images][h][w][16]`
        d_output: *const Act,
        /// `[16][16][3][3]`
        weight: *const Parameter,
        /// `[images][h][w][16]`
        d_input: *mut Act,
        images: i32,
        h: i32,
        w: i32,
    }
    kernels {
        /// f32 only.
        CONV_DATA = conv_data [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ConvWeightsArguments {
        /// `[images][h][w][16]`
        input: *const Act,
        /// `[images][h][w][16]`
        d_output: *const Act,
        /// `[blocks][16 x 16 x 9 weights, 16 biases]`
        partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
    }
    kernels {
        /// f32 only.
        CONV_WEIGHTS = conv_weights [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ConvGradientsArguments {
        /// `[images][h][w][16]`
        input: *const Act,
        /// `[images][h][w][16]`
        d_output: *const Act,
        /// `[16][16][3][3]`
        weight: *const Parameter,
        /// `[images][h][w][16]`
        d_input: *mut Act,
        /// `[blocks][16 x 16 x 9 weights, 16 biases]`
        partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
    }
    kernels {
        /// Half precision only.
        CONV_GRADIENTS = conv_gradients [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ConvRgbArguments {
        /// `[images][h][w][3]`; written instead of read where `patches` are given.
        input: *mut f32,
        /// `[16][3][3][3]`
        weight: *const Parameter,
        /// `[16]`
        bias: *const Parameter,
        /// `[images][h][w][16]`
        output: *mut Act,
        images: i32,
        h: i32,
        w: i32,
        /// 1: the input is multiples of 1/255, which half precision holds exactly as integers.
        units: i32,
        /// `[images][h][w][3]` of a staged batch, or null.
        patches: *const u8,
        /// `[images]`, or null.
        codes: *const Code,
    }
    kernels {
        CONV_RGB = conv_rgb [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ConvRgbWeightsArguments {
        /// `[images][h][w][3]`
        input: *const f32,
        /// `[images][h][w][16]`
        d_output: *const Act,
        /// `[blocks][16 x 27 weights, 16 biases]`
        partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        /// 1: the input is multiples of 1/255, which half precision holds exactly as integers.
        units: i32,
    }
    kernels {
        CONV_RGB_WEIGHTS = conv_rgb_weights [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ConvRgbDataArguments {
        /// `[images][h][w][16]`
        d_output: *const Act,
        /// `[16][3][3][3]`
        weight: *const Parameter,
        /// `[images][h][w][3]`
        d_input: *mut f32,
        images: i32,
        h: i32,
        w: i32,
    }
    kernels {
        CONV_RGB_DATA = conv_rgb_data [BLOCK_THREADS, BLOCK_THREADS];
    }

    /// The parameters of a Nano block; conv1 and conv2 are 1x1, dw is depthwise 3x3.
    struct NanoParameters {
        /// conv1's weights `[32][16]`
        w1: *const Parameter,
        /// `[32]`
        b1: *const Parameter,
        /// The depthwise weights `[32][3][3]`
        dw: *const Parameter,
        /// `[32]`
        db: *const Parameter,
        /// conv2's weights `[16][32]`
        w2: *const Parameter,
        /// `[16]`
        b2: *const Parameter,
        /// LayerScale's factors `[16]`
        gamma: *const Parameter,
    }
    kernels {}

    struct NanoBlockArguments {
        parameters: NanoParameters,
        /// `[images][h][w][16]`
        input: *const Act,
        /// `[images][h][w][16]`
        output: *mut Act,
        images: i32,
        h: i32,
        w: i32,
    }
    kernels {
        NANO_BLOCK = nano_block [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only: the depthwise step by multiply-adds.
        NANO_BLOCK_PLAIN = nano_block_plain [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct NanoBlockBackArguments {
        parameters: NanoParameters,
        /// `[images][h][w][16]`
        input: *const Act,
        /// `[images][h][w][16]`
        d_output: *const Act,
        /// `[images][h][w][16]`
        d_input: *mut Act,
        /// `[blocks][NANO_COUNT]`
        partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        /// Tiles that a block takes one after another.
        tiles: i32,
    }
    kernels {
        NANO_BLOCK_BACK = nano_block_back [BLOCK_THREADS, BLOCK_THREADS];
        /// Half precision only: the depthwise step and its data gradient by multiply-adds.
        NANO_BLOCK_BACK_PLAIN = nano_block_back_plain [BLOCK_THREADS, BLOCK_THREADS];
    }

    /// The two convolutions of the reconstruction and its gain.
    struct ReconstructParameters {
        /// up.0's weights `[features x scale^2][features][3][3]`
        up_weight: *const Parameter,
        /// `[features x scale^2]`
        up_bias: *const Parameter,
        /// conv_out's weights `[3][features][3][3]`
        weight: *const Parameter,
        /// `[3]`
        bias: *const Parameter,
        /// `[1]`
        gain: *const Parameter,
    }
    kernels {}

    /// Their gradients, in the same shapes.
    struct ReconstructGradients {
        up_weight: *mut Gradient,
        up_bias: *mut Gradient,
        weight: *mut Gradient,
        bias: *mut Gradient,
        gain: *mut Gradient,
    }
    kernels {}

    struct FoldConvArguments {
        parameters: ReconstructParameters,
        /// `[units][GROUP_SUMS]`; with half precision followed by `[units][GROUP_FRAGMENTS]`
        /// 16-byte words of tensor core operands. A unit is a group of slots and a chunk of FEATURES
        /// features.
        folded: *mut Folded,
        scale: i32,
        /// Features / FEATURES.
        chunks: i32,
    }
    kernels {
        FOLD_CONV = fold_conv [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct UnfoldGradientsArguments {
        /// `[units][INTERIOR_SUMS]`
        interior: *const Total,
        /// `[units][4][EDGE_SUMS]`
        edges: *const Total,
        parameters: ReconstructParameters,
        /// As fold_conv made it.
        folded: *const Folded,
        gradients: ReconstructGradients,
        scalars: *const DeviceScalars,
        scale: i32,
        /// Features / FEATURES.
        chunks: i32,
    }
    kernels {
        UNFOLD_GRADIENTS = unfold_gradients [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ReconstructArguments {
        /// As fold_conv made it.
        folded: *const Folded,
        /// `[1]`
        gain: *const Parameter,
        /// The network's input `[images][h][w][3]`, which the base is made of.
        input: *const f32,
        /// `[images][h][w][features]`
        features: *const Act,
        /// `[images][h x scale][w x scale][3]`: the prediction; less its target where that is
        /// given; the gradient of the losses where `loss_partials` are given.
        output: *mut f32,
        /// HR patches `[images][h x scale][w x scale][3]` of a staged batch, or null.
        target: *const u8,
        /// `[images]`, or null.
        codes: *const Code,
        /// `[blocks]`, or null.
        loss_partials: *mut f64,
        /// Read with `loss_partials` alone.
        scalars: *const DeviceScalars,
        images: i32,
        h: i32,
        w: i32,
        scale: i32,
        /// Strength of the base's sharpening; 0 for none.
        alpha: f32,
        /// Values of the whole micro-batch, which the losses' mean is over.
        whole: i32,
        /// Weight of the L1 loss.
        l1: f32,
        /// Weight of the Charbonnier loss.
        charbonnier: f32,
        /// Weight of the MSE loss.
        mse: f32,
        /// Features / FEATURES.
        chunks: i32,
    }
    kernels {
        RECONSTRUCT = reconstruct [BLOCK_THREADS, BLOCK_THREADS];
        /// Scale 2 and FEATURES features, in half precision.
        RECONSTRUCT_X2 = reconstruct_x2 [BLOCK_THREADS, BLOCK_THREADS];
        /// Scale 2 and more features, in half precision.
        RECONSTRUCT_X2_DEEP = reconstruct_x2_deep [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct ReconstructBackArguments {
        /// As fold_conv made it.
        folded: *const Folded,
        /// `[1]`; half precision has the gain in its operands and does not read it.
        gain: *const Parameter,
        /// `[images][h][w][features]`
        features: *const Act,
        /// `[images][h x scale][w x scale][3]`
        d_output: *const f32,
        /// `[images][h][w][features]`
        d_features: *mut Act,
        /// `[blocks][units][INTERIOR_SUMS]`
        partials: *mut Partial,
        /// `[edge_blocks][units][4][EDGE_SUMS]`
        edge_partials: *mut Partial,
        images: i32,
        h: i32,
        w: i32,
        scale: i32,
        /// PART_DATA, PART_SUMS or both.
        part: i32,
        edge_blocks: i32,
        /// Features / FEATURES.
        chunks: i32,
    }
    kernels {
        RECONSTRUCT_BACK = reconstruct_back [BLOCK_THREADS, BLOCK_THREADS];
        /// Scale 2 in half precision, both parts in one pass.
        RECONSTRUCT_BACK_X2 = reconstruct_back_x2 [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct BaseBackArguments {
        /// `[images][h x scale][w x scale][3]`
        d_output: *const f32,
        /// `[images][h][w][3]`
        d_input: *mut f32,
        images: i32,
        h: i32,
        w: i32,
        scale: i32,
        alpha: f32,
    }
    kernels {
        BASE_BACK = base_back [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct PixelLossArguments {
        /// `[pixels][3]`
        prediction: *const f32,
        /// `[pixels][3]`; may be the same memory as the prediction.
        d_prediction: *mut f32,
        /// `[pixels][3]`, or null: the prediction then holds prediction - target.
        target: *const f32,
        /// `[blocks]`
        partials: *mut f64,
        scalars: *const DeviceScalars,
        /// HR pixels of all images.
        pixels: i32,
        /// Values of the whole micro-batch, which the mean is over.
        whole: i32,
        /// Weight of the L1 loss.
        l1: f32,
        /// Weight of the Charbonnier loss.
        charbonnier: f32,
        /// Weight of the MSE loss.
        mse: f32,
    }
    kernels {
        PIXEL_LOSS = pixel_loss [BLOCK_THREADS, BLOCK_THREADS];
    }

    /// Predictions and their targets, h and w HR sizes: either `target_bytes` and `codes`, and
    /// `values` hold prediction - target; or `target_floats`, and `values` hold the prediction.
    struct Predictions {
        /// `[images][h][w][3]`
        values: *const f32,
        /// `[images][h][w][3]` of a staged batch, or null.
        target_bytes: *const u8,
        /// `[images]`, or null.
        codes: *const Code,
        /// `[images][h][w][3]`, or null.
        target_floats: *const f32,
        h: i32,
        w: i32,
    }
    kernels {}

    struct StructuralPoolArguments {
        predictions: Predictions,
        /// `[images][floats_each]`
        floats: *mut f32,
        /// The level that is made, from 1.
        level: i32,
        /// Of one image, in all its levels (struct Level).
        floats_each: i32,
    }
    kernels {
        STRUCTURAL_POOL = structural_pool [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct StructuralWindowsArguments {
        predictions: Predictions,
        /// `[images][floats_each]`
        floats: *mut f32,
        /// `[images][patches of all levels]`
        partials: *mut f64,
        /// 1: similarity includes the luminance term (SSIM).
        luminance: i32,
        floats_each: i32,
    }
    kernels {
        STRUCTURAL_WINDOWS = structural_windows [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct StructuralScoreArguments {
        /// `[images][patches]`
        partials: *const f64,
        /// `[images]`
        scores: *mut f64,
        /// `[images][LEVELS]`
        factors: *mut f32,
        scalars: *const DeviceScalars,
        /// HR height.
        h: i32,
        /// HR width.
        w: i32,
        levels: i32,
        /// Of all levels.
        patches: i32,
        /// Weight of the loss.
        weight: f32,
        /// Images of the whole micro-batch.
        of: i32,
    }
    kernels {
        STRUCTURAL_SCORE = structural_score [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct StructuralSpreadArguments {
        predictions: Predictions,
        /// `[images][h][w][3]`: added to; written by structural_spread_losses.
        d_prediction: *mut f32,
        /// `[images][floats_each]`
        floats: *mut f32,
        /// SSIM: `[images][patches]` of structural_windows.
        partials: *const f64,
        /// `[images]` of structural_score; null for SSIM.
        scores: *const f64,
        /// `[images][LEVELS]` of structural_score; null for SSIM.
        factors: *const f32,
        /// `[images][patches of the finest level]`
        shares: *mut f64,
        scalars: *const DeviceScalars,
        /// Share in the loss of a window's distance 1 - similarity (SSIM), or of an image's.
        share: f64,
        /// The gradient of the loss with respect to an image's similarity, without the scales.
        slope: f64,
        /// Share in the pixel losses' mean of a value.
        per_value: f64,
        /// The first patch of the launch.
        first: i32,
        floats_each: i32,
        /// 1: shares are added to those that are there.
        adds: i32,
        /// Weight of the L1 loss.
        l1: f32,
        /// Weight of the Charbonnier loss.
        charbonnier: f32,
        /// Weight of the MSE loss.
        mse: f32,
    }
    kernels {
        STRUCTURAL_SPREAD = structural_spread [BLOCK_THREADS, BLOCK_THREADS];
        STRUCTURAL_SPREAD_LOSSES = structural_spread_losses [BLOCK_THREADS, BLOCK_THREADS];
    }

    /// What reduce_sums does with the partial sums of one operation.
    struct SumJob {
        /// `[blocks][count]`; null for a loss.
        partials: *const Partial,
        /// `[blocks]` of a loss; else null.
        loss_partials: *const f64,
        /// `[count]`: totals of the slices before, which are added; or null.
        before: *const Total,
        /// `[count]`: the totals that are written; or null.
        totals: *mut Total,
        /// `[1]`: the sum of a loss over the slices before, which is added; or null.
        loss_before: *const f64,
        /// `[1]`: the sum of a loss, or the metrics, that are written; or null.
        loss_total: *mut f64,
        /// `[count]`, and a Nano block's `[16]` of gamma after them; or null.
        gradients: *mut Gradient,
        /// TO_NANO_BLOCK: the parameters that the gradients belong to; else null.
        parameters: *const Parameter,
        /// TO_TOTALS ... LOSS_ADDED.
        kind: i32,
        /// Sums; values that the mean is over of a loss.
        count: i32,
        /// Blocks that have partial sums.
        blocks: i32,
        /// Where the job's own blocks end in the grid of reduce_sums.
        end: i32,
    }
    kernels {}

    struct ReduceSumsArguments {
        scalars: *const DeviceScalars,
        /// The jobs' blocks follow one another in the grid; jobs of no block fill the rest.
        jobs: [SumJob; SUM_JOBS],
    }
    kernels {
        REDUCE_SUMS = reduce_sums [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct GradientSquaresArguments {
        /// `[count]`
        gradients: *const Gradient,
        /// `[blocks]`
        partials: *mut f64,
        scalars: *const DeviceScalars,
        count: i32,
        /// Gradients of a block.
        each: i32,
    }
    kernels {
        GRADIENT_SQUARES = gradient_squares [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct AddGradientsArguments {
        /// `[count]`: this rank's own gradients.
        own: *const Gradient,
        /// `[ranks - 1][stride]`, of which `count` each: those of the other ranks, in their order.
        received: *const Gradient,
        /// `[count]`: the sums of the rounds before; not read in the first one.
        sums: *const Gradient,
        /// `[count]`: `sums`, or `own` in the last round.
        out: *mut Gradient,
        count: i32,
        stride: i32,
        ranks: i32,
        /// Number of this rank.
        rank: i32,
        /// 1 in the first round of an iteration.
        first: i32,
    }
    kernels {
        ADD_GRADIENTS = add_gradients [BLOCK_THREADS, BLOCK_THREADS];
    }

    struct AdamArguments {
        /// `[count]`, as are the four after it.
        parameters: *mut Parameter,
        gradients: *const Gradient,
        moment1: *mut f32,
        moment2: *mut f32,
        ema: *mut f32,
        /// `[blocks]`, from gradient_squares.
        squares: *const f64,
        /// Loss (read), norm, skipped (written).
        metrics: *mut f64,
        scalars: *const DeviceScalars,
        count: i32,
        blocks: i32,
        beta1: f32,
        /// 1 - beta1, formed in f64.
        rest1: f32,
        beta2: f32,
        /// 1 - beta2, formed in f64.
        rest2: f32,
        epsilon: f32,
        /// Adam's weight decay, which is added to the gradient; AdamW's is in the scalars.
        penalty: f32,
    }
    kernels {
        ADAM = adam [BLOCK_THREADS, BLOCK_THREADS];
    }
}

c_type!(NanoParameters, "NanoParameters");
c_type!(ReconstructParameters, "ReconstructParameters");
c_type!(ReconstructGradients, "ReconstructGradients");
c_type!(Predictions, "Predictions");
