//! Where a run begins: alone in its folder, from start values or from the newest state there.
//! Depends on the state and network files. It promises that a state goes on only with the settings
//! and shards it was made with.

use super::{OpenLine, RunOptions, State, TrainConfig, newest_state};
use crate::loader::Sources;
use crate::model::{Pretrained, read_pretrained};
use crate::support::lock::{FolderLock, lock_folder};
use anyhow::{Result, bail, ensure};
use std::path::Path;

/// One process per run folder: two would overwrite each other's states.
pub(super) fn lock(out: &Path, report: &dyn Fn(&str)) -> Result<FolderLock> {
    let (lock, warning) = lock_folder(out, "another process is training in")?;
    warning.iter().for_each(|warning| report(warning));
    Ok(lock)
}

/// The state to start from, and whether it is a fresh one.
pub(super) fn start_state(
    sources: &Sources,
    config: &TrainConfig,
    options: &RunOptions,
    report: &dyn Fn(&str),
) -> Result<(State, bool)> {
    let (found, damaged) = if options.restart {
        (None, Vec::new())
    } else {
        newest_state(&options.out)?
    };
    let table = config.network.params();
    let Some(state) = found else {
        if !damaged.is_empty() {
            bail!(
                "no whole state is left in {} ({}); give --restart to begin again",
                options.out.display(),
                damaged.join("; ")
            );
        }
        let mut start = table.start_values(config.seed);
        if let Some((path, strict)) = &options.pretrained {
            let Pretrained {
                values,
                taken,
                mismatches,
            } = read_pretrained(path, &config.network, start, *strict)?;
            report(&format!(
                "starting from {taken} parameters of {}",
                path.display()
            ));
            mismatches
                .iter()
                .for_each(|text| report(&format!("  not taken: {text}")));
            start = values;
        }
        let zeros = vec![0.0; table.trainable()];
        return Ok((
            State::new(
                0,
                0,
                sources.fingerprint(),
                OpenLine::default(),
                config.clone(),
                [start.clone(), zeros.clone(), zeros, start],
            ),
            true,
        ));
    };
    for text in &damaged {
        report(&format!("warning: {text}; taking the one before it"));
    }
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
    report(&format!(
        "resuming {place} after iteration {}",
        state.head.iteration
    ));
    if options.pretrained.is_some() {
        report("  --pretrain is for runs that begin; this one goes on from its own state");
    }
    Ok((state, false))
}

/// What is not as it was when a resumed run was saved.
pub(super) fn tell_changes(
    state: &State,
    fresh: bool,
    config: &TrainConfig,
    report: &dyn Fn(&str),
) {
    let changed = if fresh {
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
