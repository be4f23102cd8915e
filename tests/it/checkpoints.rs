//! Checkpoints of PyTorch (`.pth`): those in `tests/data/checkpoints`, which torch.save wrote, give
//! the images that spandrel's classes give, and hostile ones are refused with one message each,
//! within bounded memory.

use crate::cli_common::{self, run, text};
use crate::fuzz_common::checkpoint::{Pickle, archive, state_dict, zip};
use crate::fuzz_common::model;
use paragon::model::{ModelHints, Network, load_model, read_pretrained, write_model};
use paragon::support::rng::Rng;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints")
}

/// Largest difference of two images, of 255.
fn difference(a: &Path, b: &Path) -> u8 {
    let (a, b) = (
        image::open(a).unwrap().into_rgb8(),
        image::open(b).unwrap().into_rgb8(),
    );
    assert_eq!(a.dimensions(), b.dimensions());
    let pairs = a.as_raw().iter().zip(b.as_raw());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn checkpoints_of_torch_give_the_images_of_spandrel() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.png");
    for (file, wanted, taken) in [
        (
            "compact_ema.pth",
            "compact.png",
            Some("params_ema (params is there too)"),
        ),
        ("compact_legacy.pth", "compact.png", Some("params")),
        ("compact_half.pt", "compact.png", Some("params")),
        ("compact_bf16.pth", "compact.png", None),
        ("compact_double.pth", "compact.png", Some("model")),
        ("compact_strides.pth", "compact.png", Some("net")),
        ("compact_views.pth", "compact.png", None),
        ("compact_parameters.pth", "compact.png", None),
        ("compact_lightning.ckpt", "compact.png", Some("state_dict")),
        ("span.pth", "span.png", Some("params_ema")),
        ("span_norm.pth", "span_norm.png", Some("params_ema")),
    ] {
        let path = folder().join(file);
        let loaded = load_model(&path, &ModelHints::default()).unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(loaded.taken.as_deref(), taken, "{file}");
        assert_eq!(loaded.net.scale, 2, "{file}");
        let input = folder().join("input.png");
        let ran = run(&["upscale", text(&input), text(&out), "-m", text(&path)]).ok();
        let taken = taken.map(|taken| format!("its entry {taken} is taken"));
        assert!(
            taken.is_none_or(|taken| ran.stderr.contains(&taken)),
            "{}",
            ran.stderr
        );
        let most = if file.contains("bf16") { 3 } else { 1 };
        let far = difference(&out, &folder().join(wanted));
        assert!(far <= most, "{file} differs by {far}");
    }
    let loaded = load_model(&folder().join("span_norm.pth"), &ModelHints::default()).unwrap();
    assert!(loaded.net.flag("norm") && loaded.net.whole("feature_channels") == 2);
    // as start values
    let net = load_model(&folder().join("compact_views.pth"), &ModelHints::default()).unwrap();
    let zero = vec![0.0; net.values.len()];
    let started = read_pretrained(&folder().join("compact_ema.pth"), &net.net, zero, true).unwrap();
    assert!(started.values == net.values && started.source.unwrap().starts_with("params_ema"));
}

#[test]
fn networks_of_other_programs_are_named() {
    let path = folder().join("foreign.pth");
    let dir = tempfile::tempdir().unwrap();
    let input = folder().join("input.png");
    let out = dir.path().join("out.png");
    run(&["upscale", text(&input), text(&out), "-m", text(&path)]).refused(
        1,
        &[
            "foreign.pth",
            "looks like ESRGAN",
            "which paragon does not have",
        ],
    );
    let list = [("feats.0.weight".to_string(), vec![2], 0.0)];
    assert!(error(&of_list(&list)).contains("feats.0.weight"));
    let real = [
        "feats.1.lk.conv.weight",
        "feats.1.refine.weight",
        "feats.1.norm.weight",
    ];
    let real = real.map(|name| (name.to_string(), vec![2], 0.0));
    assert!(error(&of_list(&real)).contains("RealPLKSR"));
    let list = ["body.0.weight", "body.2.weight"];
    let list = list.map(|name| (name.to_string(), vec![4, 1, 3, 3], 0.0));
    assert!(error(&of_list(&list)).contains("1 channels, not 3"));
}

/// The folder of a run stands for its best network.
#[test]
fn the_folder_of_a_run_is_its_best_network() {
    let dir = tempfile::tempdir().unwrap();
    let run_folder = dir.path().join("run");
    std::fs::create_dir_all(run_folder.join("models")).unwrap();
    let newest = cli_common::model(&run_folder);
    let input = folder().join("input.png");
    let out = dir.path().join("out.png");
    let upscale = || run(&["upscale", text(&input), text(&out), "-m", text(&run_folder)]);
    upscale().refused(
        1,
        &["run", "a folder without a network", "model.safetensors"],
    );
    std::fs::rename(&newest, run_folder.join("model.safetensors")).unwrap();
    let said = upscale().ok().stderr;
    assert!(
        said.contains("newest network") && said.contains("model.safetensors"),
        "{said}"
    );
    let net = Network::new("nano", 3).unwrap();
    let best = run_folder.join("models/best_net_g_ema.safetensors");
    write_model(&best, &net, &net.params().start_values(5), None).unwrap();
    let score = r#"{"iteration": 150, "psnr_y": 34.1351}"#;
    std::fs::write(run_folder.join("models/best.json"), score).unwrap();
    let said = upscale().ok().stderr;
    assert!(
        said.contains("best network") && said.contains("34.135 dB at iteration 150"),
        "{said}"
    );
    assert_eq!(image::image_dimensions(&out).unwrap(), (63, 51));
}

fn error(content: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pth");
    std::fs::write(&path, content).unwrap();
    match load_model(&path, &ModelHints::default()) {
        Ok(loaded) => panic!("it was read: {:?}", loaded.net),
        Err(error) => format!("{error:#}"),
    }
}

fn of_list(list: &[(String, Vec<usize>, f32)]) -> Vec<u8> {
    let (pickle, storages) = state_dict(list);
    archive(&pickle, &storages)
}

/// A checkpoint with one tensor.
fn of_tensor(storage: (&str, &str, i64), offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let pickle = Pickle::new(2)
        .raw(b"}")
        .text("a")
        .tensor(storage, offset, shape, strides);
    archive(&pickle.raw(b"s").done(), &[vec![0; 64]])
}

#[test]
fn pickles_that_ask_for_more_than_tensors_are_refused_by_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.serialization", "FloatStorage"),
        ("collections", "Counter"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("__main__", "Net"),
    ] {
        let call = Pickle::new(2)
            .global(module, name)
            .raw(b"(")
            .text("id > /tmp/x")
            .raw(b"tR");
        let dotted = Pickle::new(4).text(module).text(name).raw(b"\x93)R");
        for pickle in [call, dotted] {
            let said = error(&archive(&pickle.done(), &[]));
            assert!(
                said.contains("model.pth")
                    && said.contains(&format!("asks for {module}.{name}: "))
                    && said.contains("tensors only"),
                "{said}"
            );
        }
    }
    // a name with the codes of a terminal
    let said = error(&archive(
        &Pickle::new(2).global("o\x1b[2J", "s").done(),
        &[],
    ));
    assert!(!said.contains('\x1b'), "{said}");
}

#[test]
fn tensors_that_reach_beyond_their_storage_are_refused() {
    let float = |count| ("FloatStorage", "0", count);
    let huge = 1 << 40;
    for (content, words) in [
        (
            of_tensor(float(16), 0, &[17], &[1]),
            "beyond its storage of 16 elements",
        ),
        (of_tensor(float(16), 9, &[8], &[1]), "offset 9"),
        (of_tensor(float(16), 0, &[4, 4], &[5, 1]), "strides [5, 1]"),
        (
            of_tensor(float(16), 0, &[huge, huge], &[0, 0]),
            "beyond its storage",
        ),
        (
            of_tensor(float(16), i64::MAX, &[1], &[1]),
            "beyond its storage",
        ),
        (
            of_tensor(float(16), 0, &[2], &[i64::MAX]),
            "beyond its storage",
        ),
        (
            of_tensor(float(17), 0, &[1], &[1]),
            "64 bytes, and 17 elements of F32 take 68",
        ),
        (
            of_tensor(float(15), 0, &[1], &[1]),
            "64 bytes, and 15 elements",
        ),
        (
            of_tensor(float(i64::MAX), 0, &[1], &[1]),
            "elements of F32 take",
        ),
        (
            of_tensor(("DoubleStorage", "0", 16), 0, &[1], &[1]),
            "of F64 take 128",
        ),
        (
            of_tensor(("FloatStorage", "9", 16), 0, &[1], &[1]),
            "data/9 is missing",
        ),
        (
            of_tensor(("FloatStorage", "../0", 16), 0, &[1], &[1]),
            "data/../0 is missing",
        ),
        (of_tensor(float(-1), 0, &[1], &[1]), "damaged"),
        (of_tensor(float(16), -1, &[1], &[1]), "damaged"),
        (of_tensor(float(16), 0, &[-1], &[1]), "damaged"),
        (of_tensor(float(16), 0, &[1, 1], &[1]), "damaged"),
    ] {
        let said = error(&content);
        assert!(said.contains(words) && said.len() < 1000, "{words}: {said}");
    }
    // a view that repeats one element has the shape that it states and takes no memory
    let said = error(&of_tensor(float(16), 0, &[huge], &[0]));
    assert!(said.contains("no network that paragon knows"), "{said}");
}

#[test]
fn damaged_archives_are_refused() {
    let (pickle, storages) = state_dict(&[("a".to_string(), vec![4], 0.5)]);
    let whole = archive(&pickle, &storages);
    for length in [10, 60, whole.len() / 2, whole.len() - 1] {
        let said = error(&whole[..length]);
        assert!(said.contains("cut short"), "{length}: {said}");
    }
    // the second file of the archive begins within the first one
    let mut overlap = whole.clone();
    let local = |bytes: &[u8], nth: usize| {
        let mut places = bytes
            .windows(4)
            .enumerate()
            .filter(|(_, w)| *w == b"PK\x01\x02");
        places.nth(nth).unwrap().0
    };
    let second = local(&whole, 1);
    overlap[second + 20] += 8; // the length of its data
    overlap[second + 24] += 8;
    assert!(error(&overlap).contains("overlap"), "{}", error(&overlap));
    let mut packed = whole.clone();
    packed[local(&whole, 0) + 10] = 8; // deflate
    let said = error(&packed);
    assert!(
        said.contains("data.pkl is compressed") && said.contains("torch.load"),
        "{said}"
    );
    let mut wrong = whole.clone();
    wrong[second + 16] = 1; // the checksum
    assert!(error(&wrong).contains("checksum"), "{}", error(&wrong));
    let twice = zip(&[
        ("n/data.pkl".into(), &pickle[..]),
        ("n/data.pkl".into(), &pickle[..]),
    ]);
    assert!(error(&twice).contains("twice"));
    let other = zip(&[("a.txt".into(), &b"text"[..])]);
    assert!(
        error(&other).contains("without the data.pkl"),
        "{}",
        error(&other)
    );
    let script = zip(&[
        ("n/data.pkl".into(), &pickle[..]),
        ("n/code/x.py".into(), &b""[..]),
    ]);
    assert!(error(&script).contains("TorchScript"));
    let big = zip(&[
        ("n/data.pkl".into(), &pickle[..]),
        ("n/byteorder".into(), &b"big"[..]),
    ]);
    assert!(error(&big).contains("big-endian"));
    // sizes of more than 32 bits
    let mut wide = whole.clone();
    let end = wide.len() - 22;
    wide[end + 12..end + 20].fill(0xff);
    assert!(error(&wide).contains("cut short"));
}

#[test]
fn damaged_pickles_are_refused() {
    let of = |pickle: Vec<u8>| error(&archive(&pickle, &[vec![0; 64]]));
    for (pickle, words) in [
        (Vec::new(), "cut short"),
        (b".".to_vec(), "damaged"),
        (b"\x80\x02".to_vec(), "cut short"),
        (b"\x80\x01}.".to_vec(), "protocol 1"),
        (b"\x80\x09}.".to_vec(), "protocol 9"),
        (b"\x80\x02h\x05.".to_vec(), "damaged"),
        (
            b"\x80\x02ccollections\nOrderedDict\n.".to_vec(),
            "no network",
        ),
        (b"\x80\x02]}s.".to_vec(), "damaged"),
        (b"\x80\x02u.".to_vec(), "damaged"),
        (b"\x80\x02}(]u.".to_vec(), "damaged"),
        (b"\x80\x02)R.".to_vec(), "damaged"),
        (b"\x80\x02i.".to_vec(), "operation 0x69"),
        (b"\x80\x02X\xff\xff\xff\xffa.".to_vec(), "cut short"),
        (
            b"\x80\x02}X\x03\x00\x00\x00cfg]s.".to_vec(),
            "its entries are cfg",
        ),
        // a dictionary that holds itself
        (
            b"\x80\x02}q\x00X\x06\x00\x00\x00paramsh\x00s.".to_vec(),
            "no network",
        ),
    ] {
        let said = of(pickle.clone());
        assert!(
            said.contains(words) && said.contains("model.pth"),
            "{pickle:?}: {said}"
        );
    }
}

/// What takes memory or time out of proportion is refused.
#[test]
fn hostile_pickles_take_bounded_memory_and_time() {
    let start = Instant::now();
    let of = |pickle: Vec<u8>| error(&archive(&pickle, &[vec![0; 64]]));
    let said = of([&b"\x80\x02"[..], &b"N0".repeat(5 << 20), b"."].concat());
    assert!(said.contains("at most 8388608"), "{said}");
    let said = of([&b"\x80\x02"[..], &b"N".repeat(3 << 20), b"."].concat());
    assert!(said.contains("values"), "{said}");
    // lists within lists, marks within marks
    let deep = [
        &b"\x80\x02"[..],
        &b"]".repeat(500_000),
        &b"a".repeat(499_999),
        b".",
    ]
    .concat();
    assert!(of(deep).contains("no network"));
    assert!(of([&b"\x80\x02"[..], &b"(".repeat(2 << 20), b"."].concat()).contains("damaged"));
    // one list that doubles: each one holds the one before twice
    let mut doubling = b"\x80\x02]q\x00".to_vec();
    doubling.extend(b"](h\x00h\x00eq\x00".repeat(10_000));
    assert!(of([&doubling[..], b"."].concat()).contains("no network"));
    // a million tensors of one storage: the tensor is made once and named again and again
    let mut many = Pickle::new(2)
        .tensor(("FloatStorage", "0", 16), 0, &[16], &[1])
        .raw(b"q\x01}(");
    for i in 0..100_000 {
        many = many.text(&i.to_string()).raw(b"h\x01");
    }
    let said = of(many.raw(b"u").done());
    assert!(said.contains("100000 tensors"), "{said}");
    // the dictionaries of a dictionary are looked at, not those within them without end
    let mut wide = Pickle::new(2).raw(b"}q\x00(");
    for i in 0..30_000 {
        wide = wide.text(&i.to_string()).raw(b"h\x00");
    }
    assert!(of(wide.raw(b"u").done()).contains("no network"));
    assert!(
        start.elapsed() < Duration::from_secs(120),
        "{:?}",
        start.elapsed()
    );
}

fn variable(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Thousands of changed checkpoints, from a seeded generator, as in `options_fuzz`.
#[test]
fn checkpoints_of_any_kind_give_parameters_or_an_error() {
    let limit = Duration::from_secs(variable("PARAGON_FUZZ_SECONDS", 4));
    let mut rng = Rng::new(&[variable("PARAGON_FUZZ_SEED", 1), 3]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors"); // the ending does not matter
    let net = Network::new("nano", 2).unwrap();
    let table = net.params();
    let list: Vec<_> = table
        .params
        .iter()
        .filter(|p| p.trainable)
        .map(|p| (p.name.clone(), p.shape.clone(), 0.25))
        .collect();
    let (pickle, storages) = state_dict(&list);
    let legacy = std::fs::read(folder().join("compact_legacy.pth")).unwrap();
    let strides = std::fs::read(folder().join("compact_strides.pth")).unwrap();
    assert!(model::model(&path, &strides) && model::model(&path, &legacy));
    model::model(&path, &archive(&pickle, &storages));
    let (mut runs, mut read) = (0u64, 0u64);
    let start = Instant::now();
    while start.elapsed() < limit {
        let content = match rng.below(3) {
            0 => archive(&changed(&mut rng, &pickle), &storages),
            1 => changed(&mut rng, &legacy),
            _ => changed(&mut rng, &strides),
        };
        read += u64::from(model::model(&path, &content));
        runs += 1;
    }
    println!("{runs} checkpoints, {read} gave parameters");
    assert!(read < runs);
}

/// The bytes with a few changes.
fn changed(rng: &mut Rng, whole: &[u8]) -> Vec<u8> {
    const OPERATIONS: &[u8] = b"(.NKMJGXBCt)]}aesuqrhjcQRb\x80\x85\x86\x87\x88\x8a\x8c\x93\x94\x95";
    let mut bytes = whole.to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len() as u64) as usize;
        match rng.below(7) {
            0 => bytes[at] = OPERATIONS[rng.below(OPERATIONS.len() as u64) as usize],
            1 => bytes[at] = rng.next_u64() as u8,
            2 => bytes[at] ^= 1 << rng.below(8),
            3 => bytes.insert(at, OPERATIONS[rng.below(OPERATIONS.len() as u64) as usize]),
            4 => drop(bytes.remove(at)),
            5 => {
                let from = rng.below(bytes.len() as u64) as usize;
                let len = (rng.below(64) as usize).min(bytes.len() - from);
                let part = bytes[from..from + len].to_vec();
                bytes.splice(at..at, part);
            }
            _ if rng.below(10) == 0 => bytes.truncate(at + 1),
            _ => {}
        }
    }
    bytes
}
