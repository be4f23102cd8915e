//! `paragon.ShardSet`: the pairs of one set by their numbers. Depends on `array`.

use crate::array::{Array, Owner};
use crate::errors::exception;
use paragon::loader::{ElementType, IoChoice, Sources, choose_io};
use paragon::shard::reader::{self, Io, Scratch};
use paragon::sys::host_memory::HostBlock;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A finished set of shards: `set[i]` is the pair `(lq, hr)` of record `i`, `len(set)` their number.
///
/// Threads may share it.
#[pyclass(frozen, subclass, module = "paragon._paragon")]
pub struct ShardSet {
    set: Arc<reader::ShardSet>,
    io: Io,
    /// Buffers that no thread uses now.
    scratch: Mutex<Vec<Scratch>>,
}

impl ShardSet {
    /// The record that Python's index means; negative ones count from the end.
    fn record(&self, index: i64) -> PyResult<u64> {
        let records = self.set.len();
        let record = if index < 0 {
            records.checked_sub(index.unsigned_abs())
        } else {
            Some(index.unsigned_abs())
        };
        record.filter(|&record| record < records).ok_or_else(|| {
            PyIndexError::new_err(format!(
                "record {index} is asked for and {} holds {records}",
                self.set.folder().display()
            ))
        })
    }

    fn read(&self, record: u64) -> anyhow::Result<[HostBlock; 2]> {
        let geometry = self.set.geometry();
        let mut lq = HostBlock::heap(geometry.lq_bytes())?;
        let mut hr = HostBlock::heap(geometry.hr_bytes())?;
        // Not `lock`: in a forked child the lock may be held for ever.
        let spare = self.scratch.try_lock().ok().and_then(|mut all| all.pop());
        let mut scratch = match spare {
            Some(scratch) => scratch,
            None => self.set.scratch_for(self.io)?,
        };
        let outcome = self.set.read(record, &mut scratch, &mut lq, &mut hr);
        if let Ok(mut all) = self.scratch.try_lock() {
            all.push(scratch);
        }
        outcome?;
        Ok([lq, hr])
    }
}

/// An array with memory of its own.
fn array(block: HostBlock, side: u32) -> Array {
    let (start, side) = (block.as_ptr().addr(), i64::from(side));
    Array::new(
        Arc::new(Owner::Block(block)),
        start,
        vec![side, side, 3],
        ElementType::U8,
    )
}

#[pymethods]
impl ShardSet {
    /// Opens the set in a folder and checks the structure of every shard.
    #[new]
    fn new(py: Python<'_>, folder: PathBuf) -> PyResult<ShardSet> {
        let set = py
            .detach(|| reader::ShardSet::open(&folder))
            .map_err(|error| exception(&error.into()))?;
        let set = Arc::new(set);
        let (io, _) = choose_io(&Sources::from(set.clone()), IoChoice::Auto);
        Ok(ShardSet {
            set,
            io,
            scratch: Mutex::default(),
        })
    }

    fn __len__(&self) -> usize {
        self.set.len() as usize
    }

    fn __getitem__(&self, py: Python<'_>, index: i64) -> PyResult<(Array, Array)> {
        let record = self.record(index)?;
        let [lq, hr] = py
            .detach(|| self.read(record))
            .map_err(|error| exception(&error))?;
        let geometry = self.set.geometry();
        Ok((
            array(lq, geometry.lq_size),
            array(hr, geometry.lq_size * geometry.scale),
        ))
    }

    /// The image that a record was cut from, and the left and top edge of the LQ patch in the LQ
    /// image: `(image, x, y)`.
    fn source(&self, index: i64) -> PyResult<(String, u32, u32)> {
        let source = self.set.source(self.record(index)?);
        let source = source.map_err(|error| exception(&error.into()))?;
        Ok((source.image, source.x, source.y))
    }

    /// Every image of the set with the number of its records, in their order. An image whose records
    /// go on in the next shard is listed twice.
    fn images(&self, py: Python<'_>) -> PyResult<Vec<(String, u64)>> {
        let sources = py.detach(|| self.set.sources());
        let sources = sources.map_err(|error| exception(&error.into()))?;
        Ok(sources.into_iter().map(|(s, n)| (s.name, n)).collect())
    }

    /// The folder of the set.
    #[getter]
    fn folder(&self) -> PathBuf {
        self.set.folder().to_path_buf()
    }

    /// HR side over LQ side.
    #[getter]
    fn scale(&self) -> u32 {
        self.set.scale()
    }

    /// Side of the stored LQ patches, pixels.
    #[getter]
    fn lq_size(&self) -> u32 {
        self.set.lq_size()
    }

    /// Identity of configuration and content, hexadecimal.
    #[getter]
    fn fingerprint(&self) -> String {
        format!("{:016x}", self.set.fingerprint())
    }

    fn __repr__(&self) -> String {
        format!(
            "<paragon.ShardSet {}: {} pairs x{}, LQ {}>",
            self.set.folder().display(),
            self.set.len(),
            self.set.scale(),
            self.set.lq_size()
        )
    }
}
