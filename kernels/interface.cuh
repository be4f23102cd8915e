// Generated from src/backend/cuda/constants.rs and signatures.rs; do not edit. To write it
// again: scripts/build_kernels.py, or
// PARAGON_WRITE_INTERFACE=1 cargo test --lib kernel_interface
#pragma once

// Threads of a block of nearly every kernel: eight warps.
#define BLOCK_THREADS 256
// Features of the network that the kernels are written for; no other number is supported.
#define FEATURES 16
// Rows and columns of a tile of LQ pixels, which a block takes at a time.
#define TILE 16
// Taps of a 3x3 convolution.
#define TAPS 9
// Bytes that every pixel of a convolution's tile in f32 has more than its features, against bank
// conflicts in shared memory.
#define BANK_GAP 16
// Where the odd columns of a row of its tile in half precision begin, in pixels. The even ones,
// nine at most, are ahead of them; the gap is against bank conflicts.
#define ODD_COLUMNS 10
// Hidden channels of a Nano block.
#define HIDDEN 32
// 16-byte pieces that a plane of hidden channels has more than its pixels, so that the four
// planes lie in different banks.
#define PLANE_GAP 2
// Offset of conv1's weights `[HIDDEN][FEATURES]` (conv1 and conv2 are the 1x1 convolutions)
// among the f32 values of a Nano block's parameters without gamma. Partial sums, and the
// weights in shared memory of the kernels without tensor cores, have this order.
#define NANO_W1 0
// conv1's biases in the same order.
#define NANO_B1 512
// The depthwise weights `[HIDDEN][TAPS]`.
#define NANO_DW 544
// The depthwise biases.
#define NANO_DB 832
// conv2's weights `[FEATURES][HIDDEN]`.
#define NANO_W2 864
// conv2's biases.
#define NANO_B2 1376
// How many there are. Gamma has no sums: its gradient follows from them.
#define NANO_COUNT 1392
// Bytes of the weights that both kernels with tensor cores keep in shared memory (struct
// NanoWeights): conv1 as halves, conv2 as operands, nine depthwise taps and their bias with
// zeros after them, conv1's biases. A multiprocessor with 100 KiB must hold two blocks of the
// backward kernel.
#define MMA_WEIGHTS 3496
// Hidden channels that the forward kernel without tensor cores computes at a time.
#define PLAIN_FORWARD 16
// Hidden channels that the backward kernel without tensor cores computes at a time.
#define PLAIN_BACKWARD 8
// f32 elements of the LQ pixels that the base of a tile is made of: four more on each side,
// one that the blur sees and three that sharpening sees.
#define BASE_RAW 1728
// f32 elements of those pixels once they are sharpened along rows.
#define BASE_ROWS 1296
// f32 elements of the base's cells, RGB and what sharpening adds to it.
#define BASE_CELLS 2160
// f32 elements of the base's taps, four for each HR place inside an LQ pixel (scale 8 at most).
#define BASE_TAPS 32
// Entries of a group of slots of the folded convolution (folded_conv.cuh).
#define ENTRIES 53
// Those of them that belong to edges.
#define EDGE_ENTRIES 28
// Elements of an entry: `[FEATURES][16 slots]`.
#define ENTRY 256
// Sums of a group of slots over all pixels: 25 entries and the biases.
#define INTERIOR_SUMS 6416
// Sums of a group of slots over the pixels of one edge.
#define EDGE_SUMS 1840
// Sums of a group of slots over all pixels and all four edges.
#define GROUP_SUMS 13776
// 16-byte words of an entry as the lanes of a warp take it.
#define FRAGMENT 32
// 16-byte words of the 25 taps of a group as operands of the forward pass.
#define FORWARD_TAPS 880
// The same of the backward pass.
#define BACKWARD_TAPS 672
// The same of all entries of a group, for both passes.
#define GROUP_FRAGMENTS 3344
// Rows and columns of a tile with the two pixels on each side that 5x5 taps reach.
#define REACHED 20
// 16-byte pieces of one plane (eight halves a pixel) of such a tile. The gap puts the second
// plane into other banks than the first.
#define HALF_PLANE 404
// The same for f32 (four a pixel).
#define FLOAT_PLANE 401
// Warps of a block of the reconstruction's backward kernel with tensor cores that sum pixels of an edge.
#define EDGE_WARPS 4
// Bytes of shared memory of such a warp: 20 pixels of features, 16 of the gradient, and its sums.
#define EDGE_BYTES 8512
// `part` of reconstruct_back: compute the gradient of the features.
#define PART_DATA 1
// `part` of reconstruct_back: compute the sums.
#define PART_SUMS 2
// Bytes of shared memory of a tile of matrix_conv: 16 inputs with a border of one pixel.
#define MATRIX_CONV_TILE 15552
// The same of matrix_conv_narrow, whose tiles have twice the rows.
#define MATRIX_CONV_NARROW_TILE 29376
// Bytes of shared memory of the tiles of matrix_conv_weights: 32 inputs with a border of one pixel,
// and 32 gradients.
#define MATRIX_CONV_WEIGHT_TILES 46400
// Bytes of the packed weights of 32 inputs and 32 outputs of matrix_pointwise.
#define MATRIX_POINTWISE_SHARE 2048
// Most groups of 32 outputs of a launch of matrix_pointwise, and of matrix_pointwise_deep.
#define MATRIX_POINTWISE_GROUPS 8
#define MATRIX_POINTWISE_DEEP_GROUPS 2
// Pixels that a block of both takes at a time.
#define MATRIX_POINTWISE_PIXELS 256
// Sums of a warp of matrix_pointwise_weights for each lane: 32 x 64 weights and 64 biases.
#define MATRIX_POINTWISE_SUMS 72
// Features that stream_block.cu takes.
#define STREAM_FEATURES 32
// Bytes of shared memory of its hidden values: 32 channels with a border of one pixel. A
// multiprocessor with 100 KiB must hold two blocks.
#define STREAM_PLANES 21120
// Bytes of its weights (struct StreamWeights): depthwise taps and biases with zeros after them,
// fuse, proj and out as operands, their biases, gamma.
#define STREAM_WEIGHTS 25024
// The first part of them.
#define STREAM_DEPTHWISE_WEIGHTS 7744
// Bytes of proj and fuse as operands of the backward pass (struct StreamTurnedWeights), and the part
// of fuse.
#define STREAM_TURNED_WEIGHTS 12288
#define STREAM_TURNED_FUSE 4096
// Bytes of shared memory of 32 channels with a border of three pixels.
#define STREAM_REACHED_PLANES 31104
// Rows of the pixels that a block of the structural losses takes.
#define PATCH_H 32
// Columns of the pixels that a block of the structural losses takes.
#define PATCH_W 32
// Width of the SSIM window.
#define WINDOW 11
// Rows that the windows on a block's pixels reach.
#define REACH_H 42
// Columns that the windows on a block's pixels reach.
#define REACH_W 42
// f32 elements between two rows of them in shared memory; the gap is against bank conflicts.
#define REACH_ROW 44
// Levels of MS-SSIM.
#define LEVELS 5
// f32 slopes of a patch: three of every window.
#define SLOPES 3072
// Jobs of one launch of reduce_sums at most.
#define SUM_JOBS 12
// Neighbouring sums that a block of reduce_sums adds.
#define SUM_LANES 32
// Groups of as many threads, each of which adds its share of the partial sums.
#define SUM_GROUPS 8
// What becomes of the totals (`SumJob::kind`): they stay for a later launch.
#define TO_TOTALS 0
// They become the gradients of as many parameters, one after another.
#define TO_GRADIENTS 1
// They become the gradients of a Nano block (nano_block.cu).
#define TO_NANO_BLOCK 2
// The sum of a loss is kept for the next slice (loss.cu).
#define LOSS_TO_TOTAL 3
// The mean of a loss goes to the metrics, where it begins the micro-batch's.
#define LOSS_TO_METRICS 4
// They replace as many f32 values, whatever the micro-batches before left there.
#define TO_VALUES 5
// They are added to gradients that another operation of the same micro-batch left there.
#define TO_ADDED 6
// The mean of a loss is added to what another loss of the same micro-batch left there.
#define LOSS_ADDED 7
// Functions of single values (`ChannelFunction::kind`): none.
#define FUNCTION_NONE 0
// max(z, 0)
#define FUNCTION_RELU 1
// z, or slope x z where z is negative.
#define FUNCTION_LEAKY_RELU 2
// The same with a slope for each channel.
#define FUNCTION_PRELU 3
// z x sigmoid(z)
#define FUNCTION_SILU 4
// The exact GELU.
#define FUNCTION_GELU 5
// (z - mean) x factor, of RGB.
#define FUNCTION_NORMALIZE 6
// Augmentation: mirror left-right, applied first.
#define HFLIP 1u
// Augmentation: mirror top-bottom, applied second.
#define VFLIP 2u
// Augmentation: swap rows and columns, applied last.
#define TRANSPOSE 4u
// Sharpening taps of the base, over rows and columns at LQ size.
CONSTANT float SHARP_TAPS[7] = {-0.03125f, 0.0f, 0.28125f, 0.5f, 0.28125f, 0.0f, -0.03125f};
// Blur taps of the base, over rows and columns at HR size.
CONSTANT float BLUR_TAPS[5] = {0.0625f, 0.25f, 0.375f, 0.25f, 0.0625f};
// Charbonnier's epsilon, under the root.
#define CHARBONNIER_EPSILON 1e-12f
// Luma weights of BT.601.
CONSTANT float LUMA[3] = {0.299f, 0.587f, 0.114f};
// The SSIM window, a Gaussian of deviation 1.5, from its edge to its middle.
CONSTANT float GAUSSIAN[6] = {0.0010283801f, 0.007598758f, 0.036000773f, 0.10936069f, 0.21300554f, 0.26601171f};
// SSIM's constants.
#define SSIM_C1 0.0001f
// SSIM's constants.
#define SSIM_C2 0.0009f
// MS-SSIM's exponents, finest level first.
CONSTANT double MS_SSIM_EXPONENTS[5] = {0.0448, 0.2856, 0.3001, 0.2363, 0.1333};

// The numbers of one iteration that change from step to step. They lie in device memory, so
// that a captured graph stays valid.
struct DeviceScalars {
    // Learning rate / bias correction of the first moment.
    float step_size;
    // Square root of the bias correction of the second moment.
    float root_correction;
    // 1 - learning rate x weight decay (AdamW).
    float keep;
    // Weight of the old average.
    float ema_decay;
    // 1 - ema_decay, formed in f64.
    float ema_rest;
    // Largest gradient norm; infinity for none.
    float clip;
    // fp16: every gradient carries this factor until the optimizer divides by it; 1 otherwise.
    float loss_scale;
    // 1 / micro-batches of an iteration.
    float micro_scale;
    // 1: gradients and loss add to those of the micro-batches before.
    u32 accumulate;
    u32 reserved[7];
};
static_assert(sizeof(DeviceScalars) == 64, "the layout that Rust writes");

struct SetScalarsArguments {
    DeviceScalars* out;
    DeviceScalars values;
};
static_assert(sizeof(SetScalarsArguments) == 72, "the layout that Rust writes");
typedef SetScalarsArguments set_scalars_arguments;
enum { set_scalars_threads = 32 };

struct UnpackArguments {
    // `[images][h][w][3]` of a staged batch.
    const u8* lq;
    // `[images]`
    const u8* codes;
    // `[images][h][w][3]`, in 0..=1.
    float* output;
    int images;
    int h;
    int w;
};
static_assert(sizeof(UnpackArguments) == 40, "the layout that Rust writes");
typedef UnpackArguments unpack_arguments;
enum { unpack_threads = 256 };

struct ConvArguments {
    // `[images][h][w][16]`, 16-byte aligned, as are all activations.
    const act* input;
    // `[16][16][3][3]`
    const float* weight;
    // `[16]`
    const float* bias;
    // `[images][h][w][16]`
    act* output;
    int images;
    int h;
    int w;
};
static_assert(sizeof(ConvArguments) == 48, "the layout that Rust writes");
typedef ConvArguments conv_arguments;
enum { conv_threads = 256 };

struct ConvDataArguments {
    // `[images][h][w][16]`
    const act* d_output;
    // `[16][16][3][3]`
    const float* weight;
    // `[images][h][w][16]`
    act* d_input;
    int images;
    int h;
    int w;
};
static_assert(sizeof(ConvDataArguments) == 40, "the layout that Rust writes");
typedef ConvDataArguments conv_data_arguments;
enum { conv_data_threads = 256 };

struct ConvWeightsArguments {
    // `[images][h][w][16]`
    const act* input;
    // `[images][h][w][16]`
    const act* d_output;
    // `[blocks][16 x 16 x 9 weights, 16 biases]`
    float* partials;
    int images;
    int h;
    int w;
};
static_assert(sizeof(ConvWeightsArguments) == 40, "the layout that Rust writes");
typedef ConvWeightsArguments conv_weights_arguments;
enum { conv_weights_threads = 256 };

struct ConvGradientsArguments {
    // `[images][h][w][16]`
    const act* input;
    // `[images][h][w][16]`
    const act* d_output;
    // `[16][16][3][3]`
    const float* weight;
    // `[images][h][w][16]`
    act* d_input;
    // `[blocks][16 x 16 x 9 weights, 16 biases]`
    float* partials;
    int images;
    int h;
    int w;
};
static_assert(sizeof(ConvGradientsArguments) == 56, "the layout that Rust writes");
typedef ConvGradientsArguments conv_gradients_arguments;
enum { conv_gradients_threads = 256 };

struct ConvRgbArguments {
    // `[images][h][w][3]`; written instead of read where `patches` are given.
    float* input;
    // `[16][3][3][3]`
    const float* weight;
    // `[16]`
    const float* bias;
    // `[images][h][w][16]`
    act* output;
    int images;
    int h;
    int w;
    // 1: the input is multiples of 1/255, which half precision holds exactly as integers.
    int units;
    // `[images][h][w][3]` of a staged batch, or null.
    const u8* patches;
    // `[images]`, or null.
    const u8* codes;
};
static_assert(sizeof(ConvRgbArguments) == 64, "the layout that Rust writes");
typedef ConvRgbArguments conv_rgb_arguments;
enum { conv_rgb_threads = 256 };

struct ConvRgbWeightsArguments {
    // `[images][h][w][3]`
    const float* input;
    // `[images][h][w][16]`
    const act* d_output;
    // `[blocks][16 x 27 weights, 16 biases]`
    float* partials;
    int images;
    int h;
    int w;
    // 1: the input is multiples of 1/255, which half precision holds exactly as integers.
    int units;
};
static_assert(sizeof(ConvRgbWeightsArguments) == 40, "the layout that Rust writes");
typedef ConvRgbWeightsArguments conv_rgb_weights_arguments;
enum { conv_rgb_weights_threads = 256 };

struct ConvRgbDataArguments {
    // `[images][h][w][16]`
    const act* d_output;
    // `[16][3][3][3]`
    const float* weight;
    // `[images][h][w][3]`
    float* d_input;
    int images;
    int h;
    int w;
};
static_assert(sizeof(ConvRgbDataArguments) == 40, "the layout that Rust writes");
typedef ConvRgbDataArguments conv_rgb_data_arguments;
enum { conv_rgb_data_threads = 256 };

// The parameters of a Nano block; conv1 and conv2 are 1x1, dw is depthwise 3x3.
struct NanoParameters {
    // conv1's weights `[32][16]`
    const float* w1;
    // `[32]`
    const float* b1;
    // The depthwise weights `[32][3][3]`
    const float* dw;
    // `[32]`
    const float* db;
    // conv2's weights `[16][32]`
    const float* w2;
    // `[16]`
    const float* b2;
    // LayerScale's factors `[16]`
    const float* gamma;
};
static_assert(sizeof(NanoParameters) == 56, "the layout that Rust writes");

struct NanoBlockArguments {
    NanoParameters parameters;
    // `[images][h][w][16]`
    const act* input;
    // `[images][h][w][16]`
    act* output;
    int images;
    int h;
    int w;
};
static_assert(sizeof(NanoBlockArguments) == 88, "the layout that Rust writes");
typedef NanoBlockArguments nano_block_arguments;
enum { nano_block_threads = 256 };
typedef NanoBlockArguments nano_block_plain_arguments;
enum { nano_block_plain_threads = 256 };

struct NanoBlockBackArguments {
    NanoParameters parameters;
    // `[images][h][w][16]`
    const act* input;
    // `[images][h][w][16]`
    const act* d_output;
    // `[images][h][w][16]`
    act* d_input;
    // `[blocks][NANO_COUNT]`
    float* partials;
    int images;
    int h;
    int w;
    // Tiles that a block takes one after another.
    int tiles;
};
static_assert(sizeof(NanoBlockBackArguments) == 104, "the layout that Rust writes");
typedef NanoBlockBackArguments nano_block_back_arguments;
enum { nano_block_back_threads = 256 };
typedef NanoBlockBackArguments nano_block_back_plain_arguments;
enum { nano_block_back_plain_threads = 256 };

// The two convolutions of the reconstruction and its gain.
struct ReconstructParameters {
    // up.0's weights `[features x scale^2][features][3][3]`
    const float* up_weight;
    // `[features x scale^2]`
    const float* up_bias;
    // conv_out's weights `[3][features][3][3]`
    const float* weight;
    // `[3]`
    const float* bias;
    // `[1]`
    const float* gain;
};
static_assert(sizeof(ReconstructParameters) == 40, "the layout that Rust writes");

// Their gradients, in the same shapes.
struct ReconstructGradients {
    float* up_weight;
    float* up_bias;
    float* weight;
    float* bias;
    float* gain;
};
static_assert(sizeof(ReconstructGradients) == 40, "the layout that Rust writes");

struct FoldConvArguments {
    ReconstructParameters parameters;
    // `[units][GROUP_SUMS]`; with half precision followed by `[units][GROUP_FRAGMENTS]`
    // 16-byte words of tensor core operands. A unit is a group of slots and a chunk of FEATURES
    // features.
    float* folded;
    int scale;
    // Features / FEATURES.
    int chunks;
};
static_assert(sizeof(FoldConvArguments) == 56, "the layout that Rust writes");
typedef FoldConvArguments fold_conv_arguments;
enum { fold_conv_threads = 256 };

struct UnfoldGradientsArguments {
    // `[units][INTERIOR_SUMS]`
    const TwoFloats* interior;
    // `[units][4][EDGE_SUMS]`
    const TwoFloats* edges;
    ReconstructParameters parameters;
    // As fold_conv made it.
    const float* folded;
    ReconstructGradients gradients;
    const DeviceScalars* scalars;
    int scale;
    // Features / FEATURES.
    int chunks;
};
static_assert(sizeof(UnfoldGradientsArguments) == 120, "the layout that Rust writes");
typedef UnfoldGradientsArguments unfold_gradients_arguments;
enum { unfold_gradients_threads = 256 };

struct ReconstructArguments {
    // As fold_conv made it.
    const float* folded;
    // `[1]`
    const float* gain;
    // The network's input `[images][h][w][3]`, which the base is made of.
    const float* input;
    // `[images][h][w][features]`
    const act* features;
    // `[images][h x scale][w x scale][3]`: the prediction; less its target where that is
    // given; the gradient of the losses where `loss_partials` are given.
    float* output;
    // HR patches `[images][h x scale][w x scale][3]` of a staged batch, or null.
    const u8* target;
    // `[images]`, or null.
    const u8* codes;
    // `[blocks]`, or null.
    double* loss_partials;
    // Read with `loss_partials` alone.
    const DeviceScalars* scalars;
    int images;
    int h;
    int w;
    int scale;
    // Strength of the base's sharpening; 0 for none.
    float alpha;
    // Values of the whole micro-batch, which the losses' mean is over.
    int whole;
    // Weight of the L1 loss.
    float l1;
    // Weight of the Charbonnier loss.
    float charbonnier;
    // Weight of the MSE loss.
    float mse;
    // Features / FEATURES.
    int chunks;
};
static_assert(sizeof(ReconstructArguments) == 112, "the layout that Rust writes");
typedef ReconstructArguments reconstruct_arguments;
enum { reconstruct_threads = 256 };
typedef ReconstructArguments reconstruct_x2_arguments;
enum { reconstruct_x2_threads = 256 };
typedef ReconstructArguments reconstruct_x2_deep_arguments;
enum { reconstruct_x2_deep_threads = 256 };

struct ReconstructBackArguments {
    // As fold_conv made it.
    const float* folded;
    // `[1]`; half precision has the gain in its operands and does not read it.
    const float* gain;
    // `[images][h][w][features]`
    const act* features;
    // `[images][h x scale][w x scale][3]`
    const float* d_output;
    // `[images][h][w][features]`
    act* d_features;
    // `[blocks][units][INTERIOR_SUMS]`
    float* partials;
    // `[edge_blocks][units][4][EDGE_SUMS]`
    float* edge_partials;
    int images;
    int h;
    int w;
    int scale;
    // PART_DATA, PART_SUMS or both.
    int part;
    int edge_blocks;
    // Features / FEATURES.
    int chunks;
};
static_assert(sizeof(ReconstructBackArguments) == 88, "the layout that Rust writes");
typedef ReconstructBackArguments reconstruct_back_arguments;
enum { reconstruct_back_threads = 256 };
typedef ReconstructBackArguments reconstruct_back_x2_arguments;
enum { reconstruct_back_x2_threads = 256 };

struct BaseBackArguments {
    // `[images][h x scale][w x scale][3]`
    const float* d_output;
    // `[images][h][w][3]`
    float* d_input;
    int images;
    int h;
    int w;
    int scale;
    float alpha;
};
static_assert(sizeof(BaseBackArguments) == 40, "the layout that Rust writes");
typedef BaseBackArguments base_back_arguments;
enum { base_back_threads = 256 };

struct PixelLossArguments {
    // `[pixels][3]`
    const float* prediction;
    // `[pixels][3]`; may be the same memory as the prediction.
    float* d_prediction;
    // `[pixels][3]`, or null: the prediction then holds prediction - target.
    const float* target;
    // `[blocks]`
    double* partials;
    const DeviceScalars* scalars;
    // HR pixels of all images.
    int pixels;
    // Values of the whole micro-batch, which the mean is over.
    int whole;
    // Weight of the L1 loss.
    float l1;
    // Weight of the Charbonnier loss.
    float charbonnier;
    // Weight of the MSE loss.
    float mse;
};
static_assert(sizeof(PixelLossArguments) == 64, "the layout that Rust writes");
typedef PixelLossArguments pixel_loss_arguments;
enum { pixel_loss_threads = 256 };

// Predictions and their targets, h and w HR sizes: either `target_bytes` and `codes`, and
// `values` hold prediction - target; or `target_floats`, and `values` hold the prediction.
struct Predictions {
    // `[images][h][w][3]`
    const float* values;
    // `[images][h][w][3]` of a staged batch, or null.
    const u8* target_bytes;
    // `[images]`, or null.
    const u8* codes;
    // `[images][h][w][3]`, or null.
    const float* target_floats;
    int h;
    int w;
};
static_assert(sizeof(Predictions) == 40, "the layout that Rust writes");

struct StructuralPoolArguments {
    Predictions predictions;
    // `[images][floats_each]`
    float* floats;
    // The level that is made, from 1.
    int level;
    // Of one image, in all its levels (struct Level).
    int floats_each;
};
static_assert(sizeof(StructuralPoolArguments) == 56, "the layout that Rust writes");
typedef StructuralPoolArguments structural_pool_arguments;
enum { structural_pool_threads = 256 };

struct StructuralWindowsArguments {
    Predictions predictions;
    // `[images][floats_each]`
    float* floats;
    // `[images][patches of all levels]`
    double* partials;
    // 1: similarity includes the luminance term (SSIM).
    int luminance;
    int floats_each;
};
static_assert(sizeof(StructuralWindowsArguments) == 64, "the layout that Rust writes");
typedef StructuralWindowsArguments structural_windows_arguments;
enum { structural_windows_threads = 256 };

struct StructuralScoreArguments {
    // `[images][patches]`
    const double* partials;
    // `[images]`
    double* scores;
    // `[images][LEVELS]`
    float* factors;
    const DeviceScalars* scalars;
    // HR height.
    int h;
    // HR width.
    int w;
    int levels;
    // Of all levels.
    int patches;
    // Weight of the loss.
    float weight;
    // Images of the whole micro-batch.
    int of;
};
static_assert(sizeof(StructuralScoreArguments) == 56, "the layout that Rust writes");
typedef StructuralScoreArguments structural_score_arguments;
enum { structural_score_threads = 256 };

struct StructuralSpreadArguments {
    Predictions predictions;
    // `[images][h][w][3]`: added to; written by structural_spread_losses.
    float* d_prediction;
    // `[images][floats_each]`
    float* floats;
    // SSIM: `[images][patches]` of structural_windows.
    const double* partials;
    // `[images]` of structural_score; null for SSIM.
    const double* scores;
    // `[images][LEVELS]` of structural_score; null for SSIM.
    const float* factors;
    // `[images][patches of the finest level]`
    double* shares;
    const DeviceScalars* scalars;
    // Share in the loss of a window's distance 1 - similarity (SSIM), or of an image's.
    double share;
    // The gradient of the loss with respect to an image's similarity, without the scales.
    double slope;
    // Share in the pixel losses' mean of a value.
    double per_value;
    // The first patch of the launch.
    int first;
    int floats_each;
    // 1: shares are added to those that are there.
    int adds;
    // Weight of the L1 loss.
    float l1;
    // Weight of the Charbonnier loss.
    float charbonnier;
    // Weight of the MSE loss.
    float mse;
};
static_assert(sizeof(StructuralSpreadArguments) == 144, "the layout that Rust writes");
typedef StructuralSpreadArguments structural_spread_arguments;
enum { structural_spread_threads = 256 };
typedef StructuralSpreadArguments structural_spread_losses_arguments;
enum { structural_spread_losses_threads = 256 };

// What reduce_sums does with the partial sums of one operation.
struct SumJob {
    // `[blocks][count]`; null for a loss.
    const float* partials;
    // `[blocks]` of a loss; else null.
    const double* loss_partials;
    // `[count]`: totals of the slices before, which are added; or null.
    const TwoFloats* before;
    // `[count]`: the totals that are written; or null.
    TwoFloats* totals;
    // `[1]`: the sum of a loss over the slices before, which is added; or null.
    const double* loss_before;
    // `[1]`: the sum of a loss, or the metrics, that are written; or null.
    double* loss_total;
    // `[count]`, and a Nano block's `[16]` of gamma after them; or null.
    float* gradients;
    // TO_NANO_BLOCK: the parameters that the gradients belong to; else null.
    const float* parameters;
    // TO_TOTALS ... LOSS_ADDED.
    int kind;
    // Sums; values that the mean is over of a loss.
    int count;
    // Blocks that have partial sums.
    int blocks;
    // Where the job's own blocks end in the grid of reduce_sums.
    int end;
};
static_assert(sizeof(SumJob) == 80, "the layout that Rust writes");

struct ReduceSumsArguments {
    const DeviceScalars* scalars;
    // The jobs' blocks follow one another in the grid; jobs of no block fill the rest.
    SumJob jobs[12];
};
static_assert(sizeof(ReduceSumsArguments) == 968, "the layout that Rust writes");
typedef ReduceSumsArguments reduce_sums_arguments;
enum { reduce_sums_threads = 256 };

struct GradientSquaresArguments {
    // `[count]`
    const float* gradients;
    // `[blocks]`
    double* partials;
    const DeviceScalars* scalars;
    int count;
    // Gradients of a block.
    int each;
};
static_assert(sizeof(GradientSquaresArguments) == 32, "the layout that Rust writes");
typedef GradientSquaresArguments gradient_squares_arguments;
enum { gradient_squares_threads = 256 };

struct AddGradientsArguments {
    // `[count]`: this rank's own gradients.
    const float* own;
    // `[ranks - 1][stride]`, of which `count` each: those of the other ranks, in their order.
    const float* received;
    // `[count]`: the sums of the rounds before; not read in the first one.
    const float* sums;
    // `[count]`: `sums`, or `own` in the last round.
    float* out;
    int count;
    int stride;
    int ranks;
    // Number of this rank.
    int rank;
    // 1 in the first round of an iteration.
    int first;
};
static_assert(sizeof(AddGradientsArguments) == 56, "the layout that Rust writes");
typedef AddGradientsArguments add_gradients_arguments;
enum { add_gradients_threads = 256 };

struct AdamArguments {
    // `[count]`, as are the four after it.
    float* parameters;
    const float* gradients;
    float* moment1;
    float* moment2;
    float* ema;
    // `[blocks]`, from gradient_squares.
    const double* squares;
    // Loss (read), norm, skipped (written).
    double* metrics;
    const DeviceScalars* scalars;
    int count;
    int blocks;
    float beta1;
    // 1 - beta1, formed in f64.
    float rest1;
    float beta2;
    // 1 - beta2, formed in f64.
    float rest2;
    float epsilon;
    // Adam's weight decay, which is added to the gradient; AdamW's is in the scalars.
    float penalty;
};
static_assert(sizeof(AdamArguments) == 96, "the layout that Rust writes");
typedef AdamArguments adam_arguments;
enum { adam_threads = 256 };

// Channels of a buffer that a kernel reads.
struct View {
    // Activations, or null.
    const act* values;
    // f32, where `values` is null.
    const float* floats;
    // Channels of a pixel.
    int stride;
    // The first channel.
    int first;
};
static_assert(sizeof(View) == 24, "the layout that Rust writes");

// Channels of a buffer that a kernel writes.
struct Place {
    // Activations, or null.
    act* values;
    // f32, where `values` is null.
    float* floats;
    // Channels of a pixel.
    int stride;
    // The first channel.
    int first;
    // 1: added to what is there.
    int add;
    int reserved;
};
static_assert(sizeof(Place) == 32, "the layout that Rust writes");

// A function of single values.
struct ChannelFunction {
    // `[channels]` of PReLU, or null.
    const float* slopes;
    // FUNCTION_NONE ... FUNCTION_NORMALIZE.
    int kind;
    // Channels, without those that fill the last group.
    int channels;
    // LeakyReLU's slope.
    float slope;
    // FUNCTION_NORMALIZE: (z - mean) x factor.
    float mean[3];
    float factor;
    int reserved;
};
static_assert(sizeof(ChannelFunction) == 40, "the layout that Rust writes");

struct PlainConvArguments {
    View input;
    Place output;
    // The convolution's input before `back`.
    View z;
    // Applied to the input.
    ChannelFunction function;
    // Whose derivative at z the gradient is multiplied with; FUNCTION_NONE for none.
    ChannelFunction back;
    // `[groups x outputs][inputs][kernel][kernel]`; transposed `[groups x inputs][outputs]...`
    const float* weight;
    // `[groups x outputs]`, or null.
    const float* bias;
    // A factor of weights and biases, or null.
    const float* gain;
    // `[blocks of pixels][groups x outputs]`: the gradient of back's slopes; or null.
    float* slope_partials;
    int images;
    int h;
    int w;
    // Inputs of a group.
    int inputs;
    // Outputs of a group.
    int outputs;
    int groups;
    // Taps along each side.
    int kernel;
    // Pixels from tap to tap.
    int dilation;
    // 1: the gradient of the input, whose inputs are the convolution's outputs.
    int transposed;
    // log2 of the inputs that are in shared memory at a time.
    int chunk_bits;
    // Eights of outputs of a block: 1, 2, 4 or 8.
    int octets;
    // Blocks for the outputs of a group.
    int slabs;
    // Outputs of all groups, and the channels after them that are filled with zeros.
    int filled;
    int reserved;
};
static_assert(sizeof(PlainConvArguments) == 248, "the layout that Rust writes");
typedef PlainConvArguments plain_conv_arguments;
enum { plain_conv_threads = 256 };

struct PlainConvWeightsArguments {
    View input;
    View d_output;
    // Applied to the input.
    ChannelFunction function;
    // `[splits][weights, biases]`
    float* partials;
    int images;
    int h;
    int w;
    // Inputs of a group.
    int inputs;
    // Outputs of a group.
    int outputs;
    int groups;
    int kernel;
    int dilation;
    // Fours of outputs of a block: 1, 2, 4, 8 or 16.
    int quads;
    // Blocks for the outputs of a group.
    int output_tiles;
    // Inputs of a block: 16 or, for 1x1, a multiple of it.
    int tile_inputs;
    // Blocks for the inputs of a group.
    int input_tiles;
    // Blocks for the taps.
    int chunks;
    // Blocks that share the pixels.
    int splits;
};
static_assert(sizeof(PlainConvWeightsArguments) == 152, "the layout that Rust writes");
typedef PlainConvWeightsArguments plain_conv_weights_arguments;
enum { plain_conv_weights_threads = 256 };

struct PlainDepthwiseArguments {
    View input;
    Place output;
    // As in PlainConvArguments.
    View z;
    // As in PlainConvArguments.
    ChannelFunction function;
    // As in PlainConvArguments.
    ChannelFunction back;
    // `[channels][kernel][kernel]`
    const float* weight;
    // `[channels]`, or null.
    const float* bias;
    int images;
    int h;
    int w;
    int channels;
    int kernel;
    int dilation;
    // 1: the gradient of the input.
    int transposed;
    int reserved;
};
static_assert(sizeof(PlainDepthwiseArguments) == 208, "the layout that Rust writes");
typedef PlainDepthwiseArguments plain_depthwise_arguments;
enum { plain_depthwise_threads = 256 };

struct PlainDepthwiseWeightsArguments {
    View input;
    View d_output;
    // Applied to the input.
    ChannelFunction function;
    // `[splits][weights, biases]`
    float* partials;
    int images;
    int h;
    int w;
    int channels;
    int kernel;
    int dilation;
    // Channels of a block, an even number.
    int group;
    // Blocks that share the strips of pixels.
    int splits;
};
static_assert(sizeof(PlainDepthwiseWeightsArguments) == 128, "the layout that Rust writes");
typedef PlainDepthwiseWeightsArguments plain_depthwise_weights_arguments;
enum { plain_depthwise_weights_threads = 256 };

struct PlainActivateArguments {
    // `[pixels][stride]`
    const act* input;
    // `[pixels][stride]`
    act* output;
    ChannelFunction function;
    int pixels;
    int stride;
};
static_assert(sizeof(PlainActivateArguments) == 64, "the layout that Rust writes");
typedef PlainActivateArguments plain_activate_arguments;
enum { plain_activate_threads = 256 };

struct PlainActivateBackArguments {
    // `[pixels][stride]`, before the function.
    const act* input;
    // `[pixels][stride]`
    const act* d_output;
    // `[pixels][stride]`
    act* d_input;
    // `[blocks][channels]`: the gradient of the slopes; or null.
    float* partials;
    ChannelFunction function;
    int pixels;
    int stride;
    // 1: added to what is there.
    int add;
    int reserved;
};
static_assert(sizeof(PlainActivateBackArguments) == 88, "the layout that Rust writes");
typedef PlainActivateBackArguments plain_activate_back_arguments;
enum { plain_activate_back_threads = 256 };

struct PlainGateArguments {
    // `[pixels][stride]`, without b `[pixels][2 x stride]`.
    const act* a;
    // `[pixels][stride]`, or null.
    const act* b;
    // `[pixels][stride]`
    act* output;
    int pixels;
    int stride;
    // Without b: the largest magnitude.
    float limit;
    int reserved;
};
static_assert(sizeof(PlainGateArguments) == 40, "the layout that Rust writes");
typedef PlainGateArguments plain_gate_arguments;
enum { plain_gate_threads = 256 };

struct PlainGateBackArguments {
    // As in PlainGateArguments.
    const act* a;
    // As in PlainGateArguments.
    const act* b;
    // `[pixels][stride]`
    const act* d_output;
    // In the shape of a.
    act* d_a;
    // `[pixels][stride]`, or null.
    act* d_b;
    int pixels;
    int stride;
    float limit;
    // 1: added to what is there.
    int add_a;
    // 1: added to what is there.
    int add_b;
    int reserved;
};
static_assert(sizeof(PlainGateBackArguments) == 64, "the layout that Rust writes");
typedef PlainGateBackArguments plain_gate_back_arguments;
enum { plain_gate_back_threads = 256 };

struct PlainCopyArguments {
    const act* from;
    act* to;
    int pixels;
    // Channels that are copied.
    int count;
    // Channels that are written: those after the copied ones with zeros.
    int filled;
    int from_stride;
    int from_first;
    int to_stride;
    int to_first;
    // 1: added to what is there.
    int add;
};
static_assert(sizeof(PlainCopyArguments) == 48, "the layout that Rust writes");
typedef PlainCopyArguments plain_copy_arguments;
enum { plain_copy_threads = 256 };

struct PlainSumArguments {
    // `[pixels][stride]`
    const act* a;
    // `[pixels][stride]`
    const act* b;
    // `[channels]`, or null for 1.
    const float* gamma;
    // `[pixels][stride]`; may be a.
    act* output;
    int pixels;
    int stride;
    int channels;
    int reserved;
};
static_assert(sizeof(PlainSumArguments) == 48, "the layout that Rust writes");
typedef PlainSumArguments plain_sum_arguments;
enum { plain_sum_threads = 256 };

struct PlainSumBackArguments {
    // `[pixels][stride]`; read with `partials` alone.
    const act* b;
    // `[pixels][stride]`
    const act* d_output;
    // `[channels]`, or null for 1.
    const float* gamma;
    // `[pixels][stride]`, or null.
    act* d_a;
    // `[pixels][stride]`, or null.
    act* d_b;
    // `[blocks][channels]`: the gradient of gamma; or null.
    float* partials;
    int pixels;
    int stride;
    int channels;
    // 1: added to what is there.
    int add_a;
    // 1: added to what is there.
    int add_b;
    int reserved;
};
static_assert(sizeof(PlainSumBackArguments) == 72, "the layout that Rust writes");
typedef PlainSumBackArguments plain_sum_back_arguments;
enum { plain_sum_back_threads = 256 };

struct PlainShuffleArguments {
    // `[images][h][w][stride]`
    const act* input;
    // `[images][h][w][3]`, or null.
    const float* base;
    // `[images][h x scale][w x scale][3]`
    float* output;
    // HR patches of a staged batch, or null.
    const u8* target;
    // `[images]`, or null.
    const u8* codes;
    int images;
    int h;
    int w;
    int scale;
    int stride;
    int reserved;
};
static_assert(sizeof(PlainShuffleArguments) == 64, "the layout that Rust writes");
typedef PlainShuffleArguments plain_shuffle_arguments;
enum { plain_shuffle_threads = 256 };

struct PlainShuffleBackArguments {
    // `[images][h x scale][w x scale][3]`
    const float* d_output;
    // `[images][h][w][stride]`
    act* d_input;
    // `[images][h][w][3]`, or null.
    float* d_base;
    int images;
    int h;
    int w;
    int scale;
    int stride;
    // 1: added to what is there.
    int add;
};
static_assert(sizeof(PlainShuffleBackArguments) == 48, "the layout that Rust writes");
typedef PlainShuffleBackArguments plain_shuffle_back_arguments;
enum { plain_shuffle_back_threads = 256 };

// The eight tensors of a Conv3XC from a to b channels.
struct ComposeWeights {
    // `[b][a]`
    const float* skip;
    // `[b]`
    const float* skip_bias;
    // `[2a][a]`
    const float* first;
    // `[2a]`
    const float* first_bias;
    // `[2b][2a][9]`
    const float* middle;
    // `[2b]`
    const float* middle_bias;
    // `[b][2b]`
    const float* last;
    // `[b]`
    const float* last_bias;
};
static_assert(sizeof(ComposeWeights) == 64, "the layout that Rust writes");

// Their gradients.
struct ComposeGradients {
    float* skip;
    float* skip_bias;
    float* first;
    float* first_bias;
    float* middle;
    float* middle_bias;
    float* last;
    float* last_bias;
};
static_assert(sizeof(ComposeGradients) == 64, "the layout that Rust writes");

struct ComposeTwoArguments {
    ComposeWeights weights;
    // `[b][2a][9]`: last after middle.
    float* two;
    // `[b][a][9]` and `[b]`, the gradient of the composed convolution; or null.
    const float* d_composed;
    // `[b][2a][9]`: the gradient of `two`; with d_composed alone.
    float* d_two;
    int cin;
    int cout;
};
static_assert(sizeof(ComposeTwoArguments) == 96, "the layout that Rust writes");
typedef ComposeTwoArguments compose_two_arguments;
enum { compose_two_threads = 256 };

struct ComposeConvArguments {
    ComposeWeights weights;
    // As compose_two made it.
    const float* two;
    // `[b][a][9]`, then `[b]`.
    float* output;
    int cin;
    int cout;
};
static_assert(sizeof(ComposeConvArguments) == 88, "the layout that Rust writes");
typedef ComposeConvArguments compose_conv_arguments;
enum { compose_conv_threads = 256 };

struct ComposeConvBackArguments {
    ComposeWeights weights;
    ComposeGradients gradients;
    // As compose_two made it.
    const float* two;
    // As compose_two made it.
    const float* d_two;
    // `[b][a][9]` and `[b]`
    const float* d_composed;
    const DeviceScalars* scalars;
    int cin;
    int cout;
};
static_assert(sizeof(ComposeConvBackArguments) == 168, "the layout that Rust writes");
typedef ComposeConvBackArguments compose_conv_back_arguments;
enum { compose_conv_back_threads = 256 };

struct PlainRmsNormArguments {
    // `[images][h][w][stride]`
    const act* input;
    // `[images][padded_h][padded_w][stride]`
    act* output;
    // `[channels]`
    const float* scale;
    // `[channels]`
    const float* bias;
    int images;
    int h;
    int w;
    int padded_h;
    int padded_w;
    int channels;
    int stride;
    float epsilon;
};
static_assert(sizeof(PlainRmsNormArguments) == 64, "the layout that Rust writes");
typedef PlainRmsNormArguments plain_rms_norm_arguments;
enum { plain_rms_norm_threads = 256 };

struct PlainRmsNormBackArguments {
    // `[images][h][w][stride]`
    const act* input;
    // `[images][padded_h][padded_w][stride]`
    const act* d_output;
    // `[images][h][w][stride]`, or null.
    act* d_input;
    // `[channels]`
    const float* scale;
    // `[blocks][2][channels]`
    float* partials;
    int images;
    int h;
    int w;
    int padded_h;
    int padded_w;
    int channels;
    int stride;
    float epsilon;
    // 1: added to what is there.
    int add;
    // Lanes that share a pixel, a power of two up to 32.
    int lanes;
};
static_assert(sizeof(PlainRmsNormBackArguments) == 80, "the layout that Rust writes");
typedef PlainRmsNormBackArguments plain_rms_norm_back_arguments;
enum { plain_rms_norm_back_threads = 256 };

struct PlainChannelSumsArguments {
    // `[images][pixels][stride]`
    const act* input;
    // `[images][pixels][stride]`, or null.
    const act* d_output;
    // `[images][blocks][2][stride]`
    float* partials;
    // Of an image.
    int pixels;
    int stride;
};
static_assert(sizeof(PlainChannelSumsArguments) == 32, "the layout that Rust writes");
typedef PlainChannelSumsArguments plain_channel_sums_arguments;
enum { plain_channel_sums_threads = 256 };

struct PlainChannelFactorsArguments {
    // As plain_channel_sums made them.
    const float* sums;
    // `[hidden][channels]`
    const float* down;
    // `[channels][hidden]`
    const float* up;
    // `[images][stride]`
    float* factors;
    // `[images][stride]`; with partials alone.
    float* d_means;
    // `[images][down, up]`: the gradients of the weights; or null.
    float* partials;
    // Of an image.
    int pixels;
    int stride;
    int channels;
    int hidden;
    // Of plain_channel_sums for an image.
    int blocks;
    int reserved;
};
static_assert(sizeof(PlainChannelFactorsArguments) == 72, "the layout that Rust writes");
typedef PlainChannelFactorsArguments plain_channel_factors_arguments;
enum { plain_channel_factors_threads = 256 };

struct PlainChannelScaleArguments {
    // `[images][pixels][stride]`
    const act* input;
    // `[images][stride]`
    const float* factors;
    // `[images][stride]`, or null.
    const float* d_means;
    // `[images][pixels][stride]`
    act* output;
    // Of an image.
    int pixels;
    int stride;
    // 1: added to what is there.
    int add;
    int reserved;
};
static_assert(sizeof(PlainChannelScaleArguments) == 48, "the layout that Rust writes");
typedef PlainChannelScaleArguments plain_channel_scale_arguments;
enum { plain_channel_scale_threads = 256 };

// The windows of an attention; a head has 16 channels.
struct WindowSizes {
    // Rows of an image.
    int h;
    // Columns of an image.
    int w;
    // Rows with padding, a multiple of `window`.
    int padded_h;
    // Columns with padding, a multiple of `window`.
    int padded_w;
    int heads;
    // Pixels along a side.
    int window;
    // Rows and columns by which windows are shifted, below `window`.
    int shift;
    // log2(e) / the root of 16.
    float factor;
};
static_assert(sizeof(WindowSizes) == 32, "the layout that Rust writes");

struct PlainWindowAttentionArguments {
    // `[images][padded_h][padded_w][3 x channels]`
    const act* qkv;
    // `[images][h][w][channels]`
    act* output;
    WindowSizes sizes;
};
static_assert(sizeof(PlainWindowAttentionArguments) == 48, "the layout that Rust writes");
typedef PlainWindowAttentionArguments plain_window_attention_arguments;
enum { plain_window_attention_threads = 256 };
typedef PlainWindowAttentionArguments matrix_window_attention_arguments;
enum { matrix_window_attention_threads = 256 };

struct PlainWindowAttentionBackArguments {
    // `[images][padded_h][padded_w][3 x channels]`
    const act* qkv;
    // `[images][h][w][channels]`
    const act* d_output;
    // `[images][padded_h][padded_w][3 x channels]`
    act* d_qkv;
    // `[images][padded_h][padded_w][heads][2]`
    float* statistics;
    WindowSizes sizes;
};
static_assert(sizeof(PlainWindowAttentionBackArguments) == 64, "the layout that Rust writes");
typedef PlainWindowAttentionBackArguments plain_window_attention_queries_arguments;
enum { plain_window_attention_queries_threads = 256 };
typedef PlainWindowAttentionBackArguments plain_window_attention_keys_arguments;
enum { plain_window_attention_keys_threads = 256 };
typedef PlainWindowAttentionBackArguments matrix_window_attention_queries_arguments;
enum { matrix_window_attention_queries_threads = 256 };
typedef PlainWindowAttentionBackArguments matrix_window_attention_keys_arguments;
enum { matrix_window_attention_keys_threads = 256 };

struct PlainTokenKeysArguments {
    // `[tokens][channels]`
    const float* dictionary;
    // `[16][channels]`
    const float* key_weight;
    // `[16]`
    const float* key_bias;
    // `[channels][channels]`
    const float* value_weight;
    // `[channels]`
    const float* value_bias;
    // `[tokens][16]`, then `[tokens][channels]`; with `centre` both again, of the centred
    // tokens.
    float* keys;
    int tokens;
    int channels;
    int centre;
    int reserved;
};
static_assert(sizeof(PlainTokenKeysArguments) == 64, "the layout that Rust writes");
typedef PlainTokenKeysArguments plain_token_keys_arguments;
enum { plain_token_keys_threads = 256 };

struct PlainTokenAttentionArguments {
    // As plain_token_keys made them.
    const float* keys;
    // `[pixels][16]`
    const act* query;
    // `[pixels][stride]`
    act* output;
    int pixels;
    int tokens;
    int channels;
    int stride;
    // log2(e) / the root of 16.
    float factor;
    int reserved;
};
static_assert(sizeof(PlainTokenAttentionArguments) == 48, "the layout that Rust writes");
typedef PlainTokenAttentionArguments plain_token_attention_arguments;
enum { plain_token_attention_threads = 256 };

struct PlainTokenAttentionBackArguments {
    // As plain_token_keys made them.
    const float* keys;
    // `[pixels][16]`
    const act* query;
    // `[pixels][stride]`
    const act* d_output;
    // `[pixels][16]`
    act* d_query;
    // `[pixels][tokens]`: the weights of the softmax.
    float* weights;
    // `[pixels][tokens]`: the gradients of the scores.
    float* d_scores;
    int pixels;
    int tokens;
    int channels;
    int stride;
    // log2(e) / the root of 16.
    float factor;
    int reserved;
};
static_assert(sizeof(PlainTokenAttentionBackArguments) == 72, "the layout that Rust writes");
typedef PlainTokenAttentionBackArguments plain_token_attention_back_arguments;
enum { plain_token_attention_back_threads = 256 };

struct PlainTokenGradientsArguments {
    // `[tokens][16]`
    const TwoFloats* d_keys;
    // `[channels][tokens]`
    const TwoFloats* d_values;
    // `[tokens][channels]`
    const float* dictionary;
    // `[16][channels]`
    const float* key_weight;
    // `[channels][channels]`
    const float* value_weight;
    float* d_dictionary;
    float* d_key_weight;
    float* d_key_bias;
    float* d_value_weight;
    float* d_value_bias;
    const DeviceScalars* scalars;
    int tokens;
    int channels;
    // 1 / the root of 16.
    float factor;
    int reserved;
};
static_assert(sizeof(PlainTokenGradientsArguments) == 104, "the layout that Rust writes");
typedef PlainTokenGradientsArguments plain_token_gradients_arguments;
enum { plain_token_gradients_threads = 256 };

// RMSNorm ahead of a 1x1 convolution, as in PlainRmsNormArguments.
struct PixelNorm {
    const float* scale;
    const float* bias;
    // `[images][h][w][inputs]` of the convolution: the normalised values, for the backward pass;
    // or null.
    act* output;
    // Rows and columns of an image that is normalised.
    int h;
    int w;
    float epsilon;
    int reserved;
};
static_assert(sizeof(PixelNorm) == 40, "the layout that Rust writes");

struct MatrixConvPackArguments {
    // `[outputs][inputs][kernel][kernel]`; transposed `[inputs][outputs]...`
    const float* weight;
    // A factor of the weights, or null.
    const float* gain;
    // In the order that matrix_conv.cu or matrix_pointwise.cu states.
    act* packed;
    int inputs;
    int outputs;
    // 1: the taps from the last.
    int transposed;
    // 3x3: blocks for the outputs, and how many outputs each has.
    int slabs;
    int slab_outputs;
    int reserved;
};
static_assert(sizeof(MatrixConvPackArguments) == 48, "the layout that Rust writes");
typedef MatrixConvPackArguments matrix_conv_pack_arguments;
enum { matrix_conv_pack_threads = 256 };
typedef MatrixConvPackArguments matrix_pointwise_pack_arguments;
enum { matrix_pointwise_pack_threads = 256 };

struct MatrixConvArguments {
    View input;
    Place output;
    // As in PlainConvArguments.
    View z;
    // As in PlainConvArguments.
    ChannelFunction function;
    // As in PlainConvArguments.
    ChannelFunction back;
    // matrix_pointwise_norm alone reads it; `input` is then the input of the norm.
    PixelNorm norm;
    // What the packing kernel made of the weights, and their gain.
    const act* packed;
    // `[outputs]`, or null.
    const float* bias;
    // A factor of the biases, or null.
    const float* gain;
    // `[blocks of pixels][outputs]`: the gradient of back's slopes; or null.
    float* slope_partials;
    int images;
    int h;
    int w;
    int inputs;
    int outputs;
    // Outputs, and the channels after them that are filled with zeros.
    int filled;
    // 3x3: blocks for the outputs.
    int slabs;
    // 1x1: the first output of the launch, in groups of 32.
    int first;
};
static_assert(sizeof(MatrixConvArguments) == 264, "the layout that Rust writes");
typedef MatrixConvArguments matrix_conv_arguments;
enum { matrix_conv_threads = 256 };
typedef MatrixConvArguments matrix_conv_narrow_arguments;
enum { matrix_conv_narrow_threads = 256 };
typedef MatrixConvArguments matrix_pointwise_arguments;
enum { matrix_pointwise_threads = 256 };
typedef MatrixConvArguments matrix_pointwise_norm_arguments;
enum { matrix_pointwise_norm_threads = 256 };
typedef MatrixConvArguments matrix_pointwise_deep_arguments;
enum { matrix_pointwise_deep_threads = 256 };

struct MatrixConvWeightsArguments {
    View input;
    View d_output;
    // Applied to the input.
    ChannelFunction function;
    // `[splits][weights, biases]`
    float* partials;
    int images;
    int h;
    int w;
    int inputs;
    int outputs;
    // Blocks for the inputs, 32 each.
    int input_tiles;
    // Blocks that share the pixels.
    int splits;
    int reserved;
};
static_assert(sizeof(MatrixConvWeightsArguments) == 128, "the layout that Rust writes");
typedef MatrixConvWeightsArguments matrix_conv_weights_arguments;
enum { matrix_conv_weights_threads = 256 };

struct MatrixPointwiseWeightsArguments {
    View input;
    View d_output;
    // Applied to the input.
    ChannelFunction function;
    // `[splits][weights, biases]`
    float* partials;
    int pixels;
    int inputs;
    int outputs;
    // 32s of inputs, and 64s of outputs, of a block.
    int part_inputs;
    int part_outputs;
    // Blocks for the inputs.
    int input_parts;
    // Pixels that a block has in shared memory, a multiple of 16.
    int tile;
    // Blocks that share the pixels.
    int splits;
};
static_assert(sizeof(MatrixPointwiseWeightsArguments) == 128, "the layout that Rust writes");
typedef MatrixPointwiseWeightsArguments matrix_pointwise_weights_arguments;
enum { matrix_pointwise_weights_threads = 256 };

// The parameters of a depthwise convolution.
struct StreamDepthwise {
    // `[channels][3][3]`
    const float* weight;
    // `[channels]`
    const float* bias;
};
static_assert(sizeof(StreamDepthwise) == 16, "the layout that Rust writes");

struct StreamBlockPackArguments {
    // Of 32 channels.
    StreamDepthwise near;
    // Of 32 channels.
    StreamDepthwise far;
    // Of 128 channels.
    StreamDepthwise gate;
    // `[32][64]`
    const float* fuse;
    const float* fuse_bias;
    // `[128][32]`
    const float* proj;
    const float* proj_bias;
    // `[32][64]`
    const float* out;
    const float* out_bias;
    // `[32]`
    const float* gamma;
    // STREAM_WEIGHTS bytes; for the backward pass STREAM_TURNED_WEIGHTS more.
    act* packed;
    // 1: for the backward pass.
    int back;
    int reserved;
};
static_assert(sizeof(StreamBlockPackArguments) == 120, "the layout that Rust writes");
typedef StreamBlockPackArguments stream_block_pack_arguments;
enum { stream_block_pack_threads = 256 };

struct StreamBlockArguments {
    // `[images][h][w][32]`
    const act* input;
    // The same shape; backward only, as everything but `output`.
    const act* d_output;
    // What the packing kernel made of the parameters.
    const act* packed;
    // `[images][h][w][32]`; forward only.
    act* output;
    // `[images][h][w][64]`
    act* both;
    // `[images][h][w][32]`
    act* t;
    // `[images][h][w][128]`
    act* p;
    // `[images][h][w][64]`
    act* m;
    // `[images][h][w][128]`: the gradient of gate's results.
    act* d_gate;
    int images;
    int h;
    int w;
    // The largest magnitude of a product.
    float limit;
};
static_assert(sizeof(StreamBlockArguments) == 88, "the layout that Rust writes");
typedef StreamBlockArguments stream_block_arguments;
enum { stream_block_threads = 256 };
typedef StreamBlockArguments stream_block_back_arguments;
enum { stream_block_back_threads = 256 };

struct StreamBlockProjBackArguments {
    // As in StreamBlockArguments, of the backward pass.
    const act* packed;
    // `[images][h][w][128]`: the gradient of gate's results.
    const act* d_gate;
    // `[images][h][w][128]`
    act* d_p;
    // `[images][h][w][32]`
    act* d_t;
    int images;
    int h;
    int w;
    int reserved;
};
static_assert(sizeof(StreamBlockProjBackArguments) == 48, "the layout that Rust writes");
typedef StreamBlockProjBackArguments stream_block_proj_back_arguments;
enum { stream_block_proj_back_threads = 256 };

struct StreamBlockInputBackArguments {
    // As in StreamBlockArguments, of the backward pass.
    const act* packed;
    // `[images][h][w][32]`
    const act* d_t;
    // `[images][h][w][32]`
    const act* d_output;
    // `[images][h][w][64]`
    act* d_both;
    // `[images][h][w][32]`
    act* d_input;
    int images;
    int h;
    int w;
    int reserved;
};
static_assert(sizeof(StreamBlockInputBackArguments) == 56, "the layout that Rust writes");
typedef StreamBlockInputBackArguments stream_block_input_back_arguments;
enum { stream_block_input_back_threads = 256 };

struct StreamBlockGradientsArguments {
    // `[32][64]`, then `[32]`: the sums for the gradients of out's weights and biases, as if gamma
    // were 1.
    const float* sums;
    // `[32][64]`, out's.
    const float* weight;
    const float* bias;
    const float* gamma;
    // Of the weights, then of the biases.
    float* d_out;
    float* d_gamma;
    const DeviceScalars* scalars;
};
static_assert(sizeof(StreamBlockGradientsArguments) == 56, "the layout that Rust writes");
typedef StreamBlockGradientsArguments stream_block_gradients_arguments;
enum { stream_block_gradients_threads = 256 };
