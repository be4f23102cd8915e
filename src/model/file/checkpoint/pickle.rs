//! Reads the pickle of a checkpoint without running it: a stack machine that knows the operations
//! that `torch.save` writes (protocols 2 to 5), and four names that they may ask for. Depends on
//! nothing. Values are kept in one list and refer to each other by number, so that no nesting
//! makes it recurse, and values that refer to themselves do no harm.

use super::globals::{Name, allowed};
use super::{damaged, unusual};
use crate::model::Error;
use safetensors::Dtype;
use std::collections::HashMap;

/// Most bytes of a pickle. That of a network has some hundred KiB; one with the state of an
/// optimizer for a GAN has a few MiB.
pub(super) const MAX_PICKLE: usize = 8 << 20;
/// Most values: a tensor takes about ten.
const MAX_VALUES: usize = 1 << 20;

/// Number of a value in the machine's list.
pub(super) type Id = u32;

/// The bytes that tensors are views of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub dtype: Dtype,
    /// Its name in the file.
    pub key: &'a str,
    /// Number of elements.
    pub count: u64,
}

impl Storage<'_> {
    /// Bytes of an element.
    pub fn size(&self) -> usize {
        self.dtype.bitsize() / 8
    }

    /// Bytes of all elements; `None` if they cannot be counted.
    pub fn bytes(&self) -> Option<u64> {
        self.count.checked_mul(self.size() as u64)
    }
}

/// A tensor as the pickle describes it; all numbers but `offset` are those of values.
#[derive(Clone, Copy, Debug)]
pub(super) struct TensorRecord {
    pub storage: Id,
    /// Of the first element, in elements of the storage.
    pub offset: u64,
    /// [`Machine::sizes`] reads it.
    pub shape: Id,
    /// Elements between neighbours along each axis; likewise.
    pub strides: Id,
}

/// A value of a pickle, as far as it matters for tensors.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// A value that no tensor depends on: None, a float, bytes, a set.
    Other,
    Flag(bool),
    Whole(i64),
    Text(&'a str),
    Name(Name),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Storage(Storage<'a>),
    Tensor(TensorRecord),
}

/// The machine after it has read a pickle.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Lengths of the stack at which marks were set.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    root: Id,
    /// Bytes of the pickle.
    pub end: usize,
}

fn short() -> Error {
    damaged("its pickle is cut short; copy or fetch the file again")
}

fn wrong() -> Error {
    damaged("its pickle is damaged: an operation finds values of another kind")
}

impl<'a> Machine<'a> {
    /// Reads the pickle that `bytes` begin with.
    ///
    /// # Errors
    /// [`Error::ForbiddenName`] if it asks for anything but tensors; [`Error::Checkpoint`] if it is
    /// damaged, too large, or holds an operation that `torch.save` does not write.
    pub fn run(bytes: &'a [u8]) -> Result<Machine<'a>, Error> {
        let mut machine = Machine {
            bytes: &bytes[..bytes.len().min(MAX_PICKLE)],
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            root: 0,
            end: 0,
        };
        while machine.step()? {}
        machine.root = machine.pop()?;
        machine.end = machine.at;
        Ok(machine)
    }

    /// The object that the pickle holds.
    pub fn root(&self) -> &Value<'a> {
        self.value(self.root)
    }

    /// A value by its number.
    pub fn value(&self, id: Id) -> &Value<'a> {
        self.values.get(id as usize).unwrap_or(&Value::Other)
    }

    /// All storages that the pickle names.
    pub fn storages(&self) -> impl Iterator<Item = Storage<'a>> {
        self.values.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(*storage),
            _ => None,
        })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(count).ok_or_else(short)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(short)?;
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of `count` bytes, at most eight.
    fn number(&mut self, count: usize) -> Result<u64, Error> {
        let taken = self.take(count)?.iter().rev();
        Ok(taken.fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// The bytes after their length, which is a number of `count` bytes.
    fn counted(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let length = self.number(count)?;
        self.take(usize::try_from(length).map_err(|_| short())?)
    }

    fn line(&mut self) -> Result<&'a str, Error> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or_else(short)?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| wrong())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Error> {
        if self.values.len() >= MAX_VALUES {
            return Err(damaged(format!(
                "its pickle holds more than {MAX_VALUES} values, more than any network"
            )));
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    fn push_text(&mut self, bytes: &'a [u8]) -> Result<(), Error> {
        // a text that is no UTF-8 cannot be the key of a tensor
        self.push(std::str::from_utf8(bytes).map_or(Value::Other, Value::Text))
    }

    fn pop(&mut self) -> Result<Id, Error> {
        let least = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= least {
            return Err(wrong());
        }
        self.stack.pop().ok_or_else(wrong)
    }

    fn top(&self) -> Result<Id, Error> {
        self.stack.last().copied().ok_or_else(wrong)
    }

    /// The values above the last mark, which is removed.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Error> {
        let mark = self.marks.pop().ok_or_else(wrong)?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn pop_tuple(&mut self, count: usize) -> Result<(), Error> {
        let mut items = (0..count)
            .map(|_| self.pop())
            .collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Value::Tuple(items))
    }

    /// Runs one operation; returns false after the last.
    fn step(&mut self) -> Result<bool, Error> {
        let operation = self.take(1)?[0];
        match operation {
            b'.' => return Ok(false),
            0x80 => self.protocol()?,
            0x95 => drop(self.take(8)?), // FRAME: how the pickle is cut for reading
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::Other)?,
            0x88 | 0x89 => self.push(Value::Flag(operation == 0x88))?,
            b'J' => {
                let bits = self.number(4)? as u32;
                self.push(Value::Whole(i64::from(bits as i32)))?;
            }
            b'K' => {
                let value = self.number(1)?;
                self.push(Value::Whole(value as i64))?;
            }
            b'M' => {
                let value = self.number(2)?;
                self.push(Value::Whole(value as i64))?;
            }
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Other)?;
            }
            b'X' | 0x8c | 0x8d | b'T' | b'U' => {
                let width = match operation {
                    0x8d => 8,
                    0x8c | b'U' => 1,
                    _ => 4,
                };
                let text = self.counted(width)?;
                self.push_text(text)?;
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let width = match operation {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                };
                self.counted(width)?;
                self.push(Value::Other)?;
            }
            _ => self.step_on_collections(operation)?,
        }
        Ok(true)
    }

    fn protocol(&mut self) -> Result<(), Error> {
        match self.number(1)? {
            2..=5 => Ok(()),
            other => Err(unusual(format!(
                "its pickle has protocol {other}, not 2 to 5"
            ))),
        }
    }

    /// An integer of up to 255 bytes; one that fits 64 bits may be a size.
    fn long(&mut self) -> Result<(), Error> {
        let bytes = self.counted(1)?;
        let value = match bytes.len() {
            0..=8 => {
                let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
                let mut all = [if negative { 0xff } else { 0 }; 8];
                all[..bytes.len()].copy_from_slice(bytes);
                Value::Whole(i64::from_le_bytes(all))
            }
            _ => Value::Other,
        };
        self.push(value)
    }

    /// The operations on tuples, lists, dictionaries and sets.
    fn step_on_collections(&mut self, operation: u8) -> Result<(), Error> {
        match operation {
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))
            }
            0x85..=0x87 => self.pop_tuple(usize::from(operation - 0x84)),
            b']' => self.push(Value::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(items)
            }
            0x8f => self.push(Value::Other), // an empty set
            0x90 => self.pop_to_mark().map(drop),
            0x91 => {
                self.pop_to_mark()?;
                self.push(Value::Other)
            }
            _ => self.step_on_names(operation),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Error> {
        let list = self.top()? as usize;
        match self.values.get_mut(list) {
            Some(Value::List(list)) => list.extend(items),
            _ => return Err(wrong()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Id>) -> Result<(), Error> {
        let dict = self.top()? as usize;
        match self.values.get_mut(dict) {
            Some(Value::Dict(dict)) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// The memo, names, calls and storages.
    fn step_on_names(&mut self, operation: u8) -> Result<(), Error> {
        match operation {
            b'q' | b'r' | 0x94 => {
                let key = match operation {
                    b'q' => self.number(1)? as u32,
                    b'r' => self.number(4)? as u32,
                    _ => self.memo.len() as u32,
                };
                let top = self.top()?;
                self.memo.insert(key, top);
                Ok(())
            }
            b'h' | b'j' => {
                let key = self.number(if operation == b'h' { 1 } else { 4 })? as u32;
                let id = *self.memo.get(&key).ok_or_else(wrong)?;
                self.stack.push(id);
                Ok(())
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Name(allowed(module, name)?))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.value(module), self.value(name)) {
                    (&Value::Text(module), &Value::Text(name)) => {
                        self.push(Value::Name(allowed(module, name)?))
                    }
                    _ => Err(wrong()),
                }
            }
            b'Q' => self.storage(),
            b'R' => self.call(),
            b'b' => {
                // an OrderedDict of a module carries `_metadata`, versions of its layers
                self.pop()?;
                let target = self.top()?;
                match self.value(target) {
                    Value::Dict(_) => Ok(()),
                    _ => Err(wrong()),
                }
            }
            other => Err(unusual(format!(
                "its pickle holds the operation {other:#04x}, which torch.save does not write"
            ))),
        }
    }

    /// A storage, from the tuple ("storage", type, key, device, number of elements).
    fn storage(&mut self) -> Result<(), Error> {
        let id = self.pop()?;
        let Value::Tuple(items) = self.value(id) else {
            return Err(wrong());
        };
        let (kind, about) = items.split_at_checked(5).ok_or_else(wrong)?;
        let values = [kind[0], kind[1], kind[2], kind[4]].map(|id| self.value(id));
        // the older format may add a view of the storage
        if about
            .iter()
            .any(|&id| !matches!(self.value(id), Value::Other))
        {
            return Err(unusual("it holds views of storages, as before PyTorch 0.4"));
        }
        let [
            Value::Text("storage"),
            Value::Name(Name::Storage(dtype)),
            Value::Text(key),
            Value::Whole(count),
        ] = values
        else {
            return Err(wrong());
        };
        let storage = Storage {
            dtype: *dtype,
            key,
            count: u64::try_from(*count).map_err(|_| wrong())?,
        };
        self.push(Value::Storage(storage))
    }

    /// A call of one of the allowed names.
    fn call(&mut self) -> Result<(), Error> {
        let (arguments, name) = (self.pop()?, self.pop()?);
        let (&Value::Name(name), Value::Tuple(items)) = (self.value(name), self.value(arguments))
        else {
            return Err(wrong());
        };
        match name {
            Name::OrderedDict if items.is_empty() => self.push(Value::Dict(Vec::new())),
            Name::RebuildTensor => {
                let tensor = self.tensor(items)?;
                self.push(Value::Tensor(tensor))
            }
            Name::RebuildParameter => {
                let tensor = *items.first().ok_or_else(wrong)?;
                if !matches!(self.value(tensor), Value::Tensor(_)) {
                    return Err(wrong());
                }
                self.stack.push(tensor);
                Ok(())
            }
            _ => Err(wrong()),
        }
    }

    /// The tensor from (storage, offset, shape, strides, ...).
    fn tensor(&self, items: &[Id]) -> Result<TensorRecord, Error> {
        let &[storage, offset, shape, strides, ..] = items else {
            return Err(wrong());
        };
        let Value::Whole(offset) = *self.value(offset) else {
            return Err(wrong());
        };
        let axes = [shape, strides].map(|id| self.sizes(id).map(|list| list.len()));
        let is_storage = matches!(self.value(storage), Value::Storage(_));
        if axes[0].is_none() || axes[0] != axes[1] || !is_storage {
            return Err(wrong());
        }
        Ok(TensorRecord {
            storage,
            offset: u64::try_from(offset).map_err(|_| wrong())?,
            shape,
            strides,
        })
    }

    /// A tuple of sizes; `None` if the value is another one.
    pub fn sizes(&self, id: Id) -> Option<Vec<u64>> {
        match self.value(id) {
            Value::Tuple(items) if items.len() <= MAX_AXES => items
                .iter()
                .map(|&id| match *self.value(id) {
                    Value::Whole(number) => u64::try_from(number).ok(),
                    _ => None,
                })
                .collect(),
            _ => None,
        }
    }
}

/// Most axes of a tensor.
const MAX_AXES: usize = 16;
