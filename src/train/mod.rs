//! Training: configuration, schedule, the loop, state and network files, the log. Depends on the
//! loader, the networks and the backends. It promises that a resumed run ends in the same bits as
//! an unbroken one.

mod config;
mod device;
mod fit;
mod held_out;
mod keeping;
mod log;
mod loss_scale;
mod memory;
mod options;
mod prefetch;
mod previews;
mod run;
mod schedule;
mod start;
mod state;
mod validation;

pub use config::{LossTerm, TrainConfig};
pub use device::{DeviceChoice, OpenedDevice};
pub use fit::{Fit, FitChoice, Fitted, Remedy};
pub use held_out::ValidationSet;
pub use keeping::{BestNetwork, MeasuredOn, best_paths};
pub use log::{Log, LogDigest, LogLine, read_log};
pub use loss_scale::LossScale;
pub use memory::{DevicePlace, RunBudget, RunMemory, validation_bytes};

pub use options::{ConfigFile, RunOptions, RunSummary};
pub use prefetch::Prefetch;
pub use previews::{KeptPreview, kept as kept_previews, read_preview};
pub use run::{duration_text, model_path, train};
pub use schedule::{Decay, Schedule, ema_decay};
pub use state::{OpenLine, PendingLine, State, list_states, newest_state, state_path};
