//! The backward pass of the graph: the gradient buffer of every value, and the operations of a tape
//! in reverse.

use super::Graph;
use crate::plan::{Accumulate, BufferId, Class, Destination, Error, Op, Slice, Tape};

impl Graph<'_, '_> {
    /// Appends the backward pass of the operations of a tape, the last one first.
    ///
    /// # Errors
    /// A bug in a network's file: an operation without a backward pass, or a value that no later
    /// operation reads.
    pub fn append_backward(&mut self, tape: &[Op]) -> Result<(), Error> {
        tape.iter().rev().try_for_each(|op| op.backward(self))
    }

    /// Gives a value the gradient that an operation outside of the tape left in `gradient`.
    pub fn set_gradient(&mut self, value: BufferId, name: &str, gradient: BufferId) {
        self.know(value, name, 3, None);
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
        let gradient = match known.whole {
            Some(whole) => {
                let (gradient, _) = self.gradient_of_whole(whole)?;
                let (images, of) = (self.images.clone(), self.whole.n);
                self.builder.images(gradient, &images, of)
            }
            None => {
                let name = format!("{name}{}", self.part_name());
                let count = self.extent().pixels() * stride;
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
        let (name, stride) = (known.name.clone(), known.stride);
        let name = format!("d {name}, another part{}", self.part_name());
        let count = self.extent().pixels() * stride;
        let part = self.builder.map(name, Class::ActivationGradients, count);
        self.pending_sums.push((part, gradient, stride));
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
        for (from, into, stride) in std::mem::take(&mut self.pending_sums) {
            let extent = self.extent();
            self.builder.push(
                Accumulate {
                    extent,
                    stride,
                    from,
                    into,
                }
                .into(),
            );
        }
    }
}
