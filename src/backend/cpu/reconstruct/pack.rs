//! The packed parameters of a [`Reconstruct`]: where they lie in the workspace, and how the folded
//! kernel is computed into it. Depends on `folded_conv`.

use super::super::border::shape;
use super::super::folded_conv::{Convolutions, TAPS, fold};
use super::super::tasks::{Context, WorkspaceParts, round_up_to_lanes};
use super::super::winograd::POINTS;
use crate::plan::{ParamRange, Reconstruct};

/// Lanes of the folded convolution, rounded up to whole vectors.
pub fn padded_lanes(op: &Reconstruct) -> usize {
    round_up_to_lanes(shape(op).lanes())
}

/// The place of each packed array in the shared part of the workspace, f32 elements.
pub struct Packed {
    /// Weights of `up`, as in [`Convolutions`].
    up: usize,
    /// Bias of `up`.
    up_bias: usize,
    /// Weights of `conv_out`.
    out: usize,
    /// The folded kernel and bias in f64; not used once they are packed.
    kernel: usize,
    /// Forward: the folded bias times gain, `[padded lanes]`. Backward: zeros, `[F]`.
    pub bias: usize,
    /// The folded kernel times gain, in the order of the form that is computed.
    pub weights: usize,
    /// A row of zeros.
    pub zeros: usize,
    /// Elements of all arrays.
    pub len: usize,
}

impl Packed {
    /// The places for the forward or the backward operation.
    pub fn new(op: &Reconstruct, backward: bool) -> Packed {
        let (s, f, lanes) = (shape(op), op.features, padded_lanes(op));
        let mut at = 0;
        let mut take = |len: usize| {
            at += round_up_to_lanes(len);
            at - round_up_to_lanes(len)
        };
        let (up, up_bias, out) = (
            take(s.up_weights()),
            take(f * s.scale * s.scale),
            take(s.out_weights()),
        );
        let (kernel, bias) = (take(2 * (s.kernel() + s.lanes())), take(lanes.max(f)));
        let weights = take(if !super::winograd(op) && !backward {
            TAPS * TAPS * f * lanes
        } else {
            POINTS * f * lanes
        });
        let zeros = take(op.extent.w * lanes.max(f));
        Packed {
            up,
            up_bias,
            out,
            kernel,
            bias,
            weights,
            zeros,
            len: at,
        }
    }
}

/// The parameters of a [`Reconstruct`] as the tasks use them.
pub struct Parameters<'a> {
    /// `detail_gain`; the packed folded kernel and bias contain it, the convolutions do not.
    pub gain: f32,
    /// The two convolutions, in the orders of `folded_conv`.
    pub convolutions: Convolutions<'a>,
}

/// Packs the two convolutions and folds them. `pack_folded(kernel, bias, gain)` receives the folded
/// kernel `[lane][5 x 5][ci]` and bias `[lane]`, both without gain, and packs them.
pub fn pack_parameters<'a>(
    ctx: &Context<'_>,
    op: &Reconstruct,
    parts: WorkspaceParts,
    p: &Packed,
    pack_folded: impl FnOnce(&[f64], &[f64], f64),
) -> Parameters<'a> {
    let s = shape(op);
    // SAFETY: the ranges lie inside the parameters. The pieces lie inside the workspace, do not
    // overlap and begin at whole vectors (see `Packed::new`), which aligns the f64 as well. No task
    // runs yet, and none writes them later.
    unsafe {
        let get = |range: ParamRange| &*ctx.param(op.parameters, range).slice(0, range.len);
        let shared = parts.shared();
        let (up, up_bias) = (
            shared.slice(p.up, s.up_weights()),
            shared.slice(p.up_bias, s.features * s.scale * s.scale),
        );
        let out = shared.slice(p.out, s.out_weights());
        let (weight, bias, out_weight) = (get(op.up_weight), get(op.up_bias), get(op.weight));
        up.iter_mut()
            .enumerate()
            .for_each(|(i, u)| *u = weight[s.torch_up(i)]);
        bias.iter()
            .enumerate()
            .for_each(|(i, &b)| up_bias[s.bias_of_torch(i)] = b);
        out_weight
            .iter()
            .enumerate()
            .for_each(|(i, &w)| out[s.out_of_torch(i)] = w);
        shared.slice(p.zeros, p.len - p.zeros).fill(0.0);
        let convolutions = Convolutions {
            up,
            up_bias,
            out,
            out_bias: get(op.bias),
        };
        let gain = get(op.gain)[0];
        let kernel = std::slice::from_raw_parts_mut(
            shared.at(p.kernel).cast::<f64>(),
            s.kernel() + s.lanes(),
        );
        let (kernel, bias) = kernel.split_at_mut(s.kernel());
        fold(s, convolutions, kernel, bias);
        pack_folded(kernel, bias, f64::from(gain));
        Parameters { gain, convolutions }
    }
}
