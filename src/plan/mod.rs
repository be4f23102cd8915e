//! The static plan of a step. (Being written.)

pub mod augment;
