//! What happens between the command and the first step: the device is opened, the images to
//! validate on are found, the memory is fitted and reported, the folder is made ready. Depends on
//! everything that a run uses. Promises that a run which is refused has changed nothing of an
//! earlier run in the same folder.

use super::cards;
use crate::backend::cpu::CpuOptions;
use crate::backend::cuda::Nccl;
use crate::backend::{Backend, CudaSizing};
use crate::degrade::Recipe;
use crate::loader::quality::quality;
use crate::loader::{LoaderConfig, Sources, Turns, bound};
use crate::model::Recompute;
use crate::plan::Precision;
use crate::ranks::{Exchange, Ranks};
use crate::support::files;
use crate::support::lock::FolderLock;
use crate::support::text::bytes_text;
use crate::sys::MemoryRoom;
use crate::train::keeping::{self, BestNetwork, MeasuredOn};
use crate::train::start::{self, StartState, report_resumed};
use crate::train::validation::Validation;
use crate::train::{
    DeviceChoice, DevicePlace, Fit, Fitted, Level, OpenedDevice, Report, RunBudget, RunOptions,
    State, TrainConfig, Travel, ValidationMemory, previews,
};
use anyhow::{Result, ensure};
use std::io::{Read, Write};
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
    /// This process as one of several ranks.
    pub ranks: Option<&'a Ranks>,
    /// The memory that the host had left before any rank allocated its own.
    pub left: Option<MemoryRoom>,
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
/// split of an iteration gets the same ones, and ranks take its micro-batches in turns.
fn loader_config(
    config: &TrainConfig,
    options: &RunOptions,
    iteration: u64,
    degrade: Option<Arc<Recipe>>,
    ranks: Option<&Ranks>,
) -> LoaderConfig {
    let (rank, count) = ranks.map_or((0, 1), |ranks| (ranks.rank(), ranks.ranks()));
    LoaderConfig {
        hflip: config.use_hflip,
        rot: config.use_rot,
        start: iteration.saturating_mul((config.accum_iter / count) as u64),
        rank: rank as u64,
        ranks: count as u64,
        turns: Turns::Batches,
        window: config.window,
        io: options.io,
        on_corrupt: options.on_corrupt,
        degrade,
        ..LoaderConfig::new(config.batch_size, config.lq_size, config.seed)
    }
}

/// Digest of the program's file: two builds of one version may give other bits.
fn program_digest() -> String {
    let mut digest = crc32fast::Hasher::new();
    let read = || -> std::io::Result<()> {
        let mut file = std::fs::File::open(std::env::current_exe()?)?;
        let mut part = vec![0; 1 << 20];
        loop {
            match file.read(&mut part)? {
                0 => return Ok(()),
                length => digest.update(&part[..length]),
            }
        }
    };
    match { read }() {
        Ok(()) => format!("{:08x}", digest.finalize()),
        Err(_) => "not readable".into(),
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
        self.config.check_ranks(self.count())
    }

    /// Number of ranks.
    fn count(&self) -> usize {
        self.ranks.map_or(1, Exchange::ranks)
    }

    /// Whether this process reads and writes the folder of the run.
    pub fn writes(&self) -> bool {
        self.ranks.is_none_or(Ranks::is_first)
    }

    /// Refuses ranks with another program, configuration, other shards or another kind of device, and
    /// says how many there are. Returns NCCL where gradients go from card to card.
    pub fn agree(&self, opened: &OpenedDevice) -> Result<Option<Arc<Nccl>>> {
        let Some(ranks) = self.ranks else {
            return Ok(None);
        };
        ranks.agree(&self.facts(opened))?;
        cards::check_apart(ranks, opened)?;
        let each = self.config.accum_iter / ranks.ranks();
        self.info(&format!(
            "ranks: {} on {} host{}, each with {each} of the {} micro-batches of an iteration; {}",
            ranks.ranks(),
            ranks.hosts(),
            if ranks.hosts() == 1 { "" } else { "s" },
            self.config.accum_iter,
            ranks.library()
        ));
        // some launchers name a process that was killed by its number only
        for rank in 0..ranks.ranks() {
            self.info(&format!("  {}", ranks.name(rank)));
        }
        cards::nccl(ranks, opened, self.report)
    }

    /// What has to be equal on all ranks, for equal bits.
    fn facts(&self, opened: &OpenedDevice) -> Vec<(String, String)> {
        let place = &opened.place;
        let unit = place.bf16_unit();
        let (computes, how) = cards::kind(opened);
        let mut facts: Vec<(String, String)> = [
            ("version", env!("CARGO_PKG_VERSION").to_string()),
            ("program file", program_digest()),
            ("shards", format!("{:016x}", self.sources.fingerprint())),
            ("device", computes),
            ("instruction set", how),
            ("precision", place.precision().to_string()),
            (
                "bf16 unit",
                unit.map_or_else(|| "none".into(), |unit| unit.to_string()),
            ),
            (
                "--precision",
                self.options
                    .precision
                    .map_or_else(|| "auto".into(), |p| p.to_string()),
            ),
            ("--on-corrupt", format!("{:?}", self.options.on_corrupt)),
            ("--iterations", self.config.total_iter.to_string()),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into();
        let settings = self.config.recipe_settings().into_iter();
        facts.extend(settings.map(|setting| (setting.flag, setting.value)));
        facts
    }

    /// The state that the run starts from; rank 0 reads it.
    pub fn start_state(&self) -> Result<StartState> {
        let read = || start::start_state(self.sources, self.config, self.options, self.report);
        let Some(ranks) = self.ranks else {
            return read();
        };
        let own = ranks.is_first().then(read).transpose()?;
        let bytes = own.as_ref().map(|own| own.state.to_bytes()).transpose()?;
        let bytes = ranks.bytes_of_first(&bytes.unwrap_or_default())?;
        let fresh = ranks.of_first(|| Ok(own.as_ref().is_some_and(|own| own.fresh)))?;
        match own {
            Some(own) => Ok(own),
            None => Ok(StartState {
                state: State::from_bytes(&bytes)?,
                fresh,
            }),
        }
    }

    /// Locks the folder of the run, creating it if needed, and removes what a killed process left
    /// half-written there; the lock shows that no such process is running.
    pub fn claim_folder(&self) -> Result<ClaimedFolder> {
        if !self.writes() {
            return Ok(ClaimedFolder {
                lock: None,
                created: Vec::new(),
            });
        }
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
        let device = match self.ranks {
            Some(ranks) => cards::of_rank(options.device, ranks)?,
            None => options.device,
        };
        let (opened, reason) = OpenedDevice::new(
            device,
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
        place.plan(&smallest, Recompute::Full, 0, &Travel::ALONE)?;
        Ok(())
    }

    /// Finds the images to validate on; `None` without validation.
    pub fn open_validation(&self, place: &DevicePlace) -> Result<Option<Validation>> {
        if !self.writes() {
            return Ok(None);
        }
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
        travel: Travel,
    ) -> Result<Planned> {
        let (options, place) = (self.options, opened.place);
        let StartState { state, fresh } = start;
        // Rank 0 validates, so what fits there fits the others; it decides the split.
        let config = &match self.ranks.filter(|_| !self.writes()) {
            Some(ranks) => {
                let (batch_size, accum_iter) = ranks.of_first(|| Ok((0, 0)))?;
                TrainConfig {
                    batch_size,
                    accum_iter,
                    ..self.config.clone()
                }
            }
            None => self.config.clone(),
        };
        let prefetch = match self.ranks {
            Some(ranks) => options.prefetch.among_ranks(&place, ranks.threads()),
            None => options.prefetch,
        };
        let (threads, slots) = prefetch.at(&place);
        let degrade = self.config.degrade_recipe()?;
        let loader_of = |config: &TrainConfig, slots: usize| LoaderConfig {
            threads,
            slots,
            ..loader_config(
                config,
                options,
                state.head.iteration,
                degrade.clone(),
                self.ranks,
            )
        };
        let stated = RunBudget {
            host: options.host_memory,
            device: options.vram,
        };
        let left = self.left_for_this_rank();
        let fit = Fit {
            config,
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
            travel,
        };
        let fitted = fit.choose()?;
        let split = (fitted.choice.batch_size, fitted.choice.accum_iter);
        if let Some(ranks) = self.ranks.filter(|_| self.writes()) {
            ranks.of_first(|| Ok(split))?;
        }
        ensure!(
            self.writes() || split == (config.batch_size, config.accum_iter),
            "rank 0 splits an iteration into {} x {} patches, which does not fit here; give all hosts the same --host-memory",
            config.accum_iter,
            config.batch_size
        );
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

    /// The memory that this rank may take: that of the host is shared by its ranks.
    fn left_for_this_rank(&self) -> Option<MemoryRoom> {
        let mut left = self.left.clone()?;
        let count = self.ranks.map_or(1, Ranks::on_this_host);
        if count > 1 {
            left.bytes /= count as u64;
            left.limit = format!("{}, shared by {count} ranks", left.limit);
        }
        Some(left)
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
        if !self.writes() {
            return Ok(());
        }
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
        if start.fresh || !self.writes() {
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
