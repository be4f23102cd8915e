//! Training: schedule, loop, checkpoints, logging. (Being written.)

mod schedule;

pub use schedule::{Decay, Schedule, ema_decay};
