//! The tensors of a file, comparing them with a network's parameter table, and reading their values.
//! Depends on the table alone. Promises that a tensor is a view within the file's bytes.

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
    let readable = matches!(
        tensor.dtype,
        Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64
    );
    (!readable).then(|| Mismatch::Type {
        name,
        found: format!("{:?}", tensor.dtype),
    })
}

/// A tensor of a file, as a view of the file's bytes.
#[derive(Clone, Debug)]
pub(super) struct FileTensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    /// From the first element on.
    data: &'a [u8],
    /// Elements between neighbours along each axis; `None` if they are adjacent, as in C.
    strides: Option<Vec<usize>>,
}

impl<'a> FileTensor<'a> {
    /// A view of a storage whose first element is number `offset` and whose neighbours are as many
    /// elements apart as `strides` say. `None` if it reaches beyond the storage.
    pub fn strided(
        dtype: Dtype,
        (shape, strides): (&[u64], &[u64]),
        offset: u64,
        storage: &'a [u8],
    ) -> Option<FileTensor<'a>> {
        let sizes = |list: &[u64]| -> Option<Vec<usize>> {
            list.iter().map(|&n| usize::try_from(n).ok()).collect()
        };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        let size = dtype.bitsize() / 8;
        let start = usize::try_from(offset).ok()?.checked_mul(size)?;
        let data = storage.get(start..)?;
        let count = shape
            .iter()
            .try_fold(1usize, |n, &side| n.checked_mul(side))?;
        if count == 0 {
            return Some(FileTensor {
                dtype,
                shape,
                data: &[],
                strides: None,
            });
        }
        let mut adjacent = 1;
        let mut is_adjacent = true;
        let mut last: usize = 0;
        for (&side, &stride) in shape.iter().zip(&strides).rev() {
            is_adjacent &= side == 1 || stride == adjacent;
            adjacent *= side; // at most `count`
            last = last.checked_add((side - 1).checked_mul(stride)?)?;
        }
        let end = last.checked_add(1)?.checked_mul(size)?;
        let data = data.get(..end)?;
        Some(FileTensor {
            dtype,
            shape,
            data,
            strides: (!is_adjacent).then_some(strides),
        })
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its values, row by row, through a function that reads one from its bytes.
    fn read<const SIZE: usize>(&self, out: &mut [f32], value: impl Fn([u8; SIZE]) -> f32) {
        let (elements, _) = self.data.as_chunks::<SIZE>();
        let Some(strides) = &self.strides else {
            elements.iter().zip(out).for_each(|(&b, o)| *o = value(b));
            return;
        };
        let mut index = vec![0; self.shape.len()];
        let mut at = 0;
        for o in out {
            *o = elements.get(at).map_or(0.0, |&b| value(b));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
    }
}

impl<'a> From<TensorView<'a>> for FileTensor<'a> {
    fn from(view: TensorView<'a>) -> FileTensor<'a> {
        FileTensor {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data(),
            strides: None,
        }
    }
}

/// Converts an F32, F16, BF16 or F64 tensor to f32. `out` has as many elements as the tensor.
pub(super) fn read_values(tensor: &FileTensor, out: &mut [f32]) {
    let half = |precision: Precision| move |b| precision.widen(u16::from_le_bytes(b));
    match tensor.dtype {
        Dtype::F32 => tensor.read(out, f32::from_le_bytes),
        Dtype::F64 => tensor.read(out, |b| f64::from_le_bytes(b) as f32),
        Dtype::BF16 => tensor.read(out, half(Precision::Bf16)),
        _ => tensor.read(out, half(Precision::Fp16)),
    }
}
