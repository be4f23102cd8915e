//! The structure of an ONNX file, as far as exported networks use it, and its bytes. The numbers of
//! fields and types are those of `onnx.proto`. Depends on `proto` alone. Promises that what is
//! written reads back equal.

use super::proto::{Field, Message, fields};
use crate::plan::Precision;
use anyhow::{Context, Result, bail};

/// The type of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum DataType {
    /// 32-bit float.
    F32,
    /// 64-bit integer: shapes, pads, positions.
    I64,
    /// IEEE half.
    Fp16,
    /// bfloat16.
    Bf16,
}

impl DataType {
    const ALL: [DataType; 4] = [DataType::F32, DataType::I64, DataType::Fp16, DataType::Bf16];

    /// The number of the type in ONNX.
    pub fn number(self) -> i64 {
        match self {
            DataType::F32 => 1,
            DataType::I64 => 7,
            DataType::Fp16 => 10,
            DataType::Bf16 => 16,
        }
    }

    /// The type with a number of ONNX.
    ///
    /// # Errors
    /// A type that exported networks do not use.
    pub fn of_number(number: i64) -> Result<DataType> {
        let found = DataType::ALL.into_iter().find(|t| t.number() == number);
        found.with_context(|| format!("the type {number} is not known"))
    }

    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            DataType::F32 => 4,
            DataType::I64 => 8,
            DataType::Fp16 | DataType::Bf16 => 2,
        }
    }

    /// The precision of a type with 16 bits.
    pub fn half(self) -> Option<Precision> {
        match self {
            DataType::Fp16 => Some(Precision::Fp16),
            DataType::Bf16 => Some(Precision::Bf16),
            DataType::F32 | DataType::I64 => None,
        }
    }
}

impl From<Precision> for DataType {
    fn from(precision: Precision) -> DataType {
        match precision {
            Precision::F32 => DataType::F32,
            Precision::Bf16 => DataType::Bf16,
            Precision::Fp16 => DataType::Fp16,
        }
    }
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub name: String,
    pub kind: DataType,
    pub dims: Vec<i64>,
    /// The values, little endian, row by row.
    pub data: Vec<u8>,
}

impl Tensor {
    /// Floats as a tensor of type `kind`, rounded to the nearest value it has.
    pub fn floats(name: String, kind: DataType, dims: &[i64], values: &[f32]) -> Tensor {
        let data = match kind.half() {
            Some(precision) => values
                .iter()
                .flat_map(|&v| precision.narrow(v).to_le_bytes())
                .collect(),
            None => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let dims = dims.to_vec();
        Tensor {
            name,
            kind,
            dims,
            data,
        }
    }

    /// Integers as a tensor with one side, or as a scalar.
    pub fn ints(name: String, dims: &[i64], values: &[i64]) -> Tensor {
        Tensor {
            name,
            kind: DataType::I64,
            dims: dims.to_vec(),
            data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// The value of a node's attribute.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Ints(Vec<i64>),
}

/// One operator of a graph.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub operator: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: Vec<(String, Attribute)>,
}

/// A side of an input or output.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Side {
    /// Always this long.
    Fixed(i64),
    /// Of a length that each run decides; equal names are equal lengths.
    Named(String),
}

/// Name, type and shape of an input or output.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Port {
    pub name: String,
    pub kind: DataType,
    pub sides: Vec<Side>,
}

/// A whole file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    /// The version of ONNX's operators.
    pub opset: i64,
    /// The program's version.
    pub version: String,
    /// Name of the graph.
    pub name: String,
    /// Keys and values.
    pub metadata: Vec<(String, String)>,
    /// In an order in which they can run.
    pub nodes: Vec<Node>,
    pub constants: Vec<Tensor>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// The version of the file format that came with a version of the operators.
fn file_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        _ => 10,
    }
}

/// The name of the program in files.
const PRODUCER: &str = "paragon";

impl Model {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = Message::default();
        file.int(1, file_version(self.opset));
        file.text(2, PRODUCER);
        file.text(3, &self.version);
        file.message(7, |graph| {
            for node in &self.nodes {
                graph.message(1, |m| write_node(m, node));
            }
            graph.text(2, &self.name);
            for tensor in &self.constants {
                graph.message(5, |m| write_tensor(m, tensor));
            }
            for (number, ports) in [(11, &self.inputs), (12, &self.outputs)] {
                for port in ports {
                    graph.message(number, |m| write_port(m, port));
                }
            }
        });
        file.message(8, |opset| {
            opset.text(1, "");
            opset.int(2, self.opset);
        });
        for (key, value) in &self.metadata {
            file.message(14, |entry| {
                entry.text(1, key);
                entry.text(2, value);
            });
        }
        file.into_bytes()
    }

    /// The structure of a file's bytes.
    ///
    /// # Errors
    /// Bytes that are no file of this kind.
    pub fn decode(bytes: &[u8]) -> Result<Model> {
        let mut model = Model {
            opset: 0,
            version: String::new(),
            name: String::new(),
            metadata: Vec::new(),
            nodes: Vec::new(),
            constants: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        fields(bytes, |number, field| {
            match number {
                3 => model.version = field.text()?,
                7 => model.read_graph(field.bytes()?)?,
                8 => fields(field.bytes()?, |number, field| {
                    if number == 2 {
                        model.opset = field.int()?;
                    }
                    Ok(())
                })?,
                14 => model.metadata.push(read_entry(field.bytes()?)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(model)
    }

    fn read_graph(&mut self, bytes: &[u8]) -> Result<()> {
        fields(bytes, |number, field| {
            match number {
                1 => self.nodes.push(read_node(field.bytes()?)?),
                2 => self.name = field.text()?,
                5 => self.constants.push(read_tensor(field.bytes()?)?),
                11 => self.inputs.push(read_port(field.bytes()?)?),
                12 => self.outputs.push(read_port(field.bytes()?)?),
                _ => {}
            }
            Ok(())
        })
    }
}

fn write_node(m: &mut Message, node: &Node) {
    node.inputs.iter().for_each(|name| m.text(1, name));
    node.outputs.iter().for_each(|name| m.text(2, name));
    // a node is called as its first output
    m.text(3, node.outputs.first().map_or("", |name| name));
    m.text(4, &node.operator);
    for (name, value) in &node.attributes {
        m.message(5, |a| {
            a.text(1, name);
            let kind = match value {
                Attribute::Float(value) => {
                    a.float(2, *value);
                    1
                }
                Attribute::Int(value) => {
                    a.int(3, *value);
                    2
                }
                Attribute::Text(value) => {
                    a.text(4, value);
                    3
                }
                Attribute::Ints(values) => {
                    a.ints(8, values);
                    7
                }
            };
            a.int(20, kind);
        });
    }
}

fn write_tensor(m: &mut Message, tensor: &Tensor) {
    m.ints(1, &tensor.dims);
    m.int(2, tensor.kind.number());
    m.text(8, &tensor.name);
    m.bytes(9, &tensor.data);
}

fn write_port(m: &mut Message, port: &Port) {
    m.text(1, &port.name);
    m.message(2, |kind| {
        kind.message(1, |tensor| {
            tensor.int(1, port.kind.number());
            tensor.message(2, |shape| {
                for side in &port.sides {
                    shape.message(1, |m| match side {
                        Side::Fixed(length) => m.int(1, *length),
                        Side::Named(name) => m.text(2, name),
                    });
                }
            });
        });
    });
}

fn read_entry(bytes: &[u8]) -> Result<(String, String)> {
    let mut entry = (String::new(), String::new());
    fields(bytes, |number, field| {
        match number {
            1 => entry.0 = field.text()?,
            2 => entry.1 = field.text()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(entry)
}

fn read_node(bytes: &[u8]) -> Result<Node> {
    let mut node = Node {
        operator: String::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        attributes: Vec::new(),
    };
    fields(bytes, |number, field| {
        match number {
            1 => node.inputs.push(field.text()?),
            2 => node.outputs.push(field.text()?),
            4 => node.operator = field.text()?,
            5 => node.attributes.push(read_attribute(field.bytes()?)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(node)
}

fn read_attribute(bytes: &[u8]) -> Result<(String, Attribute)> {
    let (mut name, mut kind) = (String::new(), 0);
    let (mut float, mut int, mut text, mut ints) = (0.0, 0, String::new(), Vec::new());
    fields(bytes, |number, field| {
        match (number, field) {
            (1, _) => name = field.text()?,
            (2, Field::Float(value)) => float = value,
            (3, _) => int = field.int()?,
            (4, _) => text = field.text()?,
            (8, _) => field.ints(&mut ints)?,
            (20, _) => kind = field.int()?,
            _ => {}
        }
        Ok(())
    })?;
    let value = match kind {
        1 => Attribute::Float(float),
        2 => Attribute::Int(int),
        3 => Attribute::Text(text),
        7 => Attribute::Ints(ints),
        other => bail!("the attribute {name} has the unknown type {other}"),
    };
    Ok((name, value))
}

fn read_tensor(bytes: &[u8]) -> Result<Tensor> {
    let mut tensor = Tensor {
        name: String::new(),
        kind: DataType::F32,
        dims: Vec::new(),
        data: Vec::new(),
    };
    fields(bytes, |number, field| {
        match number {
            1 => field.ints(&mut tensor.dims)?,
            2 => tensor.kind = DataType::of_number(field.int()?)?,
            8 => tensor.name = field.text()?,
            9 => tensor.data = field.bytes()?.to_vec(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(tensor)
}

fn read_port(bytes: &[u8]) -> Result<Port> {
    let mut port = Port {
        name: String::new(),
        kind: DataType::F32,
        sides: Vec::new(),
    };
    fields(bytes, |number, field| {
        match number {
            1 => port.name = field.text()?,
            2 => fields(field.bytes()?, |_, tensor| {
                fields(tensor.bytes()?, |number, field| {
                    match number {
                        1 => port.kind = DataType::of_number(field.int()?)?,
                        2 => fields(field.bytes()?, |_, side| {
                            port.sides.push(read_side(side.bytes()?)?);
                            Ok(())
                        })?,
                        _ => {}
                    }
                    Ok(())
                })
            })?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(port)
}

fn read_side(bytes: &[u8]) -> Result<Side> {
    let mut side = Side::Named(String::new());
    fields(bytes, |number, field| {
        side = match number {
            1 => Side::Fixed(field.int()?),
            _ => Side::Named(field.text()?),
        };
        Ok(())
    })?;
    Ok(side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_back_equal() {
        let attributes = [
            ("a", Attribute::Int(-3)),
            ("b", Attribute::Float(0.5)),
            ("c", Attribute::Text("CRD".into())),
            ("d", Attribute::Ints(vec![1, 0, -1])),
        ];
        let port = |name: &str| Port {
            name: name.into(),
            kind: DataType::Bf16,
            sides: vec![Side::Named("batch".into()), Side::Fixed(3)],
        };
        let model = Model {
            opset: 18,
            version: "1.2.3".into(),
            name: "nano".into(),
            metadata: vec![("scale".into(), "2".into())],
            nodes: vec![Node {
                operator: "Conv".into(),
                inputs: vec!["input".into(), String::new(), "w".into()],
                outputs: vec!["output".into()],
                attributes: attributes.map(|(n, v)| (n.to_string(), v)).to_vec(),
            }],
            constants: vec![
                Tensor::floats("w".into(), DataType::Fp16, &[2, 1], &[1.0, -0.25]),
                Tensor::ints("i".into(), &[1], &[i64::MAX]),
            ],
            inputs: vec![port("input")],
            outputs: vec![port("output")],
        };
        let bytes = model.encode();
        assert_eq!(Model::decode(&bytes).unwrap(), model);
        for cut in 0..bytes.len() {
            let _ = Model::decode(&bytes[..cut]); // no panic
        }
    }
}
