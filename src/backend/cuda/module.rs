//! The kernels as the program carries them: PTX made by scripts/build_kernels.py and compressed
//! with zstd, one module for every type of activations and generation of cards, compiled by the
//! driver when it is loaded. Depends on the driver.

use super::driver::Call;
use super::limits::MOST_SHARED;
use crate::plan::Precision;
use anyhow::{Context, Result};
use cudarc::driver::{CudaContext, result, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

/// (type, least compute capability x 10, compressed PTX); of one type the newest comes first.
const MODULES: [(Precision, i32, &[u8]); 4] = [
    (
        Precision::F32,
        75,
        include_bytes!("../../../kernels/ptx/f32_75.ptx.zst"),
    ),
    (
        Precision::Bf16,
        80,
        include_bytes!("../../../kernels/ptx/bf16_80.ptx.zst"),
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

/// A loaded module; unloaded when dropped.
pub(super) struct Module {
    handle: sys::CUmodule,
    functions: Mutex<HashMap<&'static str, Function>>,
    context: Arc<CudaContext>,
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
    /// compute capability x 10.
    ///
    /// # Errors
    /// When the card is too old for the type, or the driver refuses the PTX.
    pub fn load(
        context: &Arc<CudaContext>,
        name: &str,
        capability: i32,
        precision: Precision,
    ) -> Result<Module> {
        let found = MODULES
            .iter()
            .find(|(p, least, _)| *p == precision && *least <= capability);
        let (_, _, ptx) = found.with_context(|| {
            format!("{name} (sm_{capability}) has no {precision}; use --precision fp16 or f32")
        })?;
        let text = zstd::decode_all(*ptx).context("the embedded kernels are damaged")?;
        let text = CString::new(text)?;
        context.bind_to_thread().call("use the device")?;
        // SAFETY: the text is a C string that outlives the call
        let handle = unsafe { result::module::load_data(text.as_ptr().cast()) }
            .call("load the kernels")
            .context("a driver older than 530 cannot load them: update the NVIDIA driver, or use --device cpu")?;
        Ok(Module {
            handle,
            functions: Mutex::default(),
            context: context.clone(),
        })
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
        // every kernel asks for the largest share of shared memory: more blocks at once gain more
        // than the cache does, and a multiprocessor must be idle to change the division. It is a
        // hint, so a refusal is ignored
        let all = sys::CUshared_carveout_enum::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as i32;
        let carveout =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function was found above, in a loaded module
        let _ = unsafe { result::function::set_function_attribute(function, carveout, all) };
        // more than 48 KiB must be asked for; every card from sm_75 on has 64
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as for the hint before
        unsafe {
            result::function::set_function_attribute(function, most, MOST_SHARED.cast_signed())
        }
        .call("let a kernel have its shared memory")
        .context(name)?;
        functions.insert(name, Function(function));
        Ok(Function(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded in `load` and unloaded here alone; none of its kernels runs any more,
        // since backends wait for their streams when dropped
        let _ = self
            .context
            .bind_to_thread()
            .map(|()| unsafe { result::module::unload(self.handle) });
    }
}
