//! A small interpreter of ONNX graphs, to check an exported file against this program without
//! another runtime. It knows the operators that exports use, computes in f32 and rounds each result
//! to the type that the graph gives it. Depends on the file's structure and on `operators`.
//! Promises an error, not a panic, for a graph that it cannot run.

use super::format::{Attribute, DataType, Model, Node, Tensor};
use super::operators;
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// A tensor that a graph computes with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    /// Floats of a type; they are stored as f32.
    Floats {
        kind: DataType,
        dims: Vec<usize>,
        values: Vec<f32>,
    },
    /// Integers.
    Ints { dims: Vec<usize>, values: Vec<i64> },
}

impl Data {
    /// Floats of type `kind`: the values, rounded to it.
    pub fn floats(kind: DataType, dims: Vec<usize>, mut values: Vec<f32>) -> Data {
        if let Some(precision) = kind.half() {
            for value in &mut values {
                *value = precision.widen(precision.narrow(*value));
            }
        }
        Data::Floats { kind, dims, values }
    }

    pub fn dims(&self) -> &[usize] {
        match self {
            Data::Floats { dims, .. } | Data::Ints { dims, .. } => dims,
        }
    }

    /// The values of a tensor of integers.
    pub fn ints(&self) -> Result<&[i64]> {
        match self {
            Data::Ints { values, .. } => Ok(values),
            Data::Floats { .. } => bail!("integers were expected"),
        }
    }

    /// The values of a tensor of floats, and their type.
    pub fn values(&self) -> Result<(DataType, &[f32])> {
        match self {
            Data::Floats { kind, values, .. } => Ok((*kind, values)),
            Data::Ints { .. } => bail!("floats were expected"),
        }
    }
}

/// Values of a constant.
fn constant(tensor: &Tensor) -> Result<Data> {
    let dims = tensor.dims.iter().map(|&d| usize::try_from(d));
    let dims = dims.collect::<Result<Vec<usize>, _>>()?;
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let bytes = count.and_then(|n| n.checked_mul(tensor.kind.bytes()));
    ensure!(
        bytes == Some(tensor.data.len()),
        "the constant {} has {} bytes for the sides {dims:?}",
        tensor.name,
        tensor.data.len()
    );
    let (kind, data) = (tensor.kind, &tensor.data);
    let values = match kind {
        DataType::I64 => {
            let eights = data.as_chunks().0.iter();
            let values = eights.map(|&bytes| i64::from_le_bytes(bytes)).collect();
            return Ok(Data::Ints { dims, values });
        }
        DataType::F32 => {
            let fours = data.as_chunks().0.iter();
            fours.map(|&bytes| f32::from_le_bytes(bytes)).collect()
        }
        DataType::Fp16 | DataType::Bf16 => {
            let precision = kind.half().unwrap_or_default();
            let pairs = data.as_chunks().0.iter();
            let halves = pairs.map(|&bytes| precision.widen(u16::from_le_bytes(bytes)));
            halves.collect()
        }
    };
    Ok(Data::Floats { kind, dims, values })
}

/// The attributes of a node.
pub(super) struct Attributes<'a>(&'a Node);

impl Attributes<'_> {
    fn find(&self, name: &str) -> Option<&Attribute> {
        let mut all = self.0.attributes.iter();
        all.find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// An integer, or `default`.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.find(name) {
            Some(&Attribute::Int(value)) => value,
            _ => default,
        }
    }

    /// A float, or `default`.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        match self.find(name) {
            Some(&Attribute::Float(value)) => value,
            _ => default,
        }
    }

    /// A text; empty if it is not there.
    pub fn text(&self, name: &str) -> &str {
        match self.find(name) {
            Some(Attribute::Text(value)) => value,
            _ => "",
        }
    }

    /// A list of integers that are not negative.
    pub fn list(&self, name: &str) -> Result<Vec<usize>> {
        let Some(Attribute::Ints(values)) = self.find(name) else {
            bail!("the attribute {name} is missing");
        };
        let values = values.iter().map(|&v| usize::try_from(v));
        Ok(values.collect::<Result<_, _>>()?)
    }
}

/// Runs a graph with one input `[N, 3, h, w]`; returns the output's sides and values.
///
/// # Errors
/// A graph that the interpreter cannot run; the message names the node.
pub(super) fn run(model: &Model, dims: &[usize], input: &[f32]) -> Result<(Vec<usize>, Vec<f32>)> {
    let (port, result) = match (&model.inputs[..], &model.outputs[..]) {
        ([input], [output]) => (input, &output.name),
        _ => bail!("the graph has not one input and one output"),
    };
    let constants = model.constants.iter();
    let mut values: HashMap<&str, Data> = constants
        .map(|tensor| Ok((tensor.name.as_str(), constant(tensor)?)))
        .collect::<Result<_>>()?;
    let data = Data::floats(port.kind, dims.to_vec(), input.to_vec());
    values.insert(&port.name, data);
    let last_use = last_uses(model);
    for (number, node) in model.nodes.iter().enumerate() {
        let about = || format!("node {} ({})", node.outputs.join(", "), node.operator);
        let inputs = node.inputs.iter().map(|name| match name.as_str() {
            "" => Ok(None),
            name => {
                let found = values.get(name);
                found
                    .map(Some)
                    .with_context(|| format!("{name} is unknown"))
            }
        });
        let inputs = inputs.collect::<Result<Vec<_>>>().with_context(about)?;
        let outputs =
            operators::apply(&node.operator, &inputs, &Attributes(node)).with_context(about)?;
        ensure!(
            outputs.len() == node.outputs.len(),
            "{} has {} results",
            about(),
            outputs.len()
        );
        for (name, value) in node.outputs.iter().zip(outputs) {
            values.insert(name, value);
        }
        for name in node.inputs.iter().filter(|name| *name != result) {
            if last_use.get(name.as_str()) == Some(&number) {
                values.remove(name.as_str());
            }
        }
    }
    let output = values.remove(result.as_str());
    match output.context("no node computes the output")? {
        Data::Floats { dims, values, .. } => Ok((dims, values)),
        Data::Ints { .. } => bail!("the output is integers"),
    }
}

/// The number of the last node that reads each value.
fn last_uses(model: &Model) -> HashMap<&str, usize> {
    let nodes = model.nodes.iter().enumerate();
    nodes
        .flat_map(|(number, node)| node.inputs.iter().map(move |name| (name.as_str(), number)))
        .collect()
}
