//! Decides how a run begins in its output folder: it makes a new set, continues an interrupted run,
//! adds images to a set, or finds the same set complete. Depends on `output_folder`, `journal` and
//! `same_files`. Promises that only leftovers of an unfinished run are removed, unless
//! `--overwrite` is given, and that a set is not called damaged because the system cannot read it.

use super::assembly::Assembly;
use super::file::partial_name;
use super::format::Header;
use super::hash::Hash64;
use super::journal::{self, Head, Journal};
use super::manifest::{
    self, MANIFEST_NAME, Manifest, ShardInfo, held_out_folder, is_shard_name, shard_name,
};
use super::output_folder::{
    ADVICE, SetManifests, finished, foreign, is_partial_shard, leftovers, remove, remove_set,
    unusable,
};
use super::plan::{BuildConfig, Plan, Rejected};
use super::rejections;
use super::same_files::{SetImages, images_of, unchanged};
use super::set::SetWriter;
use crate::support::failure;
use crate::support::progress::Progress;
use anyhow::{Context, Result, bail};
use std::collections::HashSet;
use std::path::Path;

/// State of the output folder at the start of a run.
pub(super) enum OutputState {
    /// The set that is asked for is complete. Holds the manifests of the set and of its held-out
    /// part, and the images that gave no pairs when it was made.
    Complete(Box<(Manifest, Option<Manifest>, Vec<Rejected>)>),
    /// The run can write. If it continues an interrupted run, the assembly holds what that run has
    /// done.
    Ready(Box<Assembly>),
}

/// The finished set that images are added to. If an earlier `--append` was killed between writing
/// the two manifests, the held-out manifest is ahead of the main one. It is then taken back to its
/// earlier state, for which the journal has the number of shards.
fn base_of_append(out: &Path) -> Result<SetManifests> {
    let [main, mut held_out] = finished(out)?;
    let ahead = |held: &Manifest| {
        main.as_ref()
            .is_some_and(|m| held.extra.appended > m.extra.appended)
    };
    if let (Some(held), Some(main)) = (held_out.as_mut().filter(|held| ahead(held)), &main)
        && let Some((head, _)) = journal::Reader::open(out)?
    {
        held.shards.truncate(head.base[1] as usize);
        let folder = held_out_folder(out);
        held.used = images_of(&folder, &held.shards)?.len() as u64;
        (held.images, held.inputs, held.extra.appended) =
            (held.used, main.inputs, main.extra.appended);
        // the file is changed too, since the run may remove the shards that it would list
        if held.records() > 0 {
            held.write(&folder)?;
        } else {
            remove(&folder, |name| name == MANIFEST_NAME)?;
        }
    }
    Ok([main, held_out.filter(|held| held.records() > 0)])
}

/// Whether `out` holds an unfinished run that was begun with `--overwrite` and makes the set that
/// is asked for. It has removed the earlier set already, so it is continued.
pub(super) fn begun_with_overwrite(out: &Path, plan: &Plan) -> Result<bool> {
    if manifest::is_in(out)? {
        return Ok(false);
    }
    match journal::Reader::open(out) {
        Ok(there) => Ok(there.is_some_and(|(head, _)| {
            head.overwrite && head.base_fingerprint == 0 && head.wanted.asks_for(&plan.manifest)
        })),
        Err(e) if failure::system_cause(&e).is_some() => Err(e),
        Err(_) => Ok(false), // not a regular file: it is removed with the rest
    }
}

/// Inspects the output folder. If images are added to a set, only the new ones stay in `plan`, and
/// the manifests of that set are returned.
///
/// # Errors
/// The folder holds another set, or one that cannot be read; an error of the system.
pub(super) fn inspect(
    config: &BuildConfig,
    plan: &mut Plan,
    progress: &Progress,
) -> Result<(OutputState, SetManifests)> {
    let out = &config.out;
    let unreadable = |e| unusable(e, out, "holds a set that cannot be read");
    if config.append {
        let base = base_of_append(out).map_err(unreadable)?;
        if let Some(complete) = append(config, plan, &base)? {
            // left by a run that was killed after its last manifest
            remove(out, |name| name == journal::JOURNAL_NAME)?;
            return Ok((complete, base));
        }
        let ready = ready(config, plan, &base, progress)?;
        return Ok((OutputState::Ready(Box::new(ready)), base));
    }
    if config.overwrite {
        if !begun_with_overwrite(out, plan)? {
            remove_set(out)?;
        }
    } else if let [Some(main), held_out] = finished(out).map_err(unreadable)? {
        let complete = complete(config, plan, main, held_out)?;
        // the journal was left by a run that was killed after its last manifest, unless it belongs
        // to an unfinished `--append`
        if journal::Reader::open(out)?.is_none_or(|(head, _)| head.base_fingerprint == 0) {
            remove(out, |name| name == journal::JOURNAL_NAME)?;
        }
        return Ok((complete, [None, None]));
    }
    let ready = ready(config, plan, &[None, None], progress)?;
    Ok((OutputState::Ready(Box::new(ready)), [None, None]))
}

/// Checks that the finished set in the folder is the one that is asked for.
fn complete(
    config: &BuildConfig,
    plan: &Plan,
    main: Manifest,
    held_out: Option<Manifest>,
) -> Result<OutputState> {
    let out = &config.out;
    if main.config != plan.manifest.config {
        let mut why = main.differences(&plan.manifest);
        let mut advice = ADVICE.to_string();
        if why.is_empty() {
            advice = format!("use --append to add what is new, {ADVICE}");
        }
        if why.is_empty() || main.inputs != plan.manifest.inputs {
            why.push("the images are not the same (names or sizes)".to_string());
        }
        bail!(
            "{} holds another set ({}); {advice}",
            out.display(),
            why.join("; ")
        );
    }
    let images = SetImages::read(out, &main, held_out.as_ref())
        .map_err(|e| unusable(e, out, "holds this set, but damaged"))?;
    let mut without_pairs = Vec::new();
    for job in &plan.jobs {
        match images.sources.get(&job.source.name) {
            Some(source) if images.is_same(job, source)? => {}
            Some(_) => bail!(
                "{} has changed since the set in {} was made; {ADVICE}",
                job.source.hr.display(),
                out.display()
            ),
            None => without_pairs.push(job),
        }
    }
    let kinds = &main.extra.rejected;
    let rejected = rejections::of_an_earlier_run(config, plan, &without_pairs, kinds)?;
    Ok(OutputState::Complete(Box::new((main, held_out, rejected))))
}

/// Removes from the plan the images that the set `base` has already. If no image is left, the set
/// is complete and that is returned.
fn append(
    config: &BuildConfig,
    plan: &mut Plan,
    base: &SetManifests,
) -> Result<Option<OutputState>> {
    let out = &config.out;
    let [Some(main), held_out] = base else {
        bail!(
            "{} holds no finished set to add to; leave out --append to make one",
            out.display()
        );
    };
    let why = main.differences(&plan.manifest);
    if !why.is_empty() {
        bail!(
            "images can only be added to {} with the same options ({})",
            out.display(),
            why.join("; ")
        );
    }
    let images = SetImages::read(out, main, held_out.as_ref())
        .map_err(|e| unusable(e, out, "holds a damaged set"))?;
    for job in &plan.jobs {
        if let Some(source) = images.sources.get(&job.source.name)
            && !images.is_same(job, source)?
        {
            let (file, name) = (job.source.hr.display(), &job.source.name);
            bail!(
                "{file}: the set in {} has another image of the name {name}; rename the new one",
                out.display()
            );
        }
    }
    let names: HashSet<&str> = plan.jobs.iter().map(|job| &*job.source.name).collect();
    let gone = images
        .sources
        .keys()
        .filter(|name| !names.contains(name.as_str()));
    plan.gone = gone.count() as u64;
    plan.jobs
        .retain(|job| !images.sources.contains_key(&job.source.name));
    plan.images = (plan.jobs.len() + plan.rejected.len()) as u64;
    plan.manifest.images = plan.images;
    let mut inputs = Hash64::default();
    inputs.word(main.inputs);
    for job in &plan.jobs {
        inputs
            .bytes(job.source.name.as_bytes())
            .word(job.file_bytes);
    }
    plan.manifest.inputs = inputs.finish();
    // the finished shards hold this hash in their headers, and they are not written again
    plan.manifest.config = main.config;
    let nothing = plan.jobs.is_empty();
    Ok(nothing.then(|| {
        OutputState::Complete(Box::new((
            main.clone(),
            held_out.clone(),
            plan.rejected.clone(),
        )))
    }))
}

/// Continues the run of the journal in the folder, or begins a new one. Shard files that belong to
/// neither are removed.
fn ready(
    config: &BuildConfig,
    plan: &Plan,
    base: &SetManifests,
    progress: &Progress,
) -> Result<Assembly> {
    let out = &config.out;
    let shards = |m: &Option<Manifest>| m.as_ref().map_or(Vec::new(), |m| m.shards.clone());
    let base_fingerprint = base[0].as_ref().map_or(0, Manifest::fingerprint);
    let base = [shards(&base[0]), shards(&base[1])];
    let head = Head {
        wanted: plan.manifest.clone(),
        base: [base[0].len() as u64, base[1].len() as u64],
        base_fingerprint,
        overwrite: config.overwrite,
    };
    let assembly = continue_or_begin(config, plan, &base, &head, progress)?;
    for (folder, set) in [out.to_path_buf(), held_out_folder(out)]
        .into_iter()
        .zip(&assembly.sets)
    {
        let finished: Vec<String> = (0..set.shards.len()).map(shard_name).collect();
        let unfinished = (set.files() > set.shards.len())
            .then(|| partial_name(Path::new(&shard_name(set.shards.len()))));
        remove(&folder, |name| {
            (is_shard_name(name) && !finished.iter().any(|f| f == name))
                || (is_partial_shard(name) && unfinished.as_deref() != Some(Path::new(name)))
        })?;
    }
    Ok(assembly)
}

/// Compares the journal in the folder with the run that is asked for.
fn continue_or_begin(
    config: &BuildConfig,
    plan: &Plan,
    base: &[Vec<ShardInfo>; 2],
    head: &Head,
    progress: &Progress,
) -> Result<Assembly> {
    let out = &config.out;
    let there = journal::Reader::open(out)?.map(|(there, _)| there);
    let left = leftovers(out, base)?;
    match there {
        Some(there)
            if there.wanted.asks_for(&head.wanted)
                && there.base_fingerprint == head.base_fingerprint =>
        {
            continue_run(config, plan, base)
        }
        Some(_) if head.base_fingerprint != 0 => {
            progress.line(
                "images that an interrupted --append of other images has added so far are removed",
            );
            begin_run(config, plan, base, head)
        }
        Some(there) if !left.is_empty() => {
            let mut why = there.wanted.differences(&head.wanted);
            if there.wanted.inputs != head.wanted.inputs {
                let (then, now) = (there.wanted.images, head.wanted.images);
                why.push(format!(
                    "the images are not the same in names or sizes, {then} then and {now} now"
                ));
            }
            bail!(
                "{} is an unfinished set with other options or images ({}); {ADVICE}",
                out.display(),
                why.join("; ")
            );
        }
        None if foreign(&left, &[plan.config(false), plan.config(true)])? => {
            bail!(
                "{} is left from an unfinished set with other options or images; {ADVICE}",
                left[0].display()
            );
        }
        _ => begin_run(config, plan, base, head),
    }
}

/// The writers of the set to train on and of the held-out set, after their finished shards `base`.
fn sets(config: &BuildConfig, plan: &Plan, base: &[Vec<ShardInfo>; 2]) -> [SetWriter; 2] {
    [false, true].map(|held_out| {
        let header = Header {
            geometry: plan.geometry,
            recipe: plan.manifest.recipe,
            lqs: plan.lqs,
            config: plan.config(held_out),
            number: 0,
        };
        let folder = if held_out {
            held_out_folder(&config.out)
        } else {
            config.out.clone()
        };
        SetWriter::new(
            folder,
            header,
            config.shard_bytes,
            held_out,
            base[usize::from(held_out)].clone(),
        )
    })
}

/// Makes an assembly that knows the pairs and the images of the finished shards `base`, to find
/// duplicates of them.
fn assembly(config: &BuildConfig, plan: &Plan, base: &[Vec<ShardInfo>; 2]) -> Result<Assembly> {
    let mut assembly = Assembly::new(config, plan, sets(config, plan, base));
    if let Some(near) = &mut assembly.near {
        near.load(&config.out, false, base[0].len())?;
        near.load(&held_out_folder(&config.out), true, base[1].len())?;
    }
    if let Some(duplicates) = &mut assembly.duplicates {
        for (held_out, folder) in [
            (false, config.out.clone()),
            (true, held_out_folder(&config.out)),
        ] {
            for number in 0..base[usize::from(held_out)].len() {
                duplicates.note_shard(&folder.join(shard_name(number)), held_out, number)?;
            }
        }
    }
    Ok(assembly)
}

fn begin_run(
    config: &BuildConfig,
    plan: &Plan,
    base: &[Vec<ShardInfo>; 2],
    head: &Head,
) -> Result<Assembly> {
    let mut assembly = assembly(config, plan, base)?;
    assembly.begin(&config.out, head)?;
    Ok(assembly)
}

/// Replays the journal against the shards. The new run begins at the first image that has changed,
/// or whose records are missing or damaged.
fn continue_run(config: &BuildConfig, plan: &Plan, base: &[Vec<ShardInfo>; 2]) -> Result<Assembly> {
    // if shards lack records of an entry, the replay starts again and stops before that entry
    let mut keep = u64::MAX;
    loop {
        let (_, mut reader) = journal::Reader::open(&config.out)?.context("the journal is gone")?;
        let mut assembly = assembly(config, plan, base)?;
        assembly.sets.iter_mut().for_each(SetWriter::count_again);
        let mut end = reader.at;
        while assembly.decided < keep && assembly.sets.iter().all(|set| set.missing().is_none()) {
            let Some(entry) = reader.next()? else { break };
            let Some(job) = plan.jobs.get(assembly.decided as usize) else {
                break;
            };
            if entry.job != assembly.decided || !unchanged(job, &entry)? {
                break;
            }
            assembly.replay(job, &entry)?;
            end = reader.at;
        }
        let mut cut = None;
        for set in &mut assembly.sets {
            let bad = set.attach()?;
            cut = [cut, bad].into_iter().flatten().min();
        }
        match cut {
            Some(entry) => keep = entry,
            None => {
                assembly.journal = Some(Journal::resume(&config.out, end)?);
                return Ok(assembly);
            }
        }
    }
}
