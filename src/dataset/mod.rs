//! From a folder of images to pairs of 8-bit RGB images: finds the files, decodes them within
//! stated limits, makes the LQ if the data set has none, and draws synthetic images. Depends on
//! `support` alone among our modules; promises the same result for any number of threads.

mod buffers;
mod colour;
pub mod decode;
pub mod degrade;
pub mod encode;
mod encode_jpeg;
pub mod measure;
mod note;
mod png_strips;
pub mod recipe;
#[doc(hidden)]
pub mod rows;
pub mod scan;
pub mod synth;
pub(crate) mod thumbnail;
