//! Where converted images come together in input order: duplicates are left out, records go to the
//! set to train on or to the one held out, and the journal is kept. Depends on `set`, `journal` and
//! `tally`. Promises that what was handed over before a kill is gone on from, but for the last
//! moments.

use super::convert::Converted;
use super::journal::{Entry, Head, Journal, Outcome, Used};
use super::plan::{BuildConfig, Job, Plan, Rejected};
use super::set::{Duplicates, SetWriter};
use super::tally::{Tally, nothing_kept};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What may be lost to a kill: bytes written and time passed since the last hand-over to the
/// operating system.
const COMMIT_BYTES: u64 = 4 << 20;
const COMMIT_TIME: Duration = Duration::from_millis(50);

/// The folder of the held-out images, inside that of the set.
pub(super) fn held_out_folder(out: &Path) -> PathBuf {
    out.join("val")
}

/// A set under way, with its held-out part.
pub(super) struct Assembly {
    /// To train on, and held out.
    pub sets: [SetWriter; 2],
    /// Nothing where duplicates are kept.
    pub duplicates: Option<Duplicates>,
    pub tally: Tally,
    pub journal: Option<Journal>,
    /// Images decided so far: the number of the next job.
    pub decided: u64,
    committed: Instant,
}

impl Assembly {
    /// Begins behind the shards that `sets` have already.
    pub fn new(config: &BuildConfig, plan: &Plan, sets: [SetWriter; 2]) -> Self {
        Assembly {
            sets,
            duplicates: (!config.keep_duplicates).then(|| Duplicates::new(plan.pairs())),
            tally: Tally::new(config, plan),
            journal: None,
            decided: 0,
            committed: Instant::now(),
        }
    }

    /// Begins the journal.
    pub fn begin(&mut self, out: &Path, head: &Head) -> Result<()> {
        self.journal = Some(Journal::create(out, head)?);
        Ok(())
    }

    /// Takes over what an earlier run has decided; its records are counted, not written.
    pub fn replay(&mut self, job: &Job, entry: &Entry) -> Result<()> {
        if let Outcome::Used(used) = &entry.outcome {
            let set = &mut self.sets[usize::from(job.held_out)];
            set.begin_image();
            for record in &used.records {
                let place = set.add(&used.source, record, None, self.decided)?;
                if let Some(duplicates) = &mut self.duplicates {
                    duplicates.note(record, place);
                }
            }
        }
        self.tally.add(job, entry);
        self.tally.resumed +=
            u64::from(matches!(&entry.outcome, Outcome::Used(used) if !used.records.is_empty()));
        self.decided += 1;
        Ok(())
    }

    /// Takes the next image. Gives the rejection where nothing of it is kept.
    pub fn accept(
        &mut self,
        job: &Job,
        stamp: u64,
        outcome: Result<Converted, Rejected>,
    ) -> Result<Option<Rejected>> {
        let (outcome, rejected) = match outcome {
            Ok(converted) => {
                let used = self.keep(job, converted)?;
                let rejected = used
                    .records
                    .is_empty()
                    .then(|| nothing_kept(job, used.flat, used.duplicates));
                (Outcome::Used(used), rejected)
            }
            Err(r) => {
                let lq = Some(&r.file) == job.source.lq.as_ref();
                (
                    Outcome::Rejected {
                        lq,
                        kind: r.kind.clone(),
                        reason: r.reason.clone(),
                    },
                    Some(r),
                )
            }
        };
        let entry = Entry {
            job: self.decided,
            stamp,
            outcome,
        };
        self.tally.add(job, &entry);
        if let Some(journal) = &mut self.journal {
            journal
                .append(&entry)
                .with_context(|| job.source.hr.display().to_string())?;
        }
        self.decided += 1;
        let unflushed = self.sets[0].unflushed + self.sets[1].unflushed;
        if unflushed >= COMMIT_BYTES || self.committed.elapsed() >= COMMIT_TIME {
            self.commit()?;
        }
        Ok(rejected)
    }

    /// Writes the records of an image but for those that are there already.
    fn keep(&mut self, job: &Job, converted: Converted) -> Result<Used> {
        let Converted {
            source,
            notes,
            records,
            payload,
            flat,
        } = converted;
        let mut used = Used {
            source,
            notes,
            flat,
            duplicates: 0,
            records: Vec::with_capacity(records.len()),
        };
        self.sets[usize::from(job.held_out)].begin_image();
        let mut at = 0;
        for record in records {
            let payload = &payload[at..at + record.length as usize];
            at += payload.len();
            if let Some(duplicates) = &self.duplicates
                && duplicates.seen(&record, payload, &mut self.sets)?
            {
                used.duplicates += 1;
                continue;
            }
            if self.sets[usize::from(job.held_out)].ends_shard(&used.source, record.length) {
                // a finished shard is never ahead of what is known of it, nor is what is known
                // ahead of the other set
                self.commit()?;
                if let Some(journal) = &mut self.journal {
                    journal.sync()?;
                }
            }
            let set = &mut self.sets[usize::from(job.held_out)];
            let place = set.add(&used.source, &record, Some(payload), self.decided)?;
            if let Some(duplicates) = &mut self.duplicates {
                duplicates.note(&record, place);
            }
            self.tally.pairs += 1;
            used.records.push(record);
        }
        Ok(used)
    }

    /// Hands everything to the operating system.
    pub fn commit(&mut self) -> Result<()> {
        for set in &mut self.sets {
            set.flush()?;
        }
        if let Some(journal) = &mut self.journal {
            journal.flush()?;
        }
        self.committed = Instant::now();
        Ok(())
    }

    /// Bytes of finished shards.
    pub fn bytes(&self) -> u64 {
        self.sets[0].bytes() + self.sets[1].bytes()
    }

    /// Ends a run that has added nothing.
    pub fn abandon(mut self) -> Result<Tally> {
        if let Some(journal) = self.journal.take() {
            journal.remove()?;
        }
        Ok(self.tally)
    }

    /// Ends the sets and writes their manifests, that of the set to train on last; then the journal
    /// goes. `plan.manifest` says what the set is, `before` what earlier runs have added to its
    /// counts.
    pub fn finish(
        mut self,
        out: &Path,
        plan: &Plan,
        before: [Option<super::manifest::Manifest>; 2],
    ) -> Result<Finished> {
        self.commit()?;
        if let Some(journal) = &mut self.journal {
            journal.sync()?;
        }
        let [train, held_out] = self.sets;
        let (train, held_out) = (train.finish()?, held_out.finish()?);
        let [before, held_before] = before;
        let mut manifest = plan.manifest.clone();
        manifest.used = self.tally.used[0];
        manifest.shards = train;
        manifest.extra.dropped.0 += self.tally.dropped.0;
        manifest.extra.dropped.1 += self.tally.dropped.1;
        let mut kinds = self.tally.kinds();
        let mut earlier: Vec<&(String, u64)> = plan.manifest.extra.rejected.iter().collect();
        let mut val = plan.manifest.clone();
        val.config = plan.config(true);
        (val.used, val.shards) = (self.tally.used[1], held_out);
        (val.extra.dropped, val.extra.rejected) = ((0, 0), Vec::new());
        if let Some(before) = &before {
            manifest.images += before.images;
            manifest.used += before.used;
            manifest.extra.dropped.0 += before.extra.dropped.0;
            manifest.extra.dropped.1 += before.extra.dropped.1;
            manifest.extra.appended = before.extra.appended + 1;
            earlier.extend(&before.extra.rejected);
            val.extra.appended = manifest.extra.appended;
        }
        val.used += held_before.as_ref().map_or(0, |before| before.used);
        val.images = val.used;
        for (kind, count) in earlier {
            *kinds.entry(kind.clone()).or_insert(0) += count;
        }
        manifest.extra.rejected = kinds.into_iter().collect();
        let empty = manifest.records() == 0;
        let val = (val.records() > 0).then_some(val);
        if !empty || plan.manifest.extra.part.0 > 0 {
            if let Some(val) = &val {
                val.write(&held_out_folder(out))?;
            }
            manifest.write(out)?;
        }
        if let Some(journal) = self.journal.take() {
            journal.remove().context("the set is finished")?;
        }
        Ok(Finished {
            manifest,
            held_out: val,
            tally: self.tally,
        })
    }
}

/// What [`Assembly::finish`] leaves.
pub(super) struct Finished {
    pub manifest: super::manifest::Manifest,
    pub held_out: Option<super::manifest::Manifest>,
    pub tally: Tally,
}
