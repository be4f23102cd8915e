//! Window attention and attention to tokens (kernels/plain_attention.cu; window attention in half
//! precision kernels/matrix_attention.cu).

use super::super::arguments::{CStruct, Kernel};
use super::super::launch::Shape;
use super::super::limits::MOST_SHARED;
use super::super::lowering::{Lowering, int};
use super::super::operation::CudaOperation;
use super::super::reduce::Finish;
use super::conv::{ConvShape, weight_sums};
use super::signatures::{
    MATRIX_WINDOW_ATTENTION, MATRIX_WINDOW_ATTENTION_KEYS, MATRIX_WINDOW_ATTENTION_QUERIES,
    PLAIN_TOKEN_ATTENTION, PLAIN_TOKEN_ATTENTION_BACK, PLAIN_TOKEN_GRADIENTS, PLAIN_TOKEN_KEYS,
    PLAIN_WINDOW_ATTENTION, PLAIN_WINDOW_ATTENTION_KEYS, PLAIN_WINDOW_ATTENTION_QUERIES,
    PlainTokenAttentionArguments, PlainTokenAttentionBackArguments, PlainTokenGradientsArguments,
    PlainTokenKeysArguments, PlainWindowAttentionArguments, PlainWindowAttentionBackArguments,
    View, WindowSizes,
};
use super::{ALIGNMENT, NO_FUNCTION, NO_VIEW, SumSpace, view};
use crate::plan::{
    BufferId, CHANNEL_GROUP, ParamRange, Precision, TokenAttention, TokenAttentionBack,
    WindowAttention, WindowAttentionBack,
};
use anyhow::{Result, ensure};

/// Channels of a head, and of a query to tokens.
const HEAD: usize = 16;
/// Keys, or queries, that a block keeps in shared memory at a time.
const WINDOW_TILE: usize = 256;
/// Powers of two replace exponentials: log2(e) / sqrt(HEAD).
const FACTOR: f32 = std::f32::consts::LOG2_E / 4.0;

fn sizes(o: &WindowAttention) -> Result<WindowSizes> {
    Ok(WindowSizes {
        h: int(o.extent.h)?,
        w: int(o.extent.w)?,
        padded_h: int(o.padded.h)?,
        padded_w: int(o.padded.w)?,
        heads: int(o.heads)?,
        window: int(o.window)?,
        shift: int(o.shift)?,
        factor: FACTOR,
    })
}

/// Blocks: one for every tile of queries of every window and head.
fn window_blocks(o: &WindowAttention) -> usize {
    let tokens = o.window * o.window;
    o.padded.pixels() / tokens * o.heads * tokens.div_ceil(WINDOW_TILE)
}

/// Launches a kernel of window attention: the plain one, or with activations in half precision the
/// one on tensor cores. A block has two vectors, of the activations' type on tensor cores, and `more` f32
/// of every token of a tile in shared memory.
fn window_launch<A: CStruct>(
    l: &mut Lowering<'_>,
    o: &WindowAttention,
    [plain, matrix]: [&Kernel<A>; 2],
    more: usize,
    arguments: A,
) -> Result<()> {
    let precision = l.plan.precision;
    let kernel = if precision == Precision::F32 {
        plain
    } else {
        matrix
    };
    let token = 2 * HEAD * precision.bytes() as usize + 4 * more;
    let shape = Shape::of(window_blocks(o), WINDOW_TILE * token);
    l.launch(kernel, shape, arguments)
}

impl CudaOperation for WindowAttention {
    fn check(&self) -> Result<()> {
        ensure!(
            self.heads * HEAD == self.channels,
            "window attention with {} channels in {} heads; the CUDA kernels take heads of {HEAD}",
            self.channels,
            self.heads
        );
        Ok(())
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let arguments = PlainWindowAttentionArguments {
            qkv: l.activations(self.qkv),
            output: l.activations(self.output),
            sizes: sizes(self)?,
        };
        let kernels = [&PLAIN_WINDOW_ATTENTION, &MATRIX_WINDOW_ATTENTION];
        window_launch(l, self, kernels, 0, arguments)
    }
}

impl CudaOperation for WindowAttentionBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, _: Precision) -> u64 {
        let f = &self.forward;
        8 * f.padded.values(f.heads)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let f = &self.forward;
        let arguments = PlainWindowAttentionBackArguments {
            qkv: l.activations(f.qkv),
            d_output: l.activations(self.d_output),
            d_qkv: l.activations(self.d_qkv),
            statistics: l.floats(l.workspace(self.workspace)?),
            sizes: sizes(f)?,
        };
        let queries = [
            &PLAIN_WINDOW_ATTENTION_QUERIES,
            &MATRIX_WINDOW_ATTENTION_QUERIES,
        ];
        window_launch(l, f, queries, 0, arguments)?;
        let keys = [&PLAIN_WINDOW_ATTENTION_KEYS, &MATRIX_WINDOW_ATTENTION_KEYS];
        window_launch(l, f, keys, 2, arguments)
    }
}

/// Where the values of token attention are in its workspace, bytes: keys and values first.
struct TokenSpace {
    /// Weights of the softmax and gradients of the scores, `[pixels][tokens]` f32 each.
    weights: usize,
    d_scores: usize,
    /// Totals of the gradients, f64: keys `[tokens][16]` and sums that are not read, then values
    /// `[channels][tokens]` and sums that are not read.
    totals: [usize; 2],
    /// Partial sums.
    sums: usize,
}

/// Values of keys and values.
fn key_floats(o: &TokenAttention) -> usize {
    o.tokens() * (HEAD + o.channels)
}

/// The gradients of the keys, and of the values, as the weight gradients of 1x1 convolutions: from a
/// query to the gradients of its scores, and from the weights of a pixel to its gradient.
fn gradients(o: &TokenAttention) -> [ConvShape; 2] {
    let of = |cin, cout| ConvShape::pointwise(o.extent, cin, cout);
    [of(HEAD, o.tokens()), of(o.tokens(), o.channels)]
}

fn token_space(o: &TokenAttention) -> TokenSpace {
    let aligned = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
    let weights = aligned(8 * key_floats(o));
    let each = aligned(4 * o.extent.pixels() * o.tokens());
    let [keys, values] = gradients(o).map(|c| 8 * c.sum_count());
    let first = weights + 2 * each;
    TokenSpace {
        weights,
        d_scores: weights + each,
        totals: [first, first + keys],
        sums: aligned(first + keys + values),
    }
}

/// Lowers keys and values; `centre` adds those of the centred tokens.
fn token_keys(
    l: &mut Lowering<'_>,
    o: &TokenAttention,
    workspace: BufferId,
    centre: bool,
) -> Result<()> {
    let at = |range: ParamRange| l.parameter(o.parameters, range.offset);
    let arguments = PlainTokenKeysArguments {
        dictionary: at(o.params.tokens),
        key_weight: at(o.params.key[0]),
        key_bias: at(o.params.key[1]),
        value_weight: at(o.params.value[0]),
        value_bias: at(o.params.value[1]),
        keys: l.floats(workspace),
        tokens: int(o.tokens())?,
        channels: int(o.channels)?,
        centre: centre.into(),
        reserved: 0,
    };
    let shape = Shape::of(key_floats(o).div_ceil(256), 0);
    l.launch(&PLAIN_TOKEN_KEYS, shape, arguments)
}

impl CudaOperation for TokenAttention {
    fn check(&self) -> Result<()> {
        let shared = 4 * (key_floats(self) + HEAD * self.tokens());
        ensure!(
            self.query_channels == HEAD && shared <= MOST_SHARED as usize,
            "attention to {} tokens with queries of {} channels; the CUDA kernels take queries of \
             {HEAD} and as many tokens as fit into {MOST_SHARED} bytes",
            self.tokens(),
            self.query_channels
        );
        Ok(())
    }

    fn workspace(&self, _: Precision) -> u64 {
        4 * key_floats(self) as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let workspace = l.workspace(self.workspace)?;
        token_keys(l, self, workspace, false)?;
        let arguments = PlainTokenAttentionArguments {
            keys: l.floats(workspace),
            query: l.activations(self.query),
            output: l.activations(self.output),
            pixels: int(self.extent.pixels())?,
            tokens: int(self.tokens())?,
            channels: int(self.channels)?,
            stride: int(output_stride(self))?,
            factor: FACTOR,
            reserved: 0,
        };
        let blocks = self.extent.pixels().div_ceil(256);
        let shared = 4 * key_floats(self);
        l.launch_persistent(&PLAIN_TOKEN_ATTENTION, blocks, shared, arguments)
    }
}

impl CudaOperation for TokenAttentionBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, _: Precision) -> u64 {
        let f = &self.forward;
        let sums: usize = gradients(f).iter().map(ConvShape::sum_bytes).sum();
        (token_space(f).sums + sums) as u64
    }

    fn carry(&self) -> u64 {
        let counts = gradients(&self.forward).map(|c| 8 * c.sum_count() as u64);
        counts.iter().sum()
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let f = &self.forward;
        let workspace = l.workspace(self.workspace)?;
        token_keys(l, f, workspace, true)?;
        scores_back(l, self, workspace)?;
        token_sums(l, self, workspace)?;
        if self.slice.last {
            parameter_gradients(l, self, workspace)?;
        }
        Ok(())
    }
}

/// Channels of a pixel of the output.
fn output_stride(o: &TokenAttention) -> usize {
    o.channels.next_multiple_of(CHANNEL_GROUP)
}

/// Lowers the gradient of the query, and the weights and the gradients of the scores.
fn scores_back(l: &mut Lowering<'_>, o: &TokenAttentionBack, workspace: BufferId) -> Result<()> {
    let (f, at) = (&o.forward, token_space(&o.forward));
    let arguments = PlainTokenAttentionBackArguments {
        keys: l.floats(workspace),
        query: l.activations(f.query),
        d_output: l.activations(o.d_output),
        d_query: l.activations(o.d_query),
        weights: l.floats_at(workspace, at.weights),
        d_scores: l.floats_at(workspace, at.d_scores),
        pixels: int(f.extent.pixels())?,
        tokens: int(f.tokens())?,
        channels: int(f.channels)?,
        stride: int(output_stride(f))?,
        factor: FACTOR,
        reserved: 0,
    };
    let blocks = f.extent.pixels().div_ceil(256);
    let shared = 4 * (key_floats(f) + HEAD * f.tokens());
    l.launch_persistent(&PLAIN_TOKEN_ATTENTION_BACK, blocks, shared, arguments)
}

/// Lowers the totals of the gradients of keys and values.
fn token_sums(l: &mut Lowering<'_>, o: &TokenAttentionBack, workspace: BufferId) -> Result<()> {
    let (f, at) = (&o.forward, token_space(&o.forward));
    let per_token = |floats| -> Result<View> {
        Ok(View {
            floats,
            stride: int(f.tokens())?,
            ..NO_VIEW
        })
    };
    let weights = per_token(l.floats_at(workspace, at.weights))?;
    let d_scores = per_token(l.floats_at(workspace, at.d_scores))?;
    let [of_keys, of_values] = gradients(f);
    let mut space = SumSpace::new(workspace, at.sums, o.slice);
    let query = view(l.activations(f.query), HEAD)?;
    let d_output = view(l.activations(o.d_output), output_stride(f))?;
    let keys = weight_sums(l, &of_keys, (query, NO_FUNCTION), d_scores, &mut space)?;
    let values = weight_sums(l, &of_values, (weights, NO_FUNCTION), d_output, &mut space)?;
    let [d_keys, d_values] = at.totals.map(|bytes| l.totals_at(workspace, bytes));
    let totals = [(keys, d_keys), (values, d_values)];
    space.finish(l, &totals.map(|(sums, to)| (sums, Finish::Totals(to))))
}

/// Lowers the gradients of the parameters from the totals.
fn parameter_gradients(
    l: &mut Lowering<'_>,
    o: &TokenAttentionBack,
    workspace: BufferId,
) -> Result<()> {
    let (f, p) = (&o.forward, &o.forward.params);
    let [d_keys, d_values] = token_space(f)
        .totals
        .map(|bytes| l.totals_at(workspace, bytes));
    let parameter = |range: ParamRange| l.parameter(f.parameters, range.offset);
    let gradient = |range: ParamRange| l.gradient(o.gradients, range.offset);
    let arguments = PlainTokenGradientsArguments {
        d_keys,
        d_values,
        dictionary: parameter(p.tokens),
        key_weight: parameter(p.key[0]),
        value_weight: parameter(p.value[0]),
        d_dictionary: gradient(p.tokens),
        d_key_weight: gradient(p.key[0]),
        d_key_bias: gradient(p.key[1]),
        d_value_weight: gradient(p.value[0]),
        d_value_bias: gradient(p.value[1]),
        scalars: l.scalars()?,
        tokens: int(f.tokens())?,
        channels: int(f.channels)?,
        factor: 0.25,
        reserved: 0,
    };
    let ranges = [p.tokens, p.key[0], p.key[1], p.value[0], p.value[1]];
    let results: usize = ranges.iter().map(|range| range.len).sum();
    let shape = Shape::of(results.div_ceil(256), 0);
    l.launch(&PLAIN_TOKEN_GRADIENTS, shape, arguments)
}
