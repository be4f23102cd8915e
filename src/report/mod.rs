//! For people to look at: side-by-side comparisons (PNG), charts (SVG), event files for TensorBoard. Depends on `files`; pictures are
//! whole files or none.

pub mod chart;
pub mod sheet;
pub mod tensorboard;
