//! Where a run starts: alone in its folder, from start values or from the newest state there.
//! Depends on the state and network files. Promises that a state is continued only with the
//! settings and shards it was made with.

use super::changes::rate_change;
use super::state_files::newest_state;
use super::{Level, OpenLine, Report, RunOptions, State, TrainConfig};
use crate::loader::Sources;
use crate::model::{Network, Pretrained, Purpose, locate, read_pretrained_or_network};
use crate::ranks;
use crate::support::lock::{FolderLock, lock_folder};
use anyhow::{Result, anyhow, bail, ensure};
use std::path::Path;

/// What a run starts from.
pub(super) struct StartState {
    pub state: State,
    /// True if the run begins; false if it continues from a state in its folder.
    pub fresh: bool,
}

impl StartState {
    /// Whether nothing is left to do: not even the log line of the last iteration.
    pub fn is_finished(&self, config: &TrainConfig) -> bool {
        let head = &self.state.head;
        !self.fresh && head.iteration >= config.total_iter && head.pending_line.is_none()
    }
}

/// Locks the folder of a run: two processes would overwrite each other's states.
pub(super) fn lock(out: &Path, report: &Report<'_>) -> Result<FolderLock> {
    let busy = "another process is training in";
    let busy = match ranks::switched_off() {
        Some(why) => format!("{why}; {busy}"),
        None => busy.to_string(),
    };
    let (lock, warning) = lock_folder(out, &busy)?;
    warning
        .iter()
        .for_each(|warning| report(Level::Warning, warning));
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
    report: &Report<'_>,
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
        report(
            Level::Warning,
            &format!("warning: {text}; taking the one before it"),
        );
    }
    check_continues(&state, sources, config, options)?;
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
    report: &Report<'_>,
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
            let notes = located.note.iter();
            notes.for_each(|note| report(Level::Info, note));
            let read = read_pretrained_or_network(&located.path, &config.network, start, *strict);
            read.map_err(|failed| {
                let (error, held) = *failed;
                let error = anyhow::Error::from(error);
                match held.and_then(|network| other_network(network, config)) {
                    Some(text) => anyhow!("{error:#}\n{text}"),
                    None => error,
                }
            })?
        };
        let fit = if mismatches.is_empty() {
            format!("all {taken} tensors fit")
        } else {
            format!("{taken} tensors fit")
        };
        let entry = source.map_or_else(String::new, |source| format!(", its entry {source}"));
        report(
            Level::Info,
            &format!("starting from {}{entry} ({fit})", path.display()),
        );
        mismatches
            .iter()
            .for_each(|text| report(Level::Info, &format!("  not taken: {text}")));
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

/// Which network a file holds, if it is another one than that of a run, and how to choose it.
fn other_network(network: Network, config: &TrainConfig) -> Option<String> {
    let name = format!("{} x{}", network.arch, network.scale);
    if network.scale != config.network.scale {
        return Some(format!(
            "  the file holds {name}, and the shards have scale {}; --lenient takes what fits",
            config.network.scale
        ));
    }
    let of_file = TrainConfig {
        network,
        ..config.clone()
    };
    let changes = config.changes(&of_file).obstacles;
    (!changes.is_empty()).then(|| {
        format!(
            "  the file holds {name}; what differs from this run:\n{}",
            rows(&changes)
        )
    })
}

/// Refuses a state that cannot be continued with these settings and shards.
fn check_continues(
    state: &State,
    sources: &Sources,
    config: &TrainConfig,
    options: &RunOptions,
) -> Result<()> {
    let place = options.out.display();
    let ways_on = |can_continue| ways_on(&options.out, can_continue);
    let before = &state.head.config;
    let changes = before.changes(config);
    ensure!(
        changes.obstacles.is_empty(),
        "{place} holds a run of {} iterations that cannot go on with other settings:\n{}\n{}",
        state.head.iteration,
        rows(&changes.obstacles),
        ways_on(false)
    );
    ensure!(
        state.head.data == sources.fingerprint(),
        "{place} holds a run on other shards than {}\n{}",
        sources.folders(),
        ways_on(false)
    );
    ensure!(
        changes.recipe.is_empty() || options.continue_changed,
        "{place} holds a run of {} iterations with another recipe:\n{}{}\n{}",
        state.head.iteration,
        rows(&changes.recipe),
        rate_change(before, config, state.head.iteration)
            .map_or_else(String::new, |text| format!("\n  with --continue {text}")),
        ways_on(true)
    );
    let table = config.network.params();
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

/// Changes as rows of an error.
fn rows(changes: &[String]) -> String {
    let rows: Vec<String> = changes.iter().map(|text| format!("  {text}")).collect();
    rows.join("\n")
}

/// What to do about a folder that holds another run than the one asked for.
fn ways_on(run: &Path, can_continue: bool) -> String {
    let mut out = String::new();
    let settings = run.join("config.yml");
    if settings.is_file() {
        out += &format!(
            "  --config {}   takes the settings of that run, in place of the flags it was begun with\n",
            settings.display()
        );
    }
    if can_continue {
        out += "  --continue   goes on with that run and the changed recipe\n";
    }
    out += "  --name NEW   begins a new run beside it, in runs/NEW (or --out DIR, a folder anywhere)\n";
    out + "  --restart    deletes that run and begins again"
}

/// Reports from where a run resumes, what has changed since its state was saved, and what that does
/// to the learning rate.
pub(super) fn report_resumed(
    start: &StartState,
    run: &Path,
    config: &TrainConfig,
    report: &Report<'_>,
) {
    let StartState { state, fresh } = start;
    if *fresh {
        return;
    }
    let (before, iteration) = (&state.head.config, state.head.iteration);
    report(
        Level::Info,
        &format!("resuming {} after iteration {iteration}", run.display()),
    );
    let changes = before.changes(config);
    for text in changes.all() {
        report(Level::Info, &format!("  changed: {text}"));
    }
    if let Some(text) = rate_change(before, config, iteration) {
        report(Level::Info, &format!("  {text}"));
    }
    if !changes.split.is_empty() {
        report(
            Level::Info,
            "  the same samples an iteration; sums are rounded in another order than in an unbroken run",
        );
    }
}
