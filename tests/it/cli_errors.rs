//! Mistakes of users and failures of disks: a command that gets input it cannot use must end with
//! one clear error that names the file or the flag, with the right exit code (1 failed, 2 usage),
//! without a panic, and without the loss of an existing file. `shard` has a test file of its own
//! (shard_cli.rs); here it is tested only for what all commands have in common.
#![cfg(unix)]

use crate::{cli_common, shard_common};

use cli_common::{limit_files, model, paragon, png_header, run, text};
use paragon::model::Network;
use paragon::model::write_model;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use shard_common::{config, files, make, make_writable, picture, pictures};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of images, a set of LQ 16 made from them, and a network.
struct Place {
    dir: tempfile::TempDir,
    data: PathBuf,
    set: PathBuf,
    model: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (data, set) = (dir.path().join("data"), dir.path().join("set"));
        pictures(&data, 3);
        make(&config(&data, &set)).unwrap();
        let model = model(dir.path());
        Place {
            dir,
            data,
            set,
            model,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn silly_flags_are_usage_errors_that_name_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let x = text(dir.path());
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);
    let cases: [Case; 6] = [
        (
            &["train", "--shards", x],
            &[
                ("--batch-size", "0"),
                ("--batch-size", "18446744073709551615"),
                ("--accum-iter", "0"),
                ("--threads", "0"),
                ("--threads", "1000000"),
                ("--loader-threads", "0"),
                ("--slots", "0"),
                ("--lr", "-1"),
                ("--lr", "0"),
                ("--lr", "nan"),
                ("--gamma", "-0.5"),
                ("--eta-min", "-1"),
                ("--alpha", "inf"),
                ("--layer-scale", "nan"),
                ("--betas", "0.9,1"),
                ("--ema-decay", "1"),
                ("--grad-clip", "-1"),
                ("--weight-decay", "-1"),
                ("--loss", "l3:1"),
                ("--loss", "l1:-1"),
                ("--lq-size", "0"),
                ("--iterations", "0"),
                ("--log-every", "0"),
                ("--checkpoint-every", "0"),
                ("--val-every", "0"),
                ("--keep-states", "0"),
                ("--host-memory", "lots"),
                ("--device", "tpu"),
                ("--schedule", "stairs"),
            ],
        ),
        (
            &["eval", x, "--model", x],
            &[
                ("--tile", "0"),
                ("--threads", "0"),
                ("--scale", "-2"),
                ("--crop-border", "-1"),
                ("--alpha", "nan"),
            ],
        ),
        (
            &["upscale", x, x, "--model", x],
            &[
                ("--tile", "0"),
                ("--tile", "99999999"),
                ("--threads", "0"),
                ("--host-memory", "much"),
                ("--format", "gif"),
            ],
        ),
        (
            &["synth", x],
            &[
                ("--count", "0"),
                ("--size", "0"),
                ("--size", "4x"),
                ("--quality", "0"),
                ("--threads", "0"),
                ("--format", "gif"),
            ],
        ),
        (
            &["shard", x],
            &[
                ("--threads", "0"),
                ("--lq-filter", "blur"),
                ("--host-memory", "1Q"),
            ],
        ),
        (
            &["demo", "--out", x],
            &[
                ("--iterations", "0"),
                ("--pictures", "0"),
                ("--threads", "0"),
            ],
        ),
    ];
    for (command, flags) in cases {
        for (flag, value) in flags {
            run(&[command, &[flag, value]].concat()).refused(2, &[flag]);
        }
    }
    run(&["upscale", x, x]).refused(2, &["--model"]);
    run(&["trian"]).refused(2, &["trian"]);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a usage error must write no file"
    );
}

#[test]
fn an_instruction_set_that_is_not_here_is_a_usage_error() {
    let asked = |name: &str| -> cli_common::Ran {
        paragon(&["plan"])
            .env("PARAGON_ISA", name)
            .output()
            .unwrap()
            .into()
    };
    asked("avx1024").refused(2, &["PARAGON_ISA=avx1024", "portable"]);
    asked(if cfg!(target_arch = "x86_64") {
        "neon"
    } else {
        "avx2"
    })
    .refused(2, &["this processor has"]);
    asked("portable").ok();
    asked("").ok();
}

#[test]
fn eval_and_validation_name_what_they_cannot_use() {
    let place = Place::new();
    let fresh = |name: &str, sides: &[&str]| {
        let root = place.path(name);
        fs::create_dir(&root).unwrap();
        sides
            .iter()
            .for_each(|side| fs::create_dir(root.join(side)).unwrap());
        root
    };
    let whole = fs::read(place.data.join("p000.png")).unwrap();
    let mut cases: Vec<(PathBuf, Vec<&str>)> =
        vec![(place.path("nowhere"), vec!["nowhere", "does not exist"])];
    cases.push((
        place.model.clone(),
        vec!["nano.safetensors", "expected a folder"],
    ));
    cases.push((fresh("empty", &[]), vec!["empty", "no images"]));
    let root = fresh("unmatched", &["hr", "lq"]);
    picture(40, 40, 1).save(root.join("hr/a.png")).unwrap();
    picture(20, 20, 1).save(root.join("lq/b.png")).unwrap();
    cases.push((root, vec!["a.png"]));
    let root = fresh("sizes", &["hr", "lq"]);
    picture(40, 40, 1).save(root.join("hr/a.png")).unwrap();
    picture(20, 23, 1).save(root.join("lq/a.png")).unwrap();
    cases.push((root, vec!["a.png", "40x40", "20x23"]));
    for (name, bytes, words) in [
        (
            "cut",
            whole[..whole.len() / 2].to_vec(),
            ["cut short", "cut.png"],
        ),
        (
            "text",
            b"this is text".to_vec(),
            ["not a PNG", "this is text"],
        ),
        (
            "huge",
            png_header(60_000, 60_000),
            ["60000x60000", "huge.png"],
        ),
        ("none", Vec::new(), ["empty", "none.png"]),
    ] {
        let root = fresh(name, &[]);
        fs::write(root.join(format!("{name}.png")), bytes).unwrap();
        cases.push((root, words.to_vec()));
    }
    let root = fresh("tiny", &[]);
    picture(13, 13, 1).save(root.join("tiny.png")).unwrap();
    cases.push((root, vec!["tiny.png", "11x11"]));
    for (root, words) in &cases {
        run(&["eval", text(root), "--model", text(&place.model)]).refused(1, words);
        let out = place.path("run");
        let train = [
            "train",
            "--shards",
            text(&place.set),
            "--out",
            text(&out),
            "--iterations",
            "2",
            "--val",
            text(root),
        ];
        run(&train).refused(1, &words[..1]);
    }
    let eval = ["eval", text(&place.data), "--model", text(&place.model)];
    run(&[&eval[..], &["--crop-border", "4000000000"]].concat())
        .refused(1, &["p000.png", "4000000000"]);
    run(&[&eval[..], &["--tile", "4"]].concat()).refused(1, &["--tile"]);
    run(&[&eval[..], &["--hr", "no_such_folder"]].concat()).refused(1, &["--hr", "no_such_folder"]);
    run(&[&eval[..], &["--save", text(&place.model.join("below"))]].concat())
        .refused(1, &["below"]);
    run(&[&eval[..], &["--save", "/proc/nowhere"]].concat()).refused(1, &["/proc/nowhere"]);
}

#[test]
fn upscale_names_what_it_cannot_read_or_write() {
    let place = Place::new();
    let picture_file = place.data.join("p000.png");
    let upscale = |from: &Path, to: &Path| {
        run(&[
            "upscale",
            text(from),
            text(to),
            "--model",
            text(&place.model),
        ])
    };
    let out = place.path("out.png");
    upscale(&place.path("nowhere.png"), &out).refused(1, &["nowhere.png", "does not exist"]);
    let whole = fs::read(&picture_file).unwrap();
    for (name, bytes, word) in [
        ("cut.png", whole[..whole.len() / 2].to_vec(), "cut short"),
        ("text.png", b"this is text".to_vec(), "this is text"),
        ("huge.png", png_header(60_000, 60_000), "60000x60000"),
    ] {
        let path = place.path(name);
        fs::write(&path, bytes).unwrap();
        upscale(&path, &out).refused(1, &[name, word]);
    }
    for to in ["out.xyz", "out.gif", "out"] {
        upscale(&picture_file, &place.path(to)).refused(1, &[to, "png, jpg"]);
    }
    upscale(&picture_file, &place.model.join("below.png")).refused(1, &["below.png"]);
    upscale(&picture_file, Path::new("/proc/nowhere/a.png")).refused(1, &["/proc/nowhere/a.png"]);
    assert!(!out.exists());
    // An existing file is never overwritten by accident.
    upscale(&picture_file, &picture_file).refused(1, &["p000.png", "overwritten"]);
    upscale(&place.data, &place.data).refused(1, &["data", "overwrite"]);
    assert_eq!(fs::read(&picture_file).unwrap(), whole);
    upscale(&place.data, &place.model).refused(1, &["nano.safetensors", "file"]);
    // Folders: an empty one, one with colliding names, one with a bad image among good ones.
    let folder = place.path("folder");
    fs::create_dir(&folder).unwrap();
    upscale(&folder, &place.path("up")).refused(1, &["folder", "no images"]);
    for name in ["a.png", "a.v2.png", "b.png"] {
        picture(20, 20, 1).save(folder.join(name)).unwrap();
    }
    fs::write(folder.join("b.png"), &whole[..100]).unwrap();
    upscale(&folder, &place.path("up")).refused(1, &["b.png", "1 of 3"]);
    let made: Vec<String> = files(&place.path("up")).into_keys().collect();
    assert_eq!(made, ["a.png", "a.v2.png"]);
    picture(20, 20, 1).save(folder.join("a.bmp")).unwrap();
    upscale(&folder, &place.path("up")).refused(1, &["b.png", "1 of 4", "a_bmp.png"]);
    // If the disk fills up while a result is written, the older result is kept.
    fs::write(&out, "older").unwrap();
    let mut command = paragon(&[
        "upscale",
        text(&picture_file),
        text(&out),
        "--model",
        text(&place.model),
    ]);
    cli_common::Ran::from(limit_files(&mut command, 2000).output().unwrap())
        .refused(1, &["cannot write", "out.png"]);
    assert_eq!(fs::read(&out).unwrap(), b"older");
}

#[test]
fn a_model_of_another_kind_says_what_does_not_fit() {
    let place = Place::new();
    let bytes = fs::read(&place.model).unwrap();
    let out = place.path("out.png");
    let input = place.data.join("p000.png");
    let with = |model: &Path, more: &[&str]| {
        run(&[
            &["upscale", text(&input), text(&out), "--model", text(model)],
            more,
        ]
        .concat())
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = place.path(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    with(&place.path("nowhere.safetensors"), &[]).refused(1, &["nowhere.safetensors"]);
    with(&place.data, &[]).refused(1, &["data", "it is a folder", "model.safetensors"]);
    with(Path::new("/dev/zero"), &[]).refused(1, &["/dev/zero"]);
    with(
        &write("text.safetensors", b"this is text, not a network"),
        &[],
    )
    .refused(
        1,
        &["text.safetensors", "a text file, not a safetensors file"],
    );
    with(&write("cut.safetensors", &bytes[..bytes.len() - 9]), &[])
        .refused(1, &["cut.safetensors"]);
    with(&write("empty.safetensors", b""), &[]).refused(1, &["empty.safetensors"]);
    // A different scale, in the flag or in the file.
    with(&place.model, &["--scale", "4"])
        .refused(1, &["up.0.weight", "[256, 16, 3, 3]", "[64, 16, 3, 3]"]);
    with(&place.model, &["--scale", "5"]).refused(1, &["scale 5"]);
    with(&place.model, &["--network", "pro"])
        .refused(1, &["tensors are not those of paragonsr2_pro"]);
    with(&place.model, &["--network", "esrgan"]).refused(1, &["esrgan", "known are"]);
    // Tensors without metadata do not determine the alpha.
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let views = || file.tensors().into_iter();
    let plain = write(
        "plain.safetensors",
        &safetensors::serialize(views(), None).unwrap(),
    );
    with(&plain, &[]).refused(1, &["plain.safetensors", "--alpha"]);
    with(&plain, &["--alpha", "0.3"]).ok();
    let from_plain = fs::read(&out).unwrap();
    with(&place.model, &[]).ok();
    assert_eq!(fs::read(&out).unwrap(), from_plain);
    // A different variant in the metadata, the tensors of a different network, different shapes.
    let named = HashMap::from([(
        "paragon".to_string(),
        r#"{"arch":"paragonsr2_photo","scale":2,"upsampler_alpha":0.4}"#.to_string(),
    )]);
    with(
        &write(
            "photo.safetensors",
            &safetensors::serialize(views(), Some(named)).unwrap(),
        ),
        &[],
    )
    .refused(1, &["photo.safetensors", "not those of paragonsr2_photo"]);
    let zeros = vec![0u8; 4 * 64];
    let other = [(
        "layers.0.weight",
        TensorView::new(Dtype::F32, vec![64], &zeros).unwrap(),
    )];
    with(
        &write(
            "other.safetensors",
            &safetensors::serialize(other, None).unwrap(),
        ),
        &[],
    )
    .refused(1, &["other.safetensors", "--scale"]);
    let short = views().filter(|(name, _)| name != "conv_in.bias").chain([(
        "conv_in.bias".into(),
        TensorView::new(Dtype::F32, vec![64], &zeros).unwrap(),
    )]);
    with(
        &write(
            "short.safetensors",
            &safetensors::serialize(short, None).unwrap(),
        ),
        &["--alpha", "0.3"],
    )
    .refused(1, &["conv_in.bias", "[64]", "[16]"]);
    let net = Network::new("nano", 2).unwrap();
    let mut values = net.params().start_values(5);
    values[3] = f32::NAN;
    let broken = place.path("nan.safetensors");
    write_model(&broken, &net, &values, None).unwrap();
    with(&broken, &[]).refused(1, &["nan.safetensors", "NaN"]);
}

#[test]
fn train_names_shards_it_cannot_use_before_it_starts() {
    let place = Place::new();
    let out = place.path("run");
    let train = |set: &Path, more: &[&str]| {
        run(&[
            &[
                "train",
                "--shards",
                text(set),
                "--out",
                text(&out),
                "--iterations",
                "4",
                "--batch-size",
                "2",
            ],
            more,
        ]
        .concat())
    };
    train(&place.path("nowhere"), &[]).refused(1, &["nowhere"]);
    train(&place.data, &[]).refused(1, &["data", "paragon shard"]);
    train(&place.model, &[]).refused(1, &["nano.safetensors"]);
    train(&place.set, &["--lq-size", "64"]).refused(1, &["64", "16", "--lq-size"]);
    train(&place.set, &["--lq-size", "4"]).refused(1, &["--lq-size"]);
    train(&place.set, &["--loss", "l1:0", "--lq-size", "7"]).refused(1, &["--lq-size"]);
    train(&place.set, &["--network", "esrgan"]).refused(1, &["esrgan", "known are"]);
    train(&place.set, &["--device", "cuda"]).refused(1, &["--device"]);
    let huge = [
        "train",
        "--shards",
        text(&place.set),
        "--out",
        text(&out),
        "--batch-size",
        "65536",
        "--host-memory",
        "4G",
        "--fit",
        "off",
    ];
    run(&huge).refused(1, &["does not fit", "GiB", "nothing was started"]);
    train(&place.set, &["--host-memory", "2M"]).refused(
        1,
        &[
            "does not fit",
            "2.0 MiB",
            "nothing was started",
            "--batch-size",
        ],
    );
    assert!(
        !out.join("log.jsonl").exists()
            && !out.join("states").exists()
            && !out.join("model.safetensors").exists()
    );
    for bad in [place.model.join("below"), PathBuf::from("/proc/nowhere")] {
        run(&["train", "--shards", text(&place.set), "--out", text(&bad)])
            .refused(1, &[text(&bad)]);
    }
    // Damage: a truncated shard, a missing one, and one with an altered record.
    let shards: Vec<PathBuf> = files(&place.set)
        .into_keys()
        .filter(|n| n.ends_with(".psh"))
        .map(|n| place.set.join(n))
        .collect();
    let shard = &shards[0];
    let name = shard.file_name().unwrap().to_str().unwrap();
    let whole = fs::read(shard).unwrap();
    make_writable(shard);
    fs::write(shard, &whole[..whole.len() - 100]).unwrap();
    train(&place.set, &[]).refused(1, &[name]);
    fs::remove_file(shard).unwrap();
    train(&place.set, &[]).refused(1, &[name, "missing"]);
    fs::write(shard, &whole).unwrap();
    train(&place.set, &["--checkpoint-every", "1"]).ok();
    let states = files(&out.join("states"));
    let mut damaged = whole.clone();
    for byte in damaged[2000..40_000.min(whole.len() - 4000)]
        .iter_mut()
        .step_by(97)
    {
        *byte ^= 0x40;
    }
    fs::write(shard, &damaged).unwrap();
    train(&place.set, &[]).ok(); // The run is finished, so it reads no shard.
    let more = [
        "train",
        "--shards",
        text(&place.set),
        "--out",
        text(&out),
        "--iterations",
        "400",
        "--batch-size",
        "2",
    ];
    run(&more).refused(
        1,
        &[
            name,
            "record",
            "damaged",
            "image p0",
            "the checkpoint of iteration 4 is kept",
        ],
    );
    assert!(files(&out.join("states")) == states);
}

#[test]
fn outputs_that_cannot_be_written_are_errors_and_not_panics() {
    let place = Place::new();
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let (out, drawn, sharded) = (
        place.path("run"),
        place.path("drawn"),
        place.path("sharded"),
    );
    let commands: [&[&str]; 5] = [
        &["eval", text(&place.data), "--model", text(&place.model)],
        &[
            "eval",
            text(&place.data),
            "--model",
            text(&place.model),
            "--json",
        ],
        &[
            "train",
            "--shards",
            text(&place.set),
            "--out",
            text(&out),
            "--iterations",
            "2",
            "--batch-size",
            "2",
        ],
        &["synth", text(&drawn), "--count", "1", "--size", "16"],
        &[
            "shard",
            text(&place.data),
            "--out",
            text(&sharded),
            "--lq-size",
            "16",
        ],
    ];
    for command in commands {
        let ran: cli_common::Ran = paragon(command).stdout(full()).output().unwrap().into();
        ran.refused(1, &[]);
        // With a full stderr the messages are lost, but the command still succeeds.
        let status = paragon(command)
            .stderr(full())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(0), "{command:?}");
    }
    assert!(out.join("model.safetensors").exists());
    for bad in [
        place.model.join("below"),
        place.model.clone(),
        PathBuf::from("/proc/nowhere"),
    ] {
        run(&["synth", text(&bad), "--count", "1", "--size", "16"]).refused(1, &[text(&bad)]);
        run(&[
            "demo",
            "--out",
            text(&bad),
            "--iterations",
            "1",
            "--pictures",
            "1",
        ])
        .refused(1, &[text(&bad)]);
    }
    let mut command = paragon(&[
        "synth",
        text(&place.path("small")),
        "--count",
        "3",
        "--size",
        "64",
    ]);
    cli_common::Ran::from(limit_files(&mut command, 1000).output().unwrap())
        .refused(1, &["cannot write", ".png"]);
    assert!(
        files(&place.path("small")).is_empty(),
        "an incomplete image was left"
    );
    // The demo clears no folder that it did not make.
    let mine = place.path("mine");
    pictures(&mine.join("pictures"), 2);
    run(&["demo", "--out", text(&mine), "--iterations", "1"]).refused(1, &[text(&mine), "--out"]);
    assert_eq!(files(&mine.join("pictures")).len(), 2);
    // `shard` refuses the image because of its header, before it allocates anything large.
    let huge = place.path("huge");
    fs::create_dir(&huge).unwrap();
    fs::write(huge.join("huge.png"), png_header(60_000, 60_000)).unwrap();
    run(&["shard", text(&huge), "--out", text(&place.path("set3"))])
        .refused(1, &["huge.png", "60000x60000"]);
}

#[test]
fn names_that_are_no_utf8_are_no_reason_to_fail() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let odd = |name: &str| {
        place.dir.path().join(std::ffi::OsStr::from_bytes(
            &[name.as_bytes(), b"\xff\xfe"].concat(),
        ))
    };
    let (out, set, model) = (odd("run"), odd("set"), odd("model"));
    fs::rename(&place.model, &model).unwrap();
    let with = |arguments: &[&str], paths: &[(&str, &Path)]| {
        let mut command = paragon(arguments);
        for (flag, path) in paths {
            command.args((!flag.is_empty()).then_some(flag)).arg(path);
        }
        cli_common::Ran::from(command.output().unwrap()).ok()
    };
    with(
        &["synth", "--count", "1", "--size", "16", "--json"],
        &[("", &odd("drawn"))],
    );
    with(
        &["eval", text(&place.data), "--json"],
        &[("--model", &model)],
    );
    with(
        &["shard", text(&place.data), "--lq-size", "16"],
        &[("--out", &set)],
    );
    with(
        &["train", "--iterations", "2", "--batch-size", "2", "--json"],
        &[("--shards", &set), ("--out", &out)],
    );
    with(
        &["upscale", text(&place.data)],
        &[("", &odd("up")), ("--model", &model)],
    );
    assert_eq!(fs::read_dir(odd("up")).unwrap().count(), 3);
}
