//! Training: configuration, schedule, the training loop, state files, the log. Depends on the
//! loader, the networks and the backends. Promises that a resumed run ends in the same bits as an
//! unbroken one.

mod changes;
mod config;
mod device;
mod fit;
mod folder;
mod keeping;
mod log;
mod log_digest;
mod log_line;
mod loss_scale;
mod memory;
mod options;
mod prefetch;
mod previews;
mod run;
mod schedule;
mod start;
mod state;
mod state_files;
mod transcript;
mod validation;
mod validation_set;

pub use crate::backend::DeviceChoice;
pub use changes::{RecipeChanges, RecipeSetting};
pub use config::{LossTerm, TrainConfig};
pub use device::OpenedDevice;
pub use fit::{Fit, FitChoice, Fitted, Remedy};
pub use folder::state_path;
pub use keeping::{BestNetwork, MeasuredOn};
pub use log::Log;
pub use log_digest::{LogDigest, read_log};
pub use log_line::{LogLine, RanksLine};
pub use loss_scale::LossScale;
pub use memory::{DevicePlace, ImageSizes, RunBudget, RunMemory, Travel, ValidationMemory};
pub use options::{BestScore, ConfigFile, Level, Report, RunOptions, RunSummary};
pub use prefetch::Prefetch;
pub use previews::{KeptPreview, kept_previews, read_preview};
pub use run::{RECIPE_FILE, duration_text, train, train_as_rank};
pub use schedule::{Decay, Schedule, ema_decay, usual_milestones, usual_warmup};
pub use state::{OpenLine, PendingLine, State, StateHead};
pub use state_files::newest_state;
pub use transcript::Transcript;
pub use validation_set::ValidationSet;
