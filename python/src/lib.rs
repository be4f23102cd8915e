//! The extension module `paragon._paragon`: the loader, sets of shards and the command line for
//! Python. The package `paragon` (python/paragon) is what users import. Depends on the library and
//! PyO3; NumPy and PyTorch are only imported when a caller asks for them.

mod array;
mod batch;
mod errors;
mod loader;
mod options;
mod position;
mod running;
mod shard_set;

use pyo3::prelude::*;
use std::ffi::OsString;

/// Runs the command line; `arguments` begin with the name of the program. Returns the exit code.
#[pyfunction]
fn command(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| paragon::program(arguments))
}

/// The native part of the package `paragon`.
#[pymodule(gil_used = true)]
fn _paragon(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("Error", module.py().get_type::<errors::Error>())?;
    module.add(
        "DamagedError",
        module.py().get_type::<errors::DamagedError>(),
    )?;
    module.add_class::<array::Array>()?;
    module.add_class::<batch::Batch>()?;
    module.add_class::<loader::Loader>()?;
    module.add_class::<loader::BatchIterator>()?;
    module.add_class::<shard_set::ShardSet>()?;
    module.add_function(wrap_pyfunction!(command, module)?)
}
