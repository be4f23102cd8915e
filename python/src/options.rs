//! The arguments of `paragon.Loader` as the library's configuration. Promises an exception that
//! names the argument, what was given and what can be given.

use paragon::loader::{
    Conversion, ElementType, IoChoice, LoaderConfig, OnCorrupt, PixelLayout, Sources, choose_io,
    choose_window,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::path::PathBuf;

/// The exception for an argument that is none of the words that it can be.
fn unknown(argument: &str, given: &str, choices: &str) -> PyErr {
    PyValueError::new_err(format!("{argument}={given:?}; use one of {choices}"))
}

/// One folder, or several.
pub fn folders(shards: &Bound<'_, PyAny>) -> PyResult<Vec<PathBuf>> {
    if let Ok(folder) = shards.extract::<PathBuf>() {
        return Ok(vec![folder]);
    }
    shards.extract().map_err(|_| {
        PyTypeError::new_err("shards must be the folder of a set, or a list of such folders")
    })
}

/// `"NCHW"` or `"NHWC"`, in any case.
pub fn layout(name: &str) -> PyResult<PixelLayout> {
    match name.to_uppercase().as_str() {
        "NCHW" => Ok(PixelLayout::Nchw),
        "NHWC" => Ok(PixelLayout::Nhwc),
        _ => Err(unknown("layout", name, "\"NCHW\", \"NHWC\"")),
    }
}

/// A name, a type of NumPy or one of PyTorch.
pub fn element(dtype: &Bound<'_, PyAny>) -> PyResult<ElementType> {
    let name: String = match dtype.extract() {
        Ok(name) => name,
        Err(_) => match dtype.getattr("__name__") {
            Ok(name) => name.extract()?,
            Err(_) => dtype.str()?.to_string(),
        },
    };
    match name.trim_start_matches("torch.") {
        "uint8" => Ok(ElementType::U8),
        "float32" | "float" => Ok(ElementType::F32),
        "float16" | "half" => Ok(ElementType::F16),
        "bfloat16" => Ok(ElementType::Bf16),
        _ => Err(unknown(
            "dtype",
            &name,
            "\"uint8\", \"float32\", \"float16\", \"bfloat16\"",
        )),
    }
}

/// Which augmentations are drawn: mirrored left-right; mirrored top-bottom and turned.
pub fn augmentation(augment: &Bound<'_, PyAny>) -> PyResult<(bool, bool)> {
    if let Ok(all) = augment.extract::<bool>() {
        return Ok((all, all));
    }
    match augment.extract::<String>().as_deref() {
        Ok("hflip") => Ok((true, false)),
        Ok("rot") => Ok((false, true)),
        _ => Err(unknown(
            "augment",
            &augment.str()?.to_string(),
            "True, False, \"hflip\", \"rot\"",
        )),
    }
}

/// `"auto"`, `"mmap"` or `"pread"`.
pub fn io(name: &str, sources: &Sources) -> PyResult<paragon::shard::reader::Io> {
    let choice = match name {
        "auto" => IoChoice::Auto,
        "mmap" => IoChoice::Mmap,
        "pread" => IoChoice::Pread,
        _ => return Err(unknown("io", name, "\"auto\", \"mmap\", \"pread\"")),
    };
    Ok(choose_io(sources, choice).0)
}

/// Bytes, or a text such as `"2G"`.
pub fn size(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    if let Ok(bytes) = value.extract::<u64>() {
        return Ok(bytes);
    }
    let text = value.str()?.to_string();
    paragon::config::parse_size(&text).map_err(|_| {
        PyValueError::new_err(format!(
            "{argument}={text:?}; use bytes or a text such as \"512M\""
        ))
    })
}

/// `"auto"`, `"off"` or a size.
pub fn window(value: &Bound<'_, PyAny>, sources: &Sources) -> PyResult<Option<u64>> {
    match value.extract::<String>().as_deref() {
        Ok("auto") => Ok(choose_window(sources)),
        Ok("off") => Ok(None),
        _ => size("window", value).map(Some),
    }
}

/// `"stop"` or `"substitute"`.
pub fn on_corrupt(name: &str) -> PyResult<OnCorrupt> {
    match name {
        "stop" => Ok(OnCorrupt::Stop),
        "substitute" => Ok(OnCorrupt::Substitute),
        _ => Err(unknown("on_corrupt", name, "\"stop\", \"substitute\"")),
    }
}

/// What the threads must do to a batch; nothing where the slot is what was asked for.
pub fn conversion(
    layout: PixelLayout,
    element: ElementType,
    config: &LoaderConfig,
) -> Option<Conversion> {
    let stored = layout == PixelLayout::Nhwc && element == ElementType::U8;
    let augmented = config.hflip || config.rot;
    (!stored || augmented).then_some(Conversion { layout, element })
}
