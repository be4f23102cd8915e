//! Pictures for people: side-by-side comparisons (PNG) and charts (SVG). Depends on `files`; promises whole files or none.

pub mod chart;
pub mod sheet;
