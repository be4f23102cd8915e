//! ParagonSR2 Nano ("realtime"): its parameter table and its plans for training and inference.

use super::{BLUR_TAPS, Init, Network, ParamTable, Recompute, SHARP_TAPS};
use crate::plan::{
    BatchLayout, BufferId, Builder, Class, Conv, ConvBack, Extent, FoldedConv, LossKind,
    MAX_IMAGES, MAX_SIDE, METRICS, NanoBlock, NanoBlockBack, NanoParams, Op, OptimizerKind,
    ParamRange, PixelLoss, PixelTerms, Plan, Ports, Reconstruct, ReconstructBack, Sizing, Slice,
    StructuralLoss, StructuralTerms, Target, Unpack, Update, split_losses,
};
use anyhow::{Result, ensure};
use std::ops::Range;

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
    /// What makes a step of a gradient.
    pub optimizer: OptimizerKind,
    /// Its (beta1, beta2).
    pub betas: (f64, f64),
    /// Its epsilon.
    pub epsilon: f64,
    /// Weight decay; how it acts the optimizer says.
    pub weight_decay: f64,
    /// Take input and target as float buffers instead of a staged u8 batch (reference tests).
    pub float_input: bool,
    /// Also compute the gradient with respect to the input (reference tests).
    pub input_gradient: bool,
    /// Keep to direct convolutions, to compare the faster forms with.
    pub without_winograd: bool,
    /// What is kept between forward and backward.
    pub recompute: Recompute,
}

impl StepSpec {
    /// A step on staged u8 batches with the published optimizer: AdamW, betas 0.9 and 0.99, weight
    /// decay 1e-4.
    pub fn new(batch: usize, lq: (usize, usize), losses: Vec<(LossKind, f32)>) -> StepSpec {
        StepSpec {
            batch,
            lq,
            losses,
            optimizer: OptimizerKind::AdamW,
            betas: (0.9, 0.99),
            epsilon: 1e-8,
            weight_decay: 1e-4,
            float_input: false,
            input_gradient: false,
            without_winograd: false,
            recompute: Recompute::default(),
        }
    }
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
            t.add(
                format!("{name}.weight"),
                &[out, input, kernel, kernel],
                init.clone(),
                true,
            ),
            t.add(format!("{name}.bias"), &[out], init, true),
        ]
    };
    let gain = t.add("detail_gain", &[], Init::Constant(net.detail_gain), true);
    let conv_in = conv(&mut t, "conv_in", FEATURES, 3, 3);
    let blocks = (0..BLOCKS)
        .map(|i| {
            let name = format!("body.0.blocks.{i}");
            let [conv1_weight, conv1_bias] =
                conv(&mut t, &format!("{name}.conv1"), 2 * FEATURES, FEATURES, 1);
            let [dw_weight, dw_bias] = conv(&mut t, &format!("{name}.dw"), 2 * FEATURES, 1, 3);
            let [conv2_weight, conv2_bias] =
                conv(&mut t, &format!("{name}.conv2"), FEATURES, 2 * FEATURES, 1);
            let gamma = t.add(
                format!("{name}.scale.gamma"),
                &[1, FEATURES, 1, 1],
                Init::Constant(net.layer_scale),
                true,
            );
            NanoParams {
                conv1_weight,
                conv1_bias,
                dw_weight,
                dw_bias,
                conv2_weight,
                conv2_bias,
                gamma,
            }
        })
        .collect();
    let conv_mid = conv(&mut t, "conv_mid", FEATURES, FEATURES, 3);
    let up = conv(
        &mut t,
        "up.0",
        FEATURES * net.scale * net.scale,
        FEATURES,
        3,
    );
    let conv_out = conv(&mut t, "conv_out", 3, FEATURES, 3);
    for (name, taps) in [("sharp", &SHARP_TAPS[..]), ("blur", &BLUR_TAPS[..])] {
        let k = taps.len();
        let taps: &'static [f32] = if k == 7 { &SHARP_TAPS } else { &BLUR_TAPS };
        t.add(format!("base.{name}.kernel"), &[k], Init::Taps(taps), false);
        t.add(
            format!("base.{name}.h.weight"),
            &[3, 1, 1, k],
            Init::Taps(taps),
            false,
        );
        t.add(
            format!("base.{name}.v.weight"),
            &[3, 1, k, 1],
            Init::Taps(taps),
            false,
        );
    }
    (
        t,
        Layers {
            conv_in,
            blocks,
            conv_mid,
            up,
            conv_out,
            gain,
        },
    )
}

pub(super) fn params(net: &Network) -> ParamTable {
    table(net).0
}

pub(super) fn receptive_field(_: &Network) -> usize {
    // conv_in, one pixel a block, conv_mid, up.0, conv_out (one HR pixel), against 3 + 2 of the
    // base: rounded up
    1 + BLOCKS + 1 + 1 + 1 + 1
}

/// What the operations of one plan have in common.
struct Common<'a> {
    net: &'a Network,
    layers: &'a Layers,
    /// The whole micro-batch.
    extent: Extent,
    parameters: BufferId,
    tile_invariant: bool,
}

impl Common<'_> {
    fn conv(
        &self,
        extent: Extent,
        (cin, cout): (usize, usize),
        range: [ParamRange; 2],
        input: BufferId,
        output: BufferId,
    ) -> Conv {
        let Common {
            tile_invariant,
            parameters,
            ..
        } = *self;
        let [weight, bias] = range;
        Conv {
            extent,
            cin,
            cout,
            tile_invariant,
            weight,
            bias,
            parameters,
            input,
            output,
            workspace: None,
        }
    }
}

/// The forward operations on LQ maps up to the last block, which keep their inputs.
struct Body {
    input: BufferId,
    conv_in: Conv,
    blocks: Vec<NanoBlock>,
    output: BufferId,
}

fn body(b: &mut Builder, c: &Common<'_>, batch: Option<BatchLayout>) -> Body {
    let extent = c.extent;
    let input = b.floats("input", Class::Activations, extent.pixels() * 3);
    if let Some(batch) = batch {
        b.push(Op::Unpack(Unpack {
            batch,
            output: input,
        }));
    }
    let map =
        |b: &mut Builder, name: &str| b.map(name, Class::Activations, extent.pixels() * FEATURES);
    let mut output = map(b, "conv_in");
    let conv_in = c.conv(extent, (3, FEATURES), c.layers.conv_in, input, output);
    b.push(Op::Conv(conv_in.clone()));
    let mut blocks = Vec::new();
    for (i, &params) in c.layers.blocks.iter().enumerate() {
        let input = std::mem::replace(&mut output, map(b, &format!("body.0.blocks.{i}")));
        let op = NanoBlock {
            extent,
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
    Body {
        input,
        conv_in,
        blocks,
        output,
    }
}

/// The rest of the forward pass, on all images or on a slice of them.
struct Tail {
    conv_mid: Conv,
    reconstruct: Reconstruct,
}

/// What slices of a tail share, and how they differ from inference.
struct TailKind {
    /// What the prediction counts as.
    class: Class,
    /// Leave the prediction less its target.
    subtract: Option<BatchLayout>,
    /// The slice before made it.
    folded: Option<FoldedConv>,
}

fn tail(
    b: &mut Builder,
    c: &Common<'_>,
    body: &Body,
    images: &Range<usize>,
    kind: TailKind,
) -> Tail {
    let of = c.extent.n;
    let extent = Extent {
        n: images.len(),
        ..c.extent
    };
    let hr = extent.scaled(c.net.scale);
    let part = if images.len() == of {
        String::new()
    } else {
        format!(", images {} to {}", images.start, images.end - 1)
    };
    let (input, lq) = (
        b.images(body.output, images, of),
        b.images(body.input, images, of),
    );
    let mid = b.map(
        format!("conv_mid{part}"),
        Class::Activations,
        extent.pixels() * FEATURES,
    );
    let conv_mid = c.conv(extent, (FEATURES, FEATURES), c.layers.conv_mid, input, mid);
    b.push(Op::Conv(conv_mid.clone()));
    let output = b.floats(format!("output{part}"), kind.class, hr.pixels() * 3);
    let ([up_weight, up_bias], [weight, bias]) = (c.layers.up, c.layers.conv_out);
    let mut reconstruct = Reconstruct {
        extent,
        scale: c.net.scale,
        features: FEATURES,
        alpha: c.net.upsampler_alpha,
        up_weight,
        up_bias,
        weight,
        bias,
        gain: c.layers.gain,
        parameters: c.parameters,
        tile_invariant: c.tile_invariant,
        input: lq,
        features_in: mid,
        output,
        target: kind.subtract.map(|batch| BatchLayout {
            first: images.start,
            ..batch
        }),
        folded: kind.folded.map(|folded| FoldedConv {
            first: false,
            ..folded
        }),
        workspace: None,
    };
    reconstruct.folded = reconstruct.folded.or_else(|| b.folded(&reconstruct));
    b.push(Op::Reconstruct(reconstruct.clone()));
    Tail {
        conv_mid,
        reconstruct,
    }
}

/// Refuses what no plan can be made for, so that no size below overflows.
fn check_sizes(net: &Network, images: usize, (h, w): (usize, usize)) -> Result<()> {
    net.check()?;
    ensure!(
        (1..=MAX_IMAGES).contains(&images),
        "{images} images at once; a plan takes 1 to {MAX_IMAGES}"
    );
    let most = MAX_SIDE / net.scale;
    ensure!(
        (1..=most).contains(&h) && (1..=most).contains(&w),
        "{w}x{h} LQ pixels; a plan takes sides of 1 to {most} at scale {}",
        net.scale
    );
    Ok(())
}

fn scalars(b: &mut Builder) -> Option<BufferId> {
    let bytes = b.scalar_bytes();
    (bytes > 0).then(|| b.buffer("scalars", Class::Metrics, bytes))
}

/// The plan of one training iteration: unpack, forward, loss, backward, then the optimizer step.
///
/// # Errors
/// A network or sizes that there is no plan for.
pub fn training_plan(net: &Network, spec: &StepSpec, sizing: &dyn Sizing) -> Result<Plan> {
    check_sizes(net, spec.batch, spec.lq)?;
    let (table, layers) = table(net);
    let mut b = Builder::new(sizing);
    let extent = Extent {
        n: spec.batch,
        h: spec.lq.0,
        w: spec.lq.1,
    };
    let trainable = table.trainable();
    let parameters = b.floats("parameters", Class::Parameters, table.len());
    let gradients = b.floats("gradients", Class::Gradients, trainable);
    let moment1 = b.floats("first moment", Class::Optimizer, trainable);
    let moment2 = b.floats("second moment", Class::Optimizer, trainable);
    let ema = b.floats("EMA", Class::Ema, table.len());
    let metrics = b.buffer("metrics", Class::Metrics, METRICS as u64 * 8);
    let scalars = scalars(&mut b);
    let batch = (!spec.float_input).then(|| {
        let mut layout = BatchLayout {
            buffer: BufferId(0),
            first: 0,
            count: spec.batch,
            lq: spec.lq,
            scale: net.scale,
            with_hr: true,
        };
        layout.buffer = b.buffer("batch", Class::Batch, layout.bytes() as u64);
        layout
    });
    let next_batch = batch
        .filter(|_| b.copies_ahead())
        .map(|layout| b.buffer("next batch", Class::Batch, layout.bytes() as u64));
    let common = Common {
        net,
        layers: &layers,
        extent,
        parameters,
        tile_invariant: spec.without_winograd,
    };
    let body = body(&mut b, &common, batch);
    let hr_pixels = extent.h * extent.w * net.scale * net.scale;
    let target = spec
        .float_input
        .then(|| b.floats("target", Class::Loss, spec.batch * hr_pixels * 3));
    let gradient = |b: &mut Builder, name: &str, e: Extent, c: usize| {
        b.map(
            format!("d {name}"),
            Class::ActivationGradients,
            e.pixels() * c,
        )
    };
    let d_body = gradient(&mut b, "body", extent, FEATURES);
    let d_input = spec.input_gradient.then(|| {
        b.floats(
            "d input through the base",
            Class::ActivationGradients,
            extent.pixels() * 3,
        )
    });
    let mut tail_back = TailBack {
        losses: split_losses(&spec.losses),
        gradients,
        metrics,
        batch,
        target,
        d_body,
        d_input,
        folded: None,
        carries: None,
    };
    let step = spec.recompute.slice_images(spec.batch, hr_pixels);
    for start in (0..spec.batch).step_by(step) {
        tail_back.run(
            &mut b,
            &common,
            &body,
            start..(start + step).min(spec.batch),
        );
    }
    let mut d_last = d_body;
    for (i, block) in body.blocks.iter().enumerate().rev() {
        let d_block = gradient(
            &mut b,
            &format!("body.0.blocks.{i} input"),
            extent,
            FEATURES,
        );
        b.push(Op::NanoBlockBack(NanoBlockBack {
            forward: block.clone(),
            gradients,
            d_output: d_last,
            d_input: d_block,
            workspace: None,
        }));
        d_last = d_block;
    }
    let d_conv_in = spec.input_gradient.then(|| {
        b.floats(
            "d input through conv_in",
            Class::ActivationGradients,
            extent.pixels() * 3,
        )
    });
    let slice = Slice::whole(spec.batch);
    let (forward, d_output) = (body.conv_in, d_last);
    b.push(Op::ConvBack(ConvBack {
        forward,
        gradients,
        d_output,
        d_input: d_conv_in,
        slice,
        workspace: None,
    }));
    let micro = 0..b.position();
    b.push(Op::Update(Update {
        trainable,
        optimizer: spec.optimizer,
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
        input: Some(body.input),
        target,
        input_gradients: [d_input, d_conv_in],
        output: None,
        metrics: Some(metrics),
        scalars,
        next_batch,
    };
    b.finish(micro, update, batch, ports)
}

/// Loss and backward of the tail, slice by slice.
struct TailBack {
    losses: (PixelTerms, StructuralTerms),
    gradients: BufferId,
    metrics: BufferId,
    batch: Option<BatchLayout>,
    /// The float target, in plans that take one.
    target: Option<BufferId>,
    d_body: BufferId,
    d_input: Option<BufferId>,
    /// The composition that the first slice made.
    folded: Option<FoldedConv>,
    /// Where sums wait between slices, in the order the operations ask.
    carries: Option<Vec<Option<BufferId>>>,
}

impl TailBack {
    fn run(&mut self, b: &mut Builder, c: &Common<'_>, body: &Body, images: Range<usize>) {
        let of = c.extent.n;
        let (terms, structural) = self.losses.clone();
        let kind = TailKind {
            class: Class::Loss,
            subtract: self.batch,
            folded: self.folded,
        };
        let forward = tail(b, c, body, &images, kind);
        self.folded = forward.reconstruct.folded;
        let extent = Extent {
            n: images.len(),
            ..c.extent
        };
        let hr = extent.scaled(c.net.scale);
        let prediction = forward.reconstruct.output;
        let target = match (self.batch, self.target) {
            (Some(batch), _) => Target::Subtracted(BatchLayout {
                first: images.start,
                ..batch
            }),
            (None, Some(target)) => Target::Float(b.images(target, &images, of)),
            (None, None) => unreachable!("a plan takes bytes or floats"),
        };
        let (gradients, metrics) = (self.gradients, self.metrics);
        let slice = Slice {
            of,
            first: images.start == 0,
            last: images.end == of,
            carry: None,
        };
        // the pixel losses read each value once and may leave the gradient in its place; windows
        // are read again and again
        let d_prediction = if structural.is_empty() {
            prediction
        } else {
            b.floats("d output", Class::Loss, hr.pixels() * 3)
        };
        let mut ops = vec![Op::PixelLoss(PixelLoss {
            extent: hr,
            terms,
            prediction,
            target,
            d_prediction,
            metrics,
            slice,
            workspace: None,
        })];
        if !structural.is_empty() {
            let terms = structural;
            ops.push(Op::StructuralLoss(StructuralLoss {
                extent: hr,
                terms,
                prediction,
                target,
                d_prediction,
                metrics,
                slice,
                workspace: None,
            }));
        }
        let d_input = self.d_input.map(|id| b.images(id, &images, of));
        let d_mid = b.map(
            "d conv_mid",
            Class::ActivationGradients,
            extent.pixels() * FEATURES,
        );
        let (d_output, d_features) = (d_prediction, d_mid);
        ops.push(Op::ReconstructBack(ReconstructBack {
            forward: forward.reconstruct,
            gradients,
            d_output,
            d_features,
            d_input,
            slice,
            workspace: None,
        }));
        let d_input = Some(b.images(self.d_body, &images, of));
        let conv_mid = ConvBack {
            forward: forward.conv_mid,
            gradients,
            d_output: d_mid,
            d_input,
            slice,
            workspace: None,
        };
        ops.push(Op::ConvBack(conv_mid));
        if images.len() < of {
            let carries = self
                .carries
                .get_or_insert_with(|| ops.iter().map(|op| b.carry(op)).collect());
            ops.iter_mut()
                .zip(carries)
                .for_each(|(op, carry)| op.set_carry(*carry));
        }
        ops.into_iter().for_each(|op| b.push(op));
    }
}

/// The plan of inference on one tile (or a batch of equal tiles): forward only, float output.
///
/// # Errors
/// A network or sizes that there is no plan for.
pub fn inference_plan(net: &Network, spec: &InferenceSpec, sizing: &dyn Sizing) -> Result<Plan> {
    check_sizes(net, spec.batch, spec.lq)?;
    let (table, layers) = table(net);
    let mut b = Builder::new(sizing);
    let extent = Extent {
        n: spec.batch,
        h: spec.lq.0,
        w: spec.lq.1,
    };
    let parameters = b.floats("parameters", Class::Parameters, table.len());
    let batch = (!spec.float_input).then(|| {
        let mut layout = BatchLayout {
            buffer: BufferId(0),
            first: 0,
            count: spec.batch,
            lq: spec.lq,
            scale: net.scale,
            with_hr: false,
        };
        layout.buffer = b.buffer("batch", Class::Batch, layout.bytes() as u64);
        layout
    });
    let common = Common {
        net,
        layers: &layers,
        extent,
        parameters,
        tile_invariant: true,
    };
    let body = body(&mut b, &common, batch);
    let kind = TailKind {
        class: Class::Activations,
        subtract: None,
        folded: None,
    };
    let tail = tail(&mut b, &common, &body, &(0..spec.batch), kind);
    let micro = 0..b.position();
    let ports = Ports {
        parameters: Some(parameters),
        input: Some(body.input),
        output: Some(tail.reconstruct.output),
        ..Ports::default()
    };
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

        fn carry(&self, _: &Op) -> u64 {
            8
        }
    }

    fn spec(batch: usize, lq: (usize, usize)) -> StepSpec {
        StepSpec::new(batch, lq, vec![(LossKind::L1, 1.0)])
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
                    assert!(
                        plan.arena_bytes as f64 <= 1.1 * peak as f64,
                        "{} against {peak}",
                        plan.arena_bytes
                    );
                    spec.losses.push((LossKind::Ssim, 0.05));
                }
            }
        }
    }

    #[test]
    fn sizes_without_a_plan_are_refused() {
        let net = Network::new("nano", 2).unwrap();
        for (batch, lq) in [
            (0, (8, 8)),
            (1, (0, 8)),
            (usize::MAX, (8, 8)),
            (1 << 40, (1 << 20, 1 << 20)),
            (1, (8, usize::MAX / 2)),
        ] {
            assert!(
                training_plan(&net, &spec(batch, lq), &NoWorkspace).is_err(),
                "{batch} x {lq:?}"
            );
            let inference = InferenceSpec {
                batch,
                lq,
                float_input: false,
            };
            assert!(
                inference_plan(&net, &inference, &NoWorkspace).is_err(),
                "{batch} x {lq:?}"
            );
        }
        for scale in [0, 1, 5, usize::MAX] {
            let other = Network {
                scale,
                ..net.clone()
            };
            assert!(
                training_plan(&other, &spec(1, (8, 8)), &NoWorkspace).is_err(),
                "scale {scale}"
            );
        }
        let other = Network {
            arch: "paragonsr2_pro".into(),
            ..net
        };
        assert!(training_plan(&other, &spec(1, (8, 8)), &NoWorkspace).is_err());
    }

    #[test]
    fn verify_catches_a_shared_byte_and_a_missing_write() {
        let net = Network::new("nano", 2).unwrap();
        let data = |plan: Plan| (*plan).clone();
        let mut plan = data(training_plan(&net, &spec(1, (8, 8)), &NoWorkspace).unwrap());
        let good = plan.clone();
        let output = plan
            .ops
            .iter()
            .find_map(|op| {
                if let Op::Reconstruct(h) = op {
                    Some(h.output)
                } else {
                    None
                }
            })
            .unwrap();
        plan.buffers[output.0 as usize].offset = plan.buffers[0].offset;
        assert!(plan.verify().is_err());
        let mut plan = good;
        plan.ops.remove(1); // conv_in: its output is read by the first block
        assert!(
            plan.verify()
                .unwrap_err()
                .to_string()
                .contains("before it is written")
        );
        let ssim = StepSpec {
            losses: vec![(LossKind::Ssim, 1.0)],
            ..spec(1, (8, 8))
        };
        let mut plan = data(training_plan(&net, &ssim, &NoWorkspace).unwrap());
        for op in &mut plan.ops {
            if let Op::StructuralLoss(o) = op {
                o.d_prediction = o.prediction;
            }
        }
        assert!(
            plan.verify()
                .unwrap_err()
                .to_string()
                .contains("while reading it")
        );
    }
}
