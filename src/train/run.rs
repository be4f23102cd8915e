//! The training loop: shards through the ring into the plan, checkpoints, log, validation. Depends
//! on everything upstream of it in the data flow. It promises that a run killed at any moment and
//! started again ends in the same bits as an unbroken one, and that its memory was fitted, printed,
//! and refused if too much, before the first step.

use super::keeping::MeasuredOn;
use super::start::{lock, start_state, tell_changes};
use super::validation::{Validation, ValidationOutcome};
use super::{
    BestNetwork, Fit, Fitted, Log, LogLine, LossScale, OpenLine, OpenedDevice, RunBudget,
    RunMemory, RunOptions, RunSummary, State, TrainConfig,
};
use super::{PendingLine, ema_decay, keeping, list_states, previews, state_path, validation_bytes};
use crate::backend::cpu::CpuOptions;
use crate::backend::{Backend, BatchView, Scalars, read_floats, write_floats};
use crate::loader::quality::quality;
use crate::loader::{Loader, LoaderConfig, LoaderStats, Sources, bound};
use crate::model::write_model;
use crate::plan::{BufferId, Precision};
use crate::support::failure::system_cause;
use crate::support::lock::FolderLock;
use crate::support::progress::Progress;
use crate::support::text::bytes_text;
use crate::{inference::eval, support::files, sys};
use anyhow::{Result, ensure};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Updates that may be skipped in a row before a run gives up.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;
/// Between two plain lines where there is no terminal: a log line every few milliseconds is for the
/// file, not for people.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// The numbers of a run that are neither configuration nor state.
struct Meter {
    started: Instant,
    /// As `started`, with the time of validations in it, in which the loader's threads wait too.
    begun: Instant,
    /// Since the last log line.
    line_started: Instant,
    line_iterations: u64,
    line_wait: f64,
    waited: f64,
    peak: u64,
    last_plain: Option<Instant>,
}

impl Meter {
    fn new() -> Meter {
        let now = Instant::now();
        Meter {
            started: now,
            begun: now,
            line_started: now,
            line_iterations: 0,
            line_wait: 0.0,
            waited: 0.0,
            peak: 0,
            last_plain: None,
        }
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

/// Trains; resumes where the folder holds an earlier state of the same run.
///
/// # Errors
/// Wrong configuration, images to validate on that cannot be measured, too little memory, damaged
/// shards, a full disk, a folder that is taken away under way, or a loss that is not finite ten
/// times in a row. In every case the last good checkpoint stays.
pub fn train(
    sources: Arc<Sources>,
    config: &TrainConfig,
    options: &RunOptions,
    report: &dyn Fn(&str),
) -> Result<RunSummary> {
    config.check()?;
    let scale = sources.scale() as usize;
    ensure!(
        config.network.scale == scale,
        "the network has scale {} and the shards {scale}; they must agree",
        config.network.scale
    );
    files::create_folder(&options.out)?;
    let lock = lock(&options.out, report)?;
    for folder in ["", "models", "states"] {
        files::remove_partials(&options.out.join(folder)); // left by a killed process; the lock says it is gone
    }
    let (state, fresh) = start_state(&sources, config, options, report)?;

    let cpu = CpuOptions::new(options.threads);
    let (opened, why) = OpenedDevice::new(
        options.device,
        options.precision,
        cpu,
        options.validation.is_some(),
    )?;
    why.iter().for_each(|why| report(why));
    let place = opened.place;
    if options.vram.is_some() && !place.is_device() {
        report(
            "--vram bounds the memory of a GPU; this run computes on the CPU, where --host-memory bounds it",
        );
    }
    let mut validation = Validation::new(config, options, &place)?;
    if let (Some(v), Some(place)) = (&validation, &options.validation) {
        report(&format!(
            "validating every {} iterations on {}: {}",
            v.every,
            place.display(),
            v.held_out.text()
        ));
        v.held_out
            .left_out()
            .iter()
            .filter(|left| left.may_surprise())
            .for_each(|left| report(&format!("note: {left}")));
    }
    let (loader_threads, slots) = options.prefetch.at(&place);
    let loader_of = |config: &TrainConfig, slots: usize| {
        loader_config(config, options, loader_threads, slots, state.head.iteration)
    };
    let stated = RunBudget {
        host: options.host_memory,
        device: options.vram,
    };
    let left = sys::memory_left();
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
        earlier: (!fresh).then_some((state.head.config.batch_size, state.head.config.accum_iter)),
        loader: &|config, slots| bound(&sources, &loader_of(config, slots)),
        validation: validation
            .as_ref()
            .map(|v| validation_bytes(config, v.largest))
            .transpose()?
            .unwrap_or(0),
    };
    let Fitted {
        choice,
        config,
        memory,
        why,
    } = fit.choose()?;
    let (config, loader_config) = (&config, loader_of(&config, choice.slots));
    why.iter().for_each(|why| report(why));
    tell_changes(&state, fresh, config, report);
    let measured_on = match &mut validation {
        Some(validation) => validation.check(options)?,
        None => None,
    };
    report(&format!("order: {}", quality(&sources, &loader_config)?));
    report(&format!("memory, known before the first step\n{memory}"));
    if fit.budget.host.is_some() || fit.budget.device.is_some() {
        let limit = fit.host_limit.as_deref().unwrap_or("stated");
        report(&format!("within {} ({limit})", fit.budget.compare(&memory)));
    }
    keeping::check_space(config, options, state.head.iteration)?;
    let plan = place.plan(config, choice.recompute, validation.is_some())?;
    if let Some(validation) = &mut validation {
        validation.fit_tiles(config, &plan)?;
    }
    let ports = plan.ports;
    let mut backend = opened.backend(plan)?;
    report(&format!(
        "{}; {}",
        backend.description(),
        data_text(&sources, config)
    ));
    let vectors: Vec<BufferId> = [ports.parameters, ports.moment1, ports.moment2, ports.ema]
        .into_iter()
        .flatten()
        .collect();
    for (&id, values) in vectors.iter().zip(&state.vectors) {
        write_floats(backend.as_mut(), id, values)?;
    }
    if fresh {
        // only now: a command that is refused must not have cost anybody a run
        keeping::forget(&options.out, options.restart)?;
    }
    previews::cut_back(&options.out, state.head.iteration);
    if let Some(file) = &options.settings {
        let text = (file.0)(config);
        files::write_atomic(&options.out.join("config.yml"), |out| {
            Ok(out.write_all(text.as_bytes())?)
        })?;
    }
    let best = if fresh {
        None
    } else {
        earlier_best(
            &options.out,
            state.head.iteration,
            measured_on.as_ref(),
            report,
        )
    };
    let pending = state.head.pending_line;
    let mut run = Run {
        config,
        options,
        data: sources.fingerprint(),
        loader_threads,
        lock,
        // a line that is still to be written is no part of the log yet
        log: Log::open(
            &options.out,
            state
                .head
                .iteration
                .saturating_sub(u64::from(pending.is_some())),
        )?,
        iteration: state.head.iteration,
        updates: state.head.updates,
        open_line: state.head.open_line,
        pending,
        lr: pending.map_or(config.schedule.lr(state.head.iteration.max(1)), |pending| {
            pending.lr
        }),
        skipped_in_a_row: state.head.skipped_in_a_row,
        seconds_before: 0.0,
        vectors,
        sizes: std::array::from_fn(|i| state.vectors[i].len()),
        meter: Meter::new(),
        saved: if fresh {
            None
        } else {
            Some(state.head.iteration)
        },
        loss_scale: (place.precision() == Precision::Fp16).then_some(state.head.loss_scale),
        unread: false,
        best,
        measured_on,
        best_network: None,
    };
    drop(state);
    run.seconds_before = run.log.seconds();
    if run.saved.is_some() {
        // a process killed between its last state and this would leave a file too many for good
        keeping::drop_surplus(
            &options.out,
            run.iteration,
            options.keep_models,
            options.keep_every,
        );
    }
    if run.iteration >= config.total_iter && run.pending.is_none() {
        report(&format!(
            "this run is finished: {} of {} iterations are done; raise --iterations to go on",
            run.iteration, config.total_iter
        ));
        return run.summary(true, &memory, &LoaderStats::default());
    }
    let mut loader = Loader::start_in(sources.clone(), loader_config, &|bytes| {
        backend.allocate(bytes)
    })?;
    let progress = Progress::bar_only("train", config.total_iter, "it");
    progress.advance(run.iteration);
    run.meter = Meter::new();
    let result = run.train(
        backend.as_mut(),
        &mut loader,
        validation.as_mut(),
        &progress,
    );
    progress.finish();
    let finished = match result {
        Ok(finished) => finished,
        Err(error) => {
            let kept = match run.saved {
                Some(iteration) => format!("the checkpoint of iteration {iteration} is kept"),
                None => "no checkpoint had been saved".to_string(),
            };
            return Err(error.context(format!(
                "training stopped at iteration {}; {kept}",
                run.iteration
            )));
        }
    };
    if let Err(error) = run.log.draw(&options.out) {
        report(&format!(
            "warning: {error:#}; the curves can be drawn later with `paragon report`"
        ));
    }
    run.summary(finished, &memory, &loader.stats())
}

/// What the loader delivers for a split of the iteration. Samples are numbered through, so every
/// split delivers the same ones.
fn loader_config(
    config: &TrainConfig,
    options: &RunOptions,
    threads: usize,
    slots: usize,
    iteration: u64,
) -> LoaderConfig {
    LoaderConfig {
        threads,
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

/// The best network of the processes before, where its score can be compared with those to come.
fn earlier_best(
    run: &Path,
    iteration: u64,
    measured_on: Option<&MeasuredOn>,
    report: &dyn Fn(&str),
) -> Option<BestNetwork> {
    let best = BestNetwork::read(run, iteration)?;
    match (&best.measured_on, measured_on) {
        (Some(before), Some(now)) if !before.same(now) => {
            report(&format!(
                "the best network so far (iteration {}, PSNR-Y {:.3} dB) was measured on other images or with another border than now: {} \
                 images of {} with {} pixels left out at each edge; the best one is looked for anew, and takes its place",
                best.iteration, best.psnr_y, before.pairs, before.place, before.crop_border
            ));
            None
        }
        _ => Some(best),
    }
}

fn data_text(sources: &Sources, config: &TrainConfig) -> String {
    let per_epoch = sources.len() as f64 / (config.batch_size * config.accum_iter) as f64;
    format!(
        "{} pairs, LQ {} of {} stored, {per_epoch:.1} iterations an epoch",
        sources.len(),
        config.lq_size,
        sources.lq_size()
    )
}

struct Run<'a> {
    config: &'a TrainConfig,
    options: &'a RunOptions,
    /// Fingerprint of the sets of shards.
    data: u64,
    loader_threads: usize,
    lock: FolderLock,
    log: Log,
    iteration: u64,
    updates: u64,
    open_line: OpenLine,
    /// Where the log line of this iteration is due and not written: what it needs of the last
    /// update.
    pending: Option<PendingLine>,
    /// Learning rate of the last iteration.
    lr: f64,
    /// Updates skipped up to this iteration, without one that was not.
    skipped_in_a_row: u64,
    /// Seconds of the processes before this one.
    seconds_before: f64,
    /// parameters, first moment, second moment, EMA
    vectors: Vec<BufferId>,
    sizes: [usize; 4],
    meter: Meter,
    /// Iteration of the newest state on disk.
    saved: Option<u64>,
    /// fp16 alone.
    loss_scale: Option<LossScale>,
    /// The last iteration's metrics were not read yet: a device works on it while the next batch
    /// travels.
    unread: bool,
    /// The best validation so far, and its network where that is not on the disk yet: it is written
    /// with the next checkpoint.
    best: Option<BestNetwork>,
    measured_on: Option<MeasuredOn>,
    best_network: Option<Vec<f32>>,
}

impl Run<'_> {
    /// Runs to the end (true) or until stopped (false).
    fn train(
        &mut self,
        backend: &mut dyn Backend,
        loader: &mut Loader,
        mut validation: Option<&mut Validation>,
        progress: &Progress,
    ) -> Result<bool> {
        // a process before this one was stopped within the validation of the iteration that it had
        // saved
        if self.pending.is_some() && !self.between(backend, validation.as_deref_mut(), progress)? {
            return self.stop(backend, progress);
        }
        while self.iteration < self.config.total_iter {
            if !self.step(backend, loader)? {
                return self.stop(backend, progress);
            }
            progress.advance(1);
            loader
                .reports()
                .iter()
                .for_each(|text| progress.line(&format!("warning: {text}")));
            if !self.between(backend, validation.as_deref_mut(), progress)? {
                return self.stop(backend, progress);
            }
        }
        Ok(true)
    }

    /// What is due after an iteration: log line, validation, checkpoint. Says no where the run was
    /// stopped before all of it was done.
    fn between(
        &mut self,
        backend: &mut dyn Backend,
        validation: Option<&mut Validation>,
        progress: &Progress,
    ) -> Result<bool> {
        let last = self.iteration == self.config.total_iter;
        let due = |every: u64| last || self.iteration.is_multiple_of(every.max(1));
        let validation = validation.filter(|v| due(v.every));
        let (log, checkpoint) = (
            due(self.options.log_every) || validation.is_some(),
            due(self.options.checkpoint_every),
        );
        if log || self.meter.line_iterations.is_multiple_of(8) {
            self.meter.peak = self.meter.peak.max(sys::anonymous_memory().unwrap_or(0));
        }
        if log || checkpoint {
            self.read_metrics(backend)?;
        }
        if progress.is_live() && self.open_line.count > 0 {
            progress.message(self.live_text());
        }
        // what a skipped update left behind may be what broke it: the checkpoints from before must
        // not make room for it
        let checkpoint = checkpoint && (self.skipped_in_a_row == 0 || last);
        if log {
            if self.pending.is_none() {
                self.pending = Some(PendingLine {
                    grad_norm: backend.metrics()?.grad_norm,
                    lr: self.lr,
                });
            }
            let mut scores = None;
            if let Some(validation) = validation {
                // a validation takes long and reads files of others: whatever happens to the
                // process meanwhile, this iteration is saved
                if checkpoint && self.saved != Some(self.iteration) {
                    self.save(backend)?;
                }
                scores = match self.validate(backend, validation, progress)? {
                    ValidationOutcome::Stopped => return Ok(false),
                    ValidationOutcome::Failed => None,
                    ValidationOutcome::Scores(scores) => Some(scores),
                };
            }
            self.write_line(scores, progress)?;
        }
        if checkpoint {
            self.save(backend)?;
        }
        Ok(true)
    }

    /// Saves the last whole iteration where it is not saved yet.
    fn stop(&mut self, backend: &mut dyn Backend, progress: &Progress) -> Result<bool> {
        self.read_metrics(backend)?;
        if self.iteration == 0 {
            progress.line("stopped before the first iteration was done; there is nothing to save.");
            return Ok(false);
        }
        if self.saved != Some(self.iteration) {
            self.save(backend)?;
        }
        progress.line(&format!(
            "stopped; saved iteration {}. The same command goes on from here.",
            self.iteration
        ));
        Ok(false)
    }

    /// One iteration: micro-batches, then the update; or no, where the run was stopped before the
    /// update. What its micro-batches have added up is then dropped: it is done again by the next
    /// process. Batches travel while the one before is computed on. What came of the last iteration
    /// is read when the first micro-batch is under way, so that a device has something to do
    /// meanwhile; with loss scaling before it, since its factor hangs on it.
    fn step(&mut self, backend: &mut dyn Backend, loader: &mut Loader) -> Result<bool> {
        let early = !backend.metrics_survive_next_step() || self.loss_scale.is_some();
        for micro in 0..self.config.accum_iter {
            let asked = Instant::now();
            let Some(batch) = loader.next_unless(&self.options.stop)? else {
                return Ok(false);
            };
            self.meter.waited += asked.elapsed().as_secs_f64();
            self.meter.line_wait += asked.elapsed().as_secs_f64();
            if let Some(fence) = backend.stage(BatchView {
                lq: batch.lq(),
                hr: batch.hr(),
                augment: batch.augment(),
            })? {
                batch.return_after(fence);
            }
            if early {
                self.read_metrics(backend)?;
            }
            // the last update is taken for a good one until it is known: only this one hangs on it
            backend.micro_step(&Scalars {
                accumulate: micro > 0,
                ..self.scalars(self.updates + 1 + u64::from(self.unread))
            })?;
            self.read_metrics(backend)?;
        }
        let scalars = self.scalars(self.updates + 1);
        backend.update(&scalars)?;
        (self.lr, self.pending, self.unread) = (scalars.lr, None, true);
        self.iteration += 1;
        self.meter.line_iterations += 1;
        Ok(true)
    }

    /// The numbers of the next iteration, whose update is that of a number.
    fn scalars(&self, update: u64) -> Scalars {
        Scalars {
            lr: self.config.schedule.lr(self.scheduled()),
            step: update,
            clip: if self.config.grad_clip > 0.0 {
                self.config.grad_clip
            } else {
                f64::INFINITY
            },
            ema_decay: ema_decay(update, self.config.ema_decay, self.config.ema_power),
            micro_scale: 1.0 / self.config.accum_iter as f32,
            loss_scale: self.loss_scale.map_or(1.0, |scale| scale.factor),
            accumulate: false,
        }
    }

    /// The schedule's iteration for the next one: with loss scaling, where updates are skipped as a
    /// matter of course, it counts those that were not.
    fn scheduled(&self) -> u64 {
        if self.loss_scale.is_some() {
            self.updates + 1
        } else {
            self.iteration + 1
        }
    }

    /// Reads what came of the last iteration.
    fn read_metrics(&mut self, backend: &mut dyn Backend) -> Result<()> {
        if !std::mem::take(&mut self.unread) {
            return Ok(());
        }
        let metrics = backend.metrics()?;
        let overflow = metrics.skipped && self.loss_scale.is_some_and(|scale| scale.can_fall());
        if let Some(scale) = &mut self.loss_scale {
            scale.after(metrics.skipped);
        }
        if metrics.skipped && !overflow {
            self.skipped_in_a_row += 1;
            let what = if metrics.loss.is_finite() {
                "the gradient norm"
            } else {
                "the loss"
            };
            ensure!(
                self.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW,
                "{what} was not finite {MAX_SKIPPED_IN_A_ROW} times in a row (last learning rate {:.3e}); lower --lr or look at the data",
                self.lr
            );
        }
        if !metrics.skipped {
            self.skipped_in_a_row = 0;
            self.updates += 1;
            self.open_line.loss += metrics.loss;
            self.open_line.count += 1;
        }
        Ok(())
    }

    fn line_seconds(&self) -> f64 {
        self.meter.line_started.elapsed().as_secs_f64().max(1e-9)
    }

    fn line_loss(&self) -> f64 {
        self.open_line.loss / self.open_line.count as f64
    }

    /// Updates skipped since the run began.
    fn skipped(&self) -> u64 {
        self.iteration - self.updates
    }

    fn live_text(&self) -> String {
        let lr = self.lr;
        let rate = self.meter.line_iterations as f64 / self.line_seconds();
        let pairs = rate * (self.config.batch_size * self.config.accum_iter) as f64;
        let wait = 100.0 * self.meter.line_wait / self.line_seconds();
        let memory = bytes_text(self.meter.peak);
        format!(
            "loss {:.5}  lr {lr:.2e}  {rate:.2} it/s  {pairs:.0} pairs/s  data-wait {wait:.1}%  mem {memory}",
            self.line_loss()
        )
    }

    fn write_line(&mut self, scores: Option<eval::Scores>, progress: &Progress) -> Result<()> {
        let Some(update) = self.pending else {
            return Ok(());
        };
        self.lock.check()?;
        let validated = scores
            .map(|s| format!("  val PSNR-Y {:.3} dB  SSIM-Y {:.4}", s.psnr_y, s.ssim_y))
            .unwrap_or_default();
        let last = self.iteration == self.config.total_iter;
        let plain_due = !progress.is_live()
            && (last
                || self
                    .meter
                    .last_plain
                    .is_none_or(|t| t.elapsed() >= PLAIN_INTERVAL));
        if plain_due || scores.is_some() {
            self.meter.last_plain = Some(Instant::now());
            let rate = self.meter.line_iterations as f64 / self.line_seconds();
            let left = (self.config.total_iter - self.iteration) as f64 / rate.max(1e-9);
            progress.line(&format!(
                "iter {}/{}  {}  ETA {}{validated}",
                self.iteration,
                self.config.total_iter,
                self.live_text(),
                duration_text(left)
            ));
        }
        let warning = self.log.append(LogLine {
            iteration: self.iteration,
            loss: self.line_loss(),
            grad_norm: update.grad_norm,
            lr: update.lr,
            it_per_s: self.meter.line_iterations as f64 / self.line_seconds(),
            data_wait: self.meter.line_wait / self.line_seconds(),
            seconds: self.seconds_before + self.meter.seconds(),
            skipped: self.skipped(),
            anonymous: Some(self.meter.peak).filter(|&p| p > 0),
            val_psnr: scores.map(|s| s.psnr),
            val_ssim: scores.map(|s| s.ssim),
            val_psnr_y: scores.map(|s| s.psnr_y),
            val_ssim_y: scores.map(|s| s.ssim_y),
        })?;
        if let Some(warning) = warning {
            progress.line(&format!("warning: {warning}"));
        }
        self.pending = None;
        (self.meter.line_started, self.meter.line_iterations) = (Instant::now(), 0);
        (self.open_line, self.meter.line_wait) = (OpenLine::default(), 0.0);
        Ok(())
    }

    /// Measures the EMA network.
    fn validate(
        &mut self,
        backend: &mut dyn Backend,
        v: &mut Validation,
        progress: &Progress,
    ) -> Result<ValidationOutcome> {
        let started = Instant::now();
        let mut ema = vec![0.0; self.sizes[3]];
        read_floats(backend, self.vectors[3], &mut ema)?;
        let mut warn =
            |text: String| progress.line(&format!("warning: iteration {}: {text}", self.iteration));
        let outcome = v.measure(backend, &ema, self.options, self.iteration, &mut warn);
        self.meter.peak = self.meter.peak.max(v.peak);
        if let ValidationOutcome::Scores(mean) = &outcome
            && mean.psnr_y.is_finite()
            && self
                .best
                .as_ref()
                .is_none_or(|best| mean.psnr_y > best.psnr_y)
        {
            let measured_on = self.measured_on.clone();
            self.best = Some(BestNetwork {
                iteration: self.iteration,
                psnr_y: mean.psnr_y,
                measured_on,
            });
            self.best_network = Some(ema);
        }
        // validation is no training time
        let spent = started.elapsed();
        self.meter.line_started += spent;
        self.meter.started += spent;
        Ok(outcome)
    }

    /// Saves a checkpoint; an error says what to do about it.
    fn save(&mut self, backend: &mut dyn Backend) -> Result<()> {
        self.lock.check()?;
        self.write_checkpoint(backend).map_err(|error| {
            if let Err(gone) = self.lock.check() {
                return gone;
            }
            let full = system_cause(&error).is_some_and(|cause| {
                matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
            });
            if !full {
                return error;
            }
            let models = self.options.out.join("models");
            let taken = bytes_text(keeping::bytes_in(&models));
            error.context(format!(
                "there is no room for the checkpoint of iteration {}; make some and give the same command again (there are {} of networks in {}, and \
                 going on needs only what is in states; --keep-models keeps fewer)",
                self.iteration,
                taken,
                models.display()
            ))
        })
    }

    /// Writes networks, then the state that stands for the checkpoint, then drops old states.
    fn write_checkpoint(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let mut vectors: [Vec<f32>; 4] = Default::default();
        for (i, out) in vectors.iter_mut().enumerate() {
            out.resize(self.sizes[i], 0.0);
            read_floats(backend, self.vectors[i], out)?;
        }
        ensure!(
            vectors.iter().flatten().all(|v| v.is_finite()),
            "parameters or moments are not finite any more and are not saved; lower --lr (now {:.3e}) or --restart with --grad-clip",
            self.lr
        );
        let run = &self.options.out;
        for folder in ["models", "states"] {
            files::create_folder(&run.join(folder))?;
        }
        let net = &self.config.network;
        for (name, values) in keeping::model_names(self.iteration)
            .iter()
            .zip([&vectors[0], &vectors[3]])
        {
            write_model(
                &run.join("models").join(name),
                net,
                values,
                Some(self.iteration),
            )?;
        }
        if let (Some(best), Some(values)) = (&self.best, &self.best_network) {
            best.write(run, net, values)?;
        }
        self.best_network = None;
        write_model(&model_path(run), net, &vectors[3], Some(self.iteration))?;
        let mut state = State::new(
            self.iteration,
            self.updates,
            self.data,
            self.open_line,
            self.config.clone(),
            vectors,
        );
        state.head.loss_scale = self.loss_scale.unwrap_or_default();
        (state.head.skipped_in_a_row, state.head.pending_line) =
            (self.skipped_in_a_row, self.pending);
        // the state stands for all lines up to its iteration
        self.log.sync()?;
        state.write(&state_path(run, self.iteration))?;
        self.saved = Some(self.iteration);
        // a folder that cannot be listed keeps a state too many, which does no harm
        for (_, path) in list_states(run)
            .unwrap_or_default()
            .into_iter()
            .skip(self.options.keep_states.max(1))
        {
            let _ = std::fs::remove_file(path);
        }
        keeping::drop_surplus(
            run,
            self.iteration,
            self.options.keep_models,
            self.options.keep_every,
        );
        Ok(())
    }

    fn summary(
        &self,
        finished: bool,
        memory: &RunMemory,
        loader: &LoaderStats,
    ) -> Result<RunSummary> {
        let here = self.meter.seconds();
        Ok(RunSummary {
            finished,
            iteration: self.iteration,
            loss: self.log.last().map_or(f64::NAN, |l| l.loss),
            it_per_s: self.log.last().map_or(0.0, |l| l.it_per_s),
            data_wait: self.meter.waited / here,
            loader_threads: self.loader_threads,
            loader_wait: loader.producers_waited.as_secs_f64()
                / (self.meter.begun.elapsed().as_secs_f64().max(1e-9) * self.loader_threads as f64),
            substituted: loader.substituted,
            skipped: self.skipped(),
            peak_anonymous: self.meter.peak,
            planned: memory.host_bytes,
            model: model_path(&self.options.out),
            run: self.options.out.clone(),
        })
    }
}

/// The newest EMA network of a run.
pub fn model_path(run: &Path) -> PathBuf {
    run.join("model.safetensors")
}

/// Seconds as `1:02:03` or `4:05`.
pub fn duration_text(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e8) as u64;
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}
