//! `paragon.Batch`: one batch of a loader, in the memory of its slot. Depends on `array`. Promises
//! that the slot returns to the loader when the batch and all arrays and views of it are gone.

use crate::array::{Array, Owner};
use crate::errors::exception;
use crate::running::InFlight;
use paragon::loader::{self, ElementType, PixelLayout, Sources};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyTuple};
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// A batch of the loader with the process that it belongs to. In a forked child the loader's
/// threads do not exist and its locks may be held by them for ever, so the child never touches it.
pub struct HeldBatch {
    batch: ManuallyDrop<loader::Batch>,
    process: u32,
}

impl HeldBatch {
    /// Holds a batch of this process.
    pub fn new(batch: loader::Batch) -> HeldBatch {
        HeldBatch {
            batch: ManuallyDrop::new(batch),
            process: std::process::id(),
        }
    }
}

impl Drop for HeldBatch {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // SAFETY: dropped here only, once
            unsafe { ManuallyDrop::drop(&mut self.batch) };
        }
    }
}

/// What all batches of a loader share.
pub struct BatchShape {
    pub sources: Arc<Sources>,
    pub batch: usize,
    pub lq_size: usize,
    pub layout: PixelLayout,
    pub element: ElementType,
    pub in_flight: InFlight,
}

/// One batch: `lq` and `hr` are arrays in the layout and type of the loader. `lq, hr = batch` gives
/// both.
///
/// The memory goes back to the loader when the batch and everything made of its arrays are gone.
#[pyclass(frozen, module = "paragon")]
pub struct Batch {
    owner: Arc<Owner>,
    held: Arc<HeldBatch>,
    shared: Arc<BatchShape>,
    epoch: u64,
}

impl Batch {
    /// A batch of epoch `epoch`.
    pub fn new(batch: loader::Batch, shared: Arc<BatchShape>, epoch: u64) -> Batch {
        let held = Arc::new(HeldBatch::new(batch));
        Batch {
            owner: Arc::new(Owner::Slot(held.clone())),
            held,
            shared,
            epoch,
        }
    }

    fn array(&self, values: &[u8], side: usize) -> Array {
        let side = side as i64;
        let mut shape = match self.shared.layout {
            PixelLayout::Nhwc => vec![0, side, side, 3],
            PixelLayout::Nchw => vec![0, 3, side, side],
        };
        shape[0] = self.shared.batch as i64;
        let start = values.as_ptr().addr();
        Array::new(self.owner.clone(), start, shape, self.shared.element)
    }

    fn values(&self) -> (&[u8], &[u8]) {
        let batch = &self.held.batch;
        let stored = (batch.lq(), batch.hr());
        batch.converted().unwrap_or(stored)
    }
}

#[pymethods]
impl Batch {
    /// LQ values, `[N, 3, H, W]` or `[N, H, W, 3]`.
    #[getter]
    fn lq(&self) -> Array {
        self.array(self.values().0, self.shared.lq_size)
    }

    /// HR values, `[N, 3, H, W]` or `[N, H, W, 3]`.
    #[getter]
    fn hr(&self) -> Array {
        let side = self.shared.lq_size * self.shared.sources.scale() as usize;
        self.array(self.values().1, side)
    }

    /// Number of the batch, counted from the start of the training.
    #[getter]
    fn number(&self) -> u64 {
        self.held.batch.number()
    }

    /// Number of the epoch that the first sample of the batch belongs to, from 0.
    #[getter]
    fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Record number of every sample, counted through all sets.
    #[getter]
    fn records(&self) -> Vec<u64> {
        self.held.batch.records().to_vec()
    }

    /// One code for each sample: 1 mirrored left-right, then 2 mirrored top-bottom, then 4 rows and
    /// columns swapped; added where several apply.
    #[getter]
    fn augmentation<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.held.batch.augment())
    }

    /// The image of every sample: its path, without extension, below the folder of the images.
    #[getter]
    fn images(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let records = self.held.batch.records();
        let image = |&record: &u64| Ok(self.shared.sources.source(record)?.image);
        py.detach(|| records.iter().map(image).collect::<anyhow::Result<_>>())
            .map_err(|error| exception(&error))
    }

    /// LQ and HR as NumPy arrays over the same memory.
    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let numpy = |array: Array| Bound::new(py, array)?.call_method0("numpy");
        Ok((numpy(self.lq())?, numpy(self.hr())?))
    }

    /// LQ and HR as PyTorch tensors over the same memory.
    fn torch<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let torch = |array: Array| Bound::new(py, array)?.call_method0("torch");
        Ok((torch(self.lq())?, torch(self.hr())?))
    }

    /// Keeps the memory until `event.query()` is true: for copies to a device that are still under
    /// way when the batch is dropped.
    fn keep_until(&self, event: Py<PyAny>) {
        self.shared.in_flight.add(event, self.held.clone());
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        PyTuple::new(py, [self.lq(), self.hr()])?.try_iter()
    }

    fn __len__(&self) -> usize {
        self.shared.batch
    }

    fn __repr__(&self) -> String {
        format!(
            "<paragon.Batch {} of {} pairs, LQ {}>",
            self.number(),
            self.shared.batch,
            self.shared.lq_size
        )
    }
}
