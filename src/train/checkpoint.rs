//! Checkpoints: networks and the state of a run, written so that a kill at any moment leaves a
//! checkpoint to go on from. Depends on `keeping` and the state. It promises that a checkpoint with
//! values that are not finite is never written.

use super::iteration::Run;
use super::{State, keeping, list_states, state_path};
use crate::backend::{Backend, read_floats};
use crate::model::write_model;
use crate::support::failure::system_cause;
use crate::support::files;
use crate::support::text::bytes_text;
use anyhow::{Result, ensure};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The newest EMA network of a run.
pub fn model_path(run: &Path) -> PathBuf {
    run.join("model.safetensors")
}

impl Run<'_> {
    /// Saves a checkpoint.
    ///
    /// # Errors
    /// Say what to do about it: a full disk, a folder that was taken away, values that are not
    /// finite.
    pub fn save(&mut self, backend: &mut dyn Backend) -> Result<()> {
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

    /// Writes the networks, then the state, whose presence makes the checkpoint valid, then removes
    /// old states and networks.
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
        // A state promises that the log holds all lines up to its iteration.
        self.log.sync()?;
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
}
