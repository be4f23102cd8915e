//! The loader as its users see it: the same batches for any number of threads and from any start, errors in their place,
//! every thread ended, memory within the stated bound.

mod shard_common;

use paragon::loader::{Loader, LoaderConfig, bound};
use paragon::shard::codec::Codec;
use paragon::shard::reader::{Crop, ShardSet};
use shard_common::{make_writable, small_set};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

fn config() -> LoaderConfig {
    LoaderConfig { batch: 5, lq_size: 16, threads: 2, slots: 4, seed: 11, hflip: true, rot: true, start: 0 }
}

fn open(folder: &Path) -> Arc<ShardSet> {
    Arc::new(ShardSet::open(folder).unwrap())
}

/// Everything of `count` batches.
fn batches(set: &Arc<ShardSet>, config: LoaderConfig, count: usize) -> Vec<(u64, Vec<u8>, Vec<u64>)> {
    let mut loader = Loader::start(set.clone(), config).unwrap();
    (0..count)
        .map(|_| {
            let batch = loader.next().unwrap();
            (batch.number(), batch.block().to_vec(), batch.records().to_vec())
        })
        .collect()
}

#[test]
fn same_batches_for_any_number_of_threads_and_slots() {
    let (_dir, folder) = small_set(6, Codec::Predict);
    let set = open(&folder);
    let epoch = set.len() as usize / 5 + 2; // across the end of an epoch
    for lq_size in [16, 9] {
        let base = LoaderConfig { lq_size, ..config() };
        let expected = batches(&set, LoaderConfig { threads: 1, slots: 1, ..base.clone() }, epoch);
        for (threads, slots) in [(1, 3), (2, 2), (7, 3), (7, 16)] {
            assert!(batches(&set, LoaderConfig { threads, slots, ..base.clone() }, epoch) == expected, "{threads} {slots}");
        }
        assert!(batches(&set, LoaderConfig { seed: 12, ..base }, epoch) != expected);
    }
}

#[test]
fn starting_at_a_batch_equals_skipping_to_it() {
    let (_dir, folder) = small_set(4, Codec::Predict);
    let set = open(&folder);
    let all = batches(&set, config(), 40);
    for start in [1, 7, 33] {
        let resumed = batches(&set, LoaderConfig { start: start as u64, threads: 3, ..config() }, 40 - start);
        assert!(resumed == all[start..], "start {start}");
    }
}

#[test]
fn an_epoch_covers_each_record_once_and_pixels_are_the_records() {
    let (_dir, folder) = small_set(5, Codec::Predict);
    let set = open(&folder);
    let len = set.len();
    let mut loader = Loader::start(set.clone(), config()).unwrap();
    let mut seen = BTreeSet::new();
    let mut scratch = set.scratch().unwrap();
    let (mut lq, mut hr) = (vec![0; 16 * 16 * 3], vec![0; 32 * 32 * 3]);
    'epoch: loop {
        let batch = loader.next().unwrap();
        assert_eq!(batch.lq().len(), 5 * lq.len());
        assert_eq!(batch.hr().len(), 5 * hr.len());
        assert!(batch.augment().len() == 5 && batch.augment().iter().all(|&c| c < 8));
        for (i, &record) in batch.records().iter().enumerate() {
            set.read(record, &mut scratch, &mut lq, &mut hr).unwrap();
            assert!(batch.lq()[i * lq.len()..(i + 1) * lq.len()] == lq);
            assert!(batch.hr()[i * hr.len()..(i + 1) * hr.len()] == hr);
            assert!(seen.insert(record), "record {record} came twice");
            if seen.len() as u64 == len {
                break 'epoch;
            }
        }
    }
}

#[test]
fn crops_are_aligned_and_inside() {
    let (_dir, folder) = small_set(2, Codec::Raw);
    let set = open(&folder);
    let mut scratch = set.scratch().unwrap();
    let (mut lq, mut hr) = (vec![0; 16 * 16 * 3], vec![0; 32 * 32 * 3]);
    set.read(1, &mut scratch, &mut lq, &mut hr).unwrap();
    let (mut small_lq, mut small_hr) = (vec![0; 7 * 7 * 3], vec![0; 14 * 14 * 3]);
    for (x, y) in [(0, 0), (9, 9), (4, 2)] {
        set.read_crop(1, Crop { x, y, size: 7 }, &mut scratch, &mut small_lq, &mut small_hr).unwrap();
        for row in 0..14 {
            if row < 7 {
                assert!(small_lq[row * 21..row * 21 + 21] == lq[((y + row) * 16 + x) * 3..][..21]);
            }
            assert!(small_hr[row * 42..row * 42 + 42] == hr[((2 * y + row) * 32 + 2 * x) * 3..][..42]);
        }
    }
    for crop in [Crop { x: 10, y: 0, size: 7 }, Crop { x: 0, y: usize::MAX, size: 7 }] {
        assert!(set.read_crop(1, crop, &mut scratch, &mut small_lq, &mut small_hr).is_err());
    }
}

#[test]
fn a_batch_larger_than_the_set_runs_through_several_epochs() {
    let (_dir, folder) = small_set(1, Codec::Predict);
    let set = open(&folder);
    let batch = 3 * set.len() as usize + 1;
    let mut loader = Loader::start(set.clone(), LoaderConfig { batch, ..config() }).unwrap();
    let first = loader.next().unwrap();
    for epoch in first.records().chunks(set.len() as usize).take(3) {
        assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len() as u64, set.len());
    }
}

#[test]
fn rejects_what_cannot_be_delivered() {
    let (_dir, folder) = small_set(1, Codec::Predict);
    let set = open(&folder);
    let cases = [
        (LoaderConfig { lq_size: 17, ..config() }, "stores 16"),
        (LoaderConfig { lq_size: 0, ..config() }, "0 pixels"),
        (LoaderConfig { batch: 0, ..config() }, "0 pairs"),
        (LoaderConfig { batch: usize::MAX, ..config() }, "too large"),
        (LoaderConfig { threads: 0, ..config() }, "threads"),
        (LoaderConfig { slots: 0, ..config() }, "slots"),
        (LoaderConfig { slots: 1 << 20, ..config() }, "slots"),
        (LoaderConfig { start: u64::MAX, ..config() }, "out of range"),
    ];
    for (config, word) in cases {
        let Err(error) = Loader::start(set.clone(), config) else { panic!("{word} was accepted") };
        assert!(format!("{error:#}").contains(word), "{error:#}");
    }
}

#[test]
fn an_error_reaches_the_caller_in_its_place_with_shard_record_and_image() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let clean = batches(&open(&folder), config(), 12);
    // one byte inside the first record; the structure stays whole, so the set opens
    let path = folder.join("shard-00000.psh");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    make_writable(&path);
    std::fs::write(&path, bytes).unwrap();
    let mut loader = Loader::start(open(&folder), LoaderConfig { threads: 3, ..config() }).unwrap();
    let mut errors = 0;
    for (number, block, records) in clean {
        match loader.next() {
            Ok(batch) => assert!(batch.number() == number && batch.block() == block && !records.contains(&0)),
            Err(error) => {
                let text = format!("{error:#}");
                assert!(records.contains(&0), "{text}");
                for word in [format!("batch {number}").as_str(), "shard-00000.psh", "record 0", "p000", "damaged"] {
                    assert!(text.contains(word), "{word} is missing in: {text}");
                }
                errors += 1;
            }
        }
    }
    assert!(errors > 0);
}

#[test]
fn held_batches_keep_their_pixels_and_holding_all_of_them_is_an_error() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let set = open(&folder);
    let expected = batches(&set, config(), 6);
    let mut loader = Loader::start(set, LoaderConfig { slots: 3, ..config() }).unwrap();
    let held: Vec<_> = (0..3).map(|_| loader.next().unwrap()).collect();
    assert!(loader.next().err().unwrap().to_string().contains("held"));
    for (batch, expected) in held.iter().zip(&expected) {
        assert!(batch.block() == expected.1);
    }
    drop(held);
    for expected in &expected[3..] {
        assert!(loader.next().unwrap().block() == expected.1);
    }
    assert_eq!(loader.stats().batches, 6);
}

#[test]
fn a_batch_outlives_its_loader() {
    let (_dir, folder) = small_set(2, Codec::Predict);
    let mut loader = Loader::start(open(&folder), config()).unwrap();
    let batch = loader.next().unwrap();
    let copy = batch.block().to_vec();
    drop(loader);
    assert!(batch.block() == copy);
}

#[test]
fn dropping_it_at_any_moment_ends_every_thread() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let set = open(&folder);
    for i in 0..60u64 {
        let mut loader = Loader::start(set.clone(), LoaderConfig { threads: 1 + i as usize % 7, ..config() }).unwrap();
        let held: Vec<_> = (0..i % 4).map(|_| loader.next().unwrap()).collect();
        if i % 3 == 0 {
            std::thread::sleep(std::time::Duration::from_micros(i * 20));
        }
        drop(loader); // joins; a thread that does not end would hang the test
        drop(held);
    }
    assert_eq!(Arc::strong_count(&set), 1, "a thread still holds the set");
}

#[test]
fn the_bound_counts_every_part() {
    let (_dir, folder) = small_set(2, Codec::Predict);
    let set = open(&folder);
    let whole = bound(&set, &config()).unwrap();
    assert_eq!(whole.slot_bytes, 5 * (16 * 16 * 3 + 32 * 32 * 3 + 1 + 8));
    assert_eq!(whole.total(), 4 * whole.slot_bytes + 2 * whole.scratch_bytes + whole.index_bytes);
    let cropped = bound(&set, &LoaderConfig { lq_size: 8, ..config() }).unwrap();
    assert_eq!(cropped.scratch_bytes, whole.scratch_bytes); // a crop is cut while it is decoded
}
