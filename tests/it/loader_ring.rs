//! The loader from outside: it delivers the same batches with any number of threads and from any
//! start, reports an error in place of the batch concerned, ends every thread, and stays within the
//! stated memory bound.

use crate::shard_common;

use paragon::loader::{Fence, Loader, LoaderConfig, Sources, bound};
use paragon::shard::codec::Codec;
use paragon::shard::reader::{Crop, ShardSet};
use paragon::sys::host_memory::HostBlock;
use shard_common::{make_writable, small_set};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

fn config() -> LoaderConfig {
    LoaderConfig {
        threads: 2,
        ..LoaderConfig::new(5, 16, 11)
    }
}

fn open(folder: &Path) -> Arc<ShardSet> {
    Arc::new(ShardSet::open(folder).unwrap())
}

fn start(set: &Arc<ShardSet>, config: LoaderConfig) -> anyhow::Result<Loader> {
    Loader::start(Sources::from(set.clone()), config)
}

/// The whole content of `count` batches.
fn batches(
    set: &Arc<ShardSet>,
    config: LoaderConfig,
    count: usize,
) -> Vec<(u64, Vec<u8>, Vec<u64>)> {
    let mut loader = start(set, config).unwrap();
    (0..count)
        .map(|_| {
            let batch = loader.next().unwrap();
            (
                batch.number(),
                batch.block().to_vec(),
                batch.records().to_vec(),
            )
        })
        .collect()
}

#[test]
fn same_batches_for_any_number_of_threads_and_slots() {
    let (_dir, folder) = small_set(6, Codec::Predict);
    let set = open(&folder);
    let epoch = set.len() as usize / 5 + 2; // across the end of an epoch
    for lq_size in [16, 9] {
        let base = LoaderConfig {
            lq_size,
            ..config()
        };
        let expected = batches(
            &set,
            LoaderConfig {
                threads: 1,
                slots: 1,
                ..base.clone()
            },
            epoch,
        );
        for (threads, slots) in [(1, 3), (2, 2), (7, 3), (7, 16)] {
            assert!(
                batches(
                    &set,
                    LoaderConfig {
                        threads,
                        slots,
                        ..base.clone()
                    },
                    epoch
                ) == expected,
                "{threads} {slots}"
            );
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
        let resumed = batches(
            &set,
            LoaderConfig {
                start: start as u64,
                threads: 3,
                ..config()
            },
            40 - start,
        );
        assert!(resumed == all[start..], "start {start}");
    }
}

#[test]
fn an_epoch_covers_each_record_once_and_pixels_are_the_records() {
    let (_dir, folder) = small_set(5, Codec::Predict);
    let set = open(&folder);
    let len = set.len();
    let mut loader = start(&set, config()).unwrap();
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
        set.read_crop(
            1,
            Crop { x, y, size: 7 },
            &mut scratch,
            &mut small_lq,
            &mut small_hr,
        )
        .unwrap();
        for row in 0..14 {
            if row < 7 {
                assert!(small_lq[row * 21..row * 21 + 21] == lq[((y + row) * 16 + x) * 3..][..21]);
            }
            assert!(
                small_hr[row * 42..row * 42 + 42] == hr[((2 * y + row) * 32 + 2 * x) * 3..][..42]
            );
        }
    }
    for crop in [
        Crop {
            x: 10,
            y: 0,
            size: 7,
        },
        Crop {
            x: 0,
            y: usize::MAX,
            size: 7,
        },
    ] {
        assert!(
            set.read_crop(1, crop, &mut scratch, &mut small_lq, &mut small_hr)
                .is_err()
        );
    }
}

#[test]
fn a_batch_larger_than_the_set_runs_through_several_epochs() {
    let (_dir, folder) = small_set(1, Codec::Predict);
    let set = open(&folder);
    let batch = 3 * set.len() as usize + 1;
    let mut loader = start(&set, LoaderConfig { batch, ..config() }).unwrap();
    let first = loader.next().unwrap();
    for epoch in first.records().chunks(set.len() as usize).take(3) {
        assert_eq!(
            epoch.iter().collect::<BTreeSet<_>>().len() as u64,
            set.len()
        );
    }
}

#[test]
fn rejects_what_cannot_be_delivered() {
    let (_dir, folder) = small_set(1, Codec::Predict);
    let set = open(&folder);
    let cases = [
        (
            LoaderConfig {
                lq_size: 17,
                ..config()
            },
            "stores 16",
        ),
        (
            LoaderConfig {
                lq_size: 0,
                ..config()
            },
            "0 pixels",
        ),
        (
            LoaderConfig {
                batch: 0,
                ..config()
            },
            "0 pairs",
        ),
        (
            LoaderConfig {
                batch: usize::MAX,
                ..config()
            },
            "too large",
        ),
        (
            LoaderConfig {
                threads: 0,
                ..config()
            },
            "threads",
        ),
        (
            LoaderConfig {
                slots: 0,
                ..config()
            },
            "slots",
        ),
        (
            LoaderConfig {
                slots: 1 << 20,
                ..config()
            },
            "slots",
        ),
        (
            LoaderConfig {
                start: u64::MAX,
                ..config()
            },
            "out of range",
        ),
    ];
    for (config, word) in cases {
        let Err(error) = start(&set, config) else {
            panic!("{word} was accepted")
        };
        assert!(format!("{error:#}").contains(word), "{error:#}");
    }
}

#[test]
fn an_error_reaches_the_caller_in_its_place_with_shard_record_and_image() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let clean = batches(&open(&folder), config(), 12);
    // This changes one byte inside the first record. The structure stays intact, so the set opens.
    let path = folder.join("shard-00000.psh");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    make_writable(&path);
    std::fs::write(&path, bytes).unwrap();
    let mut loader = start(
        &open(&folder),
        LoaderConfig {
            threads: 3,
            ..config()
        },
    )
    .unwrap();
    let mut errors = 0;
    for (number, block, records) in clean {
        match loader.next() {
            Ok(batch) => {
                assert!(batch.number() == number && batch.block() == block && !records.contains(&0))
            }
            Err(error) => {
                let text = format!("{error:#}");
                assert!(records.contains(&0), "{text}");
                for word in [
                    format!("batch {number}").as_str(),
                    "shard-00000.psh",
                    "record 0",
                    "p000",
                    "damaged",
                ] {
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
    let mut loader = start(
        &set,
        LoaderConfig {
            slots: 3,
            ..config()
        },
    )
    .unwrap();
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
fn told_to_stop_it_gives_nothing_and_the_batch_comes_later() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let set = open(&folder);
    let expected = batches(&set, config(), 2);
    let mut loader = start(
        &set,
        LoaderConfig {
            slots: 1,
            ..config()
        },
    )
    .unwrap();
    let stop = std::sync::atomic::AtomicBool::new(true);
    assert!(loader.next_unless(&stop).unwrap().is_none());
    stop.store(false, std::sync::atomic::Ordering::Relaxed);
    let first = loader.next_unless(&stop).unwrap().unwrap();
    assert!(first.block() == expected[0].1);
    // `next_unless` checks the flag also while it waits for a slot that is never returned.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(loader.next_unless(&stop).unwrap().is_none());
    });
    drop(first);
    assert!(loader.next().unwrap().block() == expected[1].1);
}

#[test]
fn a_slot_that_comes_back_late_is_waited_for() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let set = open(&folder);
    let mut loader = start(
        &set,
        LoaderConfig {
            slots: 2,
            ..config()
        },
    )
    .unwrap();
    let (first, second) = (loader.next().unwrap(), loader.next().unwrap());
    // One batch is dropped in time. The slow filling after that is not the caller's fault, so the
    // count of checks starts again.
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        drop(first);
    });
    assert_eq!(loader.next().unwrap().number(), 2);
    thread.join().unwrap();
    drop(second);
}

#[test]
fn a_batch_outlives_its_loader() {
    let (_dir, folder) = small_set(2, Codec::Predict);
    let mut loader = start(&open(&folder), config()).unwrap();
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
        let mut loader = start(
            &set,
            LoaderConfig {
                threads: 1 + i as usize % 7,
                ..config()
            },
        )
        .unwrap();
        let held: Vec<_> = (0..i % 4).map(|_| loader.next().unwrap()).collect();
        if i % 3 == 0 {
            std::thread::sleep(std::time::Duration::from_micros(i * 20));
        }
        drop(loader); // joins the threads: one that did not end would hang the test
        drop(held);
    }
    assert_eq!(Arc::strong_count(&set), 1, "a thread still holds the set");
}

#[test]
fn the_bound_counts_every_part() {
    let (_dir, folder) = small_set(2, Codec::Predict);
    let set = open(&folder);
    let whole = bound(&Sources::from(set.clone()), &config()).unwrap();
    assert_eq!(whole.slot_bytes, 5 * (16 * 16 * 3 + 32 * 32 * 3 + 1 + 8));
    assert_eq!(
        whole.total(),
        4 * whole.slot_bytes + 2 * whole.scratch_bytes + whole.index_bytes
    );
    let cropped = bound(
        &Sources::from(set.clone()),
        &LoaderConfig {
            lq_size: 8,
            ..config()
        },
    )
    .unwrap();
    assert_eq!(cropped.scratch_bytes, whole.scratch_bytes); // the crop is cut out while decoding
}

/// A device that finishes when `finish` is called.
#[derive(Clone, Default)]
struct Device(Arc<(std::sync::Mutex<bool>, std::sync::Condvar)>);

impl Device {
    fn finish(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

impl Fence for Device {
    fn is_done(&self) -> bool {
        *self.0.0.lock().unwrap()
    }

    fn wait(&self) {
        drop(
            self.0
                .1
                .wait_while(self.0.0.lock().unwrap(), |done| !*done)
                .unwrap(),
        );
    }
}

#[test]
fn a_slot_is_not_filled_again_while_a_device_reads_it() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let set = open(&folder);
    let expected = batches(&set, config(), 8);
    let mut loader = start(
        &set,
        LoaderConfig {
            slots: 2,
            ..config()
        },
    )
    .unwrap();
    let device = Device::default();
    let batch = loader.next().unwrap();
    // The address that a device would read, kept after the batch was handed over.
    let (seen, length) = (batch.block().as_ptr().addr(), batch.block().len());
    batch.return_after(Box::new(device.clone()));
    for expected in &expected[1..6] {
        let other = loader.next().unwrap();
        assert!(
            other.block() == expected.1 && other.block().as_ptr().addr() != seen,
            "the slot in flight was delivered"
        );
    }
    // SAFETY: the slot belongs to the loader, which still exists, and nothing may write to it
    // before the device has finished.
    let in_flight = unsafe {
        std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(seen), length)
    };
    assert!(
        in_flight == expected[0].1,
        "the slot was filled while in flight"
    );
    device.finish();
    let mut again = false;
    for expected in &expected[6..] {
        let batch = loader.next().unwrap();
        again |= batch.block().as_ptr().addr() == seen;
        assert!(batch.block() == expected.1);
    }
    assert!(
        again || loader.next().unwrap().block().as_ptr().addr() == seen,
        "the slot was never delivered again"
    );
}

#[test]
fn every_slot_may_be_in_flight_and_the_next_batch_waits_for_the_device() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let set = open(&folder);
    let mut loader = start(
        &set,
        LoaderConfig {
            slots: 2,
            ..config()
        },
    )
    .unwrap();
    let devices = [Device::default(), Device::default()];
    for device in &devices {
        loader
            .next()
            .unwrap()
            .return_after(Box::new(device.clone()));
    }
    let finisher = devices[1].clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        finisher.finish();
    });
    let third = loader.next().unwrap();
    assert!(devices[1].is_done() && third.number() == 2);
    thread.join().unwrap();
    drop(third);
    // The loader waits for the other device before it frees the memory.
    let (first, dropped) = (
        devices[0].clone(),
        Arc::new(std::sync::atomic::AtomicBool::new(false)),
    );
    let flag = dropped.clone();
    let thread = std::thread::spawn(move || {
        drop(loader);
        flag.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert!(
        !dropped.load(std::sync::atomic::Ordering::SeqCst),
        "memory was freed while the device read it"
    );
    first.finish();
    thread.join().unwrap();
}

#[test]
fn slots_come_from_where_they_are_asked_from() {
    let (_dir, folder) = small_set(2, Codec::Predict);
    let set = open(&folder);
    let expected = batches(&set, config(), 3);
    let asked = std::cell::Cell::new(0);
    let allocate = |bytes| {
        asked.set(asked.get() + 1);
        // Small containers may not allow locked memory.
        HostBlock::locked(bytes).or_else(|_| HostBlock::heap(bytes))
    };
    let mut loader = Loader::start_in(Sources::from(set.clone()), config(), &allocate).unwrap();
    assert_eq!(asked.get(), config().slots);
    for expected in &expected {
        assert!(loader.next().unwrap().block() == expected.1);
    }
    let refused = Loader::start_in(Sources::from(set), config(), &|bytes| {
        anyhow::bail!("no {bytes} bytes")
    });
    assert!(format!("{:#}", refused.err().unwrap()).contains("no 19"));
}
