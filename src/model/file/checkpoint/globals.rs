//! The names that a pickle may ask for. Depends on nothing. It is the one place that decides this:
//! whatever is not listed here is refused by its name.

use crate::model::Error;
use crate::support::text::brief;
use safetensors::Dtype;

/// A name that a pickle may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// The storage types of PyTorch by name.
const STORAGES: [(&str, Dtype); 10] = [
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("DoubleStorage", Dtype::F64),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::BOOL),
];

/// The name that a pickle asks for.
///
/// # Errors
/// [`Error::ForbiddenName`] if a file of tensors does not need it.
pub(super) fn allowed(module: &str, name: &str) -> Result<Name, Error> {
    let storage = || STORAGES.iter().find(|(storage, _)| *storage == name);
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Name::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Name::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Ok(Name::RebuildParameter),
        ("torch", _) if storage().is_some() => {
            let dtype = storage().map_or(Dtype::F32, |(_, dtype)| *dtype);
            Ok(Name::Storage(dtype))
        }
        _ => Err(Error::ForbiddenName {
            name: brief(format!("{module}.{name}")),
        }),
    }
}
