//! Output for people: side-by-side comparisons (PNG), charts (SVG), event files for TensorBoard and
//! a page (HTML). Depends on `support` only. An image file is written whole or not at all. All but
//! the event files need the feature `report`.

#[cfg(feature = "report")]
pub mod chart;
#[cfg(feature = "report")]
mod drawing;
#[cfg(feature = "report")]
pub mod histogram;
#[cfg(feature = "report")]
pub mod occupancy;
#[cfg(feature = "report")]
pub mod page;
#[cfg(feature = "report")]
pub mod sheet;
pub mod tensorboard;
