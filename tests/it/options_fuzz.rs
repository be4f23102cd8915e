//! Thousands of damaged and invented option files and network files, from a seeded generator:
//! `PARAGON_FUZZ_SECONDS=600 PARAGON_FUZZ_SEED=7 cargo test --release --test it options_fuzz --
//! --nocapture`. Without the variables it runs for a short time with seed 1. The guided fuzzers
//! `options` and `model` in `fuzz/` choose the inputs of the same checks by coverage.

use crate::fuzz_common::{model, options};

use paragon::config::docs;
use paragon::model::Network;
use paragon::model::write_model;
use paragon::support::rng::Rng;
use std::time::{Duration, Instant};

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

/// Parts of option files, and texts that are difficult for readers of them.
const PARTS: [&str; 72] = [
    "compact",
    "SPAN",
    "{type: SRVGGNetCompact, upscale: 4, num_feat: 24}",
    "{type: span, norm: true, rgb_mean: [0.4488, 0.4371, 0.4040]}",
    "  num_conv: 8",
    "  feature_channels: 1e9",
    "  norm: 255",
    "  act_type: relu",
    "!!float 5e3",
    "!!int 5.5",
    "!!str ~",
    "!!bool yes",
    "!!null",
    "!<tag:yaml.org,2002:float> 1",
    "5e3",
    "1000.0",
    "1e400",
    "-1",
    "0",
    "18446744073709551615",
    "0.5",
    ".inf",
    ".nan",
    "true",
    "off",
    "~",
    "''",
    "\"a\\nb\"",
    "[1, 2, 3]",
    "[]",
    "{}",
    "{a: {b: c}}",
    "[[[[1]]]]",
    "&a",
    "*a",
    "<<: *a",
    "l1loss",
    "[{type: l1loss, loss_weight: 0}]",
    "[{type: l1loss}, {type: ganloss, x: 1}]",
    "{type: mssimloss}",
    "nano",
    "paragonsr2_pro",
    "rrdb",
    "Adam",
    "AdamW8bit",
    "CosineAnnealingRestartLR",
    "512M",
    "auto",
    "none",
    "é東京\u{202e}",
    "\u{1b}[31m",
    "train:",
    "datasets:",
    "network_g:",
    "val:",
    "logger:",
    "path:",
    "machine:",
    "  gt_size: 128",
    "  lq_size: 64",
    "scale: 4.0",
    "num_gpu: 1",
    "  warmup_iter: -1",
    "  pixel_opt: {type: l1loss}",
    "high_order_degradation: true",
    "  resize_prob2: [0.3, 0.4]",
    "model_type: RealESRGANModel",
    "# comment",
    "---",
    "[train]",
    "a = 1",
    "\t",
];

/// The files that are altered: paragon's own with all keys, and one of another trainer.
fn seeds() -> Vec<String> {
    let theirs = "num_gpu: auto\nscale: 2\ndatasets: {train: &t {type: paired, dataroot_gt: [a, b], gt_size: 128, lq_size: 64, batch_size_per_gpu: 16.0}, \
                  val: {<<: *t, name: v}}\nnetwork_g: {type: paragonsr2_nano}\ntrain:\n  ema_decay: 0.999\n  grad_clip: true\n  optim_g: {type: AdamW, lr: !!float 2e-4, \
                  betas: [0.9, 0.99]}\n  scheduler: {type: MultiStepLR, milestones: [1e3, !!float 2e3], gamma: 0.5}\n  total_iter: !!float 5e3\n  warmup_iter: -1\n  losses:\n  \
                  - {type: l1loss, loss_weight: 1.0}\n  - {type: ganloss}\nval: {val_enabled: true, val_freq: 1e3, metrics: {psnr: {type: calculate_psnr, crop_border: 4}}}\n\
                  logger: {print_freq: 100, save_checkpoint_freq: !!float 5e3}\n";
    let span = theirs.replace(
        "{type: paragonsr2_nano}",
        "\n  type: SPAN\n  num_in_ch: 3\n  upscale: 2\n  img_range: 255.\n  norm: true",
    );
    vec![
        span,
        docs::starter(),
        docs::yaml(&paragon::config::Settings::default(), false),
        theirs.to_string(),
    ]
}

fn changed(rng: &mut Rng, text: &str) -> Vec<u8> {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(lines.len() as u64) as usize;
        let part = PARTS[rng.below(PARTS.len() as u64) as usize];
        match rng.below(8) {
            // A different value for a key.
            0..=2 => {
                let key = lines[at].split(':').next().unwrap_or_default().to_string();
                lines[at] = format!("{key}: {part}");
            }
            3 => lines.insert(at, part.to_string()),
            4 => drop(lines.remove(at)),
            5 => {
                let other = lines[rng.below(lines.len() as u64) as usize].clone();
                lines.insert(at, other);
            }
            6 => {
                let mut chars: Vec<char> = lines[at].chars().collect();
                let place = rng.below(chars.len() as u64 + 1) as usize;
                chars.splice(place..place, part.chars());
                lines[at] = chars.into_iter().collect();
            }
            _ => {
                lines[at] = format!(
                    "{}{}",
                    " ".repeat(rng.below(5) as usize),
                    lines[at].trim_start()
                )
            }
        }
        if lines.is_empty() {
            lines.push(String::new());
        }
    }
    let mut bytes = lines.join("\n").into_bytes();
    if rng.below(10) == 0 && !bytes.is_empty() {
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << rng.below(8);
    }
    bytes
}

#[test]
fn option_files_of_any_kind_give_settings_or_an_error() {
    let limit = Duration::from_secs(variable("PARAGON_FUZZ_SECONDS", 4));
    let mut rng = Rng::new(&[variable("PARAGON_FUZZ_SEED", 1), 1]);
    let seeds = seeds();
    for seed in &seeds {
        assert!(
            options::options(seed.as_bytes()),
            "an undamaged file must be read"
        );
    }
    let (mut runs, mut read) = (0u64, 0u64);
    let start = Instant::now();
    while start.elapsed() < limit {
        let seed = &seeds[rng.below(seeds.len() as u64) as usize];
        let content = changed(&mut rng, seed);
        read += u64::from(options::options(&content));
        runs += 1;
    }
    println!("{runs} option files, {read} gave settings");
    assert!(read > 0 && read < runs);
}

/// A network file whose header, body or both are altered.
fn changed_network(rng: &mut Rng, whole: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let (mut header, mut body) = (
        String::from_utf8(whole[8..8 + length].to_vec()).unwrap(),
        whole[8 + length..].to_vec(),
    );
    let words = [
        ("\"conv_in.", "\"module.conv_in."),
        ("\"body.", "\"params_ema._orig_mod.body."),
        ("\"F32\"", "\"F16\""),
        ("\"F32\"", "\"BF16\""),
        ("\"F32\"", "\"I64\""),
        ("[16]", "[1,16]"),
        ("[]", "[1]"),
        ("[16,3,3,3]", "[16,27]"),
        ("[16]", "[4611686018427387904,4]"),
        ("[16]", "[-1]"),
        ("detail_gain", "conv_in.bias"),
        ("\\\"scale\\\":2", "\\\"scale\\\":0"),
        ("\\\"scale\\\":2", "\\\"scale\\\":18446744073709551615"),
        ("paragonsr2_realtime", "x"),
        ("__metadata__", "y"),
        ("{", "[{"),
        (
            "\\\"upsampler_alpha\\\":0.3",
            "\\\"upsampler_alpha\\\":1e39",
        ),
        ("paragon\":", "paragon_state\":"),
    ];
    for _ in 0..rng.below(4) {
        let (from, to) = words[rng.below(words.len() as u64) as usize];
        header = if rng.below(2) == 0 {
            header.replace(from, to)
        } else {
            header.replacen(from, to, 1)
        };
    }
    let mut header = header.into_bytes();
    for _ in 0..rng.below(3) {
        let at = rng.below(header.len() as u64) as usize;
        match rng.below(3) {
            0 => header[at] = rng.next_u64() as u8,
            1 => header[at] = b'0' + rng.below(10) as u8,
            _ => drop(header.remove(at)),
        }
    }
    for _ in 0..rng.below(3) {
        let at = rng.below(body.len() as u64 / 4) as usize * 4;
        let value = [f32::NAN, f32::INFINITY, 1e38, 0.0][rng.below(4) as usize];
        body[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let mut length = header.len() as u64;
    match rng.below(12) {
        0 => length = rng.next_u64() >> rng.below(64),
        1 => body.truncate(rng.below(body.len() as u64) as usize),
        2 => body.extend([0; 7]),
        _ => {}
    }
    [&length.to_le_bytes()[..], &header, &body].concat()
}

#[test]
fn network_files_of_any_kind_give_parameters_or_an_error() {
    let limit = Duration::from_secs(variable("PARAGON_FUZZ_SECONDS", 4));
    let mut rng = Rng::new(&[variable("PARAGON_FUZZ_SEED", 1), 2]);
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    };
    let path = dir.path().join("model.safetensors");
    let net = Network::new("nano", 2).unwrap();
    write_model(&path, &net, &net.params().start_values(5), Some(7)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert!(
        model::model(&path, &whole),
        "an undamaged file must be read"
    );
    let (mut runs, mut read) = (0u64, 0u64);
    let start = Instant::now();
    while start.elapsed() < limit {
        read += u64::from(model::model(&path, &changed_network(&mut rng, &whole)));
        runs += 1;
    }
    println!("{runs} network files, {read} gave parameters");
    assert!(read > 0 && read < runs);
}
