//! `paragon.Loader`: the library's loader for Python. Depends on `options`, `batch` and `position`.
//! Promises that the GIL is free while a batch is waited for, that Ctrl-C ends the wait, that the
//! threads start with the first batch and end with the loader, and that a forked child is refused.

use crate::array::element_name;
use crate::batch::{Batch, BatchShape};
use crate::errors::{exception, wrong_argument};
use crate::options;
use crate::position::Epochs;
use crate::running::{InFlight, Running, check_pinning, pinned_block};
use paragon::loader::{
    self, LoaderBound, LoaderConfig, LoaderStats, PixelLayout, Sources, bound, usual_slots,
};
use paragon::support::text::bytes_text;
use paragon::sys::host_memory::{Allocate, HostBlock};
use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

/// How often a wait looks for Ctrl-C and for copies that have ended.
const WAKE_INTERVAL: Duration = Duration::from_millis(50);

/// Loads batches of LQ/HR pairs from sets of shards, with threads of its own.
///
/// `for batch in loader` gives the rest of the present epoch, and the next `for` goes on after it;
/// with `endless=True` it never ends. The order depends on the sets, `seed`, `batch_size` and
/// `world_size` alone: not on threads, layout or dtype.
#[pyclass(frozen, module = "paragon", weakref)]
pub struct Loader {
    config: LoaderConfig,
    bound: LoaderBound,
    shape: Arc<BatchShape>,
    epochs: Epochs,
    endless: bool,
    pin_memory: bool,
    quiet: bool,
    running: Mutex<Option<Running>>,
    /// Number of the next batch. It can be read while another thread, or the thread that a signal
    /// handler interrupts, waits for that batch; it is written by who has `running`.
    next: AtomicU64,
    /// The process that started the threads; 0 before the start.
    process: AtomicU32,
}

/// How a wait for a batch ended.
enum Waited {
    Batch(loader::Batch, Vec<String>),
    End,
    Failed(anyhow::Error),
    Raised(PyErr),
}

impl Loader {
    fn check_process(&self) -> PyResult<()> {
        let started = self.process.load(Ordering::Relaxed);
        let here = std::process::id();
        if started == 0 || started == here {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(format!(
            "this loader was started in process {started}, and its threads do not exist in the forked process {here}; \
             make the loader after the fork, use the start method \"spawn\", or with a DataLoader num_workers=0"
        )))
    }

    fn next_number(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Threads and slots; looks for Ctrl-C while another thread waits for a batch.
    fn running(&self) -> PyResult<MutexGuard<'_, Option<Running>>> {
        loop {
            match self.running.try_lock() {
                Ok(running) => return Ok(running),
                Err(TryLockError::Poisoned(running)) => return Ok(running.into_inner()),
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(1));
                    Python::attach(|py| py.check_signals())?;
                }
            }
        }
    }

    /// Starts the threads at batch `start`.
    fn start(&self, start: u64) -> anyhow::Result<Running> {
        let config = LoaderConfig {
            start,
            ..self.config.clone()
        };
        let pinned: Allocate<'_> = &|bytes| Ok(Python::attach(|py| pinned_block(py, bytes))?);
        let heap: Allocate<'_> = &HostBlock::heap;
        let allocate = if self.pin_memory { pinned } else { heap };
        let loader = loader::Loader::start_in(self.shape.sources.clone(), config, allocate)?;
        self.process.store(std::process::id(), Ordering::Relaxed);
        Ok(Running::new(loader))
    }

    /// Waits for the next batch, unless its number is `end`. Runs without the GIL.
    fn wait(&self, end: Option<u64>) -> Waited {
        let mut shared = match self.running() {
            Ok(shared) => shared,
            Err(error) => return Waited::Raised(error),
        };
        if end.is_some_and(|end| self.next_number() >= end) {
            return Waited::End;
        }
        let mut running = match shared.take() {
            Some(running) => running,
            None => match self.start(self.next_number()) {
                Ok(running) => running,
                Err(error) => return Waited::Failed(error),
            },
        };
        let (mut checked, mut raised) = (Instant::now(), None);
        let outcome = running.loader.next_until(|| {
            if checked.elapsed() >= WAKE_INTERVAL {
                checked = Instant::now();
                raised = Python::attach(|py| {
                    py.check_signals()?;
                    self.shape.in_flight.reclaim(py)
                })
                .err();
            }
            raised.is_some()
        });
        let reports = running.loader.reports();
        let next = running.loader.next_number();
        self.next.store(next, Ordering::Relaxed);
        *shared = Some(running);
        match (outcome, raised) {
            (_, Some(error)) => Waited::Raised(error),
            (Ok(Some(batch)), None) => Waited::Batch(batch, reports),
            (Ok(None), None) => Waited::End,
            (Err(error), None) => Waited::Failed(error),
        }
    }

    fn next_batch(&self, py: Python<'_>, end: Option<u64>) -> PyResult<Option<Batch>> {
        self.check_process()?;
        if !self.shape.in_flight.is_empty() {
            self.shape.in_flight.reclaim(py)?;
        }
        match py.detach(|| self.wait(end)) {
            Waited::Batch(batch, reports) => {
                let category = py.get_type::<PyRuntimeWarning>();
                for report in reports {
                    let text = CString::new(report.replace('\0', " "))?;
                    PyErr::warn(py, &category, &text, 1)?;
                }
                let epoch = self.epochs.of(batch.number());
                Ok(Some(Batch::new(batch, self.shape.clone(), epoch)))
            }
            Waited::End => Ok(None),
            Waited::Failed(error) => Err(exception(&error)),
            Waited::Raised(error) => Err(error),
        }
    }

    /// The computed memory in words.
    fn memory_text(&self) -> String {
        let bound = &self.bound;
        format!(
            "{} slots of {} + {} threads of {} + index {} = {}{}",
            bound.slots,
            bytes_text(bound.slot_bytes),
            bound.threads,
            bytes_text(bound.scratch_bytes),
            bytes_text(bound.index_bytes),
            bytes_text(bound.total()),
            if self.pin_memory {
                ", the values in pinned memory"
            } else {
                ""
            }
        )
    }
}

#[pymethods]
impl Loader {
    /// Opens the sets and checks every argument; the threads start with the first batch.
    #[new]
    #[pyo3(signature = (
        shards, batch_size = 16, *, lq_size = None, seed = 0, threads = None, slots = None,
        augment = None, layout = "NCHW", dtype = None, weights = None, endless = false, rank = 0,
        world_size = 1, window = None, io = "auto", on_corrupt = "stop", host_memory = None,
        pin_memory = false, quiet = false
    ))]
    #[allow(clippy::too_many_arguments)] // Python's keywords
    fn new(
        py: Python<'_>,
        shards: &Bound<'_, PyAny>,
        batch_size: usize,
        lq_size: Option<usize>,
        seed: u64,
        threads: Option<usize>,
        slots: Option<usize>,
        augment: Option<&Bound<'_, PyAny>>,
        layout: &str,
        dtype: Option<&Bound<'_, PyAny>>,
        weights: Option<Vec<f64>>,
        endless: bool,
        rank: u64,
        world_size: u64,
        window: Option<&Bound<'_, PyAny>>,
        io: &str,
        on_corrupt: &str,
        host_memory: Option<&Bound<'_, PyAny>>,
        pin_memory: bool,
        quiet: bool,
    ) -> PyResult<Loader> {
        let folders: Vec<PathBuf> = options::folders(shards)?;
        let layout = options::layout(layout)?;
        let element = dtype.map_or(Ok(paragon::loader::ElementType::F32), options::element)?;
        let (hflip, rot) = augment.map_or(Ok((true, true)), options::augmentation)?;
        if pin_memory {
            check_pinning(py)?;
        }
        let weights = weights.unwrap_or_default();
        let sources = py
            .detach(|| Sources::open(&folders, &weights))
            .map_err(|error| wrong_argument(&error))?;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.unwrap_or_else(cores);
        let lq_size = lq_size.unwrap_or(sources.crop() as usize);
        let mut config = LoaderConfig {
            threads,
            slots: slots.unwrap_or(usual_slots(threads)),
            hflip,
            rot,
            rank,
            ranks: world_size,
            window: match window {
                Some(window) => options::window(window, &sources)?,
                None => loader::choose_window(&sources),
            },
            io: options::io(io, &sources)?,
            on_corrupt: options::on_corrupt(on_corrupt)?,
            ..LoaderConfig::new(batch_size, lq_size, seed)
        };
        config.conversion = options::conversion(layout, element, &config);
        let bound = bound(&sources, &config).map_err(|error| wrong_argument(&error))?;
        let limit = host_memory
            .map(|size| options::size("host_memory", size))
            .transpose()?;
        if let Some(limit) = limit.filter(|&limit| bound.total() > limit) {
            return Err(PyValueError::new_err(format!(
                "the loader needs {} and host_memory allows {}; use fewer slots or threads, or a smaller batch_size",
                bytes_text(bound.total()),
                bytes_text(limit)
            )));
        }
        let epochs = Epochs {
            samples: sources.len(),
            step: (batch_size as u64).saturating_mul(world_size),
        };
        let made = Loader {
            shape: Arc::new(BatchShape {
                sources: Arc::new(sources),
                batch: batch_size,
                lq_size,
                layout,
                element,
                in_flight: InFlight::default(),
            }),
            config,
            bound,
            epochs,
            endless,
            pin_memory,
            quiet,
            running: Mutex::new(None),
            next: 0.into(),
            process: 0.into(),
        };
        made.announce(py)?;
        Ok(made)
    }

    /// The rest of the present epoch, or all batches of an endless loader.
    fn __iter__(slf: &Bound<'_, Self>) -> PyResult<BatchIterator> {
        let this = slf.get();
        this.check_process()?;
        Ok(BatchIterator {
            loader: slf.clone().unbind(),
            end: (!this.endless).then(|| this.epochs.end(this.next_number())),
        })
    }

    /// Batches of the present epoch. Epochs differ by one where the batch does not divide them.
    fn __len__(&self) -> usize {
        self.epochs.len(self.next_number()) as usize
    }

    /// Number of the next batch, counted from the start of the training.
    #[getter]
    fn batch_number(&self) -> u64 {
        self.next_number()
    }

    /// Number of the present epoch, from 0.
    #[getter]
    fn epoch(&self) -> u64 {
        self.epochs.of(self.next_number())
    }

    /// Samples of an epoch, of all ranks together.
    #[getter]
    fn samples(&self) -> u64 {
        self.epochs.samples
    }

    /// HR side over LQ side.
    #[getter]
    fn scale(&self) -> u32 {
        self.shape.sources.scale()
    }

    /// The memory that the loader takes, computed before it starts: bytes.
    #[getter]
    fn memory<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let memory = PyDict::new(py);
        memory.set_item("slots", self.bound.slots)?;
        memory.set_item("slot_bytes", self.bound.slot_bytes)?;
        memory.set_item("threads", self.bound.threads)?;
        memory.set_item("thread_bytes", self.bound.scratch_bytes)?;
        memory.set_item("index_bytes", self.bound.index_bytes)?;
        memory.set_item("total", self.bound.total())?;
        Ok(memory)
    }

    /// Batches delivered, seconds waited and records replaced since the threads started.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.check_process()?;
        let stats = py.detach(|| {
            self.running().map(|running| {
                let running = running.as_ref();
                running.map_or(LoaderStats::default(), |running| running.loader.stats())
            })
        })?;
        let dict = PyDict::new(py);
        dict.set_item("batches", stats.batches)?;
        dict.set_item("consumer_waited", stats.consumer_waited.as_secs_f64())?;
        dict.set_item("producers_waited", stats.producers_waited.as_secs_f64())?;
        dict.set_item("substituted", stats.substituted)?;
        Ok(dict)
    }

    /// The position, with what the order depends on.
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = self.order(py)?;
        dict.set_item("batch", self.next_number())?;
        Ok(dict)
    }

    /// Goes on where `state_dict` was called. The order must be the same: same sets, seed and sizes.
    fn load_state_dict(&self, py: Python<'_>, state: &Bound<'_, PyDict>) -> PyResult<()> {
        self.check_process()?;
        let missing = |key: &str| {
            PyValueError::new_err(format!(
                "the state has no {key:?}; give what state_dict() of a paragon.Loader returned"
            ))
        };
        for (key, here) in self.order(py)? {
            let name: String = key.extract()?;
            let there = state.get_item(&key)?.ok_or_else(|| missing(&name))?;
            if !there.eq(&here)? {
                return Err(PyValueError::new_err(format!(
                    "the state was saved with {name}={there} and this loader has {name}={here}: the order of the samples differs, \
                     so the training cannot go on where it was"
                )));
            }
        }
        let batch = state.get_item("batch")?.ok_or_else(|| missing("batch"))?;
        let batch: u64 = batch.extract()?;
        py.detach(|| {
            let mut running = self.running()?;
            *running = None;
            self.next.store(batch, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Ends the threads and frees all memory that no batch, array or view holds. The next `for`
    /// starts them again at the same place.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.check_process()?;
        py.detach(|| {
            *self.running()? = None;
            Ok(())
        })
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        let order = match self.shape.layout {
            PixelLayout::Nchw => "NCHW",
            PixelLayout::Nhwc => "NHWC",
        };
        format!(
            "<paragon.Loader {}: {} pairs x{}, batches of {} {order} {}>",
            self.shape.sources.folders(),
            self.epochs.samples,
            self.shape.sources.scale(),
            self.config.batch,
            element_name(self.shape.element)
        )
    }
}

impl Loader {
    /// What the order of the samples depends on.
    fn order<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let config = &self.config;
        let dict = PyDict::new(py);
        let fingerprint = format!("{:016x}", self.shape.sources.fingerprint());
        dict.set_item("fingerprint", fingerprint)?;
        dict.set_item("seed", config.seed)?;
        dict.set_item("batch_size", config.batch)?;
        dict.set_item("lq_size", config.lq_size)?;
        dict.set_item("world_size", config.ranks)?;
        dict.set_item("window", config.window)?;
        dict.set_item("hflip", config.hflip)?;
        dict.set_item("rot", config.rot)?;
        Ok(dict)
    }

    /// Prints the computed memory on `sys.stderr`.
    fn announce(&self, py: Python<'_>) -> PyResult<()> {
        if self.quiet {
            return Ok(());
        }
        let stderr = py.import("sys")?.getattr("stderr")?;
        if stderr.is_none() {
            return Ok(());
        }
        let text = format!("paragon: the loader takes {}\n", self.memory_text());
        stderr.call_method1("write", (text,)).map(drop)
    }
}

/// Iterates over batches; made by `iter(loader)`.
#[pyclass(frozen, module = "paragon")]
pub struct BatchIterator {
    loader: Py<Loader>,
    /// Number of the batch that it ends before; `None` for an endless loader.
    end: Option<u64>,
}

#[pymethods]
impl BatchIterator {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        self.loader.get().next_batch(py, self.end)
    }

    fn __length_hint__(&self) -> usize {
        let next = self.loader.get().next_number();
        self.end.map_or(0, |end| end.saturating_sub(next) as usize)
    }
}
