//! The configuration of the program: option files of paragon and of traiNNer-redux, `--set` and
//! flags, which of them takes precedence, and what is refused. The file kept with a run gives the
//! same run again.

use crate::common::place;
use crate::fuzz_common::options;
use crate::{cli_common, shard_common};

use cli_common::{Ran, run, text};
use paragon::model::{Network, Setting, known_networks, write_model};
use shard_common::{config, make, pictures};
use std::fs;
use std::path::{Path, PathBuf};

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, set) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 4);
    make(&config(&data, &set)).unwrap();
    (dir, set)
}

fn write(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    text(&path).to_string()
}

/// The effective configuration of a run.
fn kept(out: &Path) -> String {
    fs::read_to_string(out.join("config.yml")).unwrap()
}

fn newest_state(out: &Path) -> Vec<u8> {
    let mut list: Vec<PathBuf> = fs::read_dir(out.join("states"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    list.sort();
    fs::read(list.pop().unwrap()).unwrap()
}

/// An option file of the other trainer with everything that is difficult to read; the training is
/// so small that it takes a moment.
const THEIRS: &str = "\
name: tiny
scale: 2
use_amp: true
num_gpu: auto
manual_seed: 7
datasets:
  train: &train
    name: set
    type: pairedimagedataset
    dataroot_gt: [a, b]
    lq_size: 12
    batch_size_per_gpu: 2
    accum_iter: 2
    num_worker_per_gpu: 2
    use_hflip: true
    use_rot: false
  val:
    <<: *train
    name: val
network_g:
  type: paragonsr2_nano
  upsampler_alpha: 0.0
network_d:
  type: unet
path:
  pretrain_network_g: ~
train:
  ema_decay: 0.99
  grad_clip: true
  optim_g:
    type: Adam
    lr: !!float 1e-3
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [4, 6]
    gamma: 0.5
  total_iter: 8
  warmup_iter: -1
  losses:
    - type: l1loss
      loss_weight: 1.0
      reduction: sum
    - type: mssimloss
      loss_weight: 0.08
    - type: perceptualloss
      loss_weight: 0.5
val:
  val_enabled: false
  val_freq: 4
  metrics:
    psnr: {type: calculate_psnr, crop_border: 4}
    ssim: {type: calculate_ssim, crop_border: 6}
    lpips: {type: calculate_lpips}
logger:
  print_freq: 2
  save_checkpoint_freq: 4
  use_tb_logger: true
frobnicate:
  level: 3
";

#[test]
fn an_option_file_of_the_other_trainer_runs_and_names_what_it_does_not_honour() {
    let (dir, set) = place();
    let (file, out) = (
        write(dir.path(), "theirs.yml", THEIRS),
        dir.path().join("run"),
    );
    let ran = run(&[
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--config",
        &file,
    ])
    .ok();
    let listed = |ran: &Ran, keys: &[(&str, &str)]| {
        for (key, reason) in keys {
            let at = ran
                .stderr
                .find(&format!("not honoured: {key}"))
                .unwrap_or_else(|| panic!("{key} is missing in {}", ran.stderr));
            let reasons = ran.stderr[at..].lines().nth(1).unwrap();
            assert!(reasons.contains(reason), "{key}: {reasons}");
        }
    };
    listed(
        &ran,
        &[
            ("network_d.type", "no discriminators"),
            ("train.losses[0].reduction", "weight"),
            ("train.losses[2]", "the other losses"),
            ("frobnicate.level: 3", "unknown"),
        ],
    );
    // what has no effect here is counted and not listed: the same is done anyway, or there is no
    // validation
    for key in [
        "num_gpu",
        "datasets.train.type",
        "datasets.val",
        "val.",
        "logger.",
        // does not change the network: one of those that are counted
        "use_amp",
    ] {
        let line = format!("not honoured: {key}");
        assert!(!ran.stderr.contains(&line), "{key}: {}", ran.stderr);
    }
    assert!(
        ran.stderr
            .lines()
            .next()
            .is_some_and(|line| line.contains("without effect here, 5 not honoured")),
        "{}",
        ran.stderr
    );
    // the folders are honoured by another command
    assert!(
        ran.stderr
            .contains("(datasets.train.dataroot_gt) are taken by `paragon shard --config"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr
            .contains("not honoured either: 1 value for speed, logs and validation"),
        "{}",
        ran.stderr
    );
    let validating = THEIRS.replace("val_enabled: false", "val_enabled: true");
    let validating = write(dir.path(), "validating.yml", &validating);
    let short = run(&["plan", "--config", &validating]).ok().stderr;
    assert!(
        !short.contains("not honoured: datasets.val") && short.contains("config import"),
        "{short}"
    );
    let at = |text: &str| {
        short
            .find(text)
            .unwrap_or_else(|| panic!("{text}: {short}"))
    };
    assert!(at("network_d.type") < at("not honoured either"), "{short}");
    listed(
        &run(&["plan", "-v", "--config", &validating]).ok(),
        &[
            ("use_amp", "precision"),
            ("datasets.val.dataroot_gt", "--val"),
            ("datasets.val.lq_size", "--val"),
            ("val.metrics.ssim.crop_border: 6", "first"),
            ("val.metrics.lpips.type", "PSNR"),
        ],
    );
    assert!(
        ran.stderr.contains("train.optim_g.weight_decay is 0"),
        "{}",
        ran.stderr
    );
    let kept = kept(&out);
    for line in [
        "manual_seed: 7",
        "type: paragonsr2_realtime",
        "upsampler_alpha: 0.0",
        "lq_size: 12",
        "batch_size_per_gpu: 2",
        "accum_iter: 2",
        "num_worker_per_gpu: 2",
        "use_rot: false",
        "grad_clip: 1.0",
        "type: Adam",
        "lr: 0.001",
        "milestones: [4, 6]",
        "total_iter: 8",
        "warmup_iter: 0",
        "- {type: l1loss, loss_weight: 1.0}",
        "- {type: mssimloss, loss_weight: 0.08}",
        "dataset: none",
        "val_freq: 4",
        "crop_border: 4",
        "print_freq: 2",
        "save_checkpoint_freq: 4",
    ] {
        assert!(kept.contains(line), "{line} is missing in {kept}");
    }
    assert_eq!(
        fs::read_to_string(out.join("log.jsonl"))
            .unwrap()
            .lines()
            .count(),
        4
    );
    // paragon's own file, made from it, has the same numbers.
    let ours = dir.path().join("ours.yml");
    run(&["config", "import", &file, "--out", text(&ours)]).ok();
    let again = dir.path().join("again");
    run(&[
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&again),
        "--config",
        text(&ours),
    ])
    .ok();
    assert!(newest_state(&out) == newest_state(&again));
}

#[test]
fn every_value_of_the_published_files_is_honoured_or_named() {
    let Some(configs) = place::reference(
        "every_value_of_the_published_files_is_honoured_or_named",
        "configs",
    ) else {
        return;
    };
    let (dir, set) = place();
    for entry in fs::read_dir(configs).unwrap() {
        let file = entry.unwrap().path();
        let content = fs::read(&file).unwrap();
        let mut settings = paragon::config::Settings::default();
        let imported = settings
            .take(&content)
            .unwrap()
            .expect("a file of the other trainer");
        assert_eq!(
            options::lost(&imported, &content),
            Vec::<String>::new(),
            "{}",
            file.display()
        );
        // training starts as the file is: its scale, its network
        let scale = settings.whole("scale").unwrap() as usize;
        let config = settings.train_config(scale, usize::MAX).unwrap();
        config.check().unwrap();
        {
            let plan = run(&["plan", "--json", "--config", text(&file)])
                .ok()
                .stdout;
            let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
            assert_eq!(plan["network"], config.network.arch.as_str());
            assert_eq!(plan["scale"], scale);
        }
        let out = dir.path().join(file.file_stem().unwrap());
        let base = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--config",
            text(&file),
            "--network",
            "nano",
        ];
        let small = [
            "--lq-size",
            "8",
            "--batch-size",
            "2",
            "--iterations",
            "2",
            "--set",
            "scale=2",
        ];
        let ran = run(&[&base[..], &small].concat()).ok();
        assert!(
            !ran.stderr.contains("unknown to this program"),
            "{}",
            ran.stderr
        );
    }
}

/// A setting as JSON has it.
fn setting(json: &serde_json::Value) -> Setting {
    serde_json::from_value(json.clone()).unwrap()
}

#[test]
fn every_network_is_listed_and_configured() {
    let shown = run(&["networks"]).ok().stdout;
    let listed: serde_json::Value =
        serde_json::from_str(&run(&["networks", "--json"]).ok().stdout).unwrap();
    let quick = run(&["config", "explain", "quick"]).ok().stdout;
    for (network, listed) in known_networks().iter().zip(listed.as_array().unwrap()) {
        assert!(shown.contains(&format!("{}\n", network.name)), "{shown}");
        assert!(quick.contains(network.name), "{quick}");
        assert_eq!(listed["name"], network.name);
        assert_eq!(listed["scales"], serde_json::json!(network.scales));
        for (alias, listed) in network
            .aliases
            .iter()
            .zip(listed["aliases"].as_array().unwrap())
        {
            assert!(shown.contains(alias) && listed["name"] == *alias);
        }
        for (spec, listed) in network
            .settings
            .iter()
            .zip(listed["settings"].as_array().unwrap())
        {
            assert!(shown.contains(spec.name) && shown.contains(spec.doc));
            assert_eq!(listed["name"], spec.name);
            assert_eq!(setting(&listed["default"]), spec.default());
            let key = format!("network_g.{}", spec.name);
            let explained = run(&["config", "explain", &key]).ok().stdout;
            assert!(explained.contains(network.name), "{explained}");
        }
        // the name, all settings and the preset are taken by `plan`
        let mut flags = vec!["plan".to_string(), "--preset".into(), "quick".into()];
        flags.extend(["--arch".to_string(), network.name.into(), "--json".into()]);
        for spec in network.settings {
            flags.extend([
                "--set".into(),
                format!("network_g.{}={}", spec.name, spec.default()),
            ]);
        }
        for scale in network.scales {
            {
                let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
                let scale_text = scale.to_string();
                let plan = run(&[&flags[..], &["--scale", &scale_text]].concat()).ok();
                let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
                assert_eq!(
                    (&plan["network"], &plan["scale"]),
                    (&network.name.into(), &(*scale).into())
                );
                for spec in network.settings {
                    assert_eq!(setting(&plan["settings"][spec.name]), spec.default());
                }
            }
        }
    }
    assert!(
        shown.contains("superultracompact (num_conv 8, num_feat 24)"),
        "{shown}"
    );
}

#[test]
fn settings_that_a_network_does_not_have_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let nano = ["upsampler_alpha", "detail_gain", "layer_scale"];
    run(&["plan", "--num-feat", "32"]).refused(1, &nano);
    run(&["plan", "--network", "compact", "--alpha", "0"]).refused(
        1,
        &["compact has no setting", "num_feat, num_conv, act_type"],
    );
    run(&["plan", "--network", "compact", "--num-feat", "0"])
        .refused(2, &["--num-feat", "from 1 to"]);
    run(&["plan", "--network", "span", "--set", "network_g.norm=3"]).refused(2, &["true or false"]);
    run(&["plan", "--network", "nano", "--scale", "1"]).refused(1, &["scale 1", "2, 3, 4, 8"]);
    let file = write(
        dir.path(),
        "ours.yml",
        "network_g:\n  type: span\n  num_conv: 3\n",
    );
    run(&["plan", "--config", &file]).refused(
        1,
        &[
            "ours.yml: line 3",
            "network_g.num_conv",
            "feature_channels, norm",
        ],
    );
    for command in [&["bench", "step"][..], &["bench", "upscale"]] {
        let with = |more: &[&str]| run(&[command, more].concat());
        with(&["--network-set", "norm=true"]).refused(1, &nano);
        with(&["--network-set", "frob=1"]).refused(2, &["--network-set", "feature_channels"]);
        with(&["--network", "span", "--network-set", "norm"]).refused(2, &["no '='"]);
    }
    // a network file: the setting is checked against the network that it holds
    let (model, image) = (dir.path().join("n.safetensors"), dir.path().join("i.png"));
    let net = Network::new("nano", 2).unwrap();
    write_model(&model, &net, &net.params().start_values(1), None).unwrap();
    fs::write(&image, "").unwrap();
    for command in [
        vec!["upscale", text(&image), "out.png"],
        vec!["eval", text(dir.path())],
    ] {
        let with = |more: &[&str]| run(&[&command[..], &["--model", text(&model)], more].concat());
        with(&["--network-set", "norm=true"]).refused(1, &nano);
        with(&["--network-set", "norm=maybe"]).refused(2, &["--network-set", "true or false"]);
        with(&["--arch", "span"]).refused(1, &["span"]);
    }
}

#[test]
fn benchmarks_name_network_scale_and_settings() {
    let network = [
        "--network",
        "nano",
        "--network-set",
        "upsampler_alpha=0.125",
        "--json",
    ];
    let step = [
        "bench",
        "step",
        "--lq-size",
        "8",
        "--batch-size",
        "1",
        "--steps",
        "1",
    ];
    let step = [&step[..], &["--device", "cpu", "--step-only"]].concat();
    let upscale = ["bench", "upscale", "--size", "16", "--pictures", "1"];
    for command in [&step[..], &upscale] {
        let out = run(&[command, &network].concat()).ok().stdout;
        let out: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&out["network"], &out["scale"]),
            (&"paragonsr2_realtime".into(), &2.into())
        );
        assert_eq!(out["settings"]["upsampler_alpha"], 0.125);
    }
}

#[test]
fn a_run_keeps_the_settings_of_its_network() {
    let (dir, set) = place();
    let out = dir.path().join("run");
    let base = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--preset",
        "quick",
    ];
    let small = [
        "--lq-size",
        "8",
        "--batch-size",
        "2",
        "--iterations",
        "40",
        "--layer-scale",
        "0.2",
    ];
    run(&[&base[..], &small].concat()).ok();
    let kept = kept(&out);
    for line in [
        "type: paragonsr2_realtime",
        "upsampler_alpha: 0.0",
        "detail_gain: 0.05",
        "layer_scale: 0.2",
        "lr: 0.004",
        "type: CosineAnnealingLR",
        "warmup_iter: 2",
        "ema_decay: 0.9",
        "- {type: l1loss, loss_weight: 1.0}",
    ] {
        assert!(kept.contains(line), "{line} is missing in {kept}");
    }
    assert!(
        !kept.contains("num_feat") && !kept.contains("ssimloss"),
        "{kept}"
    );
}

#[test]
fn whole_numbers_written_as_floats_are_read_everywhere() {
    let (dir, set) = place();
    let file = write(
        dir.path(),
        "ours.yml",
        "data: {batch_size_per_gpu: 2.0, lq_size: !!float 1.2e1}\ntrain: {warmup_iter: 0.0}\n",
    );
    let out = dir.path().join("run");
    let base = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--config",
        &file,
    ];
    run(&[
        &base[..],
        &[
            "--set",
            "train.total_iter=4e0",
            "--set",
            "train.scheduler.milestones=1e5,2.5e5",
            "--log-every",
            "2.0",
        ],
    ]
    .concat())
    .ok();
    let kept = kept(&out);
    for line in [
        "batch_size_per_gpu: 2",
        "lq_size: 12",
        "total_iter: 4",
        "milestones: [100000, 250000]",
        "print_freq: 2",
    ] {
        assert!(kept.contains(line), "{line}: {kept}");
    }
    for (value, word) in [
        ("5.5", "'5.5'"),
        ("1e400", "'1e400'"),
        ("!!int 5.5", "a whole number"),
    ] {
        run(&["train", "--set", &format!("train.total_iter={value}")])
            .refused(2, &["--set", "whole number", word]);
    }
    run(&["train", "--iterations", "5.5"]).refused(2, &["--iterations", "whole number", "5.5"]);
}

#[test]
fn import_says_first_what_matters_most() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = THEIRS
        .replace("type: paragonsr2_nano", "type: RRDBNet")
        .replace(
            "name: tiny",
            "name: tiny\njpeg_range: [30, 95]\nblur_prob2: 0.8",
        );
    let file = write(dir.path(), "theirs.yml", &theirs);
    let ran = run(&["config", "import", &file]).ok();
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(
        lines[1].contains("degrades on the fly (jpeg_range: [30, 95])")
            && lines[1].contains("a recipe of paragon (data.degrade, --degrade)"),
        "{}",
        ran.stderr
    );
    assert!(
        lines[3].contains("not honoured: network_g.type: RRDBNet"),
        "{}",
        ran.stderr
    );
    assert!(
        lines[4].contains("known are paragonsr2_realtime") && lines[4].contains("--network"),
        "{}",
        ran.stderr
    );
    // The message is the same for a file of paragon.
    let file = write(dir.path(), "ours.yml", "network_g: {type: rrdb}\n");
    let ran = run(&["config", "import", &file]).ok();
    assert!(
        ran.stderr
            .contains("unknown network 'rrdb'; known are paragonsr2_realtime"),
        "{}",
        ran.stderr
    );
}

#[cfg(unix)]
#[test]
fn files_that_are_no_options_are_named() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let long = format!("train:\n  total_iter: {}\n", "9".repeat(900_000));
    for (content, words) in [
        ("[train]\ntotal_iter = 5\n", &["TOML", "YAML"][..]),
        ("PK\u{3}\u{4}", &["zip archive"]),
        (
            &long,
            &["line 2", "train.total_iter", "(900000 characters)"],
        ),
        (&" ".repeat(1 << 21), &["longer than 1 MiB"]),
        ("a: &a [1]\nb: [*a, *c]\n", &["line 2"]),
    ] {
        let file = write(dir.path(), "bad.yml", content);
        let ran = run(&["plan", "--config", &file]).refused(1, &[&["bad.yml"], words].concat());
        assert!(ran.stderr.len() < 2000, "{} bytes", ran.stderr.len());
    }
    run(&["plan", "--config", "/dev/zero"]).refused(1, &["/dev/zero", "longer than 1 MiB"]);
    run(&["plan", "--config", text(dir.path())]).refused(1, &["Is a directory"]);
    let json = write(dir.path(), "ours.json", "{\"data\": {\"lq_size\": 64}}");
    assert!(
        run(&["plan", "--config", &json])
            .ok()
            .stdout
            .contains("LQ 64")
    );
    // On some systems, file names need not be text.
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"\xff.yml"));
    fs::write(&odd, "data: {lq_size: 64}").unwrap();
    run(&["plan".as_ref(), "--config".as_ref(), odd.as_os_str()]).ok();
}

#[test]
fn flags_win_over_set_and_set_over_the_file() {
    let (dir, set) = place();
    let ours = "train: {total_iter: 9, warmup_iter: 3}\ndata: {batch_size_per_gpu: 2}\nlogger: {print_freq: 2, keep_states: 1}\n";
    let (file, out) = (write(dir.path(), "ours.yml", ours), dir.path().join("run"));
    let base = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--config",
        &file,
    ];
    let more = [
        "--set",
        "train.total_iter=6",
        "--set",
        "logger.print_freq=3",
        "--set",
        "train.losses=[{type: mseloss}]",
        "--iterations",
        "4",
    ];
    run(&[&base[..], &more].concat()).ok();
    let text_of = kept(&out);
    for line in [
        "total_iter: 4",
        "warmup_iter: 3",
        "print_freq: 3",
        "keep_states: 1",
        "mseloss, loss_weight: 1.0",
        "total_iter: 4",
    ] {
        assert!(text_of.contains(line), "{line}: {text_of}");
    }
    assert!(!text_of.contains("ssimloss"));
    // `plan` accepts the same file.
    let plan = run(&["plan", "--config", text(&out.join("config.yml")), "--json"])
        .ok()
        .stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(
        (&plan["lq_size"], &plan["effective_batch"]),
        (&16.into(), &2.into())
    );
    // It gives the same run from any working folder.
    let (config, again) = (out.join("config.yml"), dir.path().join("again"));
    run(&["train", "--config", text(&config), "--out", text(&again)]).ok();
    assert!(newest_state(&out) == newest_state(&again));
    let finished = run(&["train", "--config", text(&config)]).ok();
    assert!(
        finished
            .stderr
            .contains("this run has its 4 iterations already"),
        "{}",
        finished.stderr
    );
}

#[test]
fn what_cannot_be_meant_is_refused_with_what_was() {
    let (dir, set) = place();
    let out = dir.path().join("run");
    let train = |more: &[&str]| -> Ran {
        run(&[
            &["train", "--shards", text(&set), "--out", text(&out)],
            more,
        ]
        .concat())
    };
    for (content, words) in [
        (
            "train:\n  total_iters: 5\n",
            &["line 2", "did you mean train.total_iter?"][..],
        ),
        ("train:\n\ttotal_iter: 5\n", &["line 2"]),
        ("scale: 4\n", &["scale 4", "2"]),
        (
            "network_g: {type: rrdb}\n",
            &["rrdb", "paragonsr2_realtime"],
        ),
        (
            "train: {optim_g: {lr: 0}}\n",
            &["line 1", "train.optim_g.lr", "above 0"],
        ),
        (
            "datasets: {train: {lq_size: many}}\n",
            &["line 1", "datasets.train.lq_size", "many"],
        ),
        (
            "datasets: ~\ntrain: {total_iter: 1}\n",
            &["no train.losses"],
        ),
        (
            "datasets: ~\ntrain: {total_iter: 1, losses: [{type: ganloss}]}\n",
            &["none that can be trained on"],
        ),
    ] {
        let file = write(dir.path(), "bad.yml", content);
        train(&["--config", &file]).refused(
            1,
            &[&["bad.yml"], words].concat()
                [usize::from(words[0].starts_with("scale") || words[0] == "rrdb")..],
        );
    }
    train(&["--config", "nowhere.yml"]).refused(1, &["nowhere.yml"]);
    train(&["--set", "train.lr=1"]).refused(2, &["--set", "train.optim_g.lr"]);
    train(&["--set", "train.optim_g.lr=-1"]).refused(2, &["--set", "above 0"]);
    train(&["--set", "train.optim_g.lr"]).refused(2, &["--set", "no '='"]);
    assert!(!out.join("config.yml").exists());
}

#[test]
fn explain_init_schema_and_reference_come_from_the_same_table() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("start.yml");
    run(&["config", "init", text(&file)]).ok();
    run(&["config", "init", text(&file)]).refused(1, &["start.yml", "--force"]);
    run(&["plan", "--config", text(&file)]).ok();
    assert_eq!(
        run(&["plan", "--config", text(&file), "--json"])
            .ok()
            .stdout,
        run(&["plan", "--json"]).ok().stdout
    );
    let one = run(&["config", "explain", "train.grad_clip"]).ok().stdout;
    assert!(
        one.contains("--grad-clip") && one.contains("true is 1"),
        "{one}"
    );
    let short = run(&["config", "explain", "grad_clip"]).ok().stdout;
    assert_eq!(short, one);
    assert!(
        run(&["config", "explain", "val"])
            .ok()
            .stdout
            .contains("val.crop_border")
    );
    let schema: serde_json::Value =
        serde_json::from_str(&run(&["config", "schema"]).ok().stdout).unwrap();
    let lr = &schema["properties"]["train"]["properties"]["optim_g"]["properties"]["lr"];
    assert_eq!(lr["exclusiveMinimum"], 0);
    assert_eq!(schema["properties"]["train"]["additionalProperties"], false);
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md"))
            .unwrap();
    let fresh = run(&["config", "reference"]).ok().stdout;
    assert!(
        page == fresh,
        "docs/configuration.md is not what `paragon config reference` prints; write it again"
    );
}
