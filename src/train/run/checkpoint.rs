//! Checkpoints of a run: networks, then the state. Depends on the state and network files and on
//! what a run keeps. Promises that the newest state on the disk is always complete, and that older
//! ones are removed only after it was written.

use super::{EMA, PARAMETERS, Run};
use crate::backend::{Backend, read_floats, write_floats};
use crate::model::write_model;
use crate::plan::{BufferId, Ports};
use crate::support::failure::system_cause;
use crate::support::files;
use crate::support::text::bytes_text;
use crate::train::folder::{
    bytes_in, model_names, model_path, models_folder, state_path, states_folder,
};
use crate::train::state_files::list_states;
use crate::train::{Log, State, keeping};
use anyhow::{Result, bail, ensure};
use std::io::ErrorKind;

/// The buffers of the vectors of a state, in the order of [`State::vectors`].
pub(super) struct StateBuffers {
    pub buffers: [BufferId; 4],
    /// Number of f32 values in each.
    pub sizes: [usize; 4],
}

impl StateBuffers {
    /// Copies the vectors of a state into the buffers of a plan.
    ///
    /// # Errors
    /// The plan is not one of a training step, or its buffers have other sizes.
    pub fn load(backend: &mut dyn Backend, ports: &Ports, state: &State) -> Result<StateBuffers> {
        let (Some(parameters), Some(moment1), Some(moment2), Some(ema)) =
            (ports.parameters, ports.moment1, ports.moment2, ports.ema)
        else {
            bail!("the plan has no optimizer, so it cannot train");
        };
        let buffers = [parameters, moment1, moment2, ema];
        for (id, values) in buffers.into_iter().zip(&state.vectors) {
            write_floats(backend, id, values)?;
        }
        Ok(StateBuffers {
            buffers,
            sizes: std::array::from_fn(|i| state.vectors[i].len()),
        })
    }

    /// Reads all vectors back.
    fn read(&self, backend: &mut dyn Backend) -> Result<[Vec<f32>; 4]> {
        let mut vectors: [Vec<f32>; 4] = Default::default();
        for (i, out) in vectors.iter_mut().enumerate() {
            out.resize(self.sizes[i], 0.0);
            read_floats(backend, self.buffers[i], out)?;
        }
        Ok(vectors)
    }
}

impl Run<'_> {
    /// Saves a checkpoint; on a full disk the error says what to do.
    pub(super) fn save(&mut self, backend: &mut dyn Backend) -> Result<()> {
        self.folder.check()?;
        self.write_checkpoint(backend).map_err(|error| {
            if let Err(gone) = self.folder.check() {
                return gone;
            }
            let full = system_cause(&error).is_some_and(|cause| {
                matches!(
                    cause.kind(),
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
                )
            });
            if !full {
                return error;
            }
            let models = models_folder(&self.options.out);
            error.context(format!(
                "there is no room for the checkpoint of iteration {}; make some and give the same command again (there are {} of networks in {}, and \
                 going on needs only what is in states; --keep-models keeps fewer)",
                self.iteration,
                bytes_text(bytes_in(&models)),
                models.display()
            ))
        })
    }

    /// Writes the networks, then the state, which makes the checkpoint count, then removes old
    /// files.
    fn write_checkpoint(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let vectors = self.vectors.read(backend)?;
        ensure!(
            vectors.iter().flatten().all(|v| v.is_finite()),
            "parameters or moments are not finite any more and are not saved; lower --lr (now {:.3e}) or --restart with --grad-clip",
            self.lr
        );
        let run = &self.options.out;
        for folder in [models_folder(run), states_folder(run)] {
            files::create_folder(&folder)?;
        }
        self.write_networks(&vectors)?;
        self.best_unsaved = None;
        let mut state = State::new(
            self.iteration,
            self.updates,
            self.data,
            self.open_line,
            self.config.clone(),
            vectors,
        );
        state.head.loss_scale = self.loss_scale.unwrap_or_default();
        state.head.skipped_in_a_row = self.skipped_in_a_row;
        state.head.pending_line = self.pending;
        // A run that resumes from this state expects all log lines up to its iteration.
        self.log.iter().try_for_each(Log::sync)?;
        state.write(&state_path(run, self.iteration))?;
        self.saved = Some(self.iteration);
        // If the folder cannot be listed, a state too many stays, which does no harm.
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

    /// Writes the networks of this iteration, the best one if it is not on the disk yet, and the
    /// newest EMA network.
    fn write_networks(&self, vectors: &[Vec<f32>; 4]) -> Result<()> {
        let (run, network) = (&self.options.out, &self.config.network);
        let iteration = Some(self.iteration);
        for (name, values) in model_names(self.iteration)
            .iter()
            .zip([&vectors[PARAMETERS], &vectors[EMA]])
        {
            write_model(&models_folder(run).join(name), network, values, iteration)?;
        }
        if let (Some(best), Some(values)) = (&self.best, &self.best_unsaved) {
            best.write(run, network, values)?;
        }
        write_model(&model_path(run), network, &vectors[EMA], iteration)
    }
}
