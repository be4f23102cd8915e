//! `paragon.Array`: values in memory of the loader or of a record, which NumPy and PyTorch use
//! without a copy. Depends on `batch` for the memory of a slot. Promises that the memory stays as it
//! is until the array and everything that was made from it are gone, also after the loader's end.

use crate::batch::HeldBatch;
use paragon::loader::ElementType;
use paragon::sys::host_memory::HostBlock;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// What keeps the memory of an array.
pub enum Owner {
    /// A slot of a loader.
    Slot(#[allow(dead_code)] Arc<HeldBatch>),
    /// Memory of its own.
    Block(#[allow(dead_code)] HostBlock),
}

/// Values in memory that belongs to paragon. `numpy.asarray(array)` and `torch.from_dlpack(array)`
/// make views without a copy.
///
/// The memory is not used for anything else before the array and all views of it are gone.
#[pyclass(frozen, module = "paragon")]
pub struct Array {
    owner: Arc<Owner>,
    start: usize,
    shape: Vec<i64>,
    element: ElementType,
}

impl Array {
    /// `start` is the address of the values, in memory that `owner` keeps.
    pub fn new(owner: Arc<Owner>, start: usize, shape: Vec<i64>, element: ElementType) -> Array {
        Array {
            owner,
            start,
            shape,
            element,
        }
    }
}

/// Names of the element types in NumPy and PyTorch.
pub fn element_name(element: ElementType) -> &'static str {
    match element {
        ElementType::U8 => "uint8",
        ElementType::F32 => "float32",
        ElementType::F16 => "float16",
        ElementType::Bf16 => "bfloat16",
    }
}

#[pymethods]
impl Array {
    /// Lengths of the dimensions.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    /// Type of the values: "uint8", "float32", "float16" or "bfloat16".
    #[getter]
    fn dtype(&self) -> &'static str {
        element_name(self.element)
    }

    /// Bytes of all values.
    #[getter]
    fn nbytes(&self) -> i64 {
        self.shape.iter().product::<i64>() * self.element.bytes() as i64
    }

    fn __len__(&self) -> usize {
        self.shape.first().map_or(0, |&length| length as usize)
    }

    fn __repr__(&self) -> String {
        format!(
            "<paragon.Array {:?} {}>",
            self.shape,
            element_name(self.element)
        )
    }

    /// A NumPy array over the same memory.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let numpy = slf.py().import("numpy")?;
        numpy.call_method1("asarray", (slf,))
    }

    /// A PyTorch tensor over the same memory.
    fn torch<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let torch = slf.py().import("torch")?;
        torch.call_method1("from_dlpack", (slf,))
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let kind = match self.element {
            ElementType::U8 => "|u1",
            ElementType::F32 => "=f4",
            ElementType::F16 => "=f2",
            ElementType::Bf16 => {
                return Err(PyTypeError::new_err(
                    "NumPy has no bfloat16; take the array with torch.from_dlpack, or load float32",
                ));
            }
        };
        let native = if cfg!(target_endian = "little") {
            "<"
        } else {
            ">"
        };
        let dict = PyDict::new(py);
        dict.set_item("version", 3)?;
        dict.set_item("shape", self.shape(py)?)?;
        dict.set_item("typestr", kind.replace('=', native))?;
        dict.set_item("data", (self.start, false))?;
        Ok(dict)
    }

    /// Device of the memory for DLPack: the CPU.
    fn __dlpack_device__(&self) -> (i32, i32) {
        (DL_CPU, 0)
    }

    /// Exports the memory through DLPack.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__(
        &self,
        py: Python<'_>,
        stream: Option<Bound<'_, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        let _ = stream; // the values are there already
        if dl_device.is_some_and(|device| device != (DL_CPU, 0)) {
            return Err(PyBufferError::new_err(
                "the array is in memory of the CPU; make a tensor of it and copy that",
            ));
        }
        if copy == Some(true) {
            return Err(PyBufferError::new_err(
                "paragon.Array is exported without a copy; copy the tensor that is made of it",
            ));
        }
        let export = Export::new(self);
        if max_version.is_some_and(|(major, _)| major >= 1) {
            capsule(py, export.versioned(), VERSIONED, drop_versioned)
        } else {
            capsule(py, export.unversioned(), UNVERSIONED, drop_unversioned)
        }
    }
}

// The structures of DLPack 1.0, https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h

/// `kDLCPU`.
const DL_CPU: i32 = 1;
const UNVERSIONED: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    type_code: u8,
    type_bits: u8,
    type_lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Unversioned {
    tensor: DlTensor,
    context: *mut Export,
    deleter: Option<unsafe extern "C" fn(*mut Unversioned)>,
}

#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut Export,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: DlTensor,
}

/// What an exported tensor points to, freed by its deleter.
struct Export {
    /// Keeps the memory.
    _owner: Arc<Owner>,
    shape: Vec<i64>,
    strides: Vec<i64>,
    start: usize,
    element: ElementType,
}

impl Export {
    fn new(array: &Array) -> Box<Export> {
        let mut strides = vec![1; array.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * array.shape[i];
        }
        Box::new(Export {
            _owner: array.owner.clone(),
            shape: array.shape.clone(),
            strides,
            start: array.start,
            element: array.element,
        })
    }

    fn tensor(&mut self) -> DlTensor {
        DlTensor {
            data: self.start as *mut c_void,
            device_type: DL_CPU,
            device_id: 0,
            ndim: self.shape.len() as i32,
            type_code: match self.element {
                ElementType::U8 => 1,                     // kDLUInt
                ElementType::F32 | ElementType::F16 => 2, // kDLFloat
                ElementType::Bf16 => 4,                   // kDLBfloat
            },
            type_bits: 8 * self.element.bytes() as u8,
            type_lanes: 1,
            shape: self.shape.as_mut_ptr(),
            strides: self.strides.as_mut_ptr(),
            byte_offset: 0,
        }
    }

    fn unversioned(mut self: Box<Self>) -> *mut Unversioned {
        Box::into_raw(Box::new(Unversioned {
            tensor: self.tensor(),
            context: Box::into_raw(self),
            deleter: Some(delete_unversioned),
        }))
    }

    fn versioned(mut self: Box<Self>) -> *mut Versioned {
        Box::into_raw(Box::new(Versioned {
            major: 1,
            minor: 0,
            tensor: self.tensor(),
            context: Box::into_raw(self),
            deleter: Some(delete_versioned),
            flags: 0,
        }))
    }
}

/// Frees an exported tensor; the consumer calls it once.
unsafe extern "C" fn delete_unversioned(exported: *mut Unversioned) {
    // SAFETY: both were made by `Box::into_raw` in `Export::unversioned`
    drop(unsafe { Box::from_raw(Box::from_raw(exported).context) });
}

/// As [`delete_unversioned`].
unsafe extern "C" fn delete_versioned(exported: *mut Versioned) {
    // SAFETY: both were made by `Box::into_raw` in `Export::versioned`
    drop(unsafe { Box::from_raw(Box::from_raw(exported).context) });
}

/// Frees a tensor whose capsule nobody has taken: a consumer that takes it renames the capsule.
unsafe extern "C" fn drop_unversioned(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls this with the capsule it destroys; the name says what it holds
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, UNVERSIONED.as_ptr()) == 1 {
            delete_unversioned(ffi::PyCapsule_GetPointer(capsule, UNVERSIONED.as_ptr()).cast());
        }
    }
}

/// As [`drop_unversioned`].
unsafe extern "C" fn drop_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as in `drop_unversioned`
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, VERSIONED.as_ptr()) == 1 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, VERSIONED.as_ptr()).cast());
        }
    }
}

/// A capsule around an exported tensor.
fn capsule<T>(
    py: Python<'_>,
    exported: *mut T,
    name: &'static CStr,
    destructor: ffi::PyCapsule_Destructor,
) -> PyResult<Py<PyAny>> {
    debug_assert!(!exported.is_null());
    // SAFETY: the pointer is not null, the name is static, and the destructor frees what is in it
    unsafe {
        let made = ffi::PyCapsule_New(exported.cast(), name.as_ptr(), Some(destructor));
        Ok(Bound::from_owned_ptr_or_err(py, made)?.unbind())
    }
}
