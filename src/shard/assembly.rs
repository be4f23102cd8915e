//! Appends converted images, in input order, to the set to train on or to the held-out set. It
//! leaves out duplicates and writes the journal. Depends on `set`, `journal` and `tally`. Promises
//! that a run can continue after a kill and loses at most [`COMMIT_BYTES`] or [`COMMIT_TIME`] of
//! work.

use super::convert::Converted;
use super::criteria::{HASH_BITS, NEAR_DUPLICATE};
use super::journal::{Entry, Head, Journal, Outcome, Used};
use super::manifest::{Manifest, ShardInfo, held_out_folder};
use super::near_duplicates::{HashedImage, NearDuplicates};
use super::output_folder::SetManifests;
use super::plan::{BuildConfig, Job, Plan, Rejected};
use super::set::{Duplicates, RecordLocation, SetWriter};
use super::tally::{Tally, nothing_kept};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// Buffers are passed to the operating system after this many bytes,
const COMMIT_BYTES: u64 = 4 << 20;
/// or after this time. A kill loses what was appended since.
const COMMIT_TIME: Duration = Duration::from_millis(50);

/// An unfinished set with its held-out part.
pub(super) struct Assembly {
    /// The set to train on, and the held-out set.
    pub sets: [SetWriter; 2],
    /// `None` if duplicates are kept.
    pub duplicates: Option<Duplicates>,
    /// `None` if near duplicates are kept.
    pub near: Option<NearDuplicates>,
    pub tally: Tally,
    /// `None` during a replay and in a merge.
    pub journal: Option<Journal>,
    /// Number of images that are done, and so of the next job.
    pub decided: u64,
    /// When buffers were last passed to the operating system.
    committed: Instant,
}

impl Assembly {
    /// Begins after the shards that `sets` have already.
    pub fn new(config: &BuildConfig, plan: &Plan, sets: [SetWriter; 2]) -> Self {
        // which images are near duplicates depends on the earlier parts, and which pairs are
        // duplicates depends on that: a part keeps both, and the merge leaves them out
        let near = config.criteria.near_duplicates;
        let left_to_merge = config.part.is_some() && near.is_some();
        let keep_duplicates = config.keep_duplicates || left_to_merge;
        Assembly {
            sets,
            duplicates: (!keep_duplicates).then(|| Duplicates::new(plan.pairs())),
            near: near.map(|bits| NearDuplicates::new((!left_to_merge).then_some(bits))),
            tally: Tally::new(config, plan),
            journal: None,
            decided: 0,
            committed: Instant::now(),
        }
    }

    /// Creates the journal.
    pub fn begin(&mut self, out: &Path, head: &Head) -> Result<()> {
        self.journal = Some(Journal::create(out, head)?);
        Ok(())
    }

    /// Replays a journal entry of an earlier run: its records are counted and not written.
    pub fn replay(&mut self, job: &Job, entry: &Entry) -> Result<()> {
        if let Outcome::Used(used) = &entry.outcome {
            let set = &mut self.sets[usize::from(job.held_out)];
            set.begin_image();
            let mut first = None;
            for record in &used.records {
                let location = set.add(&used.source, record, None, self.decided)?;
                first.get_or_insert(location);
                if let Some(duplicates) = &mut self.duplicates {
                    duplicates.note(record, location);
                }
            }
            self.note_hash(used, first);
        }
        self.tally.add(job, entry, None);
        self.tally.resumed +=
            u64::from(matches!(&entry.outcome, Outcome::Used(used) if !used.records.is_empty()));
        self.decided += 1;
        Ok(())
    }

    /// Adds the hash of an image that gave pairs.
    fn note_hash(&mut self, used: &Used, first_record: Option<RecordLocation>) {
        let known = self.near.as_mut().zip(used.hash).zip(first_record);
        if let Some(((near, hash), location)) = known {
            let flat = used.flat as u32;
            near.note(HashedImage { hash, flat }, location);
        }
    }

    /// The rejection of an image that resembles an earlier one. An image without pairs is rejected for
    /// that: in a set of parts, the merge does not know it.
    fn near_duplicate(&self, job: &Job, converted: &Converted) -> Result<Option<Rejected>> {
        if converted.records.is_empty() {
            return Ok(None);
        }
        let found = self.near.as_ref().zip(converted.hash);
        let Some((location, bits)) = found.and_then(|(near, hash)| near.find(hash)) else {
            return Ok(None);
        };
        let name = self.sets[usize::from(location.held_out)].image_at(location)?;
        let reason = format!(
            "it resembles {name}: {bits} of {HASH_BITS} bits of their perceptual hashes differ"
        );
        Ok(Some(Rejected::new(&job.source.hr, NEAR_DUPLICATE, reason)))
    }

    /// Appends the next image. Returns its rejection if no pair of it is kept.
    ///
    /// # Errors
    /// An error of the system.
    pub fn accept(
        &mut self,
        job: &Job,
        stamp: u64,
        outcome: Result<Converted, Rejected>,
    ) -> Result<Option<Rejected>> {
        let mut twin = None;
        let outcome = match outcome {
            Ok(converted) => match self.near_duplicate(job, &converted)? {
                Some(rejected) => Err(rejected),
                None => Ok(converted),
            },
            rejected => rejected,
        };
        let (outcome, rejected) = match outcome {
            Ok(converted) => {
                let (used, duplicate_of) = self.keep(job, converted)?;
                if let Some(location) = duplicate_of.filter(|_| used.records.is_empty()) {
                    twin = Some(self.sets[usize::from(location.held_out)].image_at(location)?);
                }
                let rejected = used
                    .records
                    .is_empty()
                    .then(|| nothing_kept(job, &used, &self.tally.patch_options, twin.as_deref()));
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
        self.tally.add(job, &entry, twin.as_deref());
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

    /// Writes the records of an image, except duplicates. Also returns where the pixels of the first
    /// duplicate are.
    fn keep(&mut self, job: &Job, converted: Converted) -> Result<(Used, Option<RecordLocation>)> {
        let Converted {
            source,
            notes,
            records,
            payload,
            hash,
            flat,
        } = converted;
        let mut used = Used {
            source,
            notes,
            hash,
            flat,
            duplicates: 0,
            records: Vec::with_capacity(records.len()),
        };
        self.sets[usize::from(job.held_out)].begin_image();
        let mut at = 0;
        let (mut first, mut first_duplicate) = (None, None);
        for record in records {
            let payload = &payload[at..at + record.length as usize];
            at += payload.len();
            if let Some(duplicates) = &self.duplicates
                && let Some(location) = duplicates.seen(&record, payload, &mut self.sets)?
            {
                first_duplicate.get_or_insert(location);
                used.duplicates += 1;
                continue;
            }
            if self.sets[usize::from(job.held_out)].ends_shard(&used.source, record.length) {
                // before a shard gets its final name, the disk must have the journal entries of its
                // records, and the other set the records that those entries list
                self.commit()?;
                if let Some(journal) = &mut self.journal {
                    journal.sync()?;
                }
            }
            let set = &mut self.sets[usize::from(job.held_out)];
            let location = set.add(&used.source, &record, Some(payload), self.decided)?;
            first.get_or_insert(location);
            if let Some(duplicates) = &mut self.duplicates {
                duplicates.note(&record, location);
            }
            self.tally.pairs += 1;
            used.records.push(record);
        }
        self.note_hash(&used, first);
        Ok((used, first_duplicate))
    }

    /// Passes all buffers to the operating system, the shards before the journal.
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

    /// Bytes of all shards, the unfinished ones included.
    pub fn bytes(&self) -> u64 {
        self.sets[0].bytes() + self.sets[1].bytes()
    }

    /// Ends a run that has added no pairs, and removes its journal.
    pub fn abandon(mut self) -> Result<Tally> {
        if let Some(journal) = self.journal.take() {
            journal.remove()?;
        }
        Ok(self.tally)
    }

    /// Ends the sets and writes their manifests, that of the set to train on last. Then it removes
    /// the journal. `plan.manifest` describes the set; `base` are the manifests of the set that
    /// images were added to.
    ///
    /// # Errors
    /// An error of the system; too many shards for a manifest.
    pub fn finish(mut self, out: &Path, plan: &Plan, base: SetManifests) -> Result<Finished> {
        self.commit()?;
        if let Some(journal) = &mut self.journal {
            journal.sync()?;
        }
        let [train, held_out] = self.sets;
        let shards = [train.finish()?, held_out.finish()?];
        let (manifest, val) = manifests(&self.tally, plan, shards, &base);
        let empty = manifest.records() == 0;
        let val = (val.records() > 0).then_some(val);
        if !empty || plan.manifest.extra.part.0 > 0 {
            if let Some(val) = &val {
                let folder = held_out_folder(out);
                if let Some(near) = &self.near {
                    near.write(&folder, true)?;
                }
                val.write(&folder)?;
            }
            if let Some(near) = &self.near {
                near.write(out, false)?;
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

/// The manifests of the finished set and of its held-out part.
fn manifests(
    tally: &Tally,
    plan: &Plan,
    [train, held_out]: [Vec<ShardInfo>; 2],
    [base, held_out_base]: &SetManifests,
) -> (Manifest, Manifest) {
    let mut manifest = plan.manifest.clone();
    manifest.used = tally.used[0];
    manifest.shards = train;
    manifest.extra.dropped.0 += tally.dropped.0;
    manifest.extra.dropped.1 += tally.dropped.1;
    let mut val = plan.manifest.clone();
    val.config = plan.config(true);
    (val.used, val.shards) = (tally.used[1], held_out);
    (val.extra.dropped, val.extra.rejected) = ((0, 0), Vec::new());
    let mut kinds = tally.kinds();
    let mut earlier: Vec<&(String, u64)> = plan.manifest.extra.rejected.iter().collect();
    if let Some(base) = base {
        manifest.images += base.images;
        manifest.used += base.used;
        manifest.extra.dropped.0 += base.extra.dropped.0;
        manifest.extra.dropped.1 += base.extra.dropped.1;
        manifest.extra.appended = base.extra.appended + 1;
        earlier.extend(&base.extra.rejected);
        val.extra.appended = manifest.extra.appended;
    }
    val.used += held_out_base.as_ref().map_or(0, |base| base.used);
    val.images = val.used;
    for (kind, count) in earlier {
        *kinds.entry(kind.clone()).or_insert(0) += count;
    }
    manifest.extra.rejected = kinds.into_iter().collect();
    (manifest, val)
}

/// The result of [`Assembly::finish`].
pub(super) struct Finished {
    pub manifest: Manifest,
    pub held_out: Option<Manifest>,
    pub tally: Tally,
}
