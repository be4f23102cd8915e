//! The parts that several machines made, put together as one machine would have made them. Depends on `assembly` and
//! `manifest`. Promises the bytes of the undivided run: records are checked and copied as they are, shards are cut anew,
//! and duplicates are looked for across parts.

use super::assembly::{Assembly, held_out_folder};
use super::codec::Codec;
use super::convert::Converted;
use super::file::Record;
use super::format::{FOOTER_BYTES, Footer, Geometry, HEADER_BYTES, Header, INDEX_ENTRY_BYTES, IndexEntry, SourceEntry, decode_source};
use super::manifest::{Manifest, ShardInfo, shard_name};
use super::plan::{BuildConfig, Job, Plan};
use super::resume;
use super::set::SetWriter;
use crate::dataset::scan::Source;
use crate::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a merge made.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
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

/// Puts the parts in `folders`, in any order, together in `out`. They are only read; `out` needs as much room again.
///
/// # Errors
/// A part that is missing, twice there, unfinished, of another set or damaged; `out` not free.
pub fn merge(out: &Path, folders: &[PathBuf], overwrite: bool, progress: &Progress) -> Result<Merged> {
    let started = Instant::now();
    let parts = gather(folders)?;
    for part in &parts {
        let same = matches!((out.canonicalize(), part.folder.canonicalize()), (Ok(a), Ok(b)) if a == b);
        ensure!(!same, "{} is one of the parts; give another folder for the whole", out.display());
    }
    let plan = whole(&parts)?;
    let mut config = BuildConfig::new("", out, plan.manifest.scale, plan.manifest.lq_size);
    config.shard_bytes = plan.manifest.shard_bytes;
    config.keep_duplicates = plan.manifest.extra.options.iter().any(|(name, _)| name == "keep-duplicates");
    let _lock = resume::prepare(out)?;
    resume::clear(&config, &plan, overwrite)?;
    let sets = [false, true].map(|held_out| {
        let header = Header { geometry: plan.geometry, recipe: plan.manifest.recipe, config: plan.config(held_out), number: 0 };
        let folder = if held_out { held_out_folder(out) } else { out.to_path_buf() };
        SetWriter::new(folder, header, config.shard_bytes, held_out, Vec::new())
    });
    let mut assembly = Assembly::new(&config, &plan, sets);
    for part in &parts {
        copy(part, &mut assembly, progress).with_context(|| format!("part {}", part.folder.display()))?;
    }
    let across = assembly.tally.dropped.1;
    let finished = assembly.finish(out, &plan, [None, None])?;
    let (main, held_out) = (&finished.manifest, finished.held_out.as_ref());
    ensure!(main.records() > 0, "the parts hold no pairs to train on");
    Ok(Merged {
        images: main.images,
        used: main.used + held_out.map_or(0, |m| m.used),
        pairs: main.records(),
        held_out_pairs: held_out.map_or(0, Manifest::records),
        duplicates_across_parts: across,
        shards: (main.shards.len() + held_out.map_or(0, |m| m.shards.len())) as u64,
        bytes: main.bytes() + held_out.map_or(0, Manifest::bytes),
        fingerprint: format!("{:016x}", main.fingerprint()),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Reads the manifests, in order of their part numbers, and sees that nothing is missing.
fn gather(folders: &[PathBuf]) -> Result<Vec<Part>> {
    ensure!(!folders.is_empty(), "there are no parts to merge");
    let mut parts = Vec::new();
    for folder in folders {
        let main = Manifest::read(folder)?; // says why there is none
        ensure!(main.extra.part.0 > 0, "{} is a whole set and no part of one", folder.display());
        let [_, held_out] = resume::finished(folder)?;
        parts.push(Part { folder: folder.clone(), main, held_out });
    }
    parts.sort_by_key(|p| p.main.extra.part);
    let first = &parts[0];
    let count = first.main.extra.part.1;
    for part in &parts {
        if part.main.extra.whole != first.main.extra.whole || part.main.extra.part.1 != count {
            let mut why = part.main.differences(&first.main);
            why.push("options and images must be the same for all parts".to_string());
            bail!("{} and {} are not parts of one set ({})", part.folder.display(), first.folder.display(), why.join("; "));
        }
    }
    for number in 1..=count {
        let having: Vec<_> = parts.iter().filter(|p| p.main.extra.part.0 == number).collect();
        match having.as_slice() {
            [_] => {}
            [] => bail!("part {number}/{count} is missing among the {} folders given", folders.len()),
            [a, b, ..] => bail!("part {number}/{count} is there twice: {} and {}", a.folder.display(), b.folder.display()),
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
    Ok(Plan { geometry, jobs: Vec::new(), rejected: Vec::new(), images: manifest.images, ignored: 0, left_out: Vec::new(), manifest })
}

/// Hands the images of one part over, those to train on and those held out in their common order.
fn copy(part: &Part, assembly: &mut Assembly, progress: &Progress) -> Result<()> {
    let mut sets = [Images::new(&part.folder, &part.main), {
        let empty = Manifest { shards: Vec::new(), ..part.main.clone() };
        Images::new(&held_out_folder(&part.folder), part.held_out.as_ref().unwrap_or(&empty))
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
        let Some(image) = std::mem::replace(&mut heads[usize::from(held_out)], next) else { continue };
        let source = Source { name: image.source.name.clone(), hr: PathBuf::from(&image.source.name), lq: None };
        let job = Job { source, size: (image.source.width, image.source.height), file_bytes: 0, pairs: 0, held_out, memory: 0 };
        progress.advance(image.records.len() as u64);
        assembly.accept(&job, 0, Ok(image))?;
    }
}

/// The images of a set with their records, one after the other.
struct Images {
    folder: PathBuf,
    config: u64,
    shards: Vec<ShardInfo>,
    number: usize,
    open: Option<Shard>,
    /// An image whose records may go on in the next shard.
    pending: Option<Converted>,
}

pub(super) struct Shard {
    path: PathBuf,
    file: File,
    footer: Footer,
    sources: Vec<u8>,
    index: Vec<u8>,
    at: usize,
}

impl Images {
    fn new(folder: &Path, manifest: &Manifest) -> Self {
        let (folder, config, shards) = (folder.to_path_buf(), manifest.config, manifest.shards.clone());
        Images { folder, config, shards, number: 0, open: None, pending: None }
    }

    fn next(&mut self) -> Result<Option<Converted>> {
        loop {
            if self.open.is_none() {
                if self.number == self.shards.len() {
                    return Ok(self.pending.take());
                }
                let path = self.folder.join(shard_name(self.number));
                let shard = Shard::open(&path, self.config, &self.shards[self.number]);
                self.open = Some(shard.with_context(|| path.display().to_string())?);
                self.number += 1;
            }
            let Some(shard) = &mut self.open else { continue };
            if shard.at == shard.footer.records as usize {
                self.open = None;
                continue;
            }
            let (source, entry, payload) = shard.record().with_context(|| shard.path.display().to_string())?;
            let mut complete = None;
            if self.pending.as_ref().is_none_or(|p| p.source != source) {
                let next = Converted { source, flat: 0, notes: Vec::new(), records: Vec::new(), payload: Vec::new() };
                complete = self.pending.replace(next);
            }
            if let Some(image) = &mut self.pending {
                let codec = Codec::from_id(entry.codec).context("a codec that is not known; use a newer paragon")?;
                image.records.push(Record { x: entry.x, y: entry.y, codec, crc: entry.crc, length: entry.length });
                image.payload.extend_from_slice(&payload);
            }
            if complete.is_some() {
                return Ok(complete);
            }
        }
    }
}

impl Shard {
    /// Opens a shard and checks its structure.
    pub fn open(path: &Path, config: u64, info: &ShardInfo) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let (mut header, mut footer) = ([0; HEADER_BYTES], [0; FOOTER_BYTES]);
        ensure!(length == info.bytes, "the file has {length} bytes where the manifest says {}", info.bytes);
        file.read_exact_at(&mut header, 0)?;
        ensure!(Header::decode(&header)?.config == config, "the shard belongs to another set");
        file.read_exact_at(&mut footer, length - FOOTER_BYTES as u64)?;
        let footer = Footer::decode(&footer, length)?;
        let same = footer.records == info.records && footer.sources_crc == info.sources_crc && footer.index_crc == info.index_crc;
        ensure!(same, "the shard is not the one the manifest lists");
        let mut sources = vec![0; (footer.index_at - footer.sources_at) as usize];
        let mut index = vec![0; footer.records as usize * INDEX_ENTRY_BYTES];
        file.read_exact_at(&mut sources, footer.sources_at)?;
        file.read_exact_at(&mut index, footer.index_at)?;
        ensure!(crc32fast::hash(&sources) == footer.sources_crc, "the source table is damaged (checksum mismatch)");
        ensure!(crc32fast::hash(&index) == footer.index_crc, "the index is damaged (checksum mismatch)");
        Ok(Shard { path: path.to_path_buf(), file, footer, sources, index, at: 0 })
    }

    /// The next record, its checksum looked at; call it as often as the manifest lists records.
    pub fn record(&mut self) -> Result<(SourceEntry, IndexEntry, Vec<u8>)> {
        let number = self.at;
        let entry = IndexEntry::decode(&self.index, number);
        self.at += 1;
        let inside = entry.offset.checked_add(entry.length.into()).is_some_and(|end| end <= self.footer.sources_at);
        ensure!(inside, "record {number} does not lie in the file");
        let source = decode_source(&self.sources, self.footer.sources, entry.source)?;
        let mut payload = vec![0; entry.length as usize];
        self.file.read_exact_at(&mut payload, entry.offset)?;
        ensure!(crc32fast::hash(&payload) == entry.crc, "record {number} (image {}) is damaged (checksum mismatch)", source.name);
        Ok((source, entry, payload))
    }
}
