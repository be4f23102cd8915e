//! Keys and values of the tokens: computes them once per run and stores them in the orders that the
//! row products read. Depends on tasks and vectors.
//!
//! The products of the backward pass read keys and values less their means over the tokens. The
//! results are the same in exact arithmetic: a constant that is added to the gradients of a softmax's
//! weights changes no gradient of a score, and these sum to 0. In f32 it matters, because tokens are
//! alike at the start of a training, and the common part would cancel only after it was rounded.

use super::super::arena::SharedPtr;
use super::super::simd::{LANES, Simd};
use super::super::tasks::{Context, Task, round_up_to_lanes};
use super::Scores;
use crate::plan::TokenAttention;

/// The shared part of the workspace, in f32 elements. Every row is whole vectors; what fills the
/// last one is 0.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Number of tokens T.
    pub tokens: usize,
    /// T rounded up to whole vectors.
    pub token_lanes: usize,
    /// Channels of a value, F.
    pub channels: usize,
    /// F rounded up to whole vectors.
    pub stride: usize,
    /// Channels of a query and a key, D.
    pub query: usize,
    /// D rounded up to whole vectors.
    pub query_stride: usize,
}

impl Layout {
    /// The layout of an operation's workspace.
    pub fn new(op: &TokenAttention) -> Layout {
        Layout {
            tokens: op.tokens(),
            token_lanes: round_up_to_lanes(op.tokens()),
            channels: op.channels,
            stride: round_up_to_lanes(op.channels),
            query: op.query_channels,
            query_stride: round_up_to_lanes(op.query_channels),
        }
    }

    /// The start values of scores `[T]`: 0, and in the lanes that fill the last vector
    /// [`LOWEST`], which gives those a weight of 0.
    pub fn score_start(&self) -> usize {
        0
    }

    /// Zeros, as many as the longest row has.
    pub fn zeros(&self) -> usize {
        self.token_lanes
    }

    /// Keys divided by sqrt(D), `[D][T]`.
    pub fn keys_by_channel(&self) -> usize {
        self.zeros() + self.token_lanes.max(self.stride).max(self.query_stride)
    }

    /// Values `[T][F]`.
    pub fn values(&self) -> usize {
        self.keys_by_channel() + self.query * self.token_lanes
    }

    /// Elements of the forward pass's layout.
    pub fn forward_floats(&self) -> usize {
        self.values() + self.tokens * self.stride
    }

    /// Tokens less their mean, `[T][F without padding]`, for the backward pass alone.
    pub fn centred_tokens(&self) -> usize {
        self.forward_floats()
    }

    /// Centred keys divided by sqrt(D), `[T][D]`, for the backward pass alone.
    pub fn keys_by_token(&self) -> usize {
        self.centred_tokens() + round_up_to_lanes(self.tokens * self.channels)
    }

    /// Centred values `[F][T]`, for the backward pass alone.
    pub fn values_by_channel(&self) -> usize {
        self.keys_by_token() + self.tokens * self.query_stride
    }

    /// Gradients of the parameters, for the backward pass alone: see
    /// [`GradientTask`](super::backward::GradientTask).
    pub fn gradients(&self) -> usize {
        self.values_by_channel() + self.channels * self.token_lanes
    }

    /// The factor of scores, 1 / sqrt(D).
    pub fn scale(&self) -> f32 {
        (1.0 / (self.query as f64).sqrt()) as f32
    }
}

/// Low enough for a weight of 0, and so high that its difference to any score is finite.
const LOWEST: f32 = -1e30;

/// Tokens of one task.
const TOKENS: usize = LANES;

/// Computes keys and values of some tokens.
struct PrepareTask {
    layout: Layout,
    shared: SharedPtr<f32>,
    /// `[T, F]`
    tokens: SharedPtr<f32>,
    /// Weight `[D, F]` and bias `[D]`.
    key: [SharedPtr<f32>; 2],
    /// Weight `[F, F]` and bias `[F]`.
    value: [SharedPtr<f32>; 2],
    /// Whether the parts for the backward pass are wanted.
    backward: bool,
}

/// Sum of the products of two rows.
///
/// # Safety
/// As [`Simd`]. `len` values can be read at `a` and `b`.
#[inline(always)]
unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, len: usize) -> f32 {
    let whole = len / LANES * LANES;
    // SAFETY: the caller guarantees the memory
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            sum = S::fma(S::load(a.add(i)), S::load(b.add(i)), sum);
        }
        let mut sum = S::sum(sum);
        for i in whole..len {
            sum += *a.add(i) * *b.add(i);
        }
        sum
    }
}

impl PrepareTask {
    /// Writes key and value of token `t`, or what fills the last vector of tokens.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose token it is.
    #[inline(always)]
    unsafe fn token<S: Simd>(&self, t: usize) {
        let layout = &self.layout;
        let (channels, lanes) = (layout.channels, layout.token_lanes);
        let present = t < layout.tokens;
        let inverse_root = layout.scale();
        // SAFETY: the shared part has the layout's rows, columns and start values of this token,
        // which are the task's, and the parameters have the shapes that `check` saw
        unsafe {
            *self.shared.at(layout.score_start() + t) = if present { 0.0 } else { LOWEST };
            let token = self.tokens.at(t * channels);
            let centred = self.shared.at(layout.centred_tokens() + t * channels);
            for d in 0..layout.query {
                let mut key = 0.0;
                if present {
                    let [weight, bias] = self.key;
                    key = dot::<S>(token, weight.at(d * channels), channels) + *bias.at(d);
                    key *= inverse_root;
                }
                *self.shared.at(layout.keys_by_channel() + d * lanes + t) = key;
                if self.backward && present {
                    let row = layout.keys_by_token() + t * layout.query_stride;
                    let key = dot::<S>(centred, self.key[0].at(d * channels), channels);
                    *self.shared.at(row + d) = key * inverse_root;
                }
            }
            for f in 0..channels {
                let mut value = 0.0;
                if present {
                    let [weight, bias] = self.value;
                    value = dot::<S>(token, weight.at(f * channels), channels) + *bias.at(f);
                    *self.shared.at(layout.values() + t * layout.stride + f) = value;
                }
                if self.backward {
                    if present {
                        value = dot::<S>(centred, self.value[0].at(f * channels), channels);
                    }
                    *self.shared.at(layout.values_by_channel() + f * lanes + t) = value;
                }
            }
            if present {
                let fill = layout.values() + t * layout.stride + channels;
                (self.shared.at(fill)).write_bytes(0, layout.stride - channels);
            }
            if present && self.backward {
                let fill = layout.keys_by_token() + t * layout.query_stride + layout.query;
                (self.shared.at(fill)).write_bytes(0, layout.query_stride - layout.query);
            }
        }
    }
}

impl Task for PrepareTask {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let layout = &self.layout;
        // SAFETY: the rows and columns of these tokens are this task's, and the zeros those of the
        // first
        unsafe {
            if task == 0 {
                let zeros = layout.keys_by_channel() - layout.zeros();
                self.shared.at(layout.zeros()).write_bytes(0, zeros);
            }
            let end = layout.token_lanes.min((task + 1) * TOKENS);
            for t in task * TOKENS..end {
                self.token::<S>(t);
            }
        }
    }
}

/// Writes the tokens less their mean.
fn centre(tokens: SharedPtr<f32>, layout: &Layout, shared: SharedPtr<f32>) {
    let (count, channels) = (layout.tokens, layout.channels);
    // SAFETY: the tokens are a parameter of this size, the shared part has room for as many values,
    // and no task runs
    let (tokens, centred) = unsafe {
        (
            tokens.view(0, count * channels),
            shared.slice(layout.centred_tokens(), count * channels),
        )
    };
    for f in 0..channels {
        let column = || tokens[f..].iter().step_by(channels);
        let mean = column().map(|&v| f64::from(v)).sum::<f64>() / count as f64;
        for (to, &value) in centred[f..].iter_mut().step_by(channels).zip(column()) {
            *to = (f64::from(value) - mean) as f32;
        }
    }
}

/// Computes keys and values; those for the backward pass as well if `backward` is set.
pub fn prepare(
    ctx: &Context<'_>,
    op: &TokenAttention,
    shared: SharedPtr<f32>,
    backward: bool,
) -> Scores {
    let layout = Layout::new(op);
    let param = |range| ctx.param(op.parameters, range);
    let task = PrepareTask {
        layout,
        shared,
        tokens: param(op.params.tokens),
        key: op.params.key.map(param),
        value: op.params.value.map(param),
        backward,
    };
    if backward {
        centre(task.tokens, &layout, shared);
    }
    ctx.parallel(layout.token_lanes.div_ceil(TOKENS), &task);
    Scores {
        layout,
        shared,
        query: ctx.floats(op.query),
    }
}
