//! Counts the outcomes of all images and makes the report of a run from them. Depends on `report`.
//! Promises that a run which continued from a journal has the same counts as an uninterrupted one.

use super::codec::Codec;
use super::convert::LQ_NOTE;
use super::job::{DUPLICATE, FLAT};
use super::journal::{Entry, Outcome, Used};
use super::manifest::Manifest;
use super::plan::{BuildConfig, Job, Plan, Rejected};
use super::report::{HeldOutReport, Report};
use crate::dataset::scan::{IgnoredFiles, LeftOut};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Counts of one run.
pub(super) struct Tally {
    out: PathBuf,
    /// Images found.
    pub images: u64,
    ignored: IgnoredFiles,
    left_out: Vec<LeftOut>,
    /// Images of the set that are no longer in the folder.
    gone: u64,
    /// Images that gave pairs: in the set to train on, and in the held-out set.
    pub used: [u64; 2],
    /// Images with pairs that an earlier run had converted.
    pub resumed: u64,
    pub rejected: Vec<Rejected>,
    /// The counts of a set that was complete before this run.
    kinds_before: Option<BTreeMap<String, u64>>,
    /// For each note the number of files.
    notes: BTreeMap<String, u64>,
    /// For each note the first file.
    note_examples: BTreeMap<String, PathBuf>,
    /// The options that patches are left out by, for the reason of a rejection.
    pub patch_options: String,
    /// Patches left out by them, and pairs left out as duplicates.
    pub dropped: (u64, u64),
    /// Pairs kept, those of the earlier run included.
    pub kept: u64,
    /// Pairs written by this run.
    pub pairs: u64,
    stored_raw: u64,
    bytes_in: u64,
    pair_bytes: u64,
    threads: usize,
    /// Largest sum of `Job::memory` over the images that were being converted at one time, bytes.
    pub most_held: u64,
}

impl Tally {
    pub fn new(config: &BuildConfig, plan: &Plan) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Tally {
            out: config.out.clone(),
            images: plan.images,
            ignored: plan.ignored.clone(),
            left_out: plan.left_out.clone(),
            gone: plan.gone,
            used: [0; 2],
            resumed: 0,
            rejected: plan.rejected.clone(),
            kinds_before: None,
            notes: BTreeMap::new(),
            note_examples: BTreeMap::new(),
            patch_options: config.criteria.patch_options(config.min_detail),
            dropped: (0, 0),
            kept: 0,
            pairs: 0,
            stored_raw: 0,
            bytes_in: 0,
            pair_bytes: plan.geometry.record_bytes(plan.lqs) as u64,
            threads: if config.threads == 0 {
                cores()
            } else {
                config.threads
            },
            most_held: 0,
        }
    }

    /// Takes the counts of a set that was complete before the run.
    pub fn take_from(
        &mut self,
        manifest: &Manifest,
        held_out: Option<&Manifest>,
        rejected: Vec<Rejected>,
    ) {
        self.images = manifest.images;
        self.used = [manifest.used, held_out.map_or(0, |m| m.used)];
        self.kept = manifest.records() + held_out.map_or(0, Manifest::records);
        self.dropped = manifest.extra.dropped;
        self.rejected.extend(rejected);
        self.kinds_before = Some(manifest.extra.rejected.iter().cloned().collect());
    }

    /// Counts the outcome of one image. `twin` is the image that has the same pixels, where it is
    /// known.
    pub fn add(&mut self, job: &Job, entry: &Entry, twin: Option<&str>) {
        match &entry.outcome {
            Outcome::Rejected { lq, kind, reason } => {
                let file =
                    if *lq { job.source.lq.as_ref() } else { None }.unwrap_or(&job.source.hr);
                self.rejected.push(Rejected {
                    file: file.clone(),
                    kind: kind.clone(),
                    reason: reason.clone(),
                    lq_side: None,
                });
            }
            Outcome::Used(used) => {
                self.bytes_in += used.source.bytes;
                self.kept += used.records.len() as u64;
                self.dropped.0 += used.flat;
                self.dropped.1 += used.duplicates;
                self.stored_raw += used
                    .records
                    .iter()
                    .filter(|r| r.codec == Codec::Raw)
                    .count() as u64;
                for note in &used.notes {
                    *self.notes.entry(note.clone()).or_default() += 1;
                    if !self.note_examples.contains_key(note) {
                        let lq = if note.ends_with(LQ_NOTE) {
                            job.source.lq.as_ref()
                        } else {
                            None
                        };
                        self.note_examples
                            .insert(note.clone(), lq.unwrap_or(&job.source.hr).clone());
                    }
                }
                if used.records.is_empty() {
                    self.rejected
                        .push(nothing_kept(job, used, &self.patch_options, twin));
                } else {
                    self.used[usize::from(job.held_out)] += 1;
                }
            }
        }
    }

    /// Number of rejected images by kind of reason; those of a complete set are those of the run
    /// that made it.
    pub fn kinds(&self) -> BTreeMap<String, u64> {
        if let Some(kinds) = &self.kinds_before {
            return kinds.clone();
        }
        let mut kinds = BTreeMap::new();
        for rejected in &self.rejected {
            *kinds.entry(rejected.kind.clone()).or_insert(0) += 1;
        }
        kinds
    }

    /// Makes the report of a finished set and its held-out part.
    pub fn report(
        mut self,
        manifest: &Manifest,
        held_out: Option<&Manifest>,
        seconds: f64,
    ) -> Report {
        self.rejected.sort_by(|a, b| a.file.cmp(&b.file));
        let reasons = self.kinds();
        let pairs = manifest.records();
        let raw = pairs * self.pair_bytes;
        let rate = |n: u64| {
            if seconds > 0.0 {
                n as f64 / seconds
            } else {
                0.0
            }
        };
        let held_out = held_out.map(|m| HeldOutReport {
            images: m.used,
            pairs: m.records(),
            shards: m.shards.len() as u64,
            bytes_out: m.bytes(),
        });
        Report {
            out: self.out,
            already_complete: false,
            nothing_new: false,
            resumed_images: self.resumed,
            images: self.images,
            used: self.used[0] + self.used[1],
            rejected: self.rejected,
            reasons,
            ignored: self.ignored.count(),
            ignored_endings: self.ignored,
            gone: self.gone,
            left_out: self.left_out.clone(),
            notes: self.notes,
            note_examples: self
                .note_examples
                .into_iter()
                .map(|(note, file)| (note, file.display().to_string()))
                .collect(),
            patches: self.kept + self.dropped.0 + self.dropped.1,
            flat: self.dropped.0,
            duplicates: self.dropped.1,
            pairs,
            held_out,
            scale: manifest.scale,
            lq_size: manifest.lq_size,
            crop: manifest.crop(),
            lq_recipe: manifest.recipe_name.clone(),
            codec: manifest.codec.clone(),
            stored_raw: self.stored_raw,
            shards: manifest.shards.len() as u64,
            bytes_in: self.bytes_in,
            bytes_raw: raw,
            bytes_out: manifest.bytes(),
            ratio: manifest.bytes() as f64 / raw.max(1) as f64,
            fingerprint: format!("{:016x}", manifest.fingerprint()),
            threads: self.threads,
            memory_in_flight: self.most_held,
            seconds,
            images_per_second: rate((self.used[0] + self.used[1]).saturating_sub(self.resumed)),
            pairs_per_second: rate(self.pairs),
        }
    }
}

/// The rejection of an image that gave no pairs. `patch_options` names what patches are left out by,
/// `twin` is the image that has the same pixels, where
/// it is known.
pub(super) fn nothing_kept(
    job: &Job,
    used: &Used,
    patch_options: &str,
    twin: Option<&str>,
) -> Rejected {
    let (flat, duplicates) = (used.flat, used.duplicates);
    let left_out = match patch_options {
        "--min-detail" => "show less than --min-detail".to_string(),
        options => format!("are left out by {options}"),
    };
    let same = match twin {
        Some(twin) => format!("same pixels as {twin}"),
        None => format!("all {duplicates} patches are in the set already"),
    };
    let (kind, reason) = match (flat, duplicates) {
        (flat, 0) => (FLAT, format!("all {flat} patches {left_out}")),
        (0, _) => (DUPLICATE, same),
        (flat, _) => (DUPLICATE, format!("{same}, and {flat} patches {left_out}")),
    };
    Rejected {
        file: job.source.hr.clone(),
        kind: kind.into(),
        reason,
        lq_side: None,
    }
}
