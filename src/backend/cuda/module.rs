//! The kernels as the program carries them: PTX made by scripts/build_kernels.py and compressed
//! with zstd, one module for every type of activations and generation of cards, compiled by the
//! driver when it is loaded. Where there is machine code for the card, it is tried first. Depends
//! on the driver and the machine code.

use super::driver::{Call, bind_to_release};
use super::limits::MOST_SHARED;
use super::machine_code;
use super::switches::{OVERLAP_CAPABILITY, Switches};
use crate::backend::Error;
use crate::plan::Precision;
use anyhow::{Context, Result, anyhow};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// (type, least compute capability x 10, compressed PTX); of one type the newest comes first.
const MODULES: [(Precision, i32, &[u8]); 7] = [
    (
        Precision::F32,
        90,
        include_bytes!("../../../kernels/ptx/f32_90.ptx.zst"),
    ),
    (
        Precision::F32,
        75,
        include_bytes!("../../../kernels/ptx/f32_75.ptx.zst"),
    ),
    (
        Precision::Bf16,
        90,
        include_bytes!("../../../kernels/ptx/bf16_90.ptx.zst"),
    ),
    (
        Precision::Bf16,
        80,
        include_bytes!("../../../kernels/ptx/bf16_80.ptx.zst"),
    ),
    (
        Precision::Fp16,
        90,
        include_bytes!("../../../kernels/ptx/fp16_90.ptx.zst"),
    ),
    (
        Precision::Fp16,
        80,
        include_bytes!("../../../kernels/ptx/fp16_80.ptx.zst"),
    ),
    (
        Precision::Fp16,
        75,
        include_bytes!("../../../kernels/ptx/fp16_75.ptx.zst"),
    ),
];

/// How the kernels of a type of activations were loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loading {
    /// Seconds that loading took. They are some when the driver compiles PTX, and a fraction of one
    /// for machine code, or when the driver finds the result of an earlier start in its cache.
    pub load_seconds: f64,
    /// What was loaded: machine code (`sm_86`) or PTX (`compute_80`), of a generation of cards.
    pub code: String,
    /// Why machine code for the card was not used; `None` if it was, or if there is none.
    pub machine_code_refused: Option<String>,
}

impl Loading {
    /// Whether machine code was loaded, which the driver need not compile.
    pub fn is_machine_code(&self) -> bool {
        self.code.starts_with("sm_")
    }
}

/// A loaded module; unloaded when dropped.
pub(super) struct Module {
    handle: sys::CUmodule,
    functions: Mutex<HashMap<&'static str, Function>>,
    context: Arc<CudaContext>,
    /// What was loaded, and how long it took.
    pub loading: Loading,
    /// Whether its kernels wait themselves for the one ahead of them, so that they may be launched
    /// while that one still runs.
    pub waits: bool,
    /// Percent of a multiprocessor's cache that the functions ask for as shared memory.
    carveout: AtomicI32,
}

/// A kernel of a loaded module.
#[derive(Clone, Copy)]
pub(super) struct Function(pub sys::CUfunction);

impl Function {
    /// Blocks of so many threads and bytes of shared memory that a multiprocessor holds at once.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn blocks_at_once(self, threads: u32, shared: u32) -> Result<u32> {
        let mut blocks = 0;
        // SAFETY: the call writes one int, to a variable that outlives it; the function belongs to
        // a module that is still loaded
        let status = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.0,
                threads.cast_signed(),
                shared as usize,
            )
        };
        status.result().call("ask how many blocks fit")?;
        Ok(u32::try_from(blocks)?.max(1))
    }

    /// An attribute that the driver's assembler gave the function.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn attribute(self, attribute: sys::CUfunction_attribute) -> Result<u32> {
        // SAFETY: the function belongs to a module that is still loaded
        let value = unsafe { result::function::get_function_attribute(self.0, attribute) };
        Ok(u32::try_from(value.call("ask for a kernel's attribute")?)?)
    }

    /// Sets the percent of a multiprocessor's cache that is shared memory while the kernel runs. It
    /// is a hint, so a refusal is ignored.
    pub fn set_carveout(self, percent: i32) {
        let carveout =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function belongs to a module that is still loaded
        let _ = unsafe { result::function::set_function_attribute(self.0, carveout, percent) };
    }
}

/// An error in the driver's words, with its number.
fn in_words(error: DriverError) -> String {
    let text = error
        .error_string()
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default();
    format!("{text}, error {}", error.0 as u32)
}

/// The error of a module that the driver does not load, with what to try for each reason.
fn not_loaded(error: DriverError) -> anyhow::Error {
    use sys::cudaError_enum as E;
    let disabled = ["CUDA_DISABLE_PTX_JIT", "CUDA_DISABLE_JIT"]
        .into_iter()
        .find(|name| std::env::var_os(name).is_some_and(|value| value != "0"));
    let advice = match (error.0, disabled) {
        (E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | E::CUDA_ERROR_INVALID_PTX, _) => {
            "the driver is too old for these kernels: update the NVIDIA driver to 530 or newer, or use --device cpu".to_string()
        }
        (E::CUDA_ERROR_JIT_COMPILER_NOT_FOUND, _) => {
            "the driver's compiler is missing: install libnvidia-ptxjitcompiler.so.1 of the same version as the driver (in a container: run it with the NVIDIA container runtime and NVIDIA_DRIVER_CAPABILITIES=compute,utility), or use --device cpu".to_string()
        }
        (E::CUDA_ERROR_JIT_COMPILATION_DISABLED | E::CUDA_ERROR_NO_BINARY_FOR_GPU, Some(name)) => {
            format!("the variable {name} forbids the driver to compile them: unset it")
        }
        (E::CUDA_ERROR_JIT_COMPILATION_DISABLED, None) => {
            "the driver's compiler is disabled: unset CUDA_DISABLE_PTX_JIT and CUDA_DISABLE_JIT, or use --device cpu".to_string()
        }
        (E::CUDA_ERROR_INVALID_IMAGE | E::CUDA_ERROR_INVALID_SOURCE | E::CUDA_ERROR_NO_BINARY_FOR_GPU, _) => {
            let cache = std::env::var("CUDA_CACHE_PATH").unwrap_or("~/.nv/ComputeCache".into());
            format!("the driver's cache of compiled kernels may be damaged: delete {cache}, or set CUDA_CACHE_DISABLE=1; else update the NVIDIA driver, or use --device cpu")
        }
        _ => return Err::<(), _>(error).call("load the kernels").unwrap_err(),
    };
    let error = in_words(error);
    Error::DeviceRefused(format!(
        "CUDA could not load the kernels ({error}): {advice}"
    ))
    .into()
}

/// Loads PTX or machine code into the current context.
fn load_image(mut image: Vec<u8>) -> Result<sys::CUmodule, DriverError> {
    image.push(0); // PTX is a C string; the driver does not look behind the end of machine code
    // SAFETY: the image is PTX that ends with a zero, or machine code, which states its own size;
    // it outlives the call
    unsafe { result::module::load_data(image.as_ptr().cast()) }
}

// SAFETY: a handle of the driver may be used from any thread that has bound the context, which
// every use does first
unsafe impl Send for Function {}
// SAFETY: as for `Function`
unsafe impl Send for Module {}
// SAFETY: as for `Function`; a lock guards the table of functions
unsafe impl Sync for Module {}

impl Module {
    /// Loads the module for a type of activations on the card of a context, with its name and
    /// compute capability x 10: machine code if there is some for the card and the driver takes it,
    /// else PTX.
    ///
    /// # Errors
    /// When the card is too old for the type, or the driver refuses the PTX.
    pub fn load(
        context: &Arc<CudaContext>,
        name: &str,
        capability: i32,
        precision: Precision,
        switches: &Switches,
    ) -> Result<Module> {
        let found = MODULES
            .iter()
            .find(|(p, least, _)| *p == precision && *least <= capability);
        let (_, least, ptx) = found.with_context(|| {
            format!("{name} (sm_{capability}) has no {precision}; use --precision fp16 or f32")
        })?;
        context.bind_to_thread().call("use the device")?;
        let begun = Instant::now();
        let (mut loaded, mut machine_code_refused) = (None, None);
        if let Some((generation, file)) = switches.machine_code(precision, capability) {
            let tried = machine_code::decoded(&file, ptx)
                .and_then(|code| load_image(code).map_err(|e| anyhow!(in_words(e))));
            match tried {
                Ok(handle) => loaded = Some((handle, format!("sm_{generation}"))),
                // whatever the reason is, the driver may take the PTX, or says what is wrong
                Err(e) => machine_code_refused = Some(format!("sm_{generation}: {e:#}")),
            }
        }
        let (handle, code) = match loaded {
            Some(loaded) => loaded,
            None => {
                let text = zstd::decode_all(*ptx).context("the embedded kernels are damaged")?;
                let handle = load_image(text).map_err(not_loaded)?;
                (handle, format!("compute_{least}"))
            }
        };
        Ok(Module {
            handle,
            functions: Mutex::default(),
            context: context.clone(),
            loading: Loading {
                load_seconds: begun.elapsed().as_secs_f64(),
                code,
                machine_code_refused,
            },
            waits: *least >= OVERLAP_CAPABILITY,
            carveout: AtomicI32::new(0),
        })
    }

    /// Lets every function found so far have a share of a multiprocessor's cache as shared memory:
    /// this percentage, or that of an earlier plan if it was larger, since plans share functions.
    ///
    /// # Errors
    /// When the context is not usable.
    pub fn divide_cache(&self, percent: i32) -> Result<()> {
        self.context.bind_to_thread().call("use the device")?;
        let percent = self
            .carveout
            .fetch_max(percent, Ordering::Relaxed)
            .max(percent);
        let functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        functions.values().for_each(|f| f.set_carveout(percent));
        Ok(())
    }

    /// The percentage of [`Module::divide_cache`].
    pub fn carveout(&self) -> i32 {
        self.carveout.load(Ordering::Relaxed)
    }

    /// A kernel by name.
    ///
    /// # Errors
    /// When the module has no such kernel.
    pub fn function(&self, name: &'static str) -> Result<Function> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(name) {
            return Ok(function);
        }
        // SAFETY: the module is loaded for as long as `self` lives
        let function = unsafe { result::module::get_function(self.handle, CString::new(name)?) }
            .call("find a kernel")
            .context(name)?;
        let function = Function(function);
        // more than 48 KiB must be asked for; every card from sm_75 on has 64
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function was found above, in a loaded module
        unsafe {
            result::function::set_function_attribute(function.0, most, MOST_SHARED.cast_signed())
        }
        .call("let a kernel have its shared memory")
        .context(name)?;
        functions.insert(name, function);
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        bind_to_release(&self.context);
        // SAFETY: loaded in `load` and unloaded here alone; none of its kernels runs any more,
        // since backends wait for their streams when dropped
        let _ = unsafe { result::module::unload(self.handle) };
    }
}
