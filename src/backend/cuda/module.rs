//! The kernels as the program carries them: PTX made by scripts/build_kernels.py, one module for
//! every type of activations and generation of cards, compiled by the driver when it is loaded. One
//! of the two files that call CUDA.

use super::device::{Call, Device};
use super::launch::MOST_SHARED;
use crate::plan::Precision;
use anyhow::{Context, Result};
use cudarc::driver::{CudaContext, result, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

/// (type, least compute capability x 10, PTX); the best that a card takes comes first.
const MODULES: [(Precision, i32, &str); 4] = [
    (
        Precision::F32,
        75,
        include_str!("../../../kernels/ptx/f32_75.ptx"),
    ),
    (
        Precision::Bf16,
        80,
        include_str!("../../../kernels/ptx/bf16_80.ptx"),
    ),
    (
        Precision::Fp16,
        80,
        include_str!("../../../kernels/ptx/fp16_80.ptx"),
    ),
    (
        Precision::Fp16,
        75,
        include_str!("../../../kernels/ptx/fp16_75.ptx"),
    ),
];

/// The oldest generation of cards with kernels.
pub const LEAST_CAPABILITY: i32 = 75;

/// A loaded module; unloaded when dropped.
pub struct Module {
    handle: sys::CUmodule,
    functions: Mutex<HashMap<&'static str, Function>>,
    context: Arc<CudaContext>,
}

/// A kernel of a loaded module.
#[derive(Clone, Copy)]
pub struct Function(pub sys::CUfunction);

impl Function {
    /// Blocks that a multiprocessor holds at once.
    ///
    /// # Errors
    /// When the driver refuses to say.
    pub fn blocks_at_once(self, threads: u32, shared: u32) -> Result<u32> {
        let mut blocks = 0;
        // SAFETY: writes one int; the function belongs to a loaded module
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

// SAFETY: handles of the driver may be used from any thread that has bound the context
unsafe impl Send for Function {}
// SAFETY: as above
unsafe impl Send for Module {}
// SAFETY: as above; the table is behind a lock
unsafe impl Sync for Module {}

impl Module {
    /// Loads the module for a type of activations on a card.
    ///
    /// # Errors
    /// When the card is too old for the type, or the driver refuses the PTX.
    pub fn load(device: &Device, precision: Precision) -> Result<Module> {
        let capability = device.capability;
        let found = MODULES
            .iter()
            .find(|(p, least, _)| *p == precision && *least <= capability);
        let (_, _, ptx) = found.with_context(|| {
            format!(
                "{} (sm_{capability}) has no {precision}; use --precision fp16 or f32",
                device.name
            )
        })?;
        let text = CString::new(*ptx)?;
        device.bind()?;
        // SAFETY: the text is a C string that lives through the call
        let handle = unsafe { result::module::load_data(text.as_ptr().cast()) }
            .call("load the kernels")
            .context("a driver older than 530 does not take them: update the NVIDIA driver, or use --device cpu")?;
        Ok(Module {
            handle,
            functions: Mutex::default(),
            context: device.context.clone(),
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
        // SAFETY: the module is loaded
        let function = unsafe { result::module::get_function(self.handle, CString::new(name)?) }
            .call("find a kernel")
            .context(name)?;
        // as much shared memory as there is, for every kernel alike: blocks side by side are worth
        // more than the cache, and a multiprocessor that changes the division has to be idle. Only
        // a wish, so a refusal is none
        let all = sys::CUshared_carveout_enum::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as i32;
        let carveout =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function was found above
        let _ = unsafe { result::function::set_function_attribute(function, carveout, all) };
        // more than 48 KiB must be asked for; every card from sm_75 on has 64
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as above
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
        // SAFETY: loaded in `load`; nothing of it runs any more, since backends wait for their
        // streams when dropped
        let _ = self
            .context
            .bind_to_thread()
            .map(|()| unsafe { result::module::unload(self.handle) });
    }
}
