//! `paragon train`: flags to a training configuration and run options, one library call, a summary.

mod output;
mod summary;

use super::WRONG_USAGE;
use super::data::{DataArgs, Window};
use super::flags::{self, print_json};
use super::recipe::{KeyFlags, Layers, Machine, Training, Unhonoured};
use anyhow::{Result, anyhow, bail, ensure};
use output::Output;
use paragon::config::{KEYS, Settings, Value, docs};
use paragon::loader::{Sources, window_advice};
use paragon::ranks::{Exchange, LEAST_TIMEOUT, MOST_TIMEOUT, RankError, Ranks, USUAL_TIMEOUT};
use paragon::shard::reader::Io;
use paragon::support::text::one_line;
use paragon::sys::stop_flag;
use paragon::train::{
    ConfigFile, Decay, Level, RECIPE_FILE, RunOptions, StateHead, TrainConfig, ValidationSet,
    newest_state, train_as_rank,
};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use summary::print_summary;

/// Exit code of a run that was stopped from outside.
pub const STOPPED: i32 = 130;
/// How long a rank with wrong usage waits for the others, seconds: they join as soon as their
/// launcher has started them.
const REFUSAL_WAIT: u64 = 30;
/// The key of the number of micro-batches in an iteration.
const ACCUMULATION: &str = "data.accum_iter";
/// The value of `val.dataset` that turns validation off.
const NO_VALIDATION: &str = "none";

/// Train a network on a set of shards.
///
/// With nothing given but the shards, this is the author's Nano recipe. Ctrl-C, SIGTERM and a closed
/// terminal save and stop. The same command resumes from the newest checkpoint, and ends with the
/// same bits as a run that was never interrupted. A larger --iterations extends a run. A command
/// with another recipe does not go on with an earlier run unless --continue is given.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    layers: Layers,
    #[command(flatten)]
    flags: KeyFlags<Training>,
    /// Go on with the run in the folder although the recipe has changed
    #[arg(long = "continue", help_heading = "Output", conflicts_with = "restart")]
    continue_run: bool,
    /// Start over and delete an earlier run in the same folder: its states, networks, log, previews
    /// and curves
    #[arg(long, help_heading = "Output")]
    restart: bool,
    /// As one of several ranks: the longest time in seconds without a word from another rank, after
    /// which all of them end (docs/clusters.md)
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = USUAL_TIMEOUT,
        value_parser = clap::value_parser!(u64).range(LEAST_TIMEOUT..=MOST_TIMEOUT),
        help_heading = "Machine"
    )]
    rank_timeout: u64,
    /// Print more: the table of the memory, how shards are read, every ignored key of an option file
    #[arg(long, short, help_heading = "Output", conflicts_with = "quiet")]
    verbose: bool,
    /// Print only warnings, errors and the result
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
    /// Print the summary as JSON on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Trains, as one of several ranks if a launcher has started them; exit code 130 when stopped from
/// outside after saving.
pub fn run(args: &Args) -> Result<()> {
    let ranks = Ranks::join(args.rank_timeout)?;
    if ranks.as_ref().is_some_and(|ranks| !ranks.is_first()) {
        flags::silence();
    }
    let outcome = run_as(args, ranks.as_ref());
    let stopped = match ranks {
        Some(ranks) => leave(&ranks, outcome),
        None => outcome?,
    };
    if stopped {
        // The run is saved.
        std::process::exit(STOPPED);
    }
    Ok(())
}

/// Refuses a command that cannot be understood. One of several ranks joins the others for it, because
/// some launchers leave them waiting for a rank that has ended before MPI was started. `show` prints
/// the error, whose `text` is said to the others; if rank 0 has the same error, it alone prints.
pub fn refuse(text: &str, show: impl FnOnce()) {
    // Where the others cannot be joined, the command is still what has to be corrected first.
    let Ok(Some(ranks)) = Ranks::join(REFUSAL_WAIT) else {
        return show();
    };
    if ranks.fail(&anyhow!("{text}"), WRONG_USAGE) {
        if !ranks.is_first() {
            let name = ranks.name(ranks.rank());
            flags::tell_error(format_args!("the command of {name} cannot be understood:"));
        }
        show();
    }
    let _ = ranks.leave(); // what another rank may have to say, it says itself
}

/// Ends this rank together with the others. Returns whether the run was stopped; after an error the
/// process ends here.
fn leave(ranks: &Ranks, outcome: Result<bool>) -> bool {
    let outcome = outcome.and_then(|stopped| ranks.leave().map(|()| stopped));
    match outcome {
        Ok(stopped) => stopped,
        Err(error) => {
            let code = RankError::exit_code(&error);
            if ranks.fail(&error, code) {
                let own = RankError::of(&error).is_none();
                let who = if own && !ranks.is_first() {
                    format!("{} failed: ", ranks.name(ranks.rank()))
                } else {
                    String::new()
                };
                flags::tell_error(format_args!("error: {who}{error:#}"));
            }
            let _ = ranks.leave();
            std::process::exit(code.into())
        }
    }
}

/// Trains as one of several ranks, or alone. Returns whether the run was stopped from outside.
fn run_as(args: &Args, ranks: Option<&Ranks>) -> Result<bool> {
    let output = &Output::new(args.verbose, args.quiet);
    let mut settings = args
        .layers
        .settings(&args.flags, Unhonoured::new(args.verbose, args.quiet))?;
    choose_place(args, &mut settings)?;
    let machine = Machine::new(&settings)?;
    let data = DataArgs::new(&settings)?;
    let sources = data.open()?;
    let (scale, crop) = (sources.scale() as usize, sources.crop() as usize);
    let out = run_folder(&settings, scale)?;
    let read_stored = || {
        let stored = stored_run(args, &out)?;
        if let Some(head) = &stored {
            check_pretrained(&settings, &out, head)?;
        }
        Ok(stored)
    };
    let stored = match ranks {
        Some(ranks) => ranks.of_first(read_stored)?,
        None => read_stored()?,
    };
    if let Some(head) = &stored {
        keep_choices(args, &mut settings, &head.config, ranks.is_some());
    }
    let mut config = settings.train_config(scale, crop)?;
    if *settings.value(ACCUMULATION) == Value::Null {
        config.accum_iter = ranks.map_or(1, Exchange::ranks);
    }
    let degrade = data.degrade(&sources)?;
    config.degrade = degrade
        .as_ref()
        .map(|recipe| recipe.canonical().to_string());
    config.window = match &stored {
        Some(head) if data.window == Window::Auto => head.config.window,
        _ => data.window(&sources),
    };
    if let Some(recipe) = &degrade {
        output.info(format_args!(
            "making the LQ of every sample by the recipe {} ({:016x})",
            one_line(recipe.name()),
            recipe.hash()
        ));
    }
    let io = tell_reading(output, &data, &sources, config.window);
    // Launchers, schedulers and terminals signal a rank one after the other for one stop.
    let grace = Duration::from_secs(if ranks.is_some() { 2 } else { 0 });
    let stop = stop_flag(STOPPED, grace)?;
    if let Some(ranks) = ranks {
        ranks.share_stop(stop.clone());
    }
    let validation = validation_images(output, &settings, &data);
    let effective = effective(
        output,
        &settings,
        &data,
        &config,
        &out,
        validation.as_deref(),
    );
    let options = RunOptions {
        out: out.clone(),
        threads: match (machine.threads, ranks) {
            (0, Some(ranks)) => ranks.threads(),
            (threads, _) => threads,
        },
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
        continue_changed: args.continue_run,
        pretrained: settings
            .path("path.pretrain_network_g")
            .map(|path| (path, settings.is_on("path.strict_load_g"))),
        settings: Some(effective),
        milestones_from: settings.place_in_file("train.scheduler.milestones"),
        device: machine.device,
        precision: machine.precision,
        vram: machine.vram,
        stop: stop.clone(),
    };
    output.info(title(&config, &out));
    let started = std::time::Instant::now();
    let bar = |total| output.progress(total, &out);
    let report = |level: Level, text: &str| output.report(level, text);
    let summary = train_as_rank(ranks, sources, &config, &options, &report, &bar)?;
    let stopped = !summary.finished && stop.load(Ordering::Relaxed);
    if flags::is_silent() {
        return Ok(stopped);
    }
    let printed = if args.json {
        print_json(&summary)
    } else {
        print_summary(
            &summary,
            &config,
            started.elapsed().as_secs_f64(),
            args.quiet,
        )
    };
    super::report::renew(&out);
    // For a run that was stopped, an error of printing is ignored: the terminal may have been closed.
    if stopped {
        return Ok(true);
    }
    printed.map(|()| false)
}

/// `--name` on the command line wins over the folder that a file names, such as the `config.yml` of
/// another run.
fn choose_place(args: &Args, settings: &mut Settings) -> Result<()> {
    if args.flags.gives("name") {
        ensure!(
            !args.flags.gives("path.out"),
            "--name and --out both choose the folder of the run; give one of them"
        );
        settings.put("path.out", Value::Null);
    }
    Ok(())
}

/// The folder of the run: `path.out`, or a folder in `runs` with the name of the run.
fn run_folder(settings: &Settings, scale: usize) -> Result<PathBuf> {
    if let Some(out) = settings.path("path.out") {
        return Ok(out);
    }
    let name = match settings.text("name") {
        Some(name) => name.to_string(),
        None => format!("{}_x{scale}", settings.network(scale)?.arch),
    };
    let inside = Path::new(&name)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    ensure!(
        inside && !name.is_empty(),
        "'{name}' is no name of a run, which is a folder in runs; give a folder anywhere else with --out"
    );
    Ok(PathBuf::from("runs").join(name))
}

/// The newest state of an earlier run in the folder, apart from its weights.
fn stored_run(args: &Args, out: &Path) -> Result<Option<StateHead>> {
    if args.restart {
        return Ok(None);
    }
    Ok(newest_state(out)?.0.map(|state| state.head))
}

/// Refuses start values for a run that exists, unless it began from the same file: then this is the
/// same command again.
fn check_pretrained(settings: &Settings, out: &Path, head: &StateHead) -> Result<()> {
    let Some(wanted) = settings.path("path.pretrain_network_g") else {
        return Ok(());
    };
    let wanted = std::path::absolute(&wanted).unwrap_or(wanted);
    let mut before = Settings::default();
    let began = std::fs::read(out.join("config.yml"))
        .ok()
        .and_then(|text| before.take(&text).ok())
        .and_then(|_| before.path("path.pretrain_network_g"));
    // config.yml cannot hold a path that is not UTF-8.
    if began.as_ref() == Some(&wanted) || wanted.to_str().is_none() {
        return Ok(());
    }
    let from = match &began {
        Some(file) => format!("from {}", file.display()),
        None => "from the network's start values".to_string(),
    };
    bail!(
        "{} holds a run of {} iterations that began {from}, so --pretrain has nothing to do there\n  \
         --name NEW   begins a new run from {}, in runs/NEW (or --out DIR)\n  \
         without --pretrain that run goes on from its own state; --restart deletes it and begins again",
        out.display(),
        head.iteration,
        wanted.display()
    )
}

/// A resumed run keeps what was chosen for its first length where the user gives nothing: warm-up,
/// milestones, and what a preset derives from the length.
fn keep_choices(args: &Args, settings: &mut Settings, stored: &TrainConfig, is_rank: bool) {
    let total = settings.whole("train.total_iter").unwrap_or_default();
    if let (Some(preset), Some(network)) = (args.layers.preset, settings.known_network()) {
        for (path, value) in preset.values(&network, total) {
            let kept = match path.as_str() {
                "train.warmup_iter" => Value::Whole(stored.schedule.warmup),
                "train.ema_decay" => Value::Number(stored.ema_decay),
                _ => continue,
            };
            if *settings.value(&path) == value {
                settings.put(&path, kept);
            }
        }
    }
    if *settings.value("train.warmup_iter") == Value::Null {
        settings.put("train.warmup_iter", Value::Whole(stored.schedule.warmup));
    }
    if *settings.value(ACCUMULATION) == Value::Null {
        // The same samples in an iteration, whatever the number of ranks. A process that is alone and
        // asks for another batch is asked what it means.
        let batch = settings.whole("data.batch_size_per_gpu").unwrap_or(1);
        if is_rank || batch == stored.batch_size as u64 {
            let micro_batches = (stored.effective_batch() as u64 / batch).max(1);
            settings.put(ACCUMULATION, Value::Whole(micro_batches));
        }
    }
    if let Decay::MultiStep { milestones, .. } = &stored.schedule.decay
        && *settings.value("train.scheduler.milestones") == Value::Null
    {
        settings.put("train.scheduler.milestones", wholes(milestones));
    }
}

fn wholes(list: &[u64]) -> Value {
    Value::List(list.iter().map(|n| Value::Whole(*n)).collect())
}

/// `Nano x2 (paragonsr2_realtime), 300 iterations, batch 16, in runs/try1`
fn title(config: &TrainConfig, out: &Path) -> String {
    let net = &config.network;
    let short = paragon::model::known_network(&net.arch)
        .and_then(|known| known.aliases.first().copied())
        .filter(|alias| alias.len() < net.arch.len());
    let name = match short {
        Some(alias) => {
            let (first, rest) = alias.split_at(alias.chars().next().map_or(0, char::len_utf8));
            format!(
                "{}{rest} x{} ({})",
                first.to_uppercase(),
                net.scale,
                net.arch
            )
        }
        None => format!("{} x{}", net.arch, net.scale),
    };
    let batch = if config.accum_iter == 1 {
        format!("batch {}", config.batch_size)
    } else {
        format!("batch {} x {}", config.accum_iter, config.batch_size)
    };
    format!(
        "{name}, {} iterations, {batch}, in {}",
        config.total_iter,
        out.display()
    )
}

/// Reports how the shards are read, and advice on the shuffle window if there is any.
fn tell_reading(output: &Output, data: &DataArgs, sources: &Sources, window: Option<u64>) -> Io {
    if let Some(advice) = window_advice(sources, window) {
        output.report(Level::Warning, &format!("note: {advice}"));
    }
    let (io, why) = data.io(sources);
    let how = if io == Io::Mmap {
        "from memory (mmap)"
    } else {
        "with read calls (pread)"
    };
    output.report(Level::Detail, &format!("reading shards {how}: {why}"));
    io
}

/// The images that the network is validated on: those of `val.dataset`, or the images held out from
/// the shards.
fn validation_images(output: &Output, settings: &Settings, data: &DataArgs) -> Option<PathBuf> {
    match settings.path("val.dataset") {
        Some(place) if place == Path::new(NO_VALIDATION) => None,
        Some(place) => Some(place),
        None => ValidationSet::beside(&data.shards).inspect(|place| {
            output.info(format_args!(
                "{} was held out when the shards were made: validating on it (--val none turns that off)",
                place.display()
            ));
        }),
    }
}

/// The configuration in use, as a file that `--config` accepts: with absolute paths, and with the
/// values that the command chose itself.
fn effective(
    output: &Output,
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
    settings.put("train.warmup_iter", Value::Whole(config.schedule.warmup));
    if let Decay::MultiStep { milestones, .. } = &config.schedule.decay {
        settings.put("train.scheduler.milestones", wholes(milestones));
    }
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
    if config.degrade.is_some() {
        // the recipe is kept with the run: a file or a preset may change
        let kept = out.join(RECIPE_FILE);
        let kept = std::path::absolute(&kept).unwrap_or(kept);
        settings.put("data.degrade", Value::Text(kept.display().to_string()));
    }
    let notes = unwritable(&settings);
    notes
        .iter()
        .for_each(|note| output.report(Level::Warning, &format!("note: {note}")));
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
