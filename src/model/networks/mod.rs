//! The networks, one file each. Depends on the graph and the parameter table.

pub(super) mod compact;
pub(super) mod nano;
mod paragon;
pub(super) mod span;
pub(super) mod stream;
