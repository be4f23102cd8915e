//! ParagonSR2 Nano ("realtime"): its parameter table and its blocks, forward and backward. The
//! operations that every network of the family has are in `step`. Depends on the parameter table
//! and the plan's builder.

use super::step::{Layers, PlanContext};
use super::{BLUR_TAPS, Init, Network, ParamTable, SHARP_TAPS};
use crate::plan::{BufferId, Builder, Class, NanoBlock, NanoBlockBack, NanoParams, Op, ParamRange};

/// Features F of Nano: channels of every activation at LQ resolution.
pub(super) const FEATURES: usize = 16;
/// Blocks in its single group.
const BLOCKS: usize = 3;

/// The parameter table of Nano, and the ranges of its layers.
pub(super) fn table(net: &Network) -> (ParamTable, Layers) {
    let mut table = ParamTable::default();
    let t = &mut table;
    let gain = t.add("detail_gain", &[], Init::Constant(net.detail_gain), true);
    let conv_in = conv(t, "conv_in", FEATURES, 3, 3);
    let blocks = (0..BLOCKS).map(|i| block(t, net, i)).collect();
    let conv_mid = conv(t, "conv_mid", FEATURES, FEATURES, 3);
    let shuffled = FEATURES * net.scale * net.scale;
    let up = conv(t, "up.0", shuffled, FEATURES, 3);
    let conv_out = conv(t, "conv_out", 3, FEATURES, 3);
    base_taps(t, "sharp", &SHARP_TAPS);
    base_taps(t, "blur", &BLUR_TAPS);
    let layers = Layers {
        conv_in,
        blocks,
        conv_mid,
        up,
        conv_out,
        gain,
    };
    (table, layers)
}

/// Adds weight `[out, input, kernel, kernel]` and bias `[out]` of a convolution.
fn conv(
    t: &mut ParamTable,
    name: &str,
    out: usize,
    input: usize,
    kernel: usize,
) -> [ParamRange; 2] {
    let init = Init::FanIn(input * kernel * kernel);
    let shape = [out, input, kernel, kernel];
    [
        t.add(format!("{name}.weight"), &shape, init.clone(), true),
        t.add(format!("{name}.bias"), &[out], init, true),
    ]
}

/// Adds the parameters of block `i`.
fn block(t: &mut ParamTable, net: &Network, i: usize) -> NanoParams {
    let name = |layer: &str| format!("body.0.blocks.{i}.{layer}");
    let [conv1_weight, conv1_bias] = conv(t, &name("conv1"), 2 * FEATURES, FEATURES, 1);
    let [dw_weight, dw_bias] = conv(t, &name("dw"), 2 * FEATURES, 1, 3);
    let [conv2_weight, conv2_bias] = conv(t, &name("conv2"), FEATURES, 2 * FEATURES, 1);
    let gamma = Init::Constant(net.layer_scale);
    let gamma = t.add(name("scale.gamma"), &[1, FEATURES, 1, 1], gamma, true);
    NanoParams {
        conv1_weight,
        conv1_bias,
        dw_weight,
        dw_bias,
        conv2_weight,
        conv2_bias,
        gamma,
    }
}

/// Adds the fixed taps of one filter of the base, which PyTorch's `state_dict` contains three
/// times.
fn base_taps(t: &mut ParamTable, filter: &str, taps: &'static [f32]) {
    let k = taps.len();
    for (name, shape) in [
        ("kernel", &[k][..]),
        ("h.weight", &[3, 1, 1, k]),
        ("v.weight", &[3, 1, k, 1]),
    ] {
        t.add(
            format!("base.{filter}.{name}"),
            shape,
            Init::Taps(taps),
            false,
        );
    }
}

/// Halo in LQ pixels: conv_in, one pixel a block, conv_mid, up.0 and conv_out (one HR pixel,
/// rounded up). The base sees fewer: 3 pixels of sharpening and 2 HR pixels of blur.
pub(super) fn receptive_field() -> usize {
    1 + BLOCKS + 1 + 1 + 1 + 1
}

/// Appends the blocks; each keeps its input for the backward pass. `input` is the output of
/// conv_in, `[N, h, w, F]`. Returns the blocks and the last one's output.
pub(super) fn forward(
    b: &mut Builder,
    c: &PlanContext<'_>,
    input: BufferId,
) -> (Vec<NanoBlock>, BufferId) {
    let mut output = input;
    let mut blocks = Vec::new();
    for (i, &params) in c.layers.blocks.iter().enumerate() {
        let name = format!("body.0.blocks.{i}");
        let next = b.map(name, Class::Activations, c.extent.pixels() * FEATURES);
        let input = std::mem::replace(&mut output, next);
        let op = NanoBlock {
            extent: c.extent,
            features: FEATURES,
            params,
            parameters: c.parameters,
            input,
            output,
            workspace: None,
        };
        b.push(Op::NanoBlock(op.clone()));
        blocks.push(op);
    }
    (blocks, output)
}

/// Appends the blocks' backward pass, the last block first. `d_output` is the gradient of the last
/// block's output, `[N, h, w, F]`; returns that of the first block's input.
pub(super) fn backward(
    b: &mut Builder,
    blocks: &[NanoBlock],
    gradients: BufferId,
    d_output: BufferId,
) -> BufferId {
    let mut d_output = d_output;
    for (i, block) in blocks.iter().enumerate().rev() {
        let name = format!("d body.0.blocks.{i} input");
        let count = block.extent.pixels() * FEATURES;
        let d_input = b.map(name, Class::ActivationGradients, count);
        b.push(Op::NanoBlockBack(NanoBlockBack {
            forward: block.clone(),
            gradients,
            d_output,
            d_input,
            workspace: None,
        }));
        d_output = d_input;
    }
    d_output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (scale, count) in [(2, 16_780), (4, 44_620)] {
            // the two `base.*.kernel` buffers are in the state_dict but are no parameters
            let table = Network::new("nano", scale).unwrap().params();
            let parameters = table.params.iter().filter(|p| !p.name.ends_with("kernel"));
            assert_eq!(parameters.map(|p| p.range.len).sum::<usize>(), count);
        }
    }
}
