//! From a folder of images to pairs of 8-bit RGB images: finding the files, decoding them within
//! stated limits, making the low-quality side where there is none, and drawing synthetic images.
//! Depends on `rng`, `failure` and `text` alone among our modules; promises the same result for any
//! number of threads.

mod buffers;
mod colour;
pub mod decode;
pub mod degrade;
pub mod encode;
mod encode_jpeg;
mod note;
mod png_strips;
pub mod recipe;
pub mod rows;
pub mod scan;
pub mod synth;
pub mod thumbnail;
