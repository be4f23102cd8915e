//! The training loop: batches from the loader into the plan, checkpoints, log, validation. Depends
//! on the loader, the plan, the backends and the other files of `train`. Promises that a run which
//! is killed at any moment and started again ends in the same bits as an unbroken one, and that its
//! memory was fitted, reported, and refused if too large, before the first step.

mod cards;
mod checkpoint;
mod line;
mod meter;
mod prepare;
pub use prepare::RECIPE_FILE;
mod share;
mod step;

use super::folder::model_path;
use super::keeping::{self, BestNetwork, MeasuredOn};
use super::previews;
use super::start::StartState;
use super::validation::{Validation, ValidationOutcome};
use super::{
    Fitted, Level, Log, LossScale, OpenLine, PendingLine, Report, RunMemory, RunOptions,
    RunSummary, TrainConfig,
};
use crate::backend::Backend;
use crate::loader::{Loader, LoaderStats, Sources};
use crate::plan::Precision;
use crate::ranks::Ranks;
use crate::support::progress::Progress;
use crate::sys;
use anyhow::Result;
use checkpoint::StateBuffers;
use meter::Meter;
use prepare::{ClaimedFolder, Planned, Preparation};
use share::Share;
use std::sync::Arc;

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
    report: &Report<'_>,
    progress: &dyn Fn(u64) -> Progress,
) -> Result<RunSummary> {
    train_as_rank(None, sources, config, options, report, progress)
}

/// As [`train`], as one of several ranks, which share the micro-batches of every iteration. Rank 0
/// alone reads and writes the folder of the run and validates; `report` and `progress` of the
/// others should show nothing.
///
/// # Errors
/// Those of [`train`]; another rank fails, is lost, or was started with another program,
/// configuration or other shards.
pub fn train_as_rank(
    ranks: Option<&Ranks>,
    sources: Arc<Sources>,
    config: &TrainConfig,
    options: &RunOptions,
    report: &Report<'_>,
    progress: &dyn Fn(u64) -> Progress,
) -> Result<RunSummary> {
    let preparation = Preparation {
        sources: &sources,
        config,
        options,
        report,
        ranks,
        left: sys::memory_left(),
    };
    preparation.check()?;
    let opened = preparation.open_device()?;
    let nccl = preparation.agree(&opened)?;
    let folder = preparation.claim_folder()?;
    let start = preparation.start_state()?;
    if start.is_finished(config) {
        return finished_before(&start, config, options, report, preparation.writes());
    }
    let mut validation = preparation.open_validation(&opened.place)?;
    let Planned {
        fitted,
        loader,
        measured_on,
    } = preparation.fit(
        &opened,
        validation.as_mut(),
        &start,
        cards::travel(ranks, nccl.as_ref()),
    )?;
    let Fitted {
        config,
        plan,
        memory,
        ..
    } = fitted;
    if preparation.writes() {
        keeping::check_space(&config, options, start.state.head.iteration)?;
    }
    if let Some(validation) = &mut validation {
        validation.fit_tiles(&config, &plan)?;
    }

    let ports = plan.ports;
    let exchange = share::exchange(ranks, &plan, config.accum_iter);
    let trainable = config.network.params().trainable();
    let connecting = ranks.zip(nccl.as_ref());
    let (mut backend, on_cards) = cards::backend(&opened, plan, trainable, connecting)?;
    preparation.report_start(backend.as_ref(), &config);
    let vectors = StateBuffers::load(backend.as_mut(), &ports, &start.state)?;
    // Only now, because a command that is refused must not delete an earlier run.
    preparation.clear_folder(&config, &start)?;
    let best = preparation.earlier_best(&start, measured_on.as_ref());
    let share = exchange.map(|exchange| Share::new(exchange, &ports, trainable, on_cards));
    let mut run = Run::new(
        &config,
        options,
        &start,
        folder,
        vectors,
        share.transpose()?,
    )?;
    (run.best, run.measured_on) = (best, measured_on);
    run.loss_scale =
        (opened.place.precision() == Precision::Fp16).then_some(start.state.head.loss_scale);
    drop(start);
    let threads = loader.threads;
    let mut loader = Loader::start_in(sources.clone(), loader, &|bytes| backend.allocate(bytes))?;
    let flow = run.iterate_shown(
        backend.as_mut(),
        &mut loader,
        validation.as_mut(),
        &progress(config.total_iter),
    )?;
    if let Some(share) = &mut run.share {
        share.close();
    }
    run.draw_curves(report);
    Ok(run.summary(flow == Flow::Continue, &memory, threads, &loader.stats()))
}

/// Ends a run whose iterations are all done. Removes what a process that was killed right after its
/// last state has left, and reports that nothing is left to do.
fn finished_before(
    start: &StartState,
    config: &TrainConfig,
    options: &RunOptions,
    report: &Report<'_>,
    writes: bool,
) -> Result<RunSummary> {
    let (out, iteration) = (&options.out, start.state.head.iteration);
    let log = writes.then(|| Log::open(out, iteration)).transpose()?;
    if writes {
        keeping::drop_surplus(out, iteration, options.keep_models, options.keep_every);
        previews::cut_back(out, iteration);
    }
    let total = config.total_iter;
    let done = if iteration > total {
        format!("this run has {iteration} iterations already, more than --iterations {total}")
    } else {
        format!("this run has its {total} iterations already")
    };
    report(
        Level::Warning,
        &format!(
            "{done}; nothing to do (a larger --iterations extends it, --name begins another run)"
        ),
    );
    let last = log.as_ref().and_then(Log::last);
    let newest = last.filter(|line| line.iteration == iteration);
    Ok(RunSummary {
        finished: true,
        iteration,
        loss: last.map_or(f64::NAN, |line| line.loss),
        it_per_s: 0.0,
        iterations_here: 0,
        data_wait: 0.0,
        loader_threads: 0,
        loader_wait: 0.0,
        substituted: 0,
        skipped: iteration - start.state.head.updates,
        peak_anonymous: 0,
        planned: 0,
        best: log
            .as_ref()
            .and_then(|_| BestNetwork::read(out, iteration))
            .map(|best| best.score(out)),
        newest_psnr_y: newest.and_then(|line| line.val_psnr_y),
        bicubic_psnr_y: newest.and_then(|line| line.val_bicubic_psnr_y),
        model: model_path(out),
        run: out.clone(),
    })
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
    folder: ClaimedFolder,
    /// `None` on ranks other than 0, which write nothing.
    log: Option<Log>,
    /// This process as one of several ranks.
    share: Option<Share<'a>>,
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
        folder: ClaimedFolder,
        vectors: StateBuffers,
        share: Option<Share<'a>>,
    ) -> Result<Run<'a>> {
        let head = &start.state.head;
        let pending = head.pending_line;
        // A pending line is not in the log yet.
        let logged = head.iteration.saturating_sub(u64::from(pending.is_some()));
        let writes = share
            .as_ref()
            .is_none_or(|share| share.exchange.rank() == 0);
        let log = writes
            .then(|| Log::open(&options.out, logged))
            .transpose()?;
        if !start.fresh && writes {
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
            folder,
            seconds_before: log.as_ref().map_or(0.0, Log::seconds),
            log,
            share,
            iteration: head.iteration,
            updates: head.updates,
            open_line: head.open_line,
            pending,
            lr: pending.map_or(lr, |pending| pending.lr),
            skipped_in_a_row: head.skipped_in_a_row,
            vectors,
            meter: Meter::new(),
            saved: (!start.fresh).then_some(head.iteration),
            loss_scale: None,
            metrics_unread: false,
            best: None,
            best_unsaved: None,
            measured_on: None,
        })
    }

    /// Whether this process writes the folder of the run: it is alone, or rank 0.
    fn writes(&self) -> bool {
        self.log.is_some()
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
            && self.writes()
            && self.after_iteration(backend, validation.as_deref_mut(), progress)? == Flow::Stopped
        {
            self.stop_others()?;
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
                .for_each(|text| progress.warn(&format!("warning: {text}")));
            if !self.writes() {
                continue;
            }
            let flow = self.after_iteration(backend, validation.as_deref_mut(), progress)?;
            if flow == Flow::Stopped {
                self.stop_others()?;
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
        self.meter.mark();
        if progress.is_live() && self.open_line.count > 0 {
            progress.fields(&self.fields());
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
        if !self.writes() {
            return Ok(Flow::Stopped);
        }
        self.read_metrics(backend)?;
        if self.iteration == 0 {
            progress.warn("stopped before the first iteration was done; there is nothing to save.");
            return Ok(Flow::Stopped);
        }
        if self.saved != Some(self.iteration) {
            self.save(backend)?;
        }
        progress.warn(&format!(
            "stopped; saved iteration {}. The same command goes on from here.",
            self.iteration
        ));
        Ok(Flow::Stopped)
    }

    /// Stops the other ranks, which do not validate and wait in the next iteration.
    fn stop_others(&mut self) -> Result<()> {
        let waiting = !self.is_last_iteration();
        match &mut self.share {
            Some(share) if waiting => share.stop_others(),
            _ => Ok(()),
        }
    }

    /// The context of an error that ends the run: where it stopped and what is kept.
    fn stopped_text(&self) -> String {
        if !self.writes() {
            return format!("training stopped at iteration {}", self.iteration);
        }
        let kept = match self.saved {
            Some(iteration) => format!("the checkpoint of iteration {iteration} is kept"),
            None => "no checkpoint had been saved".to_string(),
        };
        format!("training stopped at iteration {}; {kept}", self.iteration)
    }

    /// Draws the curves of the log; a failure is a warning.
    fn draw_curves(&self, report: &Report<'_>) {
        let drawn = self.log.as_ref().map(|log| log.draw(&self.options.out));
        if let Some(Err(error)) = drawn {
            report(
                Level::Warning,
                &format!("warning: {error:#}; the curves can be drawn later with `paragon report`"),
            );
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
        let last = self.log.as_ref().and_then(Log::last);
        let newest = last.filter(|line| line.iteration == self.iteration);
        let of_ranks = self.share.as_ref().map(Share::substituted);
        RunSummary {
            finished,
            iteration: self.iteration,
            loss: last.map_or(f64::NAN, |l| l.loss),
            it_per_s: self.meter.iterations() as f64 / self.meter.seconds(),
            iterations_here: self.meter.iterations(),
            data_wait: self.meter.wait_share(),
            loader_threads,
            loader_wait: loader.producers_waited.as_secs_f64() / loader_seconds,
            substituted: of_ranks.unwrap_or(loader.substituted),
            skipped: self.skipped(),
            peak_anonymous: self.meter.peak(),
            planned: memory.host_bytes,
            best: self.best.as_ref().map(|best| best.score(&self.options.out)),
            newest_psnr_y: newest.and_then(|line| line.val_psnr_y),
            bicubic_psnr_y: newest.and_then(|line| line.val_bicubic_psnr_y),
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
