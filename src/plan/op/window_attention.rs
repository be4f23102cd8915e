//! Attention of the pixels of a window with each other, in windows that are shifted or not.

use super::{Access, Extent, Operation, Tape, read, write};
use crate::plan::{BufferId, Error};

/// Multi-head attention within windows of `window x window` pixels, without mask and without
/// position bias. The windows lie on the padded image, rolled by `-shift` rows and columns: the
/// window in row i and column j holds the pixels `(i * window + y + shift) mod padded h` and
/// `(j * window + x + shift) mod padded w` for y and x below `window`, row by row. For each head,
/// with d = C / heads channels: `softmax(q k^T / sqrt(d)) v`. Padded pixels take part as keys and
/// values; their own results are not computed. Scores are never stored: the backward pass computes
/// them again.
#[derive(Clone, Debug)]
pub struct WindowAttention {
    /// LQ extent of the output.
    pub extent: Extent,
    /// LQ extent of the input: rows and columns are multiples of `window`.
    pub padded: Extent,
    /// Channels C of the output, a whole number of groups.
    pub channels: usize,
    /// Number of heads, each with `C / heads` adjacent channels.
    pub heads: usize,
    /// Pixels along a side of a window.
    pub window: usize,
    /// Rows and columns by which windows are shifted, below `window`.
    pub shift: usize,
    /// q, k and v: `[N, padded h, padded w, 3C]`, activation.
    pub qkv: BufferId,
    /// `[N, h, w, C]`, activation.
    pub output: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

/// Gradient of [`WindowAttention`] with respect to q, k and v.
#[derive(Clone, Debug)]
pub struct WindowAttentionBack {
    /// The forward operation.
    pub forward: WindowAttention,
    /// Gradient of the output, `[N, h, w, C]`, activation.
    pub d_output: BufferId,
    /// Gradient of q, k and v, `[N, padded h, padded w, 3C]`, activation; written.
    pub d_qkv: BufferId,
    /// Scratch bytes of the backend, if it asked for any.
    pub workspace: Option<BufferId>,
}

impl WindowAttention {
    /// Multiply-adds of one of the products of all heads: as many as of the scores.
    fn product(&self) -> u64 {
        let keys = (self.window * self.window) as u64;
        self.padded.values(self.channels) * keys
    }
}

impl Operation for WindowAttention {
    fn label(&self) -> &'static str {
        "window attention"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![read(self.qkv), write(self.output)]
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        self.padded.values(3 * self.channels)
    }

    fn multiply_adds(&self) -> u64 {
        2 * self.product()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.output, self.extent)]
    }

    fn backward(&self, tape: &mut dyn Tape) -> Result<(), Error> {
        let d_output = tape.d_output(self.output)?;
        let back = WindowAttentionBack {
            forward: self.clone(),
            d_output,
            d_qkv: tape.write_gradient(self.qkv)?,
            workspace: None,
        };
        tape.push(back.into());
        Ok(())
    }
}

impl Operation for WindowAttentionBack {
    fn label(&self) -> &'static str {
        "window attention, backward"
    }

    fn accesses(&self) -> Vec<Access> {
        vec![
            read(self.forward.qkv),
            read(self.d_output),
            write(self.d_qkv),
        ]
    }

    workspace_field!();

    fn largest_extent(&self) -> u64 {
        self.forward.largest_extent()
    }

    fn multiply_adds(&self) -> u64 {
        // gradients of v, of the scores, of q and of k
        4 * self.forward.product()
    }

    fn written(&self) -> Vec<(BufferId, Extent)> {
        vec![(self.d_qkv, self.forward.padded)]
    }
}
