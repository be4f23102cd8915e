//! What a running loader holds beside its configuration: threads and slots, batches that a device
//! still reads, pinned memory. Promises that a forked child touches none of it.

use crate::batch::HeldBatch;
use paragon::loader;
use paragon::sys::host_memory::HostBlock;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Locks against other threads of this process.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Batches that a device still reads, each with the event that ends it.
#[derive(Default)]
pub struct InFlight(Mutex<Vec<(Py<PyAny>, Arc<HeldBatch>)>>);

impl Drop for InFlight {
    /// Waits for the copies, because the memory is free afterwards.
    fn drop(&mut self) {
        let all = std::mem::take(&mut *lock(&self.0));
        if !all.is_empty() {
            Python::try_attach(|py| {
                for (event, _) in &all {
                    // an event that cannot be waited for has failed with its device
                    let _ = event.call_method0(py, "synchronize");
                }
            });
        }
    }
}

impl InFlight {
    /// Keeps a batch until `event.query()` is true.
    pub fn add(&self, event: Py<PyAny>, batch: Arc<HeldBatch>) {
        lock(&self.0).push((event, batch));
    }

    /// Lets those go whose events have ended.
    pub fn reclaim(&self, py: Python<'_>) -> PyResult<()> {
        // Not under the lock: `query` runs Python.
        let all = std::mem::take(&mut *lock(&self.0));
        let (mut kept, mut outcome) = (Vec::new(), Ok(()));
        for (event, batch) in all {
            match event
                .call_method0(py, "query")
                .and_then(|done| done.is_truthy(py))
            {
                Ok(true) => {}
                Ok(false) => kept.push((event, batch)),
                Err(error) => {
                    kept.push((event, batch));
                    outcome = Err(error);
                }
            }
        }
        lock(&self.0).extend(kept);
        outcome
    }

    /// Whether no batch is kept.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

/// The threads and slots of a loader, with the process that has them.
pub struct Running {
    pub loader: ManuallyDrop<loader::Loader>,
    process: u32,
}

impl Running {
    /// A loader of this process.
    pub fn new(loader: loader::Loader) -> Running {
        Running {
            loader: ManuallyDrop::new(loader),
            process: std::process::id(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A forked child has none of the threads and would wait for them for ever.
        if self.process != std::process::id() {
            return;
        }
        // The GIL must be free: a thread that ends may release pinned memory, which needs it.
        // SAFETY: dropped here only, once
        let mut drop_loader = || unsafe { ManuallyDrop::drop(&mut self.loader) };
        if Python::try_attach(|py| py.detach(&mut drop_loader)).is_none() {
            drop_loader();
        }
    }
}

/// Memory that PyTorch has pinned.
pub fn pinned_block(py: Python<'_>, bytes: usize) -> PyResult<HostBlock> {
    let torch = py.import("torch")?;
    let options = PyDict::new(py);
    options.set_item("dtype", torch.getattr("uint8")?)?;
    options.set_item("pin_memory", true)?;
    let tensor = torch.call_method("empty", (bytes,), Some(&options))?;
    let start: usize = tensor.call_method0("data_ptr")?.extract()?;
    let start = NonNull::new(start as *mut u8)
        .ok_or_else(|| PyRuntimeError::new_err("PyTorch gave no pinned memory"))?;
    let tensor = tensor.unbind();
    // SAFETY: the tensor owns `bytes` bytes, nobody else has it, and it is kept until the release
    Ok(unsafe {
        // Without an interpreter there is no tensor to free.
        HostBlock::foreign(start, bytes, move |_, _| {
            Python::try_attach(|_| drop(tensor));
        })
    })
}

/// Where pinned memory cannot be had, says so before anything starts.
pub fn check_pinning(py: Python<'_>) -> PyResult<()> {
    let torch = py.import("torch")?;
    let cuda = torch.getattr("cuda")?.call_method0("is_available")?;
    if cuda.is_truthy()? {
        return Ok(());
    }
    Err(PyValueError::new_err(
        "pin_memory=True needs CUDA, and torch.cuda.is_available() is False; leave it out",
    ))
}
