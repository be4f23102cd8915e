//! The backward pass of the graph: the gradient buffer of every value, and the operations of a tape
//! in reverse.

use super::{Graph, Taped, Value};
use crate::model;
use crate::plan::{Accumulate, BufferId, Class, Destination, Error, Op, ParamRange, Slice, Tape};
use std::collections::HashSet;

impl Graph<'_, '_> {
    /// Appends the backward pass of the operations of a tape, the last one first.
    ///
    /// # Errors
    /// A bug in a network's file: an operation without a backward pass, or a value that no later
    /// operation reads.
    pub fn append_backward(&mut self, tape: &[Taped]) -> Result<(), model::Error> {
        tape.iter().rev().try_for_each(|taped| match taped {
            Taped::Operation(op) => Ok(op.backward(self)?),
            &Taped::Block {
                number,
                input,
                output,
            } => self.block_backward(number, input, output),
        })
    }

    /// Appends the operations of a block again, without those whose results the backward pass does
    /// not read, and its backward pass.
    fn block_backward(
        &mut self,
        number: usize,
        input: Value,
        output: Value,
    ) -> Result<(), model::Error> {
        let architecture = self.architecture;
        self.held = Some(Vec::new());
        let again = architecture.block(self, number, input)?;
        let forward = self.held.as_ref().map_or(0, Vec::len);
        let tape = self.take_tape();
        let gradient = Tape::d_output(self, output.buffer)?;
        if let Some(known) = self.known.get_mut(&again.buffer) {
            (known.gradient, known.written) = (Some(gradient), true);
        }
        self.append_backward(&tape)?;
        let mut ops = self.held.take().unwrap_or_default();
        let backward = ops.split_off(forward);
        let mut read: HashSet<BufferId> = backward.iter().flat_map(reads).collect();
        let mut needed = Vec::new();
        for op in ops.into_iter().rev() {
            if op.written().iter().any(|(buffer, _)| read.contains(buffer)) {
                read.extend(reads(&op));
                needed.push(op);
            } else {
                let unread = op.written().into_iter();
                unread.for_each(|(buffer, _)| self.builder.discard(buffer));
            }
        }
        let all = needed.into_iter().rev().chain(backward);
        all.for_each(|op| self.builder.push(op));
        Ok(())
    }

    /// Gives a value the gradient that an operation outside of the tape left in `gradient`.
    pub fn set_gradient(&mut self, value: BufferId, name: &str, gradient: BufferId) {
        let size = self.lq_size();
        let size = (size.0 * self.net.scale, size.1 * self.net.scale);
        self.know(value, name, (3, size), None);
        if let Some(known) = self.known.get_mut(&value) {
            known.gradient = Some(gradient);
            known.written = true;
        }
    }

    /// The parts of the gradient of the network's input, to be added up by the reader.
    pub fn input_gradients(&self) -> [Option<BufferId>; 2] {
        let mut parts = self.input_parts.iter().copied();
        [parts.next(), parts.next()]
    }

    fn unknown(&self, value: BufferId) -> Error {
        Error::Invalid(format!("the graph has no value in buffer {}", value.0))
    }

    /// The gradient's buffer of a value, and whether an operation has left a gradient there.
    fn gradient(&mut self, value: BufferId) -> Result<(BufferId, bool), Error> {
        let known = self.known.get(&value).ok_or_else(|| self.unknown(value))?;
        if let Some(gradient) = known.gradient {
            return Ok((gradient, known.written));
        }
        let (name, stride) = (format!("d {}", known.name), known.stride);
        let size = known.size;
        let gradient = match known.whole {
            Some(whole) => {
                let (gradient, _) = self.gradient_of_whole(whole)?;
                let (images, of) = (self.images.clone(), self.whole.n);
                self.builder.images(gradient, &images, of)
            }
            None => {
                let name = format!("{name}{}", self.part_name());
                let count = self.extent_of(size).pixels() * stride;
                self.builder.map(name, Class::ActivationGradients, count)
            }
        };
        if let Some(known) = self.known.get_mut(&value) {
            known.gradient = Some(gradient);
        }
        Ok((gradient, false))
    }

    /// The gradient's buffer of a value of the whole micro-batch, of which a slice writes its part.
    fn gradient_of_whole(&mut self, value: BufferId) -> Result<(BufferId, bool), Error> {
        let images = std::mem::replace(&mut self.images, 0..self.whole.n);
        let gradient = self.gradient(value);
        self.images = images;
        if let Some(known) = self.known.get_mut(&value) {
            known.written = true;
        }
        gradient
    }

    fn mark_written(&mut self, value: BufferId) {
        if let Some(known) = self.known.get_mut(&value) {
            known.written = true;
        }
    }
}

/// The buffers that an operation reads.
fn reads(op: &Op) -> Vec<BufferId> {
    let accesses = op.accesses().into_iter();
    accesses.filter(|a| a.read).map(|a| a.buffer).collect()
}

impl Tape for Graph<'_, '_> {
    fn slice(&self) -> Slice {
        self.slice_now()
    }

    fn gradients(&self, parameters: BufferId) -> Result<BufferId, Error> {
        let of_inference = || Error::Invalid("a plan of inference has no gradients".into());
        if parameters == self.storage.parameters {
            return self.storage.gradients.ok_or_else(of_inference);
        }
        let mut composed = self.composed.values();
        let found = composed.find(|(weights, _)| *weights == parameters);
        let (_, gradients) = found.ok_or_else(|| self.unknown(parameters))?;
        gradients.ok_or_else(of_inference)
    }

    fn accumulates(&self, parameters: BufferId) -> bool {
        parameters == self.storage.parameters
    }

    fn shares_gradient(&mut self, parameter: ParamRange) -> bool {
        !self.shared_gradients.insert(parameter.offset)
    }

    fn d_output(&mut self, value: BufferId) -> Result<BufferId, Error> {
        let (gradient, written) = self.gradient(value)?;
        if !written {
            let name = self.known.get(&value).map_or("", |known| &known.name);
            return Err(Error::Invalid(format!(
                "no operation computed the gradient of {name}"
            )));
        }
        Ok(gradient)
    }

    fn destination(&mut self, value: BufferId) -> Result<Option<Destination>, Error> {
        if self.inputs.contains(&value) {
            let part = self.input_gradient(value)?;
            return Ok(part.map(|buffer| Destination { buffer, add: false }));
        }
        let (buffer, add) = self.gradient(value)?;
        self.mark_written(value);
        Ok(Some(Destination { buffer, add }))
    }

    fn write_gradient(&mut self, value: BufferId) -> Result<BufferId, Error> {
        let (gradient, written) = self.gradient(value)?;
        if !written {
            self.mark_written(value);
            return Ok(gradient);
        }
        let known = self.known.get(&value).ok_or_else(|| self.unknown(value))?;
        let (name, stride, size) = (known.name.clone(), known.stride, known.size);
        let name = format!("d {name}, another part{}", self.part_name());
        let extent = self.extent_of(size);
        let count = extent.pixels() * stride;
        let part = self.builder.map(name, Class::ActivationGradients, count);
        self.pending_sums.push(Accumulate {
            extent,
            stride,
            from: part,
            into: gradient,
        });
        Ok(part)
    }

    fn input_gradient(&mut self, value: BufferId) -> Result<Option<BufferId>, Error> {
        if !self.inputs.contains(&value) {
            return Err(self.unknown(value));
        }
        if !self.wants_input_gradient {
            return Ok(None);
        }
        let at = self.parts_used;
        self.parts_used += 1;
        if at == self.input_parts.len() {
            let (name, count) = (format!("d input, part {at}"), self.whole.pixels() * 3);
            let class = Class::ActivationGradients;
            self.input_parts
                .push(self.builder.floats(name, class, count));
        }
        let (images, of) = (self.images.clone(), self.whole.n);
        Ok(Some(self.builder.images(self.input_parts[at], &images, of)))
    }

    fn push(&mut self, op: Op) {
        self.push_summed(op);
        for sum in std::mem::take(&mut self.pending_sums) {
            self.emit(sum.into());
        }
    }
}
