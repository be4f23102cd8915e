//! Collects the nodes and constants of a graph while the operations of a plan are lowered to it:
//! names, types, constants that several nodes share, casts. Depends on the file's structure and on
//! the plan. Promises that no name is given twice, and that a node reads values of one type.

use super::format::{Attribute, DataType, Model, Node, Port, Side, Tensor};
use crate::model::{Network, ParamTable};
use crate::plan::{BufferId, ParamRange, PlanData};
use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};

/// Name of the graph's input.
pub(super) const INPUT: &str = "input";
/// Name of the graph's output.
pub(super) const OUTPUT: &str = "output";

/// A value of the graph: the name by which nodes refer to it, and its type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Value {
    pub name: String,
    pub kind: DataType,
}

/// See the module's documentation.
pub(super) struct Emitter<'a> {
    pub plan: &'a PlanData,
    table: ParamTable,
    /// The parameters, in table order.
    parameters: &'a [f32],
    /// Type of the activations.
    pub kind: DataType,
    /// Type of input and output.
    pub outer: DataType,
    nodes: Vec<Node>,
    constants: Vec<Tensor>,
    names: HashSet<String>,
    /// Constants by what they hold, to have each only once.
    shared: HashMap<String, Value>,
    /// The value of each buffer that an operation has written.
    written: HashMap<BufferId, Value>,
    /// Convolutions whose weights an operation composes, by the buffer of the weights.
    pub composed: HashMap<BufferId, String>,
    /// Results that other nodes may use again: casts, applied activations, sizes.
    memo: HashMap<String, Value>,
}

impl<'a> Emitter<'a> {
    /// An empty graph; `plan` has one image of one pixel, `parameters` are those of `net`.
    pub fn new(
        plan: &'a PlanData,
        net: &Network,
        parameters: &'a [f32],
        kind: DataType,
    ) -> Emitter<'a> {
        // As other exporters do it: programs feed fp16 to fp16 files, but none can feed bf16.
        let outer = if kind == DataType::Bf16 {
            DataType::F32
        } else {
            kind
        };
        let mut emitter = Emitter {
            plan,
            table: net.params(),
            parameters,
            kind,
            outer,
            nodes: Vec::new(),
            constants: Vec::new(),
            names: HashSet::from([INPUT.to_string(), OUTPUT.to_string()]),
            shared: HashMap::new(),
            written: HashMap::new(),
            composed: HashMap::new(),
            memo: HashMap::new(),
        };
        if let Some(input) = plan.ports.input {
            emitter.write(input, emitter.input());
        }
        emitter
    }

    /// The graph's input.
    pub fn input(&self) -> Value {
        Value {
            name: INPUT.to_string(),
            kind: self.outer,
        }
    }

    /// A name like this one that no node and no constant has.
    fn unused(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_string();
        let mut number = 2;
        while !self.names.insert(name.clone()) {
            name = format!("{wanted}_{number}");
            number += 1;
        }
        name
    }

    /// Name of a plan's buffer, for the nodes that compute it.
    pub fn label(&self, buffer: BufferId) -> String {
        let buffer = self.plan.buffers.get(buffer.0 as usize);
        buffer.map_or(String::new(), |buffer| buffer.name.replace(", ", "."))
    }

    /// Appends a node with one output of type `kind`.
    pub fn node(
        &mut self,
        operator: &str,
        name: &str,
        inputs: &[&Value],
        kind: DataType,
        attributes: &[(&str, Attribute)],
    ) -> Value {
        let name = self.unused(name);
        self.push(operator, inputs, vec![name.clone()], attributes);
        Value { name, kind }
    }

    /// Appends a node with several outputs of one type, called `NAME.PART`.
    pub fn node_of_parts(
        &mut self,
        operator: &str,
        name: &str,
        inputs: &[&Value],
        parts: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> Vec<Value> {
        let kind = inputs[0].kind;
        let names: Vec<String> = parts
            .iter()
            .map(|part| self.unused(&format!("{name}.{part}")))
            .collect();
        self.push(operator, inputs, names.clone(), attributes);
        names.into_iter().map(|name| Value { name, kind }).collect()
    }

    fn push(
        &mut self,
        operator: &str,
        inputs: &[&Value],
        outputs: Vec<String>,
        attributes: &[(&str, Attribute)],
    ) {
        let attributes = attributes.iter();
        self.nodes.push(Node {
            operator: operator.to_string(),
            inputs: inputs.iter().map(|value| value.name.clone()).collect(),
            outputs,
            attributes: attributes
                .map(|(name, value)| (name.to_string(), value.clone()))
                .collect(),
        });
    }

    /// Appends a node without attributes whose output has the type of its first input.
    pub fn apply(&mut self, operator: &str, name: &str, inputs: &[&Value]) -> Value {
        self.node(operator, name, inputs, inputs[0].kind, &[])
    }

    /// The value as type `kind`.
    pub fn cast(&mut self, value: &Value, kind: DataType) -> Value {
        if value.kind == kind {
            return value.clone();
        }
        let name = format!("{}.as_{kind:?}", value.name).to_lowercase();
        self.memoized(&name.clone(), |e| {
            let to = [("to", Attribute::Int(kind.number()))];
            e.node("Cast", &name, &[value], kind, &to)
        })
    }

    /// The value as the type of the activations.
    pub fn narrow(&mut self, value: &Value) -> Value {
        self.cast(value, self.kind)
    }

    /// The value as f32.
    pub fn wide(&mut self, value: &Value) -> Value {
        self.cast(value, DataType::F32)
    }

    /// The value that `make` has made under this key before, or makes now.
    pub fn memoized(&mut self, key: &str, make: impl FnOnce(&mut Self) -> Value) -> Value {
        if let Some(value) = self.memo.get(key) {
            return value.clone();
        }
        let value = make(self);
        self.memo.insert(key.to_string(), value.clone());
        value
    }

    /// A constant of type `kind`. Constants of one name are the same.
    pub fn floats(&mut self, name: &str, kind: DataType, dims: &[usize], values: &[f32]) -> Value {
        let key = format!("{name} {kind:?} {dims:?}");
        if let Some(value) = self.shared.get(&key) {
            return value.clone();
        }
        let unused = self.unused(name);
        let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        let tensor = Tensor::floats(unused.clone(), kind, &dims, values);
        self.constants.push(tensor);
        let value = Value { name: unused, kind };
        self.shared.insert(key, value.clone());
        value
    }

    /// A constant number.
    pub fn scalar(&mut self, number: f32, kind: DataType) -> Value {
        self.floats(&format!("number.{number}"), kind, &[], &[number])
    }

    /// A constant list of integers.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        let key = format!("integers {values:?}");
        if let Some(value) = self.shared.get(&key) {
            return value.clone();
        }
        let parts: Vec<String> = values
            .iter()
            .map(|&v| {
                if v == i64::MAX {
                    "end".into()
                } else {
                    v.to_string()
                }
            })
            .collect();
        let name = self.unused(&format!("integers.{}", parts.join(".")));
        let tensor = Tensor::ints(name.clone(), &[values.len() as i64], values);
        self.constants.push(tensor);
        let kind = DataType::I64;
        let value = Value { name, kind };
        self.shared.insert(key, value.clone());
        value
    }

    /// Name and values of a parameter.
    ///
    /// # Errors
    /// The range is that of no parameter: a bug in the network's file.
    pub fn parameter(&self, range: ParamRange) -> Result<(String, &'a [f32])> {
        let mut all = self.table.params.iter();
        let found = all.find(|p| p.range == range).with_context(|| {
            format!("no parameter has the values {range:?}; the network cannot be exported")
        })?;
        Ok((
            found.name.clone(),
            &self.parameters[range.offset..][..range.len],
        ))
    }

    /// Weight and bias of a convolution: parameters, or those that an operation composes.
    ///
    /// # Errors
    /// See [`Emitter::parameter`].
    pub fn weights(
        &self,
        buffer: BufferId,
        [weight, bias]: [ParamRange; 2],
    ) -> Result<[(String, &'a [f32]); 2]> {
        let Some(name) = self.composed.get(&buffer) else {
            return Ok([self.parameter(weight)?, self.parameter(bias)?]);
        };
        let part = |part: &str| {
            let name = format!("{name}.eval_conv.{part}");
            let found = self.table.get(&name).with_context(|| {
                format!("the network composes {name} but has no parameter of that name")
            })?;
            self.parameter(found.range)
        };
        Ok([part("weight")?, part("bias")?])
    }

    /// A parameter as a constant of type `kind`.
    ///
    /// # Errors
    /// See [`Emitter::parameter`].
    pub fn constant(&mut self, range: ParamRange, kind: DataType, dims: &[usize]) -> Result<Value> {
        let (name, values) = self.parameter(range)?;
        Ok(self.floats(&name, kind, dims, values))
    }

    /// The value of a buffer.
    ///
    /// # Errors
    /// No operation has written it: a bug in the network's file.
    pub fn read(&self, buffer: BufferId) -> Result<Value> {
        let value = self.written.get(&buffer).cloned();
        value.with_context(|| format!("no operation has written {}", self.label(buffer)))
    }

    /// From here on, the buffer has this value.
    pub fn write(&mut self, buffer: BufferId, value: Value) {
        self.written.insert(buffer, value);
    }

    /// The whole file: `result` becomes the graph's output.
    pub fn finish(mut self, result: &Value, net: &Network, opset: i64) -> Model {
        let last = self.cast(result, self.outer);
        for node in &mut self.nodes {
            for name in node.inputs.iter_mut().chain(&mut node.outputs) {
                if *name == last.name {
                    *name = OUTPUT.to_string();
                }
            }
        }
        let port = |name: &str, height: &str, width: &str| Port {
            name: name.to_string(),
            kind: self.outer,
            sides: vec![
                Side::Named("batch".into()),
                Side::Fixed(3),
                Side::Named(height.into()),
                Side::Named(width.into()),
            ],
        };
        let (inputs, outputs) = (
            vec![port(INPUT, "height", "width")],
            vec![if net.scale == 1 {
                port(OUTPUT, "height", "width")
            } else {
                port(OUTPUT, "output_height", "output_width")
            }],
        );
        Model {
            opset,
            version: env!("CARGO_PKG_VERSION").to_string(),
            name: net.arch.clone(),
            metadata: Vec::new(),
            nodes: self.nodes,
            constants: self.constants,
            inputs,
            outputs,
        }
    }
}
