//! Chooses which images are held out, and which belong to one part of a set that several machines
//! make. Depends on `dataset::scan` for the photographs of tiles. Promises the same choice on every
//! machine.

use super::config::HeldOut;
use super::job::Job;
use crate::dataset::recipe::image_key;
use crate::dataset::scan::photograph;
use crate::support::rng::key;
use anyhow::{Result, ensure};

/// Bits of a draw that an `f64` holds exactly.
const DRAW_BITS: u32 = f64::MANTISSA_DIGITS;

/// Chooses the images to hold out: those with the lowest hash of their names, so that the choice is
/// the same on any machine. Tiles of one photograph (`0001_s001`, `0001_s002`) overlap or continue
/// one another, so they are held out together: the name of the photograph is what is hashed.
///
/// # Errors
/// A share or number out of range; no image would be left.
pub(super) fn hold_out(jobs: &mut [Job], val: HeldOut, seed: u64) -> Result<()> {
    /// Separates these draws from others with the same seed: "vali" in ASCII.
    const PURPOSE: u64 = 0x7661_6C69;
    let draw = |job: &Job| key(&[PURPOSE, seed, image_key(photograph(&job.source.name))]);
    match val {
        HeldOut::Share(share) => {
            ensure!(
                (0.0..1.0).contains(&share),
                "the share held out is {share}; it must be 0 or more and below 1"
            );
            let limit = share * (1u64 << DRAW_BITS) as f64;
            jobs.iter_mut().for_each(|job| {
                job.held_out = ((draw(job) >> (u64::BITS - DRAW_BITS)) as f64) < limit
            });
        }
        HeldOut::Count(count) => {
            ensure!(
                count < jobs.len().max(1) as u64,
                "{count} images are to be held out of {} usable ones",
                jobs.len()
            );
            let mut order: Vec<usize> = (0..jobs.len()).collect();
            order.sort_by_key(|&i| (draw(&jobs[i]), i));
            let of = |i: usize| photograph(&jobs[i].source.name);
            let mut taken = count as usize;
            while taken > 0 && taken < order.len() && of(order[taken - 1]) == of(order[taken]) {
                taken += 1;
            }
            ensure!(
                taken == 0 || taken < jobs.len(),
                "holding out {count} images takes all {taken}, since tiles of one photograph (NAME_s001, NAME_s002 ...) stay together; hold out \
                 fewer, or rename the tiles"
            );
            order
                .iter()
                .take(taken)
                .for_each(|&i| jobs[i].held_out = true);
        }
    }
    Ok(())
}

/// Returns the jobs of one part. The parts have about the same number of patches, and each is a run
/// of neighbouring jobs, so that the parts in order are the whole.
pub(super) fn take_part(jobs: Vec<Job>, part: u64, parts: u64) -> Vec<Job> {
    let all: u64 = jobs.iter().map(|j| j.pairs).sum();
    let mut before = 0;
    let mut part_of = |job: &Job| {
        let middle = before + job.pairs / 2;
        before += job.pairs;
        1 + middle * parts / all.max(1)
    };
    jobs.into_iter()
        .filter(|job| part_of(job) == part)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::scan::Source;
    use std::path::PathBuf;

    #[test]
    fn tiles_of_one_photograph_are_held_out_together() {
        let jobs = |names: &[&str]| -> Vec<Job> {
            let source = |name: &str| Source {
                name: name.into(),
                hr: PathBuf::new(),
                lq: None,
            };
            let job = |name: &&str| Job {
                source: source(name),
                size: (1, 1),
                file_bytes: 1,
                pairs: 1,
                held_out: false,
                memory: 1,
            };
            names.iter().map(job).collect()
        };
        let names: Vec<String> = (0..12)
            .flat_map(|photo| (1..=5).map(move |tile| format!("d/{photo:04}_s{tile:03}")))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for val in [HeldOut::Count(7), HeldOut::Count(10), HeldOut::Share(0.4)] {
            let mut jobs = jobs(&names);
            hold_out(&mut jobs, val, 3).unwrap();
            let held: Vec<usize> = jobs
                .chunks(5)
                .map(|tiles| tiles.iter().filter(|j| j.held_out).count())
                .collect();
            assert!(
                held.iter().all(|n| [0, 5].contains(n)) && held.contains(&5) && held.contains(&0),
                "{val}: {held:?}"
            );
            assert!(
                !matches!(val, HeldOut::Count(_)) || held.iter().sum::<usize>() == 10,
                "{val}: {held:?}"
            );
        }
        let mut one = jobs(&["a_s001", "a_s002", "a_s003"]);
        assert!(
            hold_out(&mut one, HeldOut::Count(1), 0)
                .unwrap_err()
                .to_string()
                .contains("tiles of one photograph")
        );
        let mut apart = jobs(&["a_s1", "a_s2", "a_s3"]);
        hold_out(&mut apart, HeldOut::Count(1), 0).unwrap();
        assert_eq!(
            apart.iter().filter(|j| j.held_out).count(),
            1,
            "other names are photographs of their own"
        );
    }
}
