//! Training: configuration, schedule, the loop, state and network files, the log. Depends on the
//! loader, the networks and the backends. It promises that a resumed run ends in the same bits as
//! an unbroken one.

mod checkpoint;
mod claim;
mod config;
mod device;
mod fit;
mod held_out;
mod iteration;
mod keeping;
mod log;
mod log_line;
mod loss_scale;
mod memory;
mod meter;
mod options;
mod prefetch;
mod prepare;
mod previews;
mod run;
mod schedule;
mod start;
mod state;
mod validation;

pub use checkpoint::model_path;
pub use config::{LossTerm, TrainConfig};
pub use device::{DeviceChoice, Opened};
pub use fit::{Choice, Fit, Fitted, Rung};
pub use held_out::HeldOut;
pub use keeping::{Best, MeasuredOn, best_paths};
pub use log::{Log, LogDigest, LogLine, read_log};
pub use loss_scale::LossScale;
pub use memory::{Budget, DevicePlace, RunMemory, validation_bytes};

pub use meter::duration_text;
pub use options::{ConfigFile, RunOptions, Summary};
pub use prefetch::Prefetch;
pub use previews::{Kept, kept as kept_previews, read_picture as read_preview};
pub use run::train;
pub use schedule::{Decay, Schedule, ema_decay};
pub use state::{OpenLine, PendingLine, State, list_states, newest_state, state_path};
