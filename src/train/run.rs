//! The training loop: shards through the ring into the plan, checkpoints, log, validation. Depends
//! on everything upstream of it in the data flow. It promises that a run killed at any moment and
//! started again ends in the same bits as an unbroken one, and that its memory was computed, printed
//! and refused if too much, before the first step.

use super::checkpoint::model_path;
use super::claim::claim_folder;
use super::iteration::Run;
use super::keeping;
use super::meter::Meter;
use super::prepare::{Prepared, prepare};
use super::validation::{Validated, Validation};
use super::{Best, Log, PendingLine, RunMemory, RunOptions, Summary, TrainConfig};
use crate::backend::{Backend, read_floats, write_floats};
use crate::loader::{Loader, Sources, Stats};
use crate::plan::{BufferId, Precision};
use crate::support::progress::Progress;
use crate::sys;
use anyhow::Result;
use std::sync::Arc;
use std::time::Instant;

/// Trains; resumes where the folder holds an earlier state of the same run. `report` receives lines
/// for people.
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
) -> Result<Summary> {
    let mut ready = prepare(&sources, config, options, report)?;
    let (mut backend, vectors) = open_backend(&mut ready)?;
    report(&format!(
        "{}; {}",
        backend.description(),
        data_text(&sources, &ready.config)
    ));
    let best = claim_folder(&ready, options, report)?;
    let (memory, loader_config) = (ready.memory.clone(), ready.loader.clone());
    let mut validation = ready.validation.take();
    let mut run = Run::new(ready, options, sources.fingerprint(), vectors, best)?;
    if run.iteration >= run.config.total_iter && run.pending.is_none() {
        report(&format!(
            "this run is finished: {} of {} iterations are done; raise --iterations to go on",
            run.iteration, run.config.total_iter
        ));
        return run.summary(true, &memory, &Stats::default());
    }
    let mut loader = Loader::start_in(sources, loader_config, &|bytes| backend.allocate(bytes))?;
    let progress = Progress::bar_only("train", run.config.total_iter, "it");
    progress.advance(run.iteration);
    run.meter = Meter::new();
    let result = run.iterate(
        backend.as_mut(),
        &mut loader,
        validation.as_mut(),
        &progress,
    );
    progress.finish();
    let finished = result.map_err(|error| run.name_what_is_kept(error))?;
    if let Err(error) = run.log.draw(&options.out) {
        report(&format!(
            "warning: {error:#}; the curves can be drawn later with `paragon report`"
        ));
    }
    run.summary(finished, &memory, &loader.stats())
}

/// Makes the plan and the backend, and writes the state into it. Returns the backend and the
/// buffers of parameters, first moment, second moment and EMA.
fn open_backend(ready: &mut Prepared) -> Result<(Box<dyn Backend>, Vec<BufferId>)> {
    let validates = ready.validation.is_some();
    let plan = ready
        .opened
        .place
        .plan(&ready.config, ready.choice.recompute, validates)?;
    if let Some(validation) = &mut ready.validation {
        validation.fit_tiles(&ready.config, &plan)?;
    }
    let ports = plan.ports;
    let mut backend = ready.opened.backend(plan)?;
    let vectors: Vec<BufferId> = [ports.parameters, ports.moment1, ports.moment2, ports.ema]
        .into_iter()
        .flatten()
        .collect();
    for (&id, values) in vectors.iter().zip(&ready.state.vectors) {
        write_floats(backend.as_mut(), id, values)?;
    }
    Ok((backend, vectors))
}

/// How much data there is, in words.
fn data_text(sources: &Sources, config: &TrainConfig) -> String {
    let per_epoch = sources.len() as f64 / (config.batch_size * config.accum_iter) as f64;
    format!(
        "{} pairs, LQ {} of {} stored, {per_epoch:.1} iterations an epoch",
        sources.len(),
        config.lq_size,
        sources.lq_size()
    )
}

impl<'a> Run<'a> {
    /// The run in memory, as its state says; opens the log.
    fn new(
        ready: Prepared,
        options: &'a RunOptions,
        data: u64,
        vectors: Vec<BufferId>,
        best: Option<Best>,
    ) -> Result<Run<'a>> {
        let head = &ready.state.head;
        let (iteration, pending) = (head.iteration, head.pending_line);
        // A pending line is not in the log yet: it will be written for this iteration.
        let logged = iteration.saturating_sub(u64::from(pending.is_some()));
        let log = Log::open(&options.out, logged)?;
        let run = Run {
            options,
            data,
            loader_threads: ready.loader.threads,
            lock: ready.lock,
            seconds_before: log.seconds(),
            log,
            iteration,
            updates: head.updates,
            open_line: head.open_line,
            pending,
            lr: pending.map_or(ready.config.schedule.lr(iteration.max(1)), |line| line.lr),
            skipped_in_a_row: head.skipped_in_a_row,
            vectors,
            sizes: std::array::from_fn(|i| ready.state.vectors[i].len()),
            meter: Meter::new(),
            saved: (!ready.fresh).then_some(iteration),
            loss_scale: (ready.opened.place.precision() == Precision::Fp16)
                .then_some(head.loss_scale),
            unread: false,
            best,
            measured_on: ready.measured_on,
            best_network: None,
            config: ready.config,
        };
        if run.saved.is_some() {
            // A process that was killed right after writing its last state has left networks that
            // nobody else would remove.
            keeping::drop_surplus(
                &options.out,
                iteration,
                options.keep_models,
                options.keep_every,
            );
        }
        Ok(run)
    }

    /// Runs to the end (`true`) or until stopped (`false`).
    fn iterate(
        &mut self,
        backend: &mut dyn Backend,
        loader: &mut Loader,
        mut validation: Option<&mut Validation>,
        progress: &Progress,
    ) -> Result<bool> {
        // The process before was stopped during the validation of the iteration it had saved: finish
        // that iteration first.
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

    /// Does what is due after an iteration: log line, validation, checkpoint. Returns `false` if the
    /// run was stopped before all of it was done.
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
        // No checkpoint after a skipped update: the weights may be bad already, and saving would
        // rotate out the last good checkpoint.
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
                // A validation takes long and reads files that others may change: save first, so
                // that this iteration survives whatever happens to the process.
                if checkpoint && self.saved != Some(self.iteration) {
                    self.save(backend)?;
                }
                scores = match self.validate(backend, validation, progress)? {
                    Validated::Stopped => return Ok(false),
                    Validated::Failed => None,
                    Validated::Scores(scores) => Some(scores),
                };
            }
            self.write_line(scores, progress)?;
        }
        if checkpoint {
            self.save(backend)?;
        }
        Ok(true)
    }

    /// Saves the last whole iteration, if it is not saved yet, and says how to go on. Returns
    /// `false`, as the loop does for a stopped run.
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

    /// Measures the EMA network on the held-out images and remembers it if it is the best.
    fn validate(
        &mut self,
        backend: &mut dyn Backend,
        v: &mut Validation,
        progress: &Progress,
    ) -> Result<Validated> {
        let started = Instant::now();
        let mut ema = vec![0.0; self.sizes[3]];
        read_floats(backend, self.vectors[3], &mut ema)?;
        let mut warn =
            |text: String| progress.line(&format!("warning: iteration {}: {text}", self.iteration));
        let outcome = v.measure(backend, &ema, self.options, self.iteration, &mut warn);
        self.meter.peak = self.meter.peak.max(v.peak);
        if let Validated::Scores(mean) = &outcome
            && mean.psnr_y.is_finite()
            && self
                .best
                .as_ref()
                .is_none_or(|best| mean.psnr_y > best.psnr_y)
        {
            let measured_on = self.measured_on.clone();
            self.best = Some(Best {
                iteration: self.iteration,
                psnr_y: mean.psnr_y,
                measured_on,
            });
            self.best_network = Some(ema);
        }
        self.meter.leave_out(started.elapsed());
        Ok(outcome)
    }

    /// Adds to an error which checkpoint is kept.
    fn name_what_is_kept(&self, error: anyhow::Error) -> anyhow::Error {
        let kept = match self.saved {
            Some(iteration) => format!("the checkpoint of iteration {iteration} is kept"),
            None => "no checkpoint had been saved".to_string(),
        };
        error.context(format!(
            "training stopped at iteration {}; {kept}",
            self.iteration
        ))
    }

    fn summary(&self, finished: bool, memory: &RunMemory, loader: &Stats) -> Result<Summary> {
        let here = self.meter.seconds();
        Ok(Summary {
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
