//! Comparing a file's tensors with a network's parameter table, and reading their values. Depends
//! on the table alone.

use super::names::Tensors;
use crate::model::error::Mismatch;
use crate::model::{Init, Network, Param};
use crate::plan::Precision;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Every difference between a file's tensors and a network, sorted by its text: parameters that are
/// missing or have another shape or type, and tensors that are not part of the network.
pub(super) fn mismatches(tensors: &Tensors, net: &Network) -> Vec<Mismatch> {
    let table = net.params();
    let mut found: Vec<Mismatch> = table
        .params
        .iter()
        .filter(|p| p.init != Init::Derived)
        .filter_map(|p| mismatch(tensors, p))
        .collect();
    let unknown = tensors.keys().filter(|name| table.get(name).is_none());
    found.extend(unknown.map(|name| Mismatch::Unknown {
        name: name.clone(),
        network: label(net),
    }));
    found.sort_by_cached_key(Mismatch::to_string);
    found
}

/// Name and scale of a network for messages: `paragonsr2_realtime x2`.
pub(super) fn label(net: &Network) -> String {
    format!("{} x{}", net.arch, net.scale)
}

/// A shape without its sides of 1, which do not change the order of the values: PyTorch, too,
/// accepts shape `[1]` for a scalar.
pub(super) fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|side| *side != 1).collect()
}

/// Why a file's tensors do not contain a parameter; `None` if they do.
pub(super) fn mismatch(tensors: &Tensors, p: &Param) -> Option<Mismatch> {
    let name = p.name.clone();
    let Some(tensor) = tensors.get(&name) else {
        return Some(Mismatch::Missing { name });
    };
    if squeezed(tensor.shape()) != squeezed(&p.shape) {
        return Some(Mismatch::Shape {
            name,
            found: tensor.shape().to_vec(),
            expected: p.shape.clone(),
        });
    }
    let readable = matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16);
    (!readable).then(|| Mismatch::Type {
        name,
        found: format!("{:?}", tensor.dtype()),
    })
}

/// Converts an F32, F16 or BF16 tensor to f32.
pub(super) fn read_values(view: &TensorView, out: &mut [f32]) {
    let data = view.data();
    let halves = data
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    match view.dtype() {
        Dtype::F32 => data
            .chunks_exact(4)
            .zip(out)
            .for_each(|(b, o)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::BF16 => halves
            .zip(out)
            .for_each(|(bits, o)| *o = Precision::Bf16.widen(bits)),
        _ => halves
            .zip(out)
            .for_each(|(bits, o)| *o = Precision::Fp16.widen(bits)),
    }
}
