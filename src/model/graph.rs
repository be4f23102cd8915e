//! The graph of a network while its plan is made: a network's file appends its forward operations
//! here, by the names of its parameters, and the backward pass is derived from each operation's
//! own ([`Operation::backward`](crate::plan::Operation::backward)). Depends on the plan's builder
//! and the parameter table. Promises that every stretch of a network can run on the whole
//! micro-batch or on a few images at a time, with the same bits.

mod backward;
mod layers;

use super::architecture::{Architecture, StageStart};
use super::{Error, Network, ParamTable, Recompute};
use crate::plan::{
    Accumulate, Activation, BatchLayout, BufferId, Builder, Class, Extent, FoldedConv, Op,
    ParamRange, Slice,
};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// A value of the graph: the buffer of an activation or image, possibly with an activation that
/// the operation which reads it applies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    /// The buffer, or a view of some images of one.
    pub buffer: BufferId,
    /// Channels, without those that fill the last group.
    pub channels: usize,
    /// Channels of the buffer.
    pub stride: usize,
    /// Rows and columns.
    pub size: (usize, usize),
    /// The function that the reader applies; only convolutions do.
    pub activation: Option<Activation>,
}

/// What the graph knows about a buffer that operations read or write.
struct Known {
    name: String,
    stride: usize,
    /// Rows and columns.
    size: (usize, usize),
    /// The gradient's buffer, once an operation asked for it.
    gradient: Option<BufferId>,
    /// Whether an operation has left a gradient there.
    written: bool,
    /// The buffer of the whole micro-batch that this is a view of.
    whole: Option<BufferId>,
}

/// What the forward pass leaves for its backward pass.
pub(super) enum Taped {
    /// An operation.
    Operation(Op),
    /// A block that is computed again for its backward pass, so that of its values only these two
    /// are kept.
    Block {
        number: usize,
        input: Value,
        output: Value,
    },
}

/// The buffers of parameters and gradients.
#[derive(Clone, Copy)]
pub(super) struct Storage {
    /// All parameters, f32.
    pub parameters: BufferId,
    /// Their gradients; `None` for inference.
    pub gradients: Option<BufferId>,
}

/// How the prediction is used: the differences between inference and training.
#[derive(Clone, Copy)]
pub(super) struct Prediction {
    /// Class of the prediction's buffer.
    pub class: Class,
    /// The batch whose HR patches are subtracted from the prediction.
    pub subtract: Option<BatchLayout>,
}

/// See the module's documentation.
pub(super) struct Graph<'a, 'b> {
    pub builder: &'a mut Builder<'b>,
    architecture: &'a dyn Architecture,
    net: &'a Network,
    table: &'a ParamTable,
    storage: Storage,
    /// What is kept of each block for the backward pass.
    recompute: Recompute,
    /// See [`crate::plan::Conv::tile_invariant`].
    tile_invariant: bool,
    /// See [`crate::plan::Conv::tile_alignment`].
    tile_alignment: usize,
    prediction: Prediction,
    /// Whether the gradient of the network's input is wanted.
    wants_input_gradient: bool,
    /// LQ extent of the whole micro-batch.
    whole: Extent,
    /// The images that operations are appended for now.
    images: Range<usize>,
    /// The network's input, and its views.
    inputs: Vec<BufferId>,
    known: HashMap<BufferId, Known>,
    /// Values of the whole micro-batch and their views in the current slice.
    views: Vec<(BufferId, BufferId)>,
    /// Forward operations since the tape was taken last.
    tape: Vec<Taped>,
    /// Operations of a block that is computed again, until its backward pass is complete.
    held: Option<Vec<Op>>,
    /// First elements of the parameters for which the current backward pass has left a gradient and
    /// which may get another one.
    shared_gradients: HashSet<usize>,
    /// Composed weights by the name of their convolution, with their gradients.
    composed: HashMap<String, (BufferId, Option<BufferId>)>,
    /// The folded convolution that an earlier slice computed.
    folded: Option<FoldedConv>,
    /// The buffers that carry sums from slice to slice, in the order of a slice's operations.
    carries: Vec<Option<BufferId>>,
    /// Operations with sums of the current slice so far.
    summed: usize,
    /// The parts of the gradient of the network's input, for the whole micro-batch.
    input_parts: Vec<BufferId>,
    /// Parts that the current slice, or the stretch before it, has asked for.
    parts_used: usize,
    /// Gradients to be added to others after the next operation.
    pending_sums: Vec<Accumulate>,
}

impl<'a, 'b> Graph<'a, 'b> {
    pub fn new(
        builder: &'a mut Builder<'b>,
        architecture: &'a dyn Architecture,
        (net, table): (&'a Network, &'a ParamTable),
        storage: Storage,
        whole: Extent,
        prediction: Prediction,
    ) -> Graph<'a, 'b> {
        Graph {
            builder,
            architecture,
            net,
            table,
            storage,
            recompute: Recompute::None,
            tile_invariant: false,
            tile_alignment: 1,
            prediction,
            wants_input_gradient: false,
            whole,
            images: 0..whole.n,
            inputs: Vec::new(),
            known: HashMap::new(),
            views: Vec::new(),
            tape: Vec::new(),
            held: None,
            shared_gradients: HashSet::new(),
            composed: HashMap::new(),
            folded: None,
            carries: Vec::new(),
            summed: 0,
            input_parts: Vec::new(),
            parts_used: 0,
            pending_sums: Vec::new(),
        }
    }

    /// Excludes methods whose bits depend on the place of a pixel in its tile, where tiles begin at
    /// multiples of `alignment` pixels.
    pub fn set_tile_invariant(&mut self, alignment: usize) {
        self.tile_invariant = true;
        self.tile_alignment = alignment;
    }

    /// Sets what is kept of each block for the backward pass; everything by default.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.recompute = recompute;
    }

    /// Asks for the gradient of the network's input.
    pub fn set_wants_input_gradient(&mut self, wanted: bool) {
        self.wants_input_gradient = wanted;
    }

    /// The network.
    pub fn net(&self) -> &'a Network {
        self.net
    }

    /// LQ extent of the images that operations are appended for now.
    pub fn extent(&self) -> Extent {
        self.extent_of(self.lq_size())
    }

    /// Extent of a value of the current images.
    pub fn extent_of(&self, size: (usize, usize)) -> Extent {
        Extent {
            n: self.images.len(),
            h: size.0,
            w: size.1,
        }
    }

    /// Rows and columns at LQ resolution.
    fn lq_size(&self) -> (usize, usize) {
        (self.whole.h, self.whole.w)
    }

    /// The part of the micro-batch that operations are appended for now.
    fn slice_now(&self) -> Slice {
        Slice {
            of: self.whole.n,
            first: self.images.start == 0,
            last: self.images.end == self.whole.n,
            carry: None,
        }
    }

    /// The end of a name that says which images a buffer holds; empty for all of them.
    fn part_name(&self) -> String {
        let again = if self.held.is_some() { ", again" } else { "" };
        if self.images.len() == self.whole.n {
            again.to_string()
        } else {
            let (first, last) = (self.images.start, self.images.end - 1);
            format!("{again}, images {first} to {last}")
        }
    }

    /// The range of a parameter.
    ///
    /// # Errors
    /// When the network's table has no parameter of this name.
    pub fn param(&self, name: &str) -> Result<ParamRange, Error> {
        let found = self.table.get(name).map(|p| p.range);
        found.ok_or_else(|| Error::NoParameter {
            name: name.to_string(),
        })
    }

    /// Weight and bias of a convolution.
    pub fn conv_params(&self, name: &str) -> Result<[ParamRange; 2], Error> {
        Ok([
            self.param(&format!("{name}.weight"))?,
            self.param(&format!("{name}.bias"))?,
        ])
    }

    /// Registers a buffer under its layer's name.
    fn know(
        &mut self,
        buffer: BufferId,
        name: &str,
        (stride, size): (usize, (usize, usize)),
        whole: Option<BufferId>,
    ) {
        self.known.entry(buffer).or_insert_with(|| Known {
            name: name.to_string(),
            stride,
            size,
            gradient: None,
            written: false,
            whole,
        });
    }

    /// The network's input `[N, h, w, 3]`, f32, for the whole micro-batch.
    pub fn input(&mut self) -> Value {
        let count = self.extent().pixels() * 3;
        let buffer = self.builder.floats("input", Class::Activations, count);
        let size = self.lq_size();
        self.know(buffer, "input", (3, size), None);
        self.inputs.push(buffer);
        Value {
            buffer,
            channels: 3,
            stride: 3,
            size,
            activation: None,
        }
    }

    /// What a stage begins with: features with that many channels, and their means.
    pub fn stage_start(&mut self, channels: usize) -> StageStart {
        let features = self.activation("features of the stage before", channels, self.lq_size());
        let bytes = (self.extent().n * features.stride * size_of::<f64>()) as u64;
        let class = Class::Activations;
        let means = self
            .builder
            .buffer("means of the stage before", class, bytes);
        StageStart { features, means }
    }

    /// A new activation of the current images.
    fn activation(&mut self, name: &str, channels: usize, size: (usize, usize)) -> Value {
        let stride = channels.next_multiple_of(crate::plan::CHANNEL_GROUP);
        let full = format!("{name}{}", self.part_name());
        let count = self.extent_of(size).pixels() * stride;
        let buffer = self.builder.map(full, Class::Activations, count);
        self.know(buffer, name, (stride, size), None);
        Value {
            buffer,
            channels,
            stride,
            size,
            activation: None,
        }
    }

    /// The current images of a value of the whole micro-batch.
    pub fn view(&mut self, value: Value) -> Value {
        let (images, of) = (self.images.clone(), self.whole.n);
        let viewed = self.views.iter().find(|(whole, _)| *whole == value.buffer);
        if let Some(&(_, buffer)) = viewed {
            return Value { buffer, ..value };
        }
        let buffer = self.builder.images(value.buffer, &images, of);
        self.views.push((value.buffer, buffer));
        if buffer != value.buffer {
            let known = &self.known[&value.buffer];
            let (name, stride) = (known.name.clone(), known.stride);
            self.know(buffer, &name, (stride, value.size), Some(value.buffer));
            if self.inputs.contains(&value.buffer) {
                self.inputs.push(buffer);
            }
        }
        Value { buffer, ..value }
    }

    /// From here on, operations are appended for these images.
    pub fn begin_slice(&mut self, images: Range<usize>) {
        self.images = images;
        self.views.clear();
        self.summed = 0;
        self.parts_used = 0;
        self.shared_gradients.clear();
    }

    /// From here on, operations are appended for the whole micro-batch again.
    pub fn end_slices(&mut self) {
        self.images = 0..self.whole.n;
    }

    /// Appends a forward operation.
    pub fn append(&mut self, op: impl Into<Op>) {
        let op = op.into();
        self.tape.push(Taped::Operation(op.clone()));
        self.emit(op);
    }

    /// Appends an operation to the plan, or to those of the block that is computed again.
    fn emit(&mut self, op: Op) {
        match &mut self.held {
            Some(held) => held.push(op),
            None => self.builder.push(op),
        }
    }

    /// Appends the network's block `number`, see [`Architecture::block`]. Unless everything is kept,
    /// the backward pass computes it again from its input.
    ///
    /// # Errors
    /// A bug in the network's file.
    pub fn block(&mut self, number: usize, x: Value) -> Result<Value, Error> {
        let (before, architecture) = (self.tape.len(), self.architecture);
        let output = architecture.block(self, number, x)?;
        if self.recompute != Recompute::None {
            self.tape.truncate(before);
            self.tape.push(Taped::Block {
                number,
                input: x,
                output,
            });
        }
        Ok(output)
    }

    /// Appends an operation that belongs to no forward pass, such as a loss. If the micro-batch
    /// runs in slices, its sums continue those of the slice before.
    pub fn push_summed(&mut self, mut op: Op) {
        if self.images.len() < self.whole.n && op.slice().is_some() {
            if self.summed == self.carries.len() {
                let carry = self.builder.carry(&op);
                self.carries.push(carry);
            }
            op.set_carry(self.carries[self.summed]);
            self.summed += 1;
        }
        self.emit(op);
    }

    /// The forward operations since the last call, for their backward pass.
    pub fn take_tape(&mut self) -> Vec<Taped> {
        std::mem::take(&mut self.tape)
    }
}
