//! The networks, one file each. Depends on the graph and the parameter table.

pub(super) mod compact;
pub(super) mod nano;
mod paragon;
pub(super) mod photo;
pub(super) mod pro;
pub(super) mod span;
pub(super) mod stream;
