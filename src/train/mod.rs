//! Training: schedule, loop, checkpoints, logging. (Being written.)

mod model_file;
mod schedule;

pub use model_file::{ModelHints, ModelMeta, read_model, write_model};
pub use schedule::{Decay, Schedule, ema_decay};
