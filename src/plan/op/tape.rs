//! What an operation asks for while it appends its backward pass, and how it may be fused with the
//! next operation.

use super::{Op, ParamRange, Slice};
use crate::plan::{BufferId, Error};

/// The list of backward operations while it is made, from the last operation of the forward pass to
/// the first. It knows the gradient buffer of every value, and sums gradients where several
/// operations read one value.
pub trait Tape {
    /// The part of the micro-batch that is differentiated.
    fn slice(&self) -> Slice;

    /// The gradient buffer of a buffer of parameters.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it has none.
    fn gradients(&self, parameters: BufferId) -> Result<BufferId, Error>;

    /// Whether gradients in the buffer of [`Tape::gradients`] are summed over the micro-batches of
    /// an iteration. Otherwise each micro-batch replaces them.
    fn accumulates(&self, parameters: BufferId) -> bool;

    /// Whether an earlier operation of this backward pass left a gradient for a parameter that
    /// several operations may use: this one then adds to it.
    fn shares_gradient(&mut self, parameter: ParamRange) -> bool;

    /// The complete gradient of a value that the forward pass wrote.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no operation computed one.
    fn d_output(&mut self, value: BufferId) -> Result<BufferId, Error>;

    /// Where an operation that can add leaves the gradient of a value it read; `None` if nobody
    /// needs that gradient.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the value is unknown.
    fn destination(&mut self, value: BufferId) -> Result<Option<Destination>, Error>;

    /// A buffer that an operation which cannot add fills with the gradient of a value it read. If
    /// the value has a gradient already, the two are summed after the next [`Tape::push`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if the value is unknown.
    fn write_gradient(&mut self, value: BufferId) -> Result<BufferId, Error>;

    /// A buffer for one part of the gradient of the network's input, if that is wanted.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `value` is not the network's input.
    fn input_gradient(&mut self, value: BufferId) -> Result<Option<BufferId>, Error>;

    /// Appends a backward operation.
    fn push(&mut self, op: Op);
}

/// Where an operation leaves a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The buffer.
    pub buffer: BufferId,
    /// Whether to add to the gradient that another operation left there.
    pub add: bool,
}

/// How two operations in a row may be computed at once. The second one then still exists in the
/// plan; what it does is done by the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fusion {
    /// An input of the second operation that it does not read from memory; the first need not
    /// write it where no other operation reads it.
    pub not_read: Option<BufferId>,
    /// The first operation computes all of the second but the last addition of its sums: the second
    /// moves no bytes, and its workspace is written by the first.
    pub absorbed: bool,
    /// The second operation computes all of the first but the last addition of its sums: the first
    /// moves no bytes, and its workspace is written by the second.
    pub delayed: bool,
    /// Kernels do this only where activations are in half precision.
    pub halves: bool,
}
