//! The numbers that the lowering and the kernels must agree on, each written once: the kernels get
//! them from `kernels/interface.cuh`, which `super::interface` generates from this table. Depends
//! on the formulas and augmentation codes that all backends share. A number that one side alone
//! uses stays there, unless a number here is derived from it.

use crate::backend::formulas;
use crate::support::augment;

/// Defines constants for Rust and, for the generated header, their C text with the same comments.
macro_rules! constants {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty = $value:expr;)*) => {
        $(
            $(#[doc = $doc])*
            // some are for the kernels alone
            #[cfg_attr(not(test), allow(dead_code))]
            pub(super) const $name: $type = $value;
        )*

        /// The C text of all constants, for the generated header.
        #[cfg(test)]
        pub(super) fn c_text() -> String {
            let mut text = String::new();
            $(
                $(text += concat!("//", $doc, "\n");)*
                text += &CConstant::definition(&$name, stringify!($name));
            )*
            text
        }
    };
}

constants! {
    /// Threads of a block of nearly every kernel: eight warps.
    BLOCK_THREADS: usize = 256;
    /// Features of the network that the kernels are written for; no other number is supported.
    FEATURES: usize = 16;
    /// Rows and columns of a tile of LQ pixels, which a block takes at a time.
    TILE: usize = 16;
    /// Taps of a 3x3 convolution.
    TAPS: usize = 9;
    /// Bytes that every pixel of a convolution's tile in f32 has more than its features, against bank
    /// conflicts in shared memory.
    BANK_GAP: usize = 16;
    /// Where the odd columns of a row of its tile in half precision begin, in pixels. The even ones,
    /// nine at most, are ahead of them; the gap is against bank conflicts.
    ODD_COLUMNS: usize = 10;

    /// Hidden channels of a Nano block.
    HIDDEN: usize = 2 * FEATURES;
    /// 16-byte pieces that a plane of hidden channels has more than its pixels, so that the four
    /// planes lie in different banks.
    PLANE_GAP: usize = 2;
    /// Offset of conv1's weights `[HIDDEN][FEATURES]` (conv1 and conv2 are the 1x1 convolutions)
    /// among the f32 values of a Nano block's parameters without gamma. Partial sums, and the
    /// weights in shared memory of the kernels without tensor cores, have this order.
    NANO_W1: usize = 0;
    /// conv1's biases in the same order.
    NANO_B1: usize = NANO_W1 + HIDDEN * FEATURES;
    /// The depthwise weights `[HIDDEN][TAPS]`.
    NANO_DW: usize = NANO_B1 + HIDDEN;
    /// The depthwise biases.
    NANO_DB: usize = NANO_DW + TAPS * HIDDEN;
    /// conv2's weights `[FEATURES][HIDDEN]`.
    NANO_W2: usize = NANO_DB + HIDDEN;
    /// conv2's biases.
    NANO_B2: usize = NANO_W2 + HIDDEN * FEATURES;
    /// How many there are. Gamma has no sums: its gradient follows from them.
    NANO_COUNT: usize = NANO_B2 + FEATURES;
    /// Bytes of the weights that both kernels with tensor cores keep in shared memory (struct
    /// NanoWeights): conv1 as halves, conv2 as operands, nine depthwise taps and their bias with
    /// zeros after them, conv1's biases. A multiprocessor with 100 KiB must hold two blocks of the
    /// backward kernel.
    MMA_WEIGHTS: usize = 2 * HIDDEN * 16 + 4 * 32 * 8 + (HIDDEN + 1) * 10 * 4 + 4 * HIDDEN;
    /// Hidden channels that the forward kernel without tensor cores computes at a time.
    PLAIN_FORWARD: usize = 16;
    /// Hidden channels that the backward kernel without tensor cores computes at a time.
    PLAIN_BACKWARD: usize = 8;

    /// f32 elements of the LQ pixels that the base of a tile is made of: four more on each side,
    /// one that the blur sees and three that sharpening sees.
    BASE_RAW: usize = (TILE + 8) * (TILE + 8) * 3;
    /// f32 elements of those pixels once they are sharpened along rows.
    BASE_ROWS: usize = (TILE + 8) * (TILE + 2) * 3;
    /// f32 elements of the base's cells, RGB and what sharpening adds to it.
    BASE_CELLS: usize = (TILE + 2) * (TILE + 4) * 6;
    /// f32 elements of the base's taps, four for each HR place inside an LQ pixel (scale 8 at most).
    BASE_TAPS: usize = 32;
    /// Entries of a group of slots of the folded convolution (folded_conv.cuh).
    ENTRIES: usize = 53;
    /// Those of them that belong to edges.
    EDGE_ENTRIES: usize = ENTRIES - 25;
    /// Elements of an entry: `[FEATURES][16 slots]`.
    ENTRY: usize = FEATURES * 16;
    /// Sums of a group of slots over all pixels: 25 entries and the biases.
    INTERIOR_SUMS: usize = 25 * ENTRY + 16;
    /// Sums of a group of slots over the pixels of one edge.
    EDGE_SUMS: usize = 7 * ENTRY + 3 * 16;
    /// Sums of a group of slots over all pixels and all four edges.
    GROUP_SUMS: usize = INTERIOR_SUMS + 4 * EDGE_SUMS;
    /// 16-byte words of an entry as the lanes of a warp take it.
    FRAGMENT: usize = 32;
    /// 16-byte words of the 25 taps of a group as operands of the forward pass.
    FORWARD_TAPS: usize = 25 * FRAGMENT + 5 * FRAGMENT / 2;
    /// The same of the backward pass.
    BACKWARD_TAPS: usize = 21 * FRAGMENT;
    /// The same of all entries of a group, for both passes.
    GROUP_FRAGMENTS: usize = FORWARD_TAPS + BACKWARD_TAPS + 2 * EDGE_ENTRIES * FRAGMENT;
    /// Rows and columns of a tile with the two pixels on each side that 5x5 taps reach.
    REACHED: usize = TILE + 4;
    /// 16-byte pieces of one plane (eight halves a pixel) of such a tile. The gap puts the second
    /// plane into other banks than the first.
    HALF_PLANE: usize = REACHED * REACHED + 4;
    /// The same for f32 (four a pixel).
    FLOAT_PLANE: usize = REACHED * REACHED + 1;
    /// Warps of a block of the reconstruction's backward kernel with tensor cores that sum pixels of an edge.
    EDGE_WARPS: usize = 4;
    /// Bytes of shared memory of such a warp: 20 pixels of features, 16 of the gradient, and its sums.
    EDGE_BYTES: usize = (20 + 16) * 2 * 16 + 4 * EDGE_SUMS;
    /// `part` of reconstruct_back: compute the gradient of the features.
    PART_DATA: i32 = 1;
    /// `part` of reconstruct_back: compute the sums.
    PART_SUMS: i32 = 2;

    /// Bytes of shared memory of a tile of matrix_conv: 16 inputs with a border of one pixel.
    MATRIX_CONV_TILE: usize = (TILE + 2) * (TILE + 2) * 48;
    /// The same of matrix_conv_narrow, whose tiles have twice the rows.
    MATRIX_CONV_NARROW_TILE: usize = (2 * TILE + 2) * (TILE + 2) * 48;
    /// Bytes of shared memory of the tiles of matrix_conv_weights: 32 inputs with a border of one pixel,
    /// and 32 gradients.
    MATRIX_CONV_WEIGHT_TILES: usize = ((TILE + 2) * (TILE + 2) + TILE * TILE) * 80;
    /// Bytes of the packed weights of 32 inputs and 32 outputs of matrix_pointwise.
    MATRIX_POINTWISE_SHARE: usize = 32 * 32 * 2;
    /// Most groups of 32 outputs of a launch of matrix_pointwise, and of matrix_pointwise_deep.
    MATRIX_POINTWISE_GROUPS: usize = 8;
    MATRIX_POINTWISE_DEEP_GROUPS: usize = 2;
    /// Pixels that a block of both takes at a time.
    MATRIX_POINTWISE_PIXELS: usize = 256;
    /// Sums of a warp of matrix_pointwise_weights for each lane: 32 x 64 weights and 64 biases.
    MATRIX_POINTWISE_SUMS: usize = 72;

    /// Features that stream_block.cu takes.
    STREAM_FEATURES: usize = 32;
    /// Bytes of shared memory of its hidden values: 32 channels with a border of one pixel. A
    /// multiprocessor with 100 KiB must hold two blocks.
    STREAM_PLANES: usize = 4 * ((TILE + 2) * (TILE + 2) + 6) * 16;
    /// Bytes of its weights (struct StreamWeights): depthwise taps and biases with zeros after them,
    /// fuse, proj and out as operands, their biases, gamma.
    STREAM_WEIGHTS: usize = STREAM_DEPTHWISE_WEIGHTS + 32 * 128 * 4 + 224 * 4;
    /// The first part of them.
    STREAM_DEPTHWISE_WEIGHTS: usize = 2 * 193 * 16 + 2 * 196 * 4;
    /// Bytes of proj and fuse as operands of the backward pass (struct StreamTurnedWeights), and the part
    /// of fuse.
    STREAM_TURNED_WEIGHTS: usize = 16 * 128 * 4 + STREAM_TURNED_FUSE;
    STREAM_TURNED_FUSE: usize = 8 * 128 * 4;
    /// Bytes of shared memory of 32 channels with a border of three pixels.
    STREAM_REACHED_PLANES: usize = 4 * ((TILE + 6) * (TILE + 6) + 2) * 16;

    /// Rows of the pixels that a block of the structural losses takes.
    PATCH_H: usize = 32;
    /// Columns of the pixels that a block of the structural losses takes.
    PATCH_W: usize = 32;
    /// Width of the SSIM window.
    WINDOW: usize = formulas::SSIM_WINDOW;
    /// Rows that the windows on a block's pixels reach.
    REACH_H: usize = PATCH_H + WINDOW - 1;
    /// Columns that the windows on a block's pixels reach.
    REACH_W: usize = PATCH_W + WINDOW - 1;
    /// f32 elements between two rows of them in shared memory; the gap is against bank conflicts.
    REACH_ROW: usize = REACH_W + 2;
    /// Levels of MS-SSIM.
    LEVELS: usize = MS_SSIM_EXPONENTS.len();
    /// f32 slopes of a patch: three of every window.
    SLOPES: usize = 3 * PATCH_H * PATCH_W;

    /// Jobs of one launch of reduce_sums at most.
    SUM_JOBS: usize = 12;
    /// Neighbouring sums that a block of reduce_sums adds.
    SUM_LANES: usize = 32;
    /// Groups of as many threads, each of which adds its share of the partial sums.
    SUM_GROUPS: usize = BLOCK_THREADS / SUM_LANES;
    /// What becomes of the totals (`SumJob::kind`): they stay for a later launch.
    TO_TOTALS: i32 = 0;
    /// They become the gradients of as many parameters, one after another.
    TO_GRADIENTS: i32 = 1;
    /// They become the gradients of a Nano block (nano_block.cu).
    TO_NANO_BLOCK: i32 = 2;
    /// The sum of a loss is kept for the next slice (loss.cu).
    LOSS_TO_TOTAL: i32 = 3;
    /// The mean of a loss goes to the metrics, where it begins the micro-batch's.
    LOSS_TO_METRICS: i32 = 4;
    /// They replace as many f32 values, whatever the micro-batches before left there.
    TO_VALUES: i32 = 5;
    /// They are added to gradients that another operation of the same micro-batch left there.
    TO_ADDED: i32 = 6;
    /// The mean of a loss is added to what another loss of the same micro-batch left there.
    LOSS_ADDED: i32 = 7;

    /// Functions of single values (`ChannelFunction::kind`): none.
    FUNCTION_NONE: i32 = 0;
    /// max(z, 0)
    FUNCTION_RELU: i32 = 1;
    /// z, or slope x z where z is negative.
    FUNCTION_LEAKY_RELU: i32 = 2;
    /// The same with a slope for each channel.
    FUNCTION_PRELU: i32 = 3;
    /// z x sigmoid(z)
    FUNCTION_SILU: i32 = 4;
    /// The exact GELU.
    FUNCTION_GELU: i32 = 5;
    /// (z - mean) x factor, of RGB.
    FUNCTION_NORMALIZE: i32 = 6;

    /// Augmentation: mirror left-right, applied first.
    HFLIP: u8 = augment::HFLIP;
    /// Augmentation: mirror top-bottom, applied second.
    VFLIP: u8 = augment::VFLIP;
    /// Augmentation: swap rows and columns, applied last.
    TRANSPOSE: u8 = augment::TRANSPOSE;

    /// Sharpening taps of the base, over rows and columns at LQ size.
    SHARP_TAPS: [f32; 7] = formulas::SHARP_TAPS;
    /// Blur taps of the base, over rows and columns at HR size.
    BLUR_TAPS: [f32; 5] = formulas::BLUR_TAPS;
    /// Charbonnier's epsilon, under the root.
    CHARBONNIER_EPSILON: f32 = formulas::CHARBONNIER_EPSILON;
    /// Luma weights of BT.601.
    LUMA: [f32; 3] = formulas::LUMA;
    /// The SSIM window, a Gaussian of deviation 1.5, from its edge to its middle.
    GAUSSIAN: [f32; WINDOW / 2 + 1] = formulas::GAUSSIAN;
    /// SSIM's constants.
    SSIM_C1: f32 = formulas::SSIM_C1;
    /// SSIM's constants.
    SSIM_C2: f32 = formulas::SSIM_C2;
    /// MS-SSIM's exponents, finest level first.
    MS_SSIM_EXPONENTS: [f64; 5] = formulas::MS_SSIM_EXPONENTS;
}

/// A constant as C text.
#[cfg(test)]
trait CConstant {
    /// Its definition under `name`, with a line end.
    fn definition(&self, name: &str) -> String;
}

#[cfg(test)]
mod c {
    use super::CConstant;

    /// A number as a C literal. Rust prints the shortest decimal that reads back as the same
    /// float, so C compilers get the same bits from it.
    trait Literal {
        const TYPE: &'static str;
        fn literal(&self) -> String;
    }

    macro_rules! literals {
        ($($rust:ty, $c:literal, $format:literal;)*) => {
            $(
                impl Literal for $rust {
                    const TYPE: &'static str = $c;
                    fn literal(&self) -> String {
                        format!($format, self)
                    }
                }
                impl CConstant for $rust {
                    fn definition(&self, name: &str) -> String {
                        format!("#define {name} {}\n", self.literal())
                    }
                }
            )*
        };
    }

    literals! {
        usize, "int", "{}";
        i32, "int", "{}";
        u8, "u32", "{}u";
        f32, "float", "{:?}f";
        f64, "double", "{:?}";
    }

    impl<T: Literal, const N: usize> CConstant for [T; N] {
        fn definition(&self, name: &str) -> String {
            let values: Vec<String> = self.iter().map(Literal::literal).collect();
            format!(
                "CONSTANT {} {name}[{N}] = {{{}}};\n",
                T::TYPE,
                values.join(", ")
            )
        }
    }
}
