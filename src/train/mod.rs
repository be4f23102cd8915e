//! Training: schedule, loop, checkpoints, logging. (Being written.)

mod config;
mod log;
mod model_file;
mod schedule;
mod state;

pub use config::{FIXED_ON_RESUME, LossTerm, TrainConfig};
pub use log::{Log, LogLine};
pub use model_file::{ModelHints, ModelMeta, read_model, write_model};
pub use schedule::{Decay, Schedule, ema_decay};
pub use state::{State, list_states, newest_state, state_path};
