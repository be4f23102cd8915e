//! The training loop: batches from the loader into the plan, checkpoints, log, validation. Depends
//! on the loader, the plan, the backends and the other files of `train`. Promises that a run which
//! is killed at any moment and started again ends in the same bits as an unbroken one, and that its
//! memory was fitted, reported, and refused if too large, before the first step.

mod checkpoint;
mod line;
mod meter;
mod prepare;
mod step;

use super::folder::model_path;
use super::keeping::{self, BestNetwork, MeasuredOn};
use super::start::{StartState, start_state};
use super::validation::{Validation, ValidationOutcome};
use super::{
    Fitted, Log, LossScale, OpenLine, PendingLine, RunMemory, RunOptions, RunSummary, TrainConfig,
};
use crate::backend::Backend;
use crate::loader::{Loader, LoaderStats, Sources};
use crate::plan::Precision;
use crate::support::lock::FolderLock;
use crate::support::progress::Progress;
use anyhow::Result;
use checkpoint::StateBuffers;
use meter::Meter;
use prepare::{Planned, Preparation};
use std::sync::Arc;
use std::time::Instant;

/// Index of the network's parameters in [`super::State::vectors`].
const PARAMETERS: usize = 0;
/// Index of the EMA network in [`super::State::vectors`].
const EMA: usize = 3;
/// Iterations between two measurements of the process's memory.
const MEMORY_INTERVAL: u64 = 8;

/// Trains a network; continues if the folder holds a state of the same run.
///
/// `report` shows a line to the user before the first step and after the last. `progress` makes the
/// display of the steps between, from the total number of iterations.
///
/// # Errors
/// The configuration is wrong, an image to validate on cannot be measured, there is too little
/// memory or disk space, a shard is damaged, the folder is removed during the run, or the loss is
/// not finite ten times in a row. In every case the last good checkpoint stays.
pub fn train(
    sources: Arc<Sources>,
    config: &TrainConfig,
    options: &RunOptions,
    report: &dyn Fn(&str),
    progress: &dyn Fn(u64) -> Progress,
) -> Result<RunSummary> {
    let preparation = Preparation {
        sources: &sources,
        config,
        options,
        report,
    };
    preparation.check()?;
    let lock = preparation.claim_folder()?;
    let start = start_state(&sources, config, options, report)?;
    let opened = preparation.open_device()?;
    let mut validation = preparation.open_validation(&opened.place)?;
    let Planned {
        fitted,
        loader,
        measured_on,
    } = preparation.fit(&opened, validation.as_mut(), &start)?;
    let Fitted {
        config,
        plan,
        memory,
        ..
    } = fitted;
    keeping::check_space(&config, options, start.state.head.iteration)?;
    if let Some(validation) = &mut validation {
        validation.fit_tiles(&config, &plan)?;
    }

    let ports = plan.ports;
    let mut backend = opened.backend(plan)?;
    preparation.report_start(backend.as_ref(), &config);
    let vectors = StateBuffers::load(backend.as_mut(), &ports, &start.state)?;
    // Only now, because a command that is refused must not delete an earlier run.
    preparation.clear_folder(&config, &start)?;
    let best = preparation.earlier_best(&start, measured_on.as_ref());
    let mut run = Run::new(&config, options, &start, lock, vectors)?;
    (run.best, run.measured_on) = (best, measured_on);
    run.loss_scale =
        (opened.place.precision() == Precision::Fp16).then_some(start.state.head.loss_scale);
    drop(start);
    let threads = loader.threads;
    if run.is_finished() {
        report(&run.finished_text());
        return Ok(run.summary(true, &memory, threads, &LoaderStats::default()));
    }

    let mut loader = Loader::start_in(sources.clone(), loader, &|bytes| backend.allocate(bytes))?;
    let flow = run.iterate_shown(
        backend.as_mut(),
        &mut loader,
        validation.as_mut(),
        &progress(config.total_iter),
    )?;
    run.draw_curves(report);
    Ok(run.summary(flow == Flow::Continue, &memory, threads, &loader.stats()))
}

/// Whether a run continues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// To the next iteration, or to its end.
    Continue,
    /// The run was stopped from outside.
    Stopped,
}

/// A run in this process.
struct Run<'a> {
    config: &'a TrainConfig,
    options: &'a RunOptions,
    /// Fingerprint of the sets of shards.
    data: u64,
    lock: FolderLock,
    log: Log,
    /// Iterations done.
    iteration: u64,
    /// Updates applied: iterations minus the skipped ones.
    updates: u64,
    /// Losses since the last log line.
    open_line: OpenLine,
    /// What the log line of this iteration needs of the last update; `None` if no line is due or it
    /// is written.
    pending: Option<PendingLine>,
    /// Learning rate of the last iteration.
    lr: f64,
    /// Updates skipped in a row, up to this iteration.
    skipped_in_a_row: u64,
    /// Seconds of training in earlier processes.
    seconds_before: f64,
    vectors: StateBuffers,
    meter: Meter,
    /// When the last plain line was shown.
    last_plain_line: Option<Instant>,
    /// Iteration of the newest state on the disk.
    saved: Option<u64>,
    /// The loss scale; `None` unless activations are fp16.
    loss_scale: Option<LossScale>,
    /// True if the metrics of the last iteration were not read yet: a device may still compute it
    /// while the next batch is copied.
    metrics_unread: bool,
    /// The best validation so far.
    best: Option<BestNetwork>,
    /// The network of `best` until the next checkpoint writes it.
    best_unsaved: Option<Vec<f32>>,
    /// What validations are measured on.
    measured_on: Option<MeasuredOn>,
}

impl<'a> Run<'a> {
    /// A run at the state that it starts from. Opens the log.
    fn new(
        config: &'a TrainConfig,
        options: &'a RunOptions,
        start: &StartState,
        lock: FolderLock,
        vectors: StateBuffers,
    ) -> Result<Run<'a>> {
        let head = &start.state.head;
        let pending = head.pending_line;
        // A pending line is not in the log yet.
        let logged = head.iteration.saturating_sub(u64::from(pending.is_some()));
        let log = Log::open(&options.out, logged)?;
        if !start.fresh {
            // A process that was killed right after its last state may have left too many networks.
            keeping::drop_surplus(
                &options.out,
                head.iteration,
                options.keep_models,
                options.keep_every,
            );
        }
        let lr = config.schedule.lr(head.iteration.max(1));
        Ok(Run {
            config,
            options,
            data: head.data,
            lock,
            seconds_before: log.seconds(),
            log,
            iteration: head.iteration,
            updates: head.updates,
            open_line: head.open_line,
            pending,
            lr: pending.map_or(lr, |pending| pending.lr),
            skipped_in_a_row: head.skipped_in_a_row,
            vectors,
            meter: Meter::new(),
            last_plain_line: None,
            saved: (!start.fresh).then_some(head.iteration),
            loss_scale: None,
            metrics_unread: false,
            best: None,
            best_unsaved: None,
            measured_on: None,
        })
    }

    /// Whether nothing is left to do.
    fn is_finished(&self) -> bool {
        self.iteration >= self.config.total_iter && self.pending.is_none()
    }

    fn finished_text(&self) -> String {
        format!(
            "this run is finished: {} of {} iterations are done; raise --iterations to go on",
            self.iteration, self.config.total_iter
        )
    }

    fn is_last_iteration(&self) -> bool {
        self.iteration == self.config.total_iter
    }

    /// Iterates with a display of the progress; an error says where the run stopped.
    fn iterate_shown(
        &mut self,
        backend: &mut dyn Backend,
        loader: &mut Loader,
        validation: Option<&mut Validation>,
        progress: &Progress,
    ) -> Result<Flow> {
        progress.advance(self.iteration);
        self.meter = Meter::new();
        let outcome = self.iterate(backend, loader, validation, progress);
        progress.finish();
        outcome.map_err(|error| error.context(self.stopped_text()))
    }

    /// Iterates to the end, or until the run is stopped.
    fn iterate(
        &mut self,
        backend: &mut dyn Backend,
        loader: &mut Loader,
        mut validation: Option<&mut Validation>,
        progress: &Progress,
    ) -> Result<Flow> {
        // An earlier process was stopped during the validation of an iteration that it had saved.
        if self.pending.is_some()
            && self.after_iteration(backend, validation.as_deref_mut(), progress)? == Flow::Stopped
        {
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
            let flow = self.after_iteration(backend, validation.as_deref_mut(), progress)?;
            if flow == Flow::Stopped {
                return self.stop(backend, progress);
            }
        }
        Ok(Flow::Continue)
    }

    /// What is due after an iteration: log line, validation, checkpoint. `Stopped`: the run was
    /// stopped before all of it was done.
    fn after_iteration(
        &mut self,
        backend: &mut dyn Backend,
        validation: Option<&mut Validation>,
        progress: &Progress,
    ) -> Result<Flow> {
        let last = self.is_last_iteration();
        let due = |every: u64| last || self.iteration.is_multiple_of(every.max(1));
        let validation = validation.filter(|v| due(v.every));
        let line_due = due(self.options.log_every) || validation.is_some();
        let checkpoint_due = due(self.options.checkpoint_every);
        if line_due || self.meter.line_iterations().is_multiple_of(MEMORY_INTERVAL) {
            self.meter.measure_memory();
        }
        if line_due || checkpoint_due {
            self.read_metrics(backend)?;
        }
        if progress.is_live() && self.open_line.count > 0 {
            progress.message(self.live_text());
        }
        // No checkpoint after a skipped update: the weights may be bad already, and saving would
        // remove the last good checkpoint.
        let checkpoint = checkpoint_due && (self.skipped_in_a_row == 0 || last);
        if line_due {
            if self.pending.is_none() {
                self.pending = Some(PendingLine {
                    grad_norm: backend.metrics()?.grad_norm,
                    lr: self.lr,
                });
            }
            let mut scores = None;
            if let Some(validation) = validation {
                // A validation takes long and reads files that others may change. Whatever happens
                // to the process meanwhile, this iteration is saved.
                if checkpoint && self.saved != Some(self.iteration) {
                    self.save(backend)?;
                }
                scores = match self.validate(backend, validation, progress)? {
                    ValidationOutcome::Stopped => return Ok(Flow::Stopped),
                    ValidationOutcome::Failed => None,
                    ValidationOutcome::Scores(scores) => Some(scores),
                };
            }
            self.write_line(scores, progress)?;
        }
        if checkpoint {
            self.save(backend)?;
        }
        Ok(Flow::Continue)
    }

    /// Saves the last complete iteration, unless it is saved already.
    fn stop(&mut self, backend: &mut dyn Backend, progress: &Progress) -> Result<Flow> {
        self.read_metrics(backend)?;
        if self.iteration == 0 {
            progress.line("stopped before the first iteration was done; there is nothing to save.");
            return Ok(Flow::Stopped);
        }
        if self.saved != Some(self.iteration) {
            self.save(backend)?;
        }
        progress.line(&format!(
            "stopped; saved iteration {}. The same command goes on from here.",
            self.iteration
        ));
        Ok(Flow::Stopped)
    }

    /// The context of an error that ends the run: where it stopped and what is kept.
    fn stopped_text(&self) -> String {
        let kept = match self.saved {
            Some(iteration) => format!("the checkpoint of iteration {iteration} is kept"),
            None => "no checkpoint had been saved".to_string(),
        };
        format!("training stopped at iteration {}; {kept}", self.iteration)
    }

    /// Draws the curves of the log; a failure is a warning.
    fn draw_curves(&self, report: &dyn Fn(&str)) {
        if let Err(error) = self.log.draw(&self.options.out) {
            report(&format!(
                "warning: {error:#}; the curves can be drawn later with `paragon report`"
            ));
        }
    }

    fn summary(
        &self,
        finished: bool,
        memory: &RunMemory,
        loader_threads: usize,
        loader: &LoaderStats,
    ) -> RunSummary {
        let loader_seconds = self.meter.seconds_with_validation() * loader_threads as f64;
        RunSummary {
            finished,
            iteration: self.iteration,
            loss: self.log.last().map_or(f64::NAN, |l| l.loss),
            it_per_s: self.log.last().map_or(0.0, |l| l.it_per_s),
            data_wait: self.meter.wait_share(),
            loader_threads,
            loader_wait: loader.producers_waited.as_secs_f64() / loader_seconds,
            substituted: loader.substituted,
            skipped: self.skipped(),
            peak_anonymous: self.meter.peak(),
            planned: memory.host_bytes,
            model: model_path(&self.options.out),
            run: self.options.out.clone(),
        }
    }
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
