//! Counts kept along the way, from the outcome of every image in order, and the report made of
//! them. Depends on `report`. Promises the same counts for a run that went on from a journal as for
//! an unbroken one.

use super::codec::Codec;
use super::convert::LQ_NOTE;
use super::journal::{Entry, Outcome};
use super::manifest::Manifest;
use super::plan::{BuildConfig, Job, Plan, Rejected};
use super::report::{HeldOutReport, Report};
use crate::dataset::scan::LeftOut;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Counts of one run.
pub(super) struct Tally {
    out: PathBuf,
    /// Images found.
    pub images: u64,
    ignored: u64,
    left_out: Vec<LeftOut>,
    /// Images that gave pairs, to train on and held out.
    pub used: [u64; 2],
    /// Images that were decided by an earlier run.
    pub resumed: u64,
    pub rejected: Vec<Rejected>,
    notes: BTreeMap<String, u64>,
    note_examples: BTreeMap<String, PathBuf>,
    /// Patches left out for want of detail, and as duplicates.
    pub dropped: (u64, u64),
    /// Pairs kept of the images counted.
    pub kept: u64,
    /// Pairs written by this run.
    pub pairs: u64,
    stored_raw: u64,
    bytes_in: u64,
    pair_bytes: u64,
    threads: usize,
    /// Most memory counted for images under way at any moment, bytes.
    pub most_held: u64,
}

impl Tally {
    pub fn new(config: &BuildConfig, plan: &Plan) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Tally {
            out: config.out.clone(),
            images: plan.images,
            ignored: plan.ignored,
            left_out: plan.left_out.clone(),
            used: [0; 2],
            resumed: 0,
            rejected: plan.rejected.clone(),
            notes: BTreeMap::new(),
            note_examples: BTreeMap::new(),
            dropped: (0, 0),
            kept: 0,
            pairs: 0,
            stored_raw: 0,
            bytes_in: 0,
            pair_bytes: (plan.geometry.lq_bytes() + plan.geometry.hr_bytes()) as u64,
            threads: if config.threads == 0 {
                cores()
            } else {
                config.threads
            },
            most_held: 0,
        }
    }

    /// Counts the outcome of one image.
    pub fn add(&mut self, job: &Job, entry: &Entry) {
        match &entry.outcome {
            Outcome::Rejected { lq, kind, reason } => {
                let file =
                    if *lq { job.source.lq.as_ref() } else { None }.unwrap_or(&job.source.hr);
                self.rejected.push(Rejected {
                    file: file.clone(),
                    kind: kind.clone(),
                    reason: reason.clone(),
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
                        .push(nothing_kept(job, used.flat, used.duplicates));
                } else {
                    self.used[usize::from(job.held_out)] += 1;
                }
            }
        }
    }

    /// Rejected images by kind of reason.
    pub fn kinds(&self) -> BTreeMap<String, u64> {
        let mut kinds = BTreeMap::new();
        for rejected in &self.rejected {
            *kinds.entry(rejected.kind.clone()).or_insert(0) += 1;
        }
        kinds
    }

    /// The report of a finished set, with its held-out part.
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
            resumed_images: self.resumed,
            images: self.images,
            used: self.used[0] + self.used[1],
            rejected: self.rejected,
            reasons,
            ignored: self.ignored,
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

/// The rejection of an image of which no patch was kept.
pub(super) fn nothing_kept(job: &Job, flat: u64, duplicates: u64) -> Rejected {
    let (kind, reason) = match (flat, duplicates) {
        (flat, 0) => (
            "flat",
            format!("all {flat} patches show less than --min-detail"),
        ),
        (0, duplicates) => (
            "duplicate",
            format!("all {duplicates} pairs were there before"),
        ),
        (flat, duplicates) => (
            "duplicate",
            format!("{duplicates} pairs were there before, {flat} show less than --min-detail"),
        ),
    };
    Rejected {
        file: job.source.hr.clone(),
        kind: kind.into(),
        reason,
    }
}
