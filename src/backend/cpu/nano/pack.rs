//! The packed weights of a Nano block: their places in the workspace, and how they are written.

use super::super::tasks::{Context, WorkspaceParts};
use super::{FEATURES, HIDDEN};
use crate::plan::{NanoBlock, ParamRange};

/// The place of each packed weight in the shared part, f32 elements; F features, E = 2F hidden
/// channels.
pub struct Packed {
    /// `[ci][e]`
    pub conv1: usize,
    /// `[e]`
    pub conv1_bias: usize,
    /// `[ky][kx][e]`
    pub dw: usize,
    /// `[e]`
    pub dw_bias: usize,
    /// Times gamma. Forward: `[e][f]`. Backward: `[f][e]`.
    pub conv2: usize,
    /// Times gamma, `[f]`.
    pub conv2_bias: usize,
    /// Backward only: the depthwise taps turned by 180 degrees, `[ky][kx][e]`.
    pub dw_flipped: usize,
    /// Backward only: `[e][f]`, then F zeros.
    pub conv1_transposed: usize,
    /// Elements of all weights.
    pub len: usize,
}

/// The places for F = `f` features.
pub fn packed(f: usize) -> Packed {
    let e = 2 * f;
    let mut at = 0;
    let mut take = |len: usize| {
        at += len;
        at - len
    };
    let (conv1, conv1_bias, dw, dw_bias) = (take(f * e), take(e), take(9 * e), take(e));
    let (conv2, conv2_bias, dw_flipped, conv1_transposed) =
        (take(e * f), take(f), take(9 * e), take(e * f + f));
    Packed {
        conv1,
        conv1_bias,
        dw,
        dw_bias,
        conv2,
        conv2_bias,
        dw_flipped,
        conv1_transposed,
        len: at,
    }
}

/// Packs the weights for the forward or the backward operation.
pub fn pack(ctx: &Context<'_>, op: &NanoBlock, parts: WorkspaceParts, backward: bool) {
    let (f, e, p) = (FEATURES, HIDDEN, packed(FEATURES));
    // SAFETY: the ranges lie inside the parameters and the packed weights inside the workspace, and
    // no task runs yet
    unsafe {
        let get = |range: ParamRange| &*ctx.param(op.parameters, range).slice(0, range.len);
        let (w1, w2, dw) = (
            get(op.params.conv1_weight),
            get(op.params.conv2_weight),
            get(op.params.dw_weight),
        );
        let (gamma, b2) = (get(op.params.gamma), get(op.params.conv2_bias));
        let out = parts.shared().slice(0, p.len);
        out.fill(0.0);
        for k in 0..e {
            for c in 0..f {
                out[p.conv1 + c * e + k] = w1[k * f + c];
                out[p.conv1_transposed + k * f + c] = w1[k * f + c];
                let at = if backward { c * e + k } else { k * f + c };
                out[p.conv2 + at] = gamma[c] * w2[c * e + k];
            }
            for tap in 0..9 {
                out[p.dw + tap * e + k] = dw[k * 9 + tap];
                out[p.dw_flipped + tap * e + k] = dw[k * 9 + 8 - tap];
            }
        }
        for c in 0..f {
            out[p.conv2_bias + c] = gamma[c] * b2[c];
        }
        out[p.conv1_bias..][..e].copy_from_slice(get(op.params.conv1_bias));
        out[p.dw_bias..][..e].copy_from_slice(get(op.params.dw_bias));
    }
}
