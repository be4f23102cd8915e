//! Everything that happens before the first step: the folder, the state, the device, validation,
//! and a configuration whose memory fits. Depends on `start`, `fit` and the loader's bounds. It
//! promises that a run which is refused has changed nothing in its folder.

use super::keeping::MeasuredOn;
use super::start::{lock, report_changes, start_state};
use super::validation::Validation;
use super::{
    Budget, Choice, DevicePlace, Fit, Fitted, Opened, RunMemory, RunOptions, State, TrainConfig,
    keeping, validation_bytes,
};
use crate::backend::cpu::CpuOptions;
use crate::loader::quality::quality;
use crate::loader::{LoaderConfig, Sources, bound};
use crate::support::{files, lock::FolderLock};
use crate::sys;
use anyhow::{Result, ensure};

/// A run that is ready to compute.
pub(super) struct Prepared {
    /// Keeps other processes out of the run's folder.
    pub lock: FolderLock,
    /// The state to go on from.
    pub state: State,
    /// Whether `state` holds start values and not those of an earlier process.
    pub fresh: bool,
    /// The device, or the CPU.
    pub opened: Opened,
    /// The held-out images, if the run validates.
    pub validation: Option<Validation>,
    /// What scores will be measured on.
    pub measured_on: Option<MeasuredOn>,
    /// The configuration, with the chosen split of the iteration.
    pub config: TrainConfig,
    /// What was chosen so that the run fits.
    pub choice: Choice,
    /// The loader's configuration.
    pub loader: LoaderConfig,
    /// The memory of the run.
    pub memory: RunMemory,
}

/// Prepares a run: checks what was asked, locks the folder, reads the state, opens the device, loads
/// the validation images once, and fits everything into the memory there is.
///
/// # Errors
/// See [`super::train`].
pub(super) fn prepare(
    sources: &Sources,
    asked: &TrainConfig,
    options: &RunOptions,
    report: &dyn Fn(&str),
) -> Result<Prepared> {
    check_request(sources, asked)?;
    let lock = take_folder(options, report)?;
    let (state, fresh) = start_state(sources, asked, options, report)?;
    let opened = open_device(options, report)?;
    let mut validation = Validation::new(asked, options, &opened.place)?;
    if let Some(validation) = &validation {
        report_validation(validation, options, report);
    }
    let earlier = (!fresh).then_some(&state);
    let fitted = fit_memory(
        sources,
        asked,
        options,
        &opened,
        validation.as_ref(),
        earlier,
        state.head.iteration,
    )?;
    let Fitted {
        choice,
        config,
        memory,
        why,
    } = fitted.0;
    let loader = loader_config(
        &config,
        options,
        &opened.place,
        choice.slots,
        state.head.iteration,
    );
    why.iter().for_each(|why| report(why));
    report_changes(&state, fresh, &config, report);
    let measured_on = match &mut validation {
        Some(validation) => validation.check(options)?,
        None => None,
    };
    report(&format!("order: {}", quality(sources, &loader)?));
    report(&format!("memory, known before the first step\n{memory}"));
    if let Some(limit) = fitted.1 {
        report(&format!(
            "within {} ({})",
            limit.0.compare(&memory),
            limit.1
        ));
    }
    keeping::check_space(&config, options, state.head.iteration)?;
    Ok(Prepared {
        lock,
        state,
        fresh,
        opened,
        validation,
        measured_on,
        config,
        choice,
        loader,
        memory,
    })
}

/// Refuses a configuration that is wrong in itself, or for the scale of the shards.
fn check_request(sources: &Sources, config: &TrainConfig) -> Result<()> {
    config.check()?;
    let scale = sources.scale() as usize;
    ensure!(
        config.network.scale == scale,
        "the network has scale {} and the shards {scale}; they must agree",
        config.network.scale
    );
    Ok(())
}

/// Creates the run's folder, locks it, and removes what a killed process left half-written.
fn take_folder(options: &RunOptions, report: &dyn Fn(&str)) -> Result<FolderLock> {
    files::create_folder(&options.out)?;
    let lock = lock(&options.out, report)?;
    for folder in ["", "models", "states"] {
        // The lock proves that no process is writing these files any more.
        files::remove_partials(&options.out.join(folder));
    }
    Ok(lock)
}

/// Opens the device that was chosen, and reports a choice that was left to the program.
fn open_device(options: &RunOptions, report: &dyn Fn(&str)) -> Result<Opened> {
    let (opened, why) = Opened::new(
        options.device,
        options.precision,
        CpuOptions::new(options.threads),
        options.validation.is_some(),
    )?;
    why.iter().for_each(|why| report(why));
    if options.vram.is_some() && !opened.place.is_device() {
        report(
            "--vram bounds the memory of a GPU; this run computes on the CPU, where --host-memory bounds it",
        );
    }
    Ok(opened)
}

/// Reports what the run validates on, and the images that are unexpectedly left out.
fn report_validation(validation: &Validation, options: &RunOptions, report: &dyn Fn(&str)) {
    if let Some(place) = &options.validation {
        report(&format!(
            "validating every {} iterations on {}: {}",
            validation.every,
            place.display(),
            validation.held_out.text()
        ));
    }
    validation
        .held_out
        .left_out()
        .iter()
        .filter(|left| left.may_surprise())
        .for_each(|left| report(&format!("note: {left}")));
}

/// Chooses the split, the recomputation and the slots with which the run fits into memory. Also
/// returns the limit that was obeyed, with its name, if there is one.
fn fit_memory(
    sources: &Sources,
    asked: &TrainConfig,
    options: &RunOptions,
    opened: &Opened,
    validation: Option<&Validation>,
    earlier: Option<&State>,
    iteration: u64,
) -> Result<(Fitted, Option<(Budget, String)>)> {
    let stated = Budget {
        host: options.host_memory,
        device: options.vram,
    };
    let left = sys::memory_left();
    let fit = Fit {
        config: asked,
        place: opened.place,
        recompute: options.recompute,
        slots: options.prefetch.at(&opened.place).1,
        budget: stated.within(Budget {
            host: left.as_ref().map(|left| left.bytes),
            device: opened.vram,
        }),
        stated,
        host_limit: left
            .filter(|left| stated.host.is_none_or(|host| left.bytes < host))
            .map(|left| left.limit),
        may_split: options.fit,
        earlier: earlier.map(|state| (state.head.config.batch_size, state.head.config.accum_iter)),
        loader: &|config, slots| {
            bound(
                sources,
                &loader_config(config, options, &opened.place, slots, iteration),
            )
        },
        validation: validation
            .map(|v| validation_bytes(asked, v.largest))
            .transpose()?
            .unwrap_or(0),
    };
    let fitted = fit.choose()?;
    let bounded = fit.budget.host.is_some() || fit.budget.device.is_some();
    let limit = bounded.then(|| {
        let name = fit
            .host_limit
            .clone()
            .unwrap_or_else(|| "stated".to_string());
        (fit.budget, name)
    });
    Ok((fitted, limit))
}

/// The loader's configuration for a split of the iteration into micro-batches. Samples have running
/// numbers, so every split delivers the same ones.
fn loader_config(
    config: &TrainConfig,
    options: &RunOptions,
    place: &DevicePlace,
    slots: usize,
    iteration: u64,
) -> LoaderConfig {
    LoaderConfig {
        threads: options.prefetch.at(place).0,
        slots,
        hflip: config.use_hflip,
        rot: config.use_rot,
        start: iteration.saturating_mul(config.accum_iter as u64),
        window: config.window,
        io: options.io,
        on_corrupt: options.on_corrupt,
        ..LoaderConfig::new(config.batch_size, config.lq_size, config.seed)
    }
}
