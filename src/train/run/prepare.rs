//! What happens between the command and the first step: the device is opened, the images to
//! validate on are found, the memory is fitted and reported, the folder is made ready. Depends on
//! everything that a run uses. Promises that a run which is refused has changed nothing of an
//! earlier run in the same folder.

use crate::backend::cpu::CpuOptions;
use crate::backend::{Backend, CudaSizing};
use crate::degrade::Recipe;
use crate::loader::quality::quality;
use crate::loader::{LoaderConfig, Sources, bound};
use crate::model::Recompute;
use crate::plan::Precision;
use crate::support::files;
use crate::support::lock::FolderLock;
use crate::support::text::bytes_text;
use crate::sys;
use crate::train::keeping::{self, BestNetwork, MeasuredOn};
use crate::train::start::{self, StartState, report_resumed};
use crate::train::validation::Validation;
use crate::train::{
    DeviceChoice, DevicePlace, Fit, Fitted, Level, OpenedDevice, Report, RunBudget, RunOptions,
    TrainConfig, ValidationMemory, previews,
};
use anyhow::{Result, ensure};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// File in the folder of a run that holds its degradation recipe.
pub const RECIPE_FILE: &str = "degrade.yml";

/// What every step of the preparation needs.
pub(super) struct Preparation<'a> {
    pub sources: &'a Sources,
    /// The configuration as requested.
    pub config: &'a TrainConfig,
    pub options: &'a RunOptions,
    /// Shows a line to the user.
    pub report: &'a Report<'a>,
}

/// The folder of a run, locked. Whatever ends the run: folders that were created for it are removed
/// again if nothing was written there, so that a failed start leaves nothing behind.
pub(super) struct ClaimedFolder {
    lock: Option<FolderLock>,
    /// Folders that were created, the deepest first.
    created: Vec<PathBuf>,
}

impl ClaimedFolder {
    /// Checks that the folder is still the one that was locked.
    ///
    /// # Errors
    /// Those of [`FolderLock::check`].
    pub fn check(&self) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), FolderLock::check)
    }
}

impl Drop for ClaimedFolder {
    fn drop(&mut self) {
        self.lock = None; // removes the file of the lock
        for folder in &self.created {
            let _ = std::fs::remove_dir(folder); // fails, as it should, if there is something in it
        }
    }
}

/// A run that fits into memory.
pub(super) struct Planned {
    pub fitted: Fitted,
    /// The loader's configuration for the chosen split.
    pub loader: LoaderConfig,
    /// What validations are measured on; `None` without validation, or if the run was stopped while
    /// the images were checked.
    pub measured_on: Option<MeasuredOn>,
}

/// The loader's configuration apart from threads and slots. Samples are numbered through, so every
/// split of an iteration gets the same ones.
fn loader_config(
    config: &TrainConfig,
    options: &RunOptions,
    iteration: u64,
    degrade: Option<Arc<Recipe>>,
) -> LoaderConfig {
    LoaderConfig {
        hflip: config.use_hflip,
        rot: config.use_rot,
        start: iteration.saturating_mul(config.accum_iter as u64),
        window: config.window,
        io: options.io,
        on_corrupt: options.on_corrupt,
        degrade,
        ..LoaderConfig::new(config.batch_size, config.lq_size, config.seed)
    }
}

impl Preparation<'_> {
    /// Checks the configuration against the shards.
    pub fn check(&self) -> Result<()> {
        self.config.check()?;
        let (network, shards) = (self.config.network.scale, self.sources.scale() as usize);
        ensure!(
            network == shards,
            "the network has scale {network} and the shards {shards}; they must agree"
        );
        Ok(())
    }

    /// Locks the folder of the run, creating it if needed, and removes what a killed process left
    /// half-written there; the lock shows that no such process is running.
    pub fn claim_folder(&self) -> Result<ClaimedFolder> {
        let out = &self.options.out;
        let created = out
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .map(Path::to_path_buf)
            .collect();
        let mut claimed = ClaimedFolder {
            lock: None,
            created,
        };
        files::create_folder(out)?;
        claimed.lock = Some(start::lock(out, self.report)?);
        for folder in ["", "models", "states"] {
            files::remove_partials(&out.join(folder));
        }
        Ok(claimed)
    }

    fn info(&self, text: &str) {
        (self.report)(Level::Info, text);
    }

    /// Opens the device that the run computes on.
    pub fn open_device(&self) -> Result<OpenedDevice> {
        let options = self.options;
        if matches!(options.device, DeviceChoice::Cuda(_)) {
            self.check_network_on_cuda()?;
        }
        let (opened, reason) = OpenedDevice::new(
            options.device,
            options.precision,
            CpuOptions::new(options.threads),
            options.validation.is_some(),
        )?;
        reason
            .iter()
            .for_each(|reason| (self.report)(Level::Warning, reason));
        if options.vram.is_some() && !opened.place.is_device() {
            (self.report)(
                Level::Warning,
                "--vram bounds the memory of a GPU; this run computes on the CPU, where --host-memory bounds it",
            );
        }
        Ok(opened)
    }

    /// Refuses a network that CUDA has no kernels for, before a driver is looked for: installing one
    /// would not help.
    fn check_network_on_cuda(&self) -> Result<()> {
        let precision = self.options.precision.unwrap_or(Precision::Bf16);
        let place = DevicePlace::Cuda {
            sizing: CudaSizing { precision },
            in_use: None,
        };
        let smallest = TrainConfig {
            batch_size: 1,
            accum_iter: 1,
            ..self.config.clone()
        };
        place.plan(&smallest, Recompute::Full, 0)?;
        Ok(())
    }

    /// Finds the images to validate on; `None` without validation.
    pub fn open_validation(&self, place: &DevicePlace) -> Result<Option<Validation>> {
        let validation = Validation::new(self.config, self.options, place)?;
        if let (Some(v), Some(images)) = (&validation, &self.options.validation) {
            self.info(&format!(
                "validating every {} iterations on {}: {}",
                v.every,
                images.display(),
                v.images.text()
            ));
            v.images
                .left_out()
                .iter()
                .filter(|left| left.may_surprise())
                .for_each(|left| (self.report)(Level::Warning, &format!("note: {left}")));
        }
        Ok(validation)
    }

    /// Fits the run into memory, checks the images to validate on, and reports the memory table.
    pub fn fit(
        &self,
        opened: &OpenedDevice,
        validation: Option<&mut Validation>,
        start: &StartState,
    ) -> Result<Planned> {
        let (options, place) = (self.options, opened.place);
        let StartState { state, fresh } = start;
        let (threads, slots) = options.prefetch.at(&place);
        let degrade = self.config.degrade_recipe()?;
        let loader_of = |config: &TrainConfig, slots: usize| LoaderConfig {
            threads,
            slots,
            ..loader_config(config, options, state.head.iteration, degrade.clone())
        };
        let stated = RunBudget {
            host: options.host_memory,
            device: options.vram,
        };
        let left = sys::memory_left();
        let fit = Fit {
            config: self.config,
            place,
            recompute: options.recompute,
            slots,
            budget: stated.within(RunBudget {
                host: left.as_ref().map(|left| left.bytes),
                device: opened.vram,
            }),
            stated,
            host_limit: left
                .filter(|left| stated.host.is_none_or(|host| left.bytes < host))
                .map(|left| left.limit),
            may_split: options.fit,
            earlier: (!fresh)
                .then_some((state.head.config.batch_size, state.head.config.accum_iter)),
            loader: &|config, slots| bound(self.sources, &loader_of(config, slots)),
            validation: validation
                .as_ref()
                .map(|v| ValidationMemory::new(self.config, &place, &v.sizes))
                .transpose()?
                .unwrap_or_default(),
        };
        let fitted = fit.choose()?;
        let loader = loader_of(&fitted.config, fitted.choice.slots);
        report_resumed(start, &options.out, &fitted.config, self.report);
        fitted
            .reason
            .iter()
            .for_each(|reason| (self.report)(Level::Warning, reason));
        if *fresh {
            // A run that is resumed keeps its schedule.
            for advice in fitted
                .config
                .schedule_advice(options.milestones_from.as_deref())
            {
                (self.report)(Level::Warning, &format!("note: {advice}"));
            }
        }
        let measured_on = match validation {
            Some(validation) => validation.check(options)?,
            None => None,
        };
        self.report_memory(&fit, &fitted, &loader)?;
        Ok(Planned {
            fitted,
            loader,
            measured_on,
        })
    }

    /// Reports how well the order mixes, and the memory that was planned: one line, and on demand
    /// the table and the budget.
    fn report_memory(&self, fit: &Fit, fitted: &Fitted, loader: &LoaderConfig) -> Result<()> {
        let memory = &fitted.memory;
        self.info(&format!("shuffle: {}", quality(self.sources, loader)?));
        let device = if memory.on_device {
            format!("{} on the device, ", bytes_text(memory.device_bytes))
        } else {
            String::new()
        };
        self.info(&format!(
            "memory: {device}{} planned; -v shows the table",
            bytes_text(memory.host_bytes)
        ));
        (self.report)(Level::Detail, &memory.to_string());
        if fit.budget.host.is_some() || fit.budget.device.is_some() {
            let limit = fit.host_limit.as_deref().unwrap_or("stated");
            let comparison = fit.budget.compare(memory);
            (self.report)(Level::Detail, &format!("within {comparison} ({limit})"));
        }
        Ok(())
    }

    /// Reports where the run computes and how many pairs there are.
    pub fn report_start(&self, backend: &dyn Backend, config: &TrainConfig) {
        let pairs = self.sources.len();
        let per_epoch = pairs as f64 / (config.batch_size * config.accum_iter) as f64;
        let (crop, stored) = (config.lq_size, self.sources.lq_size() as usize);
        let patches = if crop == stored {
            format!("patches of {stored} x {stored} LQ pixels")
        } else {
            format!(
                "crops of {crop} x {crop} out of stored patches of {stored} x {stored} LQ pixels"
            )
        };
        self.info(&format!(
            "data: {pairs} pairs, {patches}, {per_epoch:.1} iterations an epoch"
        ));
        self.info(&format!("computing on {}", backend.description()));
    }

    /// Removes what is left of an earlier run from the folder, or of the iterations after the state
    /// that the run continues from, and writes the configuration file.
    pub fn clear_folder(&self, config: &TrainConfig, start: &StartState) -> Result<()> {
        let options = self.options;
        if start.fresh {
            keeping::forget(&options.out, options.restart)?;
        }
        previews::cut_back(&options.out, start.state.head.iteration);
        if let Some(recipe) = config.degrade_recipe()? {
            let text = format!(
                "# The degradation recipe of this run (hash {:016x}).\n{}",
                recipe.hash(),
                recipe.canonical()
            );
            files::write_atomic(&options.out.join(RECIPE_FILE), |out| {
                Ok(out.write_all(text.as_bytes())?)
            })?;
        }
        if let Some(file) = &options.settings {
            let text = (file.0)(config);
            files::write_atomic(&options.out.join("config.yml"), |out| {
                Ok(out.write_all(text.as_bytes())?)
            })?;
        }
        Ok(())
    }

    /// The best network of earlier processes of this run, if its score can be compared with those
    /// to come.
    pub fn earlier_best(
        &self,
        start: &StartState,
        measured_on: Option<&MeasuredOn>,
    ) -> Option<BestNetwork> {
        if start.fresh {
            return None;
        }
        let best = BestNetwork::read(&self.options.out, start.state.head.iteration)?;
        match (&best.measured_on, measured_on) {
            (Some(before), Some(now)) if !before.same(now) => {
                self.info(&format!(
                    "the best network so far (iteration {}, PSNR-Y {:.3} dB) was measured on other images or with another border than now: {} \
                     images of {} with {} pixels left out at each edge; the search for the best one starts anew, and will replace it",
                    best.iteration, best.psnr_y, before.pairs, before.place, before.crop_border
                ));
                None
            }
            _ => Some(best),
        }
    }
}
