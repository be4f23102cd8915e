//! The arguments of kernels: structs that Rust and C declare alike, whose device pointers name a
//! place in a plan's buffer until a launch knows where the buffers are. Depends on the plan's
//! buffer ids alone.

use crate::plan::BufferId;
use anyhow::{Context, Result};
use std::marker::PhantomData;

/// The type of the values behind a device pointer. Types that are one in C differ here by meaning,
/// so that two pointers of different meaning cannot be exchanged.
pub(super) trait Element {
    /// Its name in C.
    #[cfg(test)]
    const C: &'static str;
}

/// Defines markers of what pointers point to, and their names in C.
macro_rules! elements {
    ($($(#[doc = $doc:literal])* $name:ident = $c:literal;)*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, Debug, PartialEq)]
            pub(super) enum $name {}
            element!($name, $c);
        )*
    };
}

macro_rules! element {
    ($name:ty, $c:literal) => {
        impl Element for $name {
            #[cfg(test)]
            const C: &'static str = $c;
        }
    };
}
pub(super) use element;

elements! {
    /// An activation or its gradient, in the storage type that the kernels are compiled for.
    Act = "act";
    /// A parameter, f32.
    Parameter = "float";
    /// The gradient of a parameter, f32.
    Gradient = "float";
    /// A block's partial sum over pixels, f32.
    Partial = "float";
    /// A total over all blocks: two f32 whose sum it is.
    Total = "TwoFloats";
    /// A weight of the folded convolution, f32; with half precision tensor core operands follow.
    Folded = "float";
    /// The augmentation code of a patch.
    Code = "u8";
}

element!(f32, "float");
element!(f64, "double");
element!(u8, "u8");

/// Bits of [`Address`] that hold the offset in the buffer.
const OFFSET_BITS: u32 = 40;

/// A device pointer as the lowering knows it: a buffer and bytes into it, or null. It has the size
/// of a device pointer, so that argument structs have the layout of their C twins.
#[repr(transparent)]
pub(super) struct Address<T> {
    /// 0 for null; else buffer + 1 in the upper bits and the offset in the lower [`OFFSET_BITS`].
    packed: u64,
    element: PhantomData<fn() -> T>,
}

// not derived, since the element need not be `Copy`
impl<T> Clone for Address<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Address<T> {}

impl<T> Address<T> {
    /// No address.
    pub const NULL: Address<T> = Address {
        packed: 0,
        element: PhantomData,
    };
    /// Sizes of a plan that every address fits: buffers, and bytes of one.
    pub const LIMITS: (u64, u64) = ((1 << (64 - OFFSET_BITS)) - 1, 1 << OFFSET_BITS);

    /// A place `bytes` into a buffer, both within [`Address::LIMITS`].
    pub fn new(buffer: BufferId, bytes: u64) -> Address<T> {
        Address {
            packed: (u64::from(buffer.0) + 1) << OFFSET_BITS | bytes,
            element: PhantomData,
        }
    }

    /// The buffer and the bytes into it; `None` for null.
    pub fn place(self) -> Option<(BufferId, u64)> {
        let buffer = (self.packed >> OFFSET_BITS).checked_sub(1)?;
        let bytes = self.packed & ((1 << OFFSET_BITS) - 1);
        Some((BufferId(u32::try_from(buffer).ok()?), bytes))
    }
}

impl<T: Element> std::fmt::Debug for Address<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.place())
    }
}

/// A device pointer among the arguments of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pointer {
    word: usize,
    /// The buffer it points into; never a view.
    pub buffer: BufferId,
    /// Bytes into the buffer.
    pub bytes: u64,
}

impl Pointer {
    /// Index of the 8-byte word of the arguments that it is.
    pub fn word(&self) -> usize {
        self.word
    }
}

/// The argument struct of one launch, as bytes with the device pointers left open.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    words: Vec<u64>,
    pointers: Vec<Pointer>,
    /// Names of the fields and where they begin, bytes.
    fields: &'static [(&'static str, usize)],
}

impl Arguments {
    /// The bytes of a struct.
    pub(super) fn of<A: CStruct>(arguments: A) -> Arguments {
        const { assert!(size_of::<A>().is_multiple_of(8)) }
        let mut encoded = Arguments {
            words: vec![0; size_of::<A>() / 8],
            pointers: Vec::new(),
            fields: A::FIELDS,
        };
        arguments.put(0, &mut encoded);
        encoded
    }

    /// The device pointers that are not null.
    pub fn pointers(&self) -> &[Pointer] {
        &self.pointers
    }

    /// The same, for a launch that shall use other buffers.
    pub fn pointers_mut(&mut self) -> &mut [Pointer] {
        &mut self.pointers
    }

    /// The struct in 8-byte words, every pointer being what `address` makes of it.
    pub fn words(&self, address: impl Fn(&Pointer) -> u64) -> Vec<u64> {
        let mut words = self.words.clone();
        for pointer in &self.pointers {
            words[pointer.word] = address(pointer);
        }
        words
    }

    /// Sets an `int` field by name: for tests that launch a kernel in another way.
    ///
    /// # Errors
    /// When there is no such field.
    pub fn set_int(&mut self, field: &str, value: i32) -> Result<()> {
        let at = self.offset(field)?;
        self.put_u32(at, value.cast_unsigned());
        Ok(())
    }

    /// An `int` field by name.
    ///
    /// # Errors
    /// When there is no such field.
    pub fn int(&self, field: &str) -> Result<i32> {
        let at = self.offset(field)?;
        Ok(((self.words[at / 8] >> (8 * (at % 8))) as u32).cast_signed())
    }

    fn offset(&self, field: &str) -> Result<usize> {
        let found = self.fields.iter().find(|(name, _)| *name == field);
        let (_, at) = found.with_context(|| format!("no argument is called {field}"))?;
        Ok(*at)
    }

    /// Puts four bytes at byte `at`, a multiple of four; devices and hosts are little-endian.
    fn put_u32(&mut self, at: usize, bits: u32) {
        let (word, shift) = (&mut self.words[at / 8], 8 * (at % 8));
        *word = *word & !(0xffff_ffff << shift) | u64::from(bits) << shift;
    }
}

/// A value that can be a field of an argument struct.
pub(super) trait Field: Copy {
    /// Writes it at byte `at` of the arguments.
    fn put(self, at: usize, to: &mut Arguments);
}

impl Field for i32 {
    fn put(self, at: usize, to: &mut Arguments) {
        to.put_u32(at, self.cast_unsigned());
    }
}

impl Field for u32 {
    fn put(self, at: usize, to: &mut Arguments) {
        to.put_u32(at, self);
    }
}

impl Field for f32 {
    fn put(self, at: usize, to: &mut Arguments) {
        to.put_u32(at, self.to_bits());
    }
}

impl Field for f64 {
    fn put(self, at: usize, to: &mut Arguments) {
        to.words[at / 8] = self.to_bits();
    }
}

impl<T> Field for Address<T> {
    fn put(self, at: usize, to: &mut Arguments) {
        if let Some((buffer, bytes)) = self.place() {
            let word = at / 8;
            to.pointers.push(Pointer {
                word,
                buffer,
                bytes,
            });
        }
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn put(self, at: usize, to: &mut Arguments) {
        for (i, value) in self.into_iter().enumerate() {
            value.put(at + i * size_of::<T>(), to);
        }
    }
}

/// The type of a field as it is declared, and the value that Rust has for it: `*const T` and
/// `*mut T` are declared, [`Address`] is the value.
pub(super) trait CType {
    /// The value, with the layout that the C type has on the device.
    type Value: Field;
    /// The declaration in C of a field of this name.
    #[cfg(test)]
    fn declaration(name: &str) -> String;
}

impl<T: Element> CType for *const T {
    type Value = Address<T>;
    #[cfg(test)]
    fn declaration(name: &str) -> String {
        format!("const {}* {name}", T::C)
    }
}

impl<T: Element> CType for *mut T {
    type Value = Address<T>;
    #[cfg(test)]
    fn declaration(name: &str) -> String {
        format!("{}* {name}", T::C)
    }
}

macro_rules! c_type {
    ($rust:ty, $c:literal) => {
        impl CType for $rust {
            type Value = $rust;
            #[cfg(test)]
            fn declaration(name: &str) -> String {
                format!("{} {name}", $c)
            }
        }
    };
}
pub(super) use c_type;

c_type!(i32, "int");
c_type!(u32, "u32");
c_type!(f32, "float");
c_type!(f64, "double");

impl<T: CType<Value = T> + Field, const N: usize> CType for [T; N] {
    type Value = [T; N];
    #[cfg(test)]
    fn declaration(name: &str) -> String {
        format!("{}[{N}]", T::declaration(name))
    }
}

/// A struct that C declares alike.
pub(super) trait CStruct: Field {
    /// Names of the fields and where they begin, bytes.
    const FIELDS: &'static [(&'static str, usize)];
}

/// A kernel and the struct it takes.
pub(super) struct Kernel<A> {
    /// Its name in C.
    pub name: &'static str,
    /// Threads of a block at most: f32, half precision.
    pub threads: [usize; 2],
    /// Its arguments.
    pub arguments: PhantomData<fn(A)>,
}

/// Declares structs that C and Rust share. Expands to the `#[repr(C)]` Rust struct and, for the
/// generated header, a function with its C text. `kernels` lists the kernels that take the struct:
/// a Rust constant, the name in C, and the threads of a block in f32 and in half precision.
macro_rules! c_structs {
    ($(
        $(#[doc = $doc:literal])*
        struct $name:ident {
            $($(#[doc = $field_doc:literal])* $field:ident: $type:ty,)*
        }
        kernels { $($(#[doc = $kernel_doc:literal])* $kernel:ident = $c:ident [$f32:expr, $half:expr];)* }
    )*) => {
        $(
            $(#[doc = $doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub(super) struct $name {
                $($(#[doc = $field_doc])* pub $field: <$type as CType>::Value,)*
            }

            impl Field for $name {
                fn put(self, at: usize, to: &mut Arguments) {
                    $(self.$field.put(at + std::mem::offset_of!($name, $field), to);)*
                }
            }

            impl CStruct for $name {
                const FIELDS: &'static [(&'static str, usize)] =
                    &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
            }

            $(
                $(#[doc = $kernel_doc])*
                pub(super) const $kernel: Kernel<$name> = Kernel {
                    name: stringify!($c),
                    threads: [$f32, $half],
                    arguments: std::marker::PhantomData,
                };
            )*
        )*

        /// The C text of all structs and kernels, for the generated header.
        #[cfg(test)]
        pub(super) fn c_text() -> String {
            let mut text = String::new();
            $(
                $(text += concat!("//", $doc, "\n");)*
                text += concat!("struct ", stringify!($name), " {\n");
                $(
                    $(text += concat!("    //", $field_doc, "\n");)*
                    text += &format!("    {};\n", <$type as CType>::declaration(stringify!($field)));
                )*
                text += "};\n";
                text += &format!(
                    "static_assert(sizeof({0}) == {1}, \"the layout that Rust writes\");\n",
                    stringify!($name),
                    size_of::<$name>()
                );
                $(text += &crate::backend::cuda::arguments::kernel_text(&$kernel, stringify!($name));)*
                text += "\n";
            )*
            text
        }
    };
}
pub(super) use c_structs;

/// Which struct a kernel takes and how many threads its blocks have, as the `KERNEL` macros of
/// kernels/common.cuh look them up by name.
#[cfg(test)]
pub(super) fn kernel_text<A>(kernel: &Kernel<A>, arguments: &str) -> String {
    let Kernel {
        name,
        threads: [f32_threads, half_threads],
        ..
    } = kernel;
    let threads = if f32_threads == half_threads {
        f32_threads.to_string()
    } else {
        format!("PRECISION == 0 ? {f32_threads} : {half_threads}")
    };
    format!("typedef {arguments} {name}_arguments;\nenum {{ {name}_threads = {threads} }};\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    c_structs! {
        /// A struct inside another.
        struct Inner {
            a: i32,
            b: f32,
        }
        kernels {}
        struct Outer {
            from: *const Act,
            inner: [Inner; 2],
            to: *mut f64,
            last: u32,
            pad: i32,
        }
        kernels {}
    }
    c_type!(Inner, "Inner");

    #[test]
    fn fields_are_where_c_has_them() {
        let inner = |a, b| Inner { a, b };
        let mut arguments = Arguments::of(Outer {
            from: Address::new(BufferId(3), 1 << 33),
            inner: [inner(-1, 1.0), inner(2, -0.5)],
            to: Address::NULL,
            last: u32::MAX,
            pad: 7,
        });
        assert_eq!(arguments.int("pad").unwrap(), 7);
        arguments.set_int("pad", -7).unwrap();
        assert!(arguments.set_int("missing", 0).is_err());
        let words = arguments.words(|p| {
            assert_eq!((p.buffer, p.bytes), (BufferId(3), 1 << 33));
            11
        });
        assert_eq!(
            words,
            [
                11,
                0x3f80_0000_ffff_ffff,
                0xbf00_0000_0000_0002,
                0,
                0xffff_fff9_ffff_ffff
            ]
        );
        assert!(c_text().contains("    Inner inner[2];\n    double* to;\n"));
    }
}
