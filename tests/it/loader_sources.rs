//! The samples of the loader: several sets with weights, ranks, windows, both ways of reading,
//! damaged records and their substitutes.

use crate::shard_common;

use paragon::loader::bench::{BenchConfig, measure};
use paragon::loader::quality::quality;
use paragon::loader::{Loader, LoaderConfig, OnCorrupt, Sources, Turns, bound};
use paragon::shard::codec::Codec;
use paragon::shard::reader::{Advice, Io, ShardSet};
use shard_common::{config as build, make, make_writable, pictures, small_set};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn open(folder: &Path) -> Arc<ShardSet> {
    Arc::new(ShardSet::open(folder).unwrap())
}

fn config() -> LoaderConfig {
    LoaderConfig {
        threads: 2,
        ..LoaderConfig::new(5, 16, 3)
    }
}

/// Hash of the content of one or several epochs.
fn content(sources: &Arc<Sources>, config: &LoaderConfig, epochs: f64) -> u64 {
    let how = BenchConfig {
        epochs: Some(epochs),
        seconds: 0.0,
        cold: false,
        step: Duration::ZERO,
        content: true,
    };
    u64::from_str_radix(
        &measure(sources, config, &how).unwrap().content.unwrap(),
        16,
    )
    .unwrap()
}

/// Records of `count` batches.
fn records(sources: &Arc<Sources>, config: LoaderConfig, count: usize) -> Vec<u64> {
    let mut loader = Loader::start(sources.clone(), config).unwrap();
    (0..count)
        .flat_map(|_| loader.next().unwrap().records().to_vec())
        .collect()
}

#[test]
fn an_epoch_has_one_content_for_any_threads_ranks_windows_and_ways_of_reading() {
    let (_dir, folder) = small_set(9, Codec::Predict);
    let sources: Arc<Sources> = Arc::new(open(&folder).into());
    let expected = content(
        &sources,
        &LoaderConfig {
            threads: 1,
            ..config()
        },
        1.0,
    );
    for threads in [2, 7, 16] {
        assert_eq!(
            content(
                &sources,
                &LoaderConfig {
                    threads,
                    ..config()
                },
                1.0
            ),
            expected,
            "{threads} threads"
        );
    }
    assert_eq!(
        content(
            &sources,
            &LoaderConfig {
                io: Io::Pread,
                ..config()
            },
            1.0
        ),
        expected
    );
    for ranks in [1, 2, 4] {
        let parts = (0..ranks).map(|rank| {
            content(
                &sources,
                &LoaderConfig {
                    rank,
                    ranks,
                    ..config()
                },
                1.0,
            )
        });
        assert_eq!(parts.fold(0, u64::wrapping_add), expected, "{ranks} ranks");
    }
    // Augmentation and crops depend on the position in the order, so another order gives other
    // content, and another seed does too.
    for other in [
        LoaderConfig {
            window: Some(40_000),
            ..config()
        },
        LoaderConfig {
            seed: 4,
            ..config()
        },
    ] {
        assert_ne!(content(&sources, &other, 1.0), expected);
        assert_eq!(
            content(
                &sources,
                &LoaderConfig {
                    threads: 7,
                    ..other.clone()
                },
                1.0
            ),
            content(&sources, &other, 1.0)
        );
    }
    // Without augmentation and crops every order has the same content.
    let plain = LoaderConfig {
        hflip: false,
        rot: false,
        ..config()
    };
    assert_eq!(
        content(&sources, &plain, 1.0),
        content(
            &sources,
            &LoaderConfig {
                window: Some(40_000),
                ..plain.clone()
            },
            1.0
        )
    );
}

#[test]
fn stopping_anywhere_and_going_on_gives_the_rest() {
    let (_dir, folder) = small_set(7, Codec::Predict);
    let sources: Arc<Sources> = Arc::new(open(&folder).into());
    for base in [
        config(),
        LoaderConfig {
            window: Some(30_000),
            rank: 1,
            ranks: 3,
            ..config()
        },
    ] {
        let all = records(&sources, base.clone(), 60);
        for start in [1, 13, 29, 58] {
            assert_eq!(
                records(
                    &sources,
                    LoaderConfig {
                        start: start as u64,
                        ..base.clone()
                    },
                    60 - start
                ),
                all[start * 5..]
            );
        }
    }
}

#[test]
fn ranks_take_turns() {
    let (_dir, folder) = small_set(5, Codec::Predict);
    let sources: Arc<Sources> = Arc::new(open(&folder).into());
    let one = records(
        &sources,
        LoaderConfig {
            batch: 12,
            ..config()
        },
        10,
    );
    let ranks: Vec<Vec<u64>> = (0..4)
        .map(|rank| {
            records(
                &sources,
                LoaderConfig {
                    batch: 3,
                    rank,
                    ranks: 4,
                    ..config()
                },
                10,
            )
        })
        .collect();
    for (i, &record) in one.iter().enumerate() {
        assert_eq!(ranks[i % 4][i / 4], record, "sample {i}");
    }
    // or whole batches
    for rank in 0..3 {
        let taken = records(
            &sources,
            LoaderConfig {
                batch: 4,
                rank,
                ranks: 3,
                turns: Turns::Batches,
                ..config()
            },
            10,
        );
        for (batch, records) in taken.chunks(4).enumerate() {
            let start = 12 * batch + 4 * rank as usize;
            assert_eq!(records, &one[start..start + 4], "rank {rank}");
        }
    }
    assert!(
        Loader::start(
            sources,
            LoaderConfig {
                rank: 4,
                ranks: 4,
                ..config()
            }
        )
        .is_err()
    );
}

#[test]
fn sets_are_mixed_to_the_sample() {
    let (_dir_a, a) = small_set(6, Codec::Predict);
    let (_dir_b, b) = small_set(2, Codec::Raw);
    let (a, b) = (open(&a), open(&b));
    let (in_a, in_b) = (a.len(), b.len());
    let count = |sources: &Arc<Sources>, epochs: u64| {
        let total = sources.len() * epochs;
        let mut seen = BTreeMap::new();
        let config = LoaderConfig {
            batch: 1,
            ..config()
        };
        for record in records(sources, config, total as usize) {
            *seen.entry(record).or_insert(0u64) += 1;
        }
        seen
    };
    // Without weights every record occurs once in an epoch.
    let all = Arc::new(Sources::mixed(vec![a.clone(), b.clone()], &[]).unwrap());
    let seen = count(&all, 2);
    assert!(seen.len() as u64 == in_a + in_b && seen.values().all(|&n| n == 2));
    // With weights the quotas are exact, and the counts of two records of a set differ by at most
    // one.
    let mixed = Arc::new(Sources::mixed(vec![a.clone(), b.clone()], &[1.0, 1.0]).unwrap());
    let quotas = mixed.quotas();
    assert!(quotas.iter().sum::<u64>() == in_a + in_b && quotas[0].abs_diff(quotas[1]) <= 1);
    for epochs in [1, 3] {
        let seen = count(&mixed, epochs);
        let from_a: u64 = seen.range(..in_a).map(|(_, n)| n).sum();
        let from_b: u64 = seen.range(in_a..).map(|(_, n)| n).sum();
        assert_eq!([from_a, from_b], [epochs * quotas[0], epochs * quotas[1]]);
        for range in [0..in_a, in_a..in_a + in_b] {
            let times: Vec<u64> = range.map(|r| seen.get(&r).copied().unwrap_or(0)).collect();
            assert!(
                times.iter().max().unwrap() - times.iter().min().unwrap() <= 1,
                "{times:?}"
            );
        }
    }
    assert_eq!(
        content(&mixed, &config(), 1.0),
        content(
            &mixed,
            &LoaderConfig {
                threads: 5,
                ..config()
            },
            1.0
        )
    );
    assert_ne!(all.fingerprint(), mixed.fingerprint());
    assert!(
        mixed.source(in_a).unwrap() == b.source(0).unwrap() && mixed.source(in_a + in_b).is_err()
    );
    for weights in [&[1.0][..], &[1.0, 0.0], &[1.0, f64::NAN], &[1e9, 1.0]] {
        assert!(
            Sources::mixed(vec![a.clone(), b.clone()], weights).is_err(),
            "{weights:?}"
        );
    }
    assert!(Sources::mixed(Vec::new(), &[]).is_err());
    let dir = tempfile::tempdir().unwrap();
    pictures(&dir.path().join("data"), 2);
    make(&paragon::shard::plan::BuildConfig {
        scale: 3,
        lq_size: 8,
        ..build(&dir.path().join("data"), &dir.path().join("set"))
    })
    .unwrap();
    let other = Sources::mixed(vec![a, open(&dir.path().join("set"))], &[])
        .err()
        .unwrap()
        .to_string();
    assert!(
        other.contains("scale 3") && other.contains("scale 2"),
        "{other}"
    );
}

#[test]
fn damaged_records_are_replaced_by_the_same_others_and_reported() {
    let (_dir, folder) = small_set(3, Codec::Predict);
    let clean: Arc<Sources> = Arc::new(open(&folder).into());
    let expected = records(&clean, config(), 30);
    let path = folder.join("shard-00000.psh");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1; // inside record 0
    make_writable(&path);
    std::fs::write(&path, bytes).unwrap();
    let sources: Arc<Sources> = Arc::new(open(&folder).into());
    let replacing = LoaderConfig {
        on_corrupt: OnCorrupt::Substitute,
        ..config()
    };
    let mut got = Vec::new();
    let mut loader = Loader::start(
        sources.clone(),
        LoaderConfig {
            threads: 3,
            ..replacing.clone()
        },
    )
    .unwrap();
    for _ in 0..30 {
        got.extend_from_slice(loader.next().unwrap().records());
    }
    let hit = expected.iter().filter(|&&r| r == 0).count() as u64;
    let stand_ins: Vec<u64> = expected
        .iter()
        .zip(&got)
        .filter(|(e, _)| **e == 0)
        .map(|(_, g)| *g)
        .collect();
    assert!(
        hit > 1 && stand_ins.iter().all(|&r| r == stand_ins[0] && r != 0),
        "{stand_ins:?}"
    );
    assert!(expected.iter().zip(&got).all(|(e, g)| e == g || *e == 0));
    // Threads may have filled more batches than were delivered.
    assert!(loader.stats().substituted >= hit);
    let reports = loader.reports();
    assert!(
        reports.len() == 1 && loader.reports().is_empty(),
        "{reports:?}"
    );
    for word in [
        "shard-00000.psh",
        "record 0",
        "p000",
        "damaged",
        "takes its place",
    ] {
        assert!(reports[0].contains(word), "{}", reports[0]);
    }
    assert_eq!(
        records(
            &sources,
            LoaderConfig {
                start: 7,
                ..replacing
            },
            23
        ),
        got[35..]
    );
}

#[test]
fn a_record_that_the_disk_does_not_give_is_an_error_when_read_by_calls() {
    let (_dir, folder) = small_set(2, Codec::Raw);
    let sources: Arc<Sources> = Arc::new(open(&folder).into());
    let path = folder.join("shard-00000.psh");
    make_writable(&path);
    let reading = LoaderConfig {
        io: Io::Pread,
        batch: 200,
        threads: 1,
        slots: 1,
        ..config()
    };
    let mut loader = Loader::start(sources.clone(), reading).unwrap();
    drop(loader.next().unwrap());
    // The shard is truncated while it is in use. With a memory map this would end the process.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(8192)
        .unwrap();
    let error = (0..3)
        .find_map(|_| loader.next().err())
        .expect("a truncated shard must give an error");
    assert!(
        format!("{error:#}").contains("cannot read the record"),
        "{error:#}"
    );
}

#[test]
fn the_order_is_rated_and_windows_cost_some_mixing() {
    let (_dir, folder) = small_set(40, Codec::Predict);
    let sources: Arc<Sources> = Arc::new(open(&folder).into());
    let base = LoaderConfig {
        batch: 8,
        ..config()
    };
    let full = quality(&sources, &base).unwrap();
    assert!(
        (0.9..1.1).contains(&full.distance) && full.same_image < 0.8,
        "{full:?}"
    );
    // With a window of a tenth of the set's bytes, neighbouring samples are nearer to each other
    // and more often from the same image.
    let narrow = quality(
        &sources,
        &LoaderConfig {
            window: Some(sources.bytes() / 10),
            ..base
        },
    )
    .unwrap();
    assert!(narrow.same_image >= full.same_image, "{narrow:?} {full:?}");
}

#[test]
fn records_can_be_let_go_and_fetched_again() {
    let (_dir, folder) = small_set(6, Codec::Raw);
    let set = open(&folder);
    let (mut lq, mut hr) = (vec![0; 16 * 16 * 3], vec![0; 32 * 32 * 3]);
    let mut scratch = set.scratch().unwrap();
    let mut all = || -> Vec<u8> {
        let mut out = Vec::new();
        for record in 0..set.len() {
            set.read(record, &mut scratch, &mut lq, &mut hr).unwrap();
            out.extend_from_slice(&hr);
        }
        out
    };
    let before = all();
    assert_eq!(set.is_cached(0, Io::Mmap), Some(true));
    set.advise(0..set.len(), Advice::DontNeed, Io::Mmap);
    set.advise(0..set.len() + 100, Advice::WillNeed, Io::Pread);
    assert!(all() == before);
}

#[test]
fn impossible_configurations_are_errors_everywhere() {
    let (_dir, folder) = small_set(8, Codec::Predict);
    let sources: Arc<Sources> = Arc::new(open(&folder).into());
    let change = |change: &dyn Fn(&mut LoaderConfig)| {
        let mut config = config();
        change(&mut config);
        config
    };
    for (words, config) in [
        ("batch is 0", change(&|c| c.batch = 0)),
        ("LQ patch is 0", change(&|c| c.lq_size = 0)),
        ("stores 16", change(&|c| c.lq_size = usize::MAX)),
        ("0 loader threads", change(&|c| c.threads = 0)),
        ("loader slots", change(&|c| c.slots = usize::MAX)),
        ("ranks are counted", change(&|c| c.ranks = 0)),
        ("too large", change(&|c| c.batch = usize::MAX)),
        ("too large", change(&|c| c.batch = 1 << 50)),
    ] {
        let how = BenchConfig {
            epochs: Some(1.0),
            seconds: 0.0,
            cold: false,
            step: Duration::ZERO,
            content: false,
        };
        let errors = [
            bound(&sources, &config).err(),
            quality(&sources, &config).err(),
            measure(&sources, &config, &how).err(),
            Loader::start(sources.clone(), config).err(),
        ];
        for error in errors {
            let error = format!("{:#}", error.unwrap());
            assert!(error.contains(words), "{words}: {error}");
        }
    }
    assert!(sources.locate(sources.len()).is_err());
}
