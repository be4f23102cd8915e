//! `paragon train`: flags to a training configuration and run options, one library call, a summary.

use super::data::{DataArgs, Window};
use super::flags::{print, print_json, tell};
use super::recipe::{KeyFlags, Layers, Machine, Training};
use anyhow::Result;
use paragon::config::{KEYS, Settings, Value, docs};
use paragon::loader::{Sources, window_advice};
use paragon::shard::reader::Io;
use paragon::support::progress::Progress;
use paragon::sys::stop_flag;
use paragon::train::{
    ConfigFile, RunOptions, RunSummary, TrainConfig, ValidationSet, duration_text, newest_state,
    train,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Exit code of a run that was stopped from outside.
pub const STOPPED: i32 = 130;
/// The value of `val.dataset` that turns validation off.
const NO_VALIDATION: &str = "none";

/// Train a network on a set of shards.
///
/// With nothing given but the shards, this is the author's Nano recipe. Every byte of memory is
/// printed before the first step. Ctrl-C, SIGTERM and a closed terminal save and stop. The same
/// command resumes from the newest checkpoint, and ends with the same bits as a run that was never
/// interrupted.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    layers: Layers,
    #[command(flatten)]
    flags: KeyFlags<Training>,
    /// Start over and delete an earlier run in the same folder: its states, networks, log, previews
    /// and curves
    #[arg(long, help_heading = "Output")]
    restart: bool,
    /// Print the summary as JSON on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The shuffle window. A resumed run keeps its window, because the order of samples depends on it.
fn window(data: &DataArgs, sources: &Sources, out: &Path, restart: bool) -> Result<Option<u64>> {
    let resumed = if restart || data.window != Window::Auto {
        None
    } else {
        newest_state(out)?.0
    };
    Ok(resumed.map_or_else(|| data.window(sources), |state| state.head.config.window))
}

/// Trains; exit code 130 when stopped from outside after saving.
pub fn run(args: &Args) -> Result<()> {
    let settings = args.layers.settings(&args.flags)?;
    let machine = Machine::new(&settings)?;
    let data = DataArgs::new(&settings)?;
    let sources = data.open()?;
    let mut config = settings.train_config(sources.scale() as usize, sources.crop() as usize)?;
    let out = run_folder(&settings, &config);
    config.window = window(&data, &sources, &out, args.restart)?;
    let io = tell_reading(&data, &sources, config.window);
    let stop = stop_flag(STOPPED)?;
    let validation = validation_images(&settings, &data);
    let effective = effective(&settings, &data, &config, &out, validation.as_deref());
    let options = RunOptions {
        out,
        threads: machine.threads,
        prefetch: machine.prefetch,
        io,
        on_corrupt: data.on_corrupt,
        checkpoint_every: settings.count("logger.save_checkpoint_freq")?,
        keep_states: settings.count("logger.keep_states")? as usize,
        keep_models: settings.count("logger.keep_models")? as usize,
        keep_every: settings.whole("logger.keep_every"),
        log_every: settings.count("logger.print_freq")?,
        validation,
        crop_border: settings
            .whole("val.crop_border")
            .map(|pixels| pixels as u32),
        validate_every: settings.count("val.val_freq")?,
        host_memory: machine.host_memory,
        recompute: machine.recompute,
        fit: machine.fit,
        restart: args.restart,
        pretrained: settings
            .path("path.pretrain_network_g")
            .map(|path| (path, settings.is_on("path.strict_load_g"))),
        settings: Some(effective),
        device: machine.device,
        precision: machine.precision,
        vram: machine.vram,
        stop: stop.clone(),
    };
    let net = &config.network;
    tell(format_args!(
        "{} x{}, {} iterations of {} x {} pairs",
        net.arch, net.scale, config.total_iter, config.accum_iter, config.batch_size
    ));
    let started = std::time::Instant::now();
    let bar = |total| Progress::bar_only("train", total, "it");
    let summary = train(sources, &config, &options, &|text| tell(text), &bar)?;
    let printed = if args.json {
        print_json(&summary)
    } else {
        print_summary(&summary, started.elapsed().as_secs_f64())
    };
    if !summary.finished && stop.load(Ordering::Relaxed) {
        // The run is saved. An error of printing is ignored: the terminal may have been closed.
        std::process::exit(STOPPED);
    }
    printed
}

/// Reports how the shards are read, and advice on the shuffle window if there is any.
fn tell_reading(data: &DataArgs, sources: &Sources, window: Option<u64>) -> Io {
    if let Some(advice) = window_advice(sources, window) {
        tell(format_args!("note: {advice}"));
    }
    let (io, why) = data.io(sources);
    tell(format_args!(
        "reading shards by {} ({why})",
        if io == Io::Mmap { "map" } else { "calls" }
    ));
    io
}

/// The folder of the run: `path.out`, or a folder in `runs` with the name of the run.
fn run_folder(settings: &Settings, config: &TrainConfig) -> PathBuf {
    let name = || {
        settings.text("name").map_or_else(
            || format!("{}_x{}", config.network.arch, config.network.scale),
            str::to_string,
        )
    };
    settings
        .path("path.out")
        .unwrap_or_else(|| PathBuf::from("runs").join(name()))
}

/// The images that the network is validated on: those of `val.dataset`, or the images held out from
/// the shards.
fn validation_images(settings: &Settings, data: &DataArgs) -> Option<PathBuf> {
    match settings.path("val.dataset") {
        Some(place) if place == Path::new(NO_VALIDATION) => None,
        Some(place) => Some(place),
        None => ValidationSet::beside(&data.shards).inspect(|place| {
            tell(format_args!(
                "{} was held out when the shards were made: validating on it (--val none turns that off)",
                place.display()
            ));
        }),
    }
}

/// The configuration in use, as a file that `--config` accepts: with absolute paths, and with the
/// values that the command chose itself.
fn effective(
    settings: &Settings,
    data: &DataArgs,
    config: &TrainConfig,
    out: &Path,
    validation: Option<&Path>,
) -> ConfigFile {
    let mut settings = settings.clone();
    let absolute =
        |path: &Path| Value::Path(std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()));
    settings.put("scale", Value::Whole(config.network.scale as u64));
    settings.put_network(&config.network);
    settings.put(
        "data.shards",
        Value::List(data.shards.iter().map(|path| absolute(path)).collect()),
    );
    settings.put("data.lq_size", Value::Whole(config.lq_size as u64));
    settings.put(
        "data.window",
        config
            .window
            .map_or(Value::Text("off".into()), Value::Whole),
    );
    settings.put("path.out", absolute(out));
    settings.put(
        "val.dataset",
        validation.map_or(Value::Path(NO_VALIDATION.into()), &absolute),
    );
    if let Some(path) = settings.path("path.pretrain_network_g") {
        settings.put("path.pretrain_network_g", absolute(&path));
    }
    let notes = unwritable(&settings);
    notes
        .iter()
        .for_each(|note| tell(format_args!("note: {note}")));
    let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    ConfigFile(Arc::new(move |chosen| {
        let mut settings = settings.clone();
        settings.put(
            "data.batch_size_per_gpu",
            Value::Whole(chosen.batch_size as u64),
        );
        settings.put("data.accum_iter", Value::Whole(chosen.accum_iter as u64));
        format!(
            "# All settings of this run; `paragon train --config` accepts this file.\n{notes}{}",
            docs::yaml(&settings, false)
        )
    }))
}

/// A note for each key whose path is not UTF-8, because a YAML file cannot hold such a path.
fn unwritable(settings: &Settings) -> Vec<String> {
    let is_text = |value: &Value| !matches!(value, Value::Path(path) if path.to_str().is_none());
    let all_text = |value: &Value| match value {
        Value::List(list) => list.iter().all(is_text),
        value => is_text(value),
    };
    let note = |key: &str| {
        format!(
            "the path of {key} is not UTF-8, so config.yml cannot hold it and `paragon train --config` will not find it; give it by its flag, or \
             rename it"
        )
    };
    KEYS.iter()
        .filter(|key| !all_text(settings.value(key.path)))
        .map(|key| note(key.path))
        .collect()
}

fn print_summary(s: &RunSummary, seconds: f64) -> Result<()> {
    if s.iteration == 0 {
        return print(format_args!(
            "stopped before the first iteration was done; nothing is saved"
        ));
    }
    let state = if s.finished { "done" } else { "stopped" };
    print(format_args!(
        "{state} at iteration {} after {}: loss {:.5}, {:.2} it/s",
        s.iteration,
        duration_text(seconds),
        s.loss,
        s.it_per_s
    ))?;
    let verdict = if s.data_wait > 0.05 {
        "loader-bound: more --loader-threads would help, or shards made with --codec raw"
    } else {
        "compute-bound"
    };
    print(format_args!(
        "data-wait {:.1}%, {} loader threads waited {:.1}% ({verdict})",
        100.0 * s.data_wait,
        s.loader_threads,
        100.0 * s.loader_wait
    ))?;
    if s.substituted > 0 {
        print(format_args!(
            "{} samples stood in for damaged records; `paragon shards verify` lists them",
            s.substituted
        ))?;
    }
    print(format_args!(
        "memory: {} anonymous at most, {} computed before the start",
        paragon::support::text::bytes_text(s.peak_anonymous),
        paragon::support::text::bytes_text(s.planned)
    ))?;
    if s.skipped > 0 {
        print(format_args!(
            "{} updates were skipped because loss or gradient was not finite",
            s.skipped
        ))?;
    }
    print(format_args!("network (EMA): {}", s.model.display()))?;
    print(format_args!("run folder:    {}", s.run.display()))
}
