//! Merges the parts that several machines have made into one set. Depends on `assembly` and
//! `manifest`. Promises the same bytes as a run on one machine: records are checked and copied as
//! they are, shard ends are set anew, and duplicates are found across parts.

use super::assembly::Assembly;
use super::convert::Converted;
use super::criteria::{Criteria, NEAR_DUPLICATE};
use super::file::Record;
use super::format::{Geometry, Header};
use super::manifest::{Manifest, held_out_folder};
use super::near_duplicates::{self, HashedImage};
use super::output_folder::{clear, finished, prepare, unusable};
use super::plan::{BuildConfig, Job, Plan};
use super::set::SetWriter;
use super::shard_reader::ShardReader;
use super::tables::{Tables, known_codec};
use crate::dataset::scan::{IgnoredFiles, Source};
use crate::support::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The result of a merge.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
    /// The output folder held the merged set of these parts already; nothing was written.
    pub already_complete: bool,
    /// Images found by all parts.
    pub images: u64,
    /// Images that gave pairs, those held out included.
    pub used: u64,
    /// Pairs to train on.
    pub pairs: u64,
    /// Pairs held out.
    pub held_out_pairs: u64,
    /// Pairs left out because another part has the same pair.
    pub duplicates_across_parts: u64,
    /// Images left out because they resemble an earlier one; parts keep them.
    pub near_duplicates: u64,
    /// Shard files, those held out included.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Identity of the content, hexadecimal.
    pub fingerprint: String,
    /// Wall time, seconds.
    pub seconds: f64,
}

/// One part, as its manifests describe it.
struct Part {
    folder: PathBuf,
    main: Manifest,
    held_out: Option<Manifest>,
}

/// Merges the parts in `folders`, given in any order, into `out`. The parts are only read; `out`
/// needs as much disk space again.
///
/// # Errors
/// A part that is missing, given twice, unfinished, of another set or damaged; `out` holds another
/// set; an error of the system.
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
    let mut plan = whole(&parts)?;
    let mut config = BuildConfig::new("", out, plan.manifest.scale, plan.manifest.lq_size);
    config.shard_bytes = plan.manifest.shard_bytes;
    config.criteria = Criteria::from_options(&plan.manifest.extra.options);
    config.keep_duplicates = plan
        .manifest
        .extra
        .options
        .iter()
        .any(|(name, _)| name == "keep-duplicates");
    let _lock = prepare(out, progress)?;
    if !overwrite && let Some(merged) = complete(out, &parts, &plan, started)? {
        return Ok(merged);
    }
    clear(&config, &plan, overwrite)?;
    let sets = [false, true].map(|held_out| {
        let header = Header {
            geometry: plan.geometry,
            recipe: plan.manifest.recipe,
            lqs: plan.lqs,
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
        // patches that were left out of these images are counted again for those that stay
        let flat = copy(part, &mut assembly, progress)
            .with_context(|| format!("part {}", part.folder.display()))?;
        let dropped = &mut plan.manifest.extra.dropped.0;
        *dropped = dropped.saturating_sub(flat);
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
        near_duplicates: near_duplicates_of(main),
        shards: (main.shards.len() + held_out.map_or(0, |m| m.shards.len())) as u64,
        bytes: main.bytes() + held_out.map_or(0, Manifest::bytes),
        fingerprint: format!("{:016x}", main.fingerprint()),
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn near_duplicates_of(main: &Manifest) -> u64 {
    let mut kinds = main.extra.rejected.iter();
    let found = kinds.find(|(kind, _)| kind == NEAR_DUPLICATE);
    found.map_or(0, |(_, count)| *count)
}

/// The report of the finished set in `out`, if it is the merged set of these parts: it has their
/// options, their images, and all their pairs except the duplicates that it counts.
fn complete(out: &Path, parts: &[Part], plan: &Plan, started: Instant) -> Result<Option<Merged>> {
    let [Some(main), held_out] =
        finished(out).map_err(|e| unusable(e, out, "holds a set that cannot be read"))?
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
    let near = near_duplicates_of(&main);
    let lost = in_parts.checked_sub(pairs(&main, &held_out) + across);
    if main.extra.appended > 0 || lost.is_none_or(|lost| lost > 0 && near == 0) {
        return Ok(None);
    }
    let there = images(out, &main, held_out.as_ref())
        .map_err(|e| unusable(e, out, "holds this set, but damaged"))?;
    let mut wanted = HashSet::new();
    for part in parts {
        let of_part = images(&part.folder, &part.main, part.held_out.as_ref());
        wanted.extend(of_part.with_context(|| format!("part {}", part.folder.display()))?);
    }
    // an image whose pairs are all duplicates of another part is not in the merged set
    let same = there.is_subset(&wanted)
        && (across > 0 || there.len() as u64 + near == wanted.len() as u64);
    Ok(same.then(|| Merged {
        already_complete: true,
        ..report(&main, held_out.as_ref(), across, started)
    }))
}

/// The images of a set and of its held-out part: name, file size and CRC32.
fn images(
    folder: &Path,
    main: &Manifest,
    held_out: Option<&Manifest>,
) -> Result<HashSet<(String, u64, u32)>> {
    let mut found = HashSet::new();
    for (folder, manifest) in [
        (folder.to_path_buf(), Some(main)),
        (held_out_folder(folder), held_out),
    ] {
        let Some(manifest) = manifest else { continue };
        for number in 0..manifest.shards.len() {
            let (tables, _) = Tables::open(&folder, manifest, number)?;
            let of_shard = tables
                .sources()
                .with_context(|| tables.path.display().to_string())?;
            let identity = of_shard.into_iter().map(|(s, _)| (s.name, s.bytes, s.crc));
            found.extend(identity);
        }
    }
    Ok(found)
}

/// Reads the manifests of the parts, sorts them by part number and checks that no part is missing.
fn gather(folders: &[PathBuf]) -> Result<Vec<Part>> {
    ensure!(!folders.is_empty(), "there are no parts to merge");
    let mut parts = Vec::new();
    for folder in folders {
        let main = Manifest::read(folder)?;
        ensure!(
            main.extra.part.0 > 0,
            "{} is a whole set and no part of one",
            folder.display()
        );
        let [_, held_out] = finished(folder)?;
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

/// The plan that a run on one machine would have made, without its jobs.
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
        lqs: manifest.lqs()?,
        jobs: Vec::new(),
        rejected: Vec::new(),
        images: manifest.images,
        ignored: IgnoredFiles::default(),
        gone: 0,
        left_out: Vec::new(),
        manifest,
    })
}

/// Copies the images of one part, in the order in which one run would have converted them: those to
/// train on and those held out together, sorted by name.
///
/// Returns the number of patches that the part has left out of its images, as far as its file of hashes
/// says it: a run on one machine does not count those of near duplicates.
fn copy(part: &Part, assembly: &mut Assembly, progress: &Progress) -> Result<u64> {
    let mut flat = 0;
    let mut sets = [ImageReader::new(&part.folder, &part.main)?, {
        let empty = Manifest {
            shards: Vec::new(),
            ..part.main.clone()
        };
        ImageReader::new(
            &held_out_folder(&part.folder),
            part.held_out.as_ref().unwrap_or(&empty),
        )?
    }];
    let mut heads = [sets[0].next()?, sets[1].next()?];
    loop {
        let held_out = match &heads {
            [None, None] => return Ok(flat),
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
        flat += image.flat;
        assembly.accept(&job, 0, Ok(image))?;
    }
}

/// Reads the images of a set with their records, one after the other.
struct ImageReader {
    folder: PathBuf,
    manifest: Manifest,
    /// Number of the next shard.
    number: usize,
    open: Option<ShardReader>,
    /// The image that is being read; its records may go on in the next shard.
    pending: Option<Converted>,
    /// The perceptual hashes of the images, if near duplicates are looked for.
    hashes: Option<std::vec::IntoIter<HashedImage>>,
}

impl ImageReader {
    fn new(folder: &Path, manifest: &Manifest) -> Result<Self> {
        let criteria = Criteria::from_options(&manifest.extra.options);
        let with_hashes = criteria.near_duplicates.is_some() && !manifest.shards.is_empty();
        let hashes = with_hashes.then(|| near_duplicates::read(folder));
        Ok(ImageReader {
            folder: folder.to_path_buf(),
            manifest: manifest.clone(),
            number: 0,
            open: None,
            pending: None,
            hashes: hashes.transpose()?.map(Vec::into_iter),
        })
    }

    /// The next image with its records and, if near duplicates are looked for, its hash and the number
    /// of its patches that were left out.
    fn next(&mut self) -> Result<Option<Converted>> {
        let Some(mut image) = self.next_records()? else {
            return Ok(None);
        };
        if let Some(hashes) = &mut self.hashes {
            let hashed = hashes.next().with_context(|| {
                format!("its file of hashes lacks that of {}", image.source.name)
            })?;
            (image.hash, image.flat) = (Some(hashed.hash), u64::from(hashed.flat));
        }
        Ok(Some(image))
    }

    fn next_records(&mut self) -> Result<Option<Converted>> {
        loop {
            if self.open.is_none() {
                if self.number == self.manifest.shards.len() {
                    return Ok(self.pending.take());
                }
                self.open = Some(ShardReader::open(
                    &self.folder,
                    &self.manifest,
                    self.number,
                )?);
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
                    hash: None,
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
