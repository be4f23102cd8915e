//! ParagonSR2 Nano ("realtime"): its parameter table and its plans for training and inference.

use super::{BLUR_TAPS, Init, Network, ParamTable, SHARP_TAPS};
use crate::plan::{
    BatchLayout, BufferId, Builder, Class, Conv, ConvBack, Extent, Head, HeadBack, LossKind, METRICS, NanoBlock, NanoBlockBack, NanoParams,
    Op, ParamRange, PixelLoss, Plan, Ports, Sizing, StructuralLoss, Target, Unpack, Update, split_losses,
};
use anyhow::Result;

/// Features F of Nano.
const FEATURES: usize = 16;
/// Blocks in its single group.
const BLOCKS: usize = 3;

/// What a training plan is built for.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// Patches in a micro-batch.
    pub batch: usize,
    /// LQ patch height and width, pixels.
    pub lq: (usize, usize),
    /// Losses and their weights.
    pub losses: Vec<(LossKind, f32)>,
    /// AdamW's (beta1, beta2).
    pub betas: (f64, f64),
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Take input and target as float buffers instead of a staged u8 batch (reference tests).
    pub float_input: bool,
    /// Also compute the gradient with respect to the input (reference tests).
    pub input_gradient: bool,
    /// Keep to direct convolutions, to compare the faster forms with.
    pub direct: bool,
}

/// What an inference plan is built for.
#[derive(Clone, Copy, Debug)]
pub struct InferenceSpec {
    /// Tiles in a batch.
    pub batch: usize,
    /// Tile height and width in LQ pixels.
    pub lq: (usize, usize),
    /// Take the input as a float buffer instead of u8.
    pub float_input: bool,
}

/// Ranges of every parameter, found by name once.
struct Layers {
    conv_in: [ParamRange; 2],
    blocks: Vec<NanoParams>,
    conv_mid: [ParamRange; 2],
    up: [ParamRange; 2],
    conv_out: [ParamRange; 2],
    gain: ParamRange,
}

fn table(net: &Network) -> (ParamTable, Layers) {
    let mut t = ParamTable::default();
    let conv = |t: &mut ParamTable, name: &str, out: usize, input: usize, kernel: usize| {
        let init = Init::FanIn(input * kernel * kernel);
        [
            t.add(format!("{name}.weight"), &[out, input, kernel, kernel], init.clone(), true),
            t.add(format!("{name}.bias"), &[out], init, true),
        ]
    };
    let gain = t.add("detail_gain", &[], Init::Constant(net.detail_gain), true);
    let conv_in = conv(&mut t, "conv_in", FEATURES, 3, 3);
    let blocks = (0..BLOCKS)
        .map(|i| {
            let name = format!("body.0.blocks.{i}");
            let [conv1_weight, conv1_bias] = conv(&mut t, &format!("{name}.conv1"), 2 * FEATURES, FEATURES, 1);
            let [dw_weight, dw_bias] = conv(&mut t, &format!("{name}.dw"), 2 * FEATURES, 1, 3);
            let [conv2_weight, conv2_bias] = conv(&mut t, &format!("{name}.conv2"), FEATURES, 2 * FEATURES, 1);
            let gamma = t.add(format!("{name}.scale.gamma"), &[1, FEATURES, 1, 1], Init::Constant(net.layer_scale), true);
            NanoParams { conv1_weight, conv1_bias, dw_weight, dw_bias, conv2_weight, conv2_bias, gamma }
        })
        .collect();
    let conv_mid = conv(&mut t, "conv_mid", FEATURES, FEATURES, 3);
    let up = conv(&mut t, "up.0", FEATURES * net.scale * net.scale, FEATURES, 3);
    let conv_out = conv(&mut t, "conv_out", 3, FEATURES, 3);
    for (name, taps) in [("sharp", &SHARP_TAPS[..]), ("blur", &BLUR_TAPS[..])] {
        let k = taps.len();
        let taps: &'static [f32] = if k == 7 { &SHARP_TAPS } else { &BLUR_TAPS };
        t.add(format!("base.{name}.kernel"), &[k], Init::Taps(taps), false);
        t.add(format!("base.{name}.h.weight"), &[3, 1, 1, k], Init::Taps(taps), false);
        t.add(format!("base.{name}.v.weight"), &[3, 1, k, 1], Init::Taps(taps), false);
    }
    (t, Layers { conv_in, blocks, conv_mid, up, conv_out, gain })
}

pub(super) fn params(net: &Network) -> ParamTable {
    table(net).0
}

pub(super) fn receptive_field(_: &Network) -> usize {
    // conv_in, one pixel a block, conv_mid, up.0, conv_out (one HR pixel), against 3 + 2 of the base: rounded up
    1 + BLOCKS + 1 + 1 + 1 + 1
}

/// The forward operations, shared by training and inference.
struct Forward {
    input: BufferId,
    conv_in: Conv,
    blocks: Vec<NanoBlock>,
    conv_mid: Conv,
    up: Conv,
    head: Head,
}

#[allow(clippy::too_many_arguments)] // all of them plain facts about one network
fn forward(
    b: &mut Builder,
    net: &Network,
    layers: &Layers,
    extent: Extent,
    parameters: BufferId,
    batch: Option<BatchLayout>,
    position_free: bool,
    subtract: Option<BatchLayout>,
) -> Forward {
    let f = FEATURES;
    let map = |b: &mut Builder, name: &str, e: Extent, c: usize| b.floats(name, Class::Activations, e.pixels() * c);
    let input = map(b, "input", extent, 3);
    if let Some(batch) = batch {
        b.push(Op::Unpack(Unpack { batch, output: input }));
    }
    let conv = |b: &mut Builder, name: &str, input: BufferId, cin: usize, cout: usize, shuffle: usize, range: [ParamRange; 2]| {
        let output = map(b, name, extent.scaled(shuffle), cout);
        let [weight, bias] = range;
        let op = Conv { extent, cin, cout, shuffle, position_free, weight, bias, parameters, input, output, workspace: None };
        b.push(Op::Conv(op.clone()));
        op
    };
    let conv_in = conv(b, "conv_in", input, 3, f, 1, layers.conv_in);
    let mut last = conv_in.output;
    let mut blocks = Vec::new();
    for (i, &params) in layers.blocks.iter().enumerate() {
        let output = map(b, &format!("body.0.blocks.{i}"), extent, f);
        let op = NanoBlock { extent, features: f, params, parameters, input: last, output, workspace: None };
        b.push(Op::NanoBlock(op.clone()));
        blocks.push(op);
        last = output;
    }
    let conv_mid = conv(b, "conv_mid", last, f, f, 1, layers.conv_mid);
    let up = conv(b, "up.0", conv_mid.output, f, f, net.scale, layers.up);
    let head = Head {
        extent,
        scale: net.scale,
        features: f,
        alpha: net.upsampler_alpha,
        weight: layers.conv_out[0],
        bias: layers.conv_out[1],
        gain: layers.gain,
        parameters,
        input,
        features_in: up.output,
        output: map(b, "output", extent.scaled(net.scale), 3),
        target: subtract,
        workspace: None,
    };
    b.push(Op::Head(head.clone()));
    Forward { input, conv_in, blocks, conv_mid, up, head }
}

/// The plan of one training iteration: unpack, forward, loss, backward, then the optimizer step.
///
/// # Errors
/// Only on a bug in this builder (the plan is verified).
pub fn training_plan(net: &Network, spec: &StepSpec, sizing: &dyn Sizing) -> Result<Plan> {
    let (table, layers) = table(net);
    let mut b = Builder::new(sizing);
    let extent = Extent { n: spec.batch, h: spec.lq.0, w: spec.lq.1 };
    let trainable = table.trainable();
    let parameters = b.floats("parameters", Class::Parameters, table.len());
    let gradients = b.floats("gradients", Class::Gradients, trainable);
    let moment1 = b.floats("first moment", Class::Optimizer, trainable);
    let moment2 = b.floats("second moment", Class::Optimizer, trainable);
    let ema = b.floats("EMA", Class::Ema, table.len());
    let metrics = b.buffer("metrics", Class::Metrics, METRICS as u64 * 8);
    let batch = (!spec.float_input).then(|| {
        let mut layout = BatchLayout { buffer: BufferId(0), count: spec.batch, lq: spec.lq, scale: net.scale, with_hr: true };
        layout.buffer = b.buffer("batch", Class::Batch, layout.bytes() as u64);
        layout
    });
    let (terms, structural) = split_losses(&spec.losses);
    let subtract = batch.filter(|_| structural.is_empty());
    let fwd = forward(&mut b, net, &layers, extent, parameters, batch, spec.direct, subtract);
    let hr = extent.scaled(net.scale);
    let target = match batch {
        Some(_) if subtract.is_some() => Target::Subtracted(fwd.head.output),
        Some(batch) => Target::Batch(batch),
        None => Target::Float(b.floats("target", Class::Activations, hr.pixels() * 3)),
    };
    let gradient =
        |b: &mut Builder, name: &str, e: Extent, c: usize| b.floats(format!("d {name}"), Class::ActivationGradients, e.pixels() * c);
    let prediction = fwd.head.output;
    // the pixel losses read each value once and may leave the gradient in its place; windows are read again and again
    let d_prediction = if structural.is_empty() { prediction } else { gradient(&mut b, "output", hr, 3) };
    b.push(Op::PixelLoss(PixelLoss { extent: hr, terms, prediction, target, d_prediction, metrics, workspace: None }));
    if !structural.is_empty() {
        let terms = structural;
        b.push(Op::StructuralLoss(StructuralLoss { extent: hr, terms, prediction, target, d_prediction, metrics, workspace: None }));
    }
    let d_input = spec.input_gradient.then(|| gradient(&mut b, "input through the base", extent, 3));
    let d_features = gradient(&mut b, "up.0", hr, FEATURES);
    b.push(Op::HeadBack(HeadBack { forward: fwd.head.clone(), gradients, d_output: d_prediction, d_features, d_input, workspace: None }));
    let conv_back = |b: &mut Builder, conv: &Conv, d_output: BufferId, d_input: Option<BufferId>| {
        b.push(Op::ConvBack(ConvBack { forward: conv.clone(), gradients, d_output, d_input, workspace: None }));
    };
    let d_mid = gradient(&mut b, "conv_mid", extent, FEATURES);
    conv_back(&mut b, &fwd.up, d_features, Some(d_mid));
    let mut d_last = gradient(&mut b, "body", extent, FEATURES);
    conv_back(&mut b, &fwd.conv_mid, d_mid, Some(d_last));
    for (i, block) in fwd.blocks.iter().enumerate().rev() {
        let d_block = gradient(&mut b, &format!("body.0.blocks.{i} input"), extent, FEATURES);
        b.push(Op::NanoBlockBack(NanoBlockBack { forward: block.clone(), gradients, d_output: d_last, d_input: d_block, workspace: None }));
        d_last = d_block;
    }
    let d_conv_in = spec.input_gradient.then(|| gradient(&mut b, "input through conv_in", extent, 3));
    conv_back(&mut b, &fwd.conv_in, d_last, d_conv_in);
    let micro = 0..b.position();
    b.push(Op::Update(Update {
        trainable,
        beta1: spec.betas.0,
        beta2: spec.betas.1,
        epsilon: spec.epsilon,
        weight_decay: spec.weight_decay,
        parameters,
        gradients,
        moment1,
        moment2,
        ema,
        metrics,
        workspace: None,
    }));
    let update = micro.end..b.position();
    let ports = Ports {
        parameters: Some(parameters),
        gradients: Some(gradients),
        moment1: Some(moment1),
        moment2: Some(moment2),
        ema: Some(ema),
        input: Some(fwd.input),
        target: match target {
            Target::Float(id) => Some(id),
            Target::Batch(_) | Target::Subtracted(_) => None,
        },
        input_gradients: [d_input, d_conv_in],
        output: None,
        metrics: Some(metrics),
    };
    b.finish(micro, update, batch, ports)
}

/// The plan of inference on one tile (or a batch of equal tiles): forward only, float output.
///
/// # Errors
/// Only on a bug in this builder.
pub fn inference_plan(net: &Network, spec: &InferenceSpec, sizing: &dyn Sizing) -> Result<Plan> {
    let (table, layers) = table(net);
    let mut b = Builder::new(sizing);
    let extent = Extent { n: spec.batch, h: spec.lq.0, w: spec.lq.1 };
    let parameters = b.floats("parameters", Class::Parameters, table.len());
    let batch = (!spec.float_input).then(|| {
        let mut layout = BatchLayout { buffer: BufferId(0), count: spec.batch, lq: spec.lq, scale: net.scale, with_hr: false };
        layout.buffer = b.buffer("batch", Class::Batch, layout.bytes() as u64);
        layout
    });
    // pictures are cut into overlapping tiles, whose results must agree to the bit
    let fwd = forward(&mut b, net, &layers, extent, parameters, batch, true, None);
    let micro = 0..b.position();
    let ports = Ports { parameters: Some(parameters), input: Some(fwd.input), output: Some(fwd.head.output), ..Ports::default() };
    b.finish(micro.clone(), micro.end..micro.end, batch, ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoWorkspace;
    impl Sizing for NoWorkspace {
        fn workspace(&self, _: &Op) -> u64 {
            0
        }
    }

    fn spec(batch: usize, lq: (usize, usize)) -> StepSpec {
        StepSpec {
            batch,
            lq,
            losses: vec![(LossKind::L1, 1.0)],
            betas: (0.9, 0.99),
            epsilon: 1e-8,
            weight_decay: 1e-4,
            float_input: false,
            input_gradient: false,
            direct: false,
        }
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (scale, count) in [(2, 16_780), (4, 44_620)] {
            // the two `base.*.kernel` buffers are in the state_dict but are no parameters
            let table = Network::new("nano", scale).unwrap().params();
            let parameters = table.params.iter().filter(|p| !p.name.ends_with("kernel"));
            assert_eq!(parameters.map(|p| p.range.len).sum::<usize>(), count);
        }
    }

    #[test]
    fn plans_verify_and_lie_close_to_the_lower_bound() {
        for scale in [2, 3, 4] {
            let net = Network::new("nano", scale).unwrap();
            for (batch, lq) in [(1, (8, 8)), (3, (33, 17)), (16, (128, 128))] {
                let mut spec = spec(batch, lq);
                for _ in 0..2 {
                    let plan = training_plan(&net, &spec, &NoWorkspace).unwrap();
                    let (peak, _) = plan.peak();
                    assert!(plan.arena_bytes as f64 <= 1.1 * peak as f64, "{} against {peak}", plan.arena_bytes);
                    spec.losses.push((LossKind::Ssim, 0.05));
                }
            }
        }
    }

    #[test]
    fn verify_catches_a_shared_byte_and_a_missing_write() {
        let net = Network::new("nano", 2).unwrap();
        let mut plan = training_plan(&net, &spec(1, (8, 8)), &NoWorkspace).unwrap();
        let good = plan.clone();
        let output = plan.ops.iter().find_map(|op| if let Op::Head(h) = op { Some(h.output) } else { None }).unwrap();
        plan.buffers[output.0 as usize].offset = plan.buffers[0].offset;
        assert!(plan.verify().is_err());
        let mut plan = good;
        plan.ops.remove(1); // conv_in: its output is read by the first block
        assert!(plan.verify().unwrap_err().to_string().contains("before it is written"));
        let mut plan = training_plan(&net, &StepSpec { losses: vec![(LossKind::Ssim, 1.0)], ..spec(1, (8, 8)) }, &NoWorkspace).unwrap();
        for op in &mut plan.ops {
            if let Op::StructuralLoss(o) = op {
                o.d_prediction = o.prediction;
            }
        }
        assert!(plan.verify().unwrap_err().to_string().contains("while reading it"));
    }
}
