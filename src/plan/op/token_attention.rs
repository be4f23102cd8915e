//! Attention of each pixel to a trained dictionary of tokens.

use super::{Access, Extent, Operation, ParamRange, Slice, Tape, read, update, write};
use crate::plan::{BufferId, Error};

/// Parameter ranges of a dictionary of T tokens with F values each; D values of a query and a key.
/// Weights in PyTorch's order.
#[derive(Clone, Copy, Debug)]
pub struct TokenParams {
    /// The tokens, `[1, T, F]`.
    pub tokens: ParamRange,
    /// Keys from tokens: weight `[D, F]` and bias `[D]`.
    pub key: [ParamRange; 2],
    /// Values from tokens: weight `[F, F]` and bias `[F]`.
    pub value: [ParamRange; 2],
}

/// `softmax(q k^T / sqrt(D)) v` over the tokens for the query q of each pixel, where k and v are the
/// keys and values of the tokens. The weights of the softmax are never stored: the backward pass
/// computes them again.
#[derive(Clone, Debug)]
pub struct TokenAttention {
    /// LQ extent of query and output.
    pub extent: Extent,
    /// Channels F of the output.
    pub channels: usize,
    /// Channels D of the query.
    pub query_channels: usize,
    /// Ranges of the parameters.
    pub params: TokenParams,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// q, `[N, h, w, D]`, activation.
    pub query: BufferId,
    /// `[N, h, w, F]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradients of [`TokenAttention`] with respect to its parameters and the query.
#[derive(Clone, Debug)]
pub struct TokenAttentionBack {
    /// The forward operation.
    pub forward: TokenAttention,
    /// The gradient buffer, f32; the ranges are those of the parameters.
    pub gradients: BufferId,
    /// Gradient of the output, `[N, h, w, F]`, activation.
    pub d_output: BufferId,
    /// Gradient of the query, `[N, h, w, D]`, activation; written.
    pub d_query: BufferId,
    /// The part of the micro-batch.
    pub slice: Slice,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl TokenAttention {
    /// Number of tokens T.
    pub fn tokens(&self) -> usize {
        self.params.tokens.len / self.channels.max(1)
    }

    /// Multiply-adds of the scores and of the sums of values, for all pixels.
    fn products(&self) -> u64 {
        let each = self.query_channels + self.channels;
        self.extent.values(each) * self.tokens() as u64
    }

    /// Multiply-adds of keys and values.
    fn preparation(&self) -> u64 {
        let [key, value] = [self.params.key[0].len, self.params.value[0].len];
        (self.tokens() * (key + value)) as u64
    }
}

impl Operation for TokenAttention {
    fn label(&self) -> &'static str {
        "token attention"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![read(self.parameters), read(self.query), write(self.output)]
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        let group = super::CHANNEL_GROUP;
        let widest = self.channels.max(self.query_channels);
        self.extent.values(widest.next_multiple_of(group))
    }

    fn multiply_adds(&self) -> u64 {
        self.products() + self.preparation()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let d_output = tape.d_output(self.output)?;
        let back = TokenAttentionBack {
            forward: self.clone(),
            gradients: tape.gradients(self.parameters)?,
            d_output,
            d_query: tape.write_gradient(self.query)?,
            slice: tape.slice(),
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for TokenAttentionBack {
    fn label(&self) -> &'static str {
        "token attention, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![
            read(self.forward.parameters),
            read(self.forward.query),
            read(self.d_output),
            write(self.d_query),
            update(self.gradients),
        ]
    }

    workspace_field!();

    slice_field!();

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn multiply_adds(&self) -> u64 {
        2 * (self.forward.products() + self.forward.preparation())
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.d_query, self.forward.extent)]
    }
}
