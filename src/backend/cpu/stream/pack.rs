//! The packed weights of a Stream block: their places in the workspace, and how they are written.

use super::super::tasks::{Context, WorkspaceParts};
use super::{FEATURES, GROUP, GROUPS, HIDDEN, channel};
use crate::plan::{ParamRange, StreamBlock};

/// Values of a product of two groups, or of the features and a group.
pub const SQUARE: usize = FEATURES * GROUP;
/// Values of the taps of one group, `[ky][kx][GROUP]`.
pub const TAPS: usize = 9 * GROUP;

/// The place of each packed weight in the shared part, f32 elements. F features; the 2E channels of
/// `proj` and `gate` are in groups, see [`channel`].
pub struct Packed;

impl Packed {
    /// The taps `[ky][kx][f]` of dw1, then those of dw3.
    pub const DW: usize = 0;
    /// The bias `[f]` of dw1, then that of dw3.
    pub const DW_BIAS: usize = Self::DW + 2 * TAPS;
    /// `[2F][f]`
    pub const FUSE: usize = Self::DW_BIAS + 2 * FEATURES;
    /// `[f]`
    pub const FUSE_BIAS: usize = Self::FUSE + 2 * SQUARE;
    /// `[group][f][GROUP]`
    pub const PROJ: usize = Self::FUSE_BIAS + FEATURES;
    /// `[group][GROUP]`
    pub const PROJ_BIAS: usize = Self::PROJ + GROUPS * SQUARE;
    /// `[group][ky][kx][GROUP]`
    pub const GATE: usize = Self::PROJ_BIAS + GROUPS * GROUP;
    /// `[group][GROUP]`
    pub const GATE_BIAS: usize = Self::GATE + GROUPS * TAPS;
    /// Times gamma. Forward: `[e][f]`. Backward: `[f][e]`.
    pub const OUT: usize = Self::GATE_BIAS + GROUPS * GROUP;
    /// Times gamma, `[f]`.
    pub const OUT_BIAS: usize = Self::OUT + FEATURES * HIDDEN;
    /// Elements of the forward weights.
    pub const FORWARD: usize = Self::OUT_BIAS + FEATURES;
    /// The taps of dw1 and dw3 turned by 180 degrees.
    pub const DW_FLIPPED: usize = Self::FORWARD;
    /// The taps of the gate turned by 180 degrees.
    pub const GATE_FLIPPED: usize = Self::DW_FLIPPED + 2 * TAPS;
    /// `[group][GROUP][f]`
    pub const PROJ_TRANSPOSED: usize = Self::GATE_FLIPPED + GROUPS * TAPS;
    /// First the part of dw1, then that of dw3: `[2][f out][f in]`.
    pub const FUSE_TRANSPOSED: usize = Self::PROJ_TRANSPOSED + GROUPS * SQUARE;
    /// The start values of products without bias, `[e]`.
    pub const ZEROS: usize = Self::FUSE_TRANSPOSED + 2 * SQUARE;
    /// Elements of all weights.
    pub const BACKWARD: usize = Self::ZEROS + HIDDEN;
}

/// Packs the taps of `channels` channels from PyTorch's `[c][1][ky][kx]`; `channel(i)` is the
/// parameter's channel for number i of the packed ones.
fn pack_taps(weight: &[f32], out: &mut [f32], flip: bool, channel: impl Fn(usize) -> usize) {
    for (i, value) in out.iter_mut().enumerate() {
        let (group, tap, lane) = (i / TAPS, i / GROUP % 9, i % GROUP);
        let tap = if flip { 8 - tap } else { tap };
        *value = weight[channel(group * GROUP + lane) * 9 + tap];
    }
}

/// Packs the weights for the forward or the backward operation.
pub fn pack(ctx: &Context<'_>, op: &StreamBlock, parts: WorkspaceParts, backward: bool) {
    let len = if backward {
        Packed::BACKWARD
    } else {
        Packed::FORWARD
    };
    // SAFETY: the packed weights lie inside the workspace, and no task runs yet
    let out = unsafe { parts.shared().slice(0, len) };
    let get = |range: ParamRange| -> &[f32] {
        // SAFETY: the ranges lie inside the parameters, which nothing writes now
        unsafe { ctx.param(op.parameters, range).view(0, range.len) }
    };
    let params = &op.params;
    for (i, [weight, bias]) in [params.dw1, params.dw3].into_iter().enumerate() {
        let (weight, at) = (get(weight), Packed::DW + i * TAPS);
        pack_taps(weight, &mut out[at..][..TAPS], false, |c| c);
        out[Packed::DW_BIAS + i * FEATURES..][..FEATURES].copy_from_slice(get(bias));
        if backward {
            let at = Packed::DW_FLIPPED + i * TAPS;
            pack_taps(weight, &mut out[at..][..TAPS], true, |c| c);
        }
    }
    let (fuse, proj, gate) = (
        get(params.fuse[0]),
        get(params.proj[0]),
        get(params.gate[0]),
    );
    for i in 0..2 * SQUARE {
        let (input, output) = (i / FEATURES, i % FEATURES);
        out[Packed::FUSE + i] = fuse[output * 2 * FEATURES + input];
    }
    out[Packed::FUSE_BIAS..][..FEATURES].copy_from_slice(get(params.fuse[1]));
    for i in 0..GROUPS * SQUARE {
        let (group, f, lane) = (i / SQUARE, i / GROUP % FEATURES, i % GROUP);
        out[Packed::PROJ + i] = proj[channel(group * GROUP + lane) * FEATURES + f];
    }
    let taps = &mut out[Packed::GATE..][..GROUPS * TAPS];
    pack_taps(gate, taps, false, channel);
    for i in 0..GROUPS * GROUP {
        out[Packed::PROJ_BIAS + i] = get(params.proj[1])[channel(i)];
        out[Packed::GATE_BIAS + i] = get(params.gate[1])[channel(i)];
    }
    let (weight, bias, gamma) = (get(params.out[0]), get(params.out[1]), get(params.gamma));
    for f in 0..FEATURES {
        for e in 0..HIDDEN {
            let at = if backward {
                f * HIDDEN + e
            } else {
                e * FEATURES + f
            };
            out[Packed::OUT + at] = gamma[f] * weight[f * HIDDEN + e];
        }
        out[Packed::OUT_BIAS + f] = gamma[f] * bias[f];
    }
    if backward {
        pack_transposed(fuse, proj, gate, out);
    }
}

/// Packs what the backward operation alone reads, but for the taps of dw1 and dw3.
fn pack_transposed(fuse: &[f32], proj: &[f32], gate: &[f32], out: &mut [f32]) {
    let taps = &mut out[Packed::GATE_FLIPPED..][..GROUPS * TAPS];
    pack_taps(gate, taps, true, channel);
    for i in 0..GROUPS * SQUARE {
        let (place, f) = (i / FEATURES, i % FEATURES);
        out[Packed::PROJ_TRANSPOSED + i] = proj[channel(place) * FEATURES + f];
    }
    for i in 0..2 * SQUARE {
        let (half, output, input) = (i / SQUARE, i / FEATURES % FEATURES, i % FEATURES);
        let from = output * 2 * FEATURES + half * FEATURES + input;
        out[Packed::FUSE_TRANSPOSED + i] = fuse[from];
    }
    out[Packed::ZEROS..][..HIDDEN].fill(0.0);
}
