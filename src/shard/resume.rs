//! What a run finds in its output folder: nothing, the same set already complete, an interrupted
//! run to go on from, a set to add images to, or another set that it must not touch. Depends on
//! `journal`, `reader` and `manifest`. Promises that two runs never write to one folder at once,
//! that nothing is removed but leftovers of an unfinished run, unless `--overwrite` says so, and
//! that a set which only an error of the system keeps from being read is never called damaged.

use super::assembly::{Assembly, held_out_folder};
use super::convert::files_crc;
use super::error::is_newer;
use super::file::partial_name;
use super::format::{HEADER_BYTES, Header};
use super::hash::Hash64;
use super::journal::{self, Entry, Head, Journal, Outcome};
use super::manifest::{self, Manifest, ShardInfo, is_shard_name, path_in, shard_name};
use super::plan::{BuildConfig, HeldOut, Job, Plan, Rejected};
use super::reader::ShardSet;
use super::set::SetWriter;
use super::source_table::SourceEntry;
use crate::support::failure;
use crate::support::files;
use crate::support::lock::{FolderLock, lock_folder};
use crate::support::progress::Progress;
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What stands in the output folder.
pub(super) enum Found {
    /// The very set that is asked for, with its held-out part and the images that gave nothing when
    /// it was made.
    Complete(Box<(Manifest, Option<Manifest>, Vec<Rejected>)>),
    /// Room to write, perhaps behind images that an interrupted run has decided.
    Ready(Box<Assembly>),
}

/// Manifests of a finished set and of its held-out part.
pub(super) type Before = [Option<Manifest>; 2];

/// Creates the folder, takes it for this process alone and clears half-written manifests; the lock
/// ends with the returned value. There is none in a folder that cannot be written to, where at most
/// a finished set is looked at.
pub(super) fn prepare(out: &Path, progress: &Progress) -> Result<Option<FolderLock>> {
    files::create_folder(out)?;
    let (lock, warning) = match lock_folder(out, "another paragon is writing to") {
        Ok(taken) => taken,
        Err(e) if is_read_only(&e) && manifest::is_in(out)? => return Ok(None),
        Err(e) => return Err(e),
    };
    warning.iter().for_each(|warning| progress.line(warning));
    for folder in [out.to_path_buf(), held_out_folder(out)] {
        remove(&folder, |name| {
            name.starts_with(".manifest.psm.") && name.ends_with(".partial")
        })?;
    }
    Ok(Some(lock))
}

fn is_read_only(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    failure::system_cause(error)
        .is_some_and(|cause| matches!(cause.kind(), PermissionDenied | ReadOnlyFilesystem))
}

/// Removes the files of a folder whose names are meant; a folder that is not there has none.
fn remove(folder: &Path, meant: impl Fn(&str) -> bool) -> Result<()> {
    for path in list(folder)? {
        if path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(&meant)
        {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || {
        fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
    };
    match failure::retry(read) {
        Ok(mut paths) => {
            paths.sort();
            Ok(paths)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("cannot read the folder {}", folder.display())),
    }
}

fn is_partial_shard(name: &str) -> bool {
    name.starts_with(".shard-") && name.ends_with(".partial")
}

/// Removes a set, finished or not, so that another can take its place: the manifest first, so that
/// no moment shows half of it.
pub(super) fn remove_set(out: &Path) -> Result<()> {
    for folder in [out.to_path_buf(), held_out_folder(out)] {
        remove(&folder, |name| name == super::manifest::MANIFEST_NAME)?;
        remove(&folder, |name| {
            is_shard_name(name) || is_partial_shard(name) || name == journal::JOURNAL_NAME
        })?;
    }
    let _ = fs::remove_dir(held_out_folder(out)); // stays where something else lies in it
    Ok(())
}

/// Manifests of the finished set in a folder; nothing where there is none.
pub(super) fn finished(out: &Path) -> Result<Before> {
    let read = |folder: &Path| -> Result<Option<Manifest>> {
        let there = manifest::is_in(folder)?;
        Ok(there.then(|| Manifest::read(folder)).transpose()?)
    };
    let main = read(out)?;
    let held_out = if main.is_some() {
        read(&held_out_folder(out))?
    } else {
        None
    };
    Ok([main, held_out])
}

/// The finished set that images are added to. A kill between the two manifests of an earlier try
/// leaves the held-out one ahead of the main one: it is taken as it was before, of which the
/// journal still knows the shards.
fn base_of_append(out: &Path) -> Result<Before> {
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
        held.used = sources_of(&folder, &held.shards)?.len() as u64;
        (held.images, held.inputs, held.extra.appended) =
            (held.used, main.inputs, main.extra.appended);
        // on the disk too: what follows may remove the shards that it would list
        if held.records() > 0 {
            held.write(&folder)?;
        } else {
            remove(&folder, |name| name == super::manifest::MANIFEST_NAME)?;
        }
    }
    Ok([main, held_out.filter(|held| held.records() > 0)])
}

const ADVICE: &str = "use --overwrite to replace it or choose another --out";

/// Why the set in `out` cannot be used. Only damage is a reason to replace it: an error of the
/// system says nothing about the set, and one in a newer format is whole.
pub(super) fn unusable(error: anyhow::Error, out: &Path, what: &str) -> anyhow::Error {
    let out = out.display();
    if failure::system_cause(&error).is_some() {
        error.context(format!(
            "the set in {out} cannot be looked at because of an error of the system, which says nothing about the set; see to that and \
             run the same command again"
        ))
    } else if is_newer(&error) {
        error.context(format!("{out} holds a set that this paragon cannot read"))
    } else {
        error.context(format!("{out} {what}; {ADVICE}"))
    }
}

/// Whether a run that was begun with `--overwrite`, for the very set that is asked for, lies there
/// unfinished: what was there before it is gone already, and it is gone on with.
fn begun_with_overwrite(out: &Path, plan: &Plan) -> Result<bool> {
    if manifest::is_in(out)? {
        return Ok(false);
    }
    match journal::Reader::open(out) {
        Ok(there) => Ok(there.is_some_and(|(head, _)| {
            head.overwrite && head.base_fingerprint == 0 && head.wanted.asks_for(&plan.manifest)
        })),
        Err(e) if failure::system_cause(&e).is_some() => Err(e),
        Err(_) => Ok(false), // no regular file: it is removed with the rest
    }
}

/// Judges what is in the output folder. Where images are added to a set, `plan` is left with the
/// new ones alone.
pub(super) fn find(
    config: &BuildConfig,
    plan: &mut Plan,
    progress: &Progress,
) -> Result<(Found, Before)> {
    let out = &config.out;
    let unreadable = |e| unusable(e, out, "holds a set that cannot be read");
    if config.append {
        let before = base_of_append(out).map_err(unreadable)?;
        if let Some(complete) = append(config, plan, &before)? {
            remove(out, |name| name == journal::JOURNAL_NAME)?; // of a run that was killed behind its last manifest
            return Ok((complete, before));
        }
        let ready = ready(config, plan, &before, progress)?;
        return Ok((Found::Ready(Box::new(ready)), before));
    }
    if config.overwrite {
        if !begun_with_overwrite(out, plan)? {
            remove_set(out)?;
        }
    } else if let [Some(main), held_out] = finished(out).map_err(unreadable)? {
        let complete = complete(config, plan, main, held_out)?;
        // the journal of a run that was killed behind its last manifest; not that of images being
        // added
        if journal::Reader::open(out)?.is_none_or(|(head, _)| head.base_fingerprint == 0) {
            remove(out, |name| name == journal::JOURNAL_NAME)?;
        }
        return Ok((complete, [None, None]));
    }
    let ready = ready(config, plan, &[None, None], progress)?;
    Ok((Found::Ready(Box::new(ready)), [None, None]))
}

/// The set that lies there finished, if it is the one that is asked for.
fn complete(
    config: &BuildConfig,
    plan: &Plan,
    main: Manifest,
    held_out: Option<Manifest>,
) -> Result<Found> {
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
    let known = Known::read(out, &main, held_out.as_ref())
        .map_err(|e| unusable(e, out, "holds this set, but damaged"))?;
    let mut rejected = Vec::new();
    for job in &plan.jobs {
        match known.sources.get(&job.source.name) {
            Some(source) if known.is(job, source)? => {}
            Some(_) => bail!(
                "{} has changed since the set in {} was made; {ADVICE}",
                job.source.hr.display(),
                out.display()
            ),
            None => rejected.push(Rejected {
                file: job.source.hr.clone(),
                kind: "no pairs".to_string(),
                reason: "it gave no pairs when the set was made".to_string(),
            }),
        }
    }
    Ok(Found::Complete(Box::new((main, held_out, rejected))))
}

/// The images of a finished set.
struct Known {
    sources: HashMap<String, SourceEntry>,
    /// When the set was finished: seconds and nanoseconds.
    made: (i64, i64),
}

/// The images in the first shards of the set in a folder, by name.
fn sources_of(folder: &Path, shards: &[ShardInfo]) -> Result<HashMap<String, SourceEntry>> {
    let count = shards.iter().map(|s| s.sources as usize).sum();
    let sources = ShardSet::open(folder)?.sources()?;
    Ok(sources
        .into_iter()
        .take(count)
        .map(|(source, _)| (source.name.clone(), source))
        .collect())
}

impl Known {
    fn read(out: &Path, main: &Manifest, held_out: Option<&Manifest>) -> Result<Self> {
        let mut sources = HashMap::new();
        for (folder, manifest) in [
            (out.to_path_buf(), Some(main)),
            (held_out_folder(out), held_out),
        ] {
            if manifest.is_some_and(|m| m.records() > 0) {
                sources.extend(sources_of(&folder, manifest.map_or(&[], |m| &m.shards))?);
            }
        }
        let made = about(&path_in(out))?;
        Ok(Known {
            sources,
            made: (made.mtime(), made.mtime_nsec()),
        })
    }

    /// Whether the files of a job are those that a source was cut from: by size, and by content
    /// where they were written to or came to their place since. A file that was moved or restored
    /// keeps the time of its last writing; the time of its last change moves.
    ///
    /// # Errors
    /// A file cannot be looked at or read.
    fn is(&self, job: &Job, source: &SourceEntry) -> Result<bool> {
        if job.file_bytes != source.bytes {
            return Ok(false);
        }
        for path in files_of(job) {
            let about = about(path)?;
            if (about.mtime(), about.mtime_nsec()).max((about.ctime(), about.ctime_nsec()))
                >= self.made
            {
                return Ok(files_crc(job)? == source.crc);
            }
        }
        Ok(true)
    }
}

fn files_of(job: &Job) -> impl Iterator<Item = &PathBuf> {
    [Some(&job.source.hr), job.source.lq.as_ref()]
        .into_iter()
        .flatten()
}

fn about(path: &Path) -> Result<Metadata> {
    failure::retry(|| fs::metadata(path))
        .with_context(|| format!("cannot look at {}", path.display()))
}

/// Leaves the new images in the plan; a finding where there are none.
fn append(config: &BuildConfig, plan: &mut Plan, before: &Before) -> Result<Option<Found>> {
    let out = &config.out;
    let [Some(main), held_out] = before else {
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
    let known = Known::read(out, main, held_out.as_ref())
        .map_err(|e| unusable(e, out, "holds a damaged set"))?;
    for job in &plan.jobs {
        if let Some(source) = known.sources.get(&job.source.name)
            && !known.is(job, source)?
        {
            let (file, name) = (job.source.hr.display(), &job.source.name);
            bail!(
                "{file}: the set in {} has another image of the name {name}; rename the new one",
                out.display()
            );
        }
    }
    plan.jobs
        .retain(|job| !known.sources.contains_key(&job.source.name));
    if matches!(config.val, Some(HeldOut::Count(_))) {
        plan.jobs.iter_mut().for_each(|job| job.held_out = false);
    }
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
    // the shards that are there say whose they are, and stay as they are
    plan.manifest.config = main.config;
    let nothing = plan.jobs.is_empty();
    Ok(nothing.then(|| {
        Found::Complete(Box::new((
            main.clone(),
            held_out.clone(),
            plan.rejected.clone(),
        )))
    }))
}

/// Goes on from a journal, or begins anew.
fn ready(
    config: &BuildConfig,
    plan: &Plan,
    before: &Before,
    progress: &Progress,
) -> Result<Assembly> {
    let out = &config.out;
    let shards = |m: &Option<Manifest>| m.as_ref().map_or(Vec::new(), |m| m.shards.clone());
    let base = [shards(&before[0]), shards(&before[1])];
    let head = Head {
        wanted: plan.manifest.clone(),
        base: [base[0].len() as u64, base[1].len() as u64],
        base_fingerprint: before[0].as_ref().map_or(0, Manifest::fingerprint),
        overwrite: config.overwrite,
    };
    let there = journal::Reader::open(out)?.map(|(there, _)| there);
    let left = leftovers(out, &base)?;
    let assembly = match there {
        Some(there)
            if there.wanted.asks_for(&head.wanted)
                && there.base_fingerprint == head.base_fingerprint =>
        {
            go_on(config, plan, &base)?
        }
        Some(_) if head.base_fingerprint != 0 => {
            progress.line(
                "images that an interrupted --append of other images has added so far are removed",
            );
            begin(config, plan, &base, &head)?
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
        _ => begin(config, plan, &base, &head)?,
    };
    for (folder, set) in [out.to_path_buf(), held_out_folder(out)]
        .into_iter()
        .zip(&assembly.sets)
    {
        let finished: Vec<String> = (0..set.shards.len()).map(shard_name).collect();
        let current = partial_name(Path::new(&shard_name(set.shards.len())))
            .display()
            .to_string();
        let current = if set.files() > set.shards.len() {
            current
        } else {
            String::new()
        };
        remove(&folder, |name| {
            (is_shard_name(name) && !finished.iter().any(|f| f == name))
                || (is_partial_shard(name) && name != current)
        })?;
    }
    Ok(assembly)
}

/// Shard files, finished and partial, that no manifest lists.
fn leftovers(out: &Path, base: &[Vec<ShardInfo>; 2]) -> Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    for (folder, base) in [out.to_path_buf(), held_out_folder(out)]
        .into_iter()
        .zip(base)
    {
        let listed: Vec<String> = (0..base.len()).map(shard_name).collect();
        left.extend(list(&folder)?.into_iter().filter(|path| {
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            is_partial_shard(name) || (is_shard_name(name) && !listed.iter().any(|l| l == name))
        }));
    }
    Ok(left)
}

/// Whether a shard that no journal knows says that it belongs to another set.
fn foreign(left: &[PathBuf], ours: &[u64]) -> Result<bool> {
    for path in left {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        let mut read = || {
            header.clear();
            files::open_regular(path)?
                .take(HEADER_BYTES as u64)
                .read_to_end(&mut header)
        };
        match failure::retry(&mut read) {
            Ok(_) => {}
            Err(e) if !failure::is_system(&e) => continue, // a link or folder of this name
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
        if Header::decode(&header).is_ok_and(|h| !ours.contains(&h.config)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn sets(config: &BuildConfig, plan: &Plan, base: &[Vec<ShardInfo>; 2]) -> [SetWriter; 2] {
    [false, true].map(|held_out| {
        let header = Header {
            geometry: plan.geometry,
            recipe: plan.manifest.recipe,
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

/// An assembly that knows the pairs of the shards before it.
fn assembly(config: &BuildConfig, plan: &Plan, base: &[Vec<ShardInfo>; 2]) -> Result<Assembly> {
    let mut assembly = Assembly::new(config, plan, sets(config, plan, base));
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

fn begin(
    config: &BuildConfig,
    plan: &Plan,
    base: &[Vec<ShardInfo>; 2],
    head: &Head,
) -> Result<Assembly> {
    let mut assembly = assembly(config, plan, base)?;
    assembly.begin(&config.out, head)?;
    Ok(assembly)
}

/// Takes over everything that the journal tells and the shards hold. What does not fit (an image
/// that has changed, a shard that is missing or damaged) is where the new run begins.
fn go_on(config: &BuildConfig, plan: &Plan, base: &[Vec<ShardInfo>; 2]) -> Result<Assembly> {
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

/// Whether the files of a job are those that a journal entry tells of.
fn unchanged(job: &Job, entry: &Entry) -> Result<bool> {
    let same = entry.stamp == stamp(job)?;
    match &entry.outcome {
        Outcome::Rejected { .. } => Ok(same),
        Outcome::Used(used) => {
            let source = &used.source;
            Ok(source.name == job.source.name
                && source.bytes == job.file_bytes
                && (same || files_crc(job)? == source.crc))
        }
    }
}

/// Stands for the sizes and times of the files of a job: of their last writing, and of their last
/// change, which moves when another file takes their name.
///
/// # Errors
/// A file cannot be looked at.
pub(super) fn stamp(job: &Job) -> Result<u64> {
    let mut hash = Hash64::default();
    for path in files_of(job) {
        let about = about(path)?;
        for word in [
            about.mtime(),
            about.mtime_nsec(),
            about.ctime(),
            about.ctime_nsec(),
        ] {
            hash.word(word as u64);
        }
        hash.word(about.len());
    }
    Ok(hash.finish())
}

/// What a run would find, in words, without touching anything.
pub fn foretell(config: &BuildConfig, plan: &Plan) -> String {
    let out = config.out.display();
    let before = match finished(&config.out) {
        Ok(before) => before,
        Err(e) => {
            return format!("{out} holds a set that cannot be read ({e:#}); a run would stop");
        }
    };
    if config.overwrite && !begun_with_overwrite(&config.out, plan).unwrap_or(false) {
        return format!("what is in {out} would be replaced");
    }
    match (&before[0], config.append) {
        (None, true) => return format!("{out} holds no finished set to add to; a run would stop"),
        (Some(main), true) => {
            let why = main.differences(&plan.manifest);
            if !why.is_empty() {
                return format!(
                    "{out} was made with other options ({}); a run would stop",
                    why.join("; ")
                );
            }
            return format!(
                "images that {out} does not hold yet would be added; its {} shards stay as they are",
                main.shards.len()
            );
        }
        (Some(main), false) if main.config == plan.manifest.config => {
            return format!("{out} holds this very set; nothing would be done");
        }
        (Some(main), false) => {
            let mut why = main.differences(&plan.manifest);
            if why.is_empty() {
                why.push("the images are not the same".to_string());
            }
            return format!(
                "{out} holds another set ({}); a run would stop: {ADVICE}",
                why.join("; ")
            );
        }
        (None, false) => {}
    }
    let Ok(Some((head, mut reader))) = journal::Reader::open(&config.out) else {
        return "nothing is there to go on from; all of it would be made".to_string();
    };
    if !head.wanted.asks_for(&plan.manifest) {
        return format!(
            "{out} is an unfinished set with other options or images; a run would stop: {ADVICE}"
        );
    }
    let mut left = plan.jobs.iter();
    let mut matches = || -> Result<bool> {
        let (Some(entry), Some(job)) = (reader.next()?, left.next()) else {
            return Ok(false);
        };
        unchanged(job, &entry)
    };
    let mut matching = 0;
    loop {
        match matches() {
            Ok(true) => matching += 1,
            Ok(false) => break,
            Err(e) => return format!("{out} holds an unfinished set, and a run would stop: {e:#}"),
        }
    }
    let all = plan.jobs.len();
    format!(
        "an interrupted run has done {matching} of {all} images; the same command goes on there"
    )
}

/// Makes the folder free for a set that is put together from parts: leftovers of the same set go.
pub(super) fn clear(config: &BuildConfig, plan: &Plan, overwrite: bool) -> Result<()> {
    let out = &config.out;
    if !overwrite {
        if manifest::is_in(out)? {
            bail!("{} holds another set already; {ADVICE}", out.display());
        }
        let left = leftovers(out, &[Vec::new(), Vec::new()])?;
        if foreign(&left, &[plan.config(false), plan.config(true)])? {
            bail!(
                "{} is left from another unfinished set; {ADVICE}",
                left[0].display()
            );
        }
    }
    remove_set(out)
}
