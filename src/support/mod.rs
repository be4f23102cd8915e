//! What every other part of the crate may use: files and locks, budgets, failures, text, progress,
//! random numbers, instruction sets, the parts of gradients that ranks own. Depends on `sys` and on no other part of the crate.

pub mod augment;
pub mod budget;
pub mod failure;
pub mod file_kind;
pub mod files;
pub mod isa;
pub mod limits;
pub mod lock;
pub mod parts;
pub mod progress;
pub mod rng;
pub mod text;
