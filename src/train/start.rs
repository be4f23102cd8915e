//! Where a run starts: alone in its folder, from start values or from the newest state there.
//! Depends on the state and network files. Promises that a state is continued only with the
//! settings and shards it was made with.

use super::state_files::newest_state;
use super::{OpenLine, RunOptions, State, TrainConfig};
use crate::loader::Sources;
use crate::model::{Pretrained, Purpose, locate, read_pretrained};
use crate::support::lock::{FolderLock, lock_folder};
use anyhow::{Result, bail, ensure};
use std::path::Path;

/// What a run starts from.
pub(super) struct StartState {
    pub state: State,
    /// True if the run begins; false if it continues from a state in its folder.
    pub fresh: bool,
}

/// Locks the folder of a run: two processes would overwrite each other's states.
pub(super) fn lock(out: &Path, report: &dyn Fn(&str)) -> Result<FolderLock> {
    let (lock, warning) = lock_folder(out, "another process is training in")?;
    warning.iter().for_each(|warning| report(warning));
    Ok(lock)
}

/// The newest state of the folder, or a fresh one if there is none or the run restarts.
///
/// # Errors
/// No state is intact, the run of the folder cannot continue with these settings or shards, or the
/// file of start values cannot be used.
pub(super) fn start_state(
    sources: &Sources,
    config: &TrainConfig,
    options: &RunOptions,
    report: &dyn Fn(&str),
) -> Result<StartState> {
    let (found, damaged) = if options.restart {
        (None, Vec::new())
    } else {
        newest_state(&options.out)?
    };
    let Some(state) = found else {
        if !damaged.is_empty() {
            bail!(
                "no intact state is left in {} ({}); give --restart to begin again",
                options.out.display(),
                damaged.join("; ")
            );
        }
        return Ok(StartState {
            state: fresh_state(sources, config, options, report)?,
            fresh: true,
        });
    };
    for text in &damaged {
        report(&format!("warning: {text}; taking the one before it"));
    }
    check_continues(&state, sources, config, options)?;
    report(&format!(
        "resuming {} after iteration {}",
        options.out.display(),
        state.head.iteration
    ));
    if options.pretrained.is_some() {
        report("  --pretrain is for runs that begin; this one goes on from its own state");
    }
    Ok(StartState {
        state,
        fresh: false,
    })
}

/// The state of a run that begins: start values, or those of a network file.
fn fresh_state(
    sources: &Sources,
    config: &TrainConfig,
    options: &RunOptions,
    report: &dyn Fn(&str),
) -> Result<State> {
    let table = config.network.params();
    let mut start = table.start_values(config.seed);
    if let Some((path, strict)) = &options.pretrained {
        let Pretrained {
            values,
            taken,
            mismatches,
            source,
        } = {
            let located = locate(path, Purpose::Start)?;
            located.note.iter().for_each(|note| report(note));
            read_pretrained(&located.path, &config.network, start, *strict)?
        };
        report(&format!(
            "starting from {taken} tensors of {}{}",
            path.display(),
            source.map_or_else(String::new, |source| format!(", its entry {source}"))
        ));
        mismatches
            .iter()
            .for_each(|text| report(&format!("  not taken: {text}")));
        start = values;
    }
    let zeros = vec![0.0; table.trainable()];
    Ok(State::new(
        0,
        0,
        sources.fingerprint(),
        OpenLine::default(),
        config.clone(),
        [start.clone(), zeros.clone(), zeros, start],
    ))
}

/// Refuses a state that cannot be continued with these settings and shards.
fn check_continues(
    state: &State,
    sources: &Sources,
    config: &TrainConfig,
    options: &RunOptions,
) -> Result<()> {
    let table = config.network.params();
    let fixed: Vec<String> = state
        .head
        .config
        .obstacles(config)
        .iter()
        .map(|(k, v)| format!("{k}: {v}"))
        .collect();
    let place = options.out.display();
    ensure!(
        fixed.is_empty(),
        "{place} holds a run that cannot go on with other settings ({}); use another --out or --restart",
        fixed.join(", ")
    );
    ensure!(
        state.head.data == sources.fingerprint(),
        "{place} holds a run on other shards than {}; use another --out or --restart",
        sources.folders()
    );
    let sizes = [
        table.len(),
        table.trainable(),
        table.trainable(),
        table.len(),
    ];
    ensure!(
        state.vectors.iter().zip(sizes).all(|(v, n)| v.len() == n),
        "{place} holds a run of a network of another size; use another --out"
    );
    Ok(())
}

/// Reports the settings that changed since the state of a resumed run was saved.
pub(super) fn report_changes(start: &StartState, config: &TrainConfig, report: &dyn Fn(&str)) {
    let StartState { state, fresh } = start;
    let changed = if *fresh {
        Vec::new()
    } else {
        state.head.config.differences(config)
    };
    for (key, text) in &changed {
        report(&format!("  changed since: {key}: {text}"));
    }
    let (before, now) = (&state.head.config.schedule, &config.schedule);
    let iteration = state.head.iteration;
    if !fresh && before.lr(iteration + 1) != now.lr(iteration + 1) {
        report(&format!(
            "  the learning rate was {:.3e} at iteration {iteration} and is {:.3e} now",
            before.lr(iteration.max(1)),
            now.lr(iteration + 1)
        ));
    }
    if changed.iter().any(|(key, _)| key == "batch_size") {
        report(
            "  the same samples an iteration; sums are rounded in another order than in an unbroken run",
        );
    }
}
