//! The plans of a training step and of inference, for every network: what to stage, the losses, the
//! slices, and the update. Depends on the graph and the plan's builder, and knows no network.
//! Promises that a plan's sizes do not overflow, and that slicing ([`Recompute::Full`]) changes no
//! bit of the result.

mod losses;
mod stage;
#[cfg(test)]
mod tests;

use super::architecture::Architecture;
use super::graph::{Graph, Prediction, Storage, Value};
use super::{Error, Network, ParamTable, Recompute};
use crate::plan::{
    BatchLayout, BufferId, Builder, Class, Extent, LossKind, MAX_IMAGES, MAX_SIDE, METRICS, Op,
    OptimizerKind, Plan, Ports, Sizing, Unpack, Update,
};
use anyhow::Result;
use losses::{Losses, TrainingTarget};
pub use stage::{StageSpec, stage_plan};

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
    /// f32 values for the gradients of other ranks, where ranks exchange them between devices; 0
    /// elsewhere.
    pub exchange: usize,
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
            exchange: 0,
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
    exchange: Option<BufferId>,
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
        let name = "gradients of other ranks";
        let exchange = (spec.exchange > 0).then(|| b.floats(name, Class::Exchange, spec.exchange));
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
            exchange,
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
            exchange: self.exchange,
            next_batch: self.next_batch,
            ..Ports::default()
        }
    }
}

/// The network's input, to which a staged batch is unpacked first.
fn append_input(g: &mut Graph<'_, '_>, batch: Option<BatchLayout>) -> Value {
    let input = g.input();
    if let Some(batch) = batch {
        let output = input.buffer;
        g.builder.push(Op::Unpack(Unpack { batch, output }));
    }
    input
}

/// LQ extent of a micro-batch.
fn extent(batch: usize, (h, w): (usize, usize)) -> Extent {
    Extent { n: batch, h, w }
}

/// The plan of one training iteration: unpack, forward, loss and backward of a micro-batch, then
/// the optimizer step.
///
/// # Errors
/// A network or sizes that no plan can be made for; the chain holds an [`Error`].
pub fn training_plan(net: &Network, spec: &StepSpec, sizing: &dyn Sizing) -> Result<Plan> {
    training_plan_as(net.architecture(), net, spec, sizing)
}

/// [`training_plan`] with the operations of an architecture that has the network's parameters.
pub(super) fn training_plan_as(
    architecture: &dyn Architecture,
    net: &Network,
    spec: &StepSpec,
    sizing: &dyn Sizing,
) -> Result<Plan> {
    check_sizes(net, spec.batch, spec.lq)?;
    let table = net.params();
    let mut builder = Builder::new(sizing);
    let persistent = Persistent::new(&mut builder, net, &table, spec);
    let storage = Storage {
        parameters: persistent.parameters,
        gradients: Some(persistent.gradients),
    };
    let prediction = Prediction {
        class: Class::Loss,
        subtract: persistent.batch,
    };
    let whole = extent(spec.batch, spec.lq);
    let mut g = Graph::new(
        &mut builder,
        architecture,
        (net, &table),
        storage,
        whole,
        prediction,
    );
    g.set_recompute(spec.recompute);
    if spec.without_winograd {
        g.set_tile_invariant(1);
    }
    g.set_wants_input_gradient(spec.input_gradient);

    let input = append_input(&mut g, persistent.batch);
    architecture.prepare(&mut g)?;
    let prepare_tape = g.take_tape();
    let features = architecture.body(&mut g, input)?;
    let body_tape = g.take_tape();
    let hr = whole.scaled(net.scale);
    let target = match persistent.batch {
        Some(batch) => TrainingTarget::Batch(batch),
        None => {
            let values = hr.pixels() * 3;
            TrainingTarget::Float(g.builder.floats("target", Class::Loss, values))
        }
    };
    let losses = Losses::new(&spec.losses, target, persistent.metrics);
    let (pixels, blocks) = (hr.h * hr.w, architecture.blocks());
    let images = spec.recompute.slice_images(spec.batch, pixels, blocks);
    for start in (0..spec.batch).step_by(images) {
        let images = start..(start + images).min(spec.batch);
        g.begin_slice(images.clone());
        let (input, features) = (g.view(input), g.view(features));
        let output = architecture.tail(&mut g, input, features)?;
        let tape = g.take_tape();
        losses.append(&mut g, output, images);
        g.append_backward(&tape)?;
    }
    g.end_slices();
    g.append_backward(&body_tape)?;
    g.append_backward(&prepare_tape)?;
    let input_gradients = g.input_gradients();

    let micro = 0..builder.position();
    builder.push(persistent.update(table.trainable(), spec));
    let update = micro.end..builder.position();
    let ports = Ports {
        input: Some(input.buffer),
        target: target.float(),
        input_gradients,
        ..persistent.ports()
    };
    Ok(builder.finish(micro, update, persistent.batch, ports)?)
}

/// The plan of inference on a batch of equal tiles: forward only, with float output.
///
/// # Errors
/// A network or sizes that no plan can be made for; the chain holds an [`Error`].
pub fn inference_plan(net: &Network, spec: &InferenceSpec, sizing: &dyn Sizing) -> Result<Plan> {
    let architecture = net.architecture();
    forward_plan(net, spec, true, sizing, |g, batch| {
        let input = append_input(g, batch);
        architecture.prepare(g)?;
        let features = architecture.body(g, input)?;
        Ok(Ports {
            input: Some(input.buffer),
            output: Some(architecture.tail(g, input, features)?),
            ..Ports::default()
        })
    })
}

/// A plan without a backward pass, whose operations `append` appends. It is given the staged batch,
/// unless the input is a float buffer or the operations read no image (`reads_image`); the ports that
/// it returns lack the parameters.
fn forward_plan(
    net: &Network,
    spec: &InferenceSpec,
    reads_image: bool,
    sizing: &dyn Sizing,
    append: impl FnOnce(&mut Graph<'_, '_>, Option<BatchLayout>) -> Result<Ports, Error>,
) -> Result<Plan> {
    check_sizes(net, spec.batch, spec.lq)?;
    let (table, architecture) = (net.params(), net.architecture());
    let mut builder = Builder::new(sizing);
    let parameters = builder.floats("parameters", Class::Parameters, table.len());
    let staged = reads_image && !spec.float_input;
    let batch = staged.then(|| batch_buffer(&mut builder, net, spec.batch, spec.lq, false));
    let storage = Storage {
        parameters,
        gradients: None,
    };
    let prediction = Prediction {
        class: Class::Activations,
        subtract: None,
    };
    let whole = extent(spec.batch, spec.lq);
    let mut g = Graph::new(
        &mut builder,
        architecture,
        (net, &table),
        storage,
        whole,
        prediction,
    );
    g.set_tile_invariant(architecture.tiling(net).align);
    let ports = append(&mut g, batch)?;
    let micro = 0..builder.position();
    let ports = Ports {
        parameters: Some(parameters),
        ..ports
    };
    let update = micro.end..micro.end;
    Ok(builder.finish(micro, update, batch, ports)?)
}
