//! The plans of a training step and of inference: what all networks of the family share. A network
//! is conv_in, blocks (those of the variant), conv_mid and
//! [`Reconstruct`](crate::plan::Reconstruct). Depends on the plan's
//! builder and on the variant. Promises that a plan's sizes do not overflow, and that slicing
//! ([`Recompute::Full`]) changes no bit of the result.

mod slices;
#[cfg(test)]
mod tests;

use super::nano::{self, FEATURES};
use super::{Error, Network, ParamTable, Recompute};
use crate::plan::{
    BatchLayout, BufferId, Builder, Class, Conv, ConvBack, Extent, LossKind, MAX_IMAGES, MAX_SIDE,
    METRICS, NanoBlock, NanoParams, Op, OptimizerKind, ParamRange, Plan, Ports, Sizing, Slice,
    Unpack, Update, split_losses,
};
use anyhow::Result;
use slices::{Prediction, SliceTarget, SlicedSteps, forward_slice};

/// The settings of a training plan.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// Patches in a micro-batch (N).
    pub batch: usize,
    /// LQ patch height and width, pixels.
    pub lq: (usize, usize),
    /// Losses and their weights.
    pub losses: Vec<(LossKind, f32)>,
    /// How gradients change the parameters.
    pub optimizer: OptimizerKind,
    /// The optimizer's (beta1, beta2).
    pub betas: (f64, f64),
    /// The optimizer's epsilon.
    pub epsilon: f64,
    /// Weight decay; [`OptimizerKind`] says what it is applied to.
    pub weight_decay: f64,
    /// Take input and target as float buffers instead of a staged u8 batch (reference tests).
    pub float_input: bool,
    /// Also compute the gradient with respect to the input (reference tests).
    pub input_gradient: bool,
    /// Use direct convolutions only, never the Winograd form: to compare the two.
    pub without_winograd: bool,
    /// What is kept between forward and backward.
    pub recompute: Recompute,
}

impl StepSpec {
    /// A step on staged u8 batches with the published optimizer: AdamW, betas 0.9 and 0.99, weight
    /// decay 1e-4. `batch` and `lq` are those of [`StepSpec`].
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

/// The settings of an inference plan.
#[derive(Clone, Copy, Debug)]
pub struct InferenceSpec {
    /// Tiles in a batch.
    pub batch: usize,
    /// Tile height and width in LQ pixels.
    pub lq: (usize, usize),
    /// Take the input as a float buffer instead of u8.
    pub float_input: bool,
}

/// The parameter ranges of each layer; `[weight, bias]` for a convolution.
pub(super) struct Layers {
    pub conv_in: [ParamRange; 2],
    pub blocks: Vec<NanoParams>,
    pub conv_mid: [ParamRange; 2],
    pub up: [ParamRange; 2],
    pub conv_out: [ParamRange; 2],
    pub gain: ParamRange,
}

/// What all operations of one plan share.
pub(super) struct PlanContext<'a> {
    pub net: &'a Network,
    pub layers: &'a Layers,
    /// LQ extent of the whole micro-batch.
    pub extent: Extent,
    /// The parameter buffer, f32.
    pub parameters: BufferId,
    /// See [`Conv::tile_invariant`].
    pub tile_invariant: bool,
}

impl PlanContext<'_> {
    /// A 3x3 convolution `cin -> cout`; `extent` may be a slice of the micro-batch.
    fn conv(
        &self,
        extent: Extent,
        (cin, cout): (usize, usize),
        [weight, bias]: [ParamRange; 2],
        input: BufferId,
        output: BufferId,
    ) -> Conv {
        Conv {
            extent,
            cin,
            cout,
            tile_invariant: self.tile_invariant,
            weight,
            bias,
            parameters: self.parameters,
            input,
            output,
            workspace: None,
        }
    }
}

/// The forward operations up to the last block; they run on the whole micro-batch.
struct Body {
    /// The network's input `[N, h, w, 3]`, f32.
    input: BufferId,
    conv_in: Conv,
    blocks: Vec<NanoBlock>,
    /// Output of the last block, `[N, h, w, F]`.
    output: BufferId,
}

impl Body {
    /// Appends the operations; a staged batch is unpacked first.
    fn forward(b: &mut Builder, c: &PlanContext<'_>, batch: Option<BatchLayout>) -> Body {
        let pixels = c.extent.pixels();
        let input = b.floats("input", Class::Activations, pixels * 3);
        if let Some(batch) = batch {
            let output = input;
            b.push(Op::Unpack(Unpack { batch, output }));
        }
        let first = b.map("conv_in", Class::Activations, pixels * FEATURES);
        let conv_in = c.conv(c.extent, (3, FEATURES), c.layers.conv_in, input, first);
        b.push(Op::Conv(conv_in.clone()));
        let (blocks, output) = nano::forward(b, c, first);
        Body {
            input,
            conv_in,
            blocks,
            output,
        }
    }
}

/// Refuses networks and sizes that no plan can be made for, so that no size below overflows.
fn check_sizes(net: &Network, images: usize, (height, width): (usize, usize)) -> Result<(), Error> {
    net.check()?;
    if !(1..=MAX_IMAGES).contains(&images) {
        return Err(Error::Images { images });
    }
    let scale = net.scale;
    let sides = 1..=MAX_SIDE / scale;
    if !sides.contains(&height) || !sides.contains(&width) {
        return Err(Error::Size {
            height,
            width,
            scale,
        });
    }
    Ok(())
}

/// Adds the buffer of a staged batch of `count` patches; `with_hr`: with HR patches.
fn batch_buffer(
    b: &mut Builder,
    net: &Network,
    count: usize,
    lq: (usize, usize),
    with_hr: bool,
) -> BatchLayout {
    let mut layout = BatchLayout {
        buffer: BufferId(0),
        first: 0,
        count,
        lq,
        scale: net.scale,
        with_hr,
    };
    layout.buffer = b.buffer("batch", Class::Batch, layout.bytes() as u64);
    layout
}

/// The buffers of a training plan that keep their bytes from step to step.
struct Persistent {
    parameters: BufferId,
    gradients: BufferId,
    moment1: BufferId,
    moment2: BufferId,
    ema: BufferId,
    metrics: BufferId,
    scalars: Option<BufferId>,
    batch: Option<BatchLayout>,
    next_batch: Option<BufferId>,
}

impl Persistent {
    fn new(b: &mut Builder, net: &Network, table: &ParamTable, spec: &StepSpec) -> Persistent {
        let trainable = table.trainable();
        let parameters = b.floats("parameters", Class::Parameters, table.len());
        let gradients = b.floats("gradients", Class::Gradients, trainable);
        let moment1 = b.floats("first moment", Class::Optimizer, trainable);
        let moment2 = b.floats("second moment", Class::Optimizer, trainable);
        let ema = b.floats("EMA", Class::Ema, table.len());
        let metrics = b.buffer("metrics", Class::Metrics, METRICS as u64 * 8);
        let scalar_bytes = b.scalar_bytes();
        let scalars = (scalar_bytes > 0).then(|| b.buffer("scalars", Class::Metrics, scalar_bytes));
        let batch = (!spec.float_input).then(|| batch_buffer(b, net, spec.batch, spec.lq, true));
        let next_batch = batch
            .filter(|_| b.copies_ahead())
            .map(|layout| b.buffer("next batch", Class::Batch, layout.bytes() as u64));
        Persistent {
            parameters,
            gradients,
            moment1,
            moment2,
            ema,
            metrics,
            scalars,
            batch,
            next_batch,
        }
    }

    /// The optimizer step over all `trainable` elements.
    fn update(&self, trainable: usize, spec: &StepSpec) -> Op {
        Op::Update(Update {
            trainable,
            optimizer: spec.optimizer,
            beta1: spec.betas.0,
            beta2: spec.betas.1,
            epsilon: spec.epsilon,
            weight_decay: spec.weight_decay,
            parameters: self.parameters,
            gradients: self.gradients,
            moment1: self.moment1,
            moment2: self.moment2,
            ema: self.ema,
            metrics: self.metrics,
            workspace: None,
        })
    }

    fn ports(&self) -> Ports {
        Ports {
            parameters: Some(self.parameters),
            gradients: Some(self.gradients),
            moment1: Some(self.moment1),
            moment2: Some(self.moment2),
            ema: Some(self.ema),
            metrics: Some(self.metrics),
            scalars: self.scalars,
            next_batch: self.next_batch,
            ..Ports::default()
        }
    }
}

/// Appends the stretch from conv_mid to the loss and back, slice by slice. Returns the gradient of
/// the body's output `[N, h, w, F]`, and that of the network's input through the base if it is
/// wanted.
fn append_slices(
    b: &mut Builder,
    c: &PlanContext<'_>,
    body: &Body,
    persistent: &Persistent,
    target: SliceTarget,
    spec: &StepSpec,
) -> (BufferId, Option<BufferId>) {
    let (class, pixels) = (Class::ActivationGradients, c.extent.pixels());
    let d_body = b.map("d body", class, pixels * FEATURES);
    let d_input = spec
        .input_gradient
        .then(|| b.floats("d input through the base", class, pixels * 3));
    let mut slices = SlicedSteps {
        losses: split_losses(&spec.losses),
        gradients: persistent.gradients,
        metrics: persistent.metrics,
        target,
        d_body,
        d_input,
        folded: None,
        carries: None,
    };
    let hr_pixels = c.extent.h * c.extent.w * c.net.scale * c.net.scale;
    let images = spec.recompute.slice_images(spec.batch, hr_pixels);
    for start in (0..spec.batch).step_by(images) {
        let end = (start + images).min(spec.batch);
        slices.append(b, c, body, start..end);
    }
    (d_body, d_input)
}

/// The plan of one training iteration: unpack, forward, loss and backward of a micro-batch, then
/// the optimizer step.
///
/// # Errors
/// A network or sizes that no plan can be made for; the chain holds an [`Error`].
pub fn training_plan(net: &Network, spec: &StepSpec, sizing: &dyn Sizing) -> Result<Plan> {
    check_sizes(net, spec.batch, spec.lq)?;
    let (table, layers) = nano::table(net);
    let mut builder = Builder::new(sizing);
    let b = &mut builder;
    let persistent = Persistent::new(b, net, &table, spec);
    let context = PlanContext {
        net,
        layers: &layers,
        extent: Extent {
            n: spec.batch,
            h: spec.lq.0,
            w: spec.lq.1,
        },
        parameters: persistent.parameters,
        tile_invariant: spec.without_winograd,
    };
    let body = Body::forward(b, &context, persistent.batch);
    let hr_pixels = context.extent.scaled(net.scale).pixels();
    let target = match persistent.batch {
        Some(batch) => SliceTarget::Batch(batch),
        None => SliceTarget::Float(b.floats("target", Class::Loss, hr_pixels * 3)),
    };
    let (d_body, d_input) = append_slices(b, &context, &body, &persistent, target, spec);
    let gradients = persistent.gradients;
    let d_output = nano::backward(b, &body.blocks, gradients, d_body);
    let d_conv_in = spec.input_gradient.then(|| {
        let class = Class::ActivationGradients;
        b.floats(
            "d input through conv_in",
            class,
            context.extent.pixels() * 3,
        )
    });
    b.push(Op::ConvBack(ConvBack {
        forward: body.conv_in,
        gradients,
        d_output,
        d_input: d_conv_in,
        slice: Slice::whole(spec.batch),
        workspace: None,
    }));
    let micro = 0..b.position();
    b.push(persistent.update(table.trainable(), spec));
    let update = micro.end..b.position();
    let ports = Ports {
        input: Some(body.input),
        target: target.float(),
        input_gradients: [d_input, d_conv_in],
        ..persistent.ports()
    };
    Ok(builder.finish(micro, update, persistent.batch, ports)?)
}

/// The plan of inference on a batch of equal tiles: forward only, with float output.
///
/// # Errors
/// A network or sizes that no plan can be made for; the chain holds an [`Error`].
pub fn inference_plan(net: &Network, spec: &InferenceSpec, sizing: &dyn Sizing) -> Result<Plan> {
    check_sizes(net, spec.batch, spec.lq)?;
    let (table, layers) = nano::table(net);
    let mut builder = Builder::new(sizing);
    let b = &mut builder;
    let parameters = b.floats("parameters", Class::Parameters, table.len());
    let batch = (!spec.float_input).then(|| batch_buffer(b, net, spec.batch, spec.lq, false));
    let context = PlanContext {
        net,
        layers: &layers,
        extent: Extent {
            n: spec.batch,
            h: spec.lq.0,
            w: spec.lq.1,
        },
        parameters,
        tile_invariant: true,
    };
    let body = Body::forward(b, &context, batch);
    let prediction = Prediction {
        class: Class::Activations,
        subtract: None,
        folded: None,
    };
    let forward = forward_slice(b, &context, &body, &(0..spec.batch), prediction);
    let micro = 0..b.position();
    let ports = Ports {
        parameters: Some(parameters),
        input: Some(body.input),
        output: Some(forward.reconstruct.output),
        ..Ports::default()
    };
    let update = micro.end..micro.end;
    Ok(builder.finish(micro, update, batch, ports)?)
}
