//! Reads the golden files (safetensors computed in float64 elsewhere) for tests. Depends on
//! `safetensors` and on where reference data lies.

use crate::common::place;

use super::Parameters;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;

/// One golden file, in memory.
pub struct Golden {
    bytes: Vec<u8>,
    pub metadata: HashMap<String, String>,
}

/// Opens `golden/<file>`, or says why `test` is skipped.
pub fn open(test: &str, file: &str) -> Option<Golden> {
    let bytes = std::fs::read(place::reference(test, &format!("golden/{file}"))?)
        .expect("a file that can be read");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let metadata = header.metadata().clone().unwrap_or_default();
    Some(Golden { bytes, metadata })
}

impl Golden {
    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("a safetensors file")
    }

    /// Shape and values of a tensor (F64, F32 or U8), in file order.
    pub fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let tensors = self.tensors();
        let view = tensors
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F64 => data
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64)
                .collect(),
            Dtype::U8 => data.iter().map(|b| *b as f64).collect(),
            other => panic!("{name}: unexpected type {other:?}"),
        };
        (view.shape().to_vec(), values)
    }

    /// An NCHW tensor as (n, h, w, NHWC values).
    pub fn picture(&self, name: &str) -> (usize, usize, usize, Vec<f64>) {
        let (shape, values) = self.tensor(name);
        let [n, c, h, w] = shape[..] else {
            panic!("{name}: not NCHW: {shape:?}")
        };
        let mut out = Vec::with_capacity(values.len());
        for b in 0..n {
            for pixel in 0..h * w {
                out.extend((0..c).map(|ch| values[(b * c + ch) * h * w + pixel]));
            }
        }
        (n, h, w, out)
    }

    /// Every tensor whose name begins with `prefix`, without the prefix.
    pub fn parameters(&self, prefix: &str) -> Parameters {
        let tensors = self.tensors();
        let names = tensors
            .names()
            .into_iter()
            .filter_map(|name| name.strip_prefix(prefix).map(|short| (name, short)));
        names
            .map(|(name, short)| (short.to_string(), self.tensor(name)))
            .collect()
    }

    /// The training configuration in the metadata.
    pub fn config(&self) -> serde_json::Value {
        serde_json::from_str(&self.metadata["config"]).expect("JSON under `config`")
    }
}

/// ||a - b|| / ||b||
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    difference / square(&mut b.iter().copied()).max(1e-300)
}
