//! The parts that several machines made, put together as one machine would have made them. Depends
//! on `assembly` and `manifest`. Promises the bytes of the undivided run: records are checked and
//! copied as they are, shards are cut anew, and duplicates are looked for across parts.

use super::assembly::{Assembly, held_out_folder};
use super::convert::Converted;
use super::file::Record;
use super::format::{Geometry, Header, IndexEntry};
use super::manifest::Manifest;
use super::plan::{BuildConfig, Job, Plan};
use super::resume;
use super::set::SetWriter;
use super::source_table::{SourceEntry, decode_source};
use super::tables::{Tables, known_codec};
use crate::dataset::scan::Source;
use crate::support::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a merge made.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
    /// The whole was there already, put together from these parts; nothing was written.
    pub already_complete: bool,
    /// Images found by all parts.
    pub images: u64,
    /// Images that gave pairs, those held out included.
    pub used: u64,
    /// Pairs to train on.
    pub pairs: u64,
    /// Pairs held out.
    pub held_out_pairs: u64,
    /// Pairs of one part that another had already.
    pub duplicates_across_parts: u64,
    /// Shard files, those held out included.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Identity of the content, hexadecimal.
    pub fingerprint: String,
    /// Wall time, seconds.
    pub seconds: f64,
}

struct Part {
    folder: PathBuf,
    main: Manifest,
    held_out: Option<Manifest>,
}

/// Puts the parts in `folders`, in any order, together in `out`. They are only read; `out` needs as
/// much room again.
///
/// # Errors
/// A part that is missing, twice there, unfinished, of another set or damaged; `out` not free.
pub fn merge(
    out: &Path,
    folders: &[PathBuf],
    overwrite: bool,
    progress: &Progress,
) -> Result<Merged> {
    let started = Instant::now();
    let parts = gather(folders)?;
    for part in &parts {
        let same =
            matches!((out.canonicalize(), part.folder.canonicalize()), (Ok(a), Ok(b)) if a == b);
        ensure!(
            !same,
            "{} is one of the parts; give another folder for the whole",
            out.display()
        );
    }
    let plan = whole(&parts)?;
    let mut config = BuildConfig::new("", out, plan.manifest.scale, plan.manifest.lq_size);
    config.shard_bytes = plan.manifest.shard_bytes;
    config.keep_duplicates = plan
        .manifest
        .extra
        .options
        .iter()
        .any(|(name, _)| name == "keep-duplicates");
    let _lock = resume::prepare(out, progress)?;
    if !overwrite && let Some(merged) = complete(out, &parts, &plan, started)? {
        return Ok(merged);
    }
    resume::clear(&config, &plan, overwrite)?;
    let sets = [false, true].map(|held_out| {
        let header = Header {
            geometry: plan.geometry,
            recipe: plan.manifest.recipe,
            config: plan.config(held_out),
            number: 0,
        };
        let folder = if held_out {
            held_out_folder(out)
        } else {
            out.to_path_buf()
        };
        SetWriter::new(folder, header, config.shard_bytes, held_out, Vec::new())
    });
    let mut assembly = Assembly::new(&config, &plan, sets);
    for part in &parts {
        copy(part, &mut assembly, progress)
            .with_context(|| format!("part {}", part.folder.display()))?;
    }
    let across = assembly.tally.dropped.1;
    let finished = assembly.finish(out, &plan, [None, None])?;
    let (main, held_out) = (&finished.manifest, finished.held_out.as_ref());
    ensure!(main.records() > 0, "the parts hold no pairs to train on");
    Ok(report(main, held_out, across, started))
}

fn report(main: &Manifest, held_out: Option<&Manifest>, across: u64, started: Instant) -> Merged {
    Merged {
        already_complete: false,
        images: main.images,
        used: main.used + held_out.map_or(0, |m| m.used),
        pairs: main.records(),
        held_out_pairs: held_out.map_or(0, Manifest::records),
        duplicates_across_parts: across,
        shards: (main.shards.len() + held_out.map_or(0, |m| m.shards.len())) as u64,
        bytes: main.bytes() + held_out.map_or(0, Manifest::bytes),
        fingerprint: format!("{:016x}", main.fingerprint()),
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// The whole that lies in `out` finished, if it was put together from these very parts: made with
/// their options, from the images that they hold, with every pair of theirs but the duplicates that
/// it counts.
fn complete(out: &Path, parts: &[Part], plan: &Plan, started: Instant) -> Result<Option<Merged>> {
    let [Some(main), held_out] = resume::finished(out)
        .map_err(|e| resume::unusable(e, out, "holds a set that cannot be read"))?
    else {
        return Ok(None);
    };
    if main.config != plan.manifest.config
        || main.inputs != plan.manifest.inputs
        || main.images != plan.manifest.images
    {
        return Ok(None);
    }
    let pairs = |main: &Manifest, held_out: &Option<Manifest>| {
        main.records() + held_out.as_ref().map_or(0, Manifest::records)
    };
    let (in_parts, before) = parts.iter().fold((0, 0), |(n, d), p| {
        (n + pairs(&p.main, &p.held_out), d + p.main.extra.dropped.1)
    });
    let across = main.extra.dropped.1.saturating_sub(before);
    if main.extra.appended > 0 || in_parts != pairs(&main, &held_out) + across {
        return Ok(None);
    }
    let sources = |folder: &Path,
                   main: &Manifest,
                   held_out: &Option<Manifest>|
     -> Result<HashSet<(String, u64, u32)>> {
        let mut found = HashSet::new();
        for (folder, manifest) in [
            (folder.to_path_buf(), Some(main)),
            (held_out_folder(folder), held_out.as_ref()),
        ] {
            for number in 0..manifest.map_or(0, |m| m.shards.len()) {
                let Some(manifest) = manifest else { continue };
                let (tables, _) = Tables::open(&folder, manifest, number)?;
                let of_shard = tables
                    .sources()
                    .with_context(|| tables.path.display().to_string())?;
                found.extend(
                    of_shard
                        .into_iter()
                        .map(|(source, _)| (source.name, source.bytes, source.crc)),
                );
            }
        }
        Ok(found)
    };
    let there = sources(out, &main, &held_out)
        .map_err(|e| resume::unusable(e, out, "holds this set, but damaged"))?;
    let mut wanted = HashSet::new();
    for part in parts {
        let of_part = sources(&part.folder, &part.main, &part.held_out);
        wanted.extend(of_part.with_context(|| format!("part {}", part.folder.display()))?);
    }
    // an image of which every pair is in another part is not named by the whole
    let same = there.is_subset(&wanted) && (across > 0 || there.len() == wanted.len());
    Ok(same.then(|| Merged {
        already_complete: true,
        ..report(&main, held_out.as_ref(), across, started)
    }))
}

/// Reads the manifests, in order of their part numbers, and sees that nothing is missing.
fn gather(folders: &[PathBuf]) -> Result<Vec<Part>> {
    ensure!(!folders.is_empty(), "there are no parts to merge");
    let mut parts = Vec::new();
    for folder in folders {
        let main = Manifest::read(folder)?; // says why there is none
        ensure!(
            main.extra.part.0 > 0,
            "{} is a whole set and no part of one",
            folder.display()
        );
        let [_, held_out] = resume::finished(folder)?;
        parts.push(Part {
            folder: folder.clone(),
            main,
            held_out,
        });
    }
    parts.sort_by_key(|p| p.main.extra.part);
    let first = &parts[0];
    let count = first.main.extra.part.1;
    for part in &parts {
        if part.main.extra.whole != first.main.extra.whole || part.main.extra.part.1 != count {
            let mut why = part.main.differences(&first.main);
            why.push("options and images must be the same for all parts".to_string());
            bail!(
                "{} and {} are not parts of one set ({})",
                part.folder.display(),
                first.folder.display(),
                why.join("; ")
            );
        }
    }
    for number in 1..=count {
        let having: Vec<_> = parts
            .iter()
            .filter(|p| p.main.extra.part.0 == number)
            .collect();
        match having.as_slice() {
            [_] => {}
            [] => bail!(
                "part {number}/{count} is missing among the {} folders given",
                folders.len()
            ),
            [a, b, ..] => bail!(
                "part {number}/{count} is there twice: {} and {}",
                a.folder.display(),
                b.folder.display()
            ),
        }
    }
    Ok(parts)
}

/// What the undivided run would have planned, with the counts of all parts.
fn whole(parts: &[Part]) -> Result<Plan> {
    let mut manifest = parts[0].main.clone();
    manifest.config = manifest.extra.whole;
    (manifest.extra.part, manifest.extra.whole) = ((0, 0), 0);
    manifest.images = parts.iter().map(|p| p.main.images).sum();
    (manifest.used, manifest.shards) = (0, Vec::new());
    let mut kinds = std::collections::BTreeMap::new();
    manifest.extra.dropped = (0, 0);
    for part in parts {
        manifest.extra.dropped.0 += part.main.extra.dropped.0;
        manifest.extra.dropped.1 += part.main.extra.dropped.1;
        for (kind, count) in &part.main.extra.rejected {
            *kinds.entry(kind.clone()).or_insert(0) += count;
        }
    }
    manifest.extra.rejected = kinds.into_iter().collect();
    let geometry = Geometry::new(manifest.scale, manifest.lq_size)?;
    Ok(Plan {
        geometry,
        jobs: Vec::new(),
        rejected: Vec::new(),
        images: manifest.images,
        ignored: 0,
        left_out: Vec::new(),
        manifest,
    })
}

/// Hands the images of one part over, those to train on and those held out in their common order.
fn copy(part: &Part, assembly: &mut Assembly, progress: &Progress) -> Result<()> {
    let mut sets = [Images::new(&part.folder, &part.main), {
        let empty = Manifest {
            shards: Vec::new(),
            ..part.main.clone()
        };
        Images::new(
            &held_out_folder(&part.folder),
            part.held_out.as_ref().unwrap_or(&empty),
        )
    }];
    let mut heads = [sets[0].next()?, sets[1].next()?];
    loop {
        let held_out = match &heads {
            [None, None] => return Ok(()),
            [Some(_), None] => false,
            [None, Some(_)] => true,
            [Some(a), Some(b)] => b.source.name < a.source.name,
        };
        let next = sets[usize::from(held_out)].next()?;
        let Some(image) = std::mem::replace(&mut heads[usize::from(held_out)], next) else {
            continue;
        };
        let source = Source {
            name: image.source.name.clone(),
            hr: PathBuf::from(&image.source.name),
            lq: None,
        };
        let job = Job {
            source,
            size: (image.source.width, image.source.height),
            file_bytes: 0,
            pairs: 0,
            held_out,
            memory: 0,
        };
        progress.advance(image.records.len() as u64);
        assembly.accept(&job, 0, Ok(image))?;
    }
}

/// The images of a set with their records, one after the other.
struct Images {
    folder: PathBuf,
    manifest: Manifest,
    number: usize,
    open: Option<Shard>,
    /// An image whose records may go on in the next shard.
    pending: Option<Converted>,
}

/// A checked shard whose records are read one after the other, by calls.
pub(super) struct Shard {
    tables: Tables,
    sources: Vec<u8>,
    at: usize,
}

impl Images {
    fn new(folder: &Path, manifest: &Manifest) -> Self {
        Images {
            folder: folder.to_path_buf(),
            manifest: manifest.clone(),
            number: 0,
            open: None,
            pending: None,
        }
    }

    fn next(&mut self) -> Result<Option<Converted>> {
        loop {
            if self.open.is_none() {
                if self.number == self.manifest.shards.len() {
                    return Ok(self.pending.take());
                }
                self.open = Some(Shard::open(&self.folder, &self.manifest, self.number)?);
                self.number += 1;
            }
            let Some(shard) = &mut self.open else {
                continue;
            };
            if shard.at == shard.tables.footer.records as usize {
                self.open = None;
                continue;
            }
            let (source, entry, payload) = shard
                .record()
                .with_context(|| shard.tables.path.display().to_string())?;
            let mut complete = None;
            if self.pending.as_ref().is_none_or(|p| p.source != source) {
                let next = Converted {
                    source,
                    flat: 0,
                    notes: Vec::new(),
                    records: Vec::new(),
                    payload: Vec::new(),
                };
                complete = self.pending.replace(next);
            }
            if let Some(image) = &mut self.pending {
                let codec = known_codec(entry.codec)?;
                image.records.push(Record {
                    x: entry.x,
                    y: entry.y,
                    codec,
                    crc: entry.crc,
                    length: entry.length,
                });
                image.payload.extend_from_slice(&payload);
            }
            if complete.is_some() {
                return Ok(complete);
            }
        }
    }
}

impl Shard {
    /// Opens a shard of a set and checks its structure.
    pub fn open(folder: &Path, manifest: &Manifest, number: usize) -> Result<Self> {
        let (tables, _) = Tables::open(folder, manifest, number)?;
        let sources = tables
            .source_table()
            .with_context(|| tables.path.display().to_string())?;
        Ok(Shard {
            tables,
            sources,
            at: 0,
        })
    }

    /// The next record, its checksum looked at; call it as often as the manifest lists records.
    pub fn record(&mut self) -> Result<(SourceEntry, IndexEntry, Vec<u8>)> {
        let number = self.at;
        self.at += 1;
        let entry = self.tables.entry(number)?;
        let source = decode_source(&self.sources, self.tables.footer.sources, entry.source)?;
        let mut payload = vec![0; entry.length as usize];
        self.tables
            .read(&mut payload, entry.offset, "the record")
            .with_context(|| format!("record {number}"))?;
        ensure!(
            crc32fast::hash(&payload) == entry.crc,
            "record {number} (image {}) is damaged (checksum mismatch)",
            source.name
        );
        Ok((source, entry, payload))
    }
}
