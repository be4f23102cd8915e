//! Pictures for people: side-by-side comparisons (PNG) and charts (SVG). Depends on `files` and the
//! text of bytes; promises whole files or none.

pub mod chart;
pub mod occupancy;
pub mod sheet;
