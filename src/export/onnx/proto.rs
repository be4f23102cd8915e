//! The part of Protocol Buffers' wire format that ONNX files need: variable-length integers, 32-bit
//! floats and length-delimited fields, written and read without a schema compiler. Depends on
//! nothing. Promises that reading damaged bytes ends in an error, never in a panic.

use anyhow::{Context, Result, bail};

/// Wire type of a variable-length integer.
const VARINT: u64 = 0;
/// Wire type of 8 bytes.
const EIGHT_BYTES: u64 = 1;
/// Wire type of a length and as many bytes.
const BYTES: u64 = 2;
/// Wire type of 4 bytes.
const FOUR_BYTES: u64 = 5;

/// A message that is being written, field by field.
#[derive(Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// The message's bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    /// Appends an integer. A negative one takes ten bytes, as two's complement of 64 bits.
    pub fn int(&mut self, field: u64, value: i64) {
        self.key(field, VARINT);
        self.varint(value as u64);
    }

    /// Appends each integer of a list as a field of its own.
    pub fn ints(&mut self, field: u64, values: &[i64]) {
        values.iter().for_each(|&value| self.int(field, value));
    }

    /// Appends a 32-bit float.
    pub fn float(&mut self, field: u64, value: f32) {
        self.key(field, FOUR_BYTES);
        self.bytes.extend(value.to_le_bytes());
    }

    /// Appends bytes.
    pub fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, BYTES);
        self.varint(value.len() as u64);
        self.bytes.extend(value);
    }

    /// Appends a text.
    pub fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// Appends a message that `fill` writes.
    pub fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.bytes);
    }
}

/// The value of a field that was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Field<'a> {
    /// A variable-length integer.
    Int(i64),
    /// A 32-bit float.
    Float(f32),
    /// A text, a message, or a packed list.
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    /// The integer.
    pub fn int(self) -> Result<i64> {
        match self {
            Field::Int(value) => Ok(value),
            _ => bail!("a field is no integer"),
        }
    }

    /// The bytes.
    pub fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Field::Bytes(bytes) => Ok(bytes),
            _ => bail!("a field is no text and no message"),
        }
    }

    /// The text.
    pub fn text(self) -> Result<String> {
        Ok(String::from_utf8(self.bytes()?.to_vec())?)
    }

    /// Appends the integer, or those of a packed list.
    pub fn ints(self, out: &mut Vec<i64>) -> Result<()> {
        match self {
            Field::Int(value) => out.push(value),
            Field::Bytes(mut packed) => {
                while !packed.is_empty() {
                    out.push(varint(&mut packed)? as i64);
                }
            }
            Field::Float(_) => bail!("a field is no integer"),
        }
        Ok(())
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    bail!("an integer is longer than ten bytes")
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (taken, rest) = bytes
        .split_at_checked(count)
        .context("the file ends in the middle of a field")?;
    *bytes = rest;
    Ok(taken)
}

/// Calls `found` with number and value of each field of a message.
///
/// # Errors
/// Those of `found`; bytes that are no message.
pub(super) fn fields<'a>(
    mut bytes: &'a [u8],
    mut found: impl FnMut(u64, Field<'a>) -> Result<()>,
) -> Result<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            VARINT => Field::Int(varint(&mut bytes)? as i64),
            FOUR_BYTES => {
                let four = take(&mut bytes, 4)?;
                Field::Float(f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            }
            BYTES => {
                let count = usize::try_from(varint(&mut bytes)?)?;
                Field::Bytes(take(&mut bytes, count)?)
            }
            EIGHT_BYTES => {
                take(&mut bytes, 8)?;
                continue;
            }
            other => bail!("a field has the unknown wire type {other}"),
        };
        found(key >> 3, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let mut message = Message::default();
        message.int(1, -1);
        message.ints(2, &[0, 127, 128, i64::MAX]);
        message.float(3, 0.1);
        message.message(400, |inner| inner.text(1, "abc"));
        let bytes = message.into_bytes();
        let mut list = Vec::new();
        fields(&bytes, |number, field| {
            list.push((number, field));
            Ok(())
        })
        .unwrap();
        let ints = [0, 127, 128, i64::MAX].map(|value| (2, Field::Int(value)));
        assert_eq!(list[0], (1, Field::Int(-1)));
        assert_eq!(list[1..5], ints);
        assert_eq!(list[5], (3, Field::Float(0.1)));
        assert_eq!(list[6], (400, Field::Bytes(b"\x0a\x03abc")));
        for cut in 0..bytes.len() {
            let _ = fields(&bytes[..cut], |_, _| Ok(())); // no panic
        }
        let packed = Field::Bytes(&[1, 0x80, 1]);
        let mut values = Vec::new();
        packed.ints(&mut values).unwrap();
        assert_eq!(values, [1, 128]);
    }
}
