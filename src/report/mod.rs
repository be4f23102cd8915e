//! For people to look at: side-by-side comparisons (PNG), charts (SVG), event files for
//! TensorBoard, a page (HTML). Depends on `files` and the text of bytes; images are whole files
//! or none.

pub mod chart;
pub mod occupancy;
pub mod page;
pub mod sheet;
pub mod tensorboard;
